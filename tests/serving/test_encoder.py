"""The encoder without torch: what it refuses, and that damage is one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from crh_tune.errors import DataError
from crh_tune.serving import load_encoder


def test_inputs_of_another_shape_or_type_are_refused(encoder):
    with pytest.raises(ValueError, match=r"inputs of shape N x 3 x 24 x 24 expected, got \(2, 3, 24, 23\)"):
        encoder.encode(np.zeros((2, 3, 24, 23), np.uint8))
    with pytest.raises(ValueError, match="inputs of type uint8 expected, got float32"):
        encoder.encode(np.zeros((2, 3, 24, 24), np.float32))
    with pytest.raises(TypeError, match="takes a list of files"):
        encoder.encode_files("photo.jpg")


def test_files_that_are_no_images_are_named(encoder, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for path, why in ((tmp_path / "text.jpg", "not an image"), (tmp_path / "gone.jpg", "No such file")):
        with pytest.raises(ValueError, match=why) as caught:
            encoder.encode_files([path])
        assert str(caught.value).startswith(f"{path}: ")


@pytest.fixture
def copied(export, tmp_path):
    shutil.copy(export / "encoder.onnx", tmp_path)
    return tmp_path


def refusal(folder) -> str:
    with pytest.raises(DataError) as caught:
        load_encoder(folder)
    line = str(caught.value)
    assert line.startswith(f"{folder / 'encoder.onnx'}: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "zip"])
def test_a_broken_file_is_told_in_one_line(copied, kind):
    path = copied / "encoder.onnx"
    content = path.read_bytes()
    path.unlink()
    if kind == "zip":
        np.savez(path.open("wb"), a=np.zeros(3))
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"no model\n", "cut": content[: len(content) // 2]}[kind])
    refusal(copied)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2), ("bits", 0), ("bits", "20"), ("bits", 2**40), ("shape", [3, 24, 25]), ("shape", 3),
        ("shape", []), ("dtype", "object"), ("dtype", "no type"), ("class_names", [1]), ("fit", None),
        ("encoder", None),
        ("fit", {"crop": -1, "interpolation": "bilinear"}), ("fit", {"crop": None, "interpolation": "eval"}),
        ("span", [1]), ("span", "no"), ("megapixels", 0), ("megapixels", float("nan")), ("megapixels", "many"),
    ],
)  # fmt: skip
def test_notes_that_do_not_fit_the_network_are_refused(copied, key, value):
    path = copied / "encoder.onnx"
    model = onnx.load(path)
    notes = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps({**notes, key: value})
    onnx.save(model, path)
    refusal(copied)


def test_a_model_of_somebody_else_is_refused(copied):
    path = copied / "encoder.onnx"
    model = onnx.load(path)
    model.metadata_props.clear()
    onnx.save(model, path)
    assert "not an encoder of crh-tune export" in refusal(copied)


def test_weights_in_other_files_are_not_read(copied, monkeypatch):
    """An ONNX file may name files that hold its weights: any file of this machine, where nobody looks."""
    monkeypatch.chdir(copied)
    path, secret = copied / "encoder.onnx", copied / "secret"
    secret.write_bytes(bytes(10**6))
    for place in (str(secret), "../../../../../../../../../etc/passwd", "secret"):
        shutil.copy(path, copied / "good.onnx")
        model = onnx.load(path)
        largest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
        length = len(largest.raw_data)
        largest.ClearField("raw_data")
        largest.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", place), ("offset", "0"), ("length", str(length))):
            entry = largest.external_data.add()
            entry.key, entry.value = key, value
        path.write_bytes(model.SerializeToString())
        assert "its weights lie in other files" in refusal(copied)
        shutil.move(copied / "good.onnx", path)


def test_a_network_whose_codes_are_not_those_of_its_outputs_is_refused(copied):
    path = copied / "encoder.onnx"
    model = onnx.load(path)
    powers = next(each for each in model.graph.initializer if each.name.endswith("powers"))
    powers.CopyFrom(onnx.numpy_helper.from_array(np.full(8, 1, np.int32), powers.name))
    onnx.save(model, path)
    with pytest.raises(DataError, match="gives no 20 outputs with their codes"):
        load_encoder(copied).encode(np.zeros((2, 3, 24, 24), np.uint8))
