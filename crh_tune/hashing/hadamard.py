"""Centres that know nothing of the data: Hadamard and balanced Bernoulli (CSQ), and plain Bernoulli (OrthoHash).

CSQ (Yuan et al., CVPR 2020) wants the C x K centres mutually K/2 apart. Rows of a Hadamard matrix are exactly
that; where there are too few of them, words with as many minus as plus ones are drawn until they lie far enough apart.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from crh_tune.hashing.codebook import Codes, pattern_to_codes, sample_codebook

_ENUMERABLE_BITS = 20
_BATCH = 1024
_DRAWS_PER_CLASS = 32
_MEAN_ATTEMPTS = 20


def csq_centers(bits: int, classes: int, seed: int) -> Codes:
    """CSQ's centres (Yuan et al., CVPR 2020), C x K, all distinct.

    * K a power of two, C <= K: C rows of the Hadamard matrix H_K; every two are K/2 apart.
    * K a power of two, C <= 2K: H_K and C - K negated rows; distances are K/2, or K between a row and its negative.
    * otherwise: balanced Bernoulli words, exactly floor(K/2) minus ones, with minimum distance >= 5K/16 and mean
      distance >= 2w(K - w)/K, w = floor(K/2) (CSQ's 20 and 32 at 64 bits). A word too close to an earlier one is drawn
      again. Where that minimum cannot be had it is lowered by one at a time; the mean, which about every second draw
      reaches, is given up after 20 draws of all words (the largest counts then).
    * fewer than C balanced words exist: distinct uniform words, :func:`bernoulli_centers`.

    Which rows there are and which class has which is drawn with ``seed``.

    Raises ValueError when C > 2^K.
    """
    _require_room(bits, classes)
    generator = np.random.default_rng(seed)
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        return _hadamard_rows(bits, classes, generator)
    minus_ones = bits // 2
    words = math.comb(bits, minus_ones)
    if classes > words:
        return bernoulli_centers(bits, classes, seed)
    # With a larger minimum distance than 2, every set of w - 1 positions would lie in one word at most.
    crowded = classes * (bits - minus_ones + 1) > words
    if crowded and bits <= _ENUMERABLE_BITS:
        every = pattern_to_codes(np.arange(2**bits, dtype=np.int64), bits)
        balanced = every[(every < 0).sum(axis=1) == minus_ones]
        return balanced[generator.permutation(len(balanced))[:classes]]
    return _separated_words(bits, classes, generator)


def bernoulli_centers(bits: int, classes: int, seed: int) -> Codes:
    """OrthoHash's centres (Hoe et al., NeurIPS 2021), C x K, all distinct: each bit +-1 with probability 1/2.

    Raises ValueError when C > 2^K.
    """
    _require_room(bits, classes)
    return sample_codebook(bits, classes, bits, seed).words[0]


def _require_room(bits: int, classes: int) -> None:
    if classes > 2**bits:
        raise ValueError(f"classes C = {classes} is larger than 2^K = {2**bits} (bits K = {bits}): no distinct centres")


def _hadamard_rows(bits: int, classes: int, generator: np.random.Generator) -> Codes:
    """C rows of [H; -H], as many of them from H as it has: C x K."""
    import scipy.linalg  # noqa: PLC0415  # which most methods do not need

    rows = scipy.linalg.hadamard(bits, dtype=np.int8)
    positive = generator.permutation(bits)[: min(classes, bits)]
    negative = generator.permutation(bits)[: max(classes - bits, 0)]
    centers: Codes = np.concatenate([rows[positive], -rows[negative]])
    return centers[generator.permutation(classes)]


def _separated_words(bits: int, classes: int, generator: np.random.Generator) -> Codes:
    """C balanced words, far apart from each other and on average (see :func:`csq_centers`): C x K."""
    separation = 5 * bits // 16
    target = 2 * (bits // 2) * (bits - bits // 2) / bits
    best, best_mean = np.empty((0, bits), dtype=np.int8), -math.inf
    for _ in range(_MEAN_ATTEMPTS):
        words = np.empty((0, bits), dtype=np.int8)
        words = _grow(words, classes, separation, generator)
        while len(words) < classes:
            separation -= 1
            words = _grow(words, classes, separation, generator)
        mean = _mean_distance(words)
        if mean > best_mean:
            best, best_mean = words, mean
        if mean >= target:
            break
    return best


def _grow(words: Codes, classes: int, separation: int, generator: np.random.Generator) -> Codes:
    """Add balanced words, each at least ``separation`` from all others, until there are C or 32 C draws have gone by.

    At separation 2 (distinct words: balanced ones differ in an even number of bits) it does not give up.
    """
    bits = words.shape[1]
    template = np.ones((_BATCH, bits), dtype=np.int8)
    template[:, : bits // 2] = -1
    draws = 0
    while len(words) < classes and (draws < _DRAWS_PER_CLASS * classes + _BATCH or separation <= 2):
        fresh = generator.permuted(template, axis=1)
        draws += len(fresh)
        if len(words):
            fresh = fresh[(_inner(fresh, words) <= bits - 2 * separation).all(axis=1)]
        fresh = fresh[_compatible(_inner(fresh, fresh) > bits - 2 * separation)]
        words = np.concatenate([words, fresh])[:classes]
    return words


def _compatible(conflict: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Indices kept when each in turn (B x B conflicts) is kept unless it conflicts with one kept before."""
    kept = np.ones(len(conflict), dtype=bool)
    for i in range(len(conflict)):
        if kept[i]:
            kept[i + 1 :] &= ~conflict[i, i + 1 :]
    return np.flatnonzero(kept)


def _inner(left: Codes, right: Codes) -> npt.NDArray[np.float32]:
    return left.astype(np.float32) @ right.astype(np.float32).T


def _mean_distance(words: Codes) -> float:
    """Mean Hamming distance of all pairs of N x K words: (N^2 K - ||sum||^2) / (2 N (N - 1)); K for a single word."""
    count, bits = words.shape
    if count < 2:
        return float(bits)
    total = words.sum(axis=0, dtype=np.int64)
    return float(count * count * bits - total @ total) / (2 * count * (count - 1))
