"""The compiled inner loops of ranking.

A ranking of N items is walked in groups of ties. ``items[g]`` and ``hits[g]`` count the items and the relevant items
of group g, ``harmonic[n]`` is 1 + 1/2 + ... + 1/n, and a divisor is one of ``RETRIEVED``, ``ACHIEVABLE``, ``RELEVANT``.
Words and label words are word-major (W x N), so that the loops over items are vector instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from crh_tune.compiled import kernel

RETRIEVED, ACHIEVABLE, RELEVANT = 0, 1, 2
BLOCK = 4096
"""Items whose distances are computed before they are counted: they stay in the first cache."""
_LANES = 4
_NEGLIGIBLE = 1e-22


def _popcount(_context: Any, value: Any) -> Any:
    """Ones of a 64-bit word: an instruction, and with AVX-512 one for eight words."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


popcount: Any = intrinsic(_popcount)


@kernel
def distances_into(query, words, start, stop, out):
    """out[j] = Hamming distance of the query (W words) to item start + j. An offset index would not be vectorised."""
    row, own = words[0, start:stop], query[0]
    for j in range(len(row)):
        out[j] = popcount(own ^ row[j])
    for word in range(1, len(query)):
        row, own = words[word, start:stop], query[word]
        for j in range(len(row)):
            out[j] += popcount(own ^ row[j])


@kernel
def add_if_relevant(asked, labels, exclusive, start, stop, amount, out):
    """out[j] += amount where item start + j shares a label with the query: the same one, or a bit of its words."""
    value, nothing = np.uint64(amount), np.uint64(0)
    row, own = labels[0, start:stop], asked[0]
    if exclusive:
        for j in range(len(row)):
            out[j] += value if row[j] == own else nothing
    elif len(asked) == 1:
        for j in range(len(row)):
            out[j] += value if row[j] & own else nothing
    elif len(asked) == 2:
        second, other = labels[1, start:stop], asked[1]
        for j in range(len(row)):
            out[j] += value if (row[j] & own) | (second[j] & other) else nothing
    else:
        for j in range(len(row)):
            shared = nothing
            for word in range(len(asked)):
                shared |= labels[word, start + j] & asked[word]
            out[j] += value if shared else nothing


@kernel
def count_values(values, counts):
    """counts[lane, value] += 1 over quarters of the values: four independent chains of additions."""
    quarter = len(values) // _LANES
    one, two, three, four = counts[0], counts[1], counts[2], counts[3]
    for j in range(quarter):
        one[values[j]] += 1
        two[values[quarter + j]] += 1
        three[values[2 * quarter + j]] += 1
        four[values[3 * quarter + j]] += 1
    for j in range(_LANES * quarter, len(values)):
        four[values[j]] += 1


@kernel
def count_by_distance(queries, words, asked, labels, exclusive, row, items, hits):
    """Fill Q x (K + 1) ``items`` and ``hits``; ``row`` is scratch space for a block of values."""
    bins, size = items.shape[1], words.shape[1]
    counts = np.zeros((_LANES, 2 * bins), dtype=np.uint32)
    for query in range(len(queries)):
        counts[:] = 0
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK, size)
            distances_into(queries[query], words, start, stop, row)
            add_if_relevant(asked[query], labels, exclusive, start, stop, bins, row)
            count_values(row[: stop - start], counts)
        for distance in range(bins):
            relevant = counts[:, bins + distance].sum()
            hits[query, distance] = relevant
            items[query, distance] = relevant + counts[:, distance].sum()


@kernel
def harmonic_numbers(size):
    """H(0) to H(size)."""
    numbers = np.zeros(size + 1)
    for n in range(1, size + 1):
        numbers[n] = numbers[n - 1] + 1.0 / n
    return numbers


@kernel
def group_sum(items, hits, before, hits_before, ranks, harmonic):
    """The expected sum of precisions at relevant ranks over the first ``ranks`` of a group's ``items`` ranks."""
    slope = (hits - 1) / (items - 1) if items > 1 else 0.0
    steps = harmonic[before + ranks] - harmonic[before]
    return hits / items * (slope * ranks + (hits_before + 1 - slope * (before + 1)) * steps)


