"""Successive halving of a search's trials, with the rungs of a search that is resumed as they were."""

from __future__ import annotations

from typing import Any

import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from crh_tune.settings.search import SearchSettings, drawn
from crh_tune.tuning.ray_private import fill_rungs, rename_in_rungs
from crh_tune.tuning.run import SEARCH, Run
from crh_tune.tuning.searcher import trial_name


class Asha(AsyncHyperBandScheduler):
    """Tune's ASHA for the runs of the search stage; those of other stages it neither stops nor counts in its rungs.

    The rungs are filled again from what trials of a resumed search had reported before.
    """

    def replay(self, name: str, values: dict[int, float]) -> None:
        """Take a trial's intermediate values, by epoch, into the rungs."""
        fill_rungs(self, name, values)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Give a trial that is resumed the places it has in the rungs, so that it is not counted twice."""
        if not _is_searched(trial):
            return
        super().on_trial_add(tune_controller, trial)
        rename_in_rungs(self, _run(trial).name, trial.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not _is_searched(trial):
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if _is_searched(trial):
            super().on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        if _is_searched(trial):
            super().on_trial_remove(tune_controller, trial)


def _run(trial: Trial) -> Run:
    run = trial.config["run"]
    assert isinstance(run, Run)
    return run


def _is_searched(trial: Trial) -> bool:
    return _run(trial).stage == SEARCH


def asha(settings: SearchSettings, study: optuna.Study) -> Asha | None:
    """The search's ASHA scheduler; None where it has none, or its first rung lies beyond the last epoch."""
    chosen, epochs = settings.scheduler.asha, max(drawn(settings, "epochs"))
    if chosen is None or chosen.grace_epochs >= epochs:
        return None
    scheduler = Asha(
        time_attr="epoch",
        metric=settings.objective.metric,
        mode=settings.objective.mode,
        max_t=epochs,
        grace_period=chosen.grace_epochs,
        reduction_factor=chosen.reduction,
    )
    for trial in study.get_trials(deepcopy=False):
        scheduler.replay(trial_name(trial.number), trial.intermediate_values)
    return scheduler
