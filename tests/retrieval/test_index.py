"""The index against brute force over items, by Hamming distance and by u . b."""

from __future__ import annotations

import mmap
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crh_tune.retrieval import index as module
from crh_tune.retrieval.index import Index
from crh_tune.retrieval.mapped import write_arrays
from crh_tune.retrieval.packing import pack_codes

WIDTHS = st.sampled_from([8, 9, 16, 31, 64, 65, 128, 255, 256, 500, 512])


def database(generator: np.random.Generator, bits: int, count: int, distinct: int) -> np.ndarray:
    return (generator.random((distinct, bits)) < 0.5)[generator.integers(0, distinct, count)]


def expected_rows(costs: np.ndarray, flags: np.ndarray, count: int) -> list[list[int]]:
    """By cost and then row, of the items that count."""
    rows = np.flatnonzero(flags).tolist()
    return [sorted(rows, key=lambda row, own=own: (own[row], row))[:count] for own in costs]


def check_against_brute_force(index: Index, codes, queries, outputs, count, flags) -> None:
    distances = (queries[:, None] != codes[None]).sum(axis=2)
    where = None if flags.all() else flags
    rows, found = index.search(pack_codes(queries), count, where)
    expected = expected_rows(distances, flags, count)
    assert rows.tolist() == expected
    assert found.tolist() == [own[row].tolist() for own, row in zip(distances, expected, strict=True)]
    scores = outputs.astype(np.float64) @ np.where(codes, 1.0, -1.0).T
    rows, found = index.search(outputs, count, where)
    expected = expected_rows(np.round(-scores, 9), flags, count)
    assert rows.tolist() == expected
    assert found == pytest.approx(np.take_along_axis(scores, np.array(expected, dtype=int).reshape(rows.shape), 1))
    radius = codes.shape[1] // 2
    for own, (near, away) in zip(distances, index.within(pack_codes(queries), radius, where), strict=True):
        rows_within = sorted(np.flatnonzero((own <= radius) & flags).tolist(), key=lambda row, own=own: (own[row], row))
        assert near.tolist() == rows_within
        assert away.tolist() == own[rows_within].tolist()


CASES = {
    "seed": st.integers(0, 2**31 - 1),
    "bits": WIDTHS,
    "size": st.integers(1, 60),
    "distinct": st.integers(1, 60),
    "count": st.integers(1, 70),
    "grain": st.sampled_from(["float", "integer", "zero"]),
}


def through_additions_removals_and_filters(seed, bits, size, distinct, count, grain):
    generator = np.random.default_rng(seed)
    codes = database(generator, bits, size + 9, distinct)
    queries = np.concatenate([codes[generator.integers(0, size, 1)], generator.random((2, bits)) < 0.5])
    outputs = generator.normal(size=(3, bits)).astype(np.float32)
    outputs = {"float": outputs, "integer": np.round(outputs), "zero": 0 * outputs}[grain]
    labels, items = generator.integers(0, 3, size + 9), np.array([f"{i}.jpg" for i in range(size + 9)])
    index = Index(pack_codes(codes[:size]), labels[:size], items[:size])
    check_against_brute_force(index, codes[:size], queries, outputs, count, np.ones(size, dtype=bool))
    index.add(pack_codes(codes[size:]), labels[size:], items[size:])
    check_against_brute_force(index, codes, queries, outputs, count, np.isin(labels, [0, 2]))
    index.remove(index.where(labels=[1], items=items[::2]))
    kept = ~((labels == 1) & (np.arange(size + 9) % 2 == 0))
    assert index.items.tolist() == items[kept].tolist()
    assert np.array_equal(index.words, pack_codes(codes[kept]))
    check_against_brute_force(index, codes[kept], queries, outputs, count, generator.random(kept.sum()) < 0.5)


@settings(max_examples=100, deadline=None)
@given(**CASES)
def test_it_is_brute_force_through_additions_removals_and_filters(**case):
    through_additions_removals_and_filters(**case)


