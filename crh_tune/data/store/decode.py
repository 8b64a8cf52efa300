"""One image, from the bytes of its file to pixels of a given size."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PLANAR_CONFIGURATION, TiffImageFile

from crh_tune.ground import first_line

DECODER = 4
"""Part of the name of whatever is kept of decoded images: to be raised when the same file gives other pixels."""
_AVIF = {".avif"} if "avif" in features.modules and features.check("avif") else set[str]()
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", *_AVIF}
)
"""What is read as an image."""
MEGAPIXELS = 89.478485
"""Pillow's own limit: larger images may be made to fill the memory of whoever opens them."""
_AT_ONCE = 2**18
"""How many values of a deep image are worked on at a time."""
_NATIVE, _OTHER = ("16L", "16B") if sys.byteorder == "little" else ("16B", "16L")
_OTHER_ORDER = {
    f"{mode};{order}": f"{mode};{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("16N", _OTHER), (_NATIVE, _OTHER), (_OTHER, _NATIVE))
}
"""Pillow's layouts of 16 bits of colour, of which it gives the upper bytes, and the one that gives the lower bytes."""
_GREY_AND_ALPHA = "LA;16B"
_PILLOWS_LIMIT = threading.Lock()
JPEG = b"\xff\xd8"
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


Box = tuple[float, float, float, float]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Fit:
    """How an image becomes a square of S x S pixels.

    ``crop`` None: the whole image is stretched, as HashNet's and CSQ's code does. Otherwise its shorter side becomes
    S / crop pixels, and the middle S x S of them are kept, as pretrained networks were evaluated.
    """

    crop: float | None = None
    interpolation: Interpolation = "bilinear"

    def apply(self, image: Image.Image, size: int, box: Box | None = None) -> Image.Image:
        """An RGB image, or a box of it, at size x size."""
        if image.size == (size, size) and box is None and self.crop in (None, 1):
            return image
        how = Image.Resampling[self.interpolation.upper()]
        if self.crop is None:
            return image.resize((size, size), how, box, reducing_gap=3.0)
        left, top, right, bottom = box or (0, 0, *image.size)
        side = min(right - left, bottom - top) * self.crop
        middle = (left + right - side) / 2, (top + bottom - side) / 2
        return image.resize((size, size), how, (*middle, middle[0] + side, middle[1] + side), reducing_gap=3.0)


STRETCHED = Fit()


class BadImage(ValueError):
    """Bytes that are no image that can be read to its end, and why."""


Span = tuple[float, float]
"""The lowest and the highest value of images of more than 8 bits a channel, which become 0 and 255."""
Values = npt.NDArray[np.float64]


def open_image(
    content: bytes,
    size: int | None = None,
    fit: Fit = STRETCHED,
    span: Span | None = None,
    megapixels: float = MEGAPIXELS,
) -> Image.Image:
    """The image in RGB, the way up that its EXIF data says; fitted to size x size where a size is given.

    Of a JPEG only the detail that is needed is decoded.
    ``span`` is for images of more than 8 bits a channel; without, it is the image's own.

    Raises BadImage, also for more than ``megapixels`` million pixels.
    """
    try:
        with _opened(content) as image:
            if _too_large(image, megapixels):
                found = f"{image.width} x {image.height} pixels are {image.width * image.height / 1e6:g} million"
                raise BadImage(f"{found}, dataset.max_megapixels allows {megapixels:g}")
            deep = _deep(image, content)
            detail = 0 if size is None else round(size / (fit.crop or 1))
            drafted = image.draft("RGB", (detail, detail)) if detail else None
            image.load()  # Pillow turns a TIFF here, and takes its orientation away
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
            pixels = _in_rgb(image) if deep is None else deep.in_8_bits(span)
            if size is not None:
                pixels = fit.apply(pixels, size, drafted[1] if drafted else None)
            pixels = pixels if pixels.mode == "RGB" else pixels.convert("RGB")
            return pixels.transpose(turn) if turn is not None else pixels
    except BadImage:
        raise
    except Exception as error:  # whatever a decoder raises on broken bytes
        reason = first_line(error)
        raise BadImage("not an image" if isinstance(error, UnidentifiedImageError) else reason) from None


