"""Ray Tune runs of a search: its trials, and the fixed runs that confirm and test them, with what happens to each."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from crh_tune.data.splits import Stage
from crh_tune.data.store.cache import cache_root
from crh_tune.settings.search import BudgetSettings, SearchSettings, drawn
from crh_tune.settings.trial import ScalingSettings, TrialSettings, write_trial
from crh_tune.training.checkpoints import CENTERS_FILE, newest
from crh_tune.training.loop import PREPARED
from crh_tune.tuning.cluster import check_it_fits, has, needs
from crh_tune.tuning.groups import free_groups
from crh_tune.tuning.memory import survive_out_of_memory
from crh_tune.tuning.ray_private import fill_rungs, rename_in_rungs
from crh_tune.tuning.record import COMPLETE, FAILED, PRUNED, Outcome, read_outcomes, write_outcome
from crh_tune.tuning.searcher import OptunaSearcher, plain_metrics, trial_name
from crh_tune.tuning.stopping import Clock, Stop
from crh_tune.tuning.tracking import Tracker, flat
from crh_tune.tuning.trial import ERROR, RESTARTS, RUNS_FOLDER, run_trial

SETTINGS_FOLDER = "settings"
OUT_OF_TIME = "stopped by budget.hours"
"""The error of a run that was stopped when the search's hours were over."""
_FREE_SECONDS, _GONE_SECONDS = 1.0, 10.0
"""How often worker groups that have lost their controller are looked for; how long the last ones have to lose it."""
HOPELESS_TRIALS = 5
"""A search stops when this many trials have ended and every one of them failed."""
os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a run that fails reports its error in place of metrics


@dataclass(frozen=True)
class Place:
    """Where the runs of a search live: its id, folder, aggregator and the tracker."""

    search_id: str
    folder: Path
    aggregator: str
    tracker: Tracker
    splits: dict[Stage, str]
    """The fingerprint of the split of each stage."""
    stop: Stop = field(default_factory=Stop)

    def key(self, name: str) -> str:
        """The MLflow key of a run of this search."""
        return f"{self.search_id}/{name}"


