"""What the options of datasets share: a strict base, and what every dataset of image files takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from crh_tune.data.store.decode import MEGAPIXELS


class Options(BaseModel):
    """Base of the datasets' options: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


DataPath = Annotated[Path, AfterValidator(_absolute)]
"""A path, made absolute where it is read: trials run in other working folders."""


def _rising(span: tuple[float, float] | None) -> tuple[float, float] | None:
    if span is not None and not (math.isfinite(span[0]) and math.isfinite(span[1]) and span[0] < span[1]):
        raise ValueError(f"want [low, high], two numbers of which the second is higher, got {list(span)}")
    return span


class FileOptions(Options):
    """``path`` is the dataset's folder or file; ``--data`` sets it.

    ``reference`` says how alike classes are where the dataset does not know: a CSV file ``class,superclass``, or a
    ``.npy`` array of features with one row a class, or one row a training sample.
    """

    path: DataPath | None = None
    reference: DataPath | None = None


class ImageOptions(FileOptions):
    """Images are decoded once to ``size`` x ``size`` pixels; ``on_bad_image`` says what an unreadable one does.

    ``range`` is what becomes 0 and 255 in grey images of more than 8 bits: [low, high]; without, the lowest and the
    highest value in all of the dataset. Images of more than ``max_megapixels`` million pixels count as unreadable:
    a small file can hold so many that they fill the memory.
    """

    size: int = Field(256, ge=4, le=2048)
    on_bad_image: Literal["stop", "skip"] = "stop"
    range: Annotated[tuple[float, float] | None, AfterValidator(_rising)] = None
    max_megapixels: float = Field(MEGAPIXELS, gt=0)


class LabelOptions(ImageOptions):
    """``on_no_label`` says what a row without a label does: published lists of several labels have some."""

    on_no_label: Literal["stop", "skip"] = "stop"
