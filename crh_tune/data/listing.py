"""What a reader finds on disk, before any image is decoded: which images, with which labels, in which part."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from crh_tune.data.options import ImageOptions
from crh_tune.data.store.decode import IMAGE_SUFFIXES
from crh_tune.data.store.sources import FileImages, ImageSource
from crh_tune.data.store.stored import Array, Rows
from crh_tune.errors import DataError

_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"}
OTHER_SUFFIXES = frozenset(
    {".avif", ".heic", ".heif", ".hif", ".jp2", ".jxl", ".psd", ".svg", ".tga", *_RAW} - IMAGE_SUFFIXES
)
"""What people have for images and is not read."""


@dataclass(frozen=True)
class Part:
    """N image files by their paths, relative to the listing's root, and labels: N class indices or N x C multi-hot."""

    paths: tuple[str, ...]
    labels: Array

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class ImageRows:
    """The M images of a listing, and which of them are in each part: train, queries and, where there is one, database.

    ``items`` says what each of the M is to the user: its file below the data folder, or its row in the user's array.
    """

    source: ImageSource
    items: Array
    rows: tuple[Rows, ...]
    labels: tuple[Array, ...]


@dataclass(frozen=True)
class Listing:
    """A dataset of image files as a reader found it.

    Attributes:
        layout: what was found, in a few words, such as ``class folders under train/ and test/``.
        database: what queries are ranked against; None: the training images.
        reference: C x C similarity of the classes where the files tell it.
        problems: what is wrong with the files, one line each, beginning with the path. A listing with problems can be
            described but not trained on.
        notes: what should be known of the files and stops nothing, one line each.
    """

    layout: str
    root: Path
    class_names: tuple[str, ...]
    train: Part
    queries: Part
    database: Part | None = None
    reference: npt.NDArray[np.float64] | None = field(default=None, compare=False)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def parts(self) -> dict[str, Part]:
        """The parts there are, by name; each is in ``train``, ``queries`` or ``database``."""
        parts = {"train": self.train, "queries": self.queries, "database": self.database}
        return {name: part for name, part in parts.items() if part is not None}

    def labels_by_part(self) -> dict[str, Array]:
        return {name: part.labels for name, part in self.parts().items()}

    def images_to_decode(self, options: ImageOptions) -> ImageRows:
        """Each file once, however many parts it is in."""
        parts = tuple(self.parts().values())
        names = sorted({path for part in parts for path in part.paths})
        row_of = {path: row for row, path in enumerate(names)}
        rows = tuple(np.array([row_of[path] for path in part.paths], dtype=np.int64) for part in parts)
        source = FileImages(self.root, names, options.range, options.max_megapixels)
        return ImageRows(source, np.array(names, dtype=object), rows, tuple(part.labels for part in parts))


def inside(root: Path, row: str) -> str:
    """A path of a list as the POSIX path of a file below ``root``; it may be absolute.

    Raises DataError when it leads out of ``root``.
    """
    path = PurePosixPath(os.path.normpath(row.replace("\\", "/")))
    if path.is_absolute():
        tops = [top for top in (os.path.normpath(root), os.path.realpath(root)) if path.is_relative_to(top)]
        path = path.relative_to(tops[0]) if tops else path
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"{row!r} leads out of the data folder {root}")
    return str(path)
