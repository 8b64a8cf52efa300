"""Optuna as a Ray Tune searcher. Every trial's life is in Optuna's storage, so that a study can be gone on with.

Ray's own OptunaSearch records a trial that a scheduler stopped as complete with the value it had got to, which misleads
the sampler, and leaves one that ends in NaN running for ever. Here a stopped trial is pruned with its intermediate
values, and one without a usable result has failed. The search's own events tell the study of results and ends
(``runs.RunEvents``): after they are on disk, which Tune's calls of a searcher would not wait for.
"""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.searcher import Searcher

from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.optuna_private import has_reported, taken_up
from crh_tune.tuning.proposals import START, enqueue_drawn, every_setting, propose, same
from crh_tune.tuning.record import COMPLETE, PRUNED, Outcome

SETTINGS = "settings"
"""User attribute: the resolved settings of the trial, as plain values."""
METRICS = "metrics"
"""User attribute: the metrics of the trial's last evaluation."""

_TRIES = 20
"""How often the sampler may propose what was tried before something new is drawn at random."""


def trial_name(number: int) -> str:
    """The name of an Optuna trial in Ray Tune, MLflow and on disk."""
    return f"trial-{number:04d}"


class OptunaSearcher(Searcher):
    """Hands out the study's trials that are still running, then asks it for new ones until the budget is spent.

    All trials have one seed, so a setting that was tried is not tried again: a proposal of it is told to the study as
    failed, which its sampler does not look at. Where all settings of the space have been tried, the search is over.
    """

    def __init__(
        self, study: optuna.Study, settings: SearchSettings, classes: int, multi_label: bool, budget: int
    ) -> None:
        super().__init__(metric=settings.objective.metric, mode=settings.objective.mode)
        self._study, self._settings, self._classes, self._multi_label = study, settings, classes, multi_label
        begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        self._again = [taken_up(study, t) for t in begun if t.state == TrialState.RUNNING]
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

    def suggest(self, trial_id: str) -> Any:
        """The next trial as ``{"run": {name, settings, stage, start}}``; "FINISHED" once the budget is spent."""
        if not self.has_work:
            return Searcher.FINISHED
        if self._again and SETTINGS in self._again[0].user_attrs:
            trial = self._again.pop(0)
            content = trial.user_attrs[SETTINGS]
        else:
            new = self._new_setting()
            if new is None:
                self._left = 0
                return Searcher.FINISHED
            trial, content = new
        self._running[trial_name(trial.number)] = trial
        start = trial.user_attrs.get(START, "drawn")
        return {"run": {"name": trial_name(trial.number), "settings": content, "stage": "search", "start": start}}

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
        trial, value, epoch = self._running.get(name), metrics.get(self.metric), int(metrics["epoch"])
        if trial is None or value is None or not math.isfinite(value):
            return
        if not has_reported(self._study, trial, epoch):
            trial.report(value, epoch)

    def tell(self, outcome: Outcome) -> None:
        """Tell the study how a trial ended, unless it knows: complete with a value, pruned, or failed."""
        trial = self._running.pop(outcome.name, None)
        if trial is None:
            return
        self._again = [other for other in self._again if other is not trial]
        value = outcome.metrics.get(str(self.metric))
        if outcome.metrics:
            trial.set_user_attr(METRICS, outcome.metrics)
        if outcome.status not in (COMPLETE, PRUNED) or value is None or not math.isfinite(value):
            self._study.tell(trial, state=TrialState.FAIL)
        elif outcome.status == COMPLETE:
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)

    def unfinished(self) -> list[Outcome]:
        """The trials that were handed out, now or before the search was resumed, and have not ended."""
        attributes = {name: trial.user_attrs for name, trial in self._running.items()}
        return [Outcome(n, of[SETTINGS], of.get(START, "drawn")) for n, of in attributes.items() if SETTINGS in of]

    def give_up(self) -> None:
        """Tell the study that the trials which were handed out and have not ended never will."""
        for trial in self._running.values():
            self._study.tell(trial, state=TrialState.FAIL)
        self._running.clear()
        self._again.clear()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's own call, before anything is on disk: nothing to do."""

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
