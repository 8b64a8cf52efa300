"""Retrieval measured for a report: curves of trained codes and of what needs no training, classes, mistakes, codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.hashing.codebook import Codes
from crh_tune.reporting.search_data import Evidence, Model, SearchData
from crh_tune.retrieval.average_precision import (
    Floats,
    LabelledCodes,
    RankingProtocol,
    ap_divisor,
    check_ranking,
    mean_average_precision,
    relevance,
)
from crh_tune.retrieval.baselines import pca_itq, pca_rotation, unit_rows
from crh_tune.retrieval.curves import retrieval_curves
from crh_tune.retrieval.packing import hamming_distances, pack_codes
from crh_tune.tuning.results import FLOAT_COSINE, ITQ, ROTATION

Array = npt.NDArray[Any]
NEAREST = 10
RADIUS = 2
_PAIRS = 2**22


@dataclass(frozen=True)
class Curves:
    """How one way to rank does, as means over queries; ties by the rule of the search's ``evaluation``.

    ``precisions`` are the Q average precisions (NaN where nothing is relevant), ``map`` their mean. ``precision_at``
    and ``recall_at`` belong to ``ranks``; ``within_radius`` is the precision within Hamming distance 2 (None without
    codes), where a query that finds nothing counts 0.
    """

    label: str
    precisions: Floats
    map: float
    ranks: npt.NDArray[np.int64]
    precision_at: Floats
    recall_at: Floats
    within_radius: float | None

    def precision(self, rank: int) -> float:
        """Precision among the first ``rank`` items, of a rank that is one of ``ranks``."""
        return float(self.precision_at[int(np.flatnonzero(self.ranks == rank)[0])])


def chosen_ranks(size: int) -> list[int]:
    """About forty ranks from 1 to the size of the database, evenly spread in their logarithm; 10 is one of them."""
    spread = np.unique(np.geomspace(1, size, 40).round().astype(int)).tolist()
    return sorted({*spread, min(NEAREST, size)})


def all_curves(data: SearchData, evidence: Evidence) -> list[Curves]:
    """The curves of the runs that are shown, and of what needs no training where their inputs are features."""
    protocol = data.settings.evaluation.protocol
    ranks = chosen_ranks(len(evidence.split.ranked))
    found = [code_curves(model.label, model.queries, model.database, protocol, ranks) for model in evidence.models]
    split = evidence.split
    if split.train.inputs.ndim != 2 or not evidence.models:
        return found
    bits, seed = evidence.models[0].queries.bits, data.settings.seed
    rotated = pca_rotation(split.train.inputs, bits, seed)
    for name, fitted in ((ITQ, pca_itq(split.train.inputs, bits, seed, start=rotated)), (ROTATION, rotated)):
        asked, ranked = (
            LabelledCodes(pack_codes(fitted.encode(part.inputs)), part.labels, bits)
            for part in (split.queries, split.ranked)
        )
        found.append(code_curves(name, asked, ranked, protocol, ranks))
    return [*found, _cosine_curves(evidence, protocol, ranks)]


def code_curves(
    label: str, queries: LabelledCodes, database: LabelledCodes, protocol: RankingProtocol, ranks: Sequence[int]
) -> Curves:
    """The curves of packed codes."""
    found = retrieval_curves(queries, database, protocol, ranks)
    return Curves(
        label, found.average_precisions, found.mean_average_precision, found.ranks, found.precision_at,
        found.recall_at, float(found.radius_precision[min(RADIUS, queries.bits)]),
    )  # fmt: skip


def _cosine_curves(evidence: Evidence, protocol: RankingProtocol, ranks: Sequence[int]) -> Curves:
    """The curves of the features themselves, ranked by their cosine, once."""
    queries, database, at = evidence.split.queries, evidence.split.ranked, np.array(ranks)
    cutoff = check_ranking(len(database), protocol)
    ranked = unit_rows(database.inputs)
    found, every, values = [], [], []
    for rows in _blocks(len(queries), len(database)):
        hits = _ranked(unit_rows(queries.inputs[rows]) @ ranked.T, relevance(queries.labels[rows], database.labels))
        counts, relevant = np.cumsum(hits, axis=1, dtype=np.int64), hits.sum(axis=1)
        precisions = (counts / np.arange(1, len(database) + 1) * hits)[:, :cutoff].sum(axis=1)
        precisions /= ap_divisor(counts[:, cutoff - 1], relevant, cutoff, protocol.denominator)
        values.append(np.where(relevant > 0, precisions, np.nan))
        found.append(counts[:, at - 1])
        every.append(relevant)
    scored = np.concatenate(values)
    kept = ~np.isnan(scored) | (protocol.no_relevant == "zero")
    asked, there = np.concatenate(found)[kept], np.concatenate(every)[kept]
    return Curves(
        FLOAT_COSINE, scored, mean_average_precision(scored, protocol.no_relevant), at,
        (asked / at).mean(axis=0), (asked / np.maximum(there, 1)[:, None]).mean(axis=0), None,
    )  # fmt: skip


def _ranked(scores: npt.NDArray[np.float32], relevant: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """``relevant`` (Q x N), each row in the order of its scores: highest first, equal ones as they stand.

    Score, place and relevance of an item make one 64-bit number: numpy sorts numbers faster than places by them.
    """
    order = (0 - scores).view(np.int32)
    keys = (order ^ ((order >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32
    keys |= np.arange(scores.shape[1], dtype=np.int64) << 1
    keys |= relevant
    keys.sort(axis=1)
    return (keys & 1).astype(bool)


def nearest_items(model: Model, rows: npt.NDArray[np.int64] | None = None, count: int = NEAREST) -> tuple[Array, Array]:
    """The nearest database items of queries, and their distances: Q x count each.

    Equal distances come in an order drawn once, so that no class gains from where it stands in the database.
    """
    queries, database = model.queries if rows is None else model.queries[rows], model.database
    order = np.random.default_rng(0).permutation(len(database))
    words, count = database.words[order], min(count, len(database))
    found, far = [np.empty((0, count), dtype=np.int64)], [np.empty((0, count), dtype=np.int64)]
    for part in _blocks(len(queries), len(database)):
        distances = hamming_distances(queries[part].words, words)
        first = np.argsort(distances, axis=1, kind="stable")[:, :count]
        found.append(order[first])
        far.append(np.take_along_axis(distances, first, axis=1).astype(np.int64))
    return np.concatenate(found), np.concatenate(far)


def class_precisions(values: Floats, labels: Array, classes: int) -> Floats:
    """mAP of the queries of each class: C values, NaN where a class has no query with anything to find."""
    shares = membership(labels, classes) > 0
    known = ~np.isnan(values)
    counts = shares[known].sum(axis=0)
    sums = np.nan_to_num(values[known]) @ shares[known]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class Confusion:
    """Two classes that are taken for each other.

    ``share``: of the nearest items of queries of either class, how many are wrong and of the other (0 to 1).
    ``distance``: between their centres, in bits; ``alike``: their reference similarity; None where there is none.
    """

    first: int
    second: int
    share: float
    distance: int | None
    alike: float | None


def confused_pairs(
    model: Model, found: Array, reference: Floats | None, classes: int, count: int = 10
) -> list[Confusion]:
    """The pairs of classes most often taken for each other among ``found``, Q x n nearest items."""
    asked, ranked = membership(model.queries.labels, classes), membership(model.database.labels, classes)
    taken = np.zeros((classes, classes))
    for place in range(found.shape[1]):
        items = found[:, place]
        wrong = ~_paired(model.queries.labels, model.database.labels[items])
        taken += asked[wrong].T @ ranked[items[wrong]]
    asked_of = asked.sum(axis=0)
    both = asked_of[:, None] + asked_of[None, :]
    shares = np.triu((taken + taken.T) / np.maximum(both * max(found.shape[1], 1), 1e-12), k=1)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    pairs = [divmod(int(place), classes) for place in order if shares.flat[place] > 0]
    return [
        Confusion(
            a, b, float(shares[a, b]),
            None if model.centers is None else int((model.centers[a] != model.centers[b]).sum()),
            None if reference is None else float(reference[a, b]),
        )
        for a, b in pairs
    ]  # fmt: skip


@dataclass(frozen=True)
class CodeStatistics:
    """What the codes of a database are like.

    ``ones``: the share of +1 of each bit, K; ``correlation``: K x K between bits (a constant bit has 0 with all
    others); ``distinct``: how many codes differ; ``items``: of how many.
    """

    ones: Floats
    correlation: Floats
    distinct: int
    items: int


def code_statistics(codes: LabelledCodes) -> CodeStatistics:
    """Balance and correlation of bits, and how many codes differ."""
    bits = unpacked(codes).astype(np.float32)
    centred = bits - bits.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=0))
    unit = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    correlation = np.asarray(unit.T @ unit, dtype=np.float64)
    np.fill_diagonal(correlation, 1.0)
    distinct = len(np.unique(codes.words, axis=0)) if len(codes) else 0
    return CodeStatistics(bits.mean(axis=0, dtype=np.float64), correlation, distinct, len(codes))


def unpacked(codes: LabelledCodes) -> npt.NDArray[np.bool_]:
    """N x K, True for +1."""
    size = codes.words.dtype.itemsize
    parts = np.ascontiguousarray(codes.words.astype(f"<u{size}")).view(np.uint8).reshape(len(codes.words), -1)
    return np.unpackbits(parts, axis=1, bitorder="little")[:, : codes.bits].astype(bool)


def center_similarity(centers: Codes) -> Floats:
    """Cosine of C x K centres: C x C."""
    signs = centers.astype(np.float64)
    return np.asarray(signs @ signs.T / centers.shape[1])


def membership(labels: Array, classes: int) -> npt.NDArray[np.float32]:
    """N x C: one for the class of each sample, or an equal share for each of its several labels."""
    if labels.ndim == 1:
        return np.eye(classes, dtype=np.float32)[labels.astype(np.int64)]
    several = labels.astype(np.float32)
    return np.asarray(several / np.maximum(several.sum(axis=1, keepdims=True), 1))


def right_items(model: Model, rows: npt.NDArray[np.int64], found: Array) -> npt.NDArray[np.bool_]:
    """Which of Q x n found items share a label with their query."""
    labels = model.queries.labels[rows]
    return np.stack([_paired(labels, model.database.labels[column]) for column in found.T], axis=1)


def _paired(first: Array, second: Array) -> npt.NDArray[np.bool_]:
    """Whether samples share a label, one by one."""
    return np.asarray(first == second if first.ndim == 1 else (first.astype(bool) & second.astype(bool)).any(axis=1))


def _blocks(queries: int, database: int) -> list[slice]:
    size = max(1, _PAIRS // max(1, database))
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]
