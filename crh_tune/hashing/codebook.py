"""Codewords, heads, and the distances between them.

A codebook Z holds M codewords of K bits (M >= C). It is cut into H heads of d = K / H bits, and every
class centre is the concatenation of one sub-codeword per head (Eq. 8), so a table of H x C codeword
indices says all there is to say about the centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int8]
"""Binary codes or centres, N x K, every entry -1 or +1."""
Table = npt.NDArray[np.int64]
"""Codeword index of every class in every head, H x C."""

WHOLE_SPACE_MAX_BITS = 64
_ENUMERABLE_BITS = 20
_CENTERS_PER_BLOCK = 256


def feasible_head_dims(bits: int, size: int) -> list[int]:
    """Head dimensions d, ascending, that divide K and keep M sub-codewords distinct: H <= K / log2 M."""
    return [d for d in range(1, bits + 1) if bits % d == 0 and size <= 2**d]


def paper_head_dim(bits: int, size: int) -> int:
    """The paper's d: the smallest power of two with d >= log2 M (the smallest feasible d where none divides K).

    Raises ValueError when M > 2^K.
    """
    feasible = feasible_head_dims(bits, size)
    if not feasible:
        raise ValueError(f"codebook_size M = {size} is larger than 2^K = {2**bits} (bits K = {bits})")
    powers = [d for d in feasible if d & (d - 1) == 0]
    return min(powers or feasible)


@dataclass(frozen=True)
class Codebook:
    """M explicit codewords, cut into heads. ``words`` is H x M x D with entries -1 and +1."""

    words: Codes

    @property
    def heads(self) -> int:
        return self.words.shape[0]

    @property
    def size(self) -> int:
        return self.words.shape[1]

    @property
    def bits(self) -> int:
        return self.words.shape[0] * self.words.shape[2]

    def centers(self, table: Table) -> Codes:
        """Centres c_c = concat(c_c^1, ..., c_c^H) of an H x C table, as C x K (Eq. 8)."""
        return np.concatenate([words[row] for words, row in zip(self.words, table, strict=True)], axis=1)

    def initial_table(self, classes: int, seed: int) -> Table:
        """C distinct codewords drawn at random, the same index in every head: H x C."""
        if classes > self.size:
            raise ValueError(f"codebook_size M = {self.size} is smaller than the number of classes C = {classes}")
        chosen = np.random.default_rng(seed).permutation(self.size)[:classes].astype(np.int64)
        return np.repeat(chosen[None, :], self.heads, axis=0)


@dataclass(frozen=True)
class WholeSpace:
    """All 2^K codewords, never written out: M = 2^K, one head, a codeword's index is its bit pattern."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits > WHOLE_SPACE_MAX_BITS:
            raise ValueError(f"codebook_size full needs bits <= {WHOLE_SPACE_MAX_BITS}, got bits = {self.bits}")

    @property
    def heads(self) -> int:
        return 1

    def centers(self, table: Table) -> Codes:
        """Centres of a 1 x C table of bit patterns, as C x K."""
        return pattern_to_codes(table[0], self.bits)

    def initial_table(self, classes: int, seed: int) -> Table:
        """C distinct codewords drawn at random: 1 x C."""
        return codes_to_pattern(_distinct_words(classes, self.bits, np.random.default_rng(seed)))[None, :]


AnyCodebook = Codebook | WholeSpace


def sample_codebook(bits: int, size: int, head_dim: int, seed: int) -> Codebook:
    """Draw M codewords of K bits, uniformly and distinct; within each head too, whenever M <= 2^d.

    Where 2^d < M that is impossible: the codewords are then distinct as a whole and collide within heads.

    Raises ValueError when d does not divide K or M > 2^K.
    """
    if head_dim < 1 or bits % head_dim:
        raise ValueError(f"head_dim d = {head_dim} does not divide bits K = {bits}")
    if size > 2**bits:
        raise ValueError(f"codebook_size M = {size} is larger than 2^K = {2**bits} (bits K = {bits})")
    generator = np.random.default_rng(seed)
    heads = bits // head_dim
    if size <= 2**head_dim:
        return Codebook(np.stack([_distinct_words(size, head_dim, generator) for _ in range(heads)]))
    words = _distinct_words(size, bits, generator)
    return Codebook(words.reshape(size, heads, head_dim).transpose(1, 0, 2).copy())


def _distinct_words(size: int, bits: int, generator: np.random.Generator) -> Codes:
    """``size`` distinct words of ``bits`` bits, uniform without replacement: size x bits."""
    if bits <= _ENUMERABLE_BITS:
        return pattern_to_codes(generator.choice(2**bits, size=size, replace=False).astype(np.int64), bits)
    words = np.empty((0, bits), dtype=np.int8)
    while len(words) < size:
        fresh = generator.integers(0, 2, size=(size - len(words), bits), dtype=np.int8) * 2 - 1
        words = np.concatenate([words, fresh.astype(np.int8)])
        words = words[np.sort(np.unique(words, axis=0, return_index=True)[1])]
    return words


def pattern_to_codes(pattern: npt.NDArray[np.int64], bits: int) -> Codes:
    """Bit patterns (N, lowest bit first; the sign bit is the 64th) as N x bits codes."""
    shifts = np.arange(bits, dtype=np.uint64)
    ones = (pattern.astype(np.int64).view(np.uint64)[:, None] >> shifts) & np.uint64(1)
    return (ones.astype(np.int8) * 2 - 1).astype(np.int8)


def codes_to_pattern(codes: Codes) -> npt.NDArray[np.int64]:
    """The inverse of :func:`pattern_to_codes`: N x K codes (K <= 64) as N bit patterns."""
    shifts = np.arange(codes.shape[1], dtype=np.uint64)
    ones = (codes > 0).astype(np.uint64) << shifts
    return np.bitwise_or.reduce(ones, axis=1).view(np.int64)


def center_distances(centers: Codes) -> tuple[int, float]:
    """(d_min, d_avg): the smallest and the mean Hamming distance between two of the C x K centres, C >= 2."""
    classes, bits = centers.shape
    signs, closest = centers.astype(np.float32), []
    for start in range(0, classes, _CENTERS_PER_BLOCK):
        products = signs[start : start + _CENTERS_PER_BLOCK] @ signs[start:].T
        np.fill_diagonal(products, -np.inf)
        closest.append(products.max())
    ones = (centers > 0).sum(axis=0, dtype=np.int64)
    mean = int((ones * (classes - ones)).sum()) / (classes * (classes - 1) // 2)
    return int((bits - max(closest)) / 2), mean


def shared_centers(centers: Codes) -> Sequence[tuple[int, int]]:
    """Pairs of classes that stand on the same centre (there should be none)."""
    _, first, inverse = np.unique(centers, axis=0, return_index=True, return_inverse=True)
    owner = first[inverse.reshape(-1)]
    return [(int(owner[c]), c) for c in range(len(centers)) if owner[c] != c]
