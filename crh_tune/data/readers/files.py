"""What the readers of data folders share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crh_tune.data.listing import DataError
from crh_tune.data.options import FileOptions
from crh_tune.data.splits import leaving_each
from crh_tune.data.store.stored import Array
from crh_tune.errors import counted, printable, problem


def existing_path(options: FileOptions) -> Path:
    """What ``path`` names. Raises DataError where it is not set, or nothing is there."""
    if options.path is None:
        raise DataError(f"dataset.path is not given: --data names {options.holds}")
    if not options.path.exists():
        raise DataError(problem(options.path, f"does not exist: path must be {options.holds}"))
    return options.path


def data_folder(options: FileOptions) -> Path:
    """The folder that ``path`` names. Raises DataError where it is not set, not there, or a file."""
    if not (path := existing_path(options)).is_dir():
        raise DataError(problem(path, f"is a file: path must be {options.holds}"))
    return path


def files_in(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of these names in a folder; a name may be an absolute path. Raises DataError where one is not there."""
    files = [folder / Path(name).expanduser() for name in names]
    missing = ", ".join(str(file) for file in files if not file.is_file())
    if missing:
        raise DataError(problem(folder, f"files were looked for and not found: {missing}"))
    return files


def read_text(file: Path) -> str:
    """A file's text, UTF-8 with or without a byte order mark. Raises DataError with the line that is something else."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(problem(file, f"cannot be read: {error.strerror}")) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(problem(f"{file}:{line}", "is not UTF-8 text: save the file as UTF-8")) from None


def no_problems(root: Path, problems: Sequence[str]) -> None:
    """Raises DataError with the first problem, and how many there are."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}: crh-tune data check {root} lists them all")


def too_few_classes(where: str | Path, class_names: tuple[str, ...]) -> list[str]:
    """A problem where there are fewer than two classes."""
    if len(class_names) >= 2:
        return []
    return [problem(where, f"{counted(len(class_names), 'class', 'classes')}: at least 2 are needed")]


def span_line(span: tuple[float, float] | None) -> str | None:
    """A line on how images of more than 8 bits a channel are scaled; None where there are none."""
    if span is None:
        return None
    return (
        f"images of more than 8 bits a channel: {span[0]:g} to {span[1]:g} become 0 to 255 (dataset.range sets others)"
    )


def plain_line(names: Sequence[str]) -> str | None:
    """A line on the images of which every pixel is the same grey; None where there are none."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return printable(f"{counted(len(names), 'image')} of a single grey value: {shown}") if names else None


def missing_files(root: Path, paths: Iterable[str]) -> set[str]:
    """Those of the POSIX paths below ``root`` at which there is no file; each folder is read once."""
    there: dict[str, set[str]] = {}
    missing = set()
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in there:
            there[folder] = _file_names(root / folder)
        if name not in there[folder]:
            missing.add(path)
    return missing


def stratified_draw(labels: Array, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which samples become test queries: ``fraction`` of every class of two samples or more, at least one.

    ``labels`` are N class indices; of N x C multi-hot labels, ``fraction`` of all samples, never the last of a class.
    """
    generator = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), dtype=bool)
    classes = np.zeros(len(labels), dtype=np.int64) if labels.ndim == 2 else labels
    for c in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == c))
        wanted = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        drawn[rows[:wanted] if labels.ndim == 1 else leaving_each(rows, labels, wanted)] = True
    return drawn


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if is_file(entry)}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a path with a null character
        return set()
    except OSError as error:
        raise DataError(problem(folder, f"cannot be read: {error.strerror}")) from None


def is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()
