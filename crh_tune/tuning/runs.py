"""Ray Tune runs of a search: its trials, and the fixed runs that confirm and test them, with what happens to each."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.searcher import Searcher

from crh_tune.data.splits import Stage
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import BudgetSettings, SearchSettings
from crh_tune.settings.trial import ScalingSettings, TrialSettings, write_trial
from crh_tune.training.checkpoints import CENTERS_FILE
from crh_tune.tuning.searcher import plain_metrics
from crh_tune.tuning.tracking import Tracker, flat
from crh_tune.tuning.trial import run_trial

RUNS_FOLDER, SETTINGS_FOLDER = "runs", "settings"
COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"


@dataclass
class Outcome:
    """How one run ended: ``status`` is complete, pruned or failed; ``checkpoint`` is where its last one is."""

    name: str
    settings: dict[str, Any]
    start: str = ""
    status: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    error: str = ""


@dataclass(frozen=True)
class Place:
    """Where the runs of a search live: its id, folder, aggregator and the tracker."""

    search_id: str
    folder: Path
    aggregator: str
    tracker: Tracker
    splits: dict[Stage, str]
    """The fingerprint of the split of each stage."""

    def key(self, name: str) -> str:
        """The MLflow key of a run of this search."""
        return f"{self.search_id}/{name}"


class RunEvents(tune.Callback):
    """Logs every run to MLflow, keeps its outcome, and says when one has ended."""

    def __init__(self, place: Place, said: Callable[[Outcome], None]) -> None:
        self._place, self._said = place, said
        self.outcomes: dict[str, Outcome] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down to restore them; these are made anew by a resumed search."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        run = trial.config["run"]
        key = self._place.key(run["name"])
        self.outcomes[run["name"]] = Outcome(run["name"], run["settings"], run["start"])
        tags = {"crh_tune.stage": run["stage"], "crh_tune.start": run["start"], **run.get("tags", {})}
        self._place.tracker.start_run(key, run["name"], self._place.search_id, tags)
        split = self._place.splits[run["stage"]]
        self._place.tracker.params(key, {**flat(run["settings"]), "stage": run["stage"], "split": split})

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        run = trial.config["run"]
        metrics = plain_metrics(result)
        self.outcomes[run["name"]].metrics = metrics
        self.outcomes[run["name"]].checkpoint = result.get(CHECKPOINT_PATH_KEY)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value) and name != "epoch"}
        self._place.tracker.metrics(self._place.key(run["name"]), finite, int(metrics["epoch"]))
        self.outcomes[run["name"]].status = COMPLETE if result.get("final") else PRUNED

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended(trial, "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        outcome = self.outcomes[trial.config["run"]["name"]]
        outcome.status, outcome.error = FAILED, _reason(trial)
        self._ended(trial, "FAILED")

    def _ended(self, trial: Trial, status: str) -> None:
        outcome = self.outcomes[trial.config["run"]["name"]]
        key = self._place.key(outcome.name)
        if trial.checkpoint:
            outcome.checkpoint = str(trial.checkpoint.path)
        outcome.status = outcome.status or FAILED
        self._keep_artifacts(key, outcome)
        tags = {"crh_tune.outcome": outcome.status}
        if outcome.error:
            tags["crh_tune.error"] = outcome.error
        self._place.tracker.tags(key, tags)
        self._place.tracker.end_run(key, status)
        self._said(outcome)

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
    return lines[-1] if lines else "the trial's process ended without a word"


def run_trials(
    place: Place,
    scaling: ScalingSettings,
    budget: BudgetSettings,
    said: Callable[[Outcome], None],
    *,
    searcher: Searcher | None = None,
    fixed: Sequence[dict[str, Any]] = (),
    scheduler: TrialScheduler | None = None,
    seconds: float | None = None,
) -> dict[str, Outcome]:
    """Run what a searcher proposes, weak trials stopped by the scheduler, or a fixed list of runs to their end."""
    events = RunEvents(place, said)
    common = {"splits": place.splits, "aggregator": place.aggregator, "storage": str(place.folder)}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_run_with, common=common), trial_resources(scaling)),
        param_space={} if searcher else {"run": tune.grid_search(fixed)},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler or FIFOScheduler(),
            num_samples=-1 if searcher else 1,
            max_concurrent_trials=concurrency(scaling, budget),
            time_budget_s=seconds,
            reuse_actors=scaling.workers_per_trial == 1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=RUNS_FOLDER,
            storage_path=str(place.folder),
            callbacks=[events],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the events above say what happened
    tuner.fit()
    return events.outcomes


def _run_with(config: dict[str, Any], common: dict[str, Any]) -> None:
    run = config["run"]
    run_trial({**run, **common, "split": common["splits"][run["stage"]]})


def _trial_name(trial: Trial) -> str:
    return str(trial.config["run"]["name"])


def asha(settings: SearchSettings) -> TrialScheduler | None:
    """The search's ASHA scheduler; None where it has none, or its first rung lies beyond the last epoch."""
    chosen, epochs = settings.scheduler.asha, settings.trial.epochs
    if chosen is None or chosen.grace_epochs >= epochs:
        return None
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=settings.objective.metric,
        mode=settings.objective.mode,
        max_t=epochs,
        grace_period=chosen.grace_epochs,
        reduction_factor=chosen.reduction,
    )


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
    has = _most_resources()
    needs = {
        "CPU": scaling.workers_per_trial * scaling.cpus_per_worker,
        "GPU": scaling.workers_per_trial * scaling.gpus_per_worker,
    }
    for kind, amount in needs.items():
        if amount > has.get(kind, 0):
            field_name = f"scaling.{kind.lower()}s_per_worker"
            raise SettingsError(
                f"{field_name}: a trial needs {amount:g} {kind}s ({scaling.workers_per_trial} workers), "
                f"there are {has.get(kind, 0):g}"
            )
    if budget.concurrent != "auto":
        return int(budget.concurrent)
    return max(1, int(min(has[kind] / amount for kind, amount in needs.items() if amount)))


def _most_resources() -> dict[str, float]:
    """What the cluster has, or may scale up to: a cluster file says so in the environment, Ray itself does not."""
    has = ray.cluster_resources()
    return {kind: max(float(has.get(kind, 0)), _limit(f"CRH_TUNE_MAX_{kind}S")) for kind in ("CPU", "GPU")}


def _limit(name: str) -> float:
    text = os.environ.get(name, "0")
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{name}: expected a number, got {text!r}") from None
