"""``python -m crh_tune.serving``: the commands of a service, where neither torch nor Ray is installed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from crh_tune.errors import leave, run_command
from crh_tune.serving.commands import add_commands

NAME = "python -m crh_tune.serving"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 done, 1 failed, 2 a mistake in arguments or files, 130 interrupted, 141 nobody reads on."""
    parser = argparse.ArgumentParser(prog=NAME, description="Encode and search with an exported encoder.")
    add_commands(parser.add_subparsers(dest="command", required=True))
    arguments = parser.parse_args(argv)
    return run_command(lambda: arguments.run(arguments), f"{NAME} {arguments.command}")


if __name__ == "__main__":
    leave(main)
