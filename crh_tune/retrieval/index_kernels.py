"""The compiled inner loop of the index: the k items of least cost for each query, in one pass over distinct codes."""

from __future__ import annotations

import numpy as np

from crh_tune.compiled import kernel
from crh_tune.retrieval.kernels import BLOCK, popcount, score_of

PLANES = 3
_CHUNK = 64


@kernel
def bounds_into(own, masks, words, start, stop, out):
    """out[j] = the weighted number of bits in which item start + j differs: bits of ``masks[p]`` weigh 2^p.

    own: W words; masks: P x W; words: W x D.
    """
    for word in range(len(own)):
        row, mine = words[word, start:stop], own[word]
        if len(masks) == PLANES:
            low, middle, high = masks[0, word], masks[1, word], masks[2, word]
            for j in range(len(row)):
                differ = row[j] ^ mine
                value = popcount(differ & low) + 2 * popcount(differ & middle) + 4 * popcount(differ & high)
                out[j] = value if word == 0 else out[j] + value
        else:
            for j in range(len(row)):
                value = popcount((row[j] ^ mine) & masks[0, word])
                out[j] = value if word == 0 else out[j] + value


@kernel
def smallest(values):
    """The least of some unsigned values: vector instructions."""
    least = values[0]
    for j in range(1, len(values)):
        least = min(least, values[j])
    return least


@kernel
def replace_worst(costs, found, cost, row):
    """Put an item in the place of the worst of a heap whose root is the worst: dearest, then last in the database."""
    place, size = 0, len(costs)
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            costs[other] > costs[child] or (costs[other] == costs[child] and found[other] > found[child])
        ):
            child = other
        if costs[child] < cost or (costs[child] == cost and found[child] < row):
            break
        costs[place], found[place] = costs[child], found[child]
        place = child
    costs[place], found[place] = cost, row


@kernel
def least_cost(owns, masks, base, step, tables, words, codes, rows, ends, alive, first, last, buffer, costs, found):
    """Fill the Q x k heaps ``costs`` and ``found`` with the items of the codes from ``first`` to ``last``.

    Args:
        owns, masks: Q x W codes of the queries and Q x P x W bits by weight: base + step * bound is at most the cost.
        tables: Q x B x 256 scores of each byte, whose negative sum is the cost; none where the bound is the cost.
        words, codes: the distinct codes, W x D and D x W.
        rows, ends: the items of each code, ascending; codes are in the order of their first items.
        alive: N flags, or none where all items count.
    """
    exact = len(tables) == 0
    top = np.float64(np.iinfo(buffer.dtype).max)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for query in range(len(owns)):
            heap, items = costs[query], found[query]
            bounds_into(owns[query], masks[query], words, start, stop, buffer)
            for chunk in range(0, stop - start, _CHUNK):
                values = buffer[chunk : min(chunk + _CHUNK, stop - start)]
                limit = min((heap[0] - base[query]) / step[query] + 1e-6, top)
                if smallest(values) > limit:
                    continue
                for j in range(len(values)):
                    if values[j] > limit:
                        continue
                    code = start + chunk + j
                    cost = np.float64(values[j]) if exact else -score_of(codes, code, tables[query])
                    for place in range(ends[code], ends[code + 1]):
                        row = np.int64(rows[place])
                        if cost > heap[0] or (cost == heap[0] and row > items[0]):
                            break
                        if len(alive) == 0 or alive[row]:
                            replace_worst(heap, items, cost, row)
                    limit = min((heap[0] - base[query]) / step[query] + 1e-6, top)
