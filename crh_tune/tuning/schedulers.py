"""What stops weak trials of a search early, with what they were compared with in a search that is resumed as it was."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.earlier import EARLIER
from crh_tune.tuning.ray_private import fill_rungs, put_in_bracket, rename_in_rungs, rungs_in_brackets
from crh_tune.tuning.run import SEARCH, Run
from crh_tune.tuning.searcher import reported_by, trial_name


class Asha(AsyncHyperBandScheduler):
    """Tune's ASHA for the runs of the search stage; those of other stages it neither stops nor counts in its rungs.

    The rungs are filled again from what trials of a resumed search had reported before. Which of several brackets a
    trial is in is drawn from ``seed`` and the trial's name, with the chances of Tune's own, so that it stays in it.
    """

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self._seed = seed

    def replay(self, name: str, values: dict[int, float]) -> None:
        """Take a trial's intermediate values, by epoch, into the rungs."""
        fill_rungs(self, self.bracket_of(name), name, values)

    def bracket_of(self, name: str) -> int:
        """Which bracket a trial is in."""
        rungs = rungs_in_brackets(self)
        weights = [math.exp(count - max(rungs)) for count in rungs]
        return random.Random(f"{self._seed} {name}").choices(range(len(rungs)), weights)[0]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Give a trial that goes on the places it has in the rungs, so that it is not counted twice."""
        if not _is_searched(trial):
            return
        super().on_trial_add(tune_controller, trial)
        name = _run(trial).name
        put_in_bracket(self, trial.trial_id, self.bracket_of(name))
        rename_in_rungs(self, name, trial.trial_id)

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


class MedianStopping(FIFOScheduler):
    """The median stopping rule, for the runs of the search stage: Tune's, but that it never pauses a trial.

    From ``grace`` epochs on, a trial is stopped where its best value is worse than the median of the others' means from
    ``grace`` up to this epoch, of those that came as far; ``least`` others are needed.
    """

    def __init__(self, metric: str, mode: str, grace: int, least: int) -> None:
        super().__init__()
        self._judged_by, self._sign, self._grace, self._least = metric, 1 if mode == "max" else -1, grace, least
        self._values: dict[str, dict[int, float]] = {}
        """What each trial has reported, by epoch; more is better."""

    def replay(self, name: str, values: dict[int, float]) -> None:
        """Take a trial's intermediate values, by epoch."""
        self._values[name] = {epoch: self._sign * value for epoch, value in values.items()}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        value, epoch = result.get(self._judged_by), int(result.get("epoch", 0))
        if not _is_searched(trial) or value is None or not math.isfinite(value):
            return TrialScheduler.CONTINUE
        name = _run(trial).name
        mine = self._values.setdefault(name, {})
        if epoch in mine:  # decided before the search was resumed
            return TrialScheduler.CONTINUE
        mine[epoch] = self._sign * value
        others = [
            self._mean(each, epoch) for other, each in self._values.items() if other != name and max(each) >= epoch
        ]
        means = [mean for mean in others if mean is not None]
        if epoch < self._grace or len(means) < self._least or max(mine.values()) >= statistics.median(means):
            return TrialScheduler.CONTINUE
        return TrialScheduler.STOP

    def _mean(self, values: dict[int, float], epoch: int) -> float | None:
        known = [value for at, value in values.items() if self._grace <= at <= epoch]
        return statistics.fmean(known) if known else None


def _run(trial: Trial) -> Run:
    run = trial.config["run"]
    assert isinstance(run, Run)
    return run


def _is_searched(trial: Trial) -> bool:
    return _run(trial).stage == SEARCH


class ByLength(FIFOScheduler):
    """A scheduler for the trials of each code length, as ``made`` for it: they are compared among themselves."""

    def __init__(self, made: Callable[[int], TrialScheduler | None]) -> None:
        super().__init__()
        self._made = made
        self._schedulers: dict[int, TrialScheduler] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its scheduler down to restore it; a resumed search makes its own anew."""
        return {}

    def _of(self, trial: Trial) -> TrialScheduler:
        bits = _run(trial).settings.trial.bits
        if bits not in self._schedulers:
            self._schedulers[bits] = self._made(bits) or FIFOScheduler()
        return self._schedulers[bits]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if _is_searched(trial):
            self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not _is_searched(trial):
            return TrialScheduler.CONTINUE
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if _is_searched(trial):
            self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        if _is_searched(trial):
            self._of(trial).on_trial_remove(tune_controller, trial)


def scheduler_of(settings: SearchSettings, study: optuna.Study, suffix: str = "") -> Asha | MedianStopping | None:
    """The search's scheduler; None where it has none, or could not stop a trial before its last epoch.

    ``suffix`` is in the names of the study's trials.
    """
    chosen, epochs = settings.scheduler, max(settings.drawn("epochs"))
    scheduler: Asha | MedianStopping
    metric, mode = settings.objective.metric, settings.objective.mode
    halving = chosen.hyperband or chosen.asha
    if halving is not None and halving.grace_epochs < epochs:
        scheduler = Asha(
            settings.seed,
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=epochs,
            grace_period=halving.grace_epochs,
            reduction_factor=halving.reduction,
            brackets=chosen.hyperband.brackets if chosen.hyperband else 1,
        )
    elif chosen.median_stopping is not None:
        scheduler = MedianStopping(metric, mode, chosen.median_stopping.grace_epochs, chosen.median_stopping.min_trials)
    else:
        return None
    for trial in study.get_trials(deepcopy=False):
        values = reported_by(trial)
        if values and EARLIER not in trial.user_attrs:
            scheduler.replay(trial_name(trial.number, suffix), values)
    return scheduler
