"""How alike classes are, read from a file that the user brings."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crh_tune.data.listing import DataError
from crh_tune.data.options import FileOptions
from crh_tune.data.readers.files import problem, read_text
from crh_tune.data.store.stored import Array
from crh_tune.ground import first_line

Floats = npt.NDArray[np.float64]


def own_reference(
    options: FileOptions, class_names: Sequence[str], train_labels: Array, found: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64] | None:
    """The reference similarity from the user's file, or the one that came with the dataset. Raises DataError."""
    return found if options.reference is None else read_reference(options.reference, class_names, train_labels)


def read_reference(path: Path, class_names: Sequence[str], train_labels: Array) -> Floats:
    """The C x C similarity of classes that a file tells.

    A ``.csv`` file has rows ``class,superclass``: 1 for a class and itself, 1/2 for two of one superclass, 0 otherwise.
    A ``.npy`` array has features, a row a class or else a row a training sample (then averaged over the samples that
    have the label): the cosine of the classes' prototypes, less the mean of all prototypes.

    Args:
        train_labels: N class indices or N x C multi-hot.

    Raises:
        DataError: for any other file, and for one that leaves a class out.
    """
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in {".csv", ".npy"}:
        found = "is neither" if path.exists() else "does not exist"
        raise DataError(problem(path, f"{found}: reference must be a .csv file class,superclass or a .npy array"))
    if suffix == ".csv":
        superclasses = _superclasses(path, class_names)
        return same_superclass(np.unique(superclasses, return_inverse=True)[1])
    prototypes = _prototypes(path, class_names, train_labels)
    from sklearn.metrics.pairwise import cosine_similarity  # noqa: PLC0415 - seconds to import

    similarity: Floats = cosine_similarity(prototypes - prototypes.mean(axis=0))
    np.fill_diagonal(similarity, 1)
    return similarity


def same_superclass(superclasses: npt.NDArray[np.int64]) -> Floats:
    """C x C: 1 for a class and itself, 1/2 for two classes of one superclass, 0 otherwise."""
    return (np.equal.outer(superclasses, superclasses) + np.eye(len(superclasses))) / 2


def _superclasses(path: Path, class_names: Sequence[str]) -> list[str]:
    """The superclass of each class."""
    known = set(class_names)
    found: dict[str, str] = {}
    try:
        rows = list(csv.reader(read_text(path).splitlines(), skipinitialspace=True))
    except csv.Error as error:
        raise DataError(problem(path, f"cannot be read as CSV: {error}")) from None
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and [cell.lower() for cell in cells] == ["class", "superclass"]):
            continue
        where = f"{path}:{number}"
        if len(cells) != 2 or not all(cells):
            raise DataError(problem(where, f"{','.join(row)!r}: want class,superclass"))
        if cells[0] not in known:
            raise DataError(
                problem(where, f"{cells[0]!r} is not a class of the dataset: leave it out, or mend its name")
            )
        if found.setdefault(cells[0], cells[1]) != cells[1]:
            raise DataError(
                problem(where, f"class {cells[0]!r} has the superclass {found[cells[0]]!r} already: want one")
            )
    missing = [name for name in class_names if name not in found]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            problem(path, f"class {missing[0]!r}{more} is missing: want a row class,superclass for every class")
        )
    return [found[name] for name in class_names]


def _prototypes(path: Path, class_names: Sequence[str], train_labels: Array) -> Floats:
    """C x D."""
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(problem(path, f"cannot be read as an array of numbers: {first_line(error)}")) from None
    classes, samples = len(class_names), len(train_labels)
    if features.ndim != 2 or not features.size or len(features) not in {classes, samples}:
        wanted = f"({classes}, D), a row a class, or ({samples}, D), a row a training sample"
        raise DataError(problem(path, f"has the shape {features.shape}: want {wanted}"))
    if features.dtype.kind not in "iuf" or not np.isfinite(features).all():
        raise DataError(
            problem(path, f"holds NaN or infinity, or no numbers at all ({features.dtype}): want finite numbers")
        )
    if len(features) == classes:
        return features.astype(np.float64)
    has = train_labels.astype(np.float64) if train_labels.ndim == 2 else np.eye(classes)[train_labels]
    counts = has.sum(axis=0)
    if not counts.all():
        name = class_names[int(np.argmin(counts))]
        raise DataError(problem(path, f"class {name!r} has no training sample to average: want a row a class"))
    return (has.T @ features) / counts[:, None]
