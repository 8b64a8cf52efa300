"""A run in a worker group of Ray Train. What its first worker reports goes through a file in the run's folder."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.torch import TorchConfig, get_device

from crh_tune.data.store.cache import cache_root
from crh_tune.settings.trial import TrialSettings
from crh_tune.training import checkpoints
from crh_tune.training.loop import Metrics, TrainingDiverged, TrainingRun
from crh_tune.training.workers import Workers
from crh_tune.tuning.cluster import check_it_fits, connect_ray, free_groups
from crh_tune.tuning.run import Run, Shared
from crh_tune.tuning.train_private import GroupTrainer
from crh_tune.tuning.worker import ERROR, RESTARTS, reason_of, start_aggregator, train_run

_REPORTS_FILE = "reports.jsonl"
_POLL_SECONDS = 0.1


def train_group(settings: TrialSettings, split: str, trained: TrainingRun) -> Metrics:
    """Train one resolved trial on the final split in a worker group, outside of any search.

    ``trained`` is brought to where the group got; returns its last metrics. Raises TrainingDiverged, or SettingsError
    when the machine is too small.
    """
    connect_ray()
    check_it_fits(settings.scaling)
    name = f"crh-aggregator-{uuid.uuid4().hex}"
    aggregator = start_aggregator(name)
    run = Run("train", settings, "final", split)
    with tempfile.TemporaryDirectory(prefix="crh-train-") as folder:
        shared = Shared(Path(folder), name, str(cache_root()))
        shared.folder_of(run).mkdir(parents=True)
        try:
            _fit_group(run, shared)
        finally:
            ray.kill(aggregator)
        metrics, checkpoint = _reports(run, shared)[-1], checkpoints.newest(shared.folder_of(run))
        if ERROR in metrics:
            raise TrainingDiverged(metrics[ERROR])
        assert checkpoint is not None
        trained.restore(checkpoint)
    return metrics


def follow_group(run: Run, shared: Shared, report: Callable[[dict[str, Any]], None]) -> None:
    """Train in a worker group, and report what its first worker writes down.

    Ray's own way for this loses the last report when training ends right after it, and all of them with the node that
    its queue happens to be on.
    """
    (shared.folder_of(run) / _REPORTS_FILE).unlink(missing_ok=True)
    errors: list[Exception] = []
    group = threading.Thread(target=_fit_in_thread, args=(run, shared, errors), daemon=True)
    group.start()
    told = 0
    while True:
        ended = not group.is_alive()  # asked first: what it wrote until then is read below
        for metrics in _reports(run, shared)[told:]:
            report(metrics)
            told += 1
        if ended:
            break
        time.sleep(_POLL_SECONDS)
    if errors:
        raise errors[0]


def _fit_in_thread(run: Run, shared: Shared, errors: list[Exception]) -> None:
    try:
        _fit_group(run, shared)
    except Exception as error:
        errors.append(error)


def _fit_group(run: Run, shared: Shared) -> None:
    """Train in a worker group, started again as long as that brings new checkpoints.

    Train starts its workers again, RESTARTS times; when its controller dies, the group is started again here, as often.
    Raises Train's error, or Ray's, when the last restarts brought no checkpoint.
    """
    deaths, folder = 0, shared.folder_of(run)
    while True:
        before = checkpoints.latest(folder)
        try:
            _group(run, shared).fit()
            return
        except (ray.train.TrainingFailedError, RayActorError, OutOfMemoryError) as error:
            deaths = deaths + 1 if checkpoints.latest(folder) == before else 0
            if deaths > (0 if isinstance(error, ray.train.TrainingFailedError) else RESTARTS):
                raise
            free_groups()


def _group(run: Run, shared: Shared) -> GroupTrainer:
    scaling = run.settings.scaling
    gpu = scaling.gpus_per_worker > 0
    return GroupTrainer(
        _train_as_worker,
        train_loop_config={"run": run, "shared": shared},
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.workers_per_trial,
            use_gpu=gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=f"{run.name}-{uuid.uuid4().hex}",  # nothing of an earlier group of this run is taken up by Train
            storage_path=str(shared.folder / "train"),
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
    )


def _train_as_worker(config: dict[str, Any]) -> None:
    """One worker of a group. The workers agree on a token, so that a restarted group starts rounds of its own."""
    run, shared = config["run"], config["shared"]
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
            with (shared.folder_of(run) / _REPORTS_FILE).open("a", encoding="utf-8") as reports:
                reports.write(json.dumps(metrics) + "\n")

    try:
        train_run(run, shared, workers, write, token[0])
    except TrainingDiverged as error:  # on every worker at once, and again however often the group is restarted
        write({ERROR: reason_of(error)})


def _reports(run: Run, shared: Shared) -> list[dict[str, Any]]:
    """What a group's first worker has reported so far."""
    path = shared.folder_of(run) / _REPORTS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
