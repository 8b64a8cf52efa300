"""The compiled inner loops of reassignment. All scores are sums of integers, so that ties are ties."""

from __future__ import annotations

import numpy as np

from crh_tune.compiled import kernel


@kernel
def add_single(codes, labels, unit, statistic):
    """Add N x K codes of N classes to the C x (K + 1) statistic."""
    bits = codes.shape[1]
    for sample in range(len(codes)):
        row, code = statistic[labels[sample]], codes[sample]
        for bit in range(bits):
            row[bit] += unit if code[bit] else -unit
        row[bits] += unit


@kernel
def add_multi(codes, labels, unit, statistic):
    """Add N x K codes with N x C multi-hot labels; a sample of n labels adds unit / n, rounded, to each."""
    bits = codes.shape[1]
    for sample in range(len(codes)):
        names = np.flatnonzero(labels[sample])
        if len(names) == 0:
            continue
        weight, code = (unit + len(names) // 2) // len(names), codes[sample]
        for name in names:
            row = statistic[name]
            for bit in range(bits):
                row[bit] += weight if code[bit] else -weight
            row[bits] += weight


@kernel
def sum_tables(sums, tables, key_bytes):
    """tables[b, v] = sum . word over byte b of a word, where that byte is v (B x 256).

    Returns the bucket with the largest sum of the first bytes, and the largest sum of the others.
    """
    likeliest, rest = 0, 0
    for byte in range(len(tables)):
        table, known, wanted = tables[byte], 1, 0
        table[0] = 0
        for bit in range(8):
            amount = sums[8 * byte + bit]
            for value in range(known):
                table[known + value] = table[value] + amount
                table[value] -= amount
            known *= 2
            if byte >= key_bytes:
                rest += abs(amount)
            elif amount > 0:
                wanted |= 1 << bit
        if byte < key_bytes:
            likeliest = 256 * likeliest + wanted
    return likeliest, rest


@kernel
def greedy_words(sums, words, indices, ends, key_bytes):
    """Each class in turn takes the free word with the largest sum . word, of equal ones that of the lowest index.

    Args:
        sums: C x 8B code sums in visiting order, zeros beyond the D bits of a word.
        words: F x B bytes of the free words, bit 1 for +1, bucket after bucket by their first ``key_bytes`` bytes.
        indices: F, the word's index in the codebook. Both are rearranged as words are taken.
        ends: of the buckets, 256^key_bytes + 1.

    Returns the indices taken, C. A bucket is looked into only where its first bytes can still lead to the best score.
    """
    size, last = words.shape[1], ends[1:].copy()
    tables = np.empty((size, 256), dtype=np.int64)
    chosen = np.empty(len(sums), dtype=np.int64)
    for place in range(len(sums)):
        likeliest, rest = sum_tables(sums[place], tables, key_bytes)
        best, found, bucket_of = np.iinfo(np.int64).min, -1, -1
        for turn in range(-1, len(last)):
            bucket = likeliest if turn < 0 else turn
            start, stop = ends[bucket], last[bucket]
            if start == stop:
                continue
            key = tables[0, bucket] if key_bytes == 1 else tables[0, bucket >> 8] + tables[1, bucket & 255]
            if key + rest < best:
                continue
            for i in range(start, stop):
                score = key
                for byte in range(key_bytes, size):
                    score += tables[byte, words[i, byte]]
                if score > best or (score == best and indices[i] < indices[found]):
                    best, found, bucket_of = score, i, bucket
        chosen[place] = indices[found]
        end = last[bucket_of] - 1
        words[found], indices[found] = words[end], indices[end]
        last[bucket_of] = end
    return chosen


@kernel
def is_taken(pattern, table):
    """Whether an open-addressing table of patterns + their marks holds one; the place it has or would have."""
    mask = np.uint64(len(table) - 1)
    place = (pattern * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
    while table[place, 1]:
        if table[place, 0] == pattern:
            return True, place
        place = (place + np.uint64(1)) & mask
    return False, place


@kernel
def nearest_free(wanted, costs, table):
    """The free pattern with the fewest bits flipped, of those the one of least cost, of those the first in order.

    Combinations of bits are tried in lexicographic order, and left where those flipped already cost as much as the
    best.
    """
    bits, one = len(costs), np.uint64(1)
    flipped, prices = np.zeros(bits, dtype=np.int64), np.zeros(bits, dtype=np.int64)
    masks = np.zeros(bits, dtype=np.uint64)
    if not is_taken(wanted, table)[0]:
        return wanted
    for count in range(1, bits + 1):
        best, found, depth = np.iinfo(np.int64).max, wanted, 0
        flipped[0] = -1
        while depth >= 0:
            flipped[depth] += 1
            bit = flipped[depth]
            if bit > bits - (count - depth):
                depth -= 1
                continue
            price = prices[depth] + costs[bit]
            if price >= best:
                continue
            mask = masks[depth] ^ (one << np.uint64(bit))
            if depth < count - 1:
                depth += 1
                flipped[depth], prices[depth], masks[depth] = bit, price, mask
            elif not is_taken(wanted ^ mask, table)[0]:
                best, found = price, wanted ^ mask
        if best < np.iinfo(np.int64).max:
            return found
    return wanted


@kernel
def whole_space_words(wanted, costs, kept):
    """Each class in turn takes the pattern it wants, C, or the nearest free one; ``kept`` patterns are taken already.

    ``costs`` are C x K: what flipping a bit costs the class.
    """
    size = 16
    while size < 2 * (len(wanted) + len(kept)):
        size *= 2
    table, chosen = np.zeros((size, 2), dtype=np.uint64), np.empty_like(wanted)
    for pattern in kept:
        place = is_taken(pattern, table)[1]
        table[place, 0], table[place, 1] = pattern, 1
    for turn in range(len(wanted)):
        pattern = nearest_free(wanted[turn], costs[turn], table)
        place = is_taken(pattern, table)[1]
        table[place, 0], table[place, 1] = pattern, 1
        chosen[turn] = pattern
    return chosen
