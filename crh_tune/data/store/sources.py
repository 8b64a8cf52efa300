"""Images to be decoded: files below a folder, or an array that came out of other files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from crh_tune.data.store.decode import JPEG, MEGAPIXELS, STRETCHED, BadImage, Fit, Span, deep_span, open_image
from crh_tune.errors import DataError

Bytes = npt.NDArray[np.uint8]


class ImageSource(Protocol):
    """Images that can be decoded, by row."""

    @property
    def names(self) -> Sequence[str]:
        """What to call each image."""

    def part(self, rows: slice) -> ImageSource:
        """Some of the images."""

    def signature(self) -> str:
        """Changes whenever a file does; costs no reading."""

    def read(self, row: int) -> bytes:
        """The image's content as it is stored. Raises BadImage."""

    def open(self, row: int, content: bytes, size: int, fit: Fit = STRETCHED) -> Image.Image:
        """That content as an RGB image of size x size. Raises BadImage."""

    @property
    def span(self) -> Span | None:
        """What becomes 0 and 255 in images of more than 8 bits a channel, where that is given."""

    @property
    def options(self) -> str:
        """What else than usual may come of the same content: part of the name of whatever is kept of it."""

    def deep_span(self, row: int) -> Span | None:
        """The lowest and highest value of an image of more than 8 bits a channel; None of any other."""

    def within(self, span: Span) -> ImageSource:
        """The same images, with that span."""


@dataclass(frozen=True)
class FileImages:
    """Image files below a folder."""

    root: Path
    names: Sequence[str]
    span: Span | None = None
    megapixels: float = MEGAPIXELS

    @property
    def options(self) -> str:
        limit = f" {self.megapixels:g} megapixels" if self.megapixels != MEGAPIXELS else ""
        return (f" {self.span}" if self.span else "") + limit

    def part(self, rows: slice) -> FileImages:
        return replace(self, names=self.names[rows])

    def signature(self) -> str:
        digest = hashlib.sha256(str(self.root).encode())
        for name in self.names:
            try:
                found = os.stat(self.root / name)
                state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
            except OSError as error:
                raise DataError(f"{self.root / name}: {error.strerror}") from None
            digest.update(f"{name}\0{state}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:32]

    def read(self, row: int) -> bytes:
        try:
            with open(os.path.join(self.root, self.names[row]), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise BadImage(str(error.strerror)) from None

    def open(self, row: int, content: bytes, size: int, fit: Fit = STRETCHED) -> Image.Image:
        return open_image(content, size, fit, self.span, self.megapixels)

    def deep_span(self, row: int) -> Span | None:
        try:
            with open(os.path.join(self.root, self.names[row]), "rb") as file:
                start = file.read(len(JPEG))
                return None if start == JPEG else deep_span(start + file.read(), self.megapixels)
        except OSError:  # whoever reads the image says so
            return None

    def within(self, span: Span) -> FileImages:
        return replace(self, span=span)


@dataclass(frozen=True)
class ArrayImages:
    """Images that came as an array N x S x S x 3 out of some files."""

    names: Sequence[str]
    files: Sequence[Path]
    images: Bytes
    span = None
    options = ""

    def part(self, rows: slice) -> ArrayImages:
        return replace(self, names=self.names[rows], images=self.images[rows])

    def signature(self) -> str:
        return FileImages(Path("/"), [str(path) for path in self.files]).signature()

    def read(self, row: int) -> bytes:
        return self.images[row].tobytes()

    def open(self, row: int, content: bytes, size: int, fit: Fit = STRETCHED) -> Image.Image:
        return fit.apply(Image.fromarray(self.images[row]), size)

    def deep_span(self, row: int) -> None:
        return None

    def within(self, span: Span) -> ArrayImages:
        return self
