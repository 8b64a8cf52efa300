"""Real query outputs against stored bits: brute force in float64, and the mean over all orders of ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crh_tune.retrieval.asymmetric import asymmetric_average_precisions
from crh_tune.retrieval.average_precision import LabelledCodes, RankingProtocol, average_precisions
from crh_tune.retrieval.packing import distinct_codes, pack_codes
from tests.retrieval.test_average_precision import DENOMINATORS, by_walking, labelled, shares_a_label


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    bits=st.sampled_from([1, 5, 8, 16, 64, 77, 130]),
    count=st.integers(1, 60),
    multi=st.booleans(),
    cutoff=st.none() | st.integers(1, 70),
    denominator=st.sampled_from(DENOMINATORS),
    grain=st.sampled_from(["float", "integer", "zero"]),
)
def test_it_is_brute_force_in_float64(seed, bits, count, multi, cutoff, denominator, grain):
    """Equal codes are ties; outputs of whole numbers give ties of different codes, and zeros one tie of all."""
    generator = np.random.default_rng(seed)
    outputs = generator.normal(size=(3, bits)).astype(np.float32)
    outputs = {"float": outputs, "integer": np.round(outputs), "zero": 0 * outputs}[grain]
    codes = (generator.random((6, bits)) < 0.5)[generator.integers(0, 6, count)]
    codes ^= generator.random(codes.shape) < generator.choice([0, 0.05])
    labels = generator.integers(0, 3, count + 3)
    if multi:
        labels = (generator.random((count + 3, 70)) < 0.03).astype(np.uint8)
    protocol = RankingProtocol(cutoff, "expected", denominator)
    values = asymmetric_average_precisions(outputs, labels[:3], labelled(codes, labels[3:]), protocol)
    scores = outputs.astype(np.float64) @ np.where(codes, 1.0, -1.0).T
    for value, score, label in zip(values, np.round(scores, 9), labels[:3], strict=True):
        hits = [shares_a_label(label, other) for other in labels[3:]]
        if any(hits):
            assert value == pytest.approx(by_walking((-score).tolist(), hits, cutoff, denominator), abs=1e-12)
        else:
            assert math.isnan(value)


@pytest.mark.parametrize("cutoff", [None, 50, 2000])
def test_many_codes_in_few_buckets_and_in_many(cutoff):
    """Thousands of codes; an output that outweighs all others crowds the scores into two places."""
    generator = np.random.default_rng(1)
    codes, labels = generator.random((4000, 40)) < 0.5, generator.integers(0, 5, 4004)
    outputs = generator.normal(size=(4, 40)).astype(np.float32)
    outputs[2:, 3] = 30_000
    database = labelled(codes, labels[4:])
    values = asymmetric_average_precisions(outputs, labels[:4], database, RankingProtocol(cutoff), threads=2)
    scores = outputs.astype(np.float64) @ np.where(codes, 1.0, -1.0).T
    for value, score, label in zip(values, scores, labels[:4], strict=True):
        hits = labels[4:][np.argsort(-score, kind="stable")][:cutoff] == label
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        assert value == pytest.approx((precision * hits).sum() / max(hits.sum(), 1), abs=1e-12)


def test_outputs_of_plus_and_minus_one_rank_by_hamming_distance():
    generator = np.random.default_rng(2)
    codes, labels = generator.random((320, 24)) < 0.5, generator.integers(0, 4, 320)
    queries, database = labelled(codes[:20], labels[:20]), labelled(codes[20:], labels[20:])
    for protocol in (RankingProtocol(), RankingProtocol(30), RankingProtocol(30, denominator="relevant")):
        values = asymmetric_average_precisions(np.where(codes[:20], 1.0, -1.0), labels[:20], database, protocol)
        assert values == pytest.approx(average_precisions(queries, database, protocol), abs=1e-12, nan_ok=True)


def test_outputs_of_another_width_and_not_finite_ones_are_refused():
    database = LabelledCodes(pack_codes(np.ones((3, 8), dtype=bool)), np.arange(3), 8)
    for outputs, message in (
        (np.zeros((2, 9)), r"outputs of shape Q x 8 expected, got float64 of shape \(2, 9\)"),
        (np.zeros((2, 8), dtype=np.uint8), "got uint8"),
        (np.full((2, 8), np.nan), "outputs must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            asymmetric_average_precisions(outputs, np.arange(2), database, RankingProtocol())


@pytest.mark.parametrize("width", [1, 3])
def test_distinct_codes_come_once_in_database_order_with_all_their_items(width):
    words = np.random.default_rng(0).integers(0, 3, (200, width)).astype(np.uint64)
    distinct, rows, ends = distinct_codes(words)
    assert sorted(rows.tolist()) == list(range(200))
    firsts = [rows[start] for start in ends[:-1]]
    assert firsts == sorted(firsts)
    assert len(distinct) == len({tuple(row) for row in words.tolist()})
    for code, start, stop in zip(distinct, ends[:-1], ends[1:], strict=True):
        assert rows[start:stop].tolist() == np.flatnonzero((words == code).all(axis=1)).tolist()
    assert [len(part) for part in distinct_codes(words[:0])] == [0, 0, 1]
