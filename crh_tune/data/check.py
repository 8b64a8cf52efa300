"""What lies in a data folder, and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crh_tune.data.copies import QUERIES_ALSO, copies_line, duplicate_lines, twins
from crh_tune.data.datasets import DATASETS
from crh_tune.data.listing import Listing
from crh_tune.data.readers.files import counted, plain_line, problem, span_line
from crh_tune.data.splits import none_answered, unanswered_queries
from crh_tune.data.store.cache import progress_bar
from crh_tune.data.store.decode import MEGAPIXELS, BadImage, Span, deep_span, joined, open_image
from crh_tune.data.store.stored import Array


@dataclass(frozen=True)
class Findings:
    """What was found, as lines of a name and a text, and every problem, beginning with its path."""

    lines: list[tuple[str, str]]
    problems: list[str]


@dataclass(frozen=True)
class _Image:
    digest: bytes
    size: tuple[int, int]
    error: str
    plain: bool = False
    span: Span | None = None


def dataset_in(path: Path) -> str:
    """The name of the dataset whose files lie at a path; ``folder`` where no other one's do."""
    if path.suffix.lower() == ".npz":
        return "features"
    for name, source in DATASETS.items():
        if any(found.is_file() or pattern != "train" for pattern in source.signs for found in path.glob(pattern)):
            return name
    return "folder"


def check_data(path: Path, dataset: str | None = None, megapixels: float = MEGAPIXELS) -> Findings:
    """Read everything at a path as a dataset (None: the one its files look like).

    Images of more than ``megapixels`` million pixels are a problem.

    Raises KeyError for an unknown dataset, DataError where its files are not there.
    """
    name = dataset or dataset_in(path)
    source = DATASETS[name]
    if source.find is None:
        raise KeyError(name)
    listing = source.find(source.options.model_validate({"path": path}))
    lines = [("dataset", f"{name}: {listing.layout}"), ("classes", _classes(listing.class_names))]
    problems = list(listing.problems)
    parts = listing.labels_by_part()
    for part, labels in parts.items():
        lines.append((part, _label_counts(labels, len(listing.class_names))))
    ranked = parts.get("database", parts["train"])
    unanswered = unanswered_queries("queries", parts["queries"], ranked)
    if unanswered is not None:
        lines.append(("unanswered", unanswered))
        if none_answered(parts["queries"], ranked):
            problems.append(problem(path, f"{unanswered}: want queries of the classes that are ranked"))
    if isinstance(listing, Listing):
        _check_files(listing, megapixels, lines, problems)
    else:
        lines += listing.described()
    own = getattr(listing, "reference", None) is not None
    lines.append(
        ("reference", "the dataset's own" if own else "the classes' mean inputs, or what dataset.reference says")
    )
    return Findings(lines, problems)


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} ({shown}{', ...' if len(names) > 5 else ''})"


def _label_counts(labels: Array, classes: int) -> str:
    """How many samples, how many of a class, and how uneven."""
    if not len(labels):
        return "none"
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)
    low, high = int(counts.min()), int(counts.max())
    of_class = f"{low} a class" if low == high else f"{low} to {high} a class"
    uneven = f", imbalance {high / low:.1f}" if low and high > low else ""
    several = f", {labels.sum() / len(labels):.1f} labels a sample" if labels.ndim == 2 else ""
    missing = f", {counted(int((counts == 0).sum()), 'class', 'classes')} without a sample" if low == 0 else ""
    return f"{counted(len(labels), 'sample')}, {of_class}{uneven}{several}{missing}"


def _check_files(listing: Listing, megapixels: float, lines: list[tuple[str, str]], problems: list[str]) -> None:
    """Decode every image: sizes, unreadable ones, and the same image in more than one part."""
    given = listing.parts()
    paths = sorted({path for part in given.values() for path in part.paths})
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda path: _look(listing.root / path, megapixels), paths)
        with progress_bar(len(paths)) as bar:
            found = {}
            for path, image in zip(paths, looks, strict=True):
                found[path] = image
                bar.update()
    readable = [image.size for image in found.values() if not image.error]
    lines.append(("sizes", _sizes(readable)))
    span = span_line(joined(image.span for image in found.values()))
    plain = plain_line([path for path, image in found.items() if image.plain])
    lines += [("note", note) for note in (*listing.notes, span, plain) if note is not None]
    for path, image in found.items():
        where = problem(listing.root / path, "")
        if image.error and not any(line.startswith(where) for line in problems):
            problems.append(where + image.error)
    digests = {
        name: {path: found[path].digest for path in part.paths if not found[path].error} for name, part in given.items()
    }
    others = [digests[name] for name in ("train", "database") if name in digests]
    known = [twins(digests["queries"], each, where) for each, where in zip(others, QUERIES_ALSO, strict=False)]
    train = digests["train"]
    ids = np.frombuffer(b"".join(digest[:8] for digest in train.values()), dtype=np.int64)
    copies = copies_line((ids, list(train).__getitem__))
    lines += duplicate_lines([line for line in known if line is not None], len(others), copies)


def _look(path: Path, megapixels: float) -> _Image:
    try:
        content = path.read_bytes()
        image = open_image(content, megapixels=megapixels)
        plain = len(set(np.ravel(image.getextrema()))) == 1
        span = deep_span(content, megapixels)
        return _Image(hashlib.blake2b(content, digest_size=16).digest(), image.size, "", plain, span)
    except (BadImage, OSError) as error:
        return _Image(b"", (0, 0), error.strerror or "" if isinstance(error, OSError) else str(error))


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """The widths and heights there are."""
    if not sizes:
        return "no readable image"
    counts = Counter(sizes)
    if len(counts) == 1:
        return f"{sizes[0][0]} x {sizes[0][1]}, all of them"
    widths, heights = np.array(sizes).T
    (width, height), often = counts.most_common(1)[0]
    between = f"{widths.min()} to {widths.max()} wide, {heights.min()} to {heights.max()} high"
    return f"{between}, most often {width} x {height} ({often} of {len(sizes)})"
