"""What Optuna proposes. Every trial's life is in Optuna's storage, so that a study can be resumed.

Ray's own OptunaSearch records a trial that a scheduler stopped as complete with the value it had got to, which misleads
the sampler, and leaves one that ends in NaN running for ever. Here a stopped trial is pruned with its intermediate
values, and one without a usable result has failed. The study is told of results and ends once they are on disk.
"""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
from optuna.trial import TrialState

from crh_tune.settings.base import SettingsError, validated
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.tuning.optuna_private import taken_up
from crh_tune.tuning.proposals import START, enqueue_drawn, every_setting, propose, same
from crh_tune.tuning.record import COMPLETE, PRUNED, Outcome
from crh_tune.tuning.run import SEARCH, Run

SETTINGS = "settings"
"""User attribute: the resolved settings of the trial, as plain values."""
METRICS = "metrics"
"""User attribute: the metrics of the trial's last evaluation."""

_TRIES = 20
"""How often the sampler may propose what was tried before something new is drawn at random."""


def trial_name(number: int) -> str:
    """The name of an Optuna trial in Ray Tune, MLflow and on disk."""
    return f"trial-{number:04d}"


class OptunaSearcher:
    """Hands out the study's trials that are still running, then asks it for new ones until the budget is spent.

    All trials have one seed, so a setting that was tried is not tried again: a proposal of it is told to the study as
    failed, which its sampler does not look at. Where all settings of the space have been tried, the search is over.
    ``fingerprint`` is that of the search split, which the trials see.
    """

    def __init__(
        self,
        study: optuna.Study,
        settings: SearchSettings,
        classes: int,
        multi_label: bool,
        budget: int,
        fingerprint: str = "",
    ) -> None:
        self._study, self._settings, self._classes, self._multi_label = study, settings, classes, multi_label
        self._metric, self._fingerprint = settings.objective.metric, fingerprint
        begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        self._again = [taken_up(study, t) for t in begun if t.state == TrialState.RUNNING]
        self._reported = {(trial_name(t.number), epoch) for t in begun for epoch in t.intermediate_values}
        """What the study was told: to ask it takes longer than to tell it."""
        tried = [t.user_attrs[SETTINGS] for t in begun if SETTINGS in t.user_attrs]
        self._tried = {same(content) for content in tried}
        self._all = every_setting(settings, classes, multi_label)
        self.total = min(budget, len(self._all)) if self._all is not None else budget
        """How many trials the search has in all."""
        unsettled = sum(SETTINGS not in t.user_attrs for t in begun if t.state == TrialState.RUNNING)
        self._left = self.total - len(tried) - unsettled
        self._running = {trial_name(trial.number): trial for trial in self._again}

    @property
    def has_work(self) -> bool:
        """Whether a trial is left to run."""
        return bool(self._again) or self._left > 0

    def propose(self) -> Run | None:
        """The next trial; None once the budget is spent.

        Raises SettingsError where one that was begun has settings that this version does not know.
        """
        if not self.has_work:
            return None
        if self._again and SETTINGS in self._again[0].user_attrs:
            trial = self._again.pop(0)
            content = trial.user_attrs[SETTINGS]
        else:
            new = self._new_setting()
            if new is None:
                self._left = 0
                return None
            trial, content = new
        name, start = trial_name(trial.number), trial.user_attrs.get(START, "drawn")
        self._running[name] = trial
        settings = validated(TrialSettings, content, f"{name} was begun by another version: begin a new search")
        return Run(name, settings, "search", self._fingerprint, SEARCH, start)

    def stop(self) -> None:
        """Propose no new setting any more, only trials that were begun and have not ended."""
        self._left = 0
        for trial in [each for each in self._again if SETTINGS not in each.user_attrs]:
            self._again.remove(trial)
            self._study.tell(self._running.pop(trial_name(trial.number)), state=TrialState.FAIL)

    def _new_setting(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A trial with a setting that was not tried yet, as the sampler proposes it or else any; None without one."""
        if self._again:
            trial = self._again.pop(0)
        else:
            self._left -= 1
            trial = self._study.ask()
        for repeats in range(2 * _TRIES):
            content = self._draw(trial)
            if same(content) not in self._tried:
                self._tried.add(same(content))
                trial.set_user_attr(SETTINGS, content)
                return trial, content
            self._running.pop(trial_name(trial.number), None)
            self._study.tell(trial, state=TrialState.FAIL)
            if repeats >= _TRIES and not self._enqueue_any():
                return None
            trial = self._study.ask()
        self._study.tell(trial, state=TrialState.FAIL)
        return None

    def _enqueue_any(self) -> bool:
        """Put a setting drawn at random in the study's queue, of those not tried where all are known; False without."""
        chance = random.Random(f"{self._settings.seed} {len(self._study.get_trials(deepcopy=False))}")
        if self._all is not None:
            untried = [values for key, values in self._all.items() if key not in self._tried]
            values = chance.choice(untried) if untried else None
        else:
            sampler = optuna.samplers.RandomSampler(seed=chance.randrange(2**32))
            values = propose(optuna.create_study(sampler=sampler).ask(), self._settings, self._classes)
        if values is not None:
            enqueue_drawn(self._study, self._settings, values, self._classes)
        return values is not None

    def _draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw a trial's settings; what it has drawn before stays as it was."""
        values = propose(trial, self._settings, self._classes)
        settings = self._settings.trial_settings(values, values.get("seed", self._settings.seed))
        try:
            settings = settings.resolve(self._classes, self._multi_label)
        except SettingsError as error:
            self._study.tell(trial, state=TrialState.FAIL)
            raise SettingsError(f"trial {trial.number} with {values}: {error}") from None
        return settings.model_dump(mode="json")

    def report(self, name: str, metrics: dict[str, float]) -> None:
        """Keep a running trial's intermediate value, under its epoch, once."""
        trial, value, epoch = self._running.get(name), metrics.get(self._metric), int(metrics["epoch"])
        if trial is None or value is None or not math.isfinite(value) or (name, epoch) in self._reported:
            return
        trial.report(value, epoch)
        self._reported.add((name, epoch))

    def tell(self, outcome: Outcome) -> None:
        """Tell the study how a trial ended, unless it knows: complete with a value, pruned, or failed."""
        trial = self._running.pop(outcome.name, None)
        if trial is None:
            return
        self._again = [other for other in self._again if other is not trial]
        value = outcome.metrics.get(self._metric)
        if outcome.metrics:
            trial.set_user_attr(METRICS, outcome.metrics)
        if outcome.status not in (COMPLETE, PRUNED) or value is None or not math.isfinite(value):
            self._study.tell(trial, state=TrialState.FAIL)
        elif outcome.status == COMPLETE:
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
