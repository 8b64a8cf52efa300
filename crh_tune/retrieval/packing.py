"""Codes as packed machine words, and Hamming distances on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Packed = npt.NDArray[np.unsignedinteger]
"""N x W machine words; unused bits are zero."""


def pack_codes(codes: npt.NDArray[Any]) -> Packed:
    """Pack N x K codes into the smallest machine words that hold K bits.

    Codes are boolean, or numbers of which the sign counts; as everywhere sign(0) = +1, so 0 is a one.

    Raises ValueError for unsigned integers, which have no sign: 0 and 1 are to be given as booleans.
    """
    codes = np.asarray(codes)
    if codes.dtype.kind == "u":
        raise ValueError(f"codes are boolean or have a sign, got {codes.dtype}: use codes.astype(bool) for 0 and 1")
    return _as_words(np.packbits(codes if codes.dtype == bool else codes >= 0, axis=1, bitorder="little"))


def first_bits(packed: Packed, bits: int) -> Packed:
    """Of N packed codes the first ``bits`` bits, packed as codes of that length are."""
    size = -(-bits // 8)
    kept = np.ascontiguousarray(packed).view(np.uint8)[:, :size]
    if bits % 8:
        kept = kept & np.array([255] * (size - 1) + [2 ** (bits % 8) - 1], dtype=np.uint8)
    return _as_words(kept)


def _as_words(packed: npt.NDArray[np.uint8]) -> Packed:
    """N x B bytes as the smallest machine words that hold them, filled up with zeros."""
    width = packed.shape[1]
    size = next((size for size in (1, 2, 4) if width <= size), 8)
    padded = np.zeros((len(packed), -(-width // size) * size), dtype=np.uint8)
    padded[:, :width] = packed
    return padded.view(f"<u{size}")


def wide_words(packed: Packed) -> npt.NDArray[np.uint64]:
    """N x W words of any size as 64-bit words, zeros in what they have more: what the compiled kernels take."""
    if packed.dtype == np.uint64 and packed.shape[1]:
        return packed
    size = packed.shape[1] * packed.dtype.itemsize
    padded = np.zeros((len(packed), max(8, -(-size // 8) * 8)), dtype=np.uint8)
    padded[:, :size] = np.ascontiguousarray(packed).view(np.uint8)
    return padded.view("<u8")


def distinct_codes(
    words: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct rows of N x W words, in the order in which they first come, and the items that have each.

    Returns D x W words, the N rows of the items by code (ascending within one), and D + 1 places ``ends``: the items
    of code g are ``rows[ends[g] : ends[g + 1]]``.
    """
    keys = [words[:, word] for word in range(words.shape[1])]
    order = np.lexsort(keys) if len(keys) > 1 else np.argsort(keys[0], kind="stable")
    new = np.ones(len(words), dtype=bool)
    new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    starts = np.flatnonzero(new)
    by_first = np.argsort(order[starts], kind="stable")
    group = np.empty(len(starts), dtype=np.int64)
    group[by_first] = np.arange(len(starts))
    sizes = np.diff(np.append(starts, len(words)))
    rows = order[np.argsort(np.repeat(group, sizes), kind="stable")]
    ends = np.concatenate([[0], np.cumsum(sizes[by_first])])
    return np.ascontiguousarray(words[rows[ends[:-1]]]), rows, ends


def hamming_distances(queries: Packed, database: Packed) -> npt.NDArray[np.integer]:
    """Hamming distances of Q x W queries to N x W database words: Q x N (uint8, or uint16 above 255 bits)."""
    words = queries.shape[1]
    distances = np.bitwise_count(queries[:, None, 0] ^ database[None, :, 0])
    if words * queries.dtype.itemsize * 8 > 255:
        distances = distances.astype(np.uint16)
    for word in range(1, words):
        distances += np.bitwise_count(queries[:, None, word] ^ database[None, :, word])
    return distances
