"""The figures of a retrieval paper from one pass: mAP, precision and recall at k, precision by recall, P@radius 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crh_tune.retrieval.average_precision import (
    Floats,
    LabelledCodes,
    RankingProtocol,
    check_ranking,
    mean_average_precision,
    rank,
)


@dataclass(frozen=True)
class RetrievalCurves:
    """Means over queries, which are those that the protocol keeps; ties inside ranks by the protocol's rule.

    ``average_precisions`` holds Q values at the protocol's cutoff (NaN where the database holds nothing relevant), and
    ``mean_average_precision`` their mean. For each of ``ranks``: ``mean_average_precision_at`` (mAP@k),
    ``precision_at`` (relevant items among the first k, over k) and ``recall_at`` (over all relevant items).

    ``radius_precision`` and ``radius_recall`` are K + 1 values, for all items within Hamming distance 0 to K: the
    precision-recall curve of hash lookup, which no tie rule touches. A query with no item within a radius counts as
    precision 0 there, as in the P@r = 2 of papers: ``radius_precision[2]``.
    """

    average_precisions: Floats
    mean_average_precision: float
    ranks: npt.NDArray[np.int64]
    mean_average_precision_at: Floats
    precision_at: Floats
    recall_at: Floats
    radius_precision: Floats
    radius_recall: Floats


def retrieval_curves(
    queries: LabelledCodes, database: LabelledCodes, protocol: RankingProtocol, ranks: Sequence[int],
    threads: int | None = None,
) -> RetrievalCurves:  # fmt: skip
    """Everything above in one pass; ranks beyond the database's size count as its size.

    Raises ValueError for an empty database, a cutoff or a rank below 1.
    """
    size, own = len(database), check_ranking(len(database), protocol)
    if any(k < 1 for k in ranks):
        raise ValueError(f"ranks must be at least 1, got {min(ranks)}")
    asked = np.minimum(np.array(ranks, dtype=np.int64), size)
    cutoffs = np.unique(np.append(asked, own))
    ranked = rank(queries, database, protocol, cutoffs.tolist(), threads)
    at, own_at = np.searchsorted(cutoffs, asked), int(np.searchsorted(cutoffs, own))
    keep = protocol.no_relevant
    kept = np.flatnonzero(ranked.hits.any(axis=1) | (keep == "zero"))
    relevant = np.maximum(ranked.hits[kept].sum(axis=1), 1)
    found = ranked.found[kept][:, at]
    items, hits = np.cumsum(ranked.items[kept], axis=1), np.cumsum(ranked.hits[kept], axis=1)
    values = ranked.precisions
    return RetrievalCurves(
        average_precisions=values[:, own_at],
        mean_average_precision=mean_average_precision(values[:, own_at], keep),
        ranks=asked,
        mean_average_precision_at=np.array([mean_average_precision(values[:, column], keep) for column in at]),
        precision_at=_mean(found / asked),
        recall_at=_mean(found / relevant[:, None]),
        radius_precision=_mean(hits / np.maximum(items, 1)),
        radius_recall=_mean(hits / relevant[:, None]),
    )


def _mean(values: Floats) -> Floats:
    """The mean over queries; NaN where none is left."""
    means: Floats = values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)
    return means
