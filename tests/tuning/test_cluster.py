"""What Ray refuses at its start, in one line and at once; what does not fit, before anything waits for it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray
import torch

from crh_tune.errors import Interrupted
from crh_tune.search import interruptible_ray
from crh_tune.settings.base import SettingsError
from crh_tune.settings.course import BudgetSettings
from crh_tune.settings.trial import ScalingSettings, TrialSettings
from crh_tune.tuning.cluster import _is_cluster, concurrency, connect_ray, device_of, node_watched, trial_resources
from crh_tune.tuning.groups import train_group

CODE = """
import functools, os
from ray._private import services
services._cached_find_gcs_addresses = functools.lru_cache(set)  # other clusters of this machine
from crh_tune.settings.base import SettingsError
from crh_tune.tuning.cluster import connect_ray
for name, value in {cases!r}:
    os.environ["TMPDIR"] = {folder!r}
    os.environ.pop("RAY_ADDRESS", None)
    os.environ[name] = value
    try:
        connect_ray()
    except SettingsError as error:
        print(error)
"""


@contextmanager
def foreign_services() -> Iterator[tuple[int, int]]:
    """The ports of an HTTP server, and of one that takes connections and stays silent."""
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield server.server_port, silent.getsockname()[1]
    server.shutdown()
    server.server_close()


def what_connect_ray_says(cases: list[tuple[str, str]], folder: Path) -> list[str]:
    code = CODE.format(cases=cases, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.splitlines()


def test_what_ray_refuses_at_its_start_is_one_line_that_names_the_variable(tmp_path: Path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    cases = [
        ("TMPDIR", str(deep)),
        ("RAY_ADDRESS", "auto"),
        ("RAY_ADDRESS", "127.0.0.1:1"),
        ("RAY_ADDRESS", "nonsense"),
    ]
    with foreign_services() as ports:
        cases += [("RAY_ADDRESS", f"127.0.0.1:{port}") for port in ports]
        said = what_connect_ray_says(cases, tmp_path)
    assert len(said) == 6, said
    assert said[0] == f"TMPDIR: {deep} is too long a path for Ray's sockets: set RAY_TMPDIR=/tmp"
    assert said[1].startswith("RAY_ADDRESS: no cluster can be joined with 'auto': start one, or unset RAY_ADDRESS (")
    for line, port in ((said[2], 1), (said[4], ports[0]), (said[5], ports[1])):
        there = f"127.0.0.1:{port}"
        assert line == f"RAY_ADDRESS: no cluster answers at {there}: start one there, or unset RAY_ADDRESS"
    assert said[3].startswith("RAY_ADDRESS: no cluster can be joined with 'nonsense': start one, or unset ")


def test_a_signal_that_comes_while_ray_starts_ends_what_ray_was_to_do(monkeypatch: pytest.MonkeyPatch):
    """``crh-tune train`` with a worker group said that it ends, and trained."""
    monkeypatch.setattr("crh_tune.tuning.cluster.connect_ray", lambda: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(Interrupted, match=r"^go on so$"), interruptible_ray("crh-tune train", lambda stop: "go on so"):
        pytest.fail("begun")


def test_a_cluster_that_runs_is_told_from_other_services(ray_session):
    assert _is_cluster(ray.get_runtime_context().gcs_address)


def test_a_node_process_that_ends_in_order_has_not_died(monkeypatch: pytest.MonkeyPatch):
    """The watch may look between the end of what it watches over and the end of Ray, and be told of both too late."""
    looking, over, died = threading.Event(), threading.Event(), []

    def late(process: int) -> bool:
        looking.set()
        over.wait(60)
        return False

    monkeypatch.setattr("crh_tune.tuning.cluster._node_process", lambda: 1)
    monkeypatch.setattr("crh_tune.tuning.cluster._lives", late)
    with node_watched(lambda: died.append("in order")):
        assert looking.wait(60)
    over.set()
    for watch in [each for each in threading.enumerate() if each.name == "ray-node-watch"]:
        watch.join(60)
    assert died == []
    told = threading.Event()
    with node_watched(told.set):
        assert told.wait(60)


def settings(**scaling: float) -> TrialSettings:
    return TrialSettings.model_validate(
        {"dataset": {"name": "digits"}, "trial": {"bits": 16, "epochs": 1}, "scaling": scaling}
    )


def test_a_worker_group_with_more_gpus_than_there_are_is_refused(ray_session):
    with pytest.raises(
        SettingsError, match=r"^scaling.gpus_per_worker: a trial needs 2 GPUs \(2 workers\), there are 0$"
    ):
        train_group(settings(workers_per_trial=2, gpus_per_worker=1), "split", None)  # type: ignore[arg-type]


def test_a_lone_worker_with_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of(settings(gpus_per_worker=1).scaling).type == "cuda"
    with pytest.raises(SettingsError, match=r"^scaling.gpus_per_worker: 2 asked for, there are 1$"):
        device_of(settings(gpus_per_worker=2).scaling)


def test_the_driver_of_a_worker_group_needs_no_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    group = settings(workers_per_trial=2, gpus_per_worker=1).scaling
    assert device_of(group).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of(group).type == "cuda"


@pytest.mark.parametrize("kind", [Exception, OSError, AssertionError])
def test_whatever_ray_raises_as_it_starts_is_one_line(monkeypatch: pytest.MonkeyPatch, kind):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("crh_tune.tuning.cluster.ray.is_initialized", lambda: False)
    monkeypatch.setattr("crh_tune.tuning.cluster.ray.init", Mock(side_effect=kind("it timed\nout")))
    with pytest.raises(SettingsError, match=r"^Ray does not start on this machine: it timed out$"):
        connect_ray()


def test_the_address_of_a_cluster_that_was_killed_is_no_cluster_to_join(tmp_path: Path, monkeypatch):
    """Ray itself would try for minutes."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("crh_tune.tuning.cluster.ray.is_initialized", lambda: False)
    with pytest.raises(SettingsError, match=r"^RAY_ADDRESS: no cluster answers on this machine: start one, or unset "):
        connect_ray()


