"""How many trials run at once, and what each of them reserves."""

from __future__ import annotations

import pytest

from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import BudgetSettings
from crh_tune.settings.trial import ScalingSettings
from crh_tune.tuning.runs import concurrency, trial_resources


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    monkeypatch.setattr("crh_tune.tuning.runs.ray.cluster_resources", lambda: {"CPU": 16.0, "GPU": 1.0})


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
