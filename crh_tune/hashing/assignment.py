"""Reassignment: class statistics -> cost -> greedy, Hungarian or whole space.

For +-1 vectors ||b - z||^2 = 2d - 2 b.z, so Eq. 5 and Eq. 7 need of the samples no more than, per class,
S[c] = sum_x w_x b_x and W[c] = sum_x w_x with w_x = 1 / ||y_x||_1:

    cost[c, m] = 2d - 2 (S[c] / W[c]) . z_m

S and W are kept as integers in units of 1 / :data:`WEIGHT_UNIT`, which every label count up to 20 divides: the
statistic is an exact sum over samples, so the assignment depends neither on how many workers computed it
nor on which shard came first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.optimize
import torch

from crh_tune.hashing.codebook import AnyCodebook, Codes, Table, WholeSpace, codes_to_pattern

Statistic = npt.NDArray[np.int64]
"""C x (K + 1): the weighted sum of codes of every class, and in the last column its weight."""
Rule = Literal["greedy", "hungarian"]

WEIGHT_UNIT = math.lcm(*range(1, 21))
_CLASSES_PER_BLOCK = 256


def class_statistic(codes: torch.Tensor, labels: torch.Tensor, classes: int) -> Statistic:
    """Sum a shard's codes per class (the S and W of the module's docstring).

    Args:
        codes: N x K, boolean, True for +1.
        labels: N class indices, or an N x C multi-hot matrix. A sample without a label counts nowhere.
        classes: C.

    Returns:
        C x (K + 1) int64, in units of 1 / WEIGHT_UNIT (label counts above 20 are rounded to it).
    """
    if labels.ndim == 1:
        sample, of_class = torch.arange(len(labels), device=labels.device), labels.long()
        weight = torch.full((len(labels),), WEIGHT_UNIT, dtype=torch.int64, device=labels.device)
    else:
        sample, of_class = torch.nonzero(labels, as_tuple=True)
        count = (labels != 0).sum(dim=1).clamp(min=1)
        weight = (WEIGHT_UNIT + count // 2) // count
    rows = torch.ones(len(codes), codes.shape[1] + 1, dtype=torch.int64, device=codes.device)
    rows[:, :-1] = codes.long() * 2 - 1
    rows *= weight[:, None]
    statistic = torch.zeros(classes, codes.shape[1] + 1, dtype=torch.int64, device=codes.device)
    statistic.index_add_(0, of_class, rows[sample])
    return statistic.cpu().numpy()


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

    ``sums`` are the classes' weighted code sums in visiting order (C x D). Dividing each row by its greatest common
    divisor changes no argmax and keeps the float64 products exact, so that ties are ties.
    """
    divisor = np.maximum(np.gcd.reduce(sums, axis=1), 1)
    exact = (sums // divisor[:, None]).astype(np.float64)
    columns = words.T.astype(np.float64)
    taken = ~free
    chosen = np.empty(len(sums), dtype=np.int64)
    for start in range(0, len(sums), _CLASSES_PER_BLOCK):
        scores = exact[start : start + _CLASSES_PER_BLOCK] @ columns
        scores[:, taken] = -np.inf
        for row, score in enumerate(scores):
            word = int(score.argmax())
            chosen[start + row] = word
            taken[word] = True
            scores[row + 1 :, word] = -np.inf
    return chosen


def _nearest_in_whole_space(
    sums: npt.NDArray[np.int64], held: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """M = 2^K: each class takes sign(S), or the closest free codeword (of those, the one that costs least)."""
    new = held.copy()
    kept = np.setdiff1d(np.arange(len(held)), order)
    taken = {int(pattern) for pattern in held[kept]}
    wanted = codes_to_pattern(np.where(sums >= 0, 1, -1).astype(np.int8)).view(np.uint64)
    for class_ in order:
        candidates = (int(wanted[class_]) ^ flip for flip in _flips(np.abs(sums[class_])))
        pattern = next(p for p in candidates if int(np.uint64(p).view(np.int64)) not in taken)
        new[class_] = np.uint64(pattern).view(np.int64)
        taken.add(int(new[class_]))
    return new


def _flips(cost: npt.NDArray[np.int64]) -> Iterator[int]:
    """Bit masks by the number of bits flipped, and within one number by the summed cost of the flipped bits."""
    for count in range(len(cost) + 1):
        masks = itertools.combinations(range(len(cost)), count)
        for bits in sorted(masks, key=lambda bits: sum(int(cost[bit]) for bit in bits)):
            yield sum(1 << bit for bit in bits)
