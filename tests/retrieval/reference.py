"""What the compiled kernels are held against: the same definitions in NumPy and scipy, block by block.

Hamming distances take K + 1 values, so most of a ranking is ties, and mAP moves by points with the order inside them:

* ``expected``: the exact expectation over all orders inside the ties (McSherry and Najork, ECIR 2008);
* ``stable``: database order inside a tie;
* ``shuffle``: one seeded random order of the database inside a tie.

mAP@k divides the sum of precisions at the relevant ranks up to k by

* ``retrieved``: the relevant items among the first k (public hashing code);
* ``achievable``: min(k, R), R the relevant items in the database;
* ``relevant``: R.

A query without any relevant item in the database scores 0 (``zero``) or is left out of the mean (``skip``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.stats

from crh_tune.retrieval.average_precision import (
    Denominator,
    Floats,
    LabelledCodes,
    RankingProtocol,
    ap_divisor,
    check_ranking,
    ordered_average_precisions,
    relevance,
)
from crh_tune.retrieval.packing import hamming_distances

_PAIRS_PER_BLOCK = 2**22


def average_precisions(queries: LabelledCodes, database: LabelledCodes, protocol: RankingProtocol) -> Floats:
    """Average precision of each query: Q values, NaN where the database holds nothing relevant.

    Raises ValueError for an empty database or a cutoff below 1.
    """
    cutoff = check_ranking(len(database), protocol)
    if protocol.ties == "shuffle":
        database = database[np.random.default_rng(protocol.shuffle_seed).permutation(len(database))]
    block = max(1, _PAIRS_PER_BLOCK // len(database))
    values = [np.empty(0)]
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        relevant = relevance(part.labels, database.labels)
        distances = hamming_distances(part.words, database.words)
        found = relevant.sum(axis=1)
        if protocol.ties == "expected":
            value = _expected(distances, relevant, cutoff, queries.bits, protocol.denominator)
        else:
            value = ordered_average_precisions(distances, relevant, cutoff, protocol.denominator)
        values.append(np.where(found > 0, value, np.nan))
    return np.concatenate(values)


def _expected(
    distances: npt.NDArray[np.integer],
    relevant: npt.NDArray[np.bool_],
    cutoff: int,
    bits: int,
    denominator: Denominator,
) -> Floats:
    """Expected AP over all orders inside ties, from (K + 1)-bin histograms: no sort.

    A group of n items, p of them relevant, after N items with P relevant contributes over its first m ranks
    (p / n) sum_t [P + 1 + (t - N - 1) r] / t with r = (p - 1) / (n - 1), which is
    (p / n) [r m + (P + 1 - r (N + 1)) (H(N + m) - H(N))] with harmonic numbers H.
    """
    queries, bins = len(distances), bits + 1
    slot = distances + (np.arange(queries) * bins)[:, None]
    items = np.bincount(slot.ravel(), minlength=queries * bins).reshape(queries, bins)
    hits = np.bincount(slot[relevant], minlength=queries * bins).reshape(queries, bins)
    before = np.cumsum(items, axis=1) - items
    hits_before = np.cumsum(hits, axis=1) - hits
    ranks = np.clip(cutoff - before, 0, items)
    cut = (ranks > 0) & (ranks < items)
    values: Floats
    if denominator != "retrieved":
        total = _group_sums(items, hits, before, hits_before, ranks).sum(axis=1)
        values = total / ap_divisor(hits.sum(axis=1), hits.sum(axis=1), cutoff, denominator)
        return values
    whole = np.where(ranks == items, ranks, 0)
    total = _group_sums(items, hits, before, hits_before, whole).sum(axis=1)
    retrieved = (hits * (whole > 0)).sum(axis=1)
    values = total / np.maximum(retrieved, 1)
    for query, group in zip(*np.nonzero(cut), strict=True):
        values[query] = _cut_by_retrieved(
            int(items[query, group]), int(hits[query, group]), int(before[query, group]),
            int(hits_before[query, group]), int(ranks[query, group]), float(total[query]),
        )  # fmt: skip
    return values


def _group_sums(
    items: npt.NDArray[np.integer],
    hits: npt.NDArray[np.integer],
    before: npt.NDArray[np.integer],
    hits_before: npt.NDArray[np.integer],
    ranks: npt.NDArray[np.integer],
) -> Floats:
    """Expected sum of precisions at relevant ranks over the first ``ranks`` ranks of each group; all of one shape."""
    share = hits / np.maximum(items, 1)
    slope = np.where(items > 1, (hits - 1) / np.maximum(items - 1, 1), 0.0)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int((before + ranks).max(initial=0)) + 1))])
    harmonic_sum = harmonic[before + ranks] - harmonic[np.minimum(before, len(harmonic) - 1)]
    inside = slope * ranks + (hits_before + 1 - slope * (before + 1)) * harmonic_sum
    return np.where(ranks > 0, share * inside, 0.0)


def _cut_by_retrieved(items: int, hits: int, before: int, hits_before: int, ranks: int, total: float) -> float:
    """Expected AP where the cutoff falls inside a group and the divisor is the number of relevant items above it.

    The number x of relevant items among the group's first ``ranks`` places is hypergeometric; given x they lie anywhere
    among those places with equal probability.
    """
    low, high = max(0, ranks - (items - hits)), min(hits, ranks)
    drawn = np.arange(low, high + 1)
    chance = scipy.stats.hypergeom.pmf(drawn, items, hits, ranks)
    full = np.full_like(drawn, ranks)
    sums = _group_sums(full, drawn, np.full_like(drawn, before), np.full_like(drawn, hits_before), full)
    found = hits_before + drawn
    return float((chance * (total + sums) / np.maximum(found, 1)).sum())
