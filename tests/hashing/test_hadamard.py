"""CSQ's and OrthoHash's centres: the properties their papers ask for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crh_tune.hashing.hadamard import bernoulli_centers, csq_centers


def distances(centers: np.ndarray) -> np.ndarray:
    """All pairwise Hamming distances, counted position by position."""
    return np.concatenate([(center != centers[i + 1 :]).sum(axis=1) for i, center in enumerate(centers)])


def distinct(centers: np.ndarray) -> int:
    return len({tuple(center) for center in centers.tolist()})


def require_centers(centers: np.ndarray, classes: int, bits: int) -> None:
    assert centers.shape == (classes, bits)
    assert centers.dtype == np.int8
    assert set(np.unique(centers)) <= {-1, 1}
    assert distinct(centers) == classes


@pytest.mark.parametrize(("bits", "classes"), [(2, 2), (4, 3), (16, 10), (32, 32), (64, 10), (128, 100)])
def test_up_to_k_classes_get_orthogonal_rows_of_the_hadamard_matrix(bits, classes):
    centers = csq_centers(bits, classes, seed=3)
    require_centers(centers, classes, bits)
    assert np.array_equal(centers.astype(int) @ centers.T, bits * np.eye(classes))
    # Sylvester's matrix: every row is a character, r[i ^ j] = r[i] r[j].
    index = np.arange(bits)
    for row in centers:
        assert np.array_equal(row[index[:, None] ^ index], np.outer(row, row))


@pytest.mark.parametrize(("bits", "classes"), [(1, 2), (2, 4), (16, 20), (32, 64), (64, 80)])
def test_up_to_2k_classes_get_k_orthogonal_rows_and_negatives(bits, classes):
    centers = csq_centers(bits, classes, seed=4)
    require_centers(centers, classes, bits)
    inner = centers.astype(int) @ centers.T
    assert set(np.unique(inner)) <= {-bits, 0, bits}
    assert int((inner == -bits).sum()) // 2 == classes - bits


@pytest.mark.parametrize(
    ("bits", "classes", "nearest"),
    [(64, 196, 20), (64, 1500, 20), (32, 196, 10), (48, 100, 15), (24, 50, 8), (24, 3, 8), (48, 2, 15)],
)
def test_otherwise_balanced_words_far_apart(bits, classes, nearest):
    centers = csq_centers(bits, classes, seed=5)
    require_centers(centers, classes, bits)
    assert ((centers < 0).sum(axis=1) == bits // 2).all()
    assert distances(centers).min() >= nearest
    assert distances(centers).mean() >= bits / 2


def test_the_minimum_is_lowered_where_it_cannot_be_had():
    # A constant-weight code of 16 bits with minimum distance 6 has at most 150 words.
    centers = csq_centers(16, 196, seed=6)
    assert ((centers < 0).sum(axis=1) == 8).all()
    assert distances(centers).min() == 4
    assert distances(centers).mean() >= 8


@pytest.mark.parametrize(("bits", "classes"), [(15, 20), (9, 40), (3, 3), (5, 10)])
def test_odd_k_has_half_of_k_rounded_down_minus_ones(bits, classes):
    centers = csq_centers(bits, classes, seed=7)
    require_centers(centers, classes, bits)
    assert ((centers < 0).sum(axis=1) == bits // 2).all()


@pytest.mark.parametrize("bits", [3, 6, 8, 12, 16])
def test_all_balanced_words_and_then_uniform_ones(bits):
    balanced = math.comb(bits, bits // 2)
    for classes in (balanced - 1, balanced):
        centers = csq_centers(bits, classes, seed=8)
        require_centers(centers, classes, bits)
        if classes > 2 * bits or bits & (bits - 1):
            assert ((centers < 0).sum(axis=1) == bits // 2).all()
    require_centers(csq_centers(bits, balanced + 1, seed=8), balanced + 1, bits)


@pytest.mark.parametrize("centers_of", [csq_centers, bernoulli_centers])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7, 10])
def test_every_word_can_be_used_and_no_more(centers_of, bits):
    require_centers(centers_of(bits, 2**bits, 9), 2**bits, bits)
    with pytest.raises(ValueError, match=rf"C = {2**bits + 1} .* 2\^K = {2**bits}"):
        centers_of(bits, 2**bits + 1, 9)


@pytest.mark.parametrize("centers_of", [csq_centers, bernoulli_centers])
@pytest.mark.parametrize(("bits", "classes"), [(64, 40), (64, 80), (16, 196), (24, 30), (4, 12)])
def test_the_seed_alone_decides(centers_of, bits, classes):
    assert np.array_equal(centers_of(bits, classes, 1), centers_of(bits, classes, 1))
    assert not np.array_equal(centers_of(bits, classes, 1), centers_of(bits, classes, 2))


def test_bernoulli_bits_are_fair_and_independent():
    centers = bernoulli_centers(64, 4000, seed=10).astype(float)
    require_centers(bernoulli_centers(64, 4000, seed=10), 4000, 64)
    assert np.abs(centers.mean(axis=0)).max() < 5 / math.sqrt(4000)
    correlation = centers.T @ centers / 4000 - np.eye(64)
    assert np.abs(correlation).max() < 6 / math.sqrt(4000)
    # Unlike CSQ's words they are not balanced: the number of minus ones has the binomial's variance K / 4.
    assert (centers < 0).sum(axis=1).var() == pytest.approx(16, rel=0.15)
