"""The function Ray Tune runs for a trial: in the trial's own process, or as a Ray Train worker group.

Checkpoints are kept here, and neither by Tune nor by Train: a run that is started again, by a group's controller, by
Tune, or by a search that is resumed, finds the newest whole one in its folder and goes on from there.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import torch
import torch.distributed as dist
from ray import tune
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Split, Stage, final_split, search_split
from crh_tune.hashing.assignment import Statistic
from crh_tune.hashing.codebook import Table
from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import ScalingSettings, TrialSettings
from crh_tune.training import checkpoints
from crh_tune.training.aggregator import Aggregator, Round, Solve, solve_with
from crh_tune.training.evaluation import reference_similarity
from crh_tune.training.loop import Metrics, Save, TrainingDiverged, TrainingRun
from crh_tune.training.workers import Workers

RUNS_FOLDER = "runs"
"""The folder of a search in which each run has a folder with its checkpoints."""
ERROR = "error"
"""Reported in place of metrics by a run that failed of itself: the reason, in one line."""
RESTARTS = 3
"""How many times in a row a run goes on from the same checkpoint after a process of it died."""
_RETRY_SECONDS = 0.5


def open_split(settings: TrialSettings, stage: Stage) -> Split:
    """The split a trial trains on, opened once a process."""
    return _open_split(
        json.dumps([settings.dataset.model_dump(mode="json"), settings.validation.model_dump()], sort_keys=True), stage
    )


@lru_cache(maxsize=2)
def _open_split(key: str, stage: Stage) -> Split:
    dataset, validation = json.loads(key)
    opened = open_dataset(dataset.pop("name"), dataset)
    split = search_split(opened, **validation) if stage == "search" else final_split(opened)
    return replace(split, reference=reference_similarity(split))


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
        except RayActorError:
            time.sleep(_RETRY_SECONDS)
            return None

    return solve_with(call, workers, trial, attempt)


def run_trial(run: dict[str, Any]) -> None:
    """Train a trial, keep its checkpoints, and report each evaluation to Tune.

    ``run`` holds its name, resolved settings and stage, the split's fingerprint, the aggregator's name and the storage.
    An error is reported as the run's last result: it would come again, so Tune is not to try again. Only the death of
    a process ends the function without a report.
    """
    settings = TrialSettings.model_validate(run["settings"])
    try:
        if settings.scaling.workers_per_trial > 1:
            _fit_group(run, settings, [TuneReportCallback()])
        else:
            _train(run, settings, Workers(device=device_of(settings)), _report_to(tune, run), uuid.uuid4().hex)
    except Exception as error:
        tune.report({ERROR: reason_of(error)})


def reason_of(error: Exception) -> str:
    """Why a run failed, in one line; for a worker group that gave up, why its first worker failed."""
    failures = list(getattr(error, "worker_failures", {}).values())
    cause = failures[0] if failures else error
    cause = getattr(cause, "cause", None) or cause  # what Ray wraps
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else 'no reason given'}"[:500]


def device_of(settings: TrialSettings) -> torch.device:
    """The device of a lone worker. Raises SettingsError where a GPU is asked for and there is none."""
    if settings.scaling.gpus_per_worker == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SettingsError(f"scaling.gpus_per_worker: {settings.scaling.gpus_per_worker:g} asked for, there is no GPU")
    return torch.device("cuda")


def train_group(settings: TrialSettings, split: str) -> tuple[Metrics, Path]:
    """Train one resolved trial on the final split in a worker group, outside of any search.

    Returns its last metrics and the folder of its last checkpoint. Raises SettingsError when the machine is too small.
    """
    needed = settings.scaling.workers_per_trial * settings.scaling.cpus_per_worker
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    if needed > ray.cluster_resources().get("CPU", 0):
        raise SettingsError(f"scaling: {needed} CPUs asked for, there are {ray.cluster_resources().get('CPU', 0):g}")
    name = f"crh-aggregator-{uuid.uuid4().hex}"
    aggregator = start_aggregator(name)
    storage = tempfile.mkdtemp(prefix="crh-train-")
    run = {"name": "train", "settings": settings.model_dump(mode="json"), "stage": "final"}
    run |= {"split": split, "aggregator": name, "storage": storage}
    result = _fit_group(run, settings, [])
    ray.kill(aggregator)
    if ERROR in result.metrics:
        raise TrainingDiverged(result.metrics[ERROR])
    checkpoint = checkpoints.newest(_folder(run))
    assert checkpoint is not None
    return result.metrics, checkpoint


def _fit_group(run: dict[str, Any], settings: TrialSettings, callbacks: list[Any]) -> Any:
    """Train in a worker group, started again as long as that brings new checkpoints.

    Raises Train's error when the last restarts brought none.
    """
    while True:
        before = checkpoints.newest(_folder(run))
        try:
            return _group(run, settings.scaling, callbacks).fit()
        except ray.train.TrainingFailedError:
            if checkpoints.newest(_folder(run)) == before:
                raise


def _group(run: dict[str, Any], scaling: ScalingSettings, callbacks: list[Any]) -> TorchTrainer:
    gpu = scaling.gpus_per_worker > 0
    return TorchTrainer(
        _train_as_worker,
        train_loop_config=run,
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.workers_per_trial,
            use_gpu=gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=f"{run['name']}-{uuid.uuid4().hex}",  # nothing of an earlier group of this run is taken up by Train
            storage_path=str(Path(run["storage"]) / "train"),
            callbacks=callbacks,
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
    )


def _train_as_worker(run: dict[str, Any]) -> None:
    """One worker of a group. The workers agree on a token, so that a restarted group starts rounds of its own."""
    settings = TrialSettings.model_validate(run["settings"])
    context = ray.train.get_context()
    device = get_device()
    assert isinstance(device, torch.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    workers = Workers(context.get_world_rank(), context.get_world_size(), device)
    token = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, src=0)
    report = _report_to(ray.train, run)
    try:
        _train(run, settings, workers, report, token[0])
    except TrainingDiverged as error:  # on every worker at once, and again however often the group is restarted
        ray.train.report({ERROR: reason_of(error)})


def _train(run: dict[str, Any], settings: TrialSettings, workers: Workers, report: Any, attempt: str) -> None:
    split = open_split(settings, run["stage"])
    if split.fingerprint != run["split"]:
        raise RuntimeError(
            f"dataset {settings.dataset.name} here has split {split.fingerprint}, the search {run['split']}"
        )
    solve = ask_aggregator(run["aggregator"], workers, run["name"], attempt)
    training = TrainingRun(settings, split, workers, solve)
    checkpoint = workers.from_first(lambda: checkpoints.newest(_folder(run)))
    if checkpoint is not None:
        training.restore(checkpoint)
    training.train(report)


def _report_to(platform: Any, run: dict[str, Any]) -> Callable[[Metrics, Save | None], None]:
    """Reporting to ``ray.tune`` from a trial's own process, or to ``ray.train`` from every worker of a group."""

    def report(metrics: Metrics, save: Save | None) -> None:
        if save is not None:
            checkpoints.keep(_folder(run), int(metrics["epoch"]), save)
        platform.report(dict(metrics))

    return report


def _folder(run: dict[str, Any]) -> Path:
    return Path(run["storage"]) / RUNS_FOLDER / str(run["name"])
