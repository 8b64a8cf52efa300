"""CIFAR-10 and CIFAR-100, as the published Python batches or as class folders."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from crh_tune.data.listing import DataError, ImageRows, Listing, Part
from crh_tune.data.options import ImageOptions
from crh_tune.data.readers.files import data_folder, problem
from crh_tune.data.readers.folder import list_train_and_test
from crh_tune.data.readers.reference import same_superclass
from crh_tune.data.store.sources import ArrayImages
from crh_tune.data.store.stored import Array, Rows
from crh_tune.ground import first_line

_QUERIES, _TRAIN = 100, 500


class CifarOptions(ImageOptions):
    """``path`` holds the folder of Python batches, or their content, or class folders under train/ and test/."""

    size: int = Field(32, ge=4, le=2048)
    """The side in pixels to which images are decoded, once."""
    protocol: Literal["full", "sampled"] = "full"
    """The files' own split; or 100 queries and 500 training images a class, in a database of all but the queries."""
    seed: int = Field(0, ge=0)
    """What the images of ``sampled`` are drawn with."""


@dataclass(frozen=True)
class ArrayListing:
    """A dataset whose images are arrays already.

    Attributes:
        layout: what was found, in a few words.
        files: where the images come from.
        images: N x 32 x 32 x 3 uint8: all images, the training images first, then the test images.
        labels: N class indices.
        train_rows, query_rows, database_rows: which of the images are in which part (database None: the training
            images).
        reference: C x C similarity of the classes where the files tell it.
        problems: what is wrong with the files, one line each, beginning with the path. A listing with problems can be
            described but not trained on.
    """

    layout: str
    root: Path
    files: tuple[Path, ...]
    class_names: tuple[str, ...]
    images: npt.NDArray[np.uint8] = field(repr=False)
    labels: npt.NDArray[np.int64]
    train_rows: Rows
    query_rows: Rows
    database_rows: Rows | None = None
    reference: npt.NDArray[np.float64] | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def parts(self) -> dict[str, Rows]:
        """The rows of the parts there are, by name."""
        parts = {"train": self.train_rows, "queries": self.query_rows, "database": self.database_rows}
        return {name: rows for name, rows in parts.items() if rows is not None}

    def labels_by_part(self) -> dict[str, Array]:
        return {name: self.labels[rows] for name, rows in self.parts().items()}

    def images_to_decode(self, options: ImageOptions) -> ImageRows:
        names = [f"image {row} of {self.layout}" for row in range(len(self.images))]
        rows = tuple(self.parts().values())
        source = ArrayImages(names, self.files, self.images)
        return ImageRows(source, np.arange(len(names)), rows, tuple(self.labels[part] for part in rows))

    def described(self) -> list[tuple[str, str]]:
        """What ``crh-tune data check`` says of the images."""
        return [("sizes", f"{self.images.shape[2]} x {self.images.shape[1]}, all of them")]


