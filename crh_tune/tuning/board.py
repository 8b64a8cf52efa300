"""How a search stands: what has ended, what is under way, and how long the rest takes.

Leaderboard and live view show it.

Everything is counted from outcomes, which are on disk: a search that is resumed stands as it stood.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crh_tune.settings.search import SearchSettings
from crh_tune.tuning import race
from crh_tune.tuning.lengths import contest
from crh_tune.tuning.record import CLOCK_FILE, COMPLETE, FAILED, PRUNED, Outcome, epochs_of
from crh_tune.tuning.results import SearchResult
from crh_tune.tuning.run import CONFIRM, SEARCH, TEST

_CONFIRMING = re.compile(r"confirm-(.+)-seed\d+")
PAPER = "paper"
"""The name of the paper's setting where no trial ran it."""


def stage_of(outcome: Outcome) -> str:
    """The stage whose run has, or had, this outcome."""
    if outcome.name.startswith("final-") or "test/map" in outcome.metrics:
        return TEST
    return CONFIRM if _CONFIRMING.fullmatch(outcome.name) else SEARCH


def trial_of(name: str) -> dict[str, str]:
    """The tag of a confirming run that names the trial whose setting it runs; none of others."""
    match = _CONFIRMING.fullmatch(name)
    return {"crh_tune.trial": match[1]} if match else {}


