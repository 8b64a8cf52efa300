"""What the options of datasets share: a strict base, and what every dataset of image files takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from crh_tune.data.store.decode import MEGAPIXELS


class Options(BaseModel):
    """Base of the datasets' options: unknown keys are refused.

    The sentence below an option is what ``docs/settings.md`` says of it. A model is built when it is first used, which
    saves time where a command uses one dataset, or none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


DataPath = Annotated[Path, AfterValidator(_absolute)]
"""A path, made absolute where it is read: trials run in other working folders."""


def _rising(span: tuple[float, float] | None) -> tuple[float, float] | None:
    if span is not None and not (math.isfinite(span[0]) and math.isfinite(span[1]) and span[0] < span[1]):
        raise ValueError(f"want [low, high], two numbers of which the second is higher, got {list(span)}")
    return span


class FileOptions(Options):
    """What every dataset takes that is read from files."""

    holds: ClassVar[str] = "the folder that holds the dataset"
    """What ``path`` must be."""
    path: DataPath | None = None
    """The dataset's folder or file; ``--data`` sets it."""
    reference: DataPath | None = None
    """How alike classes are: a CSV file ``class,superclass``, or an ``.npy`` array with a row a class or sample."""


class ImageOptions(FileOptions):
    """What every dataset of image files takes beside that."""

    size: int = Field(256, ge=4, le=2048)
    """The side in pixels to which images are decoded, once."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: it stops the search before its first trial, or is left out and named."""
    range: Annotated[tuple[float, float] | None, AfterValidator(_rising)] = None
    """What becomes 0 and 255 in images of more than 8 bits a channel; null takes the dataset's lowest and highest."""
    max_megapixels: float = Field(MEGAPIXELS, gt=0)
    """Larger images, in million pixels, count as unreadable: a small file can hold more than fits into memory."""


class LabelOptions(FileOptions):
    """What datasets take whose samples can have several labels, or none."""

    on_no_label: Literal["stop", "skip"] = "stop"
    """What a sample without a label does: it stops the search, or is left out; published lists have some."""
