"""An export logged to MLflow: loaded and asked with bytes, paths, arrays and what a scoring server receives."""

from __future__ import annotations

import base64
import json
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
from tests.serving.conftest import encoder, export, exported, photos  # noqa: F401


@pytest.fixture(scope="module")
def model(exported, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", "")  # MLflow writes there what it is told in Python
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.create_experiment("service", artifact_location=str(folder / "artifacts"))
        mlflow.set_experiment("service")
        with mlflow.start_run():
            info = log_export(exported[0])
        yield mlflow.pyfunc.load_model(info.model_uri)
        mlflow.set_tracking_uri(before)


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