class RunEvents(tune.Callback):
    """Keeps how every run ends, tells MLflow and Optuna, and says when one has ended.

    ``outcomes`` starts with those of the runs that had ended before. A run is ended by writing its outcome; what
    follows changes nothing when it is done twice, and is done again for outcomes that were there before.
    """

    def __init__(
        self,
        place: Place,
        budget: BudgetSettings,
        said: Callable[[Outcome], None],
        searcher: OptunaSearcher | None,
        in_groups: bool,
    ) -> None:
        self._place, self._said, self._searcher = place, said, searcher
        self._hang_seconds = budget.hang_minutes * 60
        self._in_groups, self._freed = in_groups, 0.0
        self._ended: list[str] = []
        self._alive: dict[str, float] = {}
        self._reached: dict[str, tuple[int, int]] = {}
        self._hung: set[str] = set()
        self.outcomes = read_outcomes(place.folder)
        for outcome in self.outcomes.values():
            self._make_known(outcome)

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down to restore them; these are made anew by a resumed search."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        run = trial.config["run"]
        key = self._place.key(run["name"])
        self._alive[run["name"]] = time.monotonic()
        self.outcomes[run["name"]] = Outcome(run["name"], run["settings"], run["start"])
        tags = {"crh_tune.stage": run["stage"], "crh_tune.start": run["start"], **run.get("tags", {})}
        self._place.tracker.start_run(key, run["name"], self._place.search_id, tags)
        split = self._place.splits[run["stage"]]
        self._place.tracker.params(key, {**flat(run["settings"]), "stage": run["stage"], "split": split})

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        outcome = self.outcomes[trial.config["run"]["name"]]
        self._alive[outcome.name] = time.monotonic()
        if ERROR in result:
            outcome.status, outcome.error = FAILED, str(result[ERROR])
            return
        reached = (int(result["epoch"]), int(result.get(PREPARED, 0)))
        if reached > self._reached.get(outcome.name, (0, 0)):  # it makes progress: it may be started again as often
            self._reached[outcome.name] = reached
            trial.max_failures = trial.num_failures + RESTARTS
        if PREPARED in result:
            return
        outcome.metrics = plain_metrics(result)
        outcome.status = COMPLETE if result.get("final") else PRUNED
        epoch = int(outcome.metrics["epoch"])
        finite = {name: value for name, value in outcome.metrics.items() if math.isfinite(value) and name != "epoch"}
        self._place.tracker.metrics(self._place.key(outcome.name), finite, epoch)
        if self._searcher:
            self._searcher.report(outcome.name, outcome.metrics)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(self.outcomes[trial.config["run"]["name"]])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._place.stop.interrupted:
            return  # its process was ended, to be gone on with
        if trial.config["run"]["name"] not in self._alive:  # it never got as far as to start
            self.on_trial_start(iteration, trials, trial)
        outcome = self.outcomes[trial.config["run"]["name"]]
        outcome.status = FAILED
        outcome.error = f"its process died {trial.num_failures} times, the last time: {_reason(trial)}"
        if outcome.name in self._hung:
            outcome.error = f"no progress for {self._hang_seconds / 60:g} minutes"
        self._end(outcome)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End the process of a run that makes no progress, and of every run once the search is interrupted."""
        now = time.monotonic()
        if self._in_groups and now - self._freed > _FREE_SECONDS:
            self._freed = now
            free_groups()
        for trial in trials:
            if trial.status != Trial.RUNNING or trial.temporary_state.ray_actor is None:
                continue
            name = trial.config["run"]["name"]
            hangs = now - self._alive[name] > self._hang_seconds and name not in self._hung
            if hangs or self._place.stop.interrupted:
                self._hung |= {name} if hangs else set()
                trial.max_failures = 0  # not to be started again
                ray.kill(trial.temporary_state.ray_actor)

    def close(self) -> None:
        """End the runs that Tune has stopped without a word: by the budget for good, otherwise to be gone on with.

        Waits until nothing of worker groups is left: their controllers die soon after Tune has ended their trials.
        """
        for_good = self._place.stop.out_of_time and not self._place.stop.interrupted
        for outcome in self.outcomes.values():
            if outcome.name in self._alive and outcome.name not in self._ended:
                if for_good:
                    outcome.status, outcome.error = outcome.status or FAILED, OUT_OF_TIME
                    self._end(outcome)
                else:
                    self._place.tracker.end_run(self._place.key(outcome.name), "KILLED")
        if for_good and self._searcher:
            for outcome in self._searcher.unfinished():  # those that a process before this one had begun
                if self._place.tracker.is_open(self._place.key(outcome.name)):
                    outcome.status, outcome.error = FAILED, OUT_OF_TIME
                    self._end(outcome)
            self._searcher.give_up()
        deadline = time.monotonic() + _GONE_SECONDS
        while self._in_groups and free_groups() and time.monotonic() < deadline:
            time.sleep(_FREE_SECONDS)

    def _end(self, outcome: Outcome) -> None:
        checkpoint = newest(self._place.folder / RUNS_FOLDER / outcome.name)
        outcome.checkpoint = str(checkpoint) if checkpoint else None
        outcome.status = outcome.status or FAILED
        write_outcome(self._place.folder, outcome)
        self._make_known(outcome)
        self._said(outcome)
        self._ended.append(outcome.name)
        ended = [other for name, other in self.outcomes.items() if name in self._ended or name not in self._alive]
        if self._searcher and len(self._ended) >= HOPELESS_TRIALS and all(each.status == FAILED for each in ended):
            self._place.stop.hopeless = f"all of {len(ended)} trials failed, the last one: {outcome.error}"

    def _make_known(self, outcome: Outcome) -> None:
        """Tell MLflow and Optuna of a run that has ended, where they do not know."""
        key, tracker = self._place.key(outcome.name), self._place.tracker
        if not tracker.has_ended(key):
            self._keep_artifacts(key, outcome)
            tags = {"crh_tune.outcome": outcome.status}
            if outcome.error:
                tags["crh_tune.error"] = outcome.error
            tracker.tags(key, tags)
            tracker.end_run(key, "FAILED" if outcome.status == FAILED else "FINISHED")
        if self._searcher:
            self._searcher.tell(outcome)

    def _keep_artifacts(self, key: str, outcome: Outcome) -> None:
        folder = self._place.folder / SETTINGS_FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / f"{outcome.name}.yaml"
        write_trial(TrialSettings.model_validate(outcome.settings), path)
        self._place.tracker.artifact(key, path)
        if outcome.checkpoint:
            self._place.tracker.artifact(key, Path(outcome.checkpoint) / CENTERS_FILE)


def _reason(trial: Trial) -> str:
    """The last line of what went wrong, from the file Tune has just written on this machine."""
    path = Path(trial.error_file or "")
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []
    return lines[-1] if lines else "without a word"


def run_trials(
    place: Place,
    scaling: ScalingSettings,
    budget: BudgetSettings,
    said: Callable[[Outcome], None],
    *,
    searcher: OptunaSearcher | None = None,
    fixed: Sequence[dict[str, Any]] = (),
    scheduler: TrialScheduler | None = None,
    clock: Clock | None = None,
) -> dict[str, Outcome]:
    """Run what a searcher proposes, weak trials stopped by the scheduler, or a fixed list of runs to their end.

    Returns the outcomes of all runs of the place, those that had ended before among them. A fixed run that is complete
    is not run again. Raises Interrupted.
    """
    events = RunEvents(place, budget, said, searcher, in_groups=scaling.workers_per_trial > 1)
    known = events.outcomes
    fixed = [run for run in fixed if run["name"] not in known or known[run["name"]].status != COMPLETE]
    if not (searcher.has_work if searcher else fixed):
        return events.outcomes
    (place.folder / RUNS_FOLDER).mkdir(exist_ok=True)
    common = {
        "splits": place.splits,
        "aggregator": place.aggregator,
        "storage": str(place.folder),
        "cache": str(cache_root()),
    }
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, common=common), trial_resources(scaling)),
        param_space={} if searcher else {"run": tune.grid_search(fixed)},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler or FIFOScheduler(),
            num_samples=-1 if searcher else 1,
            max_concurrent_trials=concurrency(scaling, budget),
            reuse_actors=scaling.workers_per_trial == 1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(place.folder),
            callbacks=[events],
            stop=place.stop,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the events above say what happened
    survive_out_of_memory()
    with place.stop.while_running(clock):
        try:
            tuner.fit()
        finally:
            events.close()
    return events.outcomes


def _trial_name(trial: Trial) -> str:
    return str(trial.config["run"]["name"])


class Asha(AsyncHyperBandScheduler):
    """Tune's ASHA, whose rungs are filled again from what trials of a resumed search had reported before."""

    def replay(self, name: str, values: dict[int, float]) -> None:
        """Take a trial's intermediate values, by epoch, into the rungs."""
        fill_rungs(self, name, values)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Give a trial that goes on the places it has in the rungs, so that it is not counted twice."""
        super().on_trial_add(tune_controller, trial)
        rename_in_rungs(self, _trial_name(trial), trial.trial_id)


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


def trial_resources(scaling: ScalingSettings) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial: its worker's share, or one byte where a worker group reserves its own.

    Tune wants something reserved; a fraction of a CPU would keep a group from getting the machine's last one.
    """
    if scaling.workers_per_trial > 1:
        return tune.PlacementGroupFactory([{"memory": 1}])
    return tune.PlacementGroupFactory([{"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus_per_worker}])


def concurrency(scaling: ScalingSettings, budget: BudgetSettings) -> int:
    """How many trials at once: as set, or as many as the cluster has (or can scale up to) CPUs and GPUs for.

    Raises SettingsError when not even one fits.
    """
    check_it_fits(scaling)
    if budget.concurrent != "auto":
        return int(budget.concurrent)
    return max(1, int(min(has(kind) / amount for kind, amount in needs(scaling).items() if amount)))
