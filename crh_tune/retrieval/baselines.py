"""What ranking costs and finds without training: the cosine of the features themselves, and codes of their PCA.

Features are N x D, an array or anything like one that reads the rows it is asked for; they are read a few thousand
rows at a time, as float64: float32 would lose what sets features far from zero apart, and holds no large ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from crh_tune.retrieval.average_precision import (
    Denominator,
    Floats,
    NoRelevant,
    RankingProtocol,
    ap_divisor,
    check_ranking,
    ordered_average_precisions,
    relevance,
)

Array = npt.NDArray[Any]
_CHUNK = 4096
_FIT_ROWS = 50_000
"""PCA and ITQ are fitted on at most so many training rows, drawn by the seed."""
_SIMILARITIES = 2**25
_PAIRS_SORTED = 2**22


class Features(Protocol):
    """N x D rows, of which some are read at a time: a NumPy array, or rows on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Array: ...


@dataclass(frozen=True)
class LinearCodes:
    """Codes sign((x - mean) projection) with sign(0) = +1; mean: D, projection: D x K."""

    mean: Floats
    projection: Floats

    def project(self, features: Features) -> Floats:
        """N x K real values, whose signs are the codes."""
        return np.concatenate([np.empty((0, self.projection.shape[1])), *self._projected(features)])

    def encode(self, features: Features) -> npt.NDArray[np.bool_]:
        """Codes of N x D features: N x K, True for +1."""
        nothing = np.empty((0, self.projection.shape[1]), dtype=np.bool_)
        return np.concatenate([nothing, *(part >= 0 for part in self._projected(features))])

    def _projected(self, features: Features) -> Iterator[Floats]:
        for part in _chunks(features):
            yield (part - self.mean) @ self.projection


def pca_rotation(train_features: Features, bits: int, seed: int) -> LinearCodes:
    """The first K principal components under a random rotation, which shares their variance out over the bits.

    With fewer than K features the projection is padded with zeros to K before it is rotated: each bit is then a random
    direction of the whole space, and none is constant. Fitted on at most 50,000 rows; takes a D x D covariance matrix.
    Raises ValueError where there is no row.
    """
    if len(train_features) == 0:
        raise ValueError("PCA needs at least one training row")
    mean, axes = _principal_axes(train_features, _fit_rows(len(train_features), seed), bits)
    return LinearCodes(mean, axes @ random_rotation(bits, seed)[: axes.shape[1]])


