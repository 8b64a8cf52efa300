"""The stages of a search. Each proposes runs, is told how they ended, and knows when it is done.

They know neither Ray nor MLflow: ``crh_tune.tuning.engine`` drives them, one after the other. A search that is resumed
makes them anew, and tells each the outcomes that are on disk.
"""

from __future__ import annotations

import itertools
import statistics
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

from crh_tune.errors import SearchFailed, counted
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.tuning import race
from crh_tune.tuning.lengths import contest, ended_by, suffix_of
from crh_tune.tuning.progress import Progress, Say
from crh_tune.tuning.proposals import paper_values, same
from crh_tune.tuning.record import COMPLETE, FAILED, Outcome, epochs_of, trials_of
from crh_tune.tuning.results import Candidate
from crh_tune.tuning.run import CONFIRM, TEST, Run
from crh_tune.tuning.searcher import LengthSearcher, OptunaSearcher
from crh_tune.tuning.stopping import Clock

HOPELESS_TRIALS = 5
"""A search stops when this many trials have ended and every one of them failed."""


class Stage(ABC):
    """What the engine asks of a stage. Any method may raise SearchFailed, which ends the search."""

    outcomes: dict[str, Outcome]
    """How the runs of the stage have ended, by name."""

    @abstractmethod
    def begin(self, outcomes: Mapping[str, Outcome]) -> None:
        """Take in how runs had ended before the search was resumed; called once the stage before is done."""

    @abstractmethod
    def propose(self) -> Run | None:
        """The next run; None where the stage waits for outcomes, or is done."""

    @abstractmethod
    def told(self, outcome: Outcome) -> None:
        """A run has ended, and that is on disk."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether nothing is left to propose or to wait for."""

    def reported(self, outcome: Outcome) -> None:  # noqa: B027 - most stages do not want it
        """An outcome that is still to come has new metrics."""

    @property
    def out_of_time(self) -> bool:
        """Whether the runs under way are to be ended, and those proposed not to begin."""
        return False


class SearchStage(Stage):
    """Trials that Optuna proposes, until the budget of trials, hours or epochs is spent."""

    def __init__(
        self, settings: SearchSettings, searcher: OptunaSearcher | LengthSearcher, say: Say, clock: Clock | None
    ) -> None:
        self._settings, self._searcher, self._say, self._clock = settings, searcher, say, clock
        self._under_way: dict[str, Outcome | None] = {}
        """What those under way have reported last."""
        self._ended = 0
        self.outcomes: dict[str, Outcome] = {}

    def begin(self, outcomes: Mapping[str, Outcome]) -> None:
        self.outcomes = trials_of(outcomes)
        self._searcher.begin(self.outcomes)
        objective, before = self._settings.objective, list(self.outcomes.values())
        self._progress = Progress(
            self._say, self._searcher.total, objective.metric, objective.mode, before, self._settings.search
        )

    def propose(self) -> Run | None:
        if self._searcher.has_work and (self.out_of_time or self._out_of_epochs() or self._target_reached()):
            self._searcher.stop()
        run = self._searcher.propose()
        if run is not None:
            self._under_way[run.name] = None
        return run

    def _out_of_epochs(self) -> bool:
        most = self._settings.budget.epochs
        return (
            most is not None and epochs_of([*self.outcomes.values(), *filter(None, self._under_way.values())]) >= most
        )

    def _target_reached(self) -> bool:
        return ended_by(self._settings, self.outcomes.values()) is not None

    def reported(self, outcome: Outcome) -> None:
        self._under_way[outcome.name] = outcome
        self._searcher.report(outcome.name, outcome.metrics)

    def told(self, outcome: Outcome) -> None:
        """Raises SearchFailed where all trials fail."""
        self.outcomes[outcome.name] = outcome
        self._under_way.pop(outcome.name, None)
        self._ended += 1
        self._searcher.tell(outcome)
        self._progress(outcome)
        ended = self.outcomes.values()
        if self._ended >= HOPELESS_TRIALS and all(each.status == FAILED for each in ended):
            raise SearchFailed(f"all of {len(ended)} trials failed, the last one: {outcome.error}")

    @property
    def out_of_time(self) -> bool:
        return self._clock is not None and self._clock.over()

    @property
    def done(self) -> bool:
        return not self._searcher.has_work and not self._under_way


