"""A whole search whose tracking server goes away in the middle and comes back later; its password goes nowhere."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from werkzeug.serving import BaseWSGIServer, make_server

from crh_tune.cli import main
from crh_tune.tuning import tracking
from crh_tune.tuning.outbox import unsent_in
from tests.ports import free_port

EPOCHS = 12
SPACE = {
    "name": "away",
    "dataset": {"name": "digits"},
    "trial": {"bits": 16, "epochs": EPOCHS, "batch_size": 128, "learning_rate": 2.0e-3},
    "search": {"margin": {"grid": [0.1, 0.3]}},
    "scheduler": {},
    "confirm": {"top": 1, "seeds": 1},
    "budget": {"concurrent": 1},
}
SECRETS = {"MLFLOW_TRACKING_PASSWORD": "swordfish-1", "MLFLOW_TRACKING_TOKEN": "swordfish-2"}
SECRETS |= {"RAY_AUTH_TOKEN": "swordfish-3", "MLFLOW_TRACKING_USERNAME": "me"}
IN_ADDRESS = "swordfish-0"


class Server:
    """MLflow's own server in a thread, on one port: it can go away and come back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._running: BaseWSGIServer | None = None

    def come(self) -> None:
        from mlflow.server import app  # noqa: PLC0415  # takes seconds, which only this test has to wait for

        self._running = make_server("127.0.0.1", self.port, app, threaded=True)
        threading.Thread(target=self._running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def go(self) -> None:
        if self._running is not None:
            self._running.shutdown()
            self._running.server_close()
            self._running = None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder / 'server.db'}")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    monkeypatch.setattr(logging.getLogger("werkzeug"), "level", logging.WARNING)
    found = Server(folder)
    found.come()
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # the server sets it to its own database when it is first asked
    MlflowClient(os.environ["_MLFLOW_SERVER_FILE_STORE"]).search_experiments()  # makes it, however long that takes
    wait_for(lambda: answers(found.address))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{IN_ADDRESS}@127.0.0.1:{found.port}")
    yield found
    found.go()


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(address: str) -> bool:
    try:
        MlflowClient(address).search_experiments()
    except MlflowException:
        return False
    return True


def has_reached(folder: Path, run: str, epoch: int) -> bool:
    return any(int(path.name[-6:]) >= epoch for path in folder.glob(f"runs/{run}/checkpoint_*"))


def places_of(secret: str, *folders: Path) -> list[Path]:
    """The files that hold a secret, as it is or in UTF-16, and the names that do."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            if secret in path.name or secret.encode() in content or secret.encode("utf-16-le") in content:
                found.append(path)
    return found


@pytest.mark.long
def test_a_search_ends_without_its_tracking_server_and_sync_sends_the_rest(
    ray_session, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """The server goes in the first trial, the search is interrupted in the second, resumed, ended, and sent later."""
    monkeypatch.setattr(tracking, "PATIENCE", 1.0)
    monkeypatch.setattr(tracking, "SHORT_PATIENCE", 0.5)
    monkeypatch.setattr("crh_tune.cli.SYNC_PATIENCE", 1.0)
    monkeypatch.setattr("crh_tune.tuning.tracking._REQUEST_SECONDS", 60.0)
    space, storage = tmp_path / "away.yaml", tmp_path / "runs"
    space.write_text(yaml.safe_dump(SPACE))
    folder = storage / "away-001"

    def disturb() -> None:
        wait_for(lambda: has_reached(folder, "trial-0000", 3) and (folder / "mlflow_sent").exists())
        server.go()
        wait_for(lambda: has_reached(folder, "trial-0001", 3))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=disturb)
    thread.start()
    said: list[str] = []

    def command(*arguments: str) -> tuple[int, str, str]:
        code, captured = main([*arguments, "--storage", str(storage)]), capfd.readouterr()
        said.extend((captured.out, captured.err))
        return code, captured.out, captured.err

    code, _, err = command("search", str(space))
    thread.join()
    assert code == 130
    assert err.endswith(f"interrupted: resume with crh-tune search --resume away-001 --storage {storage}\n")
    assert unsent_in(folder, os.environ["MLFLOW_TRACKING_URI"]) > EPOCHS

    code, out, _ = command("search", "--resume", "away-001")
    assert code == 0
    *_, why, kept, optuna, where, pages, ended = out.splitlines()
    assert " does not answer: " in why
    unsent = unsent_in(folder, os.environ["MLFLOW_TRACKING_URI"])
    assert unsent > 5 * EPOCHS
    assert kept == (
        f"MLflow           {unsent} entries are still unsent, and kept: "
        f"crh-tune sync away-001 --storage {storage} sends them"
    )
    assert (where, ended) == (f"open the UI      MLflow runs at {server.address}", "finished")
    assert pages.startswith(f"see the runs     {server.address}/#/experiments")

    code, out, _ = command("search", "--resume", "away-001")  # it has ended: what it found is said again
    assert (code, out.splitlines()[-5:]) == (0, [kept, optuna, where, pages, ended])
    code, out, err = command("sync", "away-001")
    assert (code, out) == (1, f"0 entries sent to {server.address}, {unsent} remain\n")
    assert f"failed: {unsent} entries not sent: MLFLOW_TRACKING_URI: the tracking server at {server.address} " in err

    server.come()
    monkeypatch.setattr("crh_tune.cli.SYNC_PATIENCE", 60.0)
    assert command("sync", "away-001")[:2] == (0, f"{unsent} entries sent to {server.address}, 0 remain\n")
    assert command("sync", "away-001")[:2] == (0, f"0 entries sent to {server.address}, 0 remain\n")
    check_runs(server.address)
    for secret in (IN_ADDRESS, *SECRETS.values()):
        if secret != "me":
            assert secret not in "".join(said)
            assert places_of(secret, storage, server.folder) == []
    assert places_of("test/map", storage, server.folder)  # what is looked for is found where it is


def check_runs(address: str) -> None:
    """Every run is there once, with all its epochs, under the one parent."""
    client = MlflowClient(address)
    found = client.search_runs([client.get_experiment_by_name("away").experiment_id])
    runs: dict[str, Run] = {run.data.tags["crh_tune.run"]: run for run in found}
    fixed = {"confirm-paper-seed1", "final-best"} | {name for name in runs if name.startswith("confirm-trial-")}
    searched = {f"trial-{number:04d}" for number in range(2)}
    assert set(runs) - {"final-paper"} == searched | fixed | {"away-001"}  # the paper's setting may be the best one
    assert len(fixed) == 3
    assert len(found) == len(runs)
    parent = runs.pop("away-001")
    assert parent.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "search.json",
        "summary.json",
        "figures",
    }
    pictures = {file.path.removeprefix("figures/") for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert pictures >= {"history.png", "rungs.png"}
    champion = client.get_model_version_by_alias("away", "champion")
    assert (str(champion.version), champion.run_id) == ("1", runs["final-best"].info.run_id)
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss/total")]
        assert sorted(steps) == list(range(1, EPOCHS + 1))
        assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"centers.npy"}