@dataclass(frozen=True)
class Confirmed:
    """A finalist, or the paper's setting, with its values on fresh seeds so far."""

    trial: str
    settings: dict[str, Any]
    values: list[float]
    is_paper: bool

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; 0 of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass
class Board:
    """A search as it stands.

    Attributes:
        planned: how many trials it is to have; ``at_once``: how many run at one time.
        classes: of the dataset.
        outcomes: of the runs that have ended, by name; ``running``: of those under way, with what they reached.
        untrained: the value on validation queries of what needs no training, by name, where that is known already.
        result: what it found, once it has ended.
    """

    settings: SearchSettings
    folder: Path
    planned: int
    classes: int
    at_once: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    running: dict[str, Outcome] = field(default_factory=dict)
    untrained: Mapping[str, float] = field(default_factory=dict)
    result: SearchResult | None = None
    _begun: dict[str, float] = field(default_factory=dict)
    _rates: dict[str, float] = field(default_factory=dict)
    """Seconds an epoch of each run that this process has seen report."""

    def start(self, outcome: Outcome) -> None:
        """A run is under way."""
        self.running[outcome.name] = outcome
        self._begun[outcome.name] = time.monotonic()

    def end(self, outcome: Outcome) -> None:
        """A run has ended."""
        self.running.pop(outcome.name, None)
        self.outcomes[outcome.name] = outcome

    def report(self, outcome: Outcome) -> None:
        """A run under way has reached an epoch."""
        epochs = outcome.metrics.get("epoch", 0.0)
        if epochs and outcome.name in self._begun:
            self._rates[outcome.name] = (time.monotonic() - self._begun[outcome.name]) / epochs

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def metric(self) -> str:
        return self.settings.objective.metric

    @property
    def sign(self) -> int:
        return 1 if self.settings.objective.mode == "max" else -1

    @property
    def stage(self) -> str:
        """The latest stage that has a run under way, or else one that has ended: trials can be added to a search."""
        there = {stage_of(outcome) for outcome in self.running.values() or self.outcomes.values()}
        return next((stage for stage in (TEST, CONFIRM) if stage in there), SEARCH)

    @property
    def trials(self) -> list[Outcome]:
        """The trials that have ended, without confirmation and test runs."""
        return [outcome for outcome in self.outcomes.values() if stage_of(outcome) == SEARCH]

    @property
    def rivals(self) -> Mapping[str, Outcome]:
        """The trials that finalists are taken from, by name: all, or those of one code length."""
        return contest(self.settings, {outcome.name: outcome for outcome in self.trials})[1]

    @property
    def complete(self) -> list[Outcome]:
        """The trials that came to their end, those that finalists are taken from before others, best first."""
        ended = [each for each in self.trials if each.status == COMPLETE and self.metric in each.metrics]
        rivals = self.rivals
        return sorted(
            ended, key=lambda each: (each.name not in rivals, -self.sign * each.metrics[self.metric], each.name)
        )

    def count(self, status: str) -> int:
        """How many trials have ended so."""
        return sum(outcome.status == status for outcome in self.trials)

    @property
    def paper_trial(self) -> Outcome | None:
        """The trial that ran the paper's setting."""
        return next((outcome for outcome in self.rivals.values() if outcome.start == PAPER), None)

    @property
    def confirmed(self) -> list[Confirmed]:
        """The settings that have values on fresh seeds, best mean first."""
        values: dict[str, list[float]] = {}
        settings: dict[str, dict[str, Any]] = {}
        for outcome in self.outcomes.values():
            match = _CONFIRMING.fullmatch(outcome.name)
            if match and outcome.status == COMPLETE and self.metric in outcome.metrics:
                values.setdefault(match[1], []).append(outcome.metrics[self.metric])
                settings[match[1]] = outcome.settings
        ran = self.paper_trial
        paper = ran.name if ran else PAPER  # and behind it the code length, where there are several
        found = [Confirmed(name, settings[name], each, name.startswith(paper)) for name, each in values.items()]
        return sorted(found, key=lambda each: (-self.sign * each.mean, each.trial))

    @property
    def tested(self) -> dict[str, float]:
        """The test mAP of ``winner`` and ``paper``, where they were tested."""
        if self.result is not None:
            found = {"winner": self.result.best_test, "paper": self.result.paper_test}
            return {who: each.metrics["test/map"] for who, each in found.items()}
        names = {"winner": "final-best", "paper": "final-paper"}
        found = {who: self.outcomes[name] for who, name in names.items() if name in self.outcomes}
        return {who: each.metrics["test/map"] for who, each in found.items() if "test/map" in each.metrics}

    @property
    def winner(self) -> str | None:
        """The trial that has won; None before the confirmation is over."""
        if self.result is not None:
            return self.result.best.trial
        if not self.confirmed or self.stage != TEST:
            return None
        longest = max(len(each.values) for each in self.confirmed)  # others have dropped out
        return next(each.trial for each in self.confirmed if len(each.values) == longest)

    @property
    def baselines(self) -> list[tuple[str, float, float | None]]:
        """What needs no training: name, value on validation queries, and test mAP once the test is over."""
        if self.result is not None:
            return [(each.name, each.validation, each.test) for each in self.result.baselines]
        return [(name, value, None) for name, value in self.untrained.items()]

    @property
    def epochs(self) -> int:
        """How many epochs a whole run takes."""
        return max(self.settings.drawn("epochs"))

    @property
    def rungs(self) -> list[int]:
        """The epochs after which weak trials are stopped; empty where none are."""
        return self.settings.scheduler.rungs(self.epochs)

    def rung_of(self, outcome: Outcome) -> int:
        """How many rungs a trial has come past; 0 of a run that no scheduler stops."""
        reached = outcome.metrics.get("epoch", 0)
        return sum(reached >= rung for rung in self.rungs) if stage_of(outcome) == SEARCH else 0

    @property
    def runs_left(self) -> tuple[int, int, int]:
        """How many trials are left to begin or to end, and how many confirmation and test runs, at least and at most.

        A race may be decided after two seeds, where there is more than one.
        """
        ended = Counter(stage_of(outcome) for outcome in self.outcomes.values())
        tests, confirm = max(2 - ended[TEST], 0), self.settings.confirm
        if self.stage == TEST:
            return 0, tests, tests
        most = race.most_runs(confirm.top, confirm.seeds)
        least = min(confirm.top + 1 + 2 * (confirm.seeds > 1), most)
        few, many = (max(count - ended[CONFIRM], 0) + tests for count in (least, most))
        return max(self.planned - len(self.trials), 0) if self.stage == SEARCH else 0, few, many

    def seconds_left(self) -> tuple[float, float] | None:
        """How long the rest takes, from and to, judged by the runs so far; None before one has reported.

        From: trials are stopped as early as so far, and the race is short. To: all run to their end. Trials take no
        more than what is left of the budget's hours and epochs.
        """
        if not self._rates:
            return None
        trials, few, many = self.runs_left
        usual = statistics.fmean([each.metrics.get("epoch", 0.0) for each in self.trials]) if self.trials else 0.0
        longest = float(min(self.settings.scheduler.until or self.epochs, self.epochs))
        least = usual or float(self.rungs[0] if self.rungs else longest)
        done = Counter[bool]()
        for each in self.running.values():
            done[stage_of(each) == SEARCH] += int(each.metrics.get("epoch", 0))
        whole = self.settings.confirm.epochs or self.epochs
        found = []
        for epochs, runs, share in ((least, few, 0.25), (longest, many, 0.75)):
            search = self._within_budget(trials * epochs - done[True], share)
            fixed = max(runs * whole - done[False], 0.0) * self._rate(share, search=False) / self.at_once
            found.append(search + fixed)
        return min(found), max(found)

    def _within_budget(self, epochs: float, share: float) -> float:
        """How many seconds the trials take for so many more epochs, or for what is left of the budget."""
        budget, clock = self.settings.budget, self.folder / CLOCK_FILE
        if budget.epochs is not None:
            epochs = min(epochs, budget.epochs - epochs_of([*self.trials, *self.running.values()]))
        seconds = max(epochs, 0.0) * self._rate(share, search=True) / self.at_once
        if budget.hours is not None:
            used = float(clock.read_text()) if clock.exists() else 0.0
            seconds = min(seconds, max(budget.hours * 3600 - used, 0.0))
        return seconds

    def _rate(self, share: float, search: bool) -> float:
        """Seconds an epoch that this share of runs stay below: of trials, or of runs after them once there are any."""
        rates = [rate for name, rate in self._rates.items() if (stage_of(Outcome(name, {})) == SEARCH) == search]
        return float(np.quantile(rates or list(self._rates.values()), share))


