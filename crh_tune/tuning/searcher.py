"""What Optuna proposes. Every trial's life is in Optuna's storage, so that a study can be resumed.

Ray's own OptunaSearch records a trial that a scheduler stopped as complete with the value it had got to, which misleads
the sampler, and leaves one that ends in NaN running for ever. Here a stopped trial is pruned with its intermediate
values, and one without a usable result has failed. The study is told of results and ends once they are on disk.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from crh_tune.errors import counted
from crh_tune.settings.base import SettingsError, validated
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.tuning.front import values_of
from crh_tune.tuning.lengths import next_length, of_length, reaching, studies_of
from crh_tune.tuning.optuna_private import taken_up
from crh_tune.tuning.progress import Say
from crh_tune.tuning.proposals import START, enqueue_drawn, every_setting, propose, same
from crh_tune.tuning.record import COMPLETE, PRUNED, STUDY_FILE, Outcome
from crh_tune.tuning.run import SEARCH, Run

SETTINGS = "settings"
"""User attribute: the resolved settings of the trial, as plain values."""
METRICS = "metrics"
"""User attribute: the metrics of the trial's last evaluation, for Optuna's pages."""
VALUES = "values"
"""User attribute of a trial with two objectives: the first one by epoch, which Optuna keeps of a single one only."""

_TRIES = 20
"""How often the sampler may propose what was tried before something new is drawn at random."""


def trial_name(number: int, suffix: str = "") -> str:
    """The name of an Optuna trial in Ray Tune, MLflow and on disk; ``suffix`` tells the studies of a search apart."""
    return f"trial{suffix}-{number:04d}"


def reported_by(trial: FrozenTrial) -> dict[int, float]:
    """What a trial has reported of the first objective, by epoch."""
    kept = trial.user_attrs.get(VALUES, {})
    return trial.intermediate_values or {int(epoch): value for epoch, value in kept.items()}


def begun_trials(folder: Path, settings: SearchSettings) -> list[tuple[str, FrozenTrial]]:
    """All of Optuna's trials in a search's folder with their names, in the order they were begun."""
    storage, found = f"sqlite:///{folder / STUDY_FILE}", list[tuple[str, FrozenTrial]]()
    there = optuna.get_all_study_names(storage)
    for suffix in studies_of(settings):
        if f"{folder.name}{suffix}" in there:
            study = optuna.load_study(study_name=f"{folder.name}{suffix}", storage=storage)
            found += [(trial_name(trial.number, suffix), trial) for trial in study.get_trials(deepcopy=False)]
    begun = [(name, trial) for name, trial in found if trial.datetime_start is not None]
    return sorted(begun, key=lambda each: each[1].datetime_start or datetime.min)


class OptunaSearcher:
    """Hands out the study's trials that are still running, then asks it for new ones until the budget is spent.

    All trials have one seed, so a setting that was tried is not tried again: a proposal of it is told to the study as
    failed, which its sampler does not look at. Where all settings of the space have been tried, the search is over.
    ``fingerprint`` is that of the search split, which the trials see; ``suffix`` is in the names of its trials.
    """

    def __init__(
        self,
        study: optuna.Study,
        settings: SearchSettings,
        classes: int,
        multi_label: bool,
        budget: int,
        fingerprint: str = "",
        suffix: str = "",
    ) -> None:
        self.study, self._settings, self._classes, self._multi_label = study, settings, classes, multi_label
        self._suffix = suffix
        self._metric, self._fingerprint = settings.objective.metric, fingerprint
        begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        self._again = [taken_up(study, t) for t in begun if t.state == TrialState.RUNNING]
        self._reported = {(self._name(t.number), epoch) for t in begun for epoch in reported_by(t)}
        """What the study was told: to ask it takes longer than to tell it."""
        tried = [t.user_attrs[SETTINGS] for t in begun if SETTINGS in t.user_attrs]
        self._tried = {same(content) for content in tried}
        self._all = every_setting(settings, classes, multi_label)
        self.total = min(budget, len(self._all)) if self._all is not None else budget
        """How many trials the search has in all."""
        unsettled = sum(SETTINGS not in t.user_attrs for t in begun if t.state == TrialState.RUNNING)
        self._left = self.total - len(tried) - unsettled
        self._running = {self._name(trial.number): trial for trial in self._again}

    def _name(self, number: int) -> str:
        return trial_name(number, self._suffix)

    def begin(self, outcomes: Mapping[str, Outcome]) -> None:
        """Take in how trials had ended before the search was resumed."""
        for outcome in outcomes.values():
            self.tell(outcome)

    @property
    def has_work(self) -> bool:
        """Whether a trial is left to run."""
        return bool(self._again) or self._left > 0

    @property
    def over(self) -> bool:
        """Whether no trial is left to run, and none is under way."""
        return not self.has_work and not self._running

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
        name, start = self._name(trial.number), trial.user_attrs.get(START, "drawn")
        self._running[name] = trial
        settings = validated(TrialSettings, content, f"{name} was begun by another version: begin a new search")
        until = self._settings.scheduler.until
        return Run(name, settings, "search", self._fingerprint, SEARCH, start, until=until)

    def stop(self) -> None:
        """Propose no new setting any more, only trials that were begun and have not ended."""
        self._left = 0
        for trial in [each for each in self._again if SETTINGS not in each.user_attrs]:
            self._again.remove(trial)
            self.study.tell(self._running.pop(self._name(trial.number)), state=TrialState.FAIL)

    def _new_setting(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A trial with a setting that was not tried yet, as the sampler proposes it or else any; None without one."""
        if self._again:
            trial = self._again.pop(0)
        else:
            self._left -= 1
            trial = self.study.ask()
        for repeats in range(2 * _TRIES):
            content = self._draw(trial)
            if same(content) not in self._tried:
                self._tried.add(same(content))
                trial.set_user_attr(SETTINGS, content)
                return trial, content
            self._running.pop(self._name(trial.number), None)
            self.study.tell(trial, state=TrialState.FAIL)
            if repeats >= _TRIES and not self._enqueue_any():
                return None
            trial = self.study.ask()
        self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _enqueue_any(self) -> bool:
        """Put a setting drawn at random in the study's queue, of those not tried where all are known; False without."""
        chance = random.Random(f"{self._settings.seed} {len(self.study.get_trials(deepcopy=False))}")
        if self._all is not None:
            untried = [values for key, values in self._all.items() if key not in self._tried]
            values = chance.choice(untried) if untried else None
        else:
            sampler = optuna.samplers.RandomSampler(seed=chance.randrange(2**32))
            values = propose(optuna.create_study(sampler=sampler).ask(), self._settings, self._classes)
        if values is not None:
            enqueue_drawn(self.study, self._settings, values, self._classes)
        return values is not None

    def _draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw a trial's settings; what it has drawn before stays as it was."""
        values = propose(trial, self._settings, self._classes)
        settings = self._settings.trial_settings(values, values.get("seed", self._settings.seed))
        try:
            settings = settings.resolve(self._classes, self._multi_label)
        except SettingsError as error:
            self.study.tell(trial, state=TrialState.FAIL)
            raise SettingsError(f"trial {trial.number} with {values}: {error}") from None
        return settings.model_dump(mode="json")

    def report(self, name: str, metrics: dict[str, float]) -> None:
        """Keep a running trial's intermediate value, under its epoch, once."""
        trial, value, epoch = self._running.get(name), metrics.get(self._metric), int(metrics["epoch"])
        if trial is None or value is None or not math.isfinite(value) or (name, epoch) in self._reported:
            return
        if self._settings.objective.also is None:
            trial.report(value, epoch)
        else:
            trial.set_user_attr(VALUES, {**trial.user_attrs.get(VALUES, {}), str(epoch): value})
        self._reported.add((name, epoch))

    def tell(self, outcome: Outcome) -> None:
        """Tell the study how a trial ended, unless it knows: complete with a value, pruned, or failed."""
        trial = self._running.pop(outcome.name, None)
        if trial is None:
            return
        self._again = [other for other in self._again if other is not trial]
        values = values_of(self._settings, outcome)
        if outcome.metrics:
            trial.set_user_attr(METRICS, outcome.metrics)
        if outcome.status == COMPLETE and all(map(math.isfinite, values)):
            self.study.tell(trial, values)
        elif outcome.status == PRUNED and math.isfinite(values[0]):
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)


