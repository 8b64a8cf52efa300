"""The pass of a frozen backbone on a cluster: one Ray task, where the GPUs are, into the cache that all nodes share.

On a machine of its own, the driver computes features when it opens the data. On a cluster the driver never loads the
backbone: the task does, with what one worker of a trial has, and what it says and its progress bar are shown here.
"""

from __future__ import annotations

import os
import queue
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TextIO, cast

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from crh_tune.data.listing import DataError
from crh_tune.data.splits import Dataset
from crh_tune.data.store.cache import cache_root, disk_errors
from crh_tune.errors import counted, unless_hung_up
from crh_tune.ground import first_line
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import DatasetSettings, ScalingSettings
from crh_tune.training.frozen import FeaturesMissing
from crh_tune.training.opening import open_data
from crh_tune.tuning.cluster import check_it_fits
from crh_tune.tuning.progress import Say
from crh_tune.tuning.worker import RESTARTS

_LOOK_SECONDS = 0.2
_SHARED = "CRH_TUNE_CACHE has to name a folder that all nodes share, and weights of a file have to be there too"
Heard = tuple[bool, str]
"""A line that was said (True), or a piece of the progress bar."""


def open_on_cluster(dataset: DatasetSettings, trial: TrainingSettings, scaling: ScalingSettings, say: Say) -> Dataset:
    """``open_data``; on a cluster, features that are not there yet are computed by a task of it.

    Raises SettingsError and DataError where weights or files cannot be used, no node has what a worker needs, or the
    nodes do not share the cache.
    """
    if not (trial.freeze and _is_cluster(scaling)):
        return open_data(dataset, trial, say)
    said: set[str] = set()

    def once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    try:
        return open_data(dataset, trial, once, compute=False)
    except FeaturesMissing:
        compute_features(dataset, trial, scaling, once)
    try:
        return open_data(dataset, trial, once, compute=False)
    except FeaturesMissing:
        raise SettingsError(f"{cache_root()}: not what the task wrote there is seen here: {_SHARED}") from None


def _is_cluster(scaling: ScalingSettings) -> bool:
    """Whether Ray has more nodes than the driver's, or may get them for the GPUs that the driver's does not have."""
    if not ray.is_initialized():
        return False
    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = next(node for node in nodes if node["NodeID"] == ray.get_runtime_context().get_node_id())
    return len(nodes) > 1 or (scaling.gpus_per_worker > 0 and not here["Resources"].get("GPU"))


def compute_features(dataset: DatasetSettings, trial: TrainingSettings, scaling: ScalingSettings, say: Say) -> None:
    """Have a task compute a dataset's features, started again where its process or node dies.

    Raises what the task raises, SettingsError where no node can hold it, and DataError where it dies again and again
    without another block of features.
    """
    check_it_fits(scaling)
    root = cache_root()
    token = root / f"shared-{uuid.uuid4().hex}"
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        token.touch()
    content = dataset.model_dump(mode="json"), trial.model_dump(mode="json"), str(token)
    task: Any = ray.remote(_pass).options(
        num_cpus=scaling.cpus_per_worker, num_gpus=scaling.gpus_per_worker, max_retries=0, num_returns="streaming"
    )
    say(
        f"features are computed by a task of the cluster with {counted(scaling.cpus_per_worker, 'CPU')} "
        f"and {counted(scaling.gpus_per_worker, 'GPU')}"
    )
    try:
        deaths, kept = 0, _kept(root)
        while (why := _followed(task.remote(*content), say)) is not None:
            before, kept = kept, _kept(root)
            deaths = deaths + 1 if kept == before else 0
            if deaths > RESTARTS:
                raise DataError(f"the task that computes features dies ({why}): start again, what is done is kept")
            say(f"the task that computes features died ({why}): it continues in another process")
    finally:
        token.unlink(missing_ok=True)


def _kept(root: Path) -> int:
    """Grows with every block of features that is kept."""
    return sum(blocks.stat().st_size for blocks in root.glob("features-*/blocks.jsonl"))


def _followed(running: Any, say: Say) -> str | None:
    """Show what a task says until it ends; why its process died, None where the task is done. Raises its errors."""
    try:
        while True:
            ready, _ = ray.wait([running], timeout=_LOOK_SECONDS)  # a signal is noticed in between
            if not ready:
                continue
            try:
                line, text = cast("Heard", ray.get(next(running)))
            except StopIteration:
                return None
            if line:
                say(text)
            else:
                with unless_hung_up():
                    sys.stderr.write(text)
                    sys.stderr.flush()
    except RayTaskError as error:
        raise (error.cause or error) from None
    except TaskCancelledError:
        raise
    except RayError as error:
        return first_line(error)
    finally:
        ray.cancel(running, force=True)  # where it has not ended, this process was interrupted


def _pass(dataset: dict[str, Any], trial: dict[str, Any], token: str) -> Iterator[Heard]:
    """The task: opens the data, and with that computes what is missing; yields what there is to be shown."""
    cache = Path(token).parent
    if not Path(token).exists():
        raise SettingsError(f"{cache}: is another folder on node {ray.util.get_node_ip_address()}: {_SHARED}")
    os.environ["CRH_TUNE_CACHE"] = str(cache)
    heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
    with redirect_stderr(cast("TextIO", _Bar(heard.put))), ThreadPoolExecutor(1) as thread:
        opened = thread.submit(
            open_data, DatasetSettings(**dataset), TrainingSettings(**trial), lambda line: heard.put((True, line))
        )
        while not (opened.done() and heard.empty()):
            try:
                yield heard.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
    opened.result()


class _Bar:
    """Takes what a progress bar writes to a terminal."""

    def __init__(self, put: Callable[[Heard], None]) -> None:
        self._put = put

    def write(self, text: str) -> int:
        self._put((False, text))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        """Not one: the bar comes from another node, every ten seconds."""
        return False
