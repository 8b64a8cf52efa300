"""What a reader finds on disk, before any image is decoded: which images, with which labels, in which part."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import features

from crh_tune.data.store.stored import Array
from crh_tune.errors import DataError

_AVIF = {".avif"} if "avif" in features.modules and features.check("avif") else set[str]()
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", *_AVIF}
)
"""What is read as an image."""
_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"}
OTHER_SUFFIXES = frozenset({".avif", ".heic", ".heif", ".hif", ".jp2", ".jxl", ".psd", ".svg", ".tga", *_RAW} - _AVIF)
"""What people have for images and is not read."""


@dataclass(frozen=True)
class Part:
    """N image files by their paths, relative to the listing's root, and labels: N class indices or N x C multi-hot."""

    paths: tuple[str, ...]
    labels: Array

    def __len__(self) -> int:
        return len(self.paths)


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
