"""What ends a command early, and how it becomes one line. Mistakes need nothing else imported than this."""

from __future__ import annotations

import os
import sys
from pathlib import Path

INTERRUPTED_CODE = 130
"""The exit code of a command that was interrupted."""
UNREAD_CODE = 141
"""The exit code of a command whose output nobody reads any more (``| head``), as shells have it for other programs."""


class DataError(ValueError):
    """Data that cannot be used as it is: one line that says what is wrong, where, and what would be right."""


class SearchFailed(RuntimeError):
    """A search without a result, and why: one line."""


class Interrupted(KeyboardInterrupt):
    """The search was interrupted and can be resumed. It is no error that one may catch.

    A KeyboardInterrupt, since nothing else that a signal's handler raises ends ``ray.get`` and ``ray.wait``: they would
    go on waiting, and then break.
    """


def problem(where: str | Path, what: str) -> str:
    """A problem as one line, even where a file name holds line breaks or bytes that are no UTF-8."""
    return printable(f"{where}: {what}")


def printable(text: str) -> str:
    """A text as one line that any terminal takes: line breaks and bytes that are no UTF-8 are written out."""
    line = text.encode(errors="backslashreplace").decode()
    return line.replace("\n", "\\n").replace("\r", "\\r")


def drop_output() -> None:
    """Send to nowhere what is still printed: what read standard output has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def counted(count: float, name: str, several: str | None = None) -> str:
    """``1 image``, ``2 images``, ``0.5 GPUs``; ``several`` where that is not the name with an s."""
    shown = f"{count:g}" if isinstance(count, float) else count
    return f"{shown} {name if count == 1 else several or name + 's'}"
