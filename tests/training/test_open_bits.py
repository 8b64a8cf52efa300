"""Bits that are not trained: what they stand on, where they are in a code, and that without them nothing changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crh_tune.data.splits import Samples, Split
from crh_tune.export import load_encoder, load_index
from crh_tune.export.bundle import write_bundle
from crh_tune.hashing.network import HashNetwork
from crh_tune.retrieval.packing import pack_codes
from crh_tune.settings.base import SettingsError
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.open_bits import fit_open_bits
from crh_tune.training.workers import Workers
from tests.training.conftest import settings_for, split_of


def trained(split: Split, method: str = "crh", **trial) -> tuple[TrainingRun, dict[str, float]]:
    run = TrainingRun(settings_for(split, method, epochs=2, **trial), split, Workers(), solve_locally)
    metrics = run.train(lambda metrics, save: None)
    return run, {name: value for name, value in metrics.items() if not name.startswith("seconds/")}


def inputs_of(samples: Samples) -> torch.Tensor:
    return torch.from_numpy(np.asarray(samples.inputs[np.arange(len(samples))]))


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_directions_are_those_of_linear_discriminant_analysis(kind):
    """Against scikit-learn's solution of the same shrunken problem: the two span the same directions."""
    generator = np.random.default_rng(3)
    classes, size = 5, 12
    labels = np.repeat(np.arange(classes), 40)
    middle = generator.normal(size=(classes, size)) * 3
    inputs = (middle[labels] + generator.normal(size=(200, size)) @ generator.normal(size=(size, size))).astype("f4")
    given = labels if kind == "single" else np.eye(classes, dtype=np.uint8)[labels]
    fitted = fit_open_bits(Samples(inputs, given), (size,), classes, classes - 1, 0)
    exact = inputs.astype(float)
    means = np.stack([exact[labels == c].mean(axis=0) for c in range(classes)])
    within = np.cov((exact - means[labels]).T, bias=True)
    within = 0.4 * within + 0.6 * np.trace(within) / size * np.eye(size)
    wanted = np.linalg.solve(within, (means - exact.mean(axis=0)).T)  # Fisher: C - 1 directions, W^-1 (m_c - m)
    assert np.linalg.matrix_rank(np.hstack([wanted, fitted.projection]), tol=1e-3 * np.linalg.norm(wanted)) <= classes
    found, *_ = np.linalg.lstsq(wanted, fitted.projection.astype(float), rcond=None)
    apart = np.linalg.norm(wanted @ found - fitted.projection, axis=0) / np.linalg.norm(fitted.projection, axis=0)
    assert apart.max() < 0.05  # the hundredth of the whole variation moves them a little
    assert np.abs(fitted.project(inputs)).mean() == pytest.approx(1, rel=1e-5)
    assert np.allclose(fitted.mean, exact.mean(axis=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("offset", "scale", "dtype"), [(1e8, 1, "f8"), (0, 1e39, "f8"), (0, 1e20, "f4")])
def test_inputs_far_from_zero_and_large_ones_have_the_open_bits_of_any_others(offset, scale, dtype):
    generator, labels = np.random.default_rng(0), np.arange(200) % 5
    inputs = generator.normal(size=(5, 12))[labels] + 0.5 * generator.normal(size=(200, 12))
    near, moved = inputs.astype("f4"), (inputs * scale + offset).astype(dtype)
    expected = fit_open_bits(Samples(near, labels), (12,), 5, 4, 0).project(near)
    fitted = fit_open_bits(Samples(moved, labels), (12,), 5, 4, 0)
    network = HashNetwork(
        "mlp", (12,), 8, torch.zeros(12), torch.full((12,), scale, dtype=torch.float64), open_bits=4
    ).eval()
    network.open_mean.copy_(torch.from_numpy(fitted.mean))
    network.open_projection.copy_(torch.from_numpy(fitted.projection))
    with torch.no_grad():
        assert np.allclose(network(torch.from_numpy(moved))[:, 8:].numpy(), expected, atol=1e-2)


def test_more_bits_than_classes_or_values_are_all_of_use():
    generator = np.random.default_rng(0)
    samples = Samples(generator.normal(size=(300, 6)).astype("f4"), np.arange(300) % 3)
    codes = fit_open_bits(samples, (6,), 3, 16, 0).encode(samples.inputs)
    assert ((codes.mean(axis=0) > 0.1) & (codes.mean(axis=0) < 0.9)).all()
    assert len(np.unique(codes, axis=1).T) == 16


def test_inputs_of_too_many_values_are_told_what_would_do():
    samples = Samples(np.zeros((4, 3, 64, 64), dtype=np.uint8), np.arange(4) % 2)
    with pytest.raises(SettingsError, match=r"trial\.open_bits: inputs of 12288 values are too many.*freeze"):
        fit_open_bits(samples, (3, 64, 64), 2, 4, 0)


@pytest.mark.parametrize("method", ["crh", "orthohash", "dtsh", "csq"])
@pytest.mark.parametrize("dataset", ["digits", "digit_sets"])
def test_the_trained_bits_are_those_of_a_shorter_code_and_the_open_ones_follow_them(method, dataset):
    split = split_of(dataset)
    run, _ = trained(split, method, dataset=dataset, bits=24, open_bits=8)
    short, _ = trained(split, method, dataset=dataset, bits=16)
    inputs = inputs_of(split.queries)
    codes, expected = (each.network.eval().encode(inputs).numpy() for each in (run, short))
    assert np.array_equal(codes[:, :16], expected)
    assert np.array_equal(run.centers, short.centers)
    shape = run.network.shape
    fitted = fit_open_bits(split.train, shape, split.classes, 8, 0)
    flat = inputs.numpy().reshape(len(inputs), -1)
    values = (flat.astype(np.float64) - fitted.mean) @ fitted.projection.astype(np.float64)
    clear = np.abs(values) > 1e-3
    assert clear.mean() > 0.99
    assert np.array_equal(codes[:, 16:][clear], (values >= 0)[clear])


def test_no_open_bits_are_what_there_was_before():
    split = split_of()
    (plain, a), (none, b) = trained(split), trained(split, open_bits=0)
    assert a == b
    assert "open_bits" not in plain.settings.model_dump(mode="json")["trial"]
    assert list(plain.model.state_dict()) == list(none.model.state_dict())
    assert not any("open" in name for name in plain.model.state_dict())
    inputs = inputs_of(split.queries)
    assert torch.equal(plain.network(inputs), plain.network(inputs, trained_only=True))


def test_open_bits_stand_on_training_samples_alone():
    split = split_of()
    wild = replace(
        split.queries,
        inputs=np.random.default_rng(0).permutation(split.queries.inputs.ravel()).reshape(split.queries.inputs.shape),
    )
    runs = [
        TrainingRun(settings_for(each, open_bits=8), each, Workers(), solve_locally)
        for each in (split, replace(split, queries=wild))
    ]
    assert torch.equal(runs[0].network.open_projection, runs[1].network.open_projection)
    assert torch.equal(runs[0].network.open_mean, runs[1].network.open_mean)


def test_a_run_with_open_bits_goes_on_from_its_checkpoint_and_is_exported_whole(tmp_path):
    split = split_of()
    run, metrics = trained(split, bits=24, open_bits=8)
    run._save(tmp_path / "checkpoint")
    other = TrainingRun(run.settings, split, Workers(), solve_locally)
    other.restore(tmp_path / "checkpoint")
    assert torch.equal(other.network.open_projection, run.network.open_projection)
    write_bundle(tmp_path / "export", run, "card")
    encoder, index = load_encoder(tmp_path / "export"), load_index(tmp_path / "export")
    expected = pack_codes(run.network.eval().encode(inputs_of(split.queries)).numpy())
    assert np.array_equal(encoder.encode(split.queries.inputs), expected)
    assert encoder.bits == 24
    _, distances = index.search(encoder.encode(split.train.inputs[:5]), 1)
    assert (np.asarray(distances) == 0).all()
    assert metrics["val/map"] > 0.2


def test_images_are_cut_as_the_network_cuts_them():
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 10, 10)).astype(np.uint8)
    fitted = fit_open_bits(Samples(images, np.arange(40) % 4), (1, 8, 8), 4, 4, 0)
    network = HashNetwork("small_cnn", (1, 8, 8), 8, torch.zeros(1), torch.ones(1), open_bits=4).eval()
    network.open_mean.copy_(torch.from_numpy(fitted.mean))
    network.open_projection.copy_(torch.from_numpy(fitted.projection))
    cut = images[:, :, 1:9, 1:9].reshape(40, -1).astype(np.float32)
    values = (cut - fitted.mean) @ fitted.projection
    with torch.no_grad():
        assert np.allclose(network(torch.from_numpy(images))[:, 8:].numpy(), values, atol=1e-2)
