"""From what a reader has found to a dataset: images decoded once and read from the cache, features from their files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from crh_tune.data.listing import DataError, Listing
from crh_tune.data.options import FileOptions, ImageOptions
from crh_tune.data.readers.cifar import ArrayListing
from crh_tune.data.readers.features import FeatureListing, FeaturePart
from crh_tune.data.readers.files import plain_line, problem, span_line, twins
from crh_tune.data.readers.reference import read_reference
from crh_tune.data.splits import Dataset, Samples
from crh_tune.data.store.cache import ImageCache, Say, open_cache
from crh_tune.data.store.sources import ArrayImages, FileImages, ImageSource
from crh_tune.data.store.stored import Array, Inputs, Rows, StoredRows, chunks

QUERIES_ALSO = ("among the training samples", "in the database")
"""Where queries should not be."""


class ImageStore(Protocol):
    """What is kept of M images: their pixels, or a frozen backbone's features of them."""

    @property
    def digests(self) -> npt.NDArray[np.uint8]:
        """M x 16 bytes, of each image's content."""

    @property
    def bad(self) -> dict[int, str]:
        """Which rows are no images, and why."""

    def rows(self, rows: Rows) -> StoredRows:
        """Some of the images, to train on."""


OpenStore = Callable[[ImageSource, ImageOptions, Say], ImageStore]


def decoded(source: ImageSource, options: ImageOptions, say: Say) -> ImageCache:
    """The images decoded to ``options.size``, once."""
    return open_cache(source, options.size, say)


def image_dataset(
    name: str, listing: Listing | ArrayListing, options: ImageOptions, say: Say, store: OpenStore = decoded
) -> Dataset:
    """Take a listing's images out of a store, which decodes them or finds them there, and make the dataset of them.

    Raises DataError for a listing with problems, and for an unreadable image unless ``on_bad_image`` is ``skip``.
    """
    no_problems(listing.root, listing.problems)
    if isinstance(listing, Listing):
        for note in listing.notes:
            say(note)
        parts = [part for part in (listing.train, listing.queries, listing.database) if part is not None]
        names = sorted({path for part in parts for path in part.paths})
        row_of = {path: row for row, path in enumerate(names)}
        rows = [np.array([row_of[path] for path in part.paths], dtype=np.int64) for part in parts]
        labels = [part.labels for part in parts]
        cache = store(FileImages(listing.root, names, options.range, options.max_megapixels), options, say)
        items = np.array(names, dtype=object)
    else:
        names = [f"image {row} of {listing.layout}" for row in range(len(listing.images))]
        rows = [part for part in (listing.train_rows, listing.query_rows, listing.database_rows) if part is not None]
        labels = [listing.labels[part] for part in rows]
        cache = store(ArrayImages(names, listing.files, listing.images), options, say)
        items = np.arange(len(names))
    if isinstance(cache, ImageCache):
        for line in (span_line(cache.span), plain_line([names[row] for row in cache.plain()])):
            if line is not None:
                say(line)
    reference = own_reference(options, listing.class_names, labels[0], listing.reference)
    skipped = bad_images(listing.root, names, cache, options)
    queries, others = _digests(names, cache, rows[1]), (rows[0], *rows[2:])
    for where, each in zip(QUERIES_ALSO, others, strict=False):
        line = twins(queries, _digests(names, cache, each), where)
        if line is not None:
            say(line)
    return cached_dataset(name, listing.class_names, cache, items, rows, labels, reference, skipped)


def _digests(names: Sequence[str], cache: ImageStore, rows: Rows) -> dict[str, bytes]:
    """The digests of the readable ones of some images by name."""
    return {names[row]: cache.digests[row].tobytes() for row in rows.tolist() if row not in cache.bad}


def feature_dataset(name: str, listing: FeatureListing, options: FileOptions, say: Say | None) -> Dataset:
    """A dataset of features, which stay in their files; ``say`` hears of queries that are also elsewhere.

    Raises DataError for a listing with problems.
    """
    no_problems(listing.root, listing.problems)
    if say is not None:
        for line in feature_twins(listing):
            say(line)
    reference = own_reference(options, listing.class_names, listing.train.labels, None)
    train, queries = _features(listing.train), _features(listing.queries)
    if listing.database is None:
        return Dataset(name, listing.class_names, train, queries, reference=reference)
    database = _features(listing.database)
    dtype = np.result_type(train.inputs.dtype, database.inputs.dtype)
    train_ids, database_ids = (_row_ids(each.inputs, dtype) for each in (train, database))
    found = Dataset(name, listing.class_names, train, queries, database, reference)
    return replace(found, train_ids=train_ids, database_ids=database_ids)


