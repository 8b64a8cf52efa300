"""The function Ray Tune runs for a trial: in the trial's own process, or as a Ray Train worker group.

Every new process of a trial imports this module: it leaves MLflow and Optuna, which take a second, to the driver.

Checkpoints are kept here, and neither by Tune nor by Train: a run that is started again, by a group's controller, by
Tune, or by a search that is resumed, finds the newest whole one in its folder and goes on from there.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import torch
import torch.distributed as dist
from ray import tune
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.torch import TorchConfig, get_device

from crh_tune.data.splits import Stage
from crh_tune.data.store.cache import cache_root
from crh_tune.hashing.assignment import Statistic
from crh_tune.hashing.codebook import Table
from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import ScalingSettings, TrialSettings
from crh_tune.training import checkpoints
from crh_tune.training.aggregator import Aggregator, Round, Solve, solve_locally, solve_with
from crh_tune.training.loop import Metrics, Save, TrainingDiverged, TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning.cluster import check_it_fits, connect_ray
from crh_tune.tuning.groups import free_groups
from crh_tune.tuning.memory import memory_reason
from crh_tune.tuning.ray_private import GroupTrainer

RUNS_FOLDER = "runs"
"""The folder of a search in which each run has a folder with its checkpoints."""
ERROR = "error"
"""Reported in place of metrics by a run that failed of itself: the reason, in one line."""
RESTARTS = 3
"""How many times in a row a run goes on from the same checkpoint after a process of it died."""
_REPORTS_FILE = "reports.jsonl"
_RETRY_SECONDS = 0.5
_POLL_SECONDS = 0.1


def restored(settings: TrialSettings, stage: Stage, checkpoint: Path, workers: Workers) -> TrainingRun:
    """The run of resolved settings as its checkpoint left it. Raises SettingsError where that cannot be read."""
    run = TrainingRun(settings, open_split(settings, stage), workers, solve_locally)
    try:
        run.restore(checkpoint)
    except checkpoints.CheckpointError as error:
        raise SettingsError(str(error)) from None
    return run


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


def run_trial(config: dict[str, Any], common: dict[str, Any]) -> None:
    """Train a trial, keep its checkpoints, and report each evaluation to Tune.

    ``config["run"]`` holds its name, resolved settings and stage; ``common`` the fingerprint of each stage's split, the
    aggregator's name, the storage and the driver's cache folder. An error is reported as the run's last result: it
    would come again, so Tune is not to try again. Only the death of a process ends the function without a report.
    """
    run = {**config["run"], **common, "split": common["splits"][config["run"]["stage"]]}
    settings = TrialSettings.model_validate(run["settings"])
    try:
        _folder(run).mkdir(exist_ok=True)
        if settings.scaling.workers_per_trial > 1:
            _follow_group(run, settings)
        else:
            _train(run, settings, Workers(device=device_of(settings)), tune.report, uuid.uuid4().hex)
    except Exception as error:
        tune.report({ERROR: reason_of(error)})


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


def device_of(settings: TrialSettings) -> torch.device:
    """The device of a lone worker. Raises SettingsError where more GPUs are asked for than there are."""
    asked = settings.scaling.gpus_per_worker
    if asked == 0:
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked > there:
        raise SettingsError(f"scaling.gpus_per_worker: {asked:g} asked for, there are {there}")
    return torch.device("cuda")


def train_group(settings: TrialSettings, split: str, trained: TrainingRun) -> Metrics:
    """Train one resolved trial on the final split in a worker group, outside of any search.

    ``trained`` is brought to where the group got; returns its last metrics. Raises TrainingDiverged, or SettingsError
    when the machine is too small.
    """
    connect_ray()
    check_it_fits(settings.scaling)
    name = f"crh-aggregator-{uuid.uuid4().hex}"
    aggregator = start_aggregator(name)
    run = {"name": "train", "settings": settings.model_dump(mode="json"), "stage": "final", "cache": str(cache_root())}
    with tempfile.TemporaryDirectory(prefix="crh-train-") as storage:
        run |= {"split": split, "aggregator": name, "storage": storage}
        _folder(run).mkdir(parents=True)
        try:
            _fit_group(run, settings.scaling)
        finally:
            ray.kill(aggregator)
        metrics, checkpoint = _reports(run)[-1], checkpoints.newest(_folder(run))
        if ERROR in metrics:
            raise TrainingDiverged(metrics[ERROR])
        assert checkpoint is not None
        trained.restore(checkpoint)
    return metrics


def _follow_group(run: dict[str, Any], settings: TrialSettings) -> None:
    """Train in a worker group, and report to Tune what its first worker writes down.

    Ray's own way for this loses the last report when training ends right after it, and all of them with the node that
    its queue happens to be on.
    """
    (_folder(run) / _REPORTS_FILE).unlink(missing_ok=True)
    errors: list[Exception] = []
    group = threading.Thread(target=_fit_in_thread, args=(run, settings.scaling, errors), daemon=True)
    group.start()
    told = 0
    while True:
        ended = not group.is_alive()  # asked first: what it wrote until then is read below
        for metrics in _reports(run)[told:]:
            tune.report(metrics)
            told += 1
        if ended:
            break
        time.sleep(_POLL_SECONDS)
    if errors:
        raise errors[0]


def _fit_in_thread(run: dict[str, Any], scaling: ScalingSettings, errors: list[Exception]) -> None:
    try:
        _fit_group(run, scaling)
    except Exception as error:
        errors.append(error)


def _fit_group(run: dict[str, Any], scaling: ScalingSettings) -> None:
    """Train in a worker group, started again as long as that brings new checkpoints.

    Train starts its workers again, RESTARTS times; when its controller dies, the group is started again here, as often.
    Raises Train's error, or Ray's, when the last restarts brought no checkpoint.
    """
    deaths = 0
    while True:
        before = checkpoints.newest(_folder(run))
        try:
            _group(run, scaling).fit()
            return
        except (ray.train.TrainingFailedError, RayActorError, OutOfMemoryError) as error:
            deaths = deaths + 1 if checkpoints.newest(_folder(run)) == before else 0
            if deaths > (0 if isinstance(error, ray.train.TrainingFailedError) else RESTARTS):
                raise
            free_groups()


def _group(run: dict[str, Any], scaling: ScalingSettings) -> GroupTrainer:
    gpu = scaling.gpus_per_worker > 0
    return GroupTrainer(
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

    def write(metrics: dict[str, Any]) -> None:
        if workers.rank == 0:
            with (_folder(run) / _REPORTS_FILE).open("a", encoding="utf-8") as reports:
                reports.write(json.dumps(metrics) + "\n")

    try:
        _train(run, settings, workers, write, token[0])
    except TrainingDiverged as error:  # on every worker at once, and again however often the group is restarted
        write({ERROR: reason_of(error)})


def _reports(run: dict[str, Any]) -> list[dict[str, Any]]:
    """What a group's first worker has reported so far."""
    path = _folder(run) / _REPORTS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _train(
    run: dict[str, Any],
    settings: TrialSettings,
    workers: Workers,
    report: Callable[[dict[str, Any]], None],
    attempt: str,
) -> None:
    os.environ["CRH_TUNE_CACHE"] = run["cache"]  # this process may be older than the driver, and of another node
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

    def keep_and_report(metrics: Metrics, save: Save | None) -> None:
        if save is not None:
            checkpoints.keep(_folder(run), int(metrics["epoch"]), save)
        report(dict(metrics))

    training.train(keep_and_report)


def _folder(run: dict[str, Any]) -> Path:
    return Path(run["storage"]) / RUNS_FOLDER / str(run["name"])
