"""Hold-outs traced sample by sample, and fingerprints that see every change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

from crh_tune.data.splits import Dataset, Samples, Split, final_split, search_split

SEEDS = st.integers(0, 2**31 - 1)
TEST_QUERY = 1000


def dataset(labels: np.ndarray, groups: np.ndarray | None = None, **fields) -> Dataset:
    """Training sample i has the input i; test queries have inputs from 1000 on."""
    train = Samples(np.arange(len(labels), dtype=np.float32)[:, None], labels)
    queries = Samples(TEST_QUERY + np.arange(7, dtype=np.float32)[:, None], labels[:7])
    names = tuple(f"class {c}" for c in range(labels.shape[1] if labels.ndim == 2 else labels.max() + 1))
    return Dataset("traced", names, train, queries, groups=groups, **fields)


def traced(samples: Samples) -> list[int]:
    return samples.inputs[:, 0].astype(int).tolist()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, kind=st.sampled_from(["single", "multi", "groups"]), fraction=st.floats(0.1, 0.6))
def test_a_hold_out_cuts_the_training_samples_in_two_and_asks_no_test_query(seed, kind, fraction):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 15) if kind != "multi" else (generator.random((60, 4)) < 0.5).astype(np.uint8)
    whole = dataset(labels, generator.integers(0, 9, 60) if kind == "groups" else None)
    split = search_split(whole, fraction, seed)
    kept, held = traced(split.train), traced(split.queries)
    if kind != "single":
        splitter = (ShuffleSplit if kind == "multi" else GroupShuffleSplit)(1, test_size=fraction, random_state=seed)
        expected = next(splitter.split(np.zeros(60), groups=whole.groups))
        if kind == "multi" or set(labels[expected[0]]) == set(labels):  # groups may be all there is of a class
            assert [kept, held] == [sorted(rows.tolist()) for rows in expected]
    assert sorted(kept + held) == list(range(60))
    assert kept == sorted(kept)
    assert held == sorted(held)
    assert kept
    assert held
    assert np.array_equal(split.train.labels, labels[kept])
    assert np.array_equal(split.queries.labels, labels[held])
    assert not any(number >= TEST_QUERY for number in kept + held)
    assert (split.stage, split.metric_prefix, split.database) == ("search", "val", None)
    assert (split.classes, split.multi_label) == (4, kind == "multi")


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, count=st.integers(2, 12), fraction=st.floats(0.1, 0.5))
def test_groups_stay_whole(seed, count, fraction):
    groups = np.random.default_rng(seed).permutation(np.arange(60) % count)
    split = search_split(dataset(np.repeat(np.arange(4), 15), groups), fraction, seed)
    kept, held = set(groups[traced(split.train)].tolist()), set(groups[traced(split.queries)].tolist())
    assert not kept & held
    assert kept | held == set(range(count))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_single_labels_are_held_out_class_by_class(seed):
    split = search_split(dataset(np.random.default_rng(seed).permutation(np.repeat(np.arange(6), 10))), 0.3, seed)
    assert np.bincount(split.queries.labels).tolist() == [3] * 6
    assert np.bincount(split.train.labels).tolist() == [7] * 6


@pytest.mark.parametrize("seed", range(5))
def test_of_rare_classes_a_training_sample_always_stays_and_the_rest_is_held_out_class_by_class(seed):
    """A tail of 400 classes, 400 / rank samples each: a class of one sample must not change how others are drawn."""
    sizes = np.maximum(400 // np.arange(1, 401), 1)
    split = search_split(dataset(np.random.default_rng(seed).permutation(np.repeat(np.arange(400), sizes))), 0.2, seed)
    held = np.bincount(split.queries.labels, minlength=400)
    assert np.array_equal(np.bincount(split.train.labels), sizes - held)
    assert (sizes - held >= 1).all()
    assert held.sum() == round(0.2 * sizes.sum())
    share = held.sum() / sizes[sizes > 1].sum()
    assert (np.abs(held - share * sizes)[sizes > 1] < 1).all()
    assert not held[sizes == 1].any()
    assert split.unanswered() is None


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), fraction=st.floats(0.05, 0.95))
def test_a_hold_out_of_any_classes_gives_as_many_as_asked_for_that_all_have_something_to_find(seed, sizes, fraction):
    wanted = min(round(fraction * sum(sizes)), sum(sizes) - len(sizes))
    whole = dataset(np.repeat(np.arange(len(sizes)), sizes), None)
    if wanted == 0:
        with pytest.raises(ValueError, match="cannot be held out of traced"):
            search_split(whole, fraction, seed)
        return
    split = search_split(whole, fraction, seed)
    assert len(split.queries) == wanted
    assert set(split.train.labels.tolist()) == set(range(len(sizes)))
    assert sorted(traced(split.train) + traced(split.queries)) == list(range(sum(sizes)))


def tagged(seed: int) -> np.ndarray:
    """600 samples with a few of 20 common labels, and 55 rare labels of two or three samples each: 600 x 75."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((600, 75), dtype=np.uint8)
    labels[np.arange(600), generator.integers(0, 20, 600)] = 1
    for c in range(20, 75):
        labels[generator.choice(600, generator.integers(2, 4), replace=False), c] = 1
    return labels


