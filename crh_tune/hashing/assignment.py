"""Reassignment: class statistics -> cost -> greedy, Hungarian or whole space.

For +-1 vectors ||b - z||^2 = 2d - 2 b.z, so Eq. 5 and Eq. 7 need of the samples no more than, per class,
S[c] = sum_x w_x b_x and W[c] = sum_x w_x with w_x = 1 / ||y_x||_1:

    cost[c, m] = 2d - 2 (S[c] / W[c]) . z_m

S and W are kept as integers in units of 1 / :data:`WEIGHT_UNIT`, which every label count up to 20 divides: the
statistic is an exact sum over samples, so the assignment depends neither on how many workers computed it
nor on which shard came first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from crh_tune.hashing.codebook import AnyCodebook, Codes, Table, WholeSpace, codes_to_pattern

if TYPE_CHECKING:
    import torch

Statistic = npt.NDArray[np.int64]
"""C x (K + 1): the weighted sum of codes of every class, and in the last column its weight."""
Rule = Literal["greedy", "hungarian"]

WEIGHT_UNIT = math.lcm(*range(1, 21))
_LONG_BUCKETS = 2**16
"""Words are put in buckets by their first byte, and more of them than this by the first two."""


def class_statistic(codes: torch.Tensor, labels: torch.Tensor, classes: int) -> Statistic:
    """Sum a shard's codes per class (the S and W of the module's docstring).

    Args:
        codes: N x K, boolean, True for +1.
        labels: N class indices, or an N x C multi-hot matrix. A sample without a label counts nowhere.
        classes: C.

    Returns:
        C x (K + 1) int64, in units of 1 / WEIGHT_UNIT (label counts above 20 are rounded to it).
    """
    from crh_tune.hashing import kernels  # noqa: PLC0415

    statistic = np.zeros((classes, codes.shape[1] + 1), dtype=np.int64)
    rows = np.ascontiguousarray(codes.cpu().numpy())
    if labels.ndim == 1:
        kernels.add_single(rows, _class_indices(labels.cpu().numpy(), classes), WEIGHT_UNIT, statistic)
    else:
        kernels.add_multi(rows, np.ascontiguousarray(labels.cpu().numpy() != 0), WEIGHT_UNIT, statistic)
    return statistic


def _class_indices(labels: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """Labels as int64. Raises IndexError where one is not among the classes: compiled loops do not look."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise IndexError(f"labels from {labels.min()} to {labels.max()}: they must be from 0 to {classes - 1}")
    return np.ascontiguousarray(labels, dtype=np.int64)


def assignment_cost(statistic: Statistic, words: Codes) -> npt.NDArray[np.float64]:
    """Eq. 7 of one head: C x M mean squared distances of a class's codes to each sub-codeword.

    Args:
        statistic: C x (D + 1), the head's columns of the statistic and the weight; every weight positive.
        words: M x D.
    """
    mean = statistic[:, :-1] / statistic[:, -1:]
    cost: npt.NDArray[np.float64] = 2.0 * words.shape[1] - 2.0 * (mean @ words.T.astype(np.float64))
    return cost


def reassign(
    statistic: Statistic, codebook: AnyCodebook, table: Table, *, rule: Rule, seed: int, round_number: int
) -> Table:
    """Give every class its new codeword in every head (Eq. 6, Algorithm 1 lines 5 to 8).

    A class without samples in this round (weight 0) keeps its codewords, and nobody else gets them. The greedy
    rule visits classes in a random order drawn from (seed, round, head), so it depends on nothing else. Ties go to
    the codeword with the lowest index.

    Args:
        statistic: C x (K + 1), summed over all shards.
        table: H x C, the present assignment.

    Returns:
        The new H x C table.

    Raises ValueError for the Hungarian rule on all 2^K codewords, whose costs are too many to write out.
    """
    seen = statistic[:, -1] > 0
    if isinstance(codebook, WholeSpace):
        if rule == "hungarian":
            raise ValueError("the Hungarian rule is for listed codewords: all 2^K take the greedy rule")
        order = _class_order(seed, round_number, 0, seen)
        return _nearest_in_whole_space(statistic[:, :-1], table[0], order)[None, :]
    new = table.copy()
    dim = codebook.words.shape[2]
    for head, words in enumerate(codebook.words):
        free = np.ones(codebook.size, dtype=bool)
        free[table[head, ~seen]] = False
        columns = np.r_[head * dim : (head + 1) * dim, statistic.shape[1] - 1]
        if rule == "greedy":
            order = _class_order(seed, round_number, head, seen)
            new[head, order] = _greedy(statistic[order][:, columns[:-1]], words, free)
        else:
            cost = assignment_cost(statistic[seen][:, columns], words[free])
            import scipy.optimize  # noqa: PLC0415  # half a second, which the greedy rule does not need

            new[head, seen] = np.flatnonzero(free)[scipy.optimize.linear_sum_assignment(cost)[1]]
    return new


def reassigned_share(old: Codes, new: Codes) -> float:
    """The share of the C classes whose centre (C x K) changed."""
    return float((old != new).any(axis=1).mean())


def _class_order(seed: int, round_number: int, head: int, seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    order = np.random.default_rng([seed, round_number, head]).permutation(len(seen))
    return order[seen[order]]


def _greedy(sums: npt.NDArray[np.int64], words: Codes, free: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """One class after another takes the free word with the largest sum . word, which is the one of least cost.

    ``sums`` are the classes' weighted code sums in visiting order (C x D).
    """
    from crh_tune.hashing import kernels  # noqa: PLC0415

    packed = np.packbits(words > 0, axis=1, bitorder="little")
    key_bytes = 2 if packed.shape[1] > 2 and len(packed) > _LONG_BUCKETS else 1
    keys = packed[:, 0].astype(np.int64)
    if key_bytes == 2:
        keys = 256 * keys + packed[:, 1]
    indices = np.flatnonzero(free)
    indices = indices[np.argsort(keys[indices], kind="stable")]
    ends = np.searchsorted(keys[indices], np.arange(256**key_bytes + 1))
    padded = np.zeros((len(sums), 8 * packed.shape[1]), dtype=np.int64)
    padded[:, : sums.shape[1]] = sums
    chosen: npt.NDArray[np.int64] = kernels.greedy_words(padded, packed[indices], indices, ends, key_bytes)
    return chosen


def _nearest_in_whole_space(
    sums: npt.NDArray[np.int64], held: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """M = 2^K: each class takes sign(S), or the closest free codeword (of those, the one that costs least)."""
    from crh_tune.hashing import kernels  # noqa: PLC0415

    new = held.copy()
    kept = held[np.setdiff1d(np.arange(len(held)), order)].view(np.uint64)
    wanted = codes_to_pattern(np.where(sums >= 0, 1, -1).astype(np.int8)).view(np.uint64)
    new[order] = kernels.whole_space_words(wanted[order], np.abs(sums[order]), kept).view(np.int64)
    return new
