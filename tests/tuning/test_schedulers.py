"""What stops the trials of a search that is resumed knows what it knew."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import optuna
import pytest
from ray.tune.schedulers import MedianStoppingRule

from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.run import Run
from crh_tune.tuning.schedulers import Asha, MedianStopping, scheduler_of

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
    scheduler = scheduler_of(SETTINGS, study)
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
    resumed = scheduler_of(SETTINGS, study)
    assert rungs(resumed, {}) == rungs(scheduler, names)
    assert any(rung for _, rung in rungs(resumed, {}))


def test_a_trial_that_goes_on_is_not_counted_twice_and_a_new_one_is_judged_by_all(before):
    study, _, _ = before
    resumed = scheduler_of(SETTINGS, study)
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
    scheduler = scheduler_of(
        SearchSettings.model_validate({**SETTINGS.model_dump(), "search": search}), optuna.create_study()
    )
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


def with_scheduler(scheduler: object, **changes) -> SearchSettings:
    return SearchSettings.model_validate({**SETTINGS.model_dump(), "scheduler": scheduler, **changes})


def replayed(settings: SearchSettings, values: dict[int, list[float]]) -> Asha | MedianStopping:
    """The scheduler of a search whose trials have reported these values after every second epoch, as it is resumed."""
    study = optuna.create_study(direction=f"{settings.objective.mode}imize")
    for reported in values.values():
        trial = study.ask()
        for place, value in enumerate(reported):
            trial.report(value, 2 * place + 2)
    scheduler = scheduler_of(settings, study)
    assert scheduler is not None
    return scheduler


@pytest.mark.parametrize("name", ["hyperband", "median_stopping"])
def test_a_search_that_is_resumed_anywhere_stops_the_trials_it_would_have_stopped(name):
    """40 trials, one at a time, whose curves cross; resumed after every fifth of them, and in the midst of one."""
    settings = with_scheduler({name: {"grace_epochs": 2}})
    chance = np.random.default_rng(1)
    curves = np.cumsum(chance.normal(0.02, 0.05, (40, 9)), axis=1).tolist()

    def course(scheduler, first: int, known: int = 0) -> list[int]:
        """After how many of its values each trial ends, where the first one goes on after some that are known."""
        ends = []
        for number, curve in enumerate(curves[first:], first):
            trial = tune_trial(number, f"tune-{number}")
            scheduler.on_trial_add(None, trial)
            for place in range(known if number == first else 0, len(curve)):
                if report(scheduler, trial, 2 * place + 2, curve[place]) == "STOP":
                    break
            ends.append(place + 1)
        return ends

    whole = course(replayed(settings, {}), 0)
    assert len(set(whole)) >= 3
    for first in range(5, 40, 5):
        known = whole[first] - 1
        before = {number: curves[number][: whole[number]] for number in range(first)} | {first: curves[first][:known]}
        assert course(replayed(settings, before), first, known) == whole[first:]


def test_hyperband_has_a_bracket_that_stops_nobody_and_most_trials_are_in_the_first():
    """For 18 epochs: rungs at 2, 6 and 18, at 6 and 18, at 18; chances as e^0 to e^-1 to e^-2."""
    scheduler = replayed(with_scheduler("hyperband", trial={"epochs": 18}), {})
    assert isinstance(scheduler, Asha)
    at = replayed(with_scheduler({"hyperband": {"grace_epochs": 2}}), {})
    assert isinstance(at, Asha)
    assert [[rung for rung, _ in bracket._rungs] for bracket in at._brackets] == [[18, 6, 2], [18, 6], [18]]
    shares = np.bincount([at.bracket_of(f"trial-{number:04d}") for number in range(3000)]) / 3000
    assert shares == pytest.approx(np.exp([0, -1, -2]) / np.exp([0, -1, -2]).sum(), abs=0.03)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_median_rule_is_ray_tunes(mode):
    """Twelve trials that report in turn: each is judged by others that have come less far, as far and farther."""
    rule = {"metric": "val/map", "mode": mode}
    theirs = MedianStoppingRule("epoch", grace_period=6, min_samples_required=3, **rule)
    nobody_waits = SimpleNamespace(get_live_trials=list)  # else it would pause a trial
    ours = MedianStopping("val/map", mode, 6, 3)
    chance, decided = np.random.default_rng(3), []
    trials = {number: tune_trial(number, str(number)) for number in range(12)}
    stand_ins = {number: MagicMock(trial_id=str(number)) for number in trials}  # which a dictionary can have as a key
    epochs = dict.fromkeys(trials, 0)
    while epochs:
        number = int(chance.choice(list(epochs)))
        epochs[number] += 2
        result = {"epoch": epochs[number], "val/map": float(chance.normal(number / 12, 0.3))}
        said = ours.on_trial_result(None, trials[number], result)
        assert said == theirs.on_trial_result(nobody_waits, stand_ins[number], result)
        decided.append(said)
        if said == "STOP" or epochs[number] == 18:
            del epochs[number]
    assert decided.count("STOP") >= 3
    assert ours.on_trial_result(None, tune_trial(1, "1", "confirm"), {"epoch": 6, "val/map": -9.0}) == "CONTINUE"


def test_a_scheduler_is_named_alone_or_with_its_settings_and_one_at_most():
    assert with_scheduler("median_stopping").scheduler == with_scheduler({"median_stopping": {}}).scheduler
    assert with_scheduler("none").scheduler == with_scheduler({}).scheduler
    assert scheduler_of(with_scheduler("none"), optuna.create_study()) is None
    assert with_scheduler("asha").scheduler.rungs(40) == [5, 15]