@pytest.mark.parametrize("seed", range(5))
def test_of_several_labels_each_keeps_a_training_sample(seed):
    whole = dataset(tagged(seed))
    split = search_split(whole, 0.2, seed)
    assert len(split.queries) == 120
    assert split.train.labels.any(axis=0).all()
    assert sorted(traced(split.train) + traced(split.queries)) == list(range(600))
    drawn = np.random.RandomState(seed).permutation(600)[:120]
    assert len(np.intersect1d(drawn, traced(split.queries))) > 100  # none is passed over without need
    assert split.notes() == []


def test_a_group_that_is_all_there_is_of_a_class_stays():
    labels = np.repeat([0, 1, 2, 3], [10, 20, 20, 10])
    groups = np.repeat([0, 1, 2, 1, 2, 3], 10)  # classes 0 and 3 are all of groups 0 and 3, the others share 1 and 2
    for seed in range(8):
        split = search_split(dataset(labels, groups), 0.5, seed)
        assert set(split.train.labels.tolist()) == {0, 1, 2, 3}
        assert len(split.queries) == 20


def test_samples_that_all_have_a_label_of_their_own_cannot_be_held_out():
    with pytest.raises(ValueError, match=r"cannot be held out of traced: each of them has a label that no other has"):
        search_split(dataset(np.pad(np.eye(10, dtype=np.uint8), ((0, 0), (0, 1)), constant_values=1)), 0.2, 0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("stage", ["search", "final"])
def test_classes_that_only_show_beside_held_out_ones_are_named_and_no_others_are_untrained(seed, stage):
    whole = dataset(tagged(seed))
    whole = replace(whole, queries=whole.train)
    split = search_split(whole, 0.3, seed, None, 0.4) if stage == "search" else final_split(whole, 0.4, seed)
    assert split.unseen is not None
    held = [whole.class_names.index(name) for name in split.unseen.class_names]
    left = whole.train.labels[~whole.train.labels[:, held].any(axis=1)]
    gone = [
        name
        for c, name in enumerate(whole.class_names)
        if name not in split.unseen.class_names and not left[:, c].any()
    ]
    assert [name for c, name in enumerate(split.class_names) if not split.train.labels[:, c].any()] == gone
    where = "in the search" if stage == "search" else "in final runs"
    shown = ", ".join(map(repr, gone[:3])) + (", ..." if len(gone) > 3 else "")
    line = f"{len(gone)} of 45 classes have no training sample {where}: {shown}" if gone else None
    assert split.untrained() == line
    assert (line in split.notes()) == bool(gone)
    assert split.unseen.database.labels[:, split.classes :].any(axis=0).all()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_few_samples_a_class_are_held_out_too(count):
    split = search_split(dataset(np.repeat(np.arange(50), count)), 0.1, 0)
    assert len(split.queries) == 5 * count
    assert np.bincount(split.queries.labels).max() == 1
    assert split.unanswered() is None


def test_classes_of_one_sample_each_cannot_be_searched_on():
    with pytest.raises(ValueError, match="no class has two training samples: one to train on and one to ask for"):
        search_split(dataset(np.arange(10)), 0.2, 0)


def test_queries_with_nothing_to_find_are_counted_and_refused_where_all_are():
    whole = dataset(np.repeat(np.arange(4), 5), database=Samples(np.zeros((2, 1), dtype=np.float32), np.array([0, 1])))
    queries = Samples(np.zeros((6, 1), dtype=np.float32), np.array([0, 0, 1, 2, 3, 3]))
    line = final_split(replace(whole, queries=queries)).unanswered()
    assert line == "3 of 6 test queries have nothing relevant to find"
    assert final_split(replace(whole, queries=queries[np.arange(3)])).unanswered() is None
    with pytest.raises(ValueError, match=r"^3 of 3 test queries have nothing relevant to find: want"):
        final_split(replace(whole, queries=queries[np.arange(3, 6)]))


@pytest.mark.parametrize("classes", [0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_validation_queries_with_the_content_of_a_training_sample_are_counted(seed, classes):
    inputs = np.repeat(np.arange(100, dtype=np.float32), 2)[:, None]  # each row twice
    whole = dataset(np.repeat(np.arange(4), 50))
    whole = replace(whole, train=Samples(inputs, whole.train.labels, np.arange(200)))
    split = search_split(whole, 0.2, seed, None, classes)
    parts = [(split.queries, split.train, "among the training samples")]
    if split.unseen is not None:
        parts.append((split.unseen.queries, split.unseen.database, "in the database of the classes held out"))
    lines = split.notes()
    assert len(lines) == len(parts)
    for line, (queries, others, where) in zip(lines, parts, strict=True):
        also = [row for row, value in zip(queries.items, traced(queries), strict=True) if value in traced(others)]
        pair = f"training sample {also[0]} = training sample {also[0] ^ 1}; "
        assert line.startswith(f"{len(also)} validation queries are also {where}: {pair}")
    assert final_split(whole).notes() == []


def test_validation_queries_with_the_content_of_a_database_item_are_counted():
    whole = dataset(np.repeat(np.arange(4), 5))
    rows = np.array([3, 4, 11, 60, 61, 62, 63])
    database = Samples(rows.astype(np.float64)[:, None], np.array([0, 0, 2, 0, 1, 2, 3]), rows * 10)
    split = search_split(replace(whole, database=database), 0.5, 1)
    also = [row for row in traced(split.queries) if row in rows]
    assert also
    assert len(split.notes()) == 1
    assert split.notes()[0].startswith(f"{len(also)} validation quer")
    assert " also in the database: " in split.notes()[0]
    assert f" = database item {also[0] * 10}" in split.notes()[0]


def test_queries_of_several_labels_find_what_shares_one():
    hot = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]], dtype=np.uint8)
    part = Samples(np.zeros((4, 1), dtype=np.float32), hot)
    split = Split("search", ("a", "b", "c"), part[np.array([0, 0])], part, None, None)
    assert split.unanswered() == "1 of 4 validation queries have nothing relevant to find"


