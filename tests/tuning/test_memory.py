"""Trials that run out of memory: one that is refused it, and one whose process Ray ends, again and again."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory
from ray.exceptions import OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from benchmarks.soak import Driver
from crh_tune.tuning.record import read_outcomes
from crh_tune.tuning.worker import reason_of

TOO_MANY_WORDS = 2**40
SPACE = {
    "name": "hungry",
    "dataset": {"name": "digits"},
    "trial": {"bits": 64, "epochs": 3, "batch_size": 128, "learning_rate": 2.0e-3},
    "search": {"codebook_size": {"choice": [20, TOO_MANY_WORDS]}, "epochs": {"choice": [3, 100_000]}},
    "start_from": [
        {"codebook_size": TOO_MANY_WORDS, "epochs": 3},
        {"codebook_size": 20, "epochs": 100_000},
        {"codebook_size": 20, "epochs": 3},
    ],
    "scheduler": {},
    "confirm": {"top": 1, "seeds": 1},
    "budget": {"trials": 3},
    "scaling": {"cpus_per_worker": os.cpu_count()},  # a trial that kept any of them would be the last
}
GIB = 2**30
HEADROOM = 6 * GIB
"""What a search may use before Ray ends processes of it; with its trial it uses 2."""


@contextmanager
def memory_of_the_machine_used_up_to(limit: int) -> Iterator[None]:
    """Within it, no memory is left below the limit; use ``next`` of what follows to keep it so."""
    taken: list[mmap.mmap] = []

    def top_up() -> None:
        while get_used_memory() < limit and len(taken) < 2 * HEADROOM // (GIB // 16):
            taken.append(mmap.mmap(-1, GIB // 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))

    yield top_up
    for piece in taken:
        piece.close()


def wait_for(path: Path, driver: Driver, meanwhile=lambda: None) -> None:
    deadline = time.monotonic() + 600
    while not list(path.parent.glob(path.name)):
        assert driver.running(), driver.lines[-5:]
        assert time.monotonic() < deadline, driver.lines[-5:]
        meanwhile()
        time.sleep(0.05)


@pytest.mark.long
def test_trials_that_run_out_of_memory_fail_alone_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    total = get_system_memory()
    limit = get_used_memory() + HEADROOM
    if limit > 0.9 * total:
        pytest.skip(f"needs {HEADROOM / GIB:g} GiB of memory that nobody uses")
    monkeypatch.setenv("RAY_memory_usage_threshold", str(limit / total))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    folder = tmp_path / "runs" / "hungry-001"
    driver = Driver(["search", str(tmp_path / "space.yaml"), "--storage", str(folder.parent)], tmp_path / "output")
    wait_for(folder / "runs" / "trial-0001" / "checkpoint_*", driver)
    with memory_of_the_machine_used_up_to(limit) as top_up:
        wait_for(folder / "outcomes" / "trial-0001.json", driver, top_up)
    assert driver.process.wait(600) == 0, driver.lines[-5:]
    assert driver.lines[-1] == "finished"

    outcomes = read_outcomes(folder)
    refused, ended, last = (outcomes[f"trial-{number:04d}"] for number in range(3))
    assert [refused.status, ended.status, last.status] == ["failed", "failed", "complete"]
    assert refused.error.startswith("MemoryError: Unable to allocate ")
    assert ended.error.startswith("its process died 4 times, the last time: out of memory: ")
    study = optuna.load_study(study_name="hungry-001", storage=f"sqlite:///{folder / 'optuna.db'}")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "COMPLETE"]
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("hungry").experiment_id])
    told = {run.data.tags["crh_tune.run"]: (run.info.status, run.data.tags.get("crh_tune.error")) for run in runs}
    assert len(told) == len(runs)
    assert told["trial-0000"] == ("FAILED", refused.error)
    assert told["trial-0001"] == ("FAILED", ended.error)
    assert told["trial-0002"] == ("FINISHED", None)


def test_a_group_that_lost_a_worker_for_want_of_memory_says_so():
    """Its other workers only say that they lost it."""
    lost = RuntimeError("Connection closed by peer")
    ended = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.\n\nRefer to the docs")
    failures = {0: lost, 1: WorkerHealthCheckFailedError("A worker health check failed.", failure=ended)}
    error = WorkerGroupError("a group failed", failures)
    assert reason_of(error) == "out of memory: 1 worker(s) were killed due to the node running low on memory."
    assert reason_of(WorkerGroupError("a group failed", {0: lost})) == "RuntimeError: Connection closed by peer"
