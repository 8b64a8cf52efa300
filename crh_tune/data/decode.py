"""One image, from the bytes of its file to pixels of a given size."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are refused below
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What the EXIF orientations ask for."""


class BadImage(ValueError):
    """Bytes that are no image that can be read to its end, and why."""


def open_image(content: bytes, size: int | None = None) -> Image.Image:
    """The image in RGB, the way up that its EXIF data says; stretched to size x size where a size is given.

    The whole image is stretched, as HashNet's and CSQ's code does; of a JPEG only the detail that is needed is decoded.

    Raises BadImage.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
                raise BadImage(f"{image.width} x {image.height} pixels are too many")
            drafted = image.draft("RGB", (size, size)) if size is not None else None
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
            pixels = _in_rgb(image)
            if size is not None:
                pixels = stretched(pixels, size, drafted[1] if drafted else None)
            return pixels.transpose(turn) if turn is not None else pixels
    except BadImage:
        raise
    except Exception as error:  # whatever a decoder raises on broken bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadImage("not an image" if isinstance(error, UnidentifiedImageError) else reason) from None


def _in_rgb(image: Image.Image) -> Image.Image:
    """RGB; of 16 bits the upper 8 (Pillow would cut at 255)."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def stretched(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """An RGB image, or a box of it, at size x size."""
    if image.size == (size, size) and box is None:
        return image
    return image.resize((size, size), Image.Resampling.BILINEAR, box, reducing_gap=3.0)


def decode(content: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Pixels of an image file at size x size x 3 uint8. Raises BadImage."""
    return np.asarray(open_image(content, size))