@pytest.mark.parametrize("kind", ["single", "multi", "groups"])
def test_no_more_queries_are_held_out_than_the_most(kind):
    single = np.repeat(np.arange(4), 15)
    whole = dataset(
        single if kind != "multi" else np.eye(4, dtype=np.uint8)[single],
        np.arange(60) % 20 if kind == "groups" else None,
    )
    few = search_split(whole, 0.4, 0, 12)
    assert (len(few.train), len(few.queries)) == (48, 12)
    plain = search_split(whole, 0.4, 0)
    for enough in (24, 10_000):  # nothing changes where the fraction is no more
        assert search_split(whole, 0.4, 0, enough).fingerprint == plain.fingerprint


@pytest.mark.parametrize(("most", "classes"), [(7, 4), (4, 4), (3, 3), (1, 1)])
def test_the_most_queries_are_of_every_class_where_they_can_be(most, classes):
    queries = search_split(dataset(np.repeat(np.arange(4), 15)), 0.4, 0, most).queries
    assert len(queries) == most
    assert len(set(queries.labels.tolist())) >= (classes if most >= 4 else 1)


def test_the_most_queries_are_not_passed_by_a_rounded_fraction():
    one_class = dataset(np.zeros(58, dtype=np.int64))  # ceil(15 / 58 * 58) is 16
    assert len(search_split(one_class, 0.4, 0, 15).queries) == 15


