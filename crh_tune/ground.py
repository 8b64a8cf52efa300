"""What every room stands on: files that are whole or as they were, an error in one line, a table in aligned ones."""

from __future__ import annotations

import json
import os
import uuid
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file aside, and rename it once it is on the disk: ``path`` is whole, or as it was.

    Raises OSError where the disk is full or gone.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(aside)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 into a file that is whole or as it was. Raises OSError where the disk is full or gone."""
    write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_array(path: Path, array: Any) -> None:
    """Write an array as ``.npy`` into a file that is whole or as it was. Raises OSError where the disk is full."""
    import numpy as np  # noqa: PLC0415 - a mistake in an argument is told without it

    def write(aside: Path) -> None:
        with aside.open("wb") as file:  # to a path of another ending, numpy would add its own
            np.save(file, array, allow_pickle=False)

    write_whole(path, write)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write values as JSON into a file that is whole or as it was. Raises OSError where the disk is full or gone."""
    write_text(path, json.dumps(content, indent=indent))


def check_archive(archive: Path | BinaryIO) -> None:
    """Compare every file of a zip archive with its checksum, a piece at a time.

    Raises ValueError where one is wrong, and whatever zipfile raises on what is no archive.
    """
    with zipfile.ZipFile(archive) as opened:
        broken = opened.testzip()
    if broken is not None:
        raise ValueError(f"the checksum of {broken} is wrong")


def first_line(error: BaseException) -> str:
    """The first line of what an error says that is not blank; its name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns of one width."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
