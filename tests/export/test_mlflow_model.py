"""An export logged to MLflow: loaded and asked with bytes, paths, arrays and what a scoring server receives."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from io import StringIO
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server import infer_and_parse_data, predictions_to_json

from crh_tune.errors import DataError
from crh_tune.export.mlflow_model import log_export
from crh_tune.serving import load_index
from crh_tune.serving.__main__ import main
from crh_tune.serving.answers import WAYS
from tests.ports import free_port
from tests.serving.conftest import encoder, export, exported, photos  # noqa: F401


@pytest.fixture(scope="module")
def logged(exported, tmp_path_factory):  # noqa: F811
    """Where MLflow's files are, and the model's address there."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", "")  # MLflow writes there what it is told in Python
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.create_experiment("service", artifact_location=str(folder / "artifacts"))
        mlflow.set_experiment("service")
        with mlflow.start_run():
            info = log_export(exported[0])
        yield mlflow.get_tracking_uri(), info.model_uri
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def model(logged):
    return mlflow.pyfunc.load_model(logged[1])


def test_bytes_paths_arrays_and_json_have_the_same_answers(model, export, photos, encoder):  # noqa: F811
    files = sorted((photos / "test").rglob("*.*"))
    words, index = encoder.encode_files(files), load_index(export)
    rows, distances = index.search(words, 10)
    contents = [file.read_bytes() for file in files]
    text = [base64.b64encode(content).decode() for content in contents]
    sent = json.dumps({"dataframe_records": [{"image": each} for each in text]})  # what a client posts
    pixels = np.stack([encoder.read(file) for file in files])
    for given in (
        contents,
        [str(file) for file in files],
        pixels,
        pd.DataFrame({"image": contents}),
        pd.DataFrame({"path": [str(file) for file in files]}),
        infer_and_parse_data(json.loads(sent)),
        infer_and_parse_data({"inputs": pixels.tolist()}),
    ):
        found = model.predict(given)
        assert [each["code"] for each in found] == [word.tobytes().hex() for word in words]
        assert [[near["row"] for near in each["neighbours"]] for each in found] == rows.tolist()
        assert [[near["distance"] for near in each["neighbours"]] for each in found] == distances.tolist()
        assert found[0]["neighbours"][0]["item"] == index.items[rows[0, 0]]
    answer = StringIO()
    predictions_to_json(found, answer)
    assert json.loads(answer.getvalue())["predictions"][0]["code"] == words[0].tobytes().hex()


def test_it_ranks_by_real_outputs_and_gives_as_many_as_asked(model, export, photos, encoder):  # noqa: F811
    pixels = np.stack([encoder.read(file) for file in sorted((photos / "test").rglob("*.*"))])
    found = model.predict(pixels, params={"by": "outputs", "count": 4})
    rows, scores = load_index(export).search(encoder.outputs(pixels), 4)
    assert [[near["row"] for near in each["neighbours"]] for each in found] == rows.tolist()
    assert [[near["score"] for near in each["neighbours"]] for each in found] == scores.tolist()
    for params, line in (({"by": "label"}, "by: one of bits, outputs"), ({"count": 0}, "count: a whole number from 1")):
        with pytest.raises(ValueError, match=line):
            model.predict(pixels, params=params)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([b"no image"], "row 0: not an image"),
        (pd.DataFrame({"image": ["no base64!"]}), "row 0: image: the bytes of a file, or base64 text, expected"),
        (["/there/is/none.jpg"], "/there/is/none.jpg: "),
        ([3], "row 0: an image's bytes or a path expected, got int"),
        (np.zeros((2, 3, 24, 25), np.uint8), "inputs of shape N x 3 x 24 x 24 expected"),
        (np.full((1, 3, 24, 24), 256), "images of whole numbers from 0 to 255 expected"),
    ],
)
def test_what_is_no_input_is_told_in_one_line(model, given, line):
    with pytest.raises(ValueError, match=r".+") as caught:
        model.predict(given)
    assert line in str(caught.value)


def test_nothing_in_the_model_is_pickled(model):
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model.metadata.model_id}"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"MLmodel", "encoder.onnx", "index.npz"}
    assert not [path for path in files if path.suffix == ".pkl"]


def test_an_export_without_the_encoder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no such file: crh-tune export SEARCH writes it"):
        log_export(tmp_path)


def test_a_server_of_mlflow_answers_as_the_command_line(logged, export, photos, tmp_path, capsys):  # noqa: F811
    files = sorted((photos / "test").rglob("*.*"))
    port = free_port()
    uri, model_uri = logged
    uvicorn = tmp_path / "bin" / "uvicorn"  # which MLflow looks for on PATH: with this test's Python
    uvicorn.parent.mkdir()
    uvicorn.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uvicorn "$@"\n')
    uvicorn.chmod(0o755)
    path = os.pathsep.join([str(uvicorn.parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model_uri, "--env-manager", "local"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)],
            env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": path},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_served(port, server, tmp_path / "log")
        for by in WAYS:
            images = [{"image": base64.b64encode(file.read_bytes()).decode()} for file in files]
            asked = {"dataframe_records": images, "params": {"by": by, "count": 5}}
            found = json.loads(post(port, asked))["predictions"]
            arguments = ["--by", by, "--count", "5", "--sheet", str(tmp_path / "q.png")]
            assert main(["query", str(export), str(export), *map(str, files), *arguments]) == 0
            lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
            neighbours = [each for one in found for each in one["neighbours"]]
            told = [[str(each["distance"]), each["label"], each["item"]] for each in neighbours]
            assert told == [line[-3:] for line in lines if line[-1] != "item"]
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            post(port, {"dataframe_records": [{"image": "bm8gaW1hZ2U="}]})
        assert "row 0: not an image" in refused.value.read().decode()
        assert json.loads(post(port, asked))["predictions"] == found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)  # the server's own processes
        server.wait(120)


def wait_until_served(port: int, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=10).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the server did not start: {log.read_text()}")


def post(port: int, content: dict) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", json.dumps(content).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()