class FixedRuns(Stage):
    """Runs that are known from the start. One that was complete is not run again; one that had failed is."""

    def __init__(
        self,
        runs: Sequence[Run],
        say: Say,
        metric: str = "test/map",
        mode: str = "max",
        searched: Collection[str] = (),
    ) -> None:
        self._runs, self._say, self._progress_of = runs, say, (metric, mode, searched)

    def planned(self) -> Sequence[Run]:
        """The runs of the stage; asked once, as it begins."""
        return self._runs

    def begin(self, outcomes: Mapping[str, Outcome]) -> None:
        runs = self.planned()
        known = [outcomes[run.name] for run in runs if run.name in outcomes]
        self.outcomes = {outcome.name: outcome for outcome in known if outcome.status == COMPLETE}
        self._left = [run for run in runs if run.name not in self.outcomes]
        self._total = len(runs)
        metric, mode, searched = self._progress_of
        self._progress = Progress(self._say, len(runs), metric, mode, list(self.outcomes.values()), searched)

    def propose(self) -> Run | None:
        return self._left.pop(0) if self._left else None

    def told(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        self._progress(outcome)

    @property
    def done(self) -> bool:
        return len(self.outcomes) == self._total


class ConfirmStage(Stage):
    """A race of the finalists of a search, and the paper's setting: fresh seeds, one after another, for those in it.

    After each seed finalists drop out (:func:`race.stay`). It ends once the last one is clearly better or worse than
    the paper's setting, or all seeds have run. What it decides follows from the outcomes alone, so that a resumed race
    is the same race. ``fingerprint`` is that of the split they see; ``classes`` and ``multi_label`` say what it is of.
    """

    def __init__(
        self, settings: SearchSettings, search: SearchStage, classes: int, multi_label: bool, fingerprint: str, say: Say
    ) -> None:
        self._settings, self._search, self._fingerprint, self._say = settings, search, fingerprint, say
        self._classes, self._multi_label = classes, multi_label
        self._metric, self._sign = settings.objective.metric, 1 if settings.objective.mode == "max" else -1
        self._left: list[Run] = []

    def begin(self, outcomes: Mapping[str, Outcome]) -> None:
        """Raises SearchFailed where the search has no finalist, SettingsError where another version ran it."""
        settings, most = self._settings, self._settings.confirm.seeds
        finalists, paper = finalists_of(settings, self._search.outcomes, self._classes, self._multi_label)
        finalists = [outcome for outcome in finalists if _but_for_the_seed(outcome) != _but_for_the_seed(paper)]
        self._chosen = {outcome.name: outcome for outcome in [*finalists, paper]}
        self._confirmed = {name: self._as_confirmed(outcome) for name, outcome in self._chosen.items()}
        self._paper, self._racing, self._finalists = paper.name, list(self._chosen), len(finalists)
        self._known = {name: outcome for name, outcome in outcomes.items() if outcome.status == COMPLETE}
        self.outcomes, self._seeds_run = {}, 0
        whole = ", all layers trained" * (settings.confirm.freeze is False)
        self._say(f"confirming {counted(len(self._chosen), 'setting')} with up to {most} fresh seeds each{whole}")
        before = [outcome for name, outcome in self._known.items() if name.startswith("confirm-")]
        total = race.most_runs(len(finalists), most)
        self._progress = Progress(self._say, total, self._metric, settings.objective.mode, before, settings.search)
        self._begin_round()

    def _as_confirmed(self, outcome: Outcome) -> TrialSettings:
        """What is run of what was tried."""
        return self._settings.confirmed(outcome.trial_settings, self._classes, self._multi_label)

    def propose(self) -> Run | None:
        return self._left.pop(0) if self._left else None

    def told(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        self._progress(outcome)
        if all(name in self.outcomes for name in self._round):
            self._end_round()

    @property
    def done(self) -> bool:
        return self._over

    def _begin_round(self) -> None:
        """Run those still in the race with the next seed; what a search that was resumed knows is not run again."""
        seed, self._over = self._settings.seed + 1 + self._seeds_run, False
        self._round = [_name(self._chosen[name], seed) for name in self._racing]
        before = {name: self._known[name] for name in self._round if name in self._known}
        self.outcomes |= before
        self._left = [
            Run(name, _with_seed(self._confirmed[of], seed), "search", self._fingerprint, CONFIRM)
            for name, of in zip(self._round, self._racing, strict=True)
            if name not in before
        ]
        if not self._left:
            self._end_round()

    def _end_round(self) -> None:
        """Let finalists drop out, and begin the next seed unless the race is over."""
        self._seeds_run += 1
        values, seeds = self._values(), self._settings.confirm.seeds
        most = race.places(self._finalists, self._seeds_run, seeds)
        left = race.stay({name: values[name] for name in self._racing}, self._paper, most, self._sign)
        for name in self._racing:
            if name not in (*left, self._paper):
                self._say(f"{name} {self._why_out(name, values[name])}")
        self._racing = [*left, self._paper]
        self._over = self._seeds_run == seeds or self._decided(values)
        if not self._over:
            self._begin_round()

    def _why_out(self, name: str, values: Sequence[float]) -> str:
        if not values:
            return f"is left out, it could not be confirmed: {self._first_error(name)}"
        mean = statistics.fmean(values)
        return f"drops out of the race: {mean:.4f} on average over {counted(len(values), 'fresh seed')}"

    def _decided(self, values: race.Values) -> bool:
        """Whether no finalist is left, or one that is clearly better than the paper's setting."""
        finalists = self._racing[:-1]
        if len(finalists) != 1 or not values[self._paper]:
            return not finalists and self._finalists > 0
        return race.clear(race.gain(values, finalists[0], self._paper), self._sign)

    def _values(self) -> dict[str, list[float]]:
        """What each setting has had, seed by seed; failed runs have nothing."""
        seeds = [self._settings.seed + 1 + n for n in range(self._seeds_run)]
        runs = {
            name: [self.outcomes[run] for seed in seeds if (run := _name(outcome, seed)) in self.outcomes]
            for name, outcome in self._chosen.items()
        }
        return {
            name: [run.metrics[self._metric] for run in mine if run.status == COMPLETE and self._metric in run.metrics]
            for name, mine in runs.items()
        }

    def _first_error(self, name: str) -> str:
        return self.outcomes[_name(self._chosen[name], self._settings.seed + 1)].error

    def candidates(self) -> list[Candidate]:
        """The settings that stayed to the end with their values, the paper's last.

        Raises SearchFailed where all runs of the paper's setting failed, which everything is compared with.
        """
        found, values = [], self._values()
        if not values[self._paper]:
            raise SearchFailed(f"the paper's setting could not be confirmed: {self._first_error(self._paper)}")
        for name in self._racing:
            frozen = self._chosen[name].metrics.get(self._metric) if self._settings.confirm.freeze is False else None
            found.append(Candidate(name, self._confirmed[name].model_dump(mode="json"), values[name], frozen))
        return found

    def gain(self, best: Candidate) -> race.Gain:
        """What the winner has over the paper's setting in the mean; the noise is that of all runs of the race."""
        return race.gain(self._values(), best.trial, self._paper)


class TestStage(FixedRuns):
    """The winner, and the paper's setting to compare, trained on all training samples, evaluated on the test set once.

    ``best`` and ``paper`` are the candidates that are tested, once the stage has begun.
    """

    __test__ = False  # no test of pytest's
    best: Candidate
    paper: Candidate

    def __init__(self, settings: SearchSettings, confirm: ConfirmStage, fingerprint: str, say: Say) -> None:
        super().__init__((), say, searched=settings.search)
        self._settings, self._confirm, self._fingerprint = settings, confirm, fingerprint

    def begin(self, outcomes: Mapping[str, Outcome]) -> None:
        """What was tested before, of a search that trials were added to, is not tested again; it keeps its name.

        Raises SearchFailed where the paper's setting could not be confirmed.
        """
        self._recorded = outcomes
        super().begin(outcomes)

    def planned(self) -> Sequence[Run]:
        candidates, sign = self._confirm.candidates(), 1 if self._settings.objective.mode == "max" else -1
        self.best, self.paper = max(candidates, key=lambda candidate: sign * candidate.mean), candidates[-1]
        self._say("retraining on all training samples, then evaluating on the test set once")
        runs = {
            candidate.trial: self._run_of(candidate, name)
            for candidate, name in ((self.best, "final-best"), (self.paper, "final-paper"))
        }
        self._names = runs[self.best.trial].name, runs[self.paper.trial].name
        return list(runs.values())

    def _run_of(self, candidate: Candidate, name: str) -> Run:
        """The test of a candidate under this name, or name-2, ..., where another setting was tested under it."""
        resolved = _with_seed(TrialSettings.model_validate(candidate.settings), self._settings.seed)
        tested = {each: outcome for each, outcome in self._recorded.items() if each.startswith("final-")}
        names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        same_setting = [each for each in tested if tested[each].trial_settings == resolved]
        free = next(each for each in names if each not in tested)
        return Run(same_setting[0] if same_setting else free, resolved, "final", self._fingerprint, TEST)

    def told(self, outcome: Outcome) -> None:
        """Raises SearchFailed where the run did not come to its end."""
        super().told(outcome)
        if outcome.status != COMPLETE:
            raise SearchFailed(f"{outcome.name} did not come to its end: {outcome.error}")

    def tested(self) -> tuple[Outcome, Outcome]:
        """The outcomes of the winner and of the paper's setting, which may be the same."""
        best, paper = self._names
        return self.outcomes[best], self.outcomes[paper]


def finalists_of(
    settings: SearchSettings, outcomes: Mapping[str, Outcome], classes: int, multi_label: bool
) -> tuple[list[Outcome], Outcome]:
    """The best complete trials, best first, and the paper's as the run it was, or would be.

    Those that differ in the seed alone are one setting, of which the best stands.
    Raises SearchFailed when no trial is complete and has the metric.
    """
    among, outcomes = contest(settings, outcomes)
    metric, sign = settings.objective.metric, 1 if settings.objective.mode == "max" else -1
    complete = [each for each in outcomes.values() if each.status == COMPLETE and metric in each.metrics]
    if not complete:
        reasons = {outcome.error for outcome in outcomes.values() if outcome.error}
        reasons |= {f"no {metric}" for outcome in outcomes.values() if outcome.status == COMPLETE}
        raise SearchFailed(
            f"none of {len(outcomes)} trials came to its end: {'; '.join(sorted(reasons)[:3]) or 'no time'}"
        )
    complete.sort(key=lambda outcome: (-sign * outcome.metrics[metric], outcome.name))
    paper = next((outcome for outcome in outcomes.values() if outcome.start == "paper"), None)
    if paper is None:
        values = paper_values(among, classes, multi_label)
        resolved = among.trial_settings(values, settings.seed).resolve(classes, multi_label)
        paper = Outcome(f"paper{suffix_of(settings, among.trial.bits)}", resolved.model_dump(mode="json"), "paper")
    different: dict[str, Outcome] = {}
    for outcome in complete:
        different.setdefault(_but_for_the_seed(outcome), outcome)
    return list(different.values())[: settings.confirm.top], paper


def _but_for_the_seed(outcome: Outcome) -> str:
    """What outcomes have in common that ran with the same settings, since all finalists are given the same seeds."""
    return same({**outcome.settings, "trial": {**outcome.settings["trial"], "seed": None}})


def _name(outcome: Outcome, seed: int) -> str:
    return f"confirm-{outcome.name}-seed{seed}"


def _with_seed(settings: TrialSettings, seed: int) -> TrialSettings:
    return settings.model_copy(update={"trial": settings.trial.model_copy(update={"seed": seed})})
