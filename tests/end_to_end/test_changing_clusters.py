"""Nodes come and go: one is lost with what runs on it; a cluster begins without any, and grows for a search.

The clusters have processes and a folder for temporary files of their own, so that they and another Ray of this machine
do not meet, and all that was started is killed in the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.cluster_utils import Cluster

from benchmarks.soak import processes_below
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning import tracking
from crh_tune.tuning.engine import drive
from crh_tune.tuning.events import Place
from crh_tune.tuning.record import read_outcomes, write_record
from crh_tune.tuning.run import Run
from crh_tune.tuning.stages import FixedRuns
from crh_tune.tuning.worker import start_aggregator
from tests.ports import free_port
from tests.tuning.test_groups import train_undisturbed

PROJECT = Path(__file__).parents[2]
PATIENCE = 400
"""Seconds a cluster has for a test; far more than it needs, unless much else runs on the machine."""
LOST_AT = 6
"""The epoch whose checkpoint is there when the node is lost."""
EPOCHS = {"alone": 60, "group": 40}
"""Enough that the node is lost in the midst, also where it is noticed late that the epoch is reached."""
WORKERS = {"alone": 1, "group": 2}
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that does not answer is given up after 2 seconds instead of 15."""
MOST_NODES = 2
GROWING = {
    "name": "growing",
    "dataset": {"name": "digit_pairs", "images_per_class": 5},
    "trial": {"bits": 16, "epochs": 40, "batch_size": 128, "learning_rate": 2.0e-3, "evaluate_every": 2},
    "search": {"margin": {"uniform": [0.0, 0.5]}},
    "budget": {"trials": MOST_NODES + 1},
    "scheduler": {},
    "confirm": {"top": 1, "seeds": 1},
}

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(command, output, **environment)`` runs a command; it ends with the test, and all that it has started."""
    begun: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="crh-", ignore_cleanup_errors=True) as folder:  # sockets need a short path

        def run(command: list[str], output: Path, **environment: str) -> subprocess.Popen[bytes]:
            everything = {**os.environ, "RAY_TMPDIR": folder, **environment}
            with output.open("w") as out:
                process = subprocess.Popen(
                    command, cwd=PROJECT, env=everything, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
                )
            begun.append(process)
            return process

        try:
            yield run
        finally:
            for process in reversed(begun):
                kill_with_all_below(process.pid)
                process.wait()


def kill_with_all_below(number: int) -> None:
    """Kill a process and all below it: what was on a machine that is gone."""
    for each in [number, *processes_below(number)]:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def settings_of(name: str) -> SearchSettings:
    trial = {"bits": 16, "epochs": EPOCHS[name], "batch_size": 128, "learning_rate": 2.0e-3, "update_interval": 3}
    space = {"name": "changing", "dataset": {"name": "digits"}, "trial": trial, "search": {"margin": {"grid": [0.2]}}}
    return SearchSettings.model_validate({**space, "scaling": {"workers_per_trial": WORKERS[name]}})


def content_of(name: str) -> dict[str, Any]:
    return settings_of(name).trial_settings({"margin": 0.2}, 0).resolve(10, False).model_dump(mode="json")


class Losses:
    """Runs one after the other, in a process of its own, and takes the node away from each and gives it another."""

    def __init__(self, storage: Path) -> None:
        self.storage, self.test = storage, os.getppid()
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.node = self.cluster.add_node(num_cpus=2)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        uri = tracking.default_tracking_uri(storage)
        self.tracker = tracking.Tracker(uri, "changing", storage, storage)
        self.said: dict[str, Any] = {}

    def go(self) -> None:
        for name in WORKERS:
            run = threading.Thread(target=self.run, args=(name,))
            run.start()
            while (reached := self.epoch_of(name)) < LOST_AT:
                assert run.is_alive(), read_outcomes(self.storage / name)
                time.sleep(0.01)
            lost = self.change_nodes()  # in this thread: a node sets handlers of signals
            run.join()
            self.said[name] |= {"reached": reached, "lost": lost}
        assert self.tracker.drain(120) == 0
        write_record(self.storage / "said.json", self.said)
        while (
            os.getppid() == self.test
        ):  # which kills this and its cluster; only if it is gone itself, they end in order
            time.sleep(0.5)

    def run(self, name: str) -> None:
        settings, folder = settings_of(name), self.storage / name
        resolved = TrialSettings.model_validate(content_of(name))
        folder.mkdir()
        run = Run(name, resolved, "search", open_split(resolved, "search").fingerprint)
        place = Place(name, folder, f"aggregator-{name}", self.tracker)
        self.tracker.start_run(name, name)
        aggregator = start_aggregator(place.aggregator)
        outcomes = drive(place, settings.scaling, settings.budget, [FixedRuns([run], print)])
        self.said[name] = asdict(outcomes[name])
        ray.kill(aggregator)

    def epoch_of(self, name: str) -> int:
        folders = (self.storage / name / "runs" / name).glob("checkpoint_*")
        return max((int(folder.name.removeprefix("checkpoint_")) for folder in folders), default=0)

    def change_nodes(self) -> list[str]:
        """Take the node away at once, and add another; returns what ran on it."""
        raylet = self.node.all_processes["raylet"][0].process.pid
        lost = [title for title in processes_below(raylet).values() if title.startswith("ray::")]
        kill_with_all_below(raylet)
        self.cluster.remove_node(self.node, allow_graceful=False)
        self.node = self.cluster.add_node(num_cpus=2)
        return lost


def train_alone(content: dict[str, Any]) -> dict[str, float]:
    settings = TrialSettings.model_validate(content)
    return dict(TrainingRun(settings, open_split(settings, "search"), Workers(), solve_locally).train(lambda *_: None))


@pytest.mark.long
def test_runs_whose_node_is_lost_go_on_on_another_to_the_last_bit(start: Start, in_group, tmp_path: Path):
    code = "import sys; from tests.end_to_end.test_changing_clusters import *; Losses(Path(sys.argv[1])).go()"
    output = tmp_path / "output.txt"
    process = start([sys.executable, "-c", code, str(tmp_path)], output, **QUICK_TO_NOTICE)
    in_group(2, train_undisturbed, content_of("group"), tmp_path / "undisturbed.json")
    expected = {
        "alone": train_alone(content_of("alone")),
        "group": json.loads((tmp_path / "undisturbed.json").read_text()),
    }
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "said.json").exists():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
    said = json.loads((tmp_path / "said.json").read_text())
    titles = {"alone": "ray::ImplicitFunc", "group": "ray::RayTrainWorker"}
    for name, metrics in expected.items():
        assert LOST_AT <= said[name]["reached"] < EPOCHS[name]
        assert sum(title.startswith(titles[name]) for title in said[name]["lost"]) == WORKERS[name]
        assert (said[name]["status"], said[name]["error"]) == ("complete", "")
        names = {each for each in metrics if "/" in each and not each.startswith("seconds/")}
        assert {each: said[name]["metrics"][each] for each in names} == {each: metrics[each] for each in names}


class Growing:
    """A cluster whose head has no CPU, and which adds up to MOST_NODES nodes of one CPU when they are asked for.

    What ``ray.cluster_utils.AutoscalingCluster`` starts, without the ``ray stop --force`` that it begins and ends with,
    which kills every Ray of the machine, and without its file of defaults, which is not in Ray's wheel.
    """

    def __init__(self, start: Start, folder: Path) -> None:
        port = free_port()
        self.address = f"{ray.util.get_node_ip_address()}:{port}"
        (folder / "cluster.yaml").write_text(yaml.safe_dump(self._config()))
        self.output = folder / "cluster.txt"
        ray_command = Path(sys.executable).parent / "ray"
        options = [f"--port={port}", f"--autoscaling-config={folder / 'cluster.yaml'}", "--num-cpus=0"]
        options += ["--block", "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
        self._process = start(
            [str(ray_command), "start", "--head", *options],
            self.output,
            RAY_FAKE_CLUSTER="1",
            RAY_OVERRIDE_NODE_ID_FOR_TESTING=FAKE_HEAD_NODE_ID,
            AUTOSCALER_UPDATE_INTERVAL_S="1",
        )
        deadline = time.monotonic() + PATIENCE
        while "Ray runtime started" not in self.output.read_text():
            assert self._process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.1)

    def _config(self) -> dict[str, Any]:
        worker = {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "max_workers": MOST_NODES}
        head = {"resources": {"CPU": 0}, "max_workers": 0}
        types = {FAKE_HEAD_NODE_TYPE: head, "worker": worker}
        provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "gcs_address": self.address}
        provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
        nothing: dict[str, Any] = {"docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False}
        commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        nothing |= {f"{name}_commands": [] for name in commands}
        nothing |= {"cluster_synced_files": [], "rsync_exclude": [], "rsync_filter": []}
        return {
            "cluster_name": "growing",
            "max_workers": MOST_NODES,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.1,
            "provider": {**provider, "head_node_id": FAKE_HEAD_NODE_ID},
            "auth": {"ssh_user": "nobody"},
            "available_node_types": {name: {**each, "node_config": {}} for name, each in types.items()},
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            **nothing,
        }

    def trials_on_nodes(self) -> list[int]:
        """How many trials run on each node that is up now, the head left out."""
        titles = processes_below(self._process.pid)
        monitors = [number for number, title in titles.items() if "/monitor.py" in title]
        nodes = [each for number in monitors for each in processes_below(number).items() if "/raylet/raylet" in each[1]]
        trials = [[each for each in processes_below(number).values() if "ImplicitFunc" in each] for number, _ in nodes]
        return [len(each) for each in trials]


@pytest.mark.long
def test_a_search_makes_an_empty_cluster_grow_within_its_limits_and_lets_go_of_it(start: Start, tmp_path: Path):
    cluster = Growing(start, tmp_path)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(GROWING))
    assert cluster.trials_on_nodes() == []
    output = tmp_path / "search.txt"
    search = start(
        [sys.executable, "-m", "crh_tune", "search", str(tmp_path / "space.yaml"), "--storage", str(tmp_path / "runs")],
        output,
        RAY_ADDRESS=cluster.address,
        CRH_TUNE_MAX_CPUS=str(MOST_NODES),
    )
    seen = []
    deadline = time.monotonic() + PATIENCE
    while search.poll() is None:
        assert time.monotonic() < deadline, output.read_text()
        seen.append(cluster.trials_on_nodes())
        time.sleep(0.5)
    assert search.returncode == 0, output.read_text()
    assert output.read_text().splitlines()[-1] == "finished"
    outcomes = read_outcomes(tmp_path / "runs" / "growing-001")
    assert [outcomes[f"trial-{number:04d}"].status for number in range(MOST_NODES + 1)] == ["complete"] * 3
    assert max(len(nodes) for nodes in seen) == MOST_NODES
    assert [1] * MOST_NODES in seen, "trials never ran on all nodes at once"
    deadline = time.monotonic() + PATIENCE
    while cluster.trials_on_nodes():
        assert time.monotonic() < deadline, "nodes that nobody uses stay"
        time.sleep(0.2)
