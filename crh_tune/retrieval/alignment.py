"""Do similar classes have similar centres? The paper's Pearson correlation (PCC) and class prototypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_PAIRS_AT_ONCE = 2**20


def cosine_similarity(vectors: npt.NDArray[Any]) -> Floats:
    """Cosine of every pair of rows, C x D -> C x C, in float64. A zero row has similarity 0 to all."""
    rows = _unit_rows(vectors)
    return rows @ rows.T


def _unit_rows(vectors: npt.NDArray[Any]) -> Floats:
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def class_prototypes(
    features: npt.NDArray[Any] | Iterable[npt.NDArray[Any]], labels: npt.NDArray[Any], classes: int
) -> Floats:
    """The paper's p_c: mean of the features of class c, each weighted 1 / ||y||_1.

    Args:
        features: N x D, or its rows in order as several arrays.
        labels: N class indices or N x C multi-hot.

    Returns:
        C x D; a class without samples has a zero row.
    """
    sums, totals, start = np.zeros((classes, 1)), np.zeros((classes, 1)), 0
    for part in [features] if isinstance(features, np.ndarray) else features:
        sums = sums if start else np.zeros((classes, part.shape[1]))
        own, rows = labels[start : start + len(part)], part.astype(np.float64)
        start += len(part)
        if own.ndim == 2:
            weights = own / np.maximum(own.sum(axis=1, keepdims=True, dtype=np.float64), 1)
            sums += weights.T @ rows
            totals += weights.sum(axis=0)[:, None]
        elif len(own):  # a matrix of weights would not fit into memory where classes are many
            order = np.argsort(own, kind="stable")
            there, first, counts = np.unique(own[order], return_index=True, return_counts=True)
            sums[there] += np.add.reduceat(rows[order], first)
            totals[there, 0] += counts
    return np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)


def semantic_alignment(centers: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """PCC over the strict upper triangle between cos(c_i, c_j) of C x K centres and a C x C reference similarity.

    NaN where one of the two does not vary (fewer than three classes, or all pairs alike).
    """
    rows, count = _unit_rows(centers), len(centers) * (len(centers) - 1) // 2
    whole = rows.sum(axis=0)
    own_mean = (whole @ whole - (rows * rows).sum()) / 2 / max(count, 1)
    their_mean = sum(float(row[c + 1 :].sum(dtype=np.float64)) for c, row in enumerate(reference)) / max(count, 1)
    products = np.zeros(3)
    for own, other in _pairs(rows, reference):
        ours, theirs = own - own_mean, other - their_mean
        products += ours @ ours, theirs @ theirs, ours @ theirs
    scale = float(np.sqrt(products[0] * products[1]))
    return float(products[2]) / scale if scale > 1e-12 else float("nan")


def _pairs(rows: Floats, reference: npt.NDArray[Any]) -> Iterator[tuple[Floats, Floats]]:
    """Cosines of unit rows and their reference over the strict upper triangle, a million at a time."""
    size = max(1, _PAIRS_AT_ONCE // max(len(rows), 1))
    for start in range(0, len(rows), size):
        ours = rows[start : start + size] @ rows[start:].T
        theirs = reference[start : start + size, start:].astype(np.float64)
        width = len(ours)
        upper = np.triu_indices(width, k=1)
        yield ours[:, :width][upper], theirs[:, :width][upper]
        yield ours[:, width:].ravel(), theirs[:, width:].ravel()
