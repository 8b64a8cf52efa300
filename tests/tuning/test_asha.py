"""The rungs of a search that is resumed are those it had."""

from __future__ import annotations

from types import SimpleNamespace

import optuna
import pytest

from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.asha import Asha, asha
from crh_tune.tuning.run import Run

SETTINGS = SearchSettings.model_validate(
    {
        "name": "rungs",
        "dataset": {"name": "digits"},
        "trial": {"epochs": 18},
        "search": {"margin": {"uniform": [0.0, 0.5]}},
        "scheduler": {"asha": {"grace_epochs": 2, "reduction": 3}},
    }
)


def tune_trial(number: int, identity: str, stage: str = "search") -> SimpleNamespace:
    run = Run(f"trial-{number:04d}", SETTINGS.trial_settings({}, 0), "search", "split", stage)
    return SimpleNamespace(trial_id=identity, config={"run": run})


def rungs(scheduler: Asha, names: dict[str, str]) -> list[tuple[float, dict[str, float]]]:
    recorded = scheduler._brackets[0]._rungs
    return [(milestone, {names.get(key, key): value for key, value in rung.items()}) for milestone, rung in recorded]


def report(scheduler: Asha, trial: SimpleNamespace, epoch: int, value: float) -> str:
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, "val/map": value})


@pytest.fixture
def before() -> tuple[optuna.Study, Asha, dict[str, str]]:
    """A study, and the scheduler that saw its results as they came: two trials that ended and one that runs."""
    study = optuna.create_study(direction="maximize")
    scheduler = asha(SETTINGS, study)
    assert scheduler is not None
    values = {0: [(2, 0.5), (6, 0.6), (17, 0.7)], 1: [(2, 0.3)], 2: [(2, 0.6), (4, 0.65), (6, 0.66)]}
    names = {}
    for number, results in values.items():
        trial, stands_for = study.ask(), tune_trial(number, f"tune-{number}")
        names[f"tune-{number}"] = f"trial-{number:04d}"
        scheduler.on_trial_add(None, stands_for)
        for epoch, value in results:
            trial.report(value, epoch)
            report(scheduler, stands_for, epoch, value)
    study.tell(0, 0.7)
    study.tell(1, state=optuna.trial.TrialState.PRUNED)
    return study, scheduler, names


def test_rungs_are_filled_from_the_study(before):
    study, scheduler, names = before
    resumed = asha(SETTINGS, study)
    assert rungs(resumed, {}) == rungs(scheduler, names)
    assert any(rung for _, rung in rungs(resumed, {}))


def test_a_trial_that_goes_on_is_not_counted_twice_and_a_new_one_is_judged_by_all(before):
    study, _, _ = before
    resumed = asha(SETTINGS, study)
    goes_on = tune_trial(2, "another-id")
    resumed.on_trial_add(None, goes_on)
    counted = [len(rung) for _, rung in rungs(resumed, {})]
    assert report(resumed, goes_on, 6, 0.66) == "CONTINUE"  # reported before
    assert report(resumed, goes_on, 8, 0.1) == "CONTINUE"  # between rungs nothing is decided
    assert [len(rung) for _, rung in rungs(resumed, {})] == counted
    new = tune_trial(3, "new")
    resumed.on_trial_add(None, new)
    assert report(resumed, new, 2, 0.2) == "STOP"


def test_rungs_reach_to_the_most_epochs_that_can_be_drawn():
    search = {**SETTINGS.model_dump()["search"], "epochs": {"choice": [9, 54]}}
    scheduler = asha(SearchSettings.model_validate({**SETTINGS.model_dump(), "search": search}), optuna.create_study())
    assert scheduler is not None
    trial = tune_trial(0, "long")
    scheduler.on_trial_add(None, trial)
    assert report(scheduler, trial, 18, 0.5) == "CONTINUE"
    assert report(scheduler, trial, 54, 0.5) == "STOP"


def test_runs_of_other_stages_are_neither_stopped_nor_counted(before):
    _, scheduler, names = before
    counted = rungs(scheduler, names)
    confirming = tune_trial(0, "confirming", stage="confirm")
    scheduler.on_trial_add(None, confirming)
    assert [report(scheduler, confirming, epoch, 0.01) for epoch in (2, 6, 18)] == ["CONTINUE"] * 3
    scheduler.on_trial_complete(None, confirming, {"epoch": 18, "val/map": 0.01})
    scheduler.on_trial_remove(None, confirming)
    assert rungs(scheduler, names) == counted
