"""The stages of a search. Each proposes runs, is told how they ended, and knows when it is done.

They know neither Ray nor MLflow: ``crh_tune.tuning.engine`` drives them, one after the other. A search that is resumed
makes them anew, and tells each the outcomes that are on disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from crh_tune.errors import SearchFailed
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.tuning.progress import Progress, Say
from crh_tune.tuning.proposals import paper_values, same
from crh_tune.tuning.record import COMPLETE, FAILED, Outcome
from crh_tune.tuning.results import Candidate
from crh_tune.tuning.run import CONFIRM, TEST, Run
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.stopping import Clock

HOPELESS_TRIALS = 5
"""A search stops when this many trials have ended and every one of them failed."""


class Stage:
    """What the engine asks of a stage. Any method may raise SearchFailed, which ends the search."""

    outcomes: dict[str, Outcome]
    """How the runs of the stage have ended, by name."""

    def begin(self, outcomes: Mapping[str, Outcome]) -> None:
        """Take in how runs had ended before the search was resumed; called once the stage before is done."""
        raise NotImplementedError

    def propose(self) -> Run | None:
        """The next run; None where the stage waits for outcomes, or is done."""
        raise NotImplementedError

    def told(self, outcome: Outcome) -> None:
        """A run has ended, and that is on disk."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether nothing is left to propose or to wait for."""
        raise NotImplementedError

    def reported(self, outcome: Outcome) -> None:
        """An outcome that is still to come has new metrics."""

    @property
    def out_of_time(self) -> bool:
        """Whether the runs under way are to be ended, and those proposed not to begin."""
        return False


class SearchStage(Stage):
    """Trials that Optuna proposes, until the budget of trials or hours is spent."""

    def __init__(self, settings: SearchSettings, searcher: OptunaSearcher, say: Say, clock: Clock | None) -> None:
        self._settings, self._searcher, self._say, self._clock = settings, searcher, say, clock
        self._under_way: set[str] = set()
        self._ended = 0
        self.outcomes: dict[str, Outcome] = {}

    def begin(self, outcomes: Mapping[str, Outcome]) -> None:
        self.outcomes = {name: outcome for name, outcome in outcomes.items() if outcome.start != "fixed"}
        for outcome in self.outcomes.values():
            self._searcher.tell(outcome)
        objective, before = self._settings.objective, list(self.outcomes.values())
        self._progress = Progress(
            self._say, self._searcher.total, objective.metric, objective.mode, before, self._settings.search
        )

    def propose(self) -> Run | None:
        if self._searcher.has_work and self.out_of_time:
            self._searcher.stop()
        run = self._searcher.propose()
        if run is not None:
            self._under_way.add(run.name)
        return run

    def reported(self, outcome: Outcome) -> None:
        self._searcher.report(outcome.name, outcome.metrics)

    def told(self, outcome: Outcome) -> None:
        """Raises SearchFailed where all trials fail."""
        self.outcomes[outcome.name] = outcome
        self._under_way.discard(outcome.name)
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


