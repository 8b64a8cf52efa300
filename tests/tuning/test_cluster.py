"""What Ray refuses at its start, in one line and at once; what does not fit, before anything waits for it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray
import torch

from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import TrialSettings
from crh_tune.tuning.cluster import _is_cluster
from crh_tune.tuning.trial import device_of, train_group

CODE = """
import functools, os, time
from ray._private import services
services._cached_find_gcs_addresses = functools.lru_cache(set)  # other clusters of this machine
from crh_tune.settings.base import SettingsError
from crh_tune.tuning.cluster import connect_ray
for name, value in {cases!r}:
    os.environ["TMPDIR"] = {folder!r}
    os.environ.pop("RAY_ADDRESS", None)
    os.environ[name] = value
    begun = time.monotonic()
    try:
        connect_ray()
    except SettingsError as error:
        print(time.monotonic() - begun < 30, error)
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
    assert said[0] == f"True TMPDIR: {deep} is too long a path for Ray's sockets: set RAY_TMPDIR=/tmp"
    assert said[1].startswith(
        "True RAY_ADDRESS: no cluster can be joined with 'auto': start one, or unset RAY_ADDRESS ("
    )
    for line, port in ((said[2], 1), (said[4], ports[0]), (said[5], ports[1])):
        there = f"127.0.0.1:{port}"
        assert line == f"True RAY_ADDRESS: no cluster answers at {there}: start one there, or unset RAY_ADDRESS"
    assert said[3].startswith("True RAY_ADDRESS: no cluster can be joined with 'nonsense': start one, or unset ")


def test_a_cluster_that_runs_is_told_from_other_services(ray_session):
    assert _is_cluster(ray.get_runtime_context().gcs_address)


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
    assert device_of(settings(gpus_per_worker=1)).type == "cuda"
    with pytest.raises(SettingsError, match=r"^scaling.gpus_per_worker: 2 asked for, there are 1$"):
        device_of(settings(gpus_per_worker=2))