def cluster(monkeypatch, *nodes: dict[str, float], dead: tuple[dict[str, float], ...] = ()) -> None:
    """A cluster of these nodes, and others that it has lost."""
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    known = [{"Alive": node in nodes, "Resources": node} for node in (*nodes, *dead)]
    monkeypatch.setattr("crh_tune.tuning.cluster.ray.cluster_resources", lambda: total)
    monkeypatch.setattr("crh_tune.tuning.cluster.ray.nodes", lambda: known)


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.delenv("CRH_TUNE_MAX_CPUS", raising=False)
    monkeypatch.delenv("CRH_TUNE_MAX_GPUS", raising=False)
    cluster(monkeypatch, {"CPU": 16.0, "GPU": 1.0})


@pytest.mark.parametrize(
    ("scaling", "at_once"),
    [
        ({"gpus_per_worker": 0.25}, 4),
        ({"gpus_per_worker": 0.5, "cpus_per_worker": 2}, 2),
        ({"gpus_per_worker": 1}, 1),
        ({"gpus_per_worker": 0.25, "cpus_per_worker": 8}, 2),
        ({}, 16),
        ({"workers_per_trial": 4, "cpus_per_worker": 2}, 2),
    ],
)
def test_trials_share_what_there_is_gpus_by_fractions(one_gpu, scaling, at_once):
    settings = ScalingSettings(**scaling)
    assert concurrency(settings, BudgetSettings()) == at_once
    assert concurrency(settings, BudgetSettings(concurrent=3)) == 3
    if settings.workers_per_trial == 1:
        [bundle] = trial_resources(settings).bundles
        wanted = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
        assert bundle == {kind: amount for kind, amount in wanted.items() if amount}


@pytest.mark.parametrize(
    ("scaling", "line"),
    [
        ({"workers_per_trial": 2, "gpus_per_worker": 1}, "scaling.gpus_per_worker: a trial needs 2 GPUs (2 workers)"),
        ({"cpus_per_worker": 32}, "scaling.cpus_per_worker: a trial needs 32 CPUs (1 worker), there are 16"),
    ],
)
def test_a_trial_that_does_not_fit_is_refused_in_one_line(one_gpu, scaling, line):
    with pytest.raises(SettingsError) as caught:
        concurrency(ScalingSettings(**scaling), BudgetSettings())
    assert str(caught.value).startswith(line)


SMALL, LARGE, HEAD = {"CPU": 3.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_fits_no_single_node_is_refused_in_one_line(one_gpu, monkeypatch, workers):
    scaling = ScalingSettings(workers_per_trial=workers, cpus_per_worker=4, gpus_per_worker=1)
    cluster(monkeypatch, HEAD, SMALL, SMALL, dead=(LARGE,))
    with pytest.raises(SettingsError) as caught:
        concurrency(scaling, BudgetSettings(concurrent=2))
    assert str(caught.value) == (
        "scaling: a worker needs 4 CPUs and 1 GPU on one node, the nodes have 3 and 1, 8 and 0: "
        "lower cpus_per_worker or gpus_per_worker"
    )
    cluster(monkeypatch, HEAD, SMALL, LARGE)
    assert concurrency(scaling, BudgetSettings()) == 2 // workers


def test_nodes_that_may_still_come_are_not_judged(one_gpu, monkeypatch):
    scaling = ScalingSettings(cpus_per_worker=4, gpus_per_worker=1)
    cluster(monkeypatch, HEAD)
    monkeypatch.setenv("CRH_TUNE_MAX_CPUS", "24")
    monkeypatch.setenv("CRH_TUNE_MAX_GPUS", "4")
    assert concurrency(scaling, BudgetSettings()) == 4
    cluster(monkeypatch, HEAD, *[{"CPU": 4.0}] * 4, *[{"GPU": 1.0}] * 4)  # as large as it gets
    with pytest.raises(SettingsError, match="4 CPUs and 1 GPU on one node"):
        concurrency(scaling, BudgetSettings())
