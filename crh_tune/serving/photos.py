"""The photos that an index speaks of: where they are, small pictures of them, and a contact sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from crh_tune.data.store.decode import BadImage, open_image
from crh_tune.errors import DataError

TILE, _CAPTION, _GAP = 128, 28, 6
_LARGEST = 64 * 2**20
_WHITE, _GREY, _BLACK = (255, 255, 255), (200, 200, 200), (0, 0, 0)


@dataclass(frozen=True)
class Found:
    """One neighbour: its row in the index, its distance in bits, its label in words, and what it is.

    ``score`` is u . b where items were ranked by the query's real outputs.
    """

    row: int
    distance: int
    label: str
    item: str
    score: float | None = None


def photo_path(root: str | None, item: object) -> Path:
    """Where an item's photo lies. Raises DataError for items that are no files, or lead out of the folder."""
    if not isinstance(item, str):
        raise DataError(f"item {item} is a row of an array, no photo")
    if "\0" in item:
        raise DataError(f"{item!r} is no name of a file")
    if not root:
        if not Path(item).is_absolute():
            raise DataError(f"{item}: the index does not say in which folder: --photos DIR does")
        return Path(item)
    path = Path(root) / item
    if not path.resolve().is_relative_to(Path(root).resolve()):
        raise DataError(f"{item!r} leads out of the folder {root}")
    return path


def small(path: Path, side: int = TILE) -> Image.Image:
    """A photo in RGB, its longer side ``side`` pixels. Raises BadImage, OSError."""
    if path.stat().st_size > _LARGEST:
        raise BadImage("a file of more than 64 MiB")
    return ImageOps.contain(open_image(path.read_bytes()), (side, side))


def as_jpeg(image: Image.Image) -> bytes:
    """The bytes of a picture as JPEG."""
    target = io.BytesIO()
    image.save(target, "JPEG", quality=88)
    return target.getvalue()


def contact_sheet(rows: Sequence[tuple[Path, Sequence[Found]]], root: str | None) -> Image.Image:
    """A picture with a row for each query: the query, then its neighbours with distance and label."""
    columns = 1 + max(len(found) for _, found in rows)
    width, height = columns * (TILE + _GAP) + _GAP, len(rows) * (TILE + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _WHITE)
    for i, (query, found) in enumerate(rows):
        top = _GAP + i * (TILE + _CAPTION + _GAP)
        _tile(sheet, _GAP, top, query, f"query\n{query.name}")
        for j, each in enumerate(found, 1):
            try:
                path: Path | None = photo_path(root, each.item)
            except DataError:
                path = None
            score = "" if each.score is None else f"{each.score:.2f}, "
            caption = f"{score}{each.distance} bits\n{each.label or each.item}"
            _tile(sheet, _GAP + j * (TILE + _GAP), top, path, caption)
    return sheet


def _tile(sheet: Image.Image, left: int, top: int, path: Path | None, caption: str) -> None:
    draw = ImageDraw.Draw(sheet)
    try:
        picture = small(path) if path is not None else None
    except (BadImage, OSError):
        picture = None
    if picture is None:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=_GREY)
        draw.text((left + 8, top + TILE // 2), "no photo here", fill=_GREY)
    else:
        sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
    for line, text in enumerate(caption.splitlines()[:2]):
        shown = text if len(text) <= 20 else f"{text[:19]}~"
        draw.text((left, top + TILE + 1 + 13 * line), shown.encode("latin-1", "replace").decode("latin-1"), fill=_BLACK)