@pytest.mark.long
@settings(max_examples=3500, deadline=None)
@given(**CASES)
def test_it_is_brute_force_in_ten_thousand_cases(**case):
    """Three databases each: as built, after an addition, after a removal."""
    through_additions_removals_and_filters(**case)


@pytest.mark.parametrize(("bits", "distinct"), [(64, 30_000), (64, 700), (16, 30_000), (96, 30_000)])
def test_many_codes_in_several_blocks_and_threads(monkeypatch, bits, distinct):
    monkeypatch.setattr(module, "_PAIRS_PER_THREAD", 1000)
    monkeypatch.setattr(module, "_QUERIES", 3)
    monkeypatch.setattr(module, "usable_threads", lambda: 3)
    generator = np.random.default_rng(bits)
    codes = database(generator, bits, 30_000, distinct)
    queries = np.concatenate([codes[:2] ^ (generator.random((2, bits)) < 0.1), generator.random((2, bits)) < 0.5])
    outputs = generator.normal(size=(4, bits)).astype(np.float32)
    index = Index(pack_codes(codes), np.zeros(len(codes)), np.arange(len(codes)))
    assert index.distinct == len(np.unique(codes, axis=0))
    check_against_brute_force(index, codes, queries, outputs, 25, np.ones(len(codes), dtype=bool))


@pytest.mark.parametrize("bits", [8, 16, 70])
def test_a_saved_index_is_mapped_into_memory_and_answers_alike(tmp_path, bits):
    generator = np.random.default_rng(bits)
    codes = database(generator, bits, 300, 40)
    index = Index(
        pack_codes(codes), np.eye(5, dtype=np.uint8)[np.arange(300) % 5], np.array([f"{i}" for i in range(300)])
    )
    path = tmp_path / "index.npz"
    index.save(path)
    opened = Index.open(path)
    assert all(mapped(each) for name, each in opened.parts().items() if name != "form")
    with np.load(path) as arrays:  # NumPy reads the file too
        assert all(np.array_equal(arrays[name], part) for name, part in index.parts().items())
    assert np.array_equal(opened.words, index.words)
    rows = generator.integers(0, 300, 40)
    assert np.array_equal(opened.codes_of(rows), index.words[rows])
    queries, outputs = codes[:5], generator.normal(size=(5, bits)).astype(np.float32)
    check_against_brute_force(opened, codes, queries, outputs, 9, np.arange(300) % 5 == 2)
    assert np.array_equal(opened.where(labels=[2]), np.arange(300) % 5 == 2)
    opened.remove(opened.where(items=["7"]))
    assert len(opened) == 299
    opened.save(path)
    left = np.delete(index.words, 7, axis=0)
    assert np.array_equal(Index.open(path).words, left)
    assert np.array_equal(opened.codes_of(np.arange(299)), left)
    assert [each.name for each in tmp_path.iterdir()] == ["index.npz"]


