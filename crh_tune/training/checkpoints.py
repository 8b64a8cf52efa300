"""Checkpoints of one training run: tensors and plain values only, read without executing anything."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from crh_tune.ground import check_archive, first_line, write_whole
from crh_tune.hashing.centers import CodebookSpec
from crh_tune.settings.base import one_line

CHECKPOINT_FILE = "checkpoint.pt"
CENTERS_FILE = "centers.npy"
"""The centres beside a checkpoint, C x K int8, for people to look at."""
KEPT = 2
"""How many checkpoints of a run stay: where the newest is broken, the one before is still there."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is of another run."""


class Header(BaseModel):
    """What a checkpoint says beside its tensors; epoch 0 is the training that the first centres are learned from."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, Any]
    """Those of the trial, as they are written: an older version's may lack what came later."""
    epoch: int = Field(ge=0)
    metrics: dict[str, float] = {}
    """As they were reported with it."""
    seconds: dict[str, float] = {}
    """What each phase has taken until then."""
    codebook: CodebookSpec | None = None
    """None for a method without centres."""

    @field_validator("codebook", mode="before")
    @classmethod
    def _words_from_text(cls, content: Any) -> Any:
        written = isinstance(content, dict) and isinstance(content.get("words"), str)
        return {**content, "words": bytes.fromhex(content["words"])} if written else content

    @field_serializer("codebook")
    def _words_as_text(self, codebook: CodebookSpec | None) -> dict[str, Any] | None:
        """Text loads without executing anything, bytes do not."""
        return None if codebook is None else {**asdict(codebook), "words": codebook.words.hex()}

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of what lies beside the header in the file."""
        if self.epoch == 0:
            return ("prepared",)
        return ("model", "optimizer", "schedule", *(() if self.codebook is None else ("table",)))


class Checkpoint(NamedTuple):
    """A checkpoint: its header, and by name the states and tensors that the header names."""

    header: Header
    parts: dict[str, Any]


def save(header: Header, parts: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint, so that a file of that name is always whole. Raises OSError where the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**header.model_dump(), **parts}
    write_whole(folder / CHECKPOINT_FILE, lambda aside: _torch_save(content, aside))


def _torch_save(state: dict[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # how torch says that a file could not be written
        raise OSError(f"{path.parent}: the checkpoint could not be written: {first_line(error)}") from error


def read_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote, read once, and without executing anything.

    torch does not look at the checksums it writes, and gives flipped bits back as weights; so they are looked at here.
    Raises ValueError where one is wrong, and whatever torch raises on a broken file.
    """
    content = io.BytesIO(path.read_bytes())
    check_archive(content)
    content.seek(0)
    return torch.load(content, map_location="cpu", weights_only=True)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError, naming the file, when it is missing, broken, or something else."""
    path = folder / CHECKPOINT_FILE
    try:
        content = read_tensors(path)
    except Exception as error:  # whatever torch raises on a broken file
        reason = first_line(error)
        raise CheckpointError(f"{path}: not a readable checkpoint: {reason}") from None
    try:
        header = Header.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path}: not a checkpoint of a training run: {one_line(error, Header)}") from None
    missing = next((name for name in header.parts if name not in content), None)
    if missing is not None:
        raise CheckpointError(f"{path}: not a checkpoint of a training run: {missing}: is required")
    return Checkpoint(header, {name: content[name] for name in header.parts})


def keep(run_folder: Path, epoch: int, write: Callable[[Path], None]) -> None:
    """Add a run's checkpoint of this epoch, written by ``write`` into a folder, and drop all but the newest two.

    Raises OSError where the disk is full, or the run's folder is gone.
    """
    folder = run_folder / f"checkpoint_{epoch:06d}"
    folder.mkdir(exist_ok=True)
    write(folder)
    for old in _newest_first(run_folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def newest(run_folder: Path) -> Path | None:
    """The folder of a run's newest checkpoint that can be read; None where there is none."""
    return (read_newest(run_folder) or (None,))[0]


def read_newest(run_folder: Path) -> tuple[Path, Checkpoint] | None:
    """The same folder, and what was read there: whoever goes on from it need not read it again."""
    for folder in _newest_first(run_folder):
        try:
            return folder, load(folder)
        except CheckpointError:
            continue
    return None


def latest(run_folder: Path) -> Path | None:
    """The folder of a run's newest checkpoint, without looking into it; None where there is none."""
    return next((folder for folder in _newest_first(run_folder) if (folder / CHECKPOINT_FILE).exists()), None)


def _newest_first(run_folder: Path) -> list[Path]:
    return sorted(run_folder.glob("checkpoint_*"), reverse=True)
