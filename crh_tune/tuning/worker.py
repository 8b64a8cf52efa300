"""What one worker of a run does: it opens its split, resumes from the newest checkpoint, trains, and keeps checkpoints.

A run's first worker keeps its checkpoints here, and neither Tune nor Train does: a run that is started again, by a
group's controller, by Tune, or by a search that is resumed, finds the newest whole one in its folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, cast

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from crh_tune.hashing.assignment import Statistic
from crh_tune.hashing.codebook import Table
from crh_tune.training import checkpoints
from crh_tune.training.aggregator import Aggregator, Round, Solve, solve_with
from crh_tune.training.loop import Metrics, Save, TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning.memory import memory_reason
from crh_tune.tuning.run import Run, Shared

ERROR = "error"
"""Reported in place of metrics by a run that failed of itself: the reason, in one line."""
RESTARTS = 3
"""How many times in a row a run is resumed from the same checkpoint after a process of it died."""
_RETRY_SECONDS = 0.5


def start_aggregator(name: str) -> Any:
    """Start a search's aggregator on this node, restarted by Ray whenever it dies; returns its handle."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    actor = ray.remote(Aggregator).options(  # type: ignore[attr-defined]
        name=name, num_cpus=0, max_restarts=-1, max_concurrency=1000, scheduling_strategy=here
    )
    return actor.remote()


def ask_aggregator(name: str, workers: Workers, trial: str, attempt: str) -> Solve:
    """A solver that sends this worker's shard to the search's aggregator, again after each loss of it."""
    actor: Any = ray.get_actor(name)

    def call(round_: Round, rank: int, size: int, shard: Statistic) -> Table | None:
        try:
            answer: Any = actor.reassign.remote(round_, rank, size, shard)
            return cast("Table | None", ray.get(answer))
        except (RayActorError, OutOfMemoryError):
            time.sleep(_RETRY_SECONDS)
            return None

    return solve_with(call, workers, trial, attempt)


def train_run(
    run: Run, shared: Shared, workers: Workers, report: Callable[[dict[str, Any]], None], attempt: str
) -> None:
    """Train a run to its end and report each evaluation; ``attempt`` names this start of it to the aggregator.

    Raises RuntimeError where the data here are others than the search's, TrainingDiverged, OSError.
    """
    os.environ["CRH_TUNE_CACHE"] = shared.cache  # this process may be older than the driver, and of another node
    split = open_split(run.settings, run.split)
    if split.fingerprint != run.fingerprint:
        name = run.settings.dataset.name
        raise RuntimeError(f"dataset {name} here has split {split.fingerprint}, the search {run.fingerprint}")
    folder = shared.folder_of(run)
    training = TrainingRun(run.settings, split, workers, ask_aggregator(shared.aggregator, workers, run.name, attempt))
    found, read = (checkpoints.read_newest(folder) if workers.rank == 0 else None) or (None, None)
    checkpoint = workers.from_first(lambda: found)
    if checkpoint is not None:
        training.restore(checkpoint, read)

    def keep_and_report(metrics: Metrics, save: Save | None) -> None:
        if save is not None:
            checkpoints.keep(folder, int(metrics["epoch"]), save)
        report(dict(metrics))

    training.train(keep_and_report, run.until)


def reason_of(error: Exception) -> str:
    """Why a run failed, in one line; for a worker group that gave up, why its first worker failed.

    Where Ray ended one of them for want of memory, that is why: the others only lost it.
    """
    causes = [_cause(failure) for failure in getattr(error, "worker_failures", {}).values()] or [_cause(error)]
    for cause in causes:
        if isinstance(cause, OutOfMemoryError):
            return memory_reason(cause)[:500]
    lines = [line for line in str(causes[0]).splitlines() if line.strip()]
    return f"{type(causes[0]).__name__}: {lines[-1].strip() if lines else 'no reason given'}"[:500]


def _cause(error: Exception) -> Exception:
    """What Ray Train and Ray have wrapped."""
    for wrapped in ("health_check_failure", "cause"):
        error = getattr(error, wrapped, None) or error
    return error