def test_the_seed_picks_the_hold_out():
    whole = dataset(np.repeat(np.arange(4), 15))
    picked = [traced(search_split(whole, 0.2, seed).queries) for seed in (0, 0, 1)]
    assert picked[0] == picked[1]
    assert picked[0] != picked[2]


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 1.5])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match=f"validation.fraction must lie between 0 and 1 to search, got {fraction}"):
        search_split(dataset(np.repeat(np.arange(4), 15)), fraction, 0)


@pytest.mark.parametrize(
    ("groups", "fraction"), [(np.zeros(60, dtype=int), 0.2), (np.arange(60) % 3, 0.9), (None, 0.001)]
)
def test_a_fraction_that_leaves_nothing_on_a_side_is_refused_in_one_line(groups, fraction):
    with pytest.raises(ValueError, match=f"validation.fraction = {fraction} cannot be held out of traced") as caught:
        search_split(dataset(np.repeat(np.arange(4), 15), groups), fraction, 0)
    assert "\n" not in str(caught.value)


def test_the_final_split_trains_on_all_and_asks_the_test_queries():
    reference = np.eye(4)
    database = Samples(np.zeros((3, 1), dtype=np.float32), np.zeros(3, dtype=int))
    whole = dataset(np.repeat(np.arange(4), 15), reference=reference, database=database)
    split = final_split(whole)
    assert traced(split.train) == list(range(60))
    assert traced(split.queries) == [TEST_QUERY + i for i in range(7)]
    assert split.database is database
    assert split.reference is reference
    assert (split.stage, split.metric_prefix) == ("final", "test")


def test_a_fingerprint_changes_with_every_input_label_and_the_order():
    images = np.random.default_rng(0).integers(0, 255, (6, 1, 4, 4), dtype=np.uint8)
    labels = np.arange(6)
    samples = Samples(images, labels)
    seen = {samples.fingerprint()}
    for place in range(images.size):
        changed = images.copy()
        changed.flat[place] += 1
        seen.add(Samples(changed, labels).fingerprint())
    for row in range(6):
        seen.add(Samples(images, np.where(labels == row, 9, labels)).fingerprint())
    order = np.array([1, 0, 2, 3, 4, 5])
    seen.add(samples[order].fingerprint())
    seen.add(samples[np.arange(5)].fingerprint())
    seen.add(Samples(images.reshape(6, 1, 2, 8), labels).fingerprint())
    seen.add(Samples(images.astype(np.int8), labels).fingerprint())
    assert len(seen) == 1 + images.size + 6 + 4


def test_a_fingerprint_does_not_see_where_the_samples_lie_in_memory():
    images = np.random.default_rng(0).integers(0, 255, (6, 1, 4, 4), dtype=np.uint8)
    samples = Samples(images, np.arange(6))
    spread = Samples(np.asfortranarray(images), np.repeat(np.arange(6), 2)[::2])
    assert spread.fingerprint() == samples.fingerprint()
    assert len(samples.fingerprint()) == 16
    assert int(samples.fingerprint(), 16) >= 0


