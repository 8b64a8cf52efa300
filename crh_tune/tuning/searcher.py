"""Optuna as a Ray Tune searcher. Every trial's life is in Optuna's storage, and nowhere else.

Ray's own OptunaSearch records a trial that a scheduler stopped as complete with the value it had got to, which misleads
the sampler, and leaves one that ends in NaN running for ever. Here a stopped trial is pruned with its intermediate
values, and one without a usable result has failed.
"""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.searcher import Searcher

from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.proposals import START, propose

SETTINGS = "settings"
"""User attribute: the resolved settings of the trial, as plain values."""
METRICS = "metrics"
"""User attribute: the metrics of the trial's last evaluation."""


def trial_name(number: int) -> str:
    """The name of an Optuna trial in Ray Tune, MLflow and on disk."""
    return f"trial-{number:04d}"


class OptunaSearcher(Searcher):
    """Asks the study for trials until its budget is spent, and tells it how each one ended."""

    def __init__(
        self, study: optuna.Study, settings: SearchSettings, classes: int, multi_label: bool, budget: int
    ) -> None:
        super().__init__(metric=settings.objective.metric, mode=settings.objective.mode)
        self._study, self._settings, self._classes, self._multi_label = study, settings, classes, multi_label
        self._left = budget
        self._running: dict[str, optuna.Trial] = {}
        self._reported: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial as ``{"run": {name, settings, start}}``; "FINISHED" once the budget is spent."""
        if self._left == 0:
            return Searcher.FINISHED
        self._left -= 1
        trial = self._study.ask()
        values = propose(trial, self._settings, self._classes)
        settings = self._settings.trial_settings(values, values.get("seed", self._settings.seed))
        try:
            settings = settings.resolve(self._classes, self._multi_label)
        except SettingsError as error:
            self._study.tell(trial, state=TrialState.FAIL)
            raise SettingsError(f"trial {trial.number} with {values}: {error}") from None
        content = settings.model_dump(mode="json")
        trial.set_user_attr(SETTINGS, content)
        self._running[trial_id] = trial
        start = trial.user_attrs.get(START, "drawn")
        return {"run": {"name": trial_name(trial.number), "settings": content, "stage": "search", "start": start}}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep an intermediate value, under its epoch, once."""
        trial, value = self._running.get(trial_id), result.get(self.metric)
        if trial is None or value is None or not math.isfinite(value):
            return
        epoch = int(result["epoch"])
        if self._reported.get(trial_id) != epoch:
            self._reported[trial_id] = epoch
            trial.report(value, epoch)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study: complete with a value, pruned before its last epoch, or failed.

        Tune hands a trial's last result to this method only.
        """
        if result is not None:
            self.on_trial_result(trial_id, result)
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        value = (result or {}).get(self.metric)
        if error or result is None or value is None or not math.isfinite(value):
            self._study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr(METRICS, plain_metrics(result))
        if result.get("final"):
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its searcher down to restore it; this one is made anew from the study."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study's storage holds it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study's storage holds it all."""


def plain_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The trial's own metrics out of a Tune result: those of a name with a slash, and the epoch."""
    return {
        name: float(value)
        for name, value in result.items()
        if ("/" in name and not name.startswith("config/") and isinstance(value, int | float)) or name == "epoch"
    }
