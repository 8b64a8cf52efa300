"""Average precision against every order there is, against a walk down the ranks, and against scikit-learn."""

from __future__ import annotations

import functools
import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from crh_tune.retrieval.average_precision import (
    LabelledCodes,
    RankingProtocol,
    average_precisions,
    mean_average_precision,
    relevance,
)
from crh_tune.retrieval.packing import pack_codes
from tests.retrieval import reference

DENOMINATORS = ("retrieved", "achievable", "relevant")
CUTOFFS = (None, 1, 2, 3, 5, 6, 9)


def make(seed: int, kind: str, queries: int, database: int, bits: int, classes: int = 3):
    """Random codes and labels of queries and database; the last query has nothing relevant."""
    generator = np.random.default_rng(seed)
    sides = []
    for count in (queries, database):
        codes = generator.random((count, bits)) < 0.5
        if kind == "single":
            labels = generator.integers(0, classes, count)
        else:
            labels = (generator.random((count, classes + 1)) < 0.4).astype(np.uint8)
            labels[:, classes] = 0
        sides.append((codes, labels))
    sides[0][1][-1] = classes if kind == "single" else np.eye(classes + 1, dtype=np.uint8)[classes]
    return sides


def labelled(codes: np.ndarray, labels: np.ndarray) -> LabelledCodes:
    return LabelledCodes(pack_codes(codes), labels, codes.shape[1])


def shares_a_label(one, other) -> bool:
    return bool(one == other) if np.ndim(one) == 0 else any(a and b for a, b in zip(one, other, strict=True))


def distances_and_hits(query_codes, query_labels, codes, labels) -> list[tuple[list[int], list[bool]]]:
    """For each query, of every database item: its distance, and whether it is relevant."""
    return [
        (
            [int((code != other).sum()) for other in codes],
            [shares_a_label(label, other) for other in labels],
        )
        for code, label in zip(query_codes, query_labels, strict=True)
    ]


@functools.cache
def ap_of_ranking(hits: tuple[bool, ...], cutoff: int | None, denominator: str) -> float:
    """AP of one ranking, from the definition; 0 where there is nothing to divide by."""
    top = hits[:cutoff]
    total = math.fsum(sum(top[: rank + 1]) / (rank + 1) for rank, hit in enumerate(top) if hit)
    relevant = sum(hits)
    divisor = {"retrieved": sum(top), "achievable": min(len(top), relevant), "relevant": relevant}[denominator]
    return total / divisor if divisor else 0.0


def ranking(distances: list[int], hits: list[bool], position: list[int]) -> tuple[bool, ...]:
    """The ranking by distance, inside a tie by position."""
    return tuple(hits[i] for i in sorted(range(len(hits)), key=lambda i: (distances[i], position[i])))


def over_all_orders(distances: list[int], hits: list[bool], cutoff: int | None, denominator: str) -> float:
    """The mean AP over all orders of the database, each ranked stably."""
    orders = Counter(ranking(distances, hits, list(order)) for order in itertools.permutations(range(len(hits))))
    total = math.fsum(times * ap_of_ranking(order, cutoff, denominator) for order, times in orders.items())
    return total / orders.total()


