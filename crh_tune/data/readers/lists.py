"""List files: an image's path and its label, several labels, or a 0 or 1 for every class, a row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crh_tune.data.listing import IMAGE_SUFFIXES, DataError, Listing, Part, inside
from crh_tune.data.options import ImageOptions, LabelOptions
from crh_tune.data.readers.files import (
    counted,
    data_folder,
    files_in,
    missing_files,
    printable,
    problem,
    read_text,
    too_few_classes,
)
from crh_tune.data.readers.label_text import (
    Doubt,
    is_bits,
    is_indices,
    lowest_bit,
    names_in,
    numbers,
    reading,
    says_nothing,
    unparted_bits,
)
from crh_tune.data.store.stored import Array, Rows

_SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
_ROW = re.compile(rf"(.*(?:{_SUFFIX}))[\s,]+(.*[^\s,].*)", re.IGNORECASE)
_BARE_ROW = re.compile(rf"(.*(?:{_SUFFIX}))[\s,]*()", re.IGNORECASE)
_QUOTED_ROW = re.compile(rf'"((?:[^"]|"")*(?:{_SUFFIX}))"(?:[\s,]+(.*[^\s,].*)|[\s,]*())', re.IGNORECASE)
"""A row whose path is in double quotes, as tables have fields that hold a comma, or all fields."""


class ListsOptions(ImageOptions, LabelOptions):
    """List files, in the data folder or by absolute path; the paths in them, relative or absolute, lead into it."""

    train: str = "train.txt"
    """The list of training images."""
    test: str = "test.txt"
    """The list of test queries."""
    database: str | None = None
    """The list of the database; null takes ``database.txt`` where it exists, else the training images."""
    classes: str | None = None
    """A file with a class name a line; null takes ``classes.txt`` where it exists."""


class Row(NamedTuple):
    """A row of a list file: ``file:line``, and the path and the label as they are written."""

    where: str
    path: str
    label: str


def list_lists(options: ListsOptions) -> Listing:
    """List the images of list files. Raises DataError where a list file is not there.

    Integer labels count from 0; other labels are class names; a row may have several. Rows of a 0 or 1 (a -1 or 1) for
    every class are multi-hot labels, and so are several labels; where each row has exactly one, they are class indices.
    """
    root = data_folder(options)
    files = files_in(root, [options.train, options.test, *_optional(root, options.database, "database.txt")])
    named = files_in(root, _optional(root, options.classes, "classes.txt"))
    problems: list[str] = []
    names = _class_names(named[0], problems) if named else None
    lists = [_placed(root, read_rows(file, problems), problems) for file in files]
    problems += row_conflicts(lists)
    empty: list[Row] = []
    lists, labels, names = read_labels(lists, names, "name the classes in classes.txt", problems, empty)
    notes = (*without_label(empty, options, problems), *repeated(lists))
    problems += too_few_classes(files[0], names)
    for file, each in zip(files[1:], labels[1:], strict=True):
        problems += untrained_classes(file, names, labels[0], each)
    problems += missing_images(root, lists)
    train, queries, *more = (
        Part(tuple(row.path for row in rows), each) for rows, each in zip(lists, labels, strict=True)
    )
    layout = "list files with a database" if more else "list files"
    database = more[0] if more else None
    return Listing(layout, root, names, train, queries, database, problems=tuple(problems), notes=notes)


def read_rows(file: Path, problems: list[str]) -> list[Row]:
    """The rows of a list file: the path up to the last image suffix, then a blank, a tab or a comma, then the label.

    The path may be in double quotes, in which two stand for one.
    """
    try:
        lines = read_text(file).split("\n")
    except DataError as error:
        problems.append(str(error))
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        row = line.strip()
        quoted = _QUOTED_ROW.fullmatch(row)
        match = quoted or _ROW.fullmatch(row) or _BARE_ROW.fullmatch(row)
        if match is not None:
            path = match[1].replace('""', '"') if quoted else match[1]
            rows.append(Row(f"{file}:{number}", path, match[2] or ""))
        elif row:
            wanted = "want the path of an image, a blank, tab or comma, and its label (or 0 or 1 for every class)"
            problems.append(problem(f"{file}:{number}", f"{row[:80]!r} is no row of a list: {wanted}"))
    if not rows:
        problems.append(problem(file, "has no rows: want the path of an image and its label a line"))
    return rows


def read_labels(
    lists: Sequence[Sequence[Row]],
    names: tuple[str, ...] | None,
    naming: str,
    problems: list[str],
    empty: list[Row],
    *,
    strings: bool = False,
) -> tuple[list[list[Row]], list[Array], tuple[str, ...]]:
    """The rows that have a label, their labels (a list's N int64, or N x C uint8), and the class names.

    ``empty`` gets the rows without a label.

    Args:
        names: the names of the classes, where they are given.
        naming: how they would be, as problems have it.
        strings: whether the labels are strings of an array, of which one number is a name, and a comma or blank is
            part of one.
    """
    before = len(problems)
    lists = labelled(lists, names, empty)
    kind = _kind(lists, names, naming, problems, 2 if strings else 1)
    if kind == "bits":
        kept, labels, names = multi_hot_labels(lists, names, problems, empty)
        labels = single_labels(labels)
    else:
        read = _indexed if kind == "indices" else partial(_named, strings=strings)
        kept, labels, names = read(lists, names, naming, problems)
    if len(problems) == before:
        problems += shared_by_all(next((row.where for rows in kept for row in rows), ""), names, labels)
    return kept, labels, names


def labelled(lists: Sequence[Sequence[Row]], names: Sequence[str] | None, empty: list[Row]) -> list[list[Row]]:
    """The rows that say a label; ``empty`` gets the others."""
    empty += [row for rows in lists for row in rows if says_nothing(row.label, names)]
    return [[row for row in rows if not says_nothing(row.label, names)] for rows in lists]


def multi_hot_labels(
    lists: Sequence[Sequence[Row]], names: tuple[str, ...] | None, problems: list[str], empty: list[Row]
) -> tuple[list[list[Row]], list[Array], tuple[str, ...]]:
    """The rows that hold a 0 or 1 (a -1 or 1) for every class, their labels (a list's N x C uint8), the class names.

    ``empty`` gets the rows without a 1.
    """
    values = [[numbers(row.label) or () for row in rows] for rows in lists]
    low = lowest_bit(each for rows in values for each in rows)
    widths = Counter(len(each) for rows in values for each in rows if is_bits(each, low))
    width = len(names) if names else max(widths, key=widths.__getitem__, default=0)
    kept: list[list[Row]] = [[] for _ in lists]
    codes = [bytearray() for _ in lists]
    for rows, written, good, code in zip(lists, values, kept, codes, strict=True):
        for row, each in zip(rows, written, strict=True):
            if not is_bits(each, low):
                problems.append(problem(row.where, f"label {row.label[:80]!r}: want {width} values, each {low} or 1"))
            elif len(each) != width:
                problems.append(problem(row.where, f"has {len(each)} values {low} or 1: want {width}, one a class"))
            elif 1 not in each:
                empty.append(row)
            else:
                good.append(row)
                code.extend(value == 1 for value in each)
    labels: list[Array] = [np.frombuffer(code, dtype=np.uint8).reshape(-1, max(width, 1)) for code in codes]
    return kept, labels, names or tuple(str(c) for c in range(width))


def without_label(empty: Sequence[Row], options: LabelOptions, problems: list[str]) -> tuple[str, ...]:
    """A problem, or a note where they are skipped, on the rows without a label, if there are any."""
    if not empty:
        return ()
    count = counted(len(empty), "row") + " without a label"
    if options.on_no_label == "skip":
        return (printable(f"{count} left out, the first of them {empty[0].where}"),)
    label = empty[0].label
    what = "has no 1" if numbers(label) else f"has the label {label[:80]!r}, which is none" if label else "has no label"
    more = ", the next " + ", ".join(row.where for row in empty[1:3]) if len(empty) > 1 else ""
    why = f"a sample without a label can be neither learnt nor found ({count} in all{more})"
    problems.append(problem(empty[0].where, f"{what}: {why}: give each one, or set dataset.on_no_label: skip"))
    return ()


def single_labels(labels: Sequence[Array]) -> list[Array]:
    """Class indices where each row of all these multi-hot labels has exactly one 1, the labels themselves otherwise."""
    if any((each.sum(axis=1) != 1).any() for each in labels):
        return list(labels)
    return [each.argmax(axis=1).astype(np.int64) for each in labels]


def untrained_classes(where: str | Path, names: Sequence[str], train: Array, others: Array) -> list[str]:
    """A problem for every class that occurs in ``others`` and not in the training labels, if there are any of these."""
    if not len(train):
        return []
    classes = np.setdiff1d(_occurring(others), _occurring(train))
    return [problem(where, f"class {names[c]!r} has no training sample: add some, or leave it out") for c in classes]


def shared_by_all(where: str, names: Sequence[str], parts: Sequence[Array]) -> list[str]:
    """A problem for every class that all samples of several labels have: each would be relevant to each other."""
    if not sum(map(len, parts)) or any(each.ndim == 1 for each in parts):
        return []
    classes = np.flatnonzero(np.logical_and.reduce([each.all(axis=0) for each in parts]))
    why = "which would make all relevant to each other: leave it out"
    return [problem(where, f"every sample has the label {names[c]!r}, {why}") for c in classes.tolist()]


def numbering_gaps(where: str | Path, parts: Sequence[Array], remedy: str) -> list[str]:
    """A problem where integer labels, the training samples' first, leave out a number from 1 to the highest.

    Every number up to the highest is a class, but no sample would be in those left out.
    """
    numbers = [set(np.unique(labels[labels >= 0]).tolist()) for labels in parts]
    used = {0}.union(*numbers)  # labels that leave out 0 alone count from 1: another problem
    highest = max(used)
    if len(used) > highest:
        return []
    found = f"training samples have only {len(numbers[0])} of these {highest + 1}"
    return [problem(where, f"labels are numbered up to {highest}, but {found}: number them without gaps, or {remedy}")]


def missing_images(root: Path, lists: Iterable[Sequence[Row]]) -> list[str]:
    """A problem for every image that is listed and not there, with the first row that lists it."""
    first: dict[str, str] = {}
    for rows in lists:
        for row in rows:
            first.setdefault(row.path, row.where)
    missing = missing_files(root, first)
    return [
        problem(root / path, f"does not exist, but {where} lists it")
        for path, where in first.items()
        if path in missing
    ]


def row_conflicts(lists: Sequence[Sequence[Row]]) -> list[str]:
    """A problem for every image with two labels, and every query that is listed elsewhere, too.

    The lists are train, test and, where there is one, database.
    """
    first: dict[str, Row] = {}
    found = []
    for row in (row for rows in lists for row in rows):
        known = first.setdefault(row.path, row)
        if known.label.replace(",", " ").split() != row.label.replace(",", " ").split():
            found.append(problem(row.where, f"{row.path} has another label at {known.where}: want one"))
    asked = {row.path: row.where for rows in lists[1:2] for row in rows}
    if lists:
        trained = {row.path: row.where for row in lists[0]}
        found += [
            problem(where, f"{path} is a training image ({trained[path]}): want other queries")
            for path, where in asked.items()
            if path in trained
        ]
    for row in (row for rows in lists[2:] for row in rows if row.path in asked):
        found.append(problem(row.where, f"{row.path} is a query ({asked[row.path]}): want it in one of the two lists"))
    return found


def repeated(lists: Sequence[Sequence[Row]]) -> list[str]:
    """A line on the rows whose image the same list has already: it counts as often in training and in mAP."""
    again = []
    for rows in lists:
        first: dict[str, Row] = {}
        again += [row for row in rows if first.setdefault(row.path, row) is not row]
    shown = "; ".join(f"{row.where} {row.path}" for row in again[:3]) + ("; ..." if len(again) > 3 else "")
    several = counted(
        len(again),
        "row names an image that its list has already",
        "rows each name an image that their list has already",
    )
    return [printable(f"{several}, so that it counts more than once: {shown}")] if again else []


def _kind(
    lists: Sequence[Sequence[Row]], names: tuple[str, ...] | None, naming: str, problems: list[str], fewest: int
) -> str:
    """How the labels are read: as ``bits``, ``indices`` or ``names``, whichever most rows are.

    Fewer numbers than ``fewest`` are a name.
    """
    rows = [row for each in lists for row in each]
    doubt = None if names else unparted_bits([row.label for row in rows])
    if doubt is not None:
        problems.append(_doubtful(rows, doubt, naming))
        return "names"
    values = [each for row in rows if (each := numbers(row.label)) is not None and len(each) >= fewest]
    if 2 * len(values) < max(len(rows), 1):
        return "names"
    kind = reading(values, len(names) if names else None)
    if kind == "bits":
        return kind
    if names and all(names_in({row.label for row in rows}, names)[0].values()):
        return "names"
    if kind == "either":
        row = next(row for row in rows if is_bits(numbers(row.label) or (), 0))
        both = "can be a 0 or 1 for each of two classes, or the classes 0 and 1"
        problems.append(problem(row.where, f"label {row.label!r} {both}: write names, or a 0 or 1 for every class"))
    return "indices"


def _indexed(
    lists: Sequence[Sequence[Row]], names: tuple[str, ...] | None, naming: str, problems: list[str]
) -> tuple[list[list[Row]], list[Array], tuple[str, ...]]:
    """The rows whose labels are class indices, these (N int64, or N x C uint8), and the class names."""
    values = [[numbers(row.label) or () for row in rows] for rows in lists]
    parts = [np.array([value for each in rows for value in each], dtype=np.int64) for rows in values]
    every = np.concatenate(parts)
    # A stray label such as a date must not make millions of classes: there are no more classes than labels.
    written = sum(len(rows) for rows in lists)
    count = len(names) if names else max(min(int(every.max()) + 1, max(len(every), written)), 1)
    several = any(len(each) > 1 for rows in values for each in rows)
    wanted = f"want {'integers' if several else 'an integer'} from 0 to {count - 1}{', each once' if several else ''}"
    if names is None:
        first = next(row for rows in lists for row in rows)
        if every.min() > 0:
            problems.append(problem(first.where, "no row has the label 0: want labels that count from 0"))
        problems += numbering_gaps(first.where.rpartition(":")[0], parts, naming)
        names = tuple(str(c) for c in range(count))
    codes = [[list(map(int, each)) if _are_below(each, count) else [] for each in rows] for rows in values]
    return *_coded(lists, codes, count, wanted, problems), names


def _are_below(values: tuple[float, ...], count: int) -> bool:
    return is_indices(values) and max(values, default=count) < count


def _named(
    lists: Sequence[Sequence[Row]], names: tuple[str, ...] | None, naming: str, problems: list[str], *, strings: bool
) -> tuple[list[list[Row]], list[Array], tuple[str, ...]]:
    """The rows whose labels are class names, these (N int64, or N x C uint8), and the class names."""
    split, doubt = names_in({row.label: None for rows in lists for row in rows}, names, strings=strings)
    if doubt is not None:
        problems.append(_doubtful((row for rows in lists for row in rows), doubt, naming))
    names = names or tuple(sorted({name for found in split.values() for name in found}))
    index = {name: c for c, name in enumerate(names)}
    codes = [[[index[name] for name in split[row.label]] for row in rows] for rows in lists]
    return *_coded(lists, codes, len(names), "want the name of a class", problems), names


def _doubtful(rows: Iterable[Row], doubt: Doubt, naming: str) -> str:
    """The problem that a label can be read in two ways, with the first row that has it."""
    where = next(row.where for row in rows if row.label == doubt.label)
    return problem(where, f"label {doubt.label[:80]!r} {doubt.both}: {doubt.written}, or {naming}")


def _coded(
    lists: Sequence[Sequence[Row]], codes: Sequence[Sequence[list[int]]], count: int, wanted: str, problems: list[str]
) -> tuple[list[list[Row]], list[Array]]:
    """The rows that have codes, and these: N int64, or N x C uint8 where a row has several; one without is wrong."""
    single = all(len(code) <= 1 for each in codes for code in each)
    kept: list[list[Row]] = []
    labels: list[Array] = []
    for rows, each in zip(lists, codes, strict=True):
        paired = list(zip(rows, each, strict=True))
        kept.append([row for row, code in paired if code])
        problems += [problem(row.where, f"label {row.label[:80]!r}: {wanted}") for row, code in paired if not code]
        lengths = [len(code) for code in each if code]
        flat = np.array([c for code in each for c in code], dtype=np.int64)
        if not single:
            hot = np.zeros((len(lengths), count), dtype=np.uint8)
            hot[np.repeat(np.arange(len(lengths)), lengths), flat] = 1
        labels.append(flat if single else hot)
    return kept, labels


def _optional(root: Path, name: str | None, default: str) -> list[str]:
    """The name if there is one, or the default if there is such a file."""
    if name is not None:
        return [name]
    return [default] if (root / default).is_file() else []


def _placed(root: Path, rows: Iterable[Row], problems: list[str]) -> list[Row]:
    """The rows with their paths brought into one form; a path that leads out of the data folder is a problem."""
    placed = []
    for row in rows:
        try:
            placed.append(row._replace(path=inside(root, row.path)))
        except DataError as error:
            problems.append(problem(row.where, str(error)))
    return placed


def _class_names(file: Path, problems: list[str]) -> tuple[str, ...] | None:
    try:
        lines = read_text(file).split("\n")
    except DataError as error:
        problems.append(str(error))
        return None
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name in first:
            problems.append(problem(f"{file}:{number}", f"class {name!r} is in line {first[name]} already"))
        elif name:
            first[name] = number
    return tuple(first) or None


def _occurring(labels: Array) -> Rows:
    return np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)
