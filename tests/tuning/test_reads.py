"""How often a checkpoint is read: once by whoever goes on from it, never by the search that only passes it on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from crh_tune.training import checkpoints
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.workers import Workers
from crh_tune.tuning import worker
from crh_tune.tuning.events import RunEvents
from crh_tune.tuning.run import Run, Shared
from tests.training.conftest import settings_for, split_of
from tests.tuning.test_events import place_in

_listening: list[list[Path]] = []


def _hear(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str) and not {"w", "x"} & set(arguments[1] or "r"):
        for heard in _listening:
            heard.extend([path] if (path := Path(arguments[0])).name == checkpoints.CHECKPOINT_FILE else [])


@contextmanager
def checkpoints_read() -> Iterator[list[Path]]:
    """The checkpoints that are opened to be read meanwhile."""
    if not _listening:
        sys.addaudithook(_hear)  # for good: there is no way to take it away
    heard: list[Path] = []
    _listening.append(heard)
    yield heard
    _listening.remove(heard)


def test_a_resumed_run_reads_its_checkpoint_once_and_the_search_reads_none(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "ask_aggregator", lambda *arguments: solve_locally)
    split, shared = split_of(), Shared(tmp_path, "nobody", str(tmp_path / "cache"))
    monkeypatch.setattr(worker, "open_split", lambda settings, stage: split)
    run = Run("trial-0000", settings_for(split, epochs=2), "search", split.fingerprint)
    events = RunEvents(place_in(tmp_path), 10, False, MagicMock, MagicMock())
    trial = SimpleNamespace(config={"run": run}, num_failures=0)
    events.on_trial_start(0, [trial], trial)

    def stop(metrics: dict[str, float]) -> None:
        reported.append(metrics["epoch"])
        events.on_trial_result(0, [trial], trial, metrics)
        if len(reported) == 1:
            raise InterruptedError

    reported: list[float] = []
    shared.folder_of(run).mkdir(parents=True)
    with checkpoints_read() as read:
        with pytest.raises(InterruptedError):
            worker.train_run(run, shared, Workers(), stop, "first")
        assert read == []
        worker.train_run(run, shared, Workers(), stop, "second")
        events.on_trial_complete(0, [trial], trial)
    assert reported == [1, 1, 2]
    assert read == [tmp_path / "runs" / "trial-0000" / "checkpoint_000001" / "checkpoint.pt"]
    assert events.outcomes["trial-0000"].checkpoint == str(tmp_path / "runs" / "trial-0000" / "checkpoint_000002")
