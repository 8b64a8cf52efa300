"""SHC: the similarity of classes against plain loops, and centres that follow it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from crh_tune.hashing.mds import mds_centers, minimal_distance
from crh_tune.hashing.shc import accumulate_similarity, class_similarity, shc_centers


def summed_scores(logits: np.ndarray, labels: list[list[int]]) -> np.ndarray:
    """Stage 1's sum, one sample and one class at a time."""
    classes = logits.shape[1]
    total = np.zeros((classes, classes))
    for row, true in zip(logits.tolist(), labels, strict=True):
        false = [c for c in range(classes) if c not in true]
        if not true or not false:
            continue
        largest = max(row[c] for c in false)
        weights = {c: math.exp(row[c] - largest) for c in false}
        for y in true:
            for c in false:
                total[y, c] += weights[c] / sum(weights.values()) / len(true)
    return total


def similarity_of(scores: np.ndarray) -> np.ndarray:
    classes = len(scores)
    both = [[(scores[i][j] + scores[j][i]) / 2 for j in range(classes)] for i in range(classes)]
    rows = []
    for row in both:
        mean = sum(row) / classes
        largest = max(abs(value - mean) for value in row)
        rows.append([(value - mean) / largest for value in row])
    return np.array([[1 if i == j else (rows[i][j] + rows[j][i]) / 2 for j in range(classes)] for i in range(classes)])


