"""Features with labels, as NumPy arrays in one ``.npz`` file or in the ``.npy`` files of a folder."""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from crh_tune.data.copies import QUERIES_ALSO, copies_line, duplicate_lines, row_twins
from crh_tune.data.listing import DataError
from crh_tune.data.options import FileOptions, LabelOptions
from crh_tune.data.readers.files import (
    existing_path,
    no_problems,
    problem,
    read_text,
    stratified_draw,
    too_few_classes,
)
from crh_tune.data.readers.lists import (
    Row,
    numbering_gaps,
    read_labels,
    shared_by_all,
    single_labels,
    untrained_classes,
    without_label,
)
from crh_tune.data.readers.reference import own_reference
from crh_tune.data.splits import Dataset, Samples
from crh_tune.data.store.cache import Say
from crh_tune.data.store.stored import Array, Rows, StoredRows, content_ids
from crh_tune.ground import first_line

_PARTS = ("train_", "test_", "database_")
_NAMES = ("class_names", *(f"{part}{kind}" for part in ("", *_PARTS) for kind in ("features", "labels")))
_NAMING = "give class_names"
_CHUNK = 2**22
_HIGHEST = 1e150
"""Values whose squares can be summed in float64."""
# What NumPy and zipfile raise on damaged archives, on encrypted ones, and on compression that zipfile cannot read.
_UNREADABLE = (OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


class FeaturesOptions(LabelOptions):
    """``path`` is a ``.npz`` file or a folder of ``.npy`` files.

    They hold train_features, train_labels, test_features, test_labels, and perhaps database_features and
    database_labels; or features and labels, of which queries are drawn.
    """

    holds: ClassVar[str] = "an .npz file, or a folder of .npy files"
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """The share of the samples that is drawn as queries, where the files name none."""
    seed: int = Field(0, ge=0)
    """What queries are drawn with."""


@dataclass(frozen=True)
class FeaturePart:
    """Some ``rows`` (None: all) of features M x D, and their labels: N class indices or N x C multi-hot."""

    features: Array
    rows: Rows | None
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FeatureListing:
    """A dataset of features as it was found; those of ``.npy`` files are memory maps.

    Attributes:
        layout: what was found, in a few words.
        database: what queries are ranked against; None: the training samples.
        problems: what is wrong with the arrays, one line each, beginning with the path. A listing with problems can
            be described but not trained on.
        notes: what should be known of the arrays and stops nothing, one line each.
    """

    layout: str
    root: Path
    class_names: tuple[str, ...]
    train: FeaturePart
    queries: FeaturePart
    database: FeaturePart | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def labels_by_part(self) -> dict[str, Array]:
        parts = {"train": self.train, "queries": self.queries, "database": self.database}
        return {name: part.labels for name, part in parts.items() if part is not None}

    def described(self) -> list[tuple[str, str]]:
        """What ``crh-tune data check`` says of the features."""
        array = self.train.features
        lines = [("features", f"vectors of {array.shape[-1]} ({array.dtype})")]
        lines += [("note", note) for note in self.notes]
        if self.problems:
            return lines
        train = _features(self.train)
        copies = copies_line((content_ids(train.inputs), partial(_row_name, "training sample", self.train)))
        return lines + duplicate_lines(feature_twins(self), 1 if self.database is None else 2, copies)


@dataclass(frozen=True)
class _Source:
    """The arrays of a file or folder by name."""

    path: Path
    arrays: dict[str, Array]
    there: Sequence[str]
    """The names of all arrays, those that are not read, too."""

    def where(self, name: str) -> str:
        return str(self.path / f"{name}.npy") if self.path.is_dir() else f"{self.path}: {name}"


class _Labels(NamedTuple):
    """Each part's labels, N int64 or N x C uint8; the rows that have them, None where all have; the class names."""

    labels: list[Array]
    rows: list[Rows | None]
    names: tuple[str, ...]


def feature_dataset(name: str, listing: FeatureListing, options: FileOptions, say: Say | None) -> Dataset:
    """A dataset of features, which stay in their files; ``say`` hears of queries that are also elsewhere.

    Raises DataError for a listing with problems.
    """
    no_problems(listing.root, listing.problems)
    if say is not None:
        for line in (*listing.notes, *feature_twins(listing)):
            say(line)
    reference = own_reference(options, listing.class_names, listing.train.labels, None)
    train, queries = _features(listing.train), _features(listing.queries)
    if listing.database is None:
        return Dataset(name, listing.class_names, train, queries, reference=reference)
    database = _features(listing.database)
    dtype = np.result_type(train.inputs.dtype, database.inputs.dtype)
    train_ids, database_ids = (content_ids(each.inputs, dtype) for each in (train, database))
    found = Dataset(name, listing.class_names, train, queries, database, reference)
    return replace(found, train_ids=train_ids, database_ids=database_ids)


def feature_twins(listing: FeatureListing) -> list[str]:
    """A line on the queries that are also training samples, and one on those in the database, where there are any."""
    given = {"query": listing.queries, "training sample": listing.train, "database item": listing.database}
    parts = {kind: part for kind, part in given.items() if part is not None}
    dtype = np.result_type(*(part.features.dtype for part in parts.values()))
    ids = {kind: content_ids(_features(part).inputs, dtype) for kind, part in parts.items()}
    names = {kind: partial(_row_name, kind, part) for kind, part in parts.items()}
    asked, *others = ((ids[kind], names[kind]) for kind in parts)
    lines = [row_twins(asked, each, where) for each, where in zip(others, QUERIES_ALSO, strict=False)]
    return [line for line in lines if line is not None]


def _row_name(kind: str, part: FeaturePart, row: int) -> str:
    return f"{kind} {row if part.rows is None else part.rows[row]}"


def _features(part: FeaturePart) -> Samples:
    rows = np.arange(len(part)) if part.rows is None else part.rows
    return Samples(StoredRows(part.features, rows), part.labels, rows)


def list_features(options: FeaturesOptions) -> FeatureListing:
    """Find features and labels and check them. Raises DataError where they are not there or cannot be read."""
    source = _read(existing_path(options))
    parts = _parts(source)
    problems: list[str] = []
    empty: list[Row] = []
    labels, rows, names = _labels(source, parts, problems, empty)
    notes = without_label(empty, options, problems)
    features = [source.arrays[f"{part}features"] for part in parts]
    for part, array in zip(parts, features, strict=True):
        count = _count(source.arrays[f"{part}labels"])
        problems += _feature_problems(source.where(f"{part}features"), array, count, features[0].shape[1:])
    for part, each in zip(parts[1:], labels[1:], strict=True):
        problems += untrained_classes(source.where(f"{part}labels"), names, labels[0], each)
    kind = ".npy files" if source.path.is_dir() else ".npz file"
    if parts == ("",):
        drawn = stratified_draw(labels[0], options.test_fraction, options.seed)
        kept = np.arange(len(drawn)) if rows[0] is None else rows[0]
        train, queries = (FeaturePart(features[0], kept[which], labels[0][which]) for which in (~drawn, drawn))
        if not len(queries):
            problems.append(
                problem(source.path, "no class has two samples: one to train on and one to ask for are needed")
            )
        layout = f"{kind}, queries drawn"
        return FeatureListing(layout, source.path, names, train, queries, problems=tuple(problems), notes=notes)
    train, queries, *more = itertools.starmap(FeaturePart, zip(features, rows, labels, strict=True))
    layout = f"{kind} with train, test{' and database' if more else ''}"
    return FeatureListing(layout, source.path, names, train, queries, more[0] if more else None, tuple(problems), notes)


def _read(path: Path) -> _Source:
    """Raises DataError for an array that is unreadable, or holds objects."""
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".npz"):
        raise DataError(problem(path, f"is neither: path must be {FeaturesOptions.holds}"))
    where: str | Path = path
    arrays: dict[str, Array] = {}
    try:
        if path.is_dir():
            there = sorted(file.stem for file in path.glob("*.npy"))
            for name in _NAMES:
                where = path / f"{name}.npy"
                if where.is_file():
                    arrays[name] = np.load(where, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                there = archive.files
                for name in there:
                    where = f"{path}: {name}"
                    if name in _NAMES:
                        arrays[name] = archive[name]
    except _UNREADABLE as error:
        why = first_line(error)
        raise DataError(problem(where, f"cannot be read as an array of numbers or strings: {why}")) from None
    return _Source(path, arrays, there)


def _parts(source: _Source) -> tuple[str, ...]:
    """What the names of the arrays begin with. Raises DataError where some are missing."""
    names = source.arrays.keys()
    whole = [part for part in ("", *_PARTS) if {f"{part}features", f"{part}labels"} <= names]
    half = [f"{part}labels" for part in _PARTS if part not in whole and f"{part}features" in names]
    half += [f"{part}features" for part in _PARTS if part not in whole and f"{part}labels" in names]
    if half:
        raise DataError(
            problem(source.path, f"has no array {' and no array '.join(half)}: features and labels go together")
        )
    if whole == [""]:
        return ("",)
    if not {"train_", "test_"} <= set(whole):
        wanted = "train_features, train_labels, test_features and test_labels, or features and labels"
        raise DataError(problem(source.path, f"want the arrays {wanted}; there: {', '.join(source.there) or 'none'}"))
    return tuple(part for part in _PARTS if part in whole)


def _feature_problems(where: str, array: Array, labels: int, row: tuple[int, ...]) -> Iterator[str]:
    """What is wrong with features that should be as many as the labels, and of the shape ``row`` each."""
    if array.ndim != 2 or not array.size:
        yield problem(where, f"has the shape {array.shape}: want N x D, a row a sample")
    elif len(row) == 1 and array.shape[1:] != row:
        yield problem(where, f"has {array.shape[1]} values a row, the training features have {row[0]}: want the same")
    if len(array.shape) and len(array) != labels:
        yield problem(where, f"has {len(array)} rows for {labels} labels: want one label a row")
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        yield problem(where, f"is of dtype {array.dtype}: want floats of 16, 32 or 64 bits, or integers")
    elif array.ndim == 2 and array.size and array.dtype.kind == "f":
        step = max(1, _CHUNK // array.shape[1])
        for start in range(0, len(array), step):
            bad = ~np.isfinite(array[start : start + step]).all(axis=1)
            if bad.any():
                yield problem(where, f"row {start + int(bad.argmax())} holds NaN or infinity: want finite values")
                return
            far = (np.abs(array[start : start + step]) > _HIGHEST).any(axis=1) if array.dtype.itemsize == 8 else bad
            if far.any():
                yield problem(where, f"row {start + int(far.argmax())} holds a value beyond {_HIGHEST:g}: scale them")
                return


def _labels(source: _Source, parts: tuple[str, ...], problems: list[str], empty: list[Row]) -> _Labels:
    """Labels that are none are class 0; ``empty`` gets the rows without a label."""
    names = _class_names(source, problems)
    written = {source.where(f"{part}labels"): source.arrays[f"{part}labels"] for part in parts}
    kind = next(filter(None, map(_kind, written.values())), None)
    wanted = f"N {kind}, like the other labels" if kind else "N integers, N strings, or N x C values 0 or 1 (-1 or 1)"
    wrong = [
        problem(where, f"is an array of shape {array.shape} and dtype {array.dtype}: want {wanted}")
        for where, array in written.items()
        if kind is None or _kind(array) != kind
    ]
    if wrong:
        problems += wrong
        labels: list[Array] = [np.zeros(_count(array), dtype=np.int64) for array in written.values()]
        return _Labels(labels, [None] * len(parts), names or ())
    if kind == "multi-hot rows":
        found = _multi_hot(written, names, problems, empty)
    elif kind == "strings":
        found = _texts(written, names, problems, empty)
    else:
        labels, names = _integers(written, names, problems)
        found = _Labels(labels, [None] * len(parts), names)
    problems += too_few_classes(source.path, found.names)
    return found


def _count(labels: Array) -> int:
    return len(labels) if labels.ndim else 0


def _kind(labels: Array) -> str | None:
    if labels.ndim == 1 and labels.dtype.kind in "iuSU":
        return "integers" if labels.dtype.kind in "iu" else "strings"
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "biuf":
        return None
    known = (labels == 1) | np.isnan(labels).all(axis=1, keepdims=True)
    return "multi-hot rows" if any((known | (labels == low)).all() for low in (0, -1)) else None


def _multi_hot(
    written: dict[str, Array], names: tuple[str, ...] | None, problems: list[str], empty: list[Row]
) -> _Labels:
    width = len(names) if names else next(iter(written.values())).shape[1]
    names = names or tuple(str(c) for c in range(width))
    before = len(problems)
    labels, rows = [], []
    for where, array in written.items():
        if array.shape[1] != width:
            problems.append(problem(where, f"has {array.shape[1]} columns: want {width}, one a class"))
        kept = (array == 1).any(axis=1)
        empty += [Row(f"{where}: row {row}", str(row), "0 0") for row in np.flatnonzero(~kept).tolist()]
        rows.append(None if kept.all() else np.flatnonzero(kept))
        fitted = np.zeros((int(kept.sum()), width), dtype=np.uint8)
        fitted[:, : array.shape[1]] = array[kept, :width] == 1
        labels.append(fitted)
    found = _Labels(single_labels(labels), rows, names)
    if len(problems) == before:
        problems += shared_by_all(next(iter(written)), names, found.labels)
    return found


def _texts(written: dict[str, Array], names: tuple[str, ...] | None, problems: list[str], empty: list[Row]) -> _Labels:
    """Strings say what they say in lists, but that a comma or blank is part of a name, and a single number is one."""
    given = [
        [Row(f"{where}: row {row}", str(row), label.strip()) for row, label in enumerate(_text(array).tolist())]
        for where, array in written.items()
    ]
    kept, labels, names = read_labels(given, names, _NAMING, problems, empty, strings=True)
    rows = [
        None if len(some) == len(each) else np.array([int(row.path) for row in some], dtype=np.int64)
        for some, each in zip(kept, given, strict=True)
    ]
    return _Labels(labels, rows, names)


def _integers(
    written: dict[str, Array], names: tuple[str, ...] | None, problems: list[str]
) -> tuple[list[Array], tuple[str, ...]]:
    first = next(iter(written))
    # A stray label must not make millions of classes: there are no more classes than samples.
    highest = max(int(array.max(initial=0)) for array in written.values())
    count = len(names) if names else min(highest + 1, sum(map(len, written.values())))
    if names is None:
        if all((array > 0).all() for array in written.values()):
            problems.append(problem(first, "no sample has the label 0: want labels that count from 0"))
        problems += numbering_gaps(first, list(written.values()), _NAMING)
    labels: list[Array] = []
    for where, array in written.items():
        known = (array >= 0) & (array < count)
        problems += [
            problem(where, f"row {row} has the label '{array[row]}': want an integer from 0 to {count - 1}")
            for row in np.flatnonzero(~known)
        ]
        labels.append(np.where(known, array, 0).astype(np.int64))
    return labels, names or tuple(str(c) for c in range(count))


def _class_names(source: _Source, problems: list[str]) -> tuple[str, ...] | None:
    """The names of the array class_names, or of class_names.txt; None where there is neither."""
    file = source.path / "class_names.txt"
    where = source.where("class_names")
    if "class_names" in source.arrays:
        array = source.arrays["class_names"]
        if array.ndim != 1 or array.dtype.kind not in "SU":
            problems.append(
                problem(where, f"is an array of shape {array.shape} and dtype {array.dtype}: want C strings")
            )
            return None
        names = _text(array).tolist()
    elif file.is_file():
        where = str(file)
        try:
            names = [line.strip() for line in read_text(file).split("\n") if line.strip()]
        except DataError as error:
            problems.append(str(error))
            return None
    else:
        return None
    twice = [name for name, count in Counter(names).items() if count > 1]
    problems += [problem(where, f"names the class {name!r} twice: want each class once") for name in twice]
    return tuple(names)


def _text(array: Array) -> npt.NDArray[np.str_]:
    return np.char.decode(array, "utf-8", "backslashreplace") if array.dtype.kind == "S" else np.asarray(array)
