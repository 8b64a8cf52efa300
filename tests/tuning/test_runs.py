"""How many trials run at once, and what each of them reserves."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ray.tune.experiment import Trial

from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import BudgetSettings
from crh_tune.settings.trial import ScalingSettings
from crh_tune.training.loop import PREPARED
from crh_tune.tuning import runs
from crh_tune.tuning.runs import RunEvents, concurrency, trial_resources
from crh_tune.tuning.trial import RESTARTS


def cluster(monkeypatch, *nodes: dict[str, float], dead: tuple[dict[str, float], ...] = ()) -> None:
    """A cluster of these nodes, and others that it has lost."""
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    known = [{"Alive": node in nodes, "Resources": node} for node in (*nodes, *dead)]
    monkeypatch.setattr("crh_tune.tuning.runs.ray.cluster_resources", lambda: total)
    monkeypatch.setattr("crh_tune.tuning.runs.ray.nodes", lambda: known)


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    monkeypatch.delenv("CRH_TUNE_MAX_CPUS", raising=False)
    monkeypatch.delenv("CRH_TUNE_MAX_GPUS", raising=False)
    cluster(monkeypatch, {"CPU": 16.0, "GPU": 1.0})


@pytest.mark.parametrize(
    ("scaling", "at_once"),
    [
        ({"gpus_per_worker": 0.25}, 4),
        ({"gpus_per_worker": 0.5, "cpus_per_worker": 2}, 2),
        ({"gpus_per_worker": 1}, 1),
        ({"gpus_per_worker": 0.25, "cpus_per_worker": 8}, 2),
        ({}, 16),
        ({"workers_per_trial": 4, "cpus_per_worker": 2}, 2),
    ],
)
def test_trials_share_what_there_is_gpus_by_fractions(scaling, at_once):
    settings = ScalingSettings(**scaling)
    assert concurrency(settings, BudgetSettings()) == at_once
    assert concurrency(settings, BudgetSettings(concurrent=3)) == 3
    if settings.workers_per_trial == 1:
        [bundle] = trial_resources(settings).bundles
        wanted = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
        assert bundle == {kind: amount for kind, amount in wanted.items() if amount}


@pytest.mark.parametrize(
    ("scaling", "line"),
    [
        ({"workers_per_trial": 2, "gpus_per_worker": 1}, "scaling.gpus_per_worker: a trial needs 2 GPUs (2 workers)"),
        ({"cpus_per_worker": 32}, "scaling.cpus_per_worker: a trial needs 32 CPUs (1 workers), there are 16"),
    ],
)
def test_a_trial_that_does_not_fit_is_refused_in_one_line(scaling, line):
    with pytest.raises(SettingsError) as caught:
        concurrency(ScalingSettings(**scaling), BudgetSettings())
    assert str(caught.value).startswith(line)


SMALL, LARGE, HEAD = {"CPU": 3.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_fits_no_single_node_is_refused_in_one_line(monkeypatch, workers):
    scaling = ScalingSettings(workers_per_trial=workers, cpus_per_worker=4, gpus_per_worker=1)
    cluster(monkeypatch, HEAD, SMALL, SMALL, dead=(LARGE,))
    with pytest.raises(SettingsError) as caught:
        concurrency(scaling, BudgetSettings(concurrent=2))
    assert str(caught.value) == (
        "scaling: a worker needs 4 CPUs and 1 GPUs on one node, the nodes have 3 and 1, 8 and 0: "
        "lower cpus_per_worker or gpus_per_worker"
    )
    cluster(monkeypatch, HEAD, SMALL, LARGE)
    assert concurrency(scaling, BudgetSettings()) == 2 // workers


def test_nodes_that_may_still_come_are_not_judged(monkeypatch):
    scaling = ScalingSettings(cpus_per_worker=4, gpus_per_worker=1)
    cluster(monkeypatch, HEAD)
    monkeypatch.setenv("CRH_TUNE_MAX_CPUS", "24")
    monkeypatch.setenv("CRH_TUNE_MAX_GPUS", "4")
    assert concurrency(scaling, BudgetSettings()) == 4
    cluster(monkeypatch, HEAD, *[{"CPU": 4.0}] * 4, *[{"GPU": 1.0}] * 4)  # as large as it gets
    with pytest.raises(SettingsError, match="4 CPUs and 1 GPUs on one node"):
        concurrency(scaling, BudgetSettings())


def test_a_trial_that_learns_its_first_centres_makes_progress_and_one_that_says_nothing_hangs(tmp_path, monkeypatch):
    ended: list[object] = []
    now = [0.0]
    monkeypatch.setattr(runs.ray, "kill", ended.append)
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    place = SimpleNamespace(
        folder=tmp_path, tracker=MagicMock(), key=str, search_id="s", splits={"search": "1"},
        stop=SimpleNamespace(interrupted=False),
    )  # fmt: skip
    events = RunEvents(place, BudgetSettings(hang_minutes=10), MagicMock(), None, in_groups=False)
    run = {"name": "trial-0000", "settings": {}, "start": "drawn", "stage": "search"}
    actor = SimpleNamespace(ray_actor="its process")
    trial = SimpleNamespace(config={"run": run}, status=Trial.RUNNING, temporary_state=actor, num_failures=2)
    events.on_trial_start(0, [trial], trial)
    for epoch in (1, 2):
        now[0] += 500
        events.on_trial_result(0, [trial], trial, {"epoch": 0.0, PREPARED: float(epoch)})
        events.on_step_begin(0, [trial])
    assert ended == []
    assert trial.max_failures == 2 + RESTARTS
    assert (events.outcomes["trial-0000"].metrics, events.outcomes["trial-0000"].status) == ({}, "")
    now[0] += 601
    events.on_step_begin(0, [trial])
    assert ended == ["its process"]
