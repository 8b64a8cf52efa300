"""Checkpoints of one training run: tensors and plain values only, read without executing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

CHECKPOINT_FILE = "checkpoint.pt"
CENTERS_FILE = "centers.npy"
"""The centres beside a checkpoint, C x K int8, for people to look at."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is of another run."""


def save(state: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint aside and rename it, so that a file of that name is always whole."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{CHECKPOINT_FILE}.{os.getpid()}"
    torch.save(state, aside)
    aside.replace(folder / CHECKPOINT_FILE)


def load(folder: Path) -> dict[str, Any]:
    """Read a checkpoint. Raises CheckpointError, naming the file, when it is missing or broken."""
    path = folder / CHECKPOINT_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint of a training run")
    return state
