"""Reassignment against Eq. 5 to 7 computed sample by sample, against scipy, and against all assignments there are."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crh_tune.hashing import assignment
from crh_tune.hashing.assignment import (
    WEIGHT_UNIT,
    assignment_cost,
    class_statistic,
    reassign,
    reassigned_share,
)
from crh_tune.hashing.codebook import Codebook, WholeSpace, codes_to_pattern, sample_codebook
from tests.hashing import reference

SEEDS = st.integers(0, 2**31 - 1)
KINDS = st.sampled_from(["single", "multi"])


def samples(generator: np.random.Generator, kind: str, classes: int, bits: int, count: int = 40):
    """Codes (N x K bool) that crowd around few words, and labels; some classes and some samples go without."""
    words = generator.random((3, bits)) < 0.5
    codes = words[generator.integers(0, 3, count)] ^ (generator.random((count, bits)) < 0.2)
    used = generator.permutation(classes)[: max(1, classes - 2)]
    if kind == "single":
        return codes, generator.choice(used, count)
    labels = np.zeros((count, classes), dtype=np.uint8)
    for row in labels:
        row[generator.choice(used, generator.integers(0, min(5, len(used) + 1)), replace=False)] = 1
    return codes, labels


def statistic_of(codes: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    return class_statistic(torch.from_numpy(codes), torch.from_numpy(labels), classes)


def labels_of(row: np.ndarray) -> list[int]:
    return [int(row)] if row.ndim == 0 else np.flatnonzero(row).tolist()


def eq7(codes: np.ndarray, labels: np.ndarray, classes: int, words: np.ndarray) -> np.ndarray:
    """l_cm of Eq. 7, one sample after the other, in float64; NaN for a class without samples."""
    total, weight = np.zeros((classes, len(words))), np.zeros(classes)
    for code, row in zip(codes, labels, strict=True):
        b, names = np.where(code, 1.0, -1.0), labels_of(row)
        for c in names:
            weight[c] += 1 / len(names)
            total[c] += 1 / len(names) * ((b - words.astype(np.float64)) ** 2).sum(axis=1)
    return np.array([total[c] / weight[c] if weight[c] else np.full(len(words), np.nan) for c in range(classes)])


def cost_of_heads(codes, labels, classes, book) -> list[np.ndarray]:
    parts = np.split(codes, book.heads, axis=1)
    return [eq7(part, labels, classes, words) for part, words in zip(parts, book.words, strict=True)]


def greedy_by_hand(codes, labels, classes, book, table, seed, round_number) -> list[list[int]]:
    new = table.tolist()
    for head, cost in enumerate(cost_of_heads(codes, labels, classes, book)):
        unseen = np.isnan(cost[:, 0])
        free = set(range(book.size)) - {new[head][c] for c in range(classes) if unseen[c]}
        for c in np.random.default_rng([seed, round_number, head]).permutation(classes).tolist():
            if not unseen[c]:
                new[head][c] = min(free, key=lambda m, c=c: (round(cost[c, m], 9), m))
                free.remove(new[head][c])
    return new


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS, kind=KINDS, head_dim=st.sampled_from([4, 8, 16]), classes=st.integers(1, 10), spare=st.integers(0, 6)
)
def test_greedy_takes_the_word_of_least_eq7_class_by_class(seed, kind, head_dim, classes, spare):
    codes, labels = samples(np.random.default_rng(seed), kind, classes, 16)
    book = sample_codebook(16, classes + spare, head_dim, seed)
    table = book.initial_table(classes, seed)
    statistic = statistic_of(codes, labels, classes)
    for round_number in (1, 2):
        expected = greedy_by_hand(codes, labels, classes, book, table, seed, round_number)
        table = reassign(statistic, book, table, rule="greedy", seed=seed, round_number=round_number)
        assert table.tolist() == expected


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, kind=KINDS)
def test_greedy_is_right_too_where_words_repeat_within_a_head(seed, kind):
    codes, labels = samples(np.random.default_rng(seed), kind, 8, 16)
    book = sample_codebook(16, 12, 2, seed)
    table = book.initial_table(8, seed)
    expected = greedy_by_hand(codes, labels, 8, book, table, seed, 4)
    new = reassign(statistic_of(codes, labels, 8), book, table, rule="greedy", seed=seed, round_number=4)
    assert new.tolist() == expected


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, kind=KINDS, rule=st.sampled_from(["greedy", "hungarian"]))
def test_the_assignment_is_the_same_from_1_2_and_4_shards_in_any_order(seed, kind, rule):
    generator = np.random.default_rng(seed)
    codes, labels = samples(generator, kind, 9, 16)
    book = sample_codebook(16, 14, 8, seed)
    table = book.initial_table(9, seed)
    rows = generator.permutation(len(codes))
    tables = []
    for cuts in ([], [23], [11, 11, 30]):  # the second of the four shards is empty
        shards = [statistic_of(codes[part], labels[part], 9) for part in np.split(rows, cuts)]
        for order in itertools.permutations(shards):
            total = np.zeros_like(shards[0])
            for shard in order:
                total = total + shard
            tables.append(reassign(total, book, table, rule=rule, seed=seed, round_number=3).tolist())
    assert len(tables) == 1 + 2 + 24
    assert all(other == tables[0] for other in tables)
    if rule == "greedy":
        assert tables[0] == greedy_by_hand(codes, labels, 9, book, table, seed, 3)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, kind=KINDS)
def test_the_statistic_is_the_exact_weighted_sum_of_codes(seed, kind):
    codes, labels = samples(np.random.default_rng(seed), kind, 6, 5)
    exact = [[Fraction(0)] * 6 for _ in range(6)]
    for code, row in zip(codes.tolist(), labels, strict=True):
        names = labels_of(row)
        for c in names:
            for k, bit in enumerate([*code, True]):
                exact[c][k] += Fraction(1 if bit else -1, len(names))
    statistic = statistic_of(codes, labels, 6)
    assert statistic.dtype == np.int64
    assert [[Fraction(value, WEIGHT_UNIT) for value in row] for row in statistic.tolist()] == exact


@pytest.mark.parametrize("names", range(1, 31))
def test_a_sample_weighs_one_over_its_number_of_labels(names):
    labels = np.zeros((1, 40), dtype=np.uint8)
    labels[0, :names] = 1
    statistic = statistic_of(np.array([[True, False]]), labels, 40)
    assert statistic[:names] / WEIGHT_UNIT == pytest.approx(np.tile([1, -1, 1], (names, 1)) / names, rel=1e-7)
    assert not statistic[names:].any()
    if names <= 20:
        assert (statistic[:names, -1] * names == WEIGHT_UNIT).all()


def test_single_labels_and_their_multi_hot_rows_give_the_same_statistic():
    codes, labels = samples(np.random.default_rng(0), "single", 7, 12)
    one_hot = np.eye(7, dtype=np.uint8)[labels]
    assert np.array_equal(statistic_of(codes, labels, 7), statistic_of(codes, one_hot, 7))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, kind=KINDS)
def test_the_cost_is_eq7(seed, kind):
    codes, labels = samples(np.random.default_rng(seed), kind, 8, 6)
    words = sample_codebook(6, 20, 6, seed).words[0]
    statistic = statistic_of(codes, labels, 8)
    seen = statistic[:, -1] > 0
    expected = eq7(codes, labels, 8, words)
    assert np.array_equal(seen, ~np.isnan(expected[:, 0]))
    assert np.abs(assignment_cost(statistic[seen], words) - expected[seen]).max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, kind=KINDS, head_dim=st.sampled_from([4, 8, 16]), spare=st.integers(0, 7))
def test_hungarian_has_the_total_eq7_cost_that_scipy_finds(seed, kind, head_dim, spare):
    classes = 9
    codes, labels = samples(np.random.default_rng(seed), kind, classes, 16)
    book = sample_codebook(16, classes + spare, head_dim, seed)
    table = book.initial_table(classes, seed)
    new = reassign(statistic_of(codes, labels, classes), book, table, rule="hungarian", seed=seed, round_number=1)
    for head, cost in enumerate(cost_of_heads(codes, labels, classes, book)):
        seen = ~np.isnan(cost[:, 0])
        free = np.setdiff1d(np.arange(book.size), table[head, ~seen])
        rows, columns = scipy.optimize.linear_sum_assignment(cost[seen][:, free])
        assert cost[seen, new[head, seen]].sum() == pytest.approx(cost[seen][:, free][rows, columns].sum(), abs=1e-9)
        assert set(new[head, seen]) <= set(free.tolist())
        assert len(set(new[head].tolist())) == classes


@pytest.mark.parametrize("seed", range(8))
def test_hungarian_is_the_best_of_all_assignments_there_are(seed):
    codes, labels = samples(np.random.default_rng(seed), "multi", 6, 4)
    book = sample_codebook(4, 7, 4, seed)
    table = book.initial_table(6, seed)
    new = reassign(statistic_of(codes, labels, 6), book, table, rule="hungarian", seed=seed, round_number=1)[0]
    cost = eq7(codes, labels, 6, book.words[0])
    seen = np.flatnonzero(~np.isnan(cost[:, 0]))
    free = [m for m in range(7) if m not in {int(table[0, c]) for c in range(6) if c not in seen}]
    best = min(cost[seen, list(words)].sum() for words in itertools.permutations(free, len(seen)))
    assert cost[seen, new[seen]].sum() == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("rule", ["greedy", "hungarian"])
@pytest.mark.parametrize("head_dim", [4, 8])
def test_a_class_without_samples_keeps_its_words_and_nobody_else_gets_them(rule, head_dim):
    book = sample_codebook(8, 6, head_dim, 0)
    table = book.initial_table(4, 0)
    held = book.centers(table)[2]
    codes = np.tile(held > 0, (9, 1))  # every other class wants exactly what class 2 holds
    labels = np.array([0, 1, 3] * 3)
    new = reassign(statistic_of(codes, labels, 4), book, table, rule=rule, seed=0, round_number=1)
    assert new[:, 2].tolist() == table[:, 2].tolist()
    assert all(len(set(row)) == 4 for row in new.tolist())


@pytest.mark.parametrize(
    ("book", "rule"),
    [
        *itertools.product((sample_codebook(8, 6, 4, 0), sample_codebook(8, 6, 8, 0)), ("greedy", "hungarian")),
        (WholeSpace(8), "greedy"),
    ],
)
def test_without_any_samples_nothing_changes(rule, book):
    table = book.initial_table(5, 1)
    new = reassign(np.zeros((5, 9), dtype=np.int64), book, table, rule=rule, seed=0, round_number=1)
    assert np.array_equal(new, table)


def test_the_whole_space_has_no_hungarian_rule():
    """The greedy one in its place costs more than the optimum, and says nothing of it."""
    space = WholeSpace(8)
    with pytest.raises(ValueError, match="Hungarian rule is for listed codewords"):
        reassign(random_sums(5), space, space.initial_table(5, 1), rule="hungarian", seed=0, round_number=1)


def random_sums(classes: int) -> np.ndarray:
    return np.column_stack([np.random.default_rng(0).integers(-9, 10, (classes, 8)), np.full(classes, 9)])


def test_a_reassignment_leaves_its_arguments_alone():
    codes, labels = samples(np.random.default_rng(3), "multi", 9, 16)
    book = sample_codebook(16, 14, 8, 3)
    table, statistic = book.initial_table(9, 3), statistic_of(codes, labels, 9)
    before = table.copy(), statistic.copy()
    reassign(statistic, book, table, rule="greedy", seed=3, round_number=1)
    assert np.array_equal(table, before[0])
    assert np.array_equal(statistic, before[1])


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 10**5))
def test_ties_stay_ties_at_the_size_of_real_datasets(seed, size):
    """In exact integers: the lowest index of the words with the greatest S . z."""
    generator = np.random.default_rng(seed)
    units = np.array([1, 7, WEIGHT_UNIT // 6, WEIGHT_UNIT])
    sums = generator.integers(-3, 4, (300, 8)) * size * generator.choice(units, (300, 1))
    sums[::2] = generator.integers(-(10**13), 10**13, (150, 8))
    statistic = np.column_stack([sums, np.full(300, size * WEIGHT_UNIT)])
    words = np.array(list(itertools.product((-1, 1), repeat=8)), dtype=np.int8)[generator.permutation(256)]
    words = np.concatenate([words, words[:100]])  # the last hundred are ties with the first
    book = Codebook(words[None])
    table = book.initial_table(300, 0)
    taken: set[int] = set()
    expected = [-1] * 300
    products = sums.astype(object) @ words.T.astype(object)
    for c in np.random.default_rng([seed, 9, 0]).permutation(300).tolist():
        expected[c] = max((m for m in range(356) if m not in taken), key=lambda m, c=c: (products[c, m], -m))
        taken.add(expected[c])
    assert reassign(statistic, book, table, rule="greedy", seed=seed, round_number=9)[0].tolist() == expected


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, kind=KINDS, bits=st.integers(2, 6), data=st.data())
def test_in_the_whole_space_a_class_takes_the_sign_of_its_sum_or_the_nearest_free_word(seed, kind, bits, data):
    classes = data.draw(st.integers(1, min(12, 2**bits)))
    codes, labels = samples(np.random.default_rng(seed), kind, classes, bits)
    space = WholeSpace(bits)
    table = space.initial_table(classes, seed)
    new = reassign(statistic_of(codes, labels, classes), space, table, rule="greedy", seed=seed, round_number=2)
    held, centers = space.centers(table), space.centers(new)
    words = np.array(list(itertools.product((-1, 1), repeat=bits)))
    cost = eq7(codes, labels, classes, words)
    free = np.ones(len(words), dtype=bool)
    for c in np.flatnonzero(np.isnan(cost[:, 0])):
        assert np.array_equal(centers[c], held[c])
        free[(words == held[c]).all(axis=1)] = False
    for c in np.random.default_rng([seed, 2, 0]).permutation(classes):
        if np.isnan(cost[c, 0]):
            continue
        sums = [sum((1 if code[k] else -1) / len(labels_of(row)) for code, row in zip(codes, labels, strict=True)
                    if c in labels_of(row)) for k in range(bits)]  # fmt: skip
        wanted = np.where(np.round(sums, 9) >= 0, 1, -1)
        far = [((word != wanted).sum(), round(price, 9)) for word, price in zip(words, cost[c], strict=True)]
        chosen = int(np.flatnonzero((words == centers[c]).all(axis=1))[0])
        assert free[chosen]
        assert far[chosen] == min(far[m] for m in np.flatnonzero(free))
        free[chosen] = False


def test_in_the_whole_space_a_sum_of_zero_is_plus_one():
    codes = np.array([[True, False, True, False], [False, True, True, False]])
    space = WholeSpace(4)
    statistic = statistic_of(codes, np.array([0, 0]), 1)
    table = reassign(statistic, space, space.initial_table(1, 0), rule="greedy", seed=0, round_number=1)
    assert space.centers(table).tolist() == [[1, 1, 1, -1]]


def test_in_the_whole_space_a_sample_of_three_labels_counts_a_third():
    codes = np.array([[True] * 4, [False] * 4, [False] * 4])
    labels = np.array([[1, 0, 0], [1, 1, 1], [1, 1, 1]], dtype=np.uint8)
    space = WholeSpace(4)
    statistic = statistic_of(codes, labels, 3)
    table = reassign(statistic, space, space.initial_table(3, 0), rule="greedy", seed=0, round_number=1)
    assert space.centers(table)[0].tolist() == [1, 1, 1, 1]


def test_the_whole_space_of_64_bits():
    generator = np.random.default_rng(0)
    codes = generator.random((150, 64)) < 0.5
    labels = np.repeat(np.arange(50), 3)
    space = WholeSpace(64)
    table = space.initial_table(50, 0)
    new = reassign(statistic_of(codes, labels, 50), space, table, rule="greedy", seed=0, round_number=1)
    majority = np.where(codes.reshape(50, 3, 64).sum(axis=1) >= 2, 1, -1)
    assert np.array_equal(space.centers(new), majority)
    assert (majority[:, 63] == 1).any()  # the sign bit of a pattern is in use


def test_in_64_bits_classes_that_want_one_word_go_to_its_nearest_neighbours():
    word = np.random.default_rng(1).random(64) < 0.5
    space = WholeSpace(64)
    statistic = statistic_of(np.tile(word, (70, 1)), np.arange(70), 70)
    new = reassign(statistic, space, space.initial_table(70, 0), rule="greedy", seed=5, round_number=1)
    distances = (space.centers(new) != np.where(word, 1, -1)).sum(axis=1)
    order = np.random.default_rng([5, 1, 0]).permutation(70)
    assert distances[order].tolist() == [0] + [1] * 64 + [2] * 5
    assert len(set(new[0].tolist())) == 70


def test_in_64_bits_the_cheapest_bit_gives_way_first():
    codes = np.ones((6, 64), dtype=bool)
    codes[0::3, [17, 63]] = False  # each class has three samples: rows 0 to 2, rows 3 to 5
    codes[1::3, 17] = False
    codes[2::3, 40] = False
    labels = np.repeat([0, 1], 3)
    space = WholeSpace(64)
    new = reassign(
        statistic_of(codes, labels, 2), space, space.initial_table(2, 0), rule="greedy", seed=0, round_number=1
    )
    first, second = np.random.default_rng([0, 1, 0]).permutation(2)
    majority = [-1 if k == 17 else 1 for k in range(64)]
    assert space.centers(new)[first].tolist() == majority
    # on bits 17, 40 and 63 the samples disagree, so flipping one costs a third of what any other bit does
    flipped = np.flatnonzero(space.centers(new)[second] != majority)
    assert len(flipped) == 1
    assert flipped[0] in (17, 40, 63)


def test_in_the_whole_space_nobody_gets_the_word_of_a_class_without_samples():
    space = WholeSpace(64)
    table = space.initial_table(3, 0)
    codes = np.tile(space.centers(table)[1] > 0, (4, 1))
    new = reassign(statistic_of(codes, np.array([0, 2, 0, 2]), 3), space, table, rule="greedy", seed=0, round_number=1)
    assert new[0, 1] == table[0, 1]
    distances = (space.centers(new) != space.centers(table)[1]).sum(axis=1)
    assert distances.tolist() == [1, 0, 1]
    assert len(set(codes_to_pattern(space.centers(new)).tolist())) == 3


def test_the_reassigned_share_counts_classes_with_any_changed_bit():
    old = np.ones((4, 3), dtype=np.int8)
    new = old.copy()
    new[1, 2] = -1
    new[3] = -1
    assert reassigned_share(old, new) == 0.5
    assert reassigned_share(old, old) == 0.0


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    bits=st.sampled_from([3, 8, 9, 16, 24, 32, 65]),
    classes=st.integers(1, 60),
    spare=st.integers(0, 40),
    repeated=st.booleans(),
    spread=st.sampled_from([1, 3, 10**12]),
)
def test_the_compiled_greedy_rule_gives_what_numpy_gives(seed, bits, classes, spare, repeated, spread):
    """Ties of many kinds, words that repeat, taken words, and (with the limit at 20) buckets of two bytes."""
    generator = np.random.default_rng(seed)
    words = np.where(generator.random((classes + spare + 5, bits)) < 0.5, 1, -1).astype(np.int8)
    if repeated:
        words = words[generator.integers(0, 1 + len(words) // 2, len(words))]
    free = np.ones(len(words), dtype=bool)
    free[generator.permutation(len(words))[:5]] = False
    sums = generator.integers(-spread, spread + 1, (classes, bits))
    expected = reference.greedy(sums, words, free)
    for limit in (20, 2**16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assignment, "_LONG_BUCKETS", limit)
            assert assignment._greedy(sums, words, free).tolist() == expected.tolist()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, bits=st.sampled_from([6, 16, 64]), alike=st.booleans(), spread=st.sampled_from([0, 1, 10**12]))
def test_the_compiled_whole_space_gives_what_a_sorted_list_of_flips_gives(seed, bits, alike, spread):
    """Most of 50 classes want the same pattern: up to two flips at 16 and 64 bits, and all patterns but 14 at 6."""
    generator = np.random.default_rng(seed)
    space = WholeSpace(bits)
    sums = generator.integers(-spread, spread + 1, (50, bits))
    sums = np.tile(sums[:1], (50, 1)) * generator.integers(1, 4, (50, 1)) if alike else sums
    held, order = space.initial_table(50, seed)[0], generator.permutation(50)[:45]
    new = assignment._nearest_in_whole_space(sums, held, order)
    assert new.tolist() == reference.nearest_in_whole_space(sums, held, order).tolist()
    assert len(set(new.tolist())) == 50


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, kind=KINDS, bits=st.sampled_from([1, 9, 64]))
def test_the_compiled_statistic_is_the_one_of_torch(seed, kind, bits):
    codes, labels = samples(np.random.default_rng(seed), kind, 30, bits, 200)
    expected = reference.class_statistic(torch.from_numpy(codes), torch.from_numpy(labels), 30)
    assert np.array_equal(statistic_of(codes, labels, 30), expected)


def test_labels_beyond_the_classes_are_refused():
    for labels in ([0, 3], [-1, 2]):
        with pytest.raises(IndexError, match="they must be from 0 to 2"):
            statistic_of(np.ones((2, 4), dtype=bool), np.array(labels), 3)


def test_a_thousand_classes_that_all_want_one_pattern_share_its_neighbourhood():
    """1 + 64 + 935 patterns within two flips; a class with its own sums takes what it costs least to flip."""
    generator = np.random.default_rng(0)
    sums = np.tile(generator.integers(1, 1000, 64), (1000, 1)) * generator.integers(1, 9, (1000, 1))
    held = WholeSpace(64).initial_table(1000, 0)[0]
    new = assignment._nearest_in_whole_space(sums, held, np.arange(1000)).view(np.uint64)
    flips = np.bitwise_count(~new)
    assert flips.tolist() == [0] + [1] * 64 + [2] * 935
    assert len(set(new.tolist())) == 1000
