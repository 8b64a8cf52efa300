"""Baselines without training, against scikit-learn, the definition of average precision and formulas by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from crh_tune.data.store.stored import StoredRows
from crh_tune.retrieval import baselines
from crh_tune.retrieval.average_precision import RankingProtocol
from crh_tune.retrieval.baselines import (
    bootstrap_gain,
    cosine_average_precisions,
    pca_itq,
    pca_rotation,
)


def clusters(seed: int = 0, count: int = 300, size: int = 20, classes: int = 6):
    """Features in clusters of very different spread, and their classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    features = generator.normal(size=(classes, size))[labels] + 0.5 * generator.normal(size=(count, size))
    return (features * np.linspace(3, 0.1, size) + 5).astype(np.float32), labels


def quantization_loss(codes, features, axes) -> float:
    """||B - V R||^2, with V the projections on given axes (D x r) and R the rotation inside the codes."""
    projected = (features - features.mean(axis=0)) @ axes @ (axes.T @ codes.projection)
    return float(np.square(np.where(projected >= 0, 1, -1) - projected).sum())


@pytest.mark.parametrize("bits", [1, 4, 16, 20])
@pytest.mark.parametrize("fit", [pca_rotation, pca_itq])
def test_the_projection_is_a_rotation_of_the_principal_components(fit, bits):
    features, _ = clusters()
    codes, axes = fit(features, bits, 0), PCA(bits, svd_solver="full").fit(features).components_.T
    rotation = axes.T @ codes.projection
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(bits), atol=1e-4)
    np.testing.assert_allclose(axes @ rotation, codes.projection, atol=1e-4)
    np.testing.assert_allclose(codes.mean, features.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(codes.encode(features), (features - codes.mean) @ codes.projection >= 0)


@pytest.mark.parametrize(("bits", "size"), [(8, 20), (32, 20), (5, 3)])
def test_every_iteration_of_itq_lowers_the_quantization_loss(bits, size):
    features, _ = clusters(size=size)
    axes = PCA(min(bits, size), svd_solver="full").fit(features).components_.T
    losses = [quantization_loss(pca_itq(features, bits, 0, n), features, axes) for n in (0, 1, 2, 5, 20, 50)]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 0.97 * losses[0]


def test_the_rotation_of_itq_is_the_best_for_its_own_codes():
    """At its end R solves the orthogonal Procrustes problem for B = sign(V R): no turn of it comes nearer to B."""
    features, _ = clusters(count=60, size=6)
    codes = pca_itq(features, 4, 0, iterations=500)
    projected = codes.project(features).astype(np.float64)
    signs = np.where(projected >= 0, 1, -1)
    reached, generator = np.square(signs - projected).sum(), np.random.default_rng(1)
    for size in (0.01, 0.1, 1.0):
        for _ in range(50):
            turn, _ = np.linalg.qr(np.eye(4) + size * generator.normal(size=(4, 4)))
            turn = turn * np.sign(np.diag(turn))
            assert np.square(signs - projected @ turn).sum() >= reached - 1e-3


@pytest.mark.parametrize("iterations", [0, 50])
def test_more_bits_than_features_are_orthogonal_directions_none_of_them_constant(iterations):
    features, _ = clusters(size=6)
    codes = pca_itq(features, 16, 0, iterations)
    assert codes.projection.shape == (6, 16)
    np.testing.assert_allclose(codes.projection @ codes.projection.T, np.eye(6), atol=1e-5)
    ones = codes.encode(features).mean(axis=0)
    assert ((ones > 0.02) & (ones < 0.98)).all()


def test_a_seed_gives_the_same_codes_and_another_seed_others():
    features, _ = clusters()
    first, again, other = (pca_rotation(features, 8, seed).encode(features) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.1
    from_rotation = pca_itq(features, 8, 0, start=pca_rotation(features, 8, 0))
    np.testing.assert_array_equal(from_rotation.projection, pca_itq(features, 8, 0).projection)


@pytest.mark.parametrize("fit", [pca_rotation, pca_itq])
def test_features_without_variance_have_codes_of_ones_only(fit):
    same = np.full((10, 5), 0.3, dtype=np.float32)
    assert fit(same, 8, 0).encode(same).all()


FAR = [(1e8, 1.0, "f8"), (1e41, 1e39, "f8"), (0.0, 1e100, "f8"), (0.0, 1e20, "f4"), (0.0, 1e-30, "f4")]


@pytest.mark.parametrize(("offset", "scale", "dtype"), FAR)
@pytest.mark.parametrize("fit", [pca_rotation, pca_itq])
def test_features_far_from_zero_large_or_small_have_the_codes_of_any_others(fit, offset, scale, dtype):
    features = clusters()[0].astype(np.float64)
    moved = (features * scale + offset).astype(dtype)
    codes, axes = fit(moved, 8, 0), PCA(8, svd_solver="full").fit(features).components_.T
    np.testing.assert_allclose(axes @ (axes.T @ codes.projection), codes.projection, atol=1e-4)
    np.testing.assert_allclose(codes.mean, offset + scale * features.mean(axis=0), rtol=1e-6)
    exact = (features - features.mean(axis=0)) @ codes.projection
    sure = np.abs(exact) > 1e-4
    np.testing.assert_array_equal(codes.encode(moved)[sure], exact[sure] >= 0)
    assert (codes.encode(moved) == fit(features, 8, 0).encode(features)).mean() > 0.99


@pytest.mark.parametrize(("scale", "dtype"), [each[1:] for each in FAR[1:]])
def test_the_cosine_of_large_and_of_small_features_is_that_of_any_others(scale, dtype):
    features, labels = clusters(count=120)
    moved = (features.astype(np.float64) * scale).astype(dtype)
    values = cosine_average_precisions(moved[:20], labels[:20], moved[20:], labels[20:], RankingProtocol())
    for row in range(20):
        expected = by_definition(features[row], labels[row] == labels[20:], features[20:], None, "retrieved")
        assert values[row] == pytest.approx(expected, abs=1e-3)  # two of the hundred may be as near as float32 tells


def test_pca_wants_a_row():
    with pytest.raises(ValueError, match="at least one training row"):
        pca_itq(np.empty((0, 4), dtype=np.float32), 2, 0)


def test_rows_on_disk_are_read_in_parts_and_give_what_an_array_gives(monkeypatch):
    features, labels = clusters()
    stored = StoredRows(np.concatenate([features[:50], features]).astype(">f4"), np.arange(50, 350))
    whole = pca_itq(features, 8, 0)
    aps = cosine_average_precisions(features[:40], labels[:40], features, labels, RankingProtocol())
    for name, value in (("_CHUNK", 64), ("_SIMILARITIES", 3000), ("_PAIRS_SORTED", 900)):
        monkeypatch.setattr(baselines, name, value)
    parts = pca_itq(stored, 8, 0)
    np.testing.assert_allclose(parts.projection, whole.projection, atol=1e-3)
    asked = stored.pick(np.arange(40))
    np.testing.assert_allclose(
        cosine_average_precisions(asked, labels[:40], stored, labels, RankingProtocol()), aps, atol=1e-12
    )


def test_pca_is_fitted_on_some_rows_of_many(monkeypatch):
    features, _ = clusters(count=2000)
    monkeypatch.setattr(baselines, "_FIT_ROWS", 1000)
    codes, axes = pca_rotation(features, 3, 0), PCA(3).fit(features).components_.T
    assert not np.array_equal(codes.mean, features.mean(axis=0))
    np.testing.assert_allclose(codes.projection @ codes.projection.T, axes @ axes.T, atol=0.1)


def by_definition(query, relevant, database, cutoff, denominator) -> float:
    """AP of one query's cosine ranking in float64, rank by rank."""
    rows = database.astype(np.float64)
    scores = rows @ query.astype(np.float64) / np.linalg.norm(rows, axis=1)
    hits = relevant[np.argsort(-scores, kind="stable")]
    top = hits[:cutoff]
    total = math.fsum(top[: rank + 1].sum() / (rank + 1) for rank in np.flatnonzero(top))
    divisors = {"retrieved": top.sum(), "achievable": min(len(top), hits.sum()), "relevant": hits.sum()}
    return total / max(divisors[denominator], 1)


@pytest.mark.parametrize("denominator", ["retrieved", "achievable", "relevant"])
@pytest.mark.parametrize("cutoff", [None, 1, 7, 1000])
@pytest.mark.parametrize("several", [False, True])
def test_cosine_average_precision_is_what_its_definition_says(several, cutoff, denominator):
    features, labels = clusters(count=120)
    queries, database = features[:20], features[20:]
    own, others = labels[:20], labels[20:]
    own[0] = 6  # nothing relevant
    if several:
        generator = np.random.default_rng(2)
        own, others = np.eye(7, dtype=np.uint8)[own], np.eye(7, dtype=np.uint8)[others]
        own[1:, :6] |= generator.random((19, 6)) < 0.2
        others[:, :6] |= generator.random((100, 6)) < 0.2
    protocol = RankingProtocol(cutoff=cutoff, denominator=denominator)
    values = cosine_average_precisions(queries, own, database, others, protocol)
    assert math.isnan(values[0])
    relevant = (own @ others.T > 0) if several else own[:, None] == others
    for row in range(1, 20):
        expected = by_definition(queries[row], relevant[row], database, cutoff, denominator)
        assert values[row] == pytest.approx(expected, abs=1e-12)
        if cutoff is None:
            rows = database.astype(np.float64)
            scores = rows @ queries[row] / np.linalg.norm(rows, axis=1)
            assert values[row] == pytest.approx(average_precision_score(relevant[row], scores), abs=1e-12)


def test_equal_similarities_stay_in_database_order_and_a_zero_row_is_like_any_other():
    database = np.array([[2, 0], [1, 0], [0, 0], [-1, 0]], dtype=np.float32)
    query, labels = np.array([[3, 0]], dtype=np.float32), np.array([0, 1, 1, 0])
    value = cosine_average_precisions(query, np.array([1]), database, labels, RankingProtocol())
    assert value == pytest.approx([(1 / 2 + 2 / 3) / 2])


@pytest.mark.parametrize("denominator", ["retrieved", "achievable", "relevant"])
@pytest.mark.parametrize("cutoff", [None, 5, 30])
def test_many_equal_similarities_stay_in_database_order(cutoff, denominator):
    generator = np.random.default_rng(3)
    rows = generator.choice([-1, 1], size=(60, 4)).astype(np.float32)  # unit rows of ±1/2: similarities are exact
    labels = generator.integers(0, 3, 60)
    protocol = RankingProtocol(cutoff=cutoff, denominator=denominator)
    values = cosine_average_precisions(rows[:10], labels[:10], rows[10:], labels[10:], protocol)
    for row in range(10):
        expected = by_definition(rows[row], labels[row] == labels[10:], rows[10:], cutoff, denominator)
        assert values[row] == pytest.approx(expected, abs=1e-12)


def test_an_empty_database_and_a_bad_cutoff_are_refused():
    rows, labels = np.ones((2, 3), dtype=np.float32), np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="database of a ranking is empty"):
        cosine_average_precisions(rows, labels, rows[:0], labels[:0], RankingProtocol())
    with pytest.raises(ValueError, match="cutoff must be at least 1"):
        cosine_average_precisions(rows, labels, rows, labels, RankingProtocol(cutoff=0))


def test_the_interval_of_a_gain_is_that_of_the_mean_difference():
    """Over many queries the bootstrap comes to mean ± 1.96 standard errors of the paired difference."""
    generator = np.random.default_rng(0)
    shared = generator.random(4000)
    ours, theirs = 0.5 * shared + 0.05 * generator.normal(size=4000) + 0.01, 0.5 * shared
    gain = bootstrap_gain(ours, theirs, 0)
    error = (ours - theirs).std(ddof=1) / math.sqrt(4000)
    assert gain.mean == pytest.approx((ours - theirs).mean())
    assert gain.low == pytest.approx(gain.mean - 1.96 * error, abs=0.15 * error)
    assert gain.high == pytest.approx(gain.mean + 1.96 * error, abs=0.15 * error)
    assert bootstrap_gain(ours, theirs, 0) == gain
    assert bootstrap_gain(theirs, ours, 0).high < 0


def test_queries_without_anything_relevant_count_as_the_protocol_says():
    ours, theirs = np.array([0.6, 0.8, np.nan, np.nan]), np.array([0.5, 0.5, np.nan, np.nan])
    assert bootstrap_gain(ours, theirs, 0, 100, "skip").mean == pytest.approx(0.2)
    assert bootstrap_gain(ours, theirs, 0, 100, "zero").mean == pytest.approx(0.1)


def test_rounding_is_no_gain_and_no_loss():
    """Perfect rankings of codes and of floats are summed up along different ways."""
    perfect = np.ones(50)
    assert bootstrap_gain(perfect - 3e-16, perfect, 0) == (0.0, 0.0, 0.0)
    assert math.copysign(1, bootstrap_gain(perfect - 3e-16, perfect, 0).mean) == 1


def test_one_query_has_a_gain_and_no_interval():
    gain = bootstrap_gain(np.array([0.6]), np.array([0.5]), 0)
    assert gain.mean == pytest.approx(0.1)
    assert math.isnan(gain.low)
    assert math.isnan(gain.high)
    with pytest.raises(ValueError, match="the same queries"):
        bootstrap_gain(np.array([0.6]), np.array([0.5, 0.6]), 0)
