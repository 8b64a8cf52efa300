"""One image, from the bytes of its file to pixels of a given size."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

warnings.simplefilter("error", Image.DecompressionBombWarning)


class BadImage(ValueError):
    """Bytes that are no image that can be read to its end, and why."""


def open_image(content: bytes, size: int | None = None) -> Image.Image:
    """The image in RGB, the way up that its EXIF data says; with a size, JPEGs are only decoded as large as needed.

    Raises BadImage.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if size is not None:
                image.draft("RGB", (size, size))
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # whatever a decoder raises on broken bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadImage("not an image" if isinstance(error, UnidentifiedImageError) else reason) from None


def stretched(image: Image.Image, size: int) -> Image.Image:
    """An RGB image stretched to size x size: the whole image, as HashNet's and CSQ's code does."""
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)


def decode(content: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Pixels of an image file stretched to size x size x 3 uint8. Raises BadImage."""
    return np.asarray(stretched(open_image(content, size), size))
