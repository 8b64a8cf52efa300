"""Shorter codes of one export: by PyTorch, by ONNX and from the command line they are the first bits of whole ones."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from crh_tune.errors import DataError
from crh_tune.export import load_encoder as load_trained
from crh_tune.export.onnx_file import export_run
from crh_tune.serving import load_encoder
from crh_tune.serving.__main__ import main
from crh_tune.serving.answers import open_answers
from crh_tune.serving.codes import read_codes
from crh_tune.serving.index import open_index
from crh_tune.settings.base import SettingsError
from tests.export.test_bundle import feature_run


def run(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def bits_of(words: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of 20 bits, the first 5 and 15 of which are codes too; beside it an array, ``rows.npz``."""
    folder = tmp_path_factory.mktemp("nested")
    run = feature_run(folder, nested=[5, 15], head_dim=5)
    metrics = {name: value for name, value in run.metrics.items() if name.startswith("test/")}
    export_run(folder / "export", run, metrics, [])
    rows = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    np.savez(folder / "rows.npz", features=rows, labels=np.array([f"class {i % 3}" for i in range(30)]))
    return folder / "export"


def test_both_encoders_have_the_first_bits(nested):
    inputs = np.load(nested.parent / "rows.npz")["features"]
    for load in (load_trained, load_encoder):
        whole = load(nested)
        for bits in (5, 15, 20):
            short = load(nested, bits=bits)
            assert short.bits == bits
            found = bits_of(short.encode(inputs))
            assert np.array_equal(found[:, :bits], bits_of(whole.encode(inputs))[:, :bits])
            assert not found[:, bits:].any()
            assert np.array_equal(short.outputs(inputs), whole.outputs(inputs)[:, :bits])
            assert short.encode(inputs[:0]).dtype == short.encode(inputs).dtype
    for bits in (0, 10, 16, 40):
        for load, error in ((load_trained, SettingsError), (load_encoder, DataError)):
            with pytest.raises(
                error, match=f"no codes of {bits} bits: this encoder was trained for 5 or 15 or 20 bits"
            ):
                load(nested, bits=bits)


def test_the_card_says_so(nested):
    card = (nested / "model_card.md").read_text()
    assert "whose first 5 and first 15 bits are codes of their own" in card
    assert "| test/map_5 | " in card
    assert "| test/map_15 | " in card


def test_a_shorter_length_goes_from_encoding_to_answers_and_stores(nested, tmp_path, capsys):
    rows = nested.parent / "rows.npz"
    assert run("encode", nested, rows, "-o", tmp_path / "whole.npz") == 0
    assert run("encode", nested, rows, "--bits", 5, "-o", tmp_path / "short.npz") == 0
    assert "30 codes of 5 bits" in capsys.readouterr().out
    whole, short = read_codes(tmp_path / "whole.npz"), read_codes(tmp_path / "short.npz")
    assert short.bits == 5
    assert np.array_equal(short.words, whole.words & 31)
    assert run("index", nested, tmp_path / "short.npz", "-o", tmp_path / "index") == 0
    assert open_index(tmp_path / "index")[1].bits == 5
    answers = open_answers(nested, tmp_path / "index")
    inputs = np.load(rows)["features"]
    codes = bits_of(whole.words)[:, :5].astype(int)
    for by in ("bits", "outputs"):
        for code, (found, nearest) in zip(codes, answers.near_inputs(inputs, 30, by), strict=True):
            distances = np.abs(codes - code).sum(axis=1)
            assert nearest == 0
            assert [each.distance for each in found] == [distances[each.row] for each in found]
            if by == "bits":
                assert [each.row for each in found] == np.argsort(distances, kind="stable").tolist()
    assert answers.reach is None  # it was measured with codes of 20 bits
    assert open_answers(nested).reach is not None
    assert run("handover", nested, "--index", tmp_path / "index", "--to", "qdrant", "-o", tmp_path / "store") == 0
    assert np.array_equal(np.load(tmp_path / "store" / "vectors.npy"), 2 * codes - 1)
    assert run("encode", nested, rows, "--bits", 7, "-o", tmp_path / "none.npz") == 2
    assert "no codes of 7 bits" in capsys.readouterr().err
    assert not (tmp_path / "none.npz").exists()
    assert run("index", nested, tmp_path / "short.npz", tmp_path / "whole.npz", "-o", tmp_path / "both") == 2


def test_encoding_that_was_interrupted_goes_on_at_another_length(nested, tmp_path):
    rows, encoder = nested.parent / "rows.npz", load_encoder(nested)
    assert run("encode", nested, rows, "-o", tmp_path / "whole.npz") == 0
    words = read_codes(tmp_path / "whole.npz").words
    stamp = f"{rows.stat().st_size}-{rows.stat().st_mtime_ns}"
    found = {f"{rows}:{i}|{stamp}": base64.b64encode(np.invert(words[i : i + 1]).tobytes()).decode() for i in range(4)}
    line = json.dumps({"encoder": encoder.name, "found": found})
    (tmp_path / "short.npz.partial").write_text(f"{line}\n")
    assert run("encode", nested, rows, "--bits", 15, "-o", tmp_path / "short.npz") == 0
    expected = np.concatenate([~words[:4], words[4:]]).astype(np.uint32) & (2**15 - 1)
    assert np.array_equal(read_codes(tmp_path / "short.npz").words, expected.astype(np.uint16))


def test_enrolled_classes_have_the_first_bits_of_their_places(nested, tmp_path):
    rows = nested.parent / "rows.npz"
    assert run("enroll", nested, rows, "-o", tmp_path / "new.npz") == 0
    try:
        for bits in (20, 15):
            assert run("encode", nested, rows, "--bits", bits, "-o", tmp_path / f"{bits}.npz") == 0
        for place in ("middle", "word", "own"):
            for bits in (20, 15):
                to = tmp_path / f"{place}-{bits}"
                assert run("index", nested, tmp_path / f"{bits}.npz", "-o", to, "--enrolled", place) == 0
            whole, short = (bits_of(open_index(tmp_path / f"{place}-{bits}")[0].words)[:, :15] for bits in (20, 15))
            assert np.array_equal(whole, short)
    finally:
        (nested / "enrolled.json").unlink()