@dataclass(frozen=True)
class _Layout:
    """Where the Python batches of a CIFAR lie, and under which keys they hold what."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    names: bytes
    superclasses: bool

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)


_CIFAR10 = _Layout(
    "CIFAR-10",
    "cifar-10-batches-py",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test_batch",
    "batches.meta",
    b"labels",
    b"label_names",
    superclasses=False,
)
_CIFAR100 = _Layout(
    "CIFAR-100", "cifar-100-python", ("train",), "test", "meta", b"fine_labels", b"fine_label_names", superclasses=True
)


def list_cifar10(options: CifarOptions) -> ArrayListing | Listing:
    """List CIFAR-10. Raises DataError where neither batches nor class folders are there, or a batch is unreadable."""
    return _list(_CIFAR10, options)


def list_cifar100(options: CifarOptions) -> ArrayListing | Listing:
    """List CIFAR-100 by its fine labels; raises as ``list_cifar10``. The reference tells classes of a superclass."""
    return _list(_CIFAR100, options)


def _list(layout: _Layout, options: CifarOptions) -> ArrayListing | Listing:
    root = data_folder(options)
    for folder in (root / layout.folder, root):
        if any((folder / name).is_file() for name in layout.files):
            return _list_batches(layout, folder, options)
    listing = list_train_and_test(root)
    if listing is None:
        wanted = f"{layout.folder}/ with {', '.join(layout.files)}; these files; class folders under train/ and test/"
        raise DataError(problem(root, f"no layout of {layout.name} is there; looked for: {wanted}"))
    return listing if options.protocol == "full" else _sampled_listing(listing, options.seed)


def _list_batches(layout: _Layout, folder: Path, options: CifarOptions) -> ArrayListing:
    missing = [name for name in layout.files if not (folder / name).is_file()]
    if missing:
        raise DataError(problem(folder, f"batches of {layout.name} are missing: {', '.join(missing)}"))
    problems: list[str] = []
    names = tuple(name.decode() for name in _entry(_read(folder / layout.meta), layout.names, folder / layout.meta))
    files = tuple(folder / name for name in (*layout.train, layout.test))
    batches = [_batch(file, layout, len(names), problems) for file in files]
    images = np.concatenate([batch[0] for batch in batches])
    labels, coarse = (np.concatenate([batch[part] for batch in batches]) for part in (1, 2))
    reference = None
    if layout.superclasses:
        superclass = -1 - np.arange(len(names))
        superclass[labels] = coarse
        for row in np.flatnonzero(superclass[labels] != coarse):
            problems.append(
                problem(folder, f"image {row} has another superclass than others of {names[labels[row]]!r}")
            )
        reference = same_superclass(superclass)
    if options.protocol == "sampled":
        problems += _too_few(folder, names, labels)
        train, queries, database = _sample(labels, options.seed)
    else:
        train, queries = np.split(np.arange(len(labels)), [len(labels) - len(batches[-1][1])])
        database = None
    found = f"Python batches, {options.protocol} protocol"
    return ArrayListing(
        found, folder, files, names, images, labels, train, queries, database, reference, tuple(problems)
    )


def _sampled_listing(listing: Listing, seed: int) -> Listing:
    """The sampled protocol out of the images of train and test."""
    paths = listing.train.paths + listing.queries.paths
    labels = np.concatenate([listing.train.labels, listing.queries.labels])
    train, queries, database = (Part(tuple(paths[row] for row in rows), labels[rows]) for rows in _sample(labels, seed))
    problems = (*listing.problems, *_too_few(listing.root, listing.class_names, labels))
    layout = f"{listing.layout}, sampled protocol"
    return replace(listing, layout=layout, train=train, queries=queries, database=database, problems=problems)


def _sample(labels: npt.NDArray[np.int64], seed: int) -> tuple[Rows, Rows, Rows]:
    """The rows of train, queries and database of the sampled protocol."""
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    queries = np.sort(np.concatenate([rows[:_QUERIES] for rows in drawn]))
    train = np.sort(np.concatenate([rows[_QUERIES : _QUERIES + _TRAIN] for rows in drawn]))
    return train, queries, np.setdiff1d(np.arange(len(labels)), queries)


def _too_few(where: Path, names: Sequence[str], labels: npt.NDArray[np.int64]) -> list[str]:
    wanted = f"the sampled protocol wants at least {_QUERIES + _TRAIN}"
    return [
        problem(where, f"class {names[c]!r} has {count} images: {wanted}")
        for c, count in enumerate(np.bincount(labels, minlength=len(names)))
        if count < _QUERIES + _TRAIN
    ]


def _batch(
    file: Path, layout: _Layout, classes: int, problems: list[str]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Images N x 32 x 32 x 3, labels, and superclasses (0 where there are none); without images of no class."""
    content = _read(file)
    data = _entry(content, b"data", file)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(problem(file, "has other data than N x 3072 uint8: restore the original file"))
    labels = _integers(content, layout.labels, len(data), file)
    coarse = _integers(content, b"coarse_labels", len(data), file) if layout.superclasses else np.zeros_like(labels)
    good = (labels >= 0) & (labels < classes)
    for row in np.flatnonzero(~good):
        problems.append(problem(file, f"image {row} has the label {labels[row]}: want 0 to {classes - 1}"))
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)[good], labels[good], coarse[good]


def _integers(content: Any, key: bytes, count: int, file: Path) -> npt.NDArray[np.int64]:
    values = _entry(content, key, file)
    if len(values) != count or not all(isinstance(value, int) for value in values):
        raise DataError(problem(file, f"has other {key.decode()} than {count} integers: restore the original file"))
    return np.array(values, dtype=np.int64)


def _entry(content: Any, key: bytes, file: Path) -> Any:
    entry = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entry, list | np.ndarray):
        raise DataError(problem(file, f"has no {key.decode()}: restore the original file"))
    return entry


class _ArraysOnly(pickle.Unpickler):
    """Loads lists, strings, numbers and NumPy arrays; refuses to import, and so to run, anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return _ALLOWED[module, name]


def _latin1(text: str, _encoding: str) -> bytes:
    """How protocol 2 writes bytes under Python 3; the real ``_codecs.encode`` would take any codec."""
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


def _read(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            return _ArraysOnly(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        why = first_line(error)
        raise DataError(
            problem(file, f"cannot be read as a batch of CIFAR ({why}): restore the original file")
        ) from None
