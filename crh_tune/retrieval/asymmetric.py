"""Asymmetric ranking: the real outputs u of a query against stored bits b, by the score u . b, largest first.

Nothing more is stored than for Hamming ranking. Ties are items of equal score, which as a rule are equal codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.compiled import in_parts
from crh_tune.retrieval.average_precision import (
    DIVISORS,
    Floats,
    LabelledCodes,
    RankingProtocol,
    check_ranking,
    label_words,
)
from crh_tune.retrieval.packing import distinct_codes, wide_words


def asymmetric_average_precisions(
    outputs: npt.NDArray[Any], labels: npt.NDArray[Any], database: LabelledCodes, protocol: RankingProtocol,
    threads: int | None = None,
) -> Floats:  # fmt: skip
    """Average precision of each query: Q values, NaN where the database holds nothing relevant.

    Args:
        outputs: Q x K real outputs of the network, whose signs are the codes of the queries.
        labels: Q class indices or Q x C multi-hot rows, as the database's.
        protocol: cutoff and denominator are its own; equal scores are always ties of which the expectation is taken.
        threads: cores to take; None is all of them, at most OMP_NUM_THREADS.

    Scores are sums in float64, exact for float32 outputs within a factor of 2^23 of each other.
    Raises ValueError for an empty database, a cutoff below 1, or outputs that are not finite or not of K columns.
    """
    from crh_tune.retrieval import kernels  # noqa: PLC0415

    cutoff = check_ranking(len(database), protocol)
    outputs = checked_outputs(outputs, database.bits)
    distinct, rows, ends = distinct_codes(wide_words(database.words))
    asked, stored = label_words(labels, database.labels)
    stored = np.ascontiguousarray(stored[rows].T)
    at, divisor = np.array([cutoff], dtype=np.int64), DIVISORS.index(protocol.denominator)
    values, found, relevant = np.empty((len(outputs), 1)), np.empty((len(outputs), 1)), np.zeros(len(outputs))
    harmonic = kernels.harmonic_numbers(cutoff)

    def part(start: int, stop: int) -> None:
        mine = slice(start, stop)
        relevant[mine] = kernels.asymmetric_rankings(
            outputs[mine], distinct, ends, asked[mine], stored, database.labels.ndim == 1, at, divisor, harmonic,
            values[mine], found[mine],
        )  # fmt: skip

    if len(outputs):
        in_parts(part, len(outputs), threads)
    return np.where(relevant > 0, values[:, 0], np.nan)


def checked_outputs(outputs: npt.NDArray[Any], bits: int) -> Floats:
    """Outputs as contiguous float64. Raises ValueError where they are not finite, or not Q x K."""
    if outputs.ndim != 2 or outputs.shape[1] != bits or outputs.dtype.kind != "f":
        raise ValueError(f"outputs of shape Q x {bits} expected, got {outputs.dtype} of shape {outputs.shape}")
    if not np.isfinite(outputs).all():
        raise ValueError("outputs must be finite: some are infinite or not a number")
    return np.ascontiguousarray(outputs, dtype=np.float64)
