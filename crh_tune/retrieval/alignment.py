"""Do similar classes have similar centres? The paper's Pearson correlation (PCC) and class prototypes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def cosine_similarity(vectors: npt.NDArray[Any]) -> Floats:
    """Cosine of every pair of rows, C x D -> C x C, in float64. A zero row has similarity 0 to all."""
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return rows @ rows.T


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
        own = labels[start : start + len(part)]
        weights = np.eye(classes)[own] if own.ndim == 1 else own.astype(np.float64)
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)
        sums = sums + weights.T @ part.astype(np.float64)
        totals += weights.sum(axis=0)[:, None]
        start += len(part)
    return np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)


def semantic_alignment(centers: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """PCC over the strict upper triangle between cos(c_i, c_j) of C x K centres and a C x C reference similarity.

    NaN where one of the two does not vary (fewer than three classes, or all pairs alike).
    """
    upper = np.triu_indices(len(centers), k=1)
    ours, theirs = cosine_similarity(centers)[upper], reference.astype(np.float64)[upper]
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    scale = float(np.sqrt((ours @ ours) * (theirs @ theirs)))
    return float(ours @ theirs) / scale if scale > 1e-12 else float("nan")