class ConfirmStage(FixedRuns):
    """The finalists of a search, and last the paper's setting, each with fresh seeds.

    ``fingerprint`` is that of the split they see; ``classes`` and ``multi_label`` say what it is of.
    """

    def __init__(
        self, settings: SearchSettings, search: SearchStage, classes: int, multi_label: bool, fingerprint: str, say: Say
    ) -> None:
        super().__init__((), say, settings.objective.metric, settings.objective.mode, settings.search)
        self._settings, self._search, self._fingerprint = settings, search, fingerprint
        self._classes, self._multi_label = classes, multi_label
        self._seeds = [settings.seed + 1 + n for n in range(settings.confirm.seeds)]

    def planned(self) -> Sequence[Run]:
        """Raises SearchFailed where the search has no finalist."""
        trials = self._search.outcomes
        finalists, paper = finalists_of(self._settings, trials, self._classes, self._multi_label)
        self._chosen = [outcome for outcome in finalists if outcome.settings != paper.settings] + [paper]
        self._confirmed = {outcome.name: self._as_confirmed(outcome) for outcome in self._chosen}
        whole = ", all layers trained" * (self._settings.confirm.freeze is False)
        self._say(f"confirming {len(self._chosen)} settings with {len(self._seeds)} fresh seeds each{whole}")
        return [
            Run(_name(outcome, seed), _with_seed(settings, seed), "search", self._fingerprint, CONFIRM)
            for outcome, settings in zip(self._chosen, self._confirmed.values(), strict=True)
            for seed in self._seeds
        ]

    def _as_confirmed(self, outcome: Outcome) -> TrialSettings:
        """What is run of what was tried."""
        tried = TrialSettings.model_validate(outcome.settings)
        return self._settings.confirmed(tried, self._classes, self._multi_label)

    def candidates(self) -> list[Candidate]:
        """The settings with their values, the paper's last; a finalist of which all runs failed is left out.

        Raises SearchFailed where all runs of the paper's setting failed, which everything is compared with.
        """
        found, metric = [], self._settings.objective.metric
        for outcome in self._chosen:
            mine = [self.outcomes[_name(outcome, seed)] for seed in self._seeds]
            values = [run.metrics[metric] for run in mine if run.status == COMPLETE and metric in run.metrics]
            if not values and outcome is self._chosen[-1]:
                raise SearchFailed(f"the paper's setting could not be confirmed: {mine[0].error}")
            if not values:
                self._say(f"{outcome.name} is left out, it could not be confirmed: {mine[0].error}")
                continue
            frozen = outcome.metrics.get(metric) if self._settings.confirm.freeze is False else None
            settings = self._confirmed[outcome.name].model_dump(mode="json")
            found.append(Candidate(outcome.name, settings, values, frozen))
        return found


class TestStage(FixedRuns):
    """The winner, and the paper's setting to compare, trained on all training samples; the test queries are asked once.

    ``best`` and ``paper`` are the candidates that are tested, once the stage has begun.
    """

    __test__ = False  # no test of pytest's
    best: Candidate
    paper: Candidate

    def __init__(self, settings: SearchSettings, confirm: ConfirmStage, fingerprint: str, say: Say) -> None:
        super().__init__((), say, searched=settings.search)
        self._settings, self._confirm, self._fingerprint = settings, confirm, fingerprint

    def planned(self) -> Sequence[Run]:
        """Raises SearchFailed where the paper's setting could not be confirmed."""
        candidates, sign = self._confirm.candidates(), 1 if self._settings.objective.mode == "max" else -1
        self.best, self.paper = max(candidates, key=lambda candidate: sign * candidate.mean), candidates[-1]
        self._say("retraining on all training samples, and asking the test queries once")
        tested = {"final-best": self.best, **({} if self.paper is self.best else {"final-paper": self.paper})}
        resolved = {name: TrialSettings.model_validate(candidate.settings) for name, candidate in tested.items()}
        seed, seen = self._settings.seed, self._fingerprint
        return [Run(name, _with_seed(of, seed), "final", seen, TEST) for name, of in resolved.items()]

    def told(self, outcome: Outcome) -> None:
        """Raises SearchFailed where the run did not come to its end."""
        super().told(outcome)
        if outcome.status != COMPLETE:
            raise SearchFailed(f"{outcome.name} did not come to its end: {outcome.error}")

    def tested(self) -> tuple[Outcome, Outcome]:
        """The outcomes of the winner and of the paper's setting, which may be the same."""
        best = self.outcomes["final-best"]
        return best, self.outcomes.get("final-paper", best)


def finalists_of(
    settings: SearchSettings, outcomes: Mapping[str, Outcome], classes: int, multi_label: bool
) -> tuple[list[Outcome], Outcome]:
    """The best complete trials, best first, each setting once, and the paper's as the run it was, or would be.

    Raises SearchFailed when no trial is complete and has the metric.
    """
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
        values = paper_values(settings, classes, multi_label)
        resolved = settings.trial_settings(values, settings.seed).resolve(classes, multi_label)
        paper = Outcome("paper", resolved.model_dump(mode="json"), "paper")
    different: dict[str, Outcome] = {}
    for outcome in complete:
        different.setdefault(same(outcome.settings), outcome)
    return list(different.values())[: settings.confirm.top], paper


def _name(outcome: Outcome, seed: int) -> str:
    return f"confirm-{outcome.name}-seed{seed}"


def _with_seed(settings: TrialSettings, seed: int) -> TrialSettings:
    return settings.model_copy(update={"trial": settings.trial.model_copy(update={"seed": seed})})