def spoken(seconds: float) -> str:
    """A time as one says it: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def left_line(board: Board) -> str:
    """How long the rest takes, as a range; empty before that can be said."""
    left = board.seconds_left()
    if left is None or board.result is not None:
        return ""
    low, high = map(spoken, left)
    return f"about {low} left" if low == high else f"{low} to {high} left"


def counts(board: Board) -> str:
    """How much of the budget is used, in words."""
    ended = {"stopped early": board.count(PRUNED), "failed": board.count(FAILED)}
    said = ", ".join(f"{number} {how}" for how, number in ended.items() if number)
    trials = f"{len(board.trials)} of {board.planned} trials"
    hours, epochs = board.settings.budget.hours, board.settings.budget.epochs
    used = f", {epochs_of(board.trials)} of {epochs} epochs" if epochs else ""
    return trials + (f" ({said})" if said else "") + used + (f", within {hours:g} hours" if hours else "")


def ranked(board: Board) -> Iterator[tuple[Outcome | Confirmed, Mapping[str, float]]]:
    """What stands on the leaderboard, best first, with ``single``, ``mean``, ``std`` and ``test`` where known."""
    single = {each.name: each.metrics[board.metric] for each in board.complete}
    shown = set()
    confirmed = board.confirmed
    if board.winner is not None:
        confirmed.sort(key=lambda each: (each.trial != board.winner, -len(each.values)))  # others have dropped out
    for each in confirmed:
        shown.add(each.trial)
        values = {"mean": each.mean, "std": each.std, "seeds": float(len(each.values))}
        if each.trial in single:
            values["single"] = single[each.trial]
        if each.trial == board.winner and "winner" in board.tested:
            values["test"] = board.tested["winner"]
        elif each.is_paper and "paper" in board.tested:
            values["test"] = board.tested["paper"]
        yield each, values
    for outcome in board.complete:
        if outcome.name not in shown:
            yield outcome, {"single": outcome.metrics[board.metric]}
