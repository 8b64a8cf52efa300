"""``python -m crh_tune.serving``: the commands of a service, where neither torch nor Ray is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from crh_tune.errors import UNREAD_CODE, DataError, drop_output, problem
from crh_tune.serving.commands import add_commands

NAME = "python -m crh_tune.serving"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 done, 2 a mistake in arguments or files, 130 interrupted, 141 nobody reads on."""
    parser = argparse.ArgumentParser(prog=NAME, description="Encode and search with an exported encoder.")
    add_commands(parser.add_subparsers(dest="command", required=True))
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        drop_output()
        return UNREAD_CODE
    except DataError as error:
        print(problem(f"{NAME} {arguments.command}", str(error)), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
