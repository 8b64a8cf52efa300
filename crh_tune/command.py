"""How a command of ``crh-tune`` runs: its arguments, its name, and what it prints where."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from pydantic_core import to_json

from crh_tune.errors import Interrupted, complain, drop_output, problem, run_command, unless_hung_up

DEFAULT_STORAGE = "crh_runs"
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
"""What Ray reads from the environment as a search starts; whoever sets one of these is heard."""

Say = Callable[[str], None]
Arguments = ParamSpec("Arguments")


def search_names(storage: Path) -> list[str]:
    """The names of the searches there are."""
    return sorted(path.parent.name for path in storage.glob("*/search.json"))


def complete_search(context: typer.Context) -> list[str]:
    """The same for a shell to complete: those of the storage that stands in the command line so far."""
    return search_names(Path(context.params.get("storage") or DEFAULT_STORAGE).expanduser())


SearchName = Annotated[
    str, typer.Argument(help="The search's name, such as digit-pairs-001.", autocompletion=complete_search)
]
Storage = Annotated[Path, typer.Option(metavar="DIR", help="Where searches are kept.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object; progress goes to standard error.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result and what goes wrong, no progress.")]


def prepare_process() -> None:
    """Set what Ray reads from the environment, unless it is set. Programs call it as they start, before Ray does."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def run_app(app: typer.Typer, argv: Sequence[str] | None, name: str) -> int:
    """Run the command that the arguments name; its exit code. A mistake in them is one line on standard error."""
    prepare_process()
    try:
        return app(argv, prog_name=name, standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else name
        complain(problem(where, f"{_sentence(error)} {where} --help shows what there is."))
        return 2


def _sentence(error: typer.TyperException) -> str:
    """What is wrong with the arguments, with the options that look like an unknown one."""
    nearest = getattr(error, "possibilities", None)
    if not nearest:
        return " ".join(error.format_message().split())
    return f"{error.message}. Did you mean {', '.join(map(repr, sorted(nearest)))}?"


def ending(name: str) -> Callable[[Callable[Arguments, None]], Callable[Arguments, int]]:
    """Makes a command answer with its exit code, as :func:`run_command` says, and say its name where it fails."""

    def made(command: Callable[Arguments, None]) -> Callable[Arguments, int]:
        @wraps(command)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
            return run_command(lambda: command(*args, **kwargs), name)

        return run

    return made


@contextmanager
def stdout_for_json(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Within it, standard output is kept for the JSON that the yielded function prints; the rest goes to stderr."""
    stdout = sys.stdout

    def print_json(content: Any) -> None:
        print(to_json(content, indent=2, inf_nan_mode="null").decode(), file=stdout, flush=True)

    if not as_json:
        yield print_json
        return
    with redirect_stdout(sys.stderr):
        yield print_json


def say(line: str) -> None:
    """A line of progress. Raises Interrupted where what read it has gone, so that the work ends in order.

    A terminal that has gone ends nothing by itself: there is SIGHUP to end the work, and ``disown`` to have it go on.
    """
    try:
        with unless_hung_up():
            print(line, flush=True)
    except BrokenPipeError:
        drop_output(sys.stdout)
        raise Interrupted from None


def silent(line: str) -> None:
    """Says nothing."""