def feature_twins(listing: FeatureListing) -> list[str]:
    """A line on the queries that are also training samples, and one on those in the database, where there are any."""
    given = {"query": listing.queries, "training sample": listing.train, "database item": listing.database}
    parts = {kind: part for kind, part in given.items() if part is not None}
    dtype = np.result_type(*(part.features.dtype for part in parts.values()))
    ids = {kind: _row_ids(_features(part).inputs, dtype) for kind, part in parts.items()}
    asked = ids.pop("query")
    lines = []
    for (kind, mine), where in zip(ids.items(), QUERIES_ALSO, strict=False):
        pairs = (("query", asked, mine), (kind, mine, asked))
        queries, others = (
            {
                _row_name(which, parts[which], row): these[row].tobytes()
                for row in np.flatnonzero(np.isin(these, those)).tolist()
            }
            for which, these, those in pairs
        )
        lines.append(twins(queries, others, where))
    return [line for line in lines if line is not None]


def _row_name(kind: str, part: FeaturePart, row: int) -> str:
    return f"{kind} {row if part.rows is None else part.rows[row]}"


def _row_ids(inputs: Inputs, dtype: np.dtype[Any]) -> Rows:
    """A number for each of N rows, equal for rows that are equal in ``dtype``; a few thousand are read at a time."""
    digests = [
        hashlib.blake2b(row.tobytes(), digest_size=8).digest()
        for part in chunks(inputs)
        for row in part.astype(dtype) + dtype.type(0)  # -0 becomes 0
    ]
    return np.frombuffer(b"".join(digests), dtype=np.int64)


def _features(part: FeaturePart) -> Samples:
    rows = np.arange(len(part)) if part.rows is None else part.rows
    return Samples(StoredRows(part.features, rows), part.labels, rows)


def no_problems(root: Path, problems: Sequence[str]) -> None:
    """Raises DataError with the first problem, and how many there are."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}: crh-tune data check {root} lists them all")


def own_reference(
    options: FileOptions, class_names: Sequence[str], train_labels: Array, found: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64] | None:
    """The reference similarity from the user's file, or the one that came with the dataset. Raises DataError."""
    return found if options.reference is None else read_reference(options.reference, class_names, train_labels)


def bad_images(root: Path, names: Sequence[str], cache: ImageStore, options: ImageOptions) -> tuple[str, ...]:
    """One line for every image that is skipped. Raises DataError where ``on_bad_image`` says to stop."""
    lines = [problem(root / names[row], reason) for row, reason in sorted(cache.bad.items())]
    if lines and options.on_bad_image == "stop":
        more = f" (and {len(lines) - 1} more, see crh-tune data check {root})" if len(lines) > 1 else ""
        raise DataError(f"{lines[0]}{more}: unreadable image; mend it, or set dataset.on_bad_image: skip")
    return tuple(lines)


def cached_dataset(
    name: str,
    class_names: tuple[str, ...],
    cache: ImageStore,
    items: Array,
    rows: Sequence[Rows],
    labels: Sequence[Array],
    reference: npt.NDArray[np.float64] | None,
    skipped: tuple[str, ...],
) -> Dataset:
    """A dataset out of the readable ones of a cache's rows: train, queries and, where it is given, database.

    Raises DataError where one of them has no readable image.
    """
    readable = np.ones(len(cache.digests), dtype=bool)
    readable[list(cache.bad)] = False
    kept = [each[readable[each]] for each in rows]
    for part, mine in zip(("training images", "test queries", "database"), kept, strict=False):
        if not len(mine):
            raise DataError(f"{name}: the {part} are all unreadable: {skipped[0] if skipped else 'none is listed'}")
    samples = [
        Samples(cache.rows(mine), own[readable[each]], items[mine])
        for mine, own, each in zip(kept, labels, rows, strict=True)
    ]
    dataset = Dataset(name, class_names, samples[0], samples[1], reference=reference, skipped=skipped)
    if len(samples) == 2:
        return dataset
    return replace(dataset, database=samples[2], train_ids=kept[0], database_ids=kept[2])
