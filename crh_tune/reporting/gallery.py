"""Queries and what the codes find for them, as small pictures: right ones framed green, wrong ones red."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from crh_tune.data.splits import Samples, Split
from crh_tune.data.store.stored import CachedImages
from crh_tune.reporting.curves import nearest_items, right_items
from crh_tune.reporting.search_data import Model
from crh_tune.retrieval.average_precision import Floats

THUMBNAIL = 92
"""Height and width that a picture fits into, pixels."""
MOST_BYTES = 2_500_000
"""No more pictures are put in a page than fit into so many bytes."""
_SPREAD, _WORST = 8, 8
_SMALL = 48


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI and the class of what it shows; of what was found, how far it is and if it is right."""

    uri: str
    title: str
    right: bool | None = None
    distance: int | None = None


@dataclass(frozen=True)
class Row:
    """A query with its nearest items and its average precision."""

    query: Picture
    found: Sequence[Picture]
    precision: float


@dataclass(frozen=True)
class Gallery:
    """Queries drawn at random from different classes, and the queries that fare worst."""

    drawn: Sequence[Row]
    worst: Sequence[Row]


def gallery(split: Split, model: Model, precisions: Floats, data_folder: Path | None) -> Gallery | None:
    """The gallery of a model's queries; None where there are no pictures. ``data_folder`` is what file names lie below.

    ``precisions`` are the queries' average precisions. Pictures that cannot be read are left empty.
    """
    if thumbnail(split.queries, 0, data_folder) is None:
        return None
    budget = _Budget()
    drawn = _spread_rows(split.queries.labels, precisions)
    known = np.flatnonzero(~np.isnan(precisions))
    worst = known[np.argsort(precisions[known], kind="stable")][:_WORST]
    return Gallery(*(_rows(split, model, rows, precisions, data_folder, budget) for rows in (drawn, worst)))


class _Budget:
    def __init__(self) -> None:
        self.left = MOST_BYTES

    def take(self, uri: str) -> bool:
        self.left -= len(uri)
        return self.left >= 0


def _spread_rows(labels: npt.NDArray[Any], precisions: Floats) -> npt.NDArray[np.int64]:
    """Queries drawn by chance, of different classes as far as there are."""
    known = np.flatnonzero(~np.isnan(precisions))
    order = np.random.default_rng(0).permutation(known)
    if labels.ndim == 1:
        first = np.unique(labels[order], return_index=True)[1]
        order = order[np.sort(first)]
    return order[:_SPREAD]


def _rows(
    split: Split, model: Model, rows: npt.NDArray[np.int64], precisions: Floats, folder: Path | None, budget: _Budget
) -> list[Row]:
    found, distances = nearest_items(model, rows)
    right = right_items(model, rows, found) if len(rows) else np.empty((0, 0), dtype=bool)
    made = []
    for row, items, far, good in zip(rows.tolist(), found.tolist(), distances.tolist(), right.tolist(), strict=True):
        asked = thumbnail(split.queries, row, folder) or ""
        pictures = [
            Picture(thumbnail(split.ranked, item, folder) or "", label_text(split, split.ranked, item), ok, distance)
            for item, distance, ok in zip(items, far, good, strict=True)
        ]
        if not budget.take(asked + "".join(picture.uri for picture in pictures)):
            break
        query = Picture(asked, label_text(split, split.queries, row))
        made.append(Row(query, pictures, float(precisions[row])))
    return made


def label_text(split: Split, samples: Samples, row: int) -> str:
    """The class of a sample, or all its labels."""
    label = samples.labels[row]
    if samples.labels.ndim == 1:
        return split.class_names[int(label)]
    return ", ".join(split.class_names[place] for place in np.flatnonzero(label)) or "no label"


def thumbnail(samples: Samples, row: int, folder: Path | None) -> str | None:
    """A sample's picture as a data URI; None where it has none or its file cannot be read."""
    inputs = samples.inputs
    if inputs.ndim == 4 and (isinstance(inputs, CachedImages) or inputs.dtype == np.uint8):
        return _encoded(_image(np.asarray(inputs[np.array([row])])[0]))
    if folder is None or samples.items is None or samples.items.dtype.kind not in "OU":
        return None
    try:
        with Image.open(folder / str(samples.items[row])) as image:
            image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            return _encoded(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Pixels C x H x W as an image; tiny ones are enlarged so that each pixel stays a square."""
    channels = np.moveaxis(pixels, 0, -1)
    image = Image.fromarray(np.ascontiguousarray(channels[..., 0] if channels.shape[-1] == 1 else channels[..., :3]))
    times = THUMBNAIL // max(image.size)
    if max(image.size) <= _SMALL and times > 1:
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    return image


def _encoded(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
