"""The winner of a search as a registered model: who is champion, sending it again, loading it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from crh_tune.serving import load_encoder
from crh_tune.tuning.champion import Champion, example_of
from crh_tune.tuning.tracking import Tracker, default_tracking_uri
from tests.serving.conftest import encoder, export, exported, photos  # noqa: F401

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def a_database(empty_database: Path, tmp_path: Path) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")


def send(storage: Path, uri: str, export: Path, search: str, ended: int) -> int:  # noqa: F811
    """Log the winner of a search of this name; how many entries are unsent."""
    folder = storage / search
    folder.mkdir(exist_ok=True)
    tracker = Tracker(uri, "birds", storage, folder)
    tracker.start_run(f"{search}/final-best", "final-best")
    about = f"Winner of {search}"
    tracker.model(f"{search}/final-best", Champion("birds", str(export), load_encoder(export).name, ended, about))
    tracker.metrics(f"{search}/final-best", {"test/map": 0.5}, 1)
    return tracker.drain(120) if uri != NOWHERE else tracker.close(0)


def versions(uri: str) -> dict[str, str]:
    client = MlflowClient(uri)
    return {each.description: each.version for each in client.search_model_versions("name = 'birds'")}


def champion(uri: str) -> str:
    return str(MlflowClient(uri).get_model_version_by_alias("birds", "champion").description)


def test_the_champion_is_the_winner_of_the_search_that_ended_last(export, tmp_path):  # noqa: F811
    uri = default_tracking_uri(tmp_path)
    assert send(tmp_path, NOWHERE, export, "birds-001", ended=10) > 0  # its server was away when it ended
    assert send(tmp_path, uri, export, "birds-002", ended=20) == 0
    assert champion(uri) == "Winner of birds-002"
    assert send(tmp_path, uri, export, "birds-003", ended=30) == 0
    assert champion(uri) == "Winner of birds-003"
    assert Tracker(uri, "birds", tmp_path, tmp_path / "birds-001").drain(120) == 0  # as crh-tune sync does, later
    assert champion(uri) == "Winner of birds-003"
    found = versions(uri)
    assert set(found) == {f"Winner of birds-00{number}" for number in (1, 2, 3)}
    for number in (1, 2, 3):  # sent again, it is there once, and the alias stays
        (tmp_path / f"birds-00{number}" / "mlflow_sent").unlink()
        assert Tracker(uri, "birds", tmp_path, tmp_path / f"birds-00{number}").drain(120) == 0
    assert (versions(uri), champion(uri)) == (found, "Winner of birds-003")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("birds").experiment_id
    assert len(client.search_logged_models([experiment])) == 3
    for run in client.search_runs([experiment]):
        assert len(client.get_run(run.info.run_id).outputs.model_outputs) == 1


def test_an_export_that_has_another_winner_by_now_is_left_out(export, tmp_path):  # noqa: F811
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "birds", tmp_path, tmp_path)
    tracker.start_run("a", "a")
    tracker.model("a", Champion("birds", str(export), "another encoder", 1, ""))
    assert tracker.drain(120) == 0
    assert versions(uri) == {}


def test_the_registered_model_takes_what_its_signature_and_example_say(export, photos, encoder, tmp_path):  # noqa: F811
    uri = default_tracking_uri(tmp_path)
    assert send(tmp_path, uri, export, "birds-001", ended=1) == 0
    version = MlflowClient(uri).get_model_version_by_alias("birds", "champion")
    model = mlflow.pyfunc.load_model(version.source)
    assert model.metadata.run_id == version.run_id
    assert model.metadata.signature.inputs.input_names() == ["image"]
    assert model.metadata.signature.outputs.input_names() == ["code", "neighbours"]
    file = next((photos / "test").rglob("*.*"))
    [found] = model.predict(pd.DataFrame({"image": [file.read_bytes()]}))
    assert found["code"] == encoder.encode_files([file])[0].tobytes().hex()
    [of_example] = model.predict(model.input_example)
    assert len(of_example["neighbours"]) == 10
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_example_of_an_encoder_of_arrays_is_an_array(encoder):  # noqa: F811
    object.__setattr__(encoder, "shape", (1, 8, 16))
    assert (example_of(encoder).shape, example_of(encoder).dtype) == ((1, 1, 8, 16), np.uint8)
