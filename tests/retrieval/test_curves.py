"""Every figure of a ranking against a count over each query's sorted items."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from crh_tune.retrieval.average_precision import LabelledCodes, RankingProtocol, average_precisions
from crh_tune.retrieval.curves import retrieval_curves
from crh_tune.retrieval.packing import pack_codes

RANKS = (1, 3, 17, 60, 400)


def sides(seed: int, multi: bool, bits: int = 12, size: int = 61):
    generator = np.random.default_rng(seed)
    codes = generator.random((9 + size, bits)) < 0.35
    labels = (generator.random((9 + size, 90)) < 0.02).astype(np.uint8) if multi else generator.integers(0, 9, 9 + size)
    if multi:
        labels[0] = 0
    else:
        labels[0] = 50
    return codes[:9], labels[:9], codes[9:], labels[9:]


def by_hand(asked, own, codes, labels, position) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each query: relevance in the order of the ranking, and the distances in that order."""
    rankings = []
    for code, label in zip(asked, own, strict=True):
        distances = (code != codes).sum(axis=1)
        relevant = labels == label if labels.ndim == 1 else (labels & label).any(axis=1)
        order = sorted(range(len(codes)), key=lambda i: (distances[i], position[i]))
        rankings.append((relevant[order], distances[order]))
    return rankings


@pytest.mark.parametrize(("multi", "no_relevant"), itertools.product((False, True), ("zero", "skip")))
def test_curves_are_what_counting_gives(multi, no_relevant):
    asked, own, codes, labels = sides(3, multi)
    queries, database = (LabelledCodes(pack_codes(c), y, 12) for c, y in ((asked, own), (codes, labels)))
    protocol = RankingProtocol(20, "stable", no_relevant=no_relevant)
    curves = retrieval_curves(queries, database, protocol, RANKS)
    rankings = by_hand(asked, own, codes, labels, range(61))
    rankings = [r for r in rankings if no_relevant == "zero" or r[0].any()]
    assert len(rankings) == 9 if no_relevant == "zero" else 5 < len(rankings) < 9
    for place, k in enumerate(min(k, 61) for k in RANKS):
        assert curves.ranks[place] == k
        precision = np.mean([hits[:k].sum() / k for hits, _ in rankings])
        recall = np.mean([hits[:k].sum() / max(hits.sum(), 1) for hits, _ in rankings])
        assert curves.precision_at[place] == pytest.approx(precision, abs=1e-12)
        assert curves.recall_at[place] == pytest.approx(recall, abs=1e-12)
        alone = average_precisions(queries, database, RankingProtocol(k, "stable", no_relevant=no_relevant))
        alone = alone[~np.isnan(alone)] if no_relevant == "skip" else np.nan_to_num(alone)
        assert curves.mean_average_precision_at[place] == pytest.approx(alone.mean(), abs=1e-12)
    for radius in range(13):
        within = [hits[distances <= radius] for hits, distances in rankings]
        precision = np.mean([hits.mean() if len(hits) else 0.0 for hits in within])
        recall = np.mean([part.sum() / max(hits.sum(), 1) for part, (hits, _) in zip(within, rankings, strict=True)])
        assert curves.radius_precision[radius] == pytest.approx(precision, abs=1e-12)
        assert curves.radius_recall[radius] == pytest.approx(recall, abs=1e-12)
    own_values = average_precisions(queries, database, protocol)
    assert curves.average_precisions == pytest.approx(own_values, abs=0, nan_ok=True)
    assert math.isnan(curves.average_precisions[0])


@pytest.mark.parametrize("multi", [False, True])
def test_expected_precision_and_recall_at_k_are_means_over_many_orders(multi):
    asked, own, codes, labels = sides(4, multi, bits=4)
    queries, database = (LabelledCodes(pack_codes(c), y, 4) for c, y in ((asked, own), (codes, labels)))
    curves = retrieval_curves(queries, database, RankingProtocol(20, "expected"), RANKS)
    generator, precisions = np.random.default_rng(0), []
    for _ in range(400):
        rankings = by_hand(asked, own, codes, labels, generator.permutation(61))
        precisions.append([np.mean([hits[:k].sum() / k for hits, _ in rankings]) for k in (1, 3, 17, 60, 61)])
    error = np.std(precisions, axis=0) / math.sqrt(400)
    assert (np.abs(np.mean(precisions, axis=0) - curves.precision_at) <= 5 * error + 1e-12).all()


def test_a_rank_below_one_and_an_empty_database_are_refused():
    asked, own, codes, labels = sides(0, False)
    queries, database = (LabelledCodes(pack_codes(c), y, 12) for c, y in ((asked, own), (codes, labels)))
    with pytest.raises(ValueError, match="ranks must be at least 1, got 0"):
        retrieval_curves(queries, database, RankingProtocol(), (5, 0))
    with pytest.raises(ValueError, match="database of a ranking is empty"):
        retrieval_curves(queries, database[np.arange(0)], RankingProtocol(), (5,))


def test_without_queries_there_is_no_mean():
    asked, own, codes, labels = sides(0, False)
    queries, database = (LabelledCodes(pack_codes(c), y, 12) for c, y in ((asked, own), (codes, labels)))
    curves = retrieval_curves(queries[np.arange(0)], database, RankingProtocol(), (5,))
    assert np.isnan(curves.precision_at).all()
    assert math.isnan(curves.mean_average_precision)
