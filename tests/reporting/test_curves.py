"""Curves, mistakes and codes against brute force, NumPy and scikit-learn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from crh_tune.data.splits import Samples, Split
from crh_tune.reporting.curves import (
    _ranked,
    all_curves,
    center_similarity,
    class_precisions,
    code_statistics,
    confused_pairs,
    membership,
    nearest_items,
    right_items,
    unpacked,
)
from crh_tune.reporting.search_data import Evidence, Model
from crh_tune.retrieval.average_precision import LabelledCodes, RankingProtocol
from crh_tune.retrieval.baselines import cosine_average_precisions
from crh_tune.retrieval.packing import pack_codes

BITS, CLASSES = 12, 5


def codes(count: int, seed: int, bits: int = BITS) -> tuple[np.ndarray, LabelledCodes]:
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, (count, bits)).astype(bool)
    return signs, LabelledCodes(pack_codes(signs), generator.integers(0, CLASSES, count), bits)


def a_model(centers: Any = None) -> Model:
    return Model("winner", "final-best", codes(17, 0)[1], codes(60, 1)[1], centers, None)


def test_curves_of_codes_and_of_features_are_those_of_a_plain_ranking():
    generator = np.random.default_rng(2)
    inputs = [generator.normal(size=(count, 6)).astype(np.float32) for count in (60, 17)]
    model = a_model()
    train = Samples(inputs[0], model.database.labels)
    split = Split("final", tuple("abcde"), train, Samples(inputs[1], model.queries.labels), None, None)
    settings = SimpleNamespace(evaluation=SimpleNamespace(protocol=RankingProtocol()), seed=0)
    curves = all_curves(SimpleNamespace(settings=settings), Evidence(split, [model]))
    assert [each.label for each in curves] == ["winner", "PCA + ITQ", "PCA + rotation", "float cosine"]
    trained, cosine = curves[0], curves[-1]

    similarity = cosine_similarity(inputs[1], inputs[0])
    relevant = model.queries.labels[:, None] == model.database.labels[None, :]
    order = np.argsort(-similarity, axis=1)
    hits = np.take_along_axis(relevant, order, axis=1)
    assert cosine.precision(10) == pytest.approx(hits[:, :10].mean())
    recall = (hits[:, :10].sum(axis=1) / relevant.sum(axis=1)).mean()
    assert cosine.recall_at[cosine.ranks.tolist().index(10)] == pytest.approx(recall)
    expected = np.mean([average_precision_score(r, s) for r, s in zip(relevant, similarity, strict=True)])
    assert cosine.map == pytest.approx(expected)
    assert cosine.within_radius is None
    for protocol in (RankingProtocol(cutoff=7), RankingProtocol(cutoff=7, denominator="achievable")):
        settings.evaluation.protocol = protocol
        own = all_curves(SimpleNamespace(settings=settings), Evidence(split, [model]))[-1].precisions
        labels = (model.queries.labels, model.database.labels)
        known = cosine_average_precisions(inputs[1], labels[0], inputs[0], labels[1], protocol)
        assert own.tolist() == pytest.approx(known.tolist(), nan_ok=True)

    distances = (codes(17, 0)[0][:, None] != codes(60, 1)[0][None]).sum(axis=2)
    draws = [np.argsort(distances + generator.random(distances.shape), axis=1)[:, :10] for _ in range(400)]
    mean = np.mean([np.take_along_axis(relevant, drawn, axis=1).mean() for drawn in draws])
    assert trained.precision(10) == pytest.approx(mean, abs=0.005)  # ties by their expectation
    near = distances <= 2
    within = np.where(near.any(axis=1), (near & relevant).sum(axis=1) / np.maximum(near.sum(axis=1), 1), 0)
    assert trained.within_radius == pytest.approx(within.mean())


def test_the_nearest_items_are_nearest_and_ties_favour_no_place():
    model = a_model()
    distances = (codes(17, 0)[0][:, None] != codes(60, 1)[0][None]).sum(axis=2)
    found, far = nearest_items(model)
    assert np.array_equal(np.take_along_axis(distances, found, axis=1), far)
    assert np.array_equal(far, np.sort(distances, axis=1)[:, :10])
    words = pack_codes(np.ones((1000, 8), dtype=bool))
    same = Model(
        "", "", LabelledCodes(words[:1], np.zeros(1, int), 8), LabelledCodes(words, np.arange(1000), 8), None, None
    )
    assert 250 < nearest_items(same, count=200)[0].mean() < 750  # all at distance 0


def test_map_by_class_is_the_mean_over_its_queries():
    values = np.array([0.2, 0.4, np.nan, 1.0])
    assert class_precisions(values, np.array([0, 0, 1, 2]), 4).tolist() == pytest.approx(
        [0.3, np.nan, 1.0, np.nan], nan_ok=True
    )
    several = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    assert class_precisions(values, several, 3).tolist() == pytest.approx([0.2, 0.3, 1.0])


def test_confused_pairs_are_counted_by_hand():
    centers = np.where(np.random.default_rng(0).random((3, 4)) > 0.5, 1, -1).astype(np.int8)
    queries = LabelledCodes(pack_codes(np.zeros((3, 4), bool)), np.array([0, 0, 1]), 4)
    database = LabelledCodes(pack_codes(np.zeros((6, 4), bool)), np.array([0, 0, 1, 1, 2, 2]), 4)
    found = np.array([[0, 2], [2, 3], [2, 4]])  # of class 0: one and two of class 1; of class 1: one of class 2
    reference = np.array([[1, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 1]])
    pairs = confused_pairs(Model("", "", queries, database, centers, None), found, reference, 3)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (1, 2)]
    assert [pair.share for pair in pairs] == pytest.approx([3 / 6, 1 / 2])
    assert pairs[0].distance == (centers[0] != centers[1]).sum()
    assert pairs[0].alike == 0.5


def test_an_item_that_shares_one_of_several_labels_is_right():
    queries = LabelledCodes(pack_codes(np.zeros((1, 4), bool)), np.array([[1, 1, 0]]), 4)
    database = LabelledCodes(pack_codes(np.zeros((2, 4), bool)), np.array([[0, 1, 1], [0, 0, 1]]), 4)
    model = Model("", "", queries, database, None, None)
    assert right_items(model, np.array([0]), np.array([[0, 1]])).tolist() == [[True, False]]
    pairs = confused_pairs(model, np.array([[0, 1]]), None, 3)
    assert {(pair.first, pair.second) for pair in pairs} == {(0, 2), (1, 2)}
    assert membership(queries.labels, 3).tolist() == [[0.5, 0.5, 0]]


@pytest.mark.parametrize("bits", [5, 12, 40, 70])
def test_code_statistics_are_those_of_the_unpacked_bits(bits):
    signs, packed = codes(50, 3, bits)
    signs[:, 0] = True
    packed = LabelledCodes(pack_codes(signs), packed.labels, bits)
    assert np.array_equal(unpacked(packed), signs)
    found = code_statistics(packed)
    assert found.ones.tolist() == pytest.approx(signs.mean(axis=0).tolist())
    assert np.allclose(found.correlation[1:, 1:], np.corrcoef(signs[:, 1:].T), atol=1e-5)
    assert found.correlation[0, 1:].tolist() == [0] * (bits - 1)  # a bit that never changes
    assert found.distinct == len({row.tobytes() for row in signs})


def test_similarity_of_centres_is_their_cosine():
    centers = np.where(np.random.default_rng(0).random((4, 8)) > 0.5, 1, -1).astype(np.int8)
    assert np.allclose(center_similarity(centers), cosine_similarity(centers))


def test_ranked_is_the_stable_order_of_the_scores_with_ties_and_both_zeros():
    draw = np.random.default_rng(0)
    scores = draw.standard_normal((20, 301)).round(1).astype(np.float32)
    scores[:, ::7], scores[:, 3::7] = 0.0, -0.0
    relevant = draw.random(scores.shape) < 0.3
    order = np.argsort(-scores, axis=1, kind="stable")
    assert (_ranked(scores, relevant) == np.take_along_axis(relevant, order, axis=1)).all()
