"""From what a reader has found to a dataset: images decoded once and read from the cache, features from their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crh_tune.data.copies import QUERIES_ALSO, twins
from crh_tune.data.listing import DataError, ImageRows
from crh_tune.data.options import ImageOptions
from crh_tune.data.readers.files import no_problems, plain_line, problem, span_line
from crh_tune.data.readers.reference import own_reference
from crh_tune.data.splits import Dataset, Samples
from crh_tune.data.store.cache import ImageCache, Say, open_cache
from crh_tune.data.store.decode import Span
from crh_tune.data.store.sources import ImageSource
from crh_tune.data.store.stored import Array, Rows, StoredRows


class ImageStore(Protocol):
    """What is kept of M images: their pixels, or a frozen backbone's features of them."""

    @property
    def digests(self) -> npt.NDArray[np.uint8]:
        """M x 16 bytes, of each image's content."""

    @property
    def bad(self) -> dict[int, str]:
        """Which rows are no images, and why."""

    @property
    def plain(self) -> Rows:
        """The images of which every pixel is the same grey."""

    @property
    def span(self) -> Span | None:
        """What became 0 and 255 in images of more than 8 bits a channel."""

    def rows(self, rows: Rows) -> StoredRows:
        """Some of the images, to train on."""


class ImageListing(Protocol):
    """A listing of images, as a reader found it."""

    @property
    def root(self) -> Path: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def reference(self) -> npt.NDArray[np.float64] | None: ...
    @property
    def problems(self) -> tuple[str, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def images_to_decode(self, options: ImageOptions) -> ImageRows:
        """The images, and which of them are in each part."""


OpenStore = Callable[[ImageSource, ImageOptions, Say], ImageStore]


def decoded(source: ImageSource, options: ImageOptions, say: Say) -> ImageCache:
    """The images decoded to ``options.size``, once."""
    return open_cache(source, options.size, say)


def image_dataset(
    name: str, listing: ImageListing, options: ImageOptions, say: Say, store: OpenStore = decoded
) -> Dataset:
    """Take a listing's images out of a store, which decodes them or finds them there, and make the dataset of them.

    Raises DataError for a listing with problems, and for an unreadable image unless ``on_bad_image`` is ``skip``.
    """
    no_problems(listing.root, listing.problems)
    for note in listing.notes:
        say(note)
    images = listing.images_to_decode(options)
    names, rows, labels, items = images.source.names, images.rows, images.labels, images.items
    cache = store(images.source, options, say)
    for line in (span_line(cache.span), plain_line([names[row] for row in cache.plain])):
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