def test_a_splits_fingerprint_changes_with_all_that_is_trained_on_or_ranked():
    def part(first: int) -> Samples:
        return Samples(np.arange(first, first + 5, dtype=np.float32)[:, None], np.arange(5))

    base = Split("search", tuple("abcde"), part(0), part(10), None, None)
    changes: list[dict] = [
        {},
        {"stage": "final"},
        {"train": part(1)},
        {"queries": part(11)},
        {"database": part(0)},
        {"database": part(20)},
        {"train": part(10), "queries": part(0)},
        {"train": part(0)[np.array([4, 1, 2, 3, 0])]},
    ]
    prints = [replace(base, **change).fingerprint for change in changes]
    assert len(set(prints)) == len(changes)
    assert replace(base, train=part(0)).fingerprint == prints[0]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, kind=st.sampled_from(["single", "multi"]), stage=st.sampled_from(["search", "final"]))
def test_classes_held_out_are_searched_and_reach_nothing_else(seed, kind, stage):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(8), 12)
    if kind == "multi":
        labels = (np.eye(8, dtype=np.uint8)[labels] | (generator.random((96, 8)) < 0.03)).astype(np.uint8)
    whole = dataset(labels, reference=generator.random((8, 8)))
    whole = replace(whole, queries=whole.train[np.arange(0, 96, 5)])
    split = search_split(whole, 0.3, seed, None, 0.25) if stage == "search" else final_split(whole, 0.25, seed)
    unseen = split.unseen
    assert unseen is not None
    names = np.array(split.class_names + unseen.class_names)
    assert sorted(names) == sorted(whole.class_names)
    assert (split.classes, len(unseen.class_names)) == (6, 2)
    held = [whole.class_names.index(name) for name in unseen.class_names]
    shown = np.eye(8, dtype=bool)[labels] if kind == "single" else labels.astype(bool)
    for samples, outside in (
        (split.train, False),
        (split.queries, False),
        (unseen.queries, True),
        (unseen.database, True),
    ):
        rows = traced(samples)
        assert (shown[rows][:, held].any(axis=1) == outside).all()
        for row, label in zip(rows, samples.labels, strict=True):  # the same classes, by name
            own = names[label] if kind == "single" else set(names[np.flatnonzero(label)])
            assert own == (
                whole.class_names[labels[row]]
                if kind == "single"
                else {f"class {c}" for c in np.flatnonzero(labels[row])}
            )
    if stage == "search":
        parts = (split.train, split.queries, unseen.queries, unseen.database)
        assert sorted(row for part in parts for row in traced(part)) == list(range(96))
    order = [whole.class_names.index(name) for name in split.class_names]
    assert np.array_equal(split.reference, whole.reference[np.ix_(order, order)])
    assert (
        split.fingerprint != (search_split(whole, 0.3, seed) if stage == "search" else final_split(whole)).fingerprint
    )


def test_no_classes_held_out_is_the_split_that_was():
    whole = dataset(np.repeat(np.arange(4), 15))
    assert search_split(whole, 0.4, 0, None, 0).fingerprint == search_split(whole, 0.4, 0).fingerprint
    assert search_split(whole, 0.4, 0, None, 0).unseen is None


@pytest.mark.parametrize(("share", "reason"), [(0.9, "leaves 0 of 4 classes"), (0.7, "leaves 1 of 4 classes")])
def test_holding_too_many_classes_out_is_an_error(share, reason):
    with pytest.raises(ValueError, match=rf"validation.classes = {share} {reason}"):
        search_split(dataset(np.repeat(np.arange(4), 15)), 0.4, 0, None, share)


def test_classes_held_out_that_no_query_asks_for_are_an_error():
    whole = dataset(np.repeat(np.arange(4), 15))
    whole = replace(whole, queries=whole.train[np.arange(1)])
    with pytest.raises(ValueError, match=r"none of the 0 queries of the 1 classes held out|every image"):
        final_split(whole, 0.25, 0)
