"""Worker groups: any process of one killed in the middle of training; groups that ASHA stops one by one."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from benchmarks.groups import stop_groups
from benchmarks.soak import processes_below
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning import tracking
from crh_tune.tuning.engine import drive
from crh_tune.tuning.events import Place
from crh_tune.tuning.record import Outcome
from crh_tune.tuning.run import Run
from crh_tune.tuning.stages import FixedRuns
from crh_tune.tuning.worker import start_aggregator

SPACE = {
    "name": "groups",
    "dataset": {"name": "digits"},
    "trial": {"bits": 16, "epochs": 50, "batch_size": 128, "learning_rate": 2.0e-3},
    "search": {"margin": {"grid": [0.2]}},
    "scaling": {"workers_per_trial": 2},
}


def train_undisturbed(rank: int, size: int, content: dict, target: Path) -> None:
    settings = TrialSettings.model_validate(content)

    def solve(round_, statistic):
        shards = torch.from_numpy(statistic.copy())
        torch.distributed.all_reduce(shards)
        return solve_locally(round_, shards.numpy())

    metrics = TrainingRun(settings, open_split(settings, "search"), Workers(rank, size), solve).train(lambda *_: None)
    if rank == 0:
        target.write_text(json.dumps(metrics))


def run_group(storage: Path, settings: SearchSettings, content: dict) -> Outcome:
    """One run in a group of workers, through Ray Tune."""
    uri = tracking.default_tracking_uri(storage)
    tracker = tracking.Tracker(uri, "groups", storage, storage)
    resolved = TrialSettings.model_validate(content)
    place = Place("groups", storage, "aggregator-groups", tracker)
    tracker.start_run("groups", "groups")
    aggregator = start_aggregator(place.aggregator)
    run = Run("group", resolved, "search", open_split(resolved, "search").fingerprint)
    outcomes = drive(place, settings.scaling, settings.budget, [FixedRuns([run], print)])
    ray.kill(aggregator)
    assert tracker.drain(120) == 0
    return outcomes["group"]


@pytest.mark.long
def test_a_group_ends_as_if_undisturbed_whichever_process_of_it_is_killed(ray_session, in_group, tmp_path: Path):
    settings = SearchSettings.model_validate(SPACE)
    resolved = settings.trial_settings({"margin": 0.2}, 0).resolve(10, False)
    content = resolved.model_dump(mode="json")
    in_group(2, train_undisturbed, content, tmp_path / "undisturbed.json")
    expected = json.loads((tmp_path / "undisturbed.json").read_text())
    killed: list[str] = []
    ended = threading.Event()

    def kill_each_after(dangers: list[tuple[int, str]]) -> None:
        for epoch, title in dangers:
            while max((int(path.name[-6:]) for path in tmp_path.glob("runs/group/checkpoint_*")), default=0) < epoch:
                if ended.wait(0.01):
                    return
            while not (found := [pid for pid, name in processes_below(os.getpid()).items() if name.startswith(title)]):
                if ended.wait(0.01):
                    return
            os.kill(found[0], signal.SIGKILL)
            killed.append(title)

    titles = ["ray::RayTrainWorker", "ray::Aggregator", "ray::TrainController", "ray::ImplicitFunc"]
    dangers = list(zip((3, 10, 17, 24), titles, strict=True))
    killer = threading.Thread(target=kill_each_after, args=(dangers,), daemon=True)
    killer.start()
    try:
        outcome = run_group(tmp_path, settings, content)
    finally:
        ended.set()
        killer.join(60)
    assert killed == titles
    assert outcome.status == "complete"
    names = {name for name in expected if "/" in name and not name.startswith("seconds/")}
    assert {name: outcome.metrics[name] for name in names} == {name: expected[name] for name in names}
    centers = np.load(Path(outcome.checkpoint or "") / "centers.npy")
    assert centers.shape == (10, 16)

    deadline = time.monotonic() + 120
    while left := [title for title in processes_below(os.getpid()).values() if title.startswith("ray::RayTrain")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    while (states := {group["state"] for group in ray.util.placement_group_table().values()}) - {"REMOVED"}:
        assert time.monotonic() < deadline, states
        time.sleep(0.1)


@pytest.mark.long
def test_nothing_is_left_of_groups_that_asha_stopped(ray_session, tmp_path: Path):
    """A few of those that ``benchmarks/groups.py`` stops: no placement group, actor, process or reserved resource."""
    report = stop_groups(tmp_path, 4, print)
    assert report.wrong == []
    assert report.stopped == 3
    assert {outcome.metrics["epoch"] for outcome in report.outcomes.values() if outcome.status == "pruned"} == {10}
