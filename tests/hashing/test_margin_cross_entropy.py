"""Eq. 1 to 4 against the formulas written out in float64 numpy, and their gradient against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crh_tune.hashing.objectives.margin_cross_entropy import (
    MarginCrossEntropy,
    MarginCrossEntropyOptions,
    paper_scale,
)

CASES = [
    (multi, scale, margin, weight)
    for multi in (False, True)
    for scale, margin, weight in [(6.0, 0.2, 0.1), (8.934, 0.0, 0.0), (2.5, 0.5, 1.0)]
]


def batch(multi: bool, seed: int = 0, bits: int = 8, classes: int = 5, count: int = 6):
    generator = np.random.default_rng(seed)
    outputs = generator.normal(size=(count, bits))
    centers = np.where(generator.random((classes, bits)) < 0.5, -1.0, 1.0)
    targets = np.eye(classes)[generator.integers(0, classes, count)]
    if multi:
        targets = np.maximum(targets, generator.random((count, classes)) < 0.4)
    return outputs, targets, centers


def by_hand(outputs, targets, centers, scale, margin, weight) -> tuple[float, float]:
    """(L_CE, lambda L_q) of Eq. 1 to 3, term by term."""
    count, bits = outputs.shape
    cross_entropy = 0.0
    for v, y in zip(outputs, targets, strict=True):
        similarity = [
            v @ c / (math.sqrt(v @ v) * math.sqrt(c @ c)) - y_c * margin for c, y_c in zip(centers, y, strict=True)
        ]
        total = sum(math.exp(scale * value) for value in similarity)
        for y_c, value in zip(y, similarity, strict=True):
            if y_c:
                cross_entropy -= y_c / y.sum() * math.log(math.exp(scale * value) / total)
    quantization = sum((abs(math.tanh(value)) - 1) ** 2 for value in outputs.ravel())
    return cross_entropy / count, weight * quantization / (count * bits)


def objective(bits: int, classes: int, scale: float, margin: float, weight: float):
    options = MarginCrossEntropyOptions(
        bits=bits, classes=classes, scale=scale, margin=margin, quantization_weight=weight
    )
    return MarginCrossEntropy(options)


@pytest.mark.parametrize(("multi", "scale", "margin", "weight"), CASES)
def test_the_loss_is_eq_1_to_4(multi, scale, margin, weight):
    outputs, targets, centers = batch(multi)
    assert (targets.sum(axis=1) > 1).any() == multi
    terms = objective(8, 5, scale, margin, weight)(*map(torch.from_numpy, (outputs, targets, centers)))
    expected = by_hand(outputs, targets, centers, scale, margin, weight)
    assert {name: tuple(term.shape) for name, term in terms.items()} == {"cross_entropy": (6,), "quantization": (6,)}
    assert terms["cross_entropy"].mean().item() == pytest.approx(expected[0], abs=1e-12)
    assert terms["quantization"].mean().item() == pytest.approx(expected[1], abs=1e-12)


@pytest.mark.parametrize(("multi", "scale", "margin", "weight"), CASES)
def test_the_gradient_is_that_of_eq_4(multi, scale, margin, weight):
    outputs, targets, centers = batch(multi, seed=1)
    leaf = torch.from_numpy(outputs).requires_grad_()
    terms = objective(8, 5, scale, margin, weight)(leaf, torch.from_numpy(targets), torch.from_numpy(centers))
    sum(terms.values()).mean().backward()
    step = 1e-6
    for place in np.ndindex(outputs.shape):
        values = []
        for sign in (1, -1):
            moved = outputs.copy()
            moved[place] += sign * step
            values.append(sum(by_hand(moved, targets, centers, scale, margin, weight)))
        assert leaf.grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("multi", [False, True])
def test_each_sample_has_its_own_loss(multi):
    outputs, targets, centers = batch(multi, seed=2)
    terms = objective(8, 5, 6.0, 0.2, 0.1)(*map(torch.from_numpy, (outputs, targets, centers)))
    for row in range(len(outputs)):
        alone = by_hand(outputs[row : row + 1], targets[row : row + 1], centers, 6.0, 0.2, 0.1)
        assert terms["cross_entropy"][row].item() == pytest.approx(alone[0], abs=1e-12)
        assert terms["quantization"][row].item() == pytest.approx(alone[1], abs=1e-12)


@pytest.mark.parametrize("multi", [False, True])
def test_float32_loses_no_more_than_its_rounding(multi):
    outputs, targets, centers = batch(multi, seed=3, bits=64, classes=100, count=32)
    arguments = [torch.from_numpy(array).float() for array in (outputs, targets, centers)]
    terms = objective(64, 100, paper_scale(100), 0.2, 0.1)(*arguments)
    expected = by_hand(outputs, targets, centers, math.sqrt(2) * math.log(99), 0.2, 0.1)
    assert terms["cross_entropy"].mean().item() == pytest.approx(expected[0], rel=1e-5)
    assert terms["quantization"].mean().item() == pytest.approx(expected[1], rel=1e-5)


def test_a_sample_without_a_label_has_no_cross_entropy():
    outputs, targets, centers = batch(True)
    targets[2] = 0
    terms = objective(8, 5, 6.0, 0.2, 0.1)(*map(torch.from_numpy, (outputs, targets, centers)))
    assert terms["cross_entropy"][2].item() == 0
    assert (terms["cross_entropy"][[0, 1, 3, 4, 5]] > 0).all()


def test_at_a_large_scale_and_margin_the_loss_stays_finite():
    outputs, targets, centers = batch(False)
    terms = objective(8, 5, 1000.0, 2.0, 0.1)(*map(torch.from_numpy, (outputs, targets, centers)))
    assert torch.isfinite(terms["cross_entropy"]).all()


@pytest.mark.parametrize(("classes", "scale"), [(196, 7.457), (555, 8.934), (80, 6.179), (3, 0.980), (2, 0.980)])
def test_the_papers_scale(classes, scale):
    assert round(paper_scale(classes), 3) == scale


@pytest.mark.parametrize("classes", [1, 0])
def test_below_two_classes_the_scale_has_to_be_given(classes):
    with pytest.raises(ValueError, match=f"C = {classes} classes: set scale"):
        paper_scale(classes)
