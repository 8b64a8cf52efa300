"""Checkpoints and exports with any damage: what they held to the last bit, or one line that names the file."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crh_tune.export import Encoder, Index, load_encoder, load_index
from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import read_trial
from crh_tune.training.checkpoints import CHECKPOINT_FILE, CheckpointError, Header, keep, load, newest
from crh_tune.training.loop import TrainingRun
from tests.export.test_bundle import exported, feature_run

MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Whole:
    """A run with two checkpoints and an export, as they are without damage."""

    run: TrainingRun
    checkpoints: Path
    folder: Path
    encoder: Encoder
    index: Index
    queries: np.ndarray


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    run = feature_run(folder, backbone="linear", epochs=1)
    keep(folder, 1, run._save)
    run.epoch += 1
    with torch.no_grad():
        next(run.model.parameters()).add_(1.0)
    keep(folder, 2, run._save)
    export = exported(run, folder / "export")
    queries = run.split.queries.inputs[np.arange(len(run.split.queries))]
    return Whole(run, folder, export, load_encoder(export), load_index(export), queries)


def other_files() -> list[bytes]:
    """Whole files of other kinds."""
    written = [io.BytesIO() for _ in range(6)]
    torch.save({"weights": torch.zeros(3)}, written[0])
    torch.save(torch.zeros(3), written[1])
    np.savez(written[2], words=np.zeros((2, 1), dtype=np.uint8))
    np.savez(written[3], words=np.zeros((3, 1), dtype=np.uint8), labels=np.zeros(2))
    np.savez(written[4], words=np.zeros((3, 2)), labels=np.zeros(3))
    with zipfile.ZipFile(written[5], "w") as archive:
        archive.writestr("words.npy", b"no array")
    return [*(each.getvalue() for each in written), b"", b"{}", b"\x93NUMPY\x01\x00v\x00", b"PK\x05\x06" + bytes(18)]


OTHERS = other_files()


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, int, bytes]:
    """How a file is damaged: the kind, a place in parts of 2^32 of its length, and bytes."""
    kind = draw(st.sampled_from(["cut", "flip", "overwrite", "insert", "replace", "other"]))
    content = draw(st.sampled_from(OTHERS) if kind == "other" else st.binary(min_size=1, max_size=64))
    return kind, draw(st.integers(0, 2**32 - 1)), content


def damaged(whole: bytes, damage: tuple[str, int, bytes]) -> bytes:
    kind, part, content = damage
    place = part * len(whole) >> 32
    if kind == "cut":
        return whole[:place]
    if kind == "flip":
        return whole[:place] + bytes([whole[place] ^ 1 << content[0] % 8]) + whole[place + 1 :]
    if kind == "overwrite":
        return whole[:place] + content + whole[place + len(content) :]
    return whole[:place] + content + whole[place:] if kind == "insert" else content


def read_or_refused(read: Callable[[Path], Any], path: Path, name: Path | None = None) -> Any:
    """What was read; None where it was refused in one line that names the file. Anything else comes out as it is."""
    try:
        return read(path)
    except (SettingsError, CheckpointError) as error:
        said = str(error)
    assert said.startswith(f"{name or path}: ")
    assert "\n" not in said
    return None


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(
        torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True)
    )


@MANY
@given(damage=damages())
def test_a_damaged_encoder_encodes_as_before_or_is_refused_with_its_name(whole: Whole, tmp_path: Path, damage):
    path = tmp_path / "encoder.pt"
    path.write_bytes(damaged((whole.folder / path.name).read_bytes(), damage))
    found: Encoder | None = read_or_refused(load_encoder, tmp_path, path)
    if found is None:
        return
    assert same_weights(found.network, whole.encoder.network)
    assert (found.shape, found.bits, found.class_names) == (
        whole.encoder.shape,
        whole.encoder.bits,
        whole.encoder.class_names,
    )
    assert np.array_equal(found.encode(whole.queries), whole.encoder.encode(whole.queries))


@MANY
@given(damage=damages())
def test_a_damaged_index_finds_the_same_or_is_refused_with_its_name(whole: Whole, tmp_path: Path, damage):
    path = tmp_path / "index.npz"
    path.write_bytes(damaged((whole.folder / path.name).read_bytes(), damage))
    found: Index | None = read_or_refused(load_index, tmp_path, path)
    if found is None:
        return
    assert found.words.dtype == whole.index.words.dtype
    assert np.array_equal(found.words, whole.index.words)
    assert np.array_equal(found.labels, whole.index.labels)
    assert np.array_equal(found.items, whole.index.items)


@MANY
@given(damage=damages())
def test_damaged_settings_are_settings_or_are_refused_with_their_name(whole: Whole, tmp_path: Path, damage):
    path = tmp_path / "settings.yaml"
    path.write_bytes(damaged((whole.folder / path.name).read_bytes(), damage))
    read_or_refused(read_trial, path)


@MANY
@given(damage=damages())
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(whole: Whole, tmp_path: Path, damage):
    last = tmp_path / "checkpoint_000002"
    if not last.exists():
        for folder in whole.checkpoints.glob("checkpoint_*"):
            shutil.copytree(folder, tmp_path / folder.name)
    path = last / CHECKPOINT_FILE
    path.write_bytes(damaged((whole.checkpoints / last.name / path.name).read_bytes(), damage))
    found = read_or_refused(load, last, path)
    assert found is None or plain(found) == plain(load(whole.checkpoints / last.name))
    folder = newest(tmp_path)
    assert folder == (tmp_path / "checkpoint_000001" if found is None else last)
    whole.run.restore(folder)
    assert whole.run.epoch == (1 if found is None else 2)


def plain(state: object) -> str:
    """A state as text, tensors bit by bit."""

    def as_text(value: Any) -> Any:
        return value.model_dump() if isinstance(value, Header) else value.numpy().tobytes().hex()

    return json.dumps(state, default=as_text)


def test_every_checkpoint_that_is_damaged_leaves_a_run_to_begin_anew(whole: Whole, tmp_path: Path):
    for name, content in (("checkpoint_000001", b""), ("checkpoint_000002", b"\x00" * 99)):
        (tmp_path / name).mkdir()
        (tmp_path / name / CHECKPOINT_FILE).write_bytes(content)
    (tmp_path / "checkpoint_000003").mkdir()
    (tmp_path / "checkpoint_000004").write_bytes(b"a file")
    assert newest(tmp_path) is None