def by_walking(distances: list[int], hits: list[bool], cutoff: int | None, denominator: str) -> float:
    """Expected AP: down the ranks, with the chance of each number x of hits so far and the expected sum given it."""
    ranks, relevant = min(cutoff or len(hits), len(hits)), sum(hits)
    state, rank = {0: (1.0, 0.0)}, 0  # x: (chance, chance * expected sum of precisions)
    for distance in sorted(set(distances)):
        group = [hit for d, hit in zip(distances, hits, strict=True) if d == distance]
        before = sum(hit for d, hit in zip(distances, hits, strict=True) if d < distance)
        for place in range(len(group)):
            if rank == ranks:
                break
            rank += 1
            after: dict[int, tuple[float, float]] = {}
            for x, (chance, total) in state.items():
                hit = (sum(group) - (x - before)) / (len(group) - place)
                for y, share, gain in ((x + 1, hit, (x + 1) / rank), (x, 1 - hit, 0.0)):
                    if share:
                        old = after.get(y, (0.0, 0.0))
                        after[y] = (old[0] + chance * share, old[1] + share * (total + chance * gain))
            state = after
    divisors = {"achievable": min(ranks, relevant), "relevant": relevant}
    return math.fsum(total / max(divisors.get(denominator, x), 1) for x, (_, total) in state.items())


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_expected_is_the_mean_over_all_orders(kind, denominator):
    for seed, bits in itertools.product(range(2), (1, 2, 3)):
        queries, database = make(seed, kind, 4, 6, bits)
        cases = distances_and_hits(*queries, *database)
        for cutoff in CUTOFFS:
            protocol = RankingProtocol(cutoff, "expected", denominator)
            values = average_precisions(labelled(*queries), labelled(*database), protocol)
            for value, (distances, hits) in zip(values, cases, strict=True):
                if any(hits):
                    assert value == pytest.approx(over_all_orders(distances, hits, cutoff, denominator), abs=1e-12)
                else:
                    assert math.isnan(value)
            assert math.isnan(values[-1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    kind=st.sampled_from(["single", "multi"]),
    bits=st.sampled_from([1, 3, 8, 70]),
    count=st.integers(1, 40),
    cutoff=st.none() | st.integers(1, 45),
    denominator=st.sampled_from(DENOMINATORS),
)
def test_each_tie_rule_is_what_it_says(seed, kind, bits, count, cutoff, denominator):
    queries, database = make(seed, kind, 4, count, bits)
    cases = distances_and_hits(*queries, *database)
    shuffled = np.random.default_rng(11).permutation(count).tolist()
    for ties in ("stable", "shuffle", "expected"):
        protocol = RankingProtocol(cutoff, ties, denominator, shuffle_seed=11)
        expected = []
        for distances, hits in cases:
            if not any(hits):
                expected.append(math.nan)
            elif ties == "expected":
                expected.append(by_walking(distances, hits, cutoff, denominator))
            else:
                position = list(range(count)) if ties == "stable" else [shuffled.index(i) for i in range(count)]
                expected.append(ap_of_ranking(ranking(distances, hits, position), cutoff, denominator))
        values = average_precisions(labelled(*queries), labelled(*database), protocol)
        assert values.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
        zeros = [0.0 if math.isnan(value) else value for value in expected]
        kept = [value for value in expected if not math.isnan(value)]
        assert mean_average_precision(values, "zero") == pytest.approx(sum(zeros) / 4, abs=1e-12)
        mean = sum(kept) / len(kept) if kept else math.nan
        assert mean_average_precision(values, "skip") == pytest.approx(mean, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("bits", "cutoff"), [(16, None), (16, 100), (16, 333), (300, 50)])
def test_expected_is_exact_on_longer_rankings(bits, cutoff, denominator):
    queries, database = make(6, "single", 3, 500, bits)
    protocol = RankingProtocol(cutoff, "expected", denominator)
    values = average_precisions(labelled(*queries), labelled(*database), protocol)
    for value, (distances, hits) in zip(values[:2], distances_and_hits(*queries, *database), strict=False):
        assert value == pytest.approx(by_walking(distances, hits, cutoff, denominator), abs=1e-12)


def test_the_walk_agrees_with_all_orders():
    """The reference of the longer rankings against the one that cannot be wrong."""
    queries, database = make(3, "single", 4, 6, 2)
    for (distances, hits), cutoff in itertools.product(distances_and_hits(*queries, *database), CUTOFFS):
        for denominator in DENOMINATORS:
            expected = over_all_orders(distances, hits, cutoff, denominator)
            assert by_walking(distances, hits, cutoff, denominator) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", ["expected", "stable", "shuffle"])
@pytest.mark.parametrize("seed", range(3))
def test_without_ties_it_is_what_scikit_learn_says(ties, seed):
    generator = np.random.default_rng(seed)
    ones = generator.permutation(41)[:30]
    codes = np.arange(40)[None, :] < ones[:, None]
    labels = generator.integers(0, 3, 30)
    labels[:3] = range(3)
    queries = np.stack([np.zeros(40, dtype=bool), np.ones(40, dtype=bool), np.zeros(40, dtype=bool)])
    protocol = RankingProtocol(None, ties)
    values = average_precisions(labelled(queries, np.arange(3)), labelled(codes, labels), protocol)
    scores = [-ones, ones, -ones]
    expected = [average_precision_score(labels == c, score) for c, score in enumerate(scores)]
    assert values.tolist() == pytest.approx(expected, abs=1e-12)


def test_shuffled_ties_change_with_the_seed_only_and_are_on_average_the_expected_value():
    queries, database = make(1, "single", 5, 12, 2)
    arguments = labelled(*queries), labelled(*database)
    values = []
    for seed in range(600):
        values.append(average_precisions(*arguments, RankingProtocol(5, "shuffle", shuffle_seed=seed))[:-1])
    again = average_precisions(*arguments, RankingProtocol(5, "shuffle", shuffle_seed=7))[:-1]
    assert again.tolist() == values[7].tolist()
    expected = average_precisions(*arguments, RankingProtocol(5, "expected"))[:-1]
    error = np.std(values, axis=0) / math.sqrt(600)
    assert (error > 0).any()
    assert (np.abs(np.mean(values, axis=0) - expected) <= 5 * error + 1e-12).all()


def test_stable_ties_are_in_database_order():
    """Two items, both at distance 0, one relevant: AP 1 when it comes first, 1/2 when it comes last, 3/4 on average."""
    query, codes = labelled(np.ones((1, 4), dtype=bool), np.array([0])), np.ones((2, 4), dtype=bool)
    for labels, expected in (([0, 1], 1.0), ([1, 0], 0.5)):
        database = labelled(codes, np.array(labels))
        assert average_precisions(query, database, RankingProtocol(ties="stable")).tolist() == [expected]
        assert average_precisions(query, database, RankingProtocol(ties="expected")).tolist() == [0.75]


@pytest.mark.parametrize(
    ("denominator", "cutoff", "expected"),
    [
        # the ranking is: relevant, not, relevant, relevant
        ("retrieved", None, (1 + 2 / 3 + 3 / 4) / 3),
        ("retrieved", 3, (1 + 2 / 3) / 2),
        ("achievable", 3, (1 + 2 / 3) / 3),
        ("relevant", 3, (1 + 2 / 3) / 3),
        ("retrieved", 2, 1.0),
        ("achievable", 2, 1 / 2),
        ("relevant", 2, 1 / 3),
        ("relevant", 400, (1 + 2 / 3 + 3 / 4) / 3),
        ("achievable", 400, (1 + 2 / 3 + 3 / 4) / 3),
    ],
)
@pytest.mark.parametrize("ties", ["expected", "stable", "shuffle"])
def test_denominators_by_hand(ties, denominator, cutoff, expected):
    codes = np.arange(4)[None, :] < np.arange(4)[:, None]
    database, query = labelled(codes, np.array([7, 8, 7, 7])), labelled(np.zeros((1, 4), dtype=bool), np.array([7]))
    value = average_precisions(query, database, RankingProtocol(cutoff, ties, denominator))
    assert value.tolist() == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("ties", ["expected", "stable", "shuffle"])
def test_queries_are_scored_alike_alone_and_by_any_number_of_threads(ties):
    queries, database = make(2, "multi", 11, 20, 6)
    arguments = labelled(*queries), labelled(*database), RankingProtocol(7, ties)
    alone = [average_precisions(arguments[0][np.array([i])], *arguments[1:])[0] for i in range(11)]
    for threads in (None, 1, 2, 3, 40):
        assert average_precisions(*arguments, threads=threads).tolist() == pytest.approx(alone, abs=0, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    classes=st.sampled_from([1, 2, 40, 70, 150, None]),
    bits=st.sampled_from([1, 8, 16, 64, 65, 127, 128, 200]),
    cutoff=st.none() | st.integers(1, 9000),
    ties=st.sampled_from(["expected", "stable", "shuffle"]),
    denominator=st.sampled_from(DENOMINATORS),
)
def test_the_kernels_give_what_numpy_and_scipy_give(seed, classes, bits, cutoff, ties, denominator):
    """Databases of several blocks, codes around a few centres, labels of one to three words or class numbers."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 9000))
    codes = (generator.random((5, bits)) < 0.5)[generator.integers(0, 5, count + 4)]
    codes ^= generator.random(codes.shape) < generator.choice([0, 0.1, 0.4])
    if classes is None:
        labels = generator.integers(-3, 3, count + 4)
    else:
        labels = (generator.random((count + 4, classes)) < generator.choice([0.01, 0.3])).astype(np.uint8)
    queries, database = labelled(codes[:4], labels[:4]), labelled(codes[4:], labels[4:])
    values = average_precisions(queries, database, RankingProtocol(cutoff, ties, denominator))
    expected = reference.average_precisions(queries, database, RankingProtocol(cutoff, ties, denominator))
    assert values.tolist() == pytest.approx(expected.tolist(), abs=1e-12, nan_ok=True)


def test_class_labels_may_be_names():
    queries, database = make(5, "single", 4, 30, 6)
    named = [labelled(codes, np.array(list("abcd"))[labels]) for codes, labels in (queries, database)]
    values = average_precisions(*named, RankingProtocol())
    numbered = average_precisions(labelled(*queries), labelled(*database), RankingProtocol())
    assert values.tolist() == pytest.approx(numbered.tolist(), abs=0, nan_ok=True)


def test_a_pass_takes_memory_for_packed_inputs_and_some_rows():
    """2,000 queries and 50,000 items: the distances alone would be 100 MB."""
    generator = np.random.default_rng(0)
    sides = [
        LabelledCodes(generator.integers(0, 2**63, (n, 1), dtype=np.uint64), generator.integers(0, 9, n), 64)
        for n in (2000, 50_000)
    ]
    average_precisions(sides[0][:2], sides[1], RankingProtocol(100))
    tracemalloc.start()
    try:
        average_precisions(*sides, RankingProtocol(100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_relevant_items_share_a_label(kind):
    (_, asked), (_, labels) = make(4, kind, 9, 13, 2)
    expected = [[shares_a_label(one, other) for other in labels] for one in asked]
    assert relevance(asked, labels).tolist() == expected


def test_with_no_query_left_there_is_no_mean():
    nothing = np.array([math.nan, math.nan])
    assert mean_average_precision(nothing, "zero") == 0.0
    assert math.isnan(mean_average_precision(nothing, "skip"))
    assert math.isnan(mean_average_precision(np.empty(0), "zero"))


@pytest.mark.parametrize("cutoff", [0, -1])
def test_a_cutoff_below_one_is_refused(cutoff):
    queries, database = make(0, "single", 2, 3, 4)
    with pytest.raises(ValueError, match=f"cutoff must be at least 1 or none, got {cutoff}"):
        average_precisions(labelled(*queries), labelled(*database), RankingProtocol(cutoff))


def test_an_empty_database_is_refused():
    queries, database = make(0, "single", 2, 0, 4)
    with pytest.raises(ValueError, match="database of a ranking is empty"):
        average_precisions(labelled(*queries), labelled(*database), RankingProtocol())