def mapped(array: np.ndarray) -> bool:
    """Whether an array lies in a mapped file, where a machine word begins."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap) and array.ctypes.data % 64 == 0


U32, I64 = np.uint32, np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ends": np.array([0, 7], U32)}, "do not belong together"),
        ({"ends": np.array([1, 2, 4], U32)}, "do not belong together"),
        ({"ends": np.array([0, 5, 4], U32)}, "lists of items overlap"),
        ({"ends": np.array([], U32)}, "do not belong together"),
        ({"rows": np.array([0, 1, 2, 4], U32)}, "out of range"),
        ({"rows": np.array([0, 1, 2, -1], I64)}, "out of range"),
        ({"rows": np.arange(4.0)}, "other types or shapes"),
        ({"codes": np.zeros((2, 1), U32)}, "other types or shapes"),
        ({"codes": np.zeros((2, 2), np.uint64)}, "codes of 2 words for 1 of 4 bytes"),
        ({"form": np.array([3, 1])}, "codes of 1 words for 1 of 3 bytes"),
        ({"form": np.array(["a"])}, "codes of 1 words for 0 of 0 bytes"),
        ({"labels": np.array(3)}, "other types or shapes"),
        ({"items": np.arange(5)}, "do not belong together"),
        ({"items": None}, "it has no items"),
    ],
)
def test_arrays_that_are_no_index_are_refused(tmp_path, change, message):
    index = Index(pack_codes(np.eye(20, dtype=bool)[[0, 1, 0, 1]]), np.arange(4), np.arange(4))
    parts = {name: each for name, each in {**index.parts(), **change}.items() if each is not None}
    write_arrays(tmp_path / "index.npz", parts)
    with pytest.raises(ValueError, match=f"^not an index: .*{message}"):
        Index.open(tmp_path / "index.npz")


def test_what_cannot_be_asked_is_refused():
    words = pack_codes(np.random.default_rng(0).random((9, 16)) < 0.5)
    index = Index(words, np.arange(9), np.arange(9))
    for queries, message in (
        (words.astype(np.uint64), "Q x 1 uint16 words, or Q x K real outputs expected, got uint64"),
        (np.zeros((2, 17)), "at most 16 bits expected"),
        (np.full((2, 16), np.inf), "outputs must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            index.search(queries, 3)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        index.search(words, 0)
    with pytest.raises(ValueError, match="where must say of 9 items"):
        index.search(words, 1, np.ones(8, dtype=bool))
    with pytest.raises(ValueError, match="1 uint16 words with labels"):
        index.add(words.astype(np.uint32), np.arange(9), np.arange(9))
    with pytest.raises(ValueError, match=r"^items of this index are numbers, got text$"):
        index.add(words, np.arange(9), np.array(list("abcdefghi")))
    with pytest.raises(ValueError, match=r"^labels of this index are numbers, got text$"):
        index.add(words, np.array(list("abcdefghi")), np.arange(9))
    with pytest.raises(ValueError, match="items of shape"):
        Index(words, np.arange(9), np.arange(8))


def test_no_items_and_no_queries():
    words = pack_codes(np.ones((4, 16), dtype=bool))
    empty = Index(words[:0], np.arange(0), np.arange(0))
    assert [part.shape for part in empty.search(words, 3)] == [(4, 0), (4, 0)]
    index = Index(words, np.arange(4), np.arange(4))
    assert [part.shape for part in index.search(words[:0], 3)] == [(0, 3), (0, 3)]
    assert [part.shape for part in index.search(np.zeros((0, 16), dtype=np.float32), 3)] == [(0, 3), (0, 3)]
    assert [part.shape for part in index.search(words, 3, np.zeros(4, dtype=bool))] == [(4, 0), (4, 0)]


def test_an_index_holds_its_codes_once_and_a_search_only_what_it_finds():
    """16 bytes an item: a code of 8, a row and an end of 4; 500 queries on 200,000 items have 100 million distances."""
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**63, (200_000, 1), dtype=np.uint64)
    index = Index(words, np.zeros(len(words), dtype=np.uint8), np.arange(len(words)))
    index.search(words[:2], 3)
    assert index._codes.nbytes + index._rows.nbytes + index._ends.nbytes <= 16 * len(words) + 4
    tracemalloc.start()
    try:
        rows, _ = index.search(words[:500], 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows[:, 0].tolist() == list(range(500))
    assert peak < 2_000_000


def test_labels_that_lie_in_memory_by_columns_are_saved_by_rows(tmp_path):
    """As those of a table do: pandas gives its columns so."""
    labels = np.asfortranarray(np.eye(6, 3, dtype=bool))
    Index(np.arange(6, dtype=np.uint64)[:, None], labels, np.arange(6)).save(tmp_path / "index.npz")
    assert np.array_equal(Index.open(tmp_path / "index.npz").labels, labels)