def families(classes: int, seed: int) -> np.ndarray:
    """S of classes in families of about eight, from the classifications of noisy samples of them."""
    generator = np.random.default_rng(seed)
    family = generator.normal(size=(max(classes // 8, 2), 32))
    prototypes = family[np.arange(classes) % len(family)] + 0.8 * generator.normal(size=(classes, 32))
    labels = np.repeat(np.arange(classes), 20)
    samples = prototypes[labels] + generator.normal(size=(len(labels), 32))
    logits = torch.from_numpy(samples @ prototypes.T / 8)
    return class_similarity(accumulate_similarity(logits, torch.from_numpy(labels)))


def low_rank(classes: int, seed: int) -> np.ndarray:
    factors = np.random.default_rng(seed).normal(size=(classes, 6))
    return class_similarity(np.exp(factors @ factors.T / 4))


def objective(similarity: np.ndarray, centers: np.ndarray) -> float:
    return float(((similarity - centers.astype(float) @ centers.T / centers.shape[1]) ** 2).sum())


def pcc(similarity: np.ndarray, centers: np.ndarray) -> float:
    upper = np.triu_indices(len(similarity), k=1)
    return float(np.corrcoef(similarity[upper], (centers.astype(float) @ centers.T)[upper])[0, 1])


def smallest_distance(centers: np.ndarray) -> int:
    return min(int((center != centers[i + 1 :]).sum(axis=1).min()) for i, center in enumerate(centers[:-1]))


def test_scores_of_single_labels():
    logits = torch.randn(60, 7, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.arange(60) % 7
    found = accumulate_similarity(logits, labels)
    assert found.dtype == np.float64
    assert np.allclose(found, summed_scores(logits.double().numpy(), [[int(y)] for y in labels]), rtol=1e-12, atol=0)
    assert np.allclose(found.sum(axis=1), np.bincount(labels, minlength=7))
    assert (np.diag(found) == 0).all()
    one_hot = torch.nn.functional.one_hot(labels, 7)
    assert np.allclose(found, accumulate_similarity(logits, one_hot), rtol=1e-12, atol=0)


def test_scores_of_several_labels_mask_all_of_them():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(80, 6, generator=generator) * 4
    labels = (torch.rand(80, 6, generator=generator) < 0.4).float()
    labels[0], labels[1] = 0, 1  # no true class; no false class
    lists = [torch.nonzero(row).flatten().tolist() for row in labels]
    found = accumulate_similarity(logits.requires_grad_(), labels)
    assert np.isfinite(found).all()
    assert np.allclose(found, summed_scores(logits.detach().double().numpy(), lists), rtol=1e-12, atol=0)
    assert found.sum() == pytest.approx(sum(1 for row in lists if 0 < len(row) < 6))


def test_scores_add_up_over_shards_and_survive_large_logits():
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(2)) * 1000
    labels = torch.arange(50) % 5
    whole = accumulate_similarity(logits, labels)
    parts = sum(accumulate_similarity(logits[i::3], labels[i::3]) for i in range(3))
    assert np.isfinite(whole).all()
    assert np.allclose(whole, parts)


@pytest.mark.parametrize("classes", [3, 10, 40])
def test_similarity_against_a_loop(classes):
    scores = np.random.default_rng(classes).random((classes, classes)) ** 3
    found = class_similarity(scores)
    assert np.allclose(found, similarity_of(scores), rtol=1e-12, atol=1e-14)
    assert np.array_equal(found, found.T)
    assert np.abs(found).max() <= 1
    assert (np.diag(found) == 1).all()


def test_similarity_of_equal_scores_and_of_one_class():
    for classes in range(2, 12):
        assert np.array_equal(class_similarity(np.full((classes, classes), 0.1)), np.eye(classes))
    assert np.array_equal(class_similarity(np.zeros((1, 1))), np.eye(1))


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.zeros(3), np.full((2, 2), np.nan)])
def test_a_similarity_is_a_square_of_finite_numbers(bad):
    with pytest.raises(ValueError, match="C x C"):
        class_similarity(bad)
    with pytest.raises(ValueError, match="C x C"):
        shc_centers(bad, 16, seed=0)


@pytest.mark.parametrize(
    ("make", "classes", "bits", "least"),
    [
        (families, 120, 64, 0.45),
        (families, 40, 64, 0.5),
        (families, 60, 48, 0.45),
        (families, 60, 24, 0.4),
        (families, 80, 16, 0.3),
        (low_rank, 80, 64, 0.7),
        (low_rank, 60, 32, 0.6),
    ],
)
def test_centers_follow_the_similarity_and_keep_their_distance(make, classes, bits, least):
    similarity = make(classes, seed=0)
    start = mds_centers(bits, classes, seed=0)
    centers = shc_centers(similarity, bits, seed=0)
    assert centers.shape == (classes, bits)
    assert centers.dtype == np.int8
    assert set(np.unique(centers)) == {-1, 1}
    assert smallest_distance(centers) >= min(minimal_distance(bits, classes), smallest_distance(start))
    assert objective(similarity, centers) < 0.8 * objective(similarity, start)
    assert abs(pcc(similarity, start)) < 0.1
    assert pcc(similarity, centers) > least


def test_no_single_flip_is_left_that_helps():
    similarity, bits = families(24, seed=1), 12
    centers = shc_centers(similarity, bits, seed=1)
    nearest = min(minimal_distance(bits, 24), smallest_distance(mds_centers(bits, 24, seed=1)))
    best = objective(similarity, centers)
    for row, bit in itertools.product(range(24), range(bits)):
        moved = centers.copy()
        moved[row, bit] *= -1
        assert smallest_distance(moved) < nearest or objective(similarity, moved) >= best - 1e-4


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_every_small_number_of_classes_gets_distinct_centers(bits):
    for classes in range(1, 2**bits + 1):
        centers = shc_centers(class_similarity(np.random.default_rng(0).random((classes, classes))), bits, seed=0)
        assert centers.shape == (classes, bits)
        assert len({tuple(center) for center in centers.tolist()}) == classes
    with pytest.raises(ValueError, match="C = "):
        shc_centers(np.eye(2**bits + 1), bits, seed=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_two_and_three_classes(classes):
    centers = shc_centers(np.eye(classes), 24, seed=0)
    assert smallest_distance(centers) >= minimal_distance(24, classes)


def test_only_the_symmetric_part_off_the_diagonal_counts_and_the_seed_decides():
    similarity = families(30, seed=2)
    skew = np.triu(np.random.default_rng(0).integers(-8, 9, size=(30, 30)) / 16, k=1)
    centers = shc_centers(similarity, 32, seed=3)
    assert np.array_equal(centers, shc_centers(similarity + skew - skew.T, 32, seed=3))
    assert np.array_equal(centers, shc_centers(similarity - np.eye(30), 32, seed=3))
    assert not np.array_equal(centers, shc_centers(similarity, 32, seed=4))
