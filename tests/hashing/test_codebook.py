"""Codebooks, centres and distances, against their definitions written out in plain Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crh_tune.hashing.assignment import reassign
from crh_tune.hashing.centers import CodebookSpec, build_codebook
from crh_tune.hashing.codebook import (
    Codebook,
    WholeSpace,
    center_distances,
    codes_to_pattern,
    feasible_head_dims,
    paper_head_dim,
    pattern_to_codes,
    sample_codebook,
    shared_centers,
)

SEEDS = st.integers(0, 2**31 - 1)


def distinct(words: np.ndarray) -> int:
    return len({tuple(word) for word in words.tolist()})


@settings(max_examples=60, deadline=None)
@given(head_dim=st.integers(1, 24), heads=st.integers(1, 4), seed=SEEDS, data=st.data())
def test_words_are_distinct_within_each_head_wherever_they_fit(head_dim, heads, seed, data):
    size = data.draw(st.integers(1, min(2**head_dim, 200)))
    book = sample_codebook(head_dim * heads, size, head_dim, seed)
    assert book.words.shape == (heads, size, head_dim)
    assert set(np.unique(book.words)) <= {-1, 1}
    assert [distinct(words) for words in book.words] == [size] * heads
    assert (book.heads, book.size, book.bits) == (heads, size, head_dim * heads)


@settings(max_examples=60, deadline=None)
@given(head_dim=st.integers(1, 4), heads=st.integers(2, 10), seed=SEEDS, data=st.data())
def test_words_are_distinct_as_a_whole_where_they_do_not_fit_in_a_head(head_dim, heads, seed, data):
    bits = head_dim * heads
    size = data.draw(st.integers(2**head_dim + 1, min(2**bits, 2**head_dim + 200)))
    book = sample_codebook(bits, size, head_dim, seed)
    assert book.words.shape == (heads, size, head_dim)
    assert distinct(np.concatenate(list(book.words), axis=1)) == size


@pytest.mark.parametrize(("bits", "head_dim"), [(3, 3), (12, 3), (8, 8)])
def test_a_full_head_holds_every_word_once(bits, head_dim):
    book = sample_codebook(bits, 2**head_dim, head_dim, seed=5)
    every = set(itertools.product((-1, 1), repeat=head_dim))
    for words in book.words:
        assert {tuple(word) for word in words.tolist()} == every


@pytest.mark.parametrize(("bits", "head_dim"), [(20, 20), (21, 21), (42, 21), (24, 2)])
def test_many_words_of_few_bits_are_distinct_although_chance_would_repeat_some(bits, head_dim):
    book = sample_codebook(bits, 20_000, head_dim, seed=0)  # about 100 pairs would be alike at 21 bits
    whole = np.concatenate(list(book.words), axis=1)
    for words in (*book.words, whole) if 2**head_dim >= 20_000 else (whole,):
        assert distinct(words) == 20_000


def test_heads_draw_their_words_independently():
    book = sample_codebook(32, 200, 8, seed=0)
    for one, other in itertools.combinations(book.words, 2):
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("head_dim", [16, 32, 64])
def test_words_are_uniform(head_dim):
    words = np.concatenate(list(sample_codebook(64, 2000, head_dim, seed=1).words), axis=1).astype(float)
    five_sigma = 5 / math.sqrt(len(words))
    assert np.abs(words.mean(axis=0)).max() < five_sigma
    correlation = words.T @ words / len(words) - np.eye(64)
    assert np.abs(correlation).max() < five_sigma


@pytest.mark.parametrize(("bits", "size", "head_dim"), [(16, 40, 8), (64, 392, 16), (64, 392, 64), (12, 40, 4)])
def test_a_seed_gives_the_same_codebook_and_another_seed_another(bits, size, head_dim):
    words = sample_codebook(bits, size, head_dim, seed=7).words
    assert np.array_equal(words, sample_codebook(bits, size, head_dim, seed=7).words)
    assert not np.array_equal(words, sample_codebook(bits, size, head_dim, seed=8).words)
    rebuilt = build_codebook(CodebookSpec(bits, size, head_dim, 7))
    assert isinstance(rebuilt, Codebook)
    assert np.array_equal(words, rebuilt.words)


def test_a_full_spec_is_the_whole_space():
    assert build_codebook(CodebookSpec(16, "full", 16, 7)) == WholeSpace(16)


@pytest.mark.parametrize(
    ("bits", "size", "head_dim", "complaint"),
    [
        (16, 20, 3, "head_dim d = 3 does not divide bits K = 16"),
        (16, 20, 0, "head_dim d = 0 does not divide bits K = 16"),
        (16, 20, 32, "head_dim d = 32 does not divide bits K = 16"),
        (4, 17, 4, r"codebook_size M = 17 is larger than 2\^K = 16"),
    ],
)
def test_impossible_codebooks_are_refused(bits, size, head_dim, complaint):
    with pytest.raises(ValueError, match=complaint):
        sample_codebook(bits, size, head_dim, seed=0)


@settings(max_examples=30, deadline=None)
@given(heads=st.integers(1, 4), head_dim=st.integers(3, 8), classes=st.integers(1, 8), seed=SEEDS)
def test_a_centre_is_its_heads_words_one_after_the_other(heads, head_dim, classes, seed):
    book = sample_codebook(heads * head_dim, 8, head_dim, seed)
    table = np.random.default_rng(seed).integers(0, 8, (heads, classes))
    centers = book.centers(table).tolist()
    for c in range(classes):
        by_hand = []
        for head in range(heads):
            by_hand += book.words[head, table[head, c]].tolist()
        assert centers[c] == by_hand


@pytest.mark.parametrize("book", [sample_codebook(16, 20, 8, 0), sample_codebook(16, 20, 4, 0)])
def test_the_first_table_gives_every_class_its_own_codeword_the_same_in_every_head(book):
    table = book.initial_table(20, seed=3)
    assert table.shape == (book.heads, 20)
    assert sorted(table[0].tolist()) == list(range(20))
    assert (table == table[0]).all()
    assert np.array_equal(table, book.initial_table(20, seed=3))
    assert not np.array_equal(table, book.initial_table(20, seed=4))
    assert distinct(book.centers(table)) == 20
    with pytest.raises(ValueError, match="M = 20 is smaller than the number of classes C = 21"):
        book.initial_table(21, seed=3)


@pytest.mark.parametrize(("bits", "classes"), [(3, 8), (20, 50), (21, 50), (64, 50)])
def test_the_whole_space_starts_from_distinct_centres(bits, classes):
    space = WholeSpace(bits)
    table = space.initial_table(classes, seed=3)
    assert table.shape == (1, classes)
    assert distinct(space.centers(table)) == classes
    assert np.array_equal(table, space.initial_table(classes, seed=3))
    assert not np.array_equal(table, space.initial_table(classes, seed=4))


def test_the_whole_space_ends_at_64_bits():
    with pytest.raises(ValueError, match="bits <= 64, got bits = 65"):
        WholeSpace(65)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 64), seed=SEEDS)
def test_a_bit_pattern_is_the_word_read_lowest_bit_first(bits, seed):
    codes = np.where(np.random.default_rng(seed).random((5, bits)) < 0.5, -1, 1).astype(np.int8)
    codes[0], codes[1] = 1, -1
    patterns = codes_to_pattern(codes)
    for code, pattern in zip(codes.tolist(), patterns.tolist(), strict=True):
        assert pattern % 2**64 == sum(2**k for k, bit in enumerate(code) if bit == 1)
    assert np.array_equal(pattern_to_codes(patterns, bits), codes)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 128), size=st.integers(1, 5000))
def test_feasible_head_dims_divide_k_and_hold_m_words(bits, size):
    assert feasible_head_dims(bits, size) == [d for d in range(1, bits + 1) if bits % d == 0 and 2**d >= size]


@pytest.mark.parametrize(
    ("bits", "size", "d"),
    [
        *[(bits, 2 * 196, 16) for bits in (16, 32, 64)],  # Stanford Cars
        *[(bits, 2 * 555, 16) for bits in (16, 32, 64)],  # NABirds
        *[(bits, 2 * 80, 8) for bits in (16, 32, 64)],  # MS COCO
        (48, 392, 16),  # 12 would do, but is no power of two
        (48, 1110, 16),
        (16, 200, 8),
        (16, 256, 8),
        (16, 257, 16),
        (24, 392, 12),  # 9 bits needed, no power of two from 16 on divides 24
        (12, 20, 6),
        (36, 10, 4),
        (2, 4, 2),
    ],
)
def test_the_papers_head_dim(bits, size, d):
    assert paper_head_dim(bits, size) == d


def test_more_words_than_bits_allow_have_no_head_dim():
    with pytest.raises(ValueError, match=r"codebook_size M = 257 is larger than 2\^K = 256"):
        paper_head_dim(8, 257)


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 20), bits=st.integers(1, 100), seed=SEEDS)
def test_centre_distances_are_the_least_and_the_mean_number_of_differing_bits(classes, bits, seed):
    centers = np.where(np.random.default_rng(seed).random((classes, bits)) < 0.5, -1, 1).astype(np.int8)
    pairs = itertools.combinations(centers.tolist(), 2)
    distances = [sum(a != b for a, b in zip(one, other, strict=True)) for one, other in pairs]
    d_min, d_avg = center_distances(centers)
    assert d_min == min(distances)
    assert d_avg == pytest.approx(sum(distances) / len(distances), abs=1e-9)


def test_shared_centres_are_found():
    a, b, c = [1, 1, -1], [1, -1, -1], [-1, -1, -1]
    assert shared_centers(np.array([a, b, c], dtype=np.int8)) == []
    assert shared_centers(np.array([b, a, c, a, b, a], dtype=np.int8)) == [(1, 3), (0, 4), (1, 5)]


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    head_dim=st.sampled_from([4, 8, 16]),
    classes=st.integers(2, 12),
    spare=st.integers(0, 4),
    rule=st.sampled_from(["greedy", "hungarian"]),
)
def test_no_two_classes_ever_share_a_centre(seed, head_dim, classes, spare, rule):
    generator = np.random.default_rng(seed)
    book = sample_codebook(16, classes + spare, head_dim, seed)
    table = book.initial_table(classes, seed)
    for round_number in range(1, 9):
        table = reassign(
            random_statistic(generator, classes), book, table, rule=rule, seed=seed, round_number=round_number
        )
        assert all(len(set(row)) == classes for row in table.tolist())
        assert distinct(book.centers(table)) == classes
        assert shared_centers(book.centers(table)) == []


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, classes=st.integers(2, 16))
def test_no_two_classes_ever_share_a_centre_of_the_whole_space(seed, classes):
    generator = np.random.default_rng(seed)
    space = WholeSpace(4)
    table = space.initial_table(classes, seed)
    for round_number in range(1, 9):
        statistic = random_statistic(generator, classes)[:, [0, 1, 2, 3, -1]]
        table = reassign(statistic, space, table, rule="greedy", seed=seed, round_number=round_number)
        assert distinct(space.centers(table)) == classes


def random_statistic(generator: np.random.Generator, classes: int) -> np.ndarray:
    """C x 17 sums of up to three samples a class, often alike, some classes without any."""
    count = generator.integers(0, 4, classes)
    shared = generator.integers(0, 2, 16) * 2 - 1
    sums = np.array([sum((shared * generator.choice([1, 1, -1]) for _ in range(n)), np.zeros(16)) for n in count])
    return np.column_stack([sums, count]).astype(np.int64)
