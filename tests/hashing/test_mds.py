"""MDS: d_min from its definition, and centres that keep it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from crh_tune.hashing import mds
from crh_tune.hashing.hadamard import csq_centers
from crh_tune.hashing.mds import distance_counts, mds_centers, minimal_distance


def distances(centers: np.ndarray) -> np.ndarray:
    return np.concatenate([(center != centers[i + 1 :]).sum(axis=1) for i, center in enumerate(centers)])


def score(centers: np.ndarray) -> float:
    found = distances(centers)
    return found.mean() + found.min() - found.var()


@pytest.mark.parametrize(
    ("classes", "expected"), [(196, (4, 10, 23)), (555, (3, 9, 21)), (80, (5, 11, 24))], ids=["cars", "birds", "coco"]
)
def test_the_papers_minimal_distances(classes, expected):
    assert tuple(minimal_distance(bits, classes) for bits in (16, 32, 64)) == expected


@pytest.mark.parametrize("bits", [1, 2, 5, 12, 24, 48, 64, 200])
def test_minimal_distance_is_the_smallest_that_fills_the_space(bits):
    for classes in {1, 2, 3, 7, 80, 1000, 2 ** min(bits, 60)}:
        found = minimal_distance(bits, classes)
        balls = [classes * sum(math.comb(bits, i) for i in range(d)) for d in range(bits + 2)]
        assert balls[found] >= 2**bits
        assert found == 0 or balls[found - 1] < 2**bits


def test_minimal_distance_needs_a_class():
    with pytest.raises(ValueError, match="C = 0"):
        minimal_distance(16, 0)


@pytest.mark.parametrize("classes", [80, 196, 555])
@pytest.mark.parametrize("bits", [16, 24, 48, 64])
def test_the_minimal_distance_is_reached(bits, classes):
    centers = mds_centers(bits, classes, seed=0)
    start = csq_centers(bits, classes, seed=0)
    assert centers.shape == (classes, bits)
    assert centers.dtype == np.int8
    assert set(np.unique(centers)) == {-1, 1}
    found = distances(centers)
    assert found.min() >= max(minimal_distance(bits, classes), distances(start).min())
    assert found.mean() >= bits / 2
    assert score(centers) >= score(start)


def test_a_larger_distance_of_the_start_is_kept_and_the_others_grow():
    start, centers = csq_centers(32, 555, seed=0), mds_centers(32, 555, seed=0)
    assert distances(centers).min() == distances(start).min() > minimal_distance(32, 555)
    assert score(centers) > score(start)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("bits", "classes"), [(8, 100), (7, 40)])
def test_sweeps_go_on_until_the_distance_is_reached(bits, classes, seed):
    assert distances(mds_centers(bits, classes, seed, sweeps=1)).min() < minimal_distance(bits, classes) == 2
    assert distances(mds_centers(bits, classes, seed)).min() == 2


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
def test_every_small_number_of_classes_gets_distinct_centers(bits, seed):
    for classes in range(1, 2**bits + 1, 1 + bits // 5):
        centers = mds_centers(bits, classes, seed)
        assert centers.shape == (classes, bits)
        assert len({tuple(center) for center in centers.tolist()}) == classes


@pytest.mark.parametrize(("bits", "classes"), [(24, 2), (24, 3), (64, 2), (64, 3), (16, 2), (48, 3)])
def test_two_and_three_classes(bits, classes):
    assert distances(mds_centers(bits, classes, seed=0)).min() >= minimal_distance(bits, classes)


def test_an_unattainable_distance_ends():
    assert minimal_distance(4, 3) == 3
    assert distances(mds_centers(4, 3, seed=0)).min() == 2


def test_the_seed_alone_decides():
    assert np.array_equal(mds_centers(32, 100, 1), mds_centers(32, 100, 1))
    assert not np.array_equal(mds_centers(32, 100, 1), mds_centers(32, 100, 2))


def test_more_classes_than_words():
    with pytest.raises(ValueError, match="C = 17"):
        mds_centers(4, 17, seed=0)


def test_distance_counts_over_several_blocks(monkeypatch):
    monkeypatch.setattr(mds, "_BLOCK", 7)
    centers = csq_centers(12, 40, seed=0)
    assert distance_counts(centers).tolist() == np.bincount(distances(centers), minlength=13).tolist()


def cost(centers: np.ndarray, row: int, largest: int) -> tuple[int, float]:
    """The cost of a centre, from its definition."""
    inner = np.array([int(centers[row] @ other) for i, other in enumerate(centers) if i != row])
    found = (centers.shape[1] - inner) / 2
    return int((np.maximum(inner - largest, 0) ** 2).sum()), found.var() - found.mean()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("bits", "classes", "separation"), [(8, 12, 3), (10, 30, 4), (12, 5, 6)])
def test_each_move_is_the_best_of_all_flips(bits, classes, separation, seed):
    largest = bits - 2 * separation
    centers = csq_centers(bits, classes, seed).astype(float)
    for row in range(classes):
        flips = {}
        for bits_flipped in [(b,) for b in range(bits)] + list(itertools.combinations(range(bits), 2)):
            moved = centers.copy()
            moved[row, bits_flipped] *= -1
            flips[bits_flipped] = cost(moved, row, largest)
        now = cost(centers, row, largest)
        best = {size: min(value for flip, value in flips.items() if len(flip) == size) for size in (1, 2)}
        move = mds._best_move(centers, row, largest)
        if move is None:
            assert best[1] >= (now[0], now[1] - 1e-5)
            assert now[0] == 0 or best[2] >= (now[0], now[1] - 1e-5)
        else:
            assert flips[tuple(sorted(move))] == pytest.approx(best[len(move)])
            assert best[len(move)] < now
