"""Centres that keep a minimal distance (MDS: Wang et al., CVPR 2023).

For each centre z in turn the paper minimises the mean inner product with the others, 1/(C-1) sum_j z.z_j, subject to
z.z_j <= K - 2 d_min, by an l_p-box ADMM over the box and the sphere whose common points are the +-1 vectors. A sweep
visits every centre; there are up to 50, until the minimum distance is d_min, and the one with the best
mean + min - var of the distances counts.

The problem, the sweeps and the choice are kept here; the ADMM is replaced by a steepest descent over flips of one bit
or of two. The ADMM (the release's constants; the inverse computed once a centre) was measured beside it from the same
CSQ start, on one busy core. Minimum distances:

    C, K     d_min  start   ADMM                     descent
    80, 16       5      4    4, 4 sweeps in 168 s      5, 0.1 s
    80, 32      11     10   10, 2 sweeps in  20 s     11, 0.1 s
    196, 64     23     20   20, 2 sweeps in 177 s     23, 0.3 s
    555, 32      9     10    4, 1 sweep  in 100 s     10, 0.1 s
    555, 64     21     20   17, 1 sweep  in 247 s     21, 1 s
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from crh_tune.hashing.codebook import Codes
from crh_tune.hashing.hadamard import csq_centers

Vectors = npt.NDArray[np.float64]

_BLOCK = 1024
_TOLERANCE = 1e-6


def minimal_distance(bits: int, classes: int) -> int:
    """d_min: the smallest d with sum_{i<d} binom(K, i) >= 2^K / C (Gilbert-Varshamov), in exact integers.

    Raises ValueError when C < 1.
    """
    if classes < 1:
        raise ValueError(f"classes C = {classes} is smaller than 1")
    distance, volume = 0, 0
    while volume * classes < 2**bits:
        volume += math.comb(bits, distance)
        distance += 1
    return distance


def mds_centers(bits: int, classes: int, seed: int, sweeps: int = 50) -> Codes:
    """MDS centres (Wang et al., CVPR 2023), C x K, all distinct, started from :func:`csq_centers`.

    Where the start lies further apart than d_min already, that distance is kept. Not every d_min can be had (three
    words of 4 bits cannot be 3 apart): when no flip helps, or after ``sweeps`` sweeps, the best sweep so far counts,
    the one with the largest minimum distance up to d_min and, at that, the largest mean + min - var.

    Raises ValueError when C > 2^K.
    """
    start = csq_centers(bits, classes, seed)
    if classes < 2:
        return start
    generator = np.random.default_rng(seed)
    centers = start.astype(np.float64)
    best, (best_rank, nearest) = start, _rank(start, minimal_distance(bits, classes))
    wanted = max(minimal_distance(bits, classes), nearest)
    for _ in range(sweeps):
        flips = sum(_improve(centers, row, bits - 2 * wanted) for row in generator.permutation(classes))
        current = centers.astype(np.int8)
        rank, nearest = _rank(current, wanted)
        if rank > best_rank:
            best, best_rank = current, rank
        if nearest >= wanted or not flips:
            break
    return best


def distance_counts(centers: Codes) -> npt.NDArray[np.int64]:
    """How many pairs of the C x K centres have Hamming distance 0, ..., K: K + 1 numbers."""
    signs = centers.astype(np.float32)
    count, bits = signs.shape
    counts = np.zeros(bits + 1, dtype=np.int64)
    for first in range(0, count, _BLOCK):
        distances = (bits - signs[first : first + _BLOCK] @ signs.T) / 2
        counts += np.bincount(distances.astype(np.int64).reshape(-1), minlength=bits + 1)
    counts[0] -= count
    return counts // 2


def _rank(centers: Codes, wanted: int) -> tuple[tuple[int, float], int]:
    """((min up to ``wanted``, mean + min - var) of the pairwise distances, min)."""
    counts = distance_counts(centers)
    values = np.arange(len(counts))
    nearest = int(np.flatnonzero(counts)[0])
    mean = float(values @ counts) / int(counts.sum())
    variance = float((values - mean) ** 2 @ counts) / int(counts.sum())
    return (min(nearest, wanted), mean + nearest - variance), nearest


def _improve(centers: Vectors, row: int, largest: int) -> int:
    """Flip bits of one of the C x K centres, in place, until no flip lowers its cost; how many times it did.

    The cost is lexicographic: first sum_j max(0, z.z_j - largest)^2 over the other centres, then var_j - mean_j of the
    distances to them (what the release keeps or drops an ADMM result by).
    """
    flips = 0
    while (move := _best_move(centers, row, largest)) is not None:
        centers[row, list(move)] *= -1
        flips += 1
    return flips


def _best_move(centers: Vectors, row: int, largest: int) -> tuple[int, ...] | None:
    """The one or two bits whose flip lowers the centre's cost most, or None; two only where none alone helps.

    With s_jb = z_b z_jb, flipping b moves g_j = z.z_j by -2 s_jb, so every sum over j below is one product with Z.
    """
    center, others = centers[row], len(centers) - 1
    inner = centers @ center
    inner[row] = 0.0
    weights = np.stack([np.ones(len(centers)), inner])
    weights[0, row] = 0.0
    lean, pull = center * (weights @ centers)  # sum_j s_jb, sum_j g_j s_jb
    total, squares = inner.sum(), inner @ inner

    inner[row] = -np.inf
    close = np.flatnonzero(inner > largest - 4)  # no flip of two bits brings any other centre too near
    signs, inner = centers[close] * center, inner[close]
    crowd = _Crowding(len(center), largest)
    now = crowd.cost(inner).sum() + _spread(total, squares, others)
    cost = crowd.after_one(inner, signs) + _spread(total - 2 * lean, squares - 4 * pull + 4 * others, others)
    bit = int(np.argmin(cost))
    if cost[bit] < now - _TOLERANCE:
        return (bit,)
    if not crowd.cost(inner).any():
        return None

    same = np.outer(center, center) * (centers.T @ centers) - 1  # sum_j s_ja s_jb
    totals = total - 2 * np.add.outer(lean, lean)
    costs = _spread(totals, squares - 4 * np.add.outer(pull, pull) + 8 * (others + same), others)
    costs += crowd.after_two(inner, signs)
    np.fill_diagonal(costs, np.inf)
    pair = divmod(int(np.argmin(costs)), len(center))
    return pair if costs[pair] < now - _TOLERANCE else None


def _spread(total: Vectors, squares: Vectors, others: int) -> Vectors:
    """var - mean (less K/2) of distances (K - g_j) / 2, given sum_j g_j and sum_j g_j^2."""
    mean = total / others
    return mean / 2 + (squares / others - mean * mean) / 4


class _Crowding:
    """What it costs a centre to be too near others: sum_j max(0, g_j - largest)^2, weighted above all else.

    ``inner`` is the g_j of the n centres that matter, ``signs`` their n x K products s_jb. As s_jb is -1 or +1, any
    function of g_j - 2 s_jb is linear in s_jb, and of g_j - 2 (s_ja + s_jb) bilinear.
    """

    def __init__(self, bits: int, largest: int) -> None:
        self.largest = largest
        self.weight = float(bits * bits)  # more than _spread can change

    def cost(self, inner: Vectors) -> Vectors:
        """n terms."""
        excess = np.maximum(inner - self.largest, 0)
        return self.weight * excess * excess

    def after_one(self, inner: Vectors, signs: Vectors) -> Vectors:
        """The sum after a flip of each bit: K."""
        nearer, farther = self.cost(inner + 2), self.cost(inner - 2)
        return ((farther + nearer) / 2).sum() + ((farther - nearer) / 2) @ signs

    def after_two(self, inner: Vectors, signs: Vectors) -> Vectors:
        """The sum after a flip of each two bits: K x K (the diagonal means nothing)."""
        nearer, same, farther = self.cost(inner + 4), self.cost(inner), self.cost(inner - 4)
        linear = ((farther - nearer) / 4) @ signs
        both = signs.T @ (signs * ((farther - 2 * same + nearer) / 4)[:, None])
        return ((farther + 2 * same + nearer) / 4).sum() + np.add.outer(linear, linear) + both