def _opened(content: bytes) -> ImageFile:
    """The image, of which nothing but the header is read, of any size: what is too large is refused by the caller.

    Pillow's limit is one for all of the process, so it is lifted for no longer than that.
    """
    with _PILLOWS_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(content))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _too_large(image: Image.Image, megapixels: float) -> bool:
    return image.width * image.height > megapixels * 1e6


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@dataclass(frozen=True)
class _Deep:
    """An image of more than 8 bits a channel: what its values, H x W or H x W x 3, are put together of, and how."""

    parts: tuple[Image.Image, ...]
    whole: Callable[..., Values]
    shape: tuple[int, ...]

    def values(self) -> Iterator[tuple[slice, Values]]:
        """The values, some rows at a time: as float64 all of them would be 4 times the size of 16 bits."""
        height, width = self.shape[:2]
        step = max(1, _AT_ONCE // width)
        for top in range(0, height, step):
            end = min(top + step, height)
            parts = (np.array(part.crop((0, top, width, end)), dtype=np.float64) for part in self.parts)
            yield slice(top, end), self.whole(*parts)

    def span(self) -> Span | None:
        return joined(_finite_span(part) for _, part in self.values())

    def in_8_bits(self, span: Span | None) -> Image.Image:
        """The values from 0 to 255."""
        low, high = span or self.span() or (0.0, 0.0)
        found = np.empty(self.shape, dtype=np.uint8)
        for rows, part in self.values():
            values = np.nan_to_num(part, copy=False, nan=low, posinf=high, neginf=low)
            scaled = (values.clip(low, high) - low) * (255 / (high - low) if high > low else 0)
            found[rows] = np.rint(scaled)
        return Image.fromarray(found)


def _finite_span(values: Values) -> Span | None:
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


def _deep(image: ImageFile, content: bytes) -> _Deep | None:
    """An image, of which the header is read, where it is of more than 8 bits a channel.

    Of 16 bits of colour Pillow gives the upper byte: the lower one comes from reading the file as if its bytes were in
    the other order. Raises BadImage where that cannot be done.
    """
    height, width = image.height, image.width
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _Deep((image,), lambda values: values, (height, width))
    layouts = {_layout(tile) for tile in image.tile}
    args = {tile.codec_name: tile.args for tile in image.tile if tile.codec_name in ("ppm", "ppm_plain")}
    scaled = [name for name, each in args.items() if isinstance(each, tuple) and each[1] > 255]
    if scaled == ["ppm"]:
        parts = tuple(_read_as(content, {"RGB": layout}) for layout in ("RGB;16B", "RGB;16L"))
        return _Deep(parts, lambda upper, lower: 256 * upper + lower, (height, width, 3))
    if layouts == {_GREY_AND_ALPHA}:
        both = _read_as(content, {_GREY_AND_ALPHA: "RGBA"})
        return _Deep((both,), lambda each: 256 * each[..., 0] + each[..., 1], (height, width))
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if layouts and layouts <= _OTHER_ORDER.keys() and tags.get(PLANAR_CONFIGURATION, 1) == 1:
        parts = image, _read_as(content, _OTHER_ORDER)
        return _Deep(parts, lambda upper, lower: (256 * upper + lower)[..., :3], (height, width, 3))
    if scaled or max(tags.get(BITSPERSAMPLE, (1,))) > 8 or any(";16" in layout for layout in layouts):
        how = "convert it to 8 bits a channel, or to grey"
        raise BadImage(f"more than 8 bits a channel in a layout that is not read ({image.mode}): {how}")
    return None


def _layout(tile: Any) -> str:
    """What Pillow calls the layout of a file's pixels, such as ``RGB;16B``."""
    return str(tile.args[0] if tile.args and isinstance(tile.args, tuple) else tile.args)


def _read_as(content: bytes, layouts: Mapping[str, str]) -> Image.Image:
    """The image as it is read where its pixels are said to lie in another layout."""
    image = _opened(content)
    for i, tile in enumerate(image.tile):
        layout = layouts[_layout(tile)]
        if tile.codec_name == "ppm":  # it scales by what is behind the layout
            image.tile[i] = tile._replace(codec_name="raw", args=(layout, 0, 1))
        else:
            image.tile[i] = tile._replace(args=(layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout)
    return image


def deep_span(content: bytes, megapixels: float = MEGAPIXELS) -> Span | None:
    """The lowest and highest finite value of an image of more than 8 bits a channel; None of any other or a bad one."""
    if content.startswith(JPEG):
        return None
    try:
        with _opened(content) as image:
            deep = None if _too_large(image, megapixels) else _deep(image, content)
            return None if deep is None else deep.span()
    except Exception:  # open_image says what is wrong with it
        return None


def joined(spans: Iterable[Span | None]) -> Span | None:
    """The least span that holds all of them; None where there is none."""
    found = [span for span in spans if span is not None]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def decode(
    content: bytes, size: int, fit: Fit = STRETCHED, span: Span | None = None, megapixels: float = MEGAPIXELS
) -> npt.NDArray[np.uint8]:
    """Pixels of an image file at size x size x 3 uint8; the rest as for ``open_image``. Raises BadImage."""
    return np.asarray(open_image(content, size, fit, span, megapixels))