def pca_itq(
    train_features: Features, bits: int, seed: int, iterations: int = 50, start: LinearCodes | None = None
) -> LinearCodes:
    """Iterative quantization (Gong and Lazebnik, CVPR 2011): the rotation of the first K principal components V that
    minimises ||B - V R||^2 over R and B = sign(V R), by turns, from a random rotation.

    ``start`` is what ``pca_rotation`` has found with the same arguments, where that is there already; rows, padding and
    errors are its own.
    """
    start = start or pca_rotation(train_features, bits, seed)
    rows = _fit_rows(len(train_features), seed)
    projected = np.concatenate([(part - start.mean) @ start.projection for part in _chunks(train_features, rows)])
    turn = np.eye(bits)
    for _ in range(iterations):
        signs = np.where(projected @ turn >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(projected.T @ signs)
        turn = left @ right
    return LinearCodes(start.mean, start.projection @ turn)


def cosine_average_precisions(
    queries: Features, query_labels: Array, database: Features, database_labels: Array, protocol: RankingProtocol
) -> Floats:
    """Average precision of each query where the database is ranked by cosine similarity, largest first: Q values.

    Cutoff and denominator are the protocol's, and the value is NaN where the database holds nothing relevant, as in
    ``average_precisions``. Equal similarities, which hardly occur, stay in database order whatever its tie rule. A zero
    row has similarity 0 to all. Labels are class indices, or multi-hot rows.
    Raises ValueError for an empty database or a cutoff below 1.
    """
    cutoff = check_ranking(len(database), protocol)
    asked, sorted_at_once = max(1, _SIMILARITIES // len(database)), max(1, _PAIRS_SORTED // len(database))
    values = [np.empty(0)]
    for start in range(0, len(queries), asked):
        stop = min(start + asked, len(queries))
        similarities = np.empty((stop - start, len(database)), dtype=np.float32)
        own, filled = unit_rows(queries[start:stop]), 0
        for part in _chunks(database):
            similarities[:, filled : filled + len(part)] = own @ unit_rows(part).T
            filled += len(part)
        np.negative(similarities, out=similarities)
        for first in range(start, stop, sorted_at_once):
            last = min(first + sorted_at_once, stop)
            relevant = relevance(query_labels[first:last], database_labels)
            ranked = similarities[first - start : last - start]
            values.append(_ranked_values(ranked, relevant, cutoff, protocol.denominator))
    return np.concatenate(values)


def _ranked_values(
    distances: npt.NDArray[np.float32], relevant: npt.NDArray[np.bool_], cutoff: int, denominator: Denominator
) -> Floats:
    """``ordered_average_precisions``, NaN without anything relevant, from the places of the relevant items alone.

    Sorting values is several times as fast as sorting places by them, which only queries with ties need.
    """
    values = np.full(len(distances), np.nan)
    for row, ranked in enumerate(np.sort(distances, axis=1)):
        own = np.sort(distances[row, relevant[row]])
        before = np.searchsorted(ranked, own, side="left")
        if not len(own):
            continue
        if (np.searchsorted(ranked, own, side="right") > before + 1).any():
            one = slice(row, row + 1)
            values[row] = ordered_average_precisions(distances[one], relevant[one], cutoff, denominator)[0]
            continue
        ranks = before[before < cutoff] + 1
        total = (np.arange(1, len(ranks) + 1) / ranks).sum()
        values[row] = total / ap_divisor(np.array(len(ranks)), np.array(len(own)), cutoff, denominator)
    return values


class Gain(NamedTuple):
    """The difference of two mean average precisions on the same queries, and its 95 % interval (NaN: unknown)."""

    mean: float
    low: float
    high: float


def bootstrap_gain(
    ap_ours: Floats, ap_theirs: Floats, seed: int, rounds: int = 2000, no_relevant: NoRelevant = "zero"
) -> Gain:
    """How much more mAP ours has than theirs, with the percentile interval of a paired bootstrap over queries.

    Both hold the average precision of the same Q queries in the same order, NaN where nothing is relevant: such a query
    counts 0 (``zero``) or not at all (``skip``). With fewer than two queries the interval is unknown.
    Raises ValueError where the two differ in length.
    """
    if ap_ours.shape != ap_theirs.shape:
        raise ValueError(f"the two have {len(ap_ours)} and {len(ap_theirs)} queries: they must be the same queries")
    difference = np.round(ap_ours - ap_theirs, 9) + 0.0  # equal rankings are scored along different ways
    difference = difference[~np.isnan(difference)] if no_relevant == "skip" else np.nan_to_num(difference)
    if len(difference) < 2:
        return Gain(float(difference.mean()) if len(difference) else float("nan"), float("nan"), float("nan"))
    import scipy.stats  # noqa: PLC0415  # most of a second, which trials do not need

    drawn = scipy.stats.bootstrap(
        (difference,), np.mean, n_resamples=rounds, batch=max(1, _PAIRS_SORTED // len(difference)),
        method="percentile", random_state=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = drawn.confidence_interval
    return Gain(float(difference.mean()), float(low), float(high))


def _chunks(features: Features, rows: npt.NDArray[np.int64] | None = None) -> Iterator[Floats]:
    """The features, or these rows of them, in order."""
    for start in range(0, len(features) if rows is None else len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield np.asarray(features[part if rows is None else rows[part]], dtype=np.float64)


def unit_rows(features: Features) -> npt.NDArray[np.float32]:
    """The features at length 1, N x D; a zero row stays one."""
    units = np.zeros(features.shape, dtype=np.float32)
    for start, part in zip(range(0, len(units), _CHUNK), _chunks(features), strict=True):
        lengths = np.linalg.norm(part, axis=1, keepdims=True)
        units[start : start + _CHUNK] = np.divide(part, lengths, out=np.zeros_like(part), where=lengths > 0)
    return units


def _principal_axes(features: Features, rows: npt.NDArray[np.int64], count: int) -> tuple[Floats, Floats]:
    """Mean (D) and the first principal axes (D x r, largest variance first, r = min(count, D)) of some rows.

    The largest entry of each axis is positive, so that the axes do not depend on the eigenvalue solver.
    """
    size = features.shape[1]
    sums = np.zeros(size)
    for part in _chunks(features, rows):
        sums += part.sum(axis=0)
    mean = sums / len(rows)
    scatter = np.zeros((size, size))
    for part in _chunks(features, rows):
        centred = part - mean
        largest = float(np.abs(centred).max()) or 1.0  # in units of which float32 holds them: products in half the time
        scaled = (centred / largest).astype(np.float32)
        scatter += (scaled.T @ scaled).astype(np.float64) * largest**2
    kept = min(count, size)
    import scipy.linalg  # noqa: PLC0415  # which most trials do not need

    _, axes = scipy.linalg.eigh(scatter, subset_by_index=(size - kept, size - 1))
    axes = axes[:, ::-1]
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(kept)] < 0, -1, 1)
    return mean, axes


def _fit_rows(count: int, seed: int) -> npt.NDArray[np.int64]:
    if count <= _FIT_ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, _FIT_ROWS, replace=False))


def random_rotation(size: int, seed: int) -> npt.NDArray[np.float32]:
    """A rotation drawn uniformly: Q of a Gaussian matrix's QR decomposition, with the signs of R's diagonal."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return (q * np.where(np.diag(r) < 0, -1, 1)).astype(np.float32)
