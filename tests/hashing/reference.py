"""What the compiled reassignment is held against: the same rules in PyTorch and NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from crh_tune.hashing.assignment import WEIGHT_UNIT, Statistic
from crh_tune.hashing.codebook import Codes, codes_to_pattern

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


def greedy(sums: npt.NDArray[np.int64], words: Codes, free: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
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


def nearest_in_whole_space(
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


def center_distances(centers: Codes) -> tuple[int, float]:
    upper = np.triu_indices(len(centers), k=1)
    signs = centers.astype(np.float32)
    distances = ((centers.shape[1] - signs @ signs.T) / 2)[upper]
    return int(distances.min()), float(distances.mean(dtype=np.float64))