@kernel
def cut_by_retrieved(items, hits, before, hits_before, ranks, total, harmonic):
    """Expected AP where the cutoff falls inside a group and the divisor is the relevant items found above it.

    The number x of relevant items among the group's first ``ranks`` places is hypergeometric; given x they lie anywhere
    among those places. Chances come by their ratios from the likeliest x, on either side until they no longer count.
    """
    low, high = max(0, ranks - (items - hits)), min(hits, ranks)
    mode = min(max((ranks + 1) * (hits + 1) // (items + 2), low), high)
    chances, summed = 0.0, 0.0
    steps = harmonic[before + ranks] - harmonic[before]
    for side in range(2):
        drawn, chance = mode, 1.0
        while True:
            if side == 0 or drawn != mode:
                slope = (drawn - 1) / (ranks - 1) if ranks > 1 else 0.0
                inside = drawn / ranks * (slope * ranks + (hits_before + 1 - slope * (before + 1)) * steps)
                chances += chance
                summed += chance * (total + inside) / max(hits_before + drawn, 1)
            if side == 0:
                if drawn == high:
                    break
                chance *= (hits - drawn) / (drawn + 1) * (ranks - drawn) / (items - hits - ranks + drawn + 1)
                drawn += 1
            else:
                if drawn == low:
                    break
                chance *= drawn / (hits - drawn + 1) * (items - hits - ranks + drawn) / (ranks - drawn + 1)
                drawn -= 1
            if chance < _NEGLIGIBLE:
                break
    return summed / chances


@kernel
def divided(total, retrieved, relevant, cutoff, divisor):
    """A sum of precisions over its divisor, which is at least 1."""
    if divisor == ACHIEVABLE:
        retrieved = min(relevant, cutoff)
    elif divisor == RELEVANT:
        retrieved = relevant
    return total / max(retrieved, 1)


@kernel
def expected_scores(items, hits, relevant, cutoffs, divisor, harmonic, values, found):
    """Expected AP and expected hits of one ranking at ascending cutoffs, from its groups in order."""
    group, before, hits_before, total = 0, 0, 0, 0.0
    for place in range(len(cutoffs)):
        cutoff = cutoffs[place]
        while group < len(items) and before + items[group] <= cutoff:
            if hits[group]:
                total += group_sum(items[group], hits[group], before, hits_before, items[group], harmonic)
            before += items[group]
            hits_before += hits[group]
            group += 1
        ranks = cutoff - before
        if group == len(items) or ranks == 0 or hits[group] == 0:
            values[place] = divided(total, hits_before, relevant, cutoff, divisor)
            found[place] = hits_before
            continue
        found[place] = hits_before + hits[group] * ranks / items[group]
        if divisor == RETRIEVED:
            values[place] = cut_by_retrieved(items[group], hits[group], before, hits_before, ranks, total, harmonic)
        else:
            part = group_sum(items[group], hits[group], before, hits_before, ranks, harmonic)
            values[place] = divided(total + part, 0, relevant, cutoff, divisor)


@kernel
def expected_rankings(items, hits, cutoffs, divisor, harmonic, values, found):
    """:func:`expected_scores` of Q rankings by Hamming distance; values and found are Q x cutoffs."""
    for query in range(len(items)):
        relevant = hits[query].sum()
        expected_scores(items[query], hits[query], relevant, cutoffs, divisor, harmonic, values[query], found[query])


@kernel
def ordered_rankings(queries, words, asked, labels, exclusive, row, cutoffs, divisor, values, found, items, hits):
    """As :func:`count_by_distance` and :func:`expected_rankings`, ties in database order; ``row`` holds N values.

    The first pass counts, which says how many items come before each distance's in every quarter of the database; the
    second walks the quarters side by side and counts on, so that at a relevant item the counts are its rank.
    """
    bins, size = items.shape[1], words.shape[1]
    counts = np.zeros((_LANES, 2 * bins), dtype=np.uint32)
    gained, met = np.zeros(len(cutoffs)), np.zeros(len(cutoffs), dtype=np.int64)
    for query in range(len(queries)):
        counts[:] = 0
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK, size)
            distances_into(queries[query], words, start, stop, row[start:])
            add_if_relevant(asked[query], labels, exclusive, start, stop, bins, row[start:])
        count_values(row[:size], counts)
        relevant, limit = counts_to_starts(counts, cutoffs[-1], items[query], hits[query])
        gained[:] = 0
        met[:] = 0
        walk_quarters(row[:size], counts, bins, limit, cutoffs, gained, met)
        total, above = 0.0, 0
        for place in range(len(cutoffs)):
            total += gained[place]
            above += met[place]
            values[query, place] = divided(total, above, relevant, cutoffs[place], divisor)
            found[query, place] = above


@kernel
def counts_to_starts(counts, last, items, hits):
    """Turn the counts of each quarter into those of what is ranked before its first item of each distance.

    Fills ``items`` and ``hits``; returns all relevant items, and how many distances come at least in part above rank
    ``last``.
    """
    bins, others_before, hits_before, limit = len(items), 0, 0, 0
    for distance in range(bins):
        limit = distance + 1 if others_before + hits_before < last else limit
        items[distance], hits[distance] = -others_before - hits_before, -hits_before
        for lane in range(_LANES):
            others, relevant = counts[lane, distance], counts[lane, bins + distance]
            counts[lane, distance], counts[lane, bins + distance] = others_before, hits_before
            others_before += others
            hits_before += relevant
        items[distance] += others_before + hits_before
        hits[distance] += hits_before
    return hits_before, limit


@kernel
def walk_quarters(row, counts, bins, limit, cutoffs, gained, met):
    """Count on through the items of a ranking; relevant ones below distance ``limit`` give their precision."""
    quarter, first, end = len(row) // _LANES, np.uint64(bins), np.uint64(limit)
    one, two, three, four = counts[0], counts[1], counts[2], counts[3]
    for j in range(quarter):
        a, b, c, d = row[j], row[quarter + j], row[2 * quarter + j], row[3 * quarter + j]
        one[a] += 1
        two[b] += 1
        three[c] += 1
        four[d] += 1
        if a - first < end:  # unsigned: an item that is not relevant is far above it
            credit(one[a], one[a - first], cutoffs, gained, met)
        if b - first < end:
            credit(two[b], two[b - first], cutoffs, gained, met)
        if c - first < end:
            credit(three[c], three[c - first], cutoffs, gained, met)
        if d - first < end:
            credit(four[d], four[d - first], cutoffs, gained, met)
    for j in range(_LANES * quarter, len(row)):
        four[row[j]] += 1
        if row[j] - first < end:
            credit(four[row[j]], four[row[j] - first], cutoffs, gained, met)


@kernel
def credit(hits, others, cutoffs, gained, met):
    """A relevant item's precision goes to the first cutoff that it is above."""
    rank = np.int64(hits) + np.int64(others)
    for place in range(len(cutoffs)):
        if rank <= cutoffs[place]:
            gained[place] += hits / rank
            met[place] += 1
            return


@kernel
def byte_tables(outputs, tables):
    """tables[b, v] = u . b of the eight bits that are byte b of a packed code, where that byte is v (bit 0: -1)."""
    for byte in range(len(tables)):
        table = tables[byte]
        table[0] = 0.0
        known = 1
        for place in range(8):
            bit = 8 * byte + place
            value = np.float64(outputs[bit]) if bit < len(outputs) else 0.0
            for v in range(known):
                table[known + v] = table[v] + value
                table[v] -= value
            known *= 2


@kernel
def score_of(words, item, tables):
    """u . b of one item of D x W words, in float64."""
    score = 0.0
    for byte in range(len(tables)):
        score += tables[byte, (words[item, byte >> 3] >> np.uint64(8 * (byte & 7))) & np.uint64(255)]
    return score


@kernel
def largest_first(scores, least, order, ranked, ends, places):
    """Sort scores, largest first, until ``least`` items have come; ``ends[g]`` - ``ends[g - 1]`` items stand at g.

    Fills ``order`` and the scores in it, ``ranked``, and returns how many are sorted. A score falls into one of as many
    buckets as there are scores, and only the fullest buckets need more than a few steps.
    """
    count = len(scores)
    top, bottom = scores.max(), scores.min()
    scale = (len(places) - 2) / (top - bottom) if top > bottom else 0.0
    places[:] = 0
    for g in range(count):
        places[np.int64((top - scores[g]) * scale) + 1] += 1
    for place in range(1, len(places)):
        places[place] += places[place - 1]
    for g in range(count):
        bucket = np.int64((top - scores[g]) * scale)
        order[places[bucket]], ranked[places[bucket]] = g, scores[g]
        places[bucket] += 1
    start, come = 0, 0
    for bucket in range(len(places)):
        stop = places[bucket]
        if stop - start > 48:
            inside = np.argsort(-ranked[start:stop])
            order[start:stop], ranked[start:stop] = order[start:stop][inside], ranked[start:stop][inside]
        else:
            for i in range(start + 1, stop):
                score, g, j = ranked[i], order[i], i
                while j > start and ranked[j - 1] < score:
                    ranked[j], order[j] = ranked[j - 1], order[j - 1]
                    j -= 1
                ranked[j], order[j] = score, g
        for i in range(start, stop):
            come += ends[order[i] + 1] - ends[order[i]]
        start = stop
        if come >= least:
            break
    return start


@kernel
def asymmetric_rankings(outputs, words, ends, asked, labels, exclusive, cutoffs, divisor, harmonic, values, found):
    """Expected AP of Q queries whose real outputs score the D distinct codes, D x W; returns all relevant items.

    ``ends`` are D + 1 places: the items of code g are columns ends[g] to ends[g + 1] of the label words, L x N.
    """
    count, size, last = len(words), labels.shape[1], cutoffs[-1]
    tables = np.empty((8 * words.shape[1], 256))
    used = tables[: -(-outputs.shape[1] // 8)]
    scores, ranked, order = np.empty(count), np.empty(count), np.empty(count, dtype=np.int64)
    places = np.empty(count + 2, dtype=np.int64)
    items, hits = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    flags, totals = np.empty(size, dtype=np.uint8), np.empty(len(outputs), dtype=np.int64)
    for query in range(len(outputs)):
        byte_tables(outputs[query], used)
        for g in range(count):
            scores[g] = score_of(words, g, used)
        flags[:] = 0
        add_if_relevant(asked[query], labels, exclusive, 0, size, 1, flags)
        totals[query] = flags.sum()
        groups = -1
        for i in range(largest_first(scores, last, order, ranked, ends, places)):
            if groups < 0 or ranked[i] != ranked[i - 1]:
                groups += 1
                items[groups], hits[groups] = 0, 0
            start, stop = ends[order[i]], ends[order[i] + 1]
            items[groups] += stop - start
            for j in range(start, stop):
                hits[groups] += flags[j]
        expected_scores(
            items[: groups + 1], hits[: groups + 1], totals[query], cutoffs, divisor, harmonic, values[query],
            found[query],
        )  # fmt: skip
    return totals
