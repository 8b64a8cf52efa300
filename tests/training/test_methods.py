"""One conformance suite that every method passes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from crh_tune.data.splits import Samples, Split
from crh_tune.hashing.codebook import shared_centers
from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES
from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.batches import load_batches
from crh_tune.training.loop import Metrics, TrainingRun
from crh_tune.training.workers import Workers
from tests.training.conftest import split_of

every_method = pytest.mark.parametrize("method", METHODS)


def resolved(split: Split, method: str, **trial) -> TrialSettings:
    content = {"dataset": {"name": "digits"}, "method": method, "trial": {"bits": 32, "epochs": 2, **trial}}
    return TrialSettings.model_validate(content).resolve(split.classes, split.multi_label)


def make(split: Split, method: str, **trial) -> TrainingRun:
    run = TrainingRun(resolved(split, method, **trial), split, Workers(), solve_locally)
    run.take_first_centers()
    return run


def silent(metrics: Metrics, save: object) -> None:
    pass


@lru_cache
def small(name: str = "digits", samples: int = 400) -> Split:
    split = split_of(name)
    rows = np.random.default_rng(0).permutation(len(split.train))[:samples]
    return replace(split, train=split.train[np.sort(rows)], queries=split.queries[np.arange(100)])


def only(split: Split, classes: list[int], labels: dict[int, int]) -> Split:
    """The samples of some classes, with other class numbers."""
    parts = []
    for samples in (split.train, split.queries):
        part = samples[np.flatnonzero(np.isin(samples.labels, classes))]
        parts.append(Samples(part.inputs, np.array([labels[int(c)] for c in part.labels])))
    names = tuple(str(c) for c in range(max(labels.values()) + 1))
    return replace(split, train=parts[0], queries=parts[1], class_names=names)


@every_method
def test_its_losses_are_one_a_sample_and_finite_and_their_gradient_reaches_the_whole_network(method):
    run = make(small(), method)
    inputs = torch.from_numpy(small().train.inputs[:20])
    targets = torch.eye(10)[small().train.labels[:20]]
    terms, _ = run.model(inputs, targets, torch.from_numpy(run.centers).float())
    assert all(term.shape == (20,) and torch.isfinite(term).all() for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in run.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_method
def test_its_loss_falls_and_its_codes_beat_random_ones(method):
    first: list[Metrics] = []
    run = make(small(), method, epochs=8, evaluate_every=1)
    metrics = run.train(lambda metrics, save: first.append(metrics) if metrics["epoch"] else None)
    name = next(name for name in metrics if name not in ("loss/total", "loss/quantization") and "loss/" in name)
    assert metrics[name] < first[0][name]
    assert metrics["val/map"] > 0.5  # random codes give about 0.1


@every_method
def test_it_learns_from_several_labels_a_sample(method):
    untrained = make(small("digit_sets"), method, epochs=1, learning_rate=1e-12).train(silent)
    trained = make(small("digit_sets"), method, epochs=8, evaluate_every=8).train(silent)
    assert np.isfinite(trained["loss/total"])
    assert trained["val/map"] > untrained["val/map"] + 0.02


@every_method
def test_a_run_goes_on_from_its_checkpoint_as_if_nothing_had_happened(method, tmp_path: Path):
    whole = make(small(), method, epochs=3)
    expected = whole.train(lambda metrics, save: save(tmp_path) if metrics["epoch"] == 2 and save else None)
    resumed = TrainingRun(resolved(small(), method, epochs=3), small(), Workers(), solve_locally)
    resumed.restore(tmp_path)
    metrics = resumed.train(silent)
    assert {k: v for k, v in metrics.items() if "seconds" not in k} == {
        k: v for k, v in expected.items() if "seconds" not in k
    }
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@every_method
def test_a_batch_of_one_class_only_is_finite(method):
    run = make(small(), method)
    rows = np.flatnonzero(small().train.labels == 3)[:6]
    loaded = load_batches(run.split.train, run._parts(rows), run.split.classes, run.workers.device)
    terms = run._train_step(rows, loaded, torch.from_numpy(run.centers).float())
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


@every_method
def test_two_classes_are_enough(method):
    split = only(small(), [0, 1], {0: 0, 1: 1})
    metrics = make(split, method, epochs=6, evaluate_every=6).train(silent)
    assert metrics["val/map"] > 0.8


@every_method
def test_a_class_without_a_sample_keeps_a_centre_of_its_own(method):
    split = only(small(), [0, 1, 3], {0: 0, 1: 1, 3: 3})
    run = make(split, method)
    before = run.centers[2].copy()
    metrics = run.train(silent)
    assert np.isfinite(metrics["loss/total"])
    assert np.array_equal(run.centers[2], before)
    if run.has_centers:
        assert not shared_centers(run.centers)


@every_method
def test_bits_need_not_be_a_power_of_two(method):
    metrics = make(small(), method, bits=24, epochs=1).train(silent)
    assert np.isfinite(metrics["loss/total"])


def train_in_two(rank: int, size: int, methods: list[str], expected: dict[str, dict[str, np.ndarray]]) -> None:
    def solve(round_, statistic):
        total = torch.from_numpy(statistic.copy())
        torch.distributed.all_reduce(total)
        return solve_locally(round_, total.numpy())

    for method in methods:
        run = TrainingRun(two_worker_settings(method), small(), Workers(rank, size), solve)
        metrics = run.train(silent)
        assert abs(metrics["loss/total"] - expected[method]["loss"]) < 1e-3 * abs(expected[method]["loss"]), method
        assert np.array_equal(run.centers, expected[method]["centers"]), method


def two_worker_settings(method: str) -> TrialSettings:
    """Too slow a rate for rounding to grow: what differs is the sharding alone."""
    return resolved(small(), method, epochs=1, learning_rate=1e-6, batch_size=101)


def test_two_workers_train_every_method_as_one_does(in_group):
    expected = {}
    for method in METHODS:
        run = TrainingRun(two_worker_settings(method), small(), Workers(), solve_locally)
        expected[method] = {"loss": run.train(silent)["loss/total"], "centers": run.centers}
    in_group(2, train_in_two, list(METHODS), expected)


def test_every_objective_has_a_method_and_every_method_an_objective():
    assert {method.objective for method in METHODS.values()} == set(OBJECTIVES)


def test_parts_of_methods_can_be_combined():
    split = small("digit_pairs")
    run = make(split, "crh", centers="mds", bits=16)
    assert run.trial.codebook_size == split.classes
    assert np.isfinite(run.train(silent)["loss/total"])
    for settings, complaint in (
        ({"centers": "mds", "codebook_size": 300}, "codebook_size has no meaning with centers mds"),
        ({"centers": "none"}, "reassignment greedy needs centres"),
    ):
        with pytest.raises(SettingsError, match=complaint):
            resolved(split, "crh", bits=16, **settings)
