"""Mean average precision of a Hamming ranking, with its ties, cutoff and denominator said by name.

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crh_tune.compiled import in_parts
from crh_tune.retrieval.packing import Packed, first_bits, wide_words

Ties = Literal["expected", "stable", "shuffle"]
Denominator = Literal["retrieved", "achievable", "relevant"]
NoRelevant = Literal["zero", "skip"]
Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

DIVISORS: tuple[Denominator, ...] = ("retrieved", "achievable", "relevant")
"""By their numbers in ``crh_tune.retrieval.kernels``."""


@dataclass(frozen=True)
class RankingProtocol:
    """How a ranking is scored: cutoff k (None: the whole database), tie rule, denominator, queries without relevant."""

    cutoff: int | None = None
    ties: Ties = "expected"
    denominator: Denominator = "retrieved"
    no_relevant: NoRelevant = "zero"
    shuffle_seed: int = 0


@dataclass(frozen=True)
class LabelledCodes:
    """Packed codes N x W of ``bits`` bits with their labels: N class indices, or N x C multi-hot."""

    words: Packed
    labels: npt.NDArray[Any]
    bits: int

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> LabelledCodes:
        return LabelledCodes(self.words[rows], self.labels[rows], self.bits)

    def __len__(self) -> int:
        return len(self.words)

    def first_bits(self, bits: int) -> LabelledCodes:
        """The same items with the first ``bits`` bits of their codes."""
        return LabelledCodes(first_bits(self.words, bits), self.labels, bits)


def relevance(queries: npt.NDArray[Any], database: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which database items share a label with which query: Q x N, from class indices or multi-hot rows."""
    if queries.ndim == 1:
        return np.equal(queries[:, None], database[None, :])
    return (queries.astype(np.float32) @ database.T.astype(np.float32)) > 0


def average_precisions(
    queries: LabelledCodes, database: LabelledCodes, protocol: RankingProtocol, threads: int | None = None
) -> Floats:
    """Average precision of each query: Q values, NaN where the database holds nothing relevant.

    ``threads`` is how many cores it takes; None is all of them, at most OMP_NUM_THREADS.
    Raises ValueError for an empty database or a cutoff below 1.
    """
    cutoff = check_ranking(len(database), protocol)
    ranked = rank(queries, database, protocol, [cutoff], threads)
    return ranked.precisions[:, 0]


@dataclass(frozen=True)
class Ranked:
    """What one pass over Q queries and the database gives; the columns of the first two are the cutoffs, ascending.

    ``precisions`` is AP (NaN without a relevant item), ``found`` the (expected) relevant items above the cutoff;
    ``items`` and ``hits``, Q x (K + 1), count all items and the relevant ones at each Hamming distance.
    """

    precisions: Floats
    found: Floats
    items: npt.NDArray[np.int32]
    hits: npt.NDArray[np.int32]


def rank(
    queries: LabelledCodes, database: LabelledCodes, protocol: RankingProtocol, cutoffs: Sequence[int],
    threads: int | None = None,
) -> Ranked:  # fmt: skip
    """One pass for all ascending cutoffs, each from 1 to the size of the database; the protocol's own is not used."""
    from crh_tune.retrieval import kernels  # noqa: PLC0415  # numba takes a third of a second to load

    if protocol.ties == "shuffle":
        database = database[np.random.default_rng(protocol.shuffle_seed).permutation(len(database))]
    count, bins, size = len(queries), queries.bits + 1, len(database)
    asked, labels = label_words(queries.labels, database.labels)
    words, labels = np.ascontiguousarray(wide_words(database.words).T), np.ascontiguousarray(labels.T)
    own, exclusive = wide_words(queries.words), queries.labels.ndim == 1
    at, divisor = np.array(cutoffs, dtype=np.int64), DIVISORS.index(protocol.denominator)
    result = Ranked(
        np.empty((count, len(at))), np.empty((count, len(at))),
        np.empty((count, bins), dtype=np.int32), np.empty((count, bins), dtype=np.int32),
    )  # fmt: skip
    value = np.uint8 if 2 * bins <= 256 else np.uint16
    harmonic = kernels.harmonic_numbers(int(at[-1]))

    def part(start: int, stop: int) -> None:
        mine = slice(start, stop)
        values, found, items, hits = (
            result.precisions[mine], result.found[mine], result.items[mine], result.hits[mine]
        )  # fmt: skip
        ranked = own[mine], words, asked[mine], labels, exclusive
        if protocol.ties == "expected":
            kernels.count_by_distance(*ranked, np.empty(kernels.BLOCK, dtype=value), items, hits)
            kernels.expected_rankings(items, hits, at, divisor, harmonic, values, found)
        else:
            row = np.empty(size, dtype=value)
            kernels.ordered_rankings(*ranked, row, at, divisor, values, found, items, hits)

    if count:
        in_parts(part, count, threads)
    result.precisions[result.hits.sum(axis=1) == 0] = np.nan
    return result


def label_words(queries: Array, database: Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Labels as 64-bit words, Q x L and N x L: one number for a class, or the bits of multi-hot rows."""
    if queries.ndim > 1:
        return wide_words(np.packbits(queries > 0, axis=1)), wide_words(np.packbits(database > 0, axis=1))
    if queries.dtype.kind not in "iu" or database.dtype.kind not in "iu":
        numbers = np.unique(np.concatenate([queries, database]), return_inverse=True)[1]
        queries, database = numbers[: len(queries)], numbers[len(queries) :]
    return queries.astype(np.int64)[:, None].view(np.uint64), database.astype(np.int64)[:, None].view(np.uint64)


def check_ranking(size: int, protocol: RankingProtocol) -> int:
    """How many ranks of a database of this size are looked at. Raises ValueError where it is empty, or cutoff < 1."""
    if size == 0:
        raise ValueError("the database of a ranking is empty")
    if protocol.cutoff is not None and protocol.cutoff < 1:
        raise ValueError(f"cutoff must be at least 1 or none, got {protocol.cutoff}")
    return min(protocol.cutoff or size, size)


def mean_average_precision(values: Floats, no_relevant: NoRelevant = "zero") -> float:
    """The mean of :func:`average_precisions`; NaN when no query is left to average."""
    if no_relevant == "skip":
        values = values[~np.isnan(values)]
    return float(np.nan_to_num(values).mean()) if len(values) else float("nan")


def ordered_average_precisions(
    distances: npt.NDArray[Any], relevant: npt.NDArray[np.bool_], cutoff: int, denominator: Denominator
) -> Floats:
    """AP of each row of Q x N distances, ties in database order (a stable sort of small integers is a radix sort)."""
    order = np.argsort(distances, axis=1, kind="stable")[:, :cutoff]
    hits = np.take_along_axis(relevant, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, cutoff + 1)
    total = (precision * hits).sum(axis=1)
    values: Floats = total / ap_divisor(hits.sum(axis=1), relevant.sum(axis=1), cutoff, denominator)
    return values


def ap_divisor(
    retrieved: npt.NDArray[np.integer], relevant: npt.NDArray[np.integer], cutoff: int, denominator: Denominator
) -> npt.NDArray[np.integer]:
    """What a sum of precisions is divided by, at least 1: from the relevant items above the cutoff, and all of them."""
    choices = {"retrieved": retrieved, "achievable": np.minimum(relevant, cutoff), "relevant": relevant}
    divisor: npt.NDArray[np.integer] = np.maximum(choices[denominator], 1)
    return divisor
