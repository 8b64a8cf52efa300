"""Small splits and settings to train on, and torch process groups without Ray."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Split, final_split, search_split
from crh_tune.settings.trial import TrialSettings

# The processes of a group are forked from one that has imported, once for all tests, what takes seconds.
multiprocessing.set_forkserver_preload(["torch._dynamo", "crh_tune.training.loop", "crh_tune.data.datasets"])


def split_of(name: str = "digits", stage: str = "search") -> Split:
    dataset = open_dataset(name, {})
    return search_split(dataset, 0.2, 0) if stage == "search" else final_split(dataset)


def settings_for(split: Split, method: str = "crh", dataset: str = "digits", **trial: Any) -> TrialSettings:
    content = {"bits": 16, "epochs": 3, "batch_size": 128, "learning_rate": 2e-3, **trial}
    settings = TrialSettings.model_validate({"dataset": {"name": dataset}, "method": method, "trial": content})
    return settings.resolve(split.classes, split.multi_label)


def _enter(rank: int, size: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        work(rank, size, *arguments)
    finally:
        dist.destroy_process_group()


@pytest.fixture
def in_group() -> Callable[..., None]:
    """``in_group(size, work, *arguments)`` runs ``work(rank, size, *arguments)`` in a gloo group of processes."""

    def run(size: int, work: Callable[..., None], *arguments: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            meeting = str(Path(folder) / "meeting")
            mp.start_processes(_enter, args=(size, meeting, work, arguments), nprocs=size, start_method="forkserver")

    return run
