"""Codes whose first bits are codes of their own: what is trained, what is measured, and what stays."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import average_precision_score

from benchmarks.nested import table
from crh_tune.settings.trial import EvaluationSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.evaluation import encode_share, shorter_test_maps
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers
from tests.training.conftest import settings_for, split_of


def begun(split, dataset="digits", **trial) -> TrainingRun:
    run = TrainingRun(settings_for(split, dataset=dataset, head_dim=8, **trial), split, Workers(), solve_locally)
    run.take_first_centers()
    return run


def loss_by_hand(u: np.ndarray, y: np.ndarray, centers: np.ndarray, s: float, margin: float, weight: float) -> float:
    """Eq. 1 to 4 of the paper for one sample."""
    cosines = np.array([u @ c / (np.linalg.norm(u) * np.linalg.norm(c)) for c in centers])
    logits = s * (cosines - margin * y)
    log_softmax = logits - np.log(np.exp(logits).sum())
    return -(y / y.sum()) @ log_softmax + weight * np.mean((np.abs(np.tanh(u)) - 1) ** 2)


@pytest.mark.parametrize("dataset", ["digits", "digit_sets"])
def test_the_loss_is_the_mean_of_what_codes_of_each_length_would_have(dataset):
    split = split_of(dataset)
    run = begun(split, dataset, bits=32, nested=[8, 24], margin=0.3, quantization_weight=0.4)
    generator = np.random.default_rng(0)
    inputs = torch.from_numpy(np.asarray(split.train.inputs[np.arange(6)]))
    targets = np.zeros((6, split.classes))
    targets[np.arange(6), generator.integers(0, split.classes, 6)] = 1
    if split.multi_label:
        targets[:3, generator.integers(0, split.classes, 2)] = 1
    model, centers = run.model.eval(), run.centers.astype(float)
    terms, codes = model(inputs, torch.from_numpy(targets).float(), torch.from_numpy(centers).float())
    with torch.no_grad():
        u = model.network(inputs).double().numpy()
    scale = run.trial.scale
    expected = [
        np.mean([loss_by_hand(u[i, :k], targets[i], centers[:, :k], scale, 0.3, 0.4) for k in (8, 24, 32)])
        for i in range(6)
    ]
    assert sum(terms.values()).tolist() == pytest.approx(expected, rel=1e-5)
    assert codes.shape == (6, 32)  # reassignment stands on all heads


def test_first_heads_begin_and_move_as_those_of_a_shorter_code_with_the_same_codes():
    split = split_of()
    run, short = begun(split, bits=32, nested=[16]), begun(split, bits=16)
    assert np.array_equal(run.centers[:, :16], short.centers)
    codes = torch.from_numpy(np.random.default_rng(0).random((len(split.train), 32)) < 0.5)
    rows = np.arange(len(split.train))
    run._reassign(rows, codes)
    short._reassign(rows, codes[:, :16])
    assert np.array_equal(run.centers[:, :16], short.centers)
    assert not np.array_equal(run.centers, begun(split, bits=32).centers)


@pytest.mark.parametrize("stage", ["search", "final"])
def test_every_length_is_ranked_by_its_own_bits(stage):
    """Against scikit-learn on distances counted bit by bit, ties in database order."""
    split = split_of(stage=stage)
    settings = settings_for(split, bits=24, nested=[8, 16], head_dim=8, epochs=1)
    settings = settings.model_copy(update={"evaluation": EvaluationSettings(ties="stable")})
    run = TrainingRun(settings, split, Workers(), solve_locally)
    metrics = run.train(lambda metrics, save: None)
    queries, database = (encode_share(run.network, part, Workers()).numpy() for part in (split.queries, split.ranked))
    prefix = "val" if stage == "search" else "test"
    for bits, name in ((8, "map_8"), (16, "map_16"), (24, "map")):
        values = []
        for code, label in zip(queries[:, :bits], split.queries.labels, strict=True):
            order = np.argsort((code != database[:, :bits]).sum(axis=1), kind="stable")
            values.append(average_precision_score(split.ranked.labels[order] == label, -np.arange(len(order))))
        assert metrics[f"{prefix}/{name}"] == pytest.approx(np.mean(values), abs=1e-9)
    expected = {bits: metrics[f"test/map_{bits}"] for bits in (8, 16)} if stage == "final" else {}
    assert shorter_test_maps(metrics) == expected


def test_short_codes_are_better_than_the_first_bits_of_codes_that_were_not_trained_so():
    split = split_of("digit_pairs")
    maps = {}
    for nested in ([8], []):
        run = begun(split, "digit_pairs", bits=64, nested=nested, epochs=6, evaluate_every=6)
        run.train(lambda metrics, save: None)
        queries, database = (encode_share(run.network, p, Workers()).numpy() for p in (split.queries, split.ranked))
        apart = (queries[:, None, :8] != database[None, :, :8]).sum(axis=2)
        relevant = split.queries.labels[:, None] == split.ranked.labels
        maps[bool(nested)] = np.mean([average_precision_score(r, -d) for r, d in zip(relevant, apart, strict=True)])
    assert maps[True] > maps[False] + 0.02


def test_no_nested_lengths_are_what_there_was_before():
    split = split_of()
    plain, none = begun(split), begun(split, nested=[])
    for run in (plain, none):
        assert "nested" not in run.settings.model_dump(mode="json")["trial"]
        assert run.model.lengths == (16,)
    a, b = (run.train(lambda metrics, save: None) for run in (plain, none))
    assert {name: value for name, value in a.items() if not name.startswith("seconds/")} == {
        name: value for name, value in b.items() if not name.startswith("seconds/")
    }
    assert not any(name.startswith("val/map_") and name != "val/map_asymmetric" for name in a)


@pytest.mark.parametrize(("below", "holds"), [(0.0, True), (0.03, False)])
def test_the_benchmark_compares_pairs_of_seeds(below, holds):
    """Against SciPy's paired t test."""
    noise = np.random.default_rng(0).normal(size=(2, 6)) * 0.004
    own, nested = 0.8 + noise[0], 0.8 + noise[1] - below
    results = {}
    for seed in range(6):
        results["own-16", seed] = {"maps": {"16": own[seed]}, "seconds": 4.0}
        results["own-32", seed] = {"maps": {"16": 0.1, "32": 0.9}, "seconds": 4.0}
        results["nested", seed] = {"maps": {"16": nested[seed], "32": 0.9}, "seconds": 5.0}
    lines, kept = table(results, Namespace(lengths=[16, 32], seeds=6, epochs=40, nested_epochs=None))
    interval = scipy.stats.ttest_rel(nested, own).confidence_interval(0.95)
    middle, half = (interval.high + interval.low) / 2, (interval.high - interval.low) / 2
    assert lines[2] == f"| 16 | {own.mean():.4f} | {nested.mean():.4f} | {middle:+.4f} ± {half:.4f} | 0.1000 |"
    assert lines[-1] == "6 seeds; 40 epochs in place of 80 (50%), 62% of the CPU time."
    assert kept == holds