class LengthSearcher:
    """Hands out trials of one code length after another, until the smallest that reaches the target is known.

    Each length has a study of its own, which ``opened`` opens as its turn comes. A length is left once a trial of it
    has the target, for a shorter one, or once its share of the trials has ended without, for a longer one.
    """

    def __init__(self, settings: SearchSettings, opened: Callable[[int], OptunaSearcher], say: Say) -> None:
        self._settings, self._opened, self._say = settings, opened, say
        self._searchers: dict[int, OptunaSearcher] = {}
        self._ended: dict[str, Outcome] = {}
        self._stopped = False
        first = next_length(settings.lengths, {})
        assert first is not None
        self._open(first)

    def study_at(self, bits: int) -> optuna.Study:
        """The study of a length whose turn has come."""
        return self._searchers[bits].study

    def begin(self, outcomes: Mapping[str, Outcome]) -> None:
        """Take in how trials had ended before the search was resumed."""
        self._ended = dict(outcomes)
        for bits, searcher in self._searchers.items():
            searcher.begin(of_length(outcomes, bits))
        self._advance()

    @property
    def has_work(self) -> bool:
        """Whether a trial is left to run, as far as is known before those under way have ended."""
        return any(searcher.has_work for searcher in self._searchers.values())

    @property
    def total(self) -> int:
        """How many trials the search has in all: at most, before the smallest length is known."""
        enough = self._enough()
        decided = len(enough) == len(self._searchers) and not self._stopped
        if decided and next_length(self._settings.lengths, enough) is None:
            return len(self._ended)
        return self._settings.most_lengths * next(iter(self._searchers.values())).total

    def propose(self) -> Run | None:
        """The next trial; None where the next length depends on trials under way, and once all is known.

        Raises SettingsError where one that was begun has settings that this version does not know.
        """
        while True:
            for searcher in self._searchers.values():
                run = searcher.propose()
                if run is not None:
                    return run
            if not self._advance():
                return None

    def stop(self) -> None:
        """Propose no new setting any more, only trials that were begun and have not ended."""
        self._stopped = True
        for searcher in self._searchers.values():
            searcher.stop()

    def report(self, name: str, metrics: dict[str, float]) -> None:
        """Keep a running trial's intermediate value, under its epoch, once."""
        for searcher in self._searchers.values():
            searcher.report(name, metrics)

    def tell(self, outcome: Outcome) -> None:
        """Tell its study how a trial ended, and go on to the next length where that decides about one."""
        self._ended[outcome.name] = outcome
        for searcher in self._searchers.values():
            searcher.tell(outcome)
        self._advance()

    def _advance(self) -> bool:
        """Leave the lengths that are decided, and open those whose turn has come; whether there were any."""
        opened = False
        while True:
            enough = self._enough()
            for bits, reached in enough.items():
                if reached:
                    self._searchers[bits].stop()
            following = next_length(self._settings.lengths, enough)
            if following is None or following in self._searchers or self._stopped:
                return opened
            self._open(following)
            opened = True

    def _enough(self) -> dict[int, bool]:
        """Of the lengths whose turn has come, and that are decided: whether they were enough."""
        found = {}
        for bits, searcher in self._searchers.items():
            reached = reaching(self._settings, of_length(self._ended, bits).values()) is not None
            if reached or searcher.over:
                found[bits] = reached
        return found

    def _open(self, bits: int) -> None:
        searcher = self._opened(bits)
        searcher.begin(of_length(self._ended, bits))
        if searcher.has_work:
            among = ", ".join(map(str, self._settings.lengths))
            self._say(f"code length {bits} of {among}: up to {counted(searcher.total, 'trial')}")
        self._searchers[bits] = searcher
