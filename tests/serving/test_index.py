"""The index without numba gives what the compiled one gives; damaged and foreign files are one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crh_tune.errors import DataError
from crh_tune.retrieval.index import Index
from crh_tune.retrieval.packing import pack_codes
from crh_tune.serving.index import About, PlainIndex, load_index, open_index, write_index


@pytest.mark.parametrize("bits", [8, 20, 64, 100, 300])
def test_answers_without_numba_are_those_of_the_compiled_index(bits):
    generator = np.random.default_rng(bits)
    ones = generator.random((30, bits))[generator.integers(0, 30, 200)] < 0.5
    words, labels, items = pack_codes(ones), np.arange(200) % 7, np.arange(200)
    compiled, plain = Index(words, labels, items), PlainIndex(words, labels, items)
    queries = generator.normal(size=(5, bits)).round(1)
    where = compiled.where(labels=[2, 3])
    for asked in (pack_codes(queries), queries):
        for count in (1, 10, 500):
            for flags in (None, where):
                found = compiled.search(asked, count, flags), plain.search(asked, count, flags)
                np.testing.assert_array_equal(found[0][0], found[1][0])
                np.testing.assert_array_equal(found[0][1], found[1][1])
    for flags in (None, where):
        near = (
            compiled.within(pack_codes(queries), bits // 3, flags),
            plain.within(pack_codes(queries), bits // 3, flags),
        )
        for theirs, ours in zip(*near, strict=True):
            np.testing.assert_array_equal(theirs, ours)
    rows, distances = plain.search(pack_codes(queries), 10)
    expected = ((queries >= 0)[:, None] != ones[None]).sum(axis=2)
    for query, apart in enumerate(expected):
        order = np.argsort(apart, kind="stable")[:10]
        assert rows[query].tolist() == order.tolist()
        assert distances[query].tolist() == apart[order].tolist()


def test_what_lies_within_a_distance_is_found_without_numba(monkeypatch: pytest.MonkeyPatch):
    ones = np.random.default_rng(3).random((50, 20)) < 0.5
    monkeypatch.setitem(sys.modules, "crh_tune.retrieval.kernels", None)  # as where numba cannot be imported
    monkeypatch.delattr("crh_tune.retrieval.kernels", raising=False)
    [(rows, distances)] = PlainIndex(pack_codes(ones), np.arange(50), np.arange(50)).within(pack_codes(ones[:1]), 8)
    apart = (ones[0] != ones).sum(axis=1)
    expected = [row for row in np.argsort(apart, kind="stable") if apart[row] <= 8]
    assert rows.tolist() == expected
    assert distances.tolist() == apart[expected].tolist()


def test_an_index_says_what_it_is_of(tmp_path):
    words = pack_codes(np.random.default_rng(0).random((4, 20)) < 0.5)
    about = About("encoder", "/photos", ("cat", "dog"))
    write_index(tmp_path, Index(words, np.array([0, 1, 1, 2]), np.array(list("abcd"))), about)
    index, found = open_index(tmp_path)
    np.testing.assert_array_equal(index.words, words)
    assert found == about
    assert [found.label(label) for label in index.labels] == ["cat", "dog", "dog", "2"]
    assert found.label(np.array([1, 1, 0])) == "cat, dog"
    assert found.label(np.str_("text")) == "text"


def test_indexes_of_before_they_were_mapped_are_read():
    """Kept files: of before an index said what it is of, and of before it was mapped."""
    generator = np.random.default_rng(7)
    ones = (generator.random((3, 20)) < 0.5)[generator.integers(0, 3, 8)]
    for name, about, items in (
        ("oldest", About(), list(range(8))),
        ("first", About("name", "/photos", ("a", "b", "c")), [f"test/{'abc'[i % 3]}/{i}.jpg" for i in range(8)]),
    ):
        index, found = open_index(Path(__file__).parent / "kept" / name)
        assert found == about
        assert index.items.tolist() == items
        assert index.labels.tolist() == [i % 3 for i in range(8)]
        np.testing.assert_array_equal(index.words, pack_codes(ones))
        assert index.search(pack_codes(ones[3:4]), 1)[1].tolist() == [[0]]


OPENING = """
import sys
import numpy as np
from crh_tune.serving import load_index

def state():
    lines = [line.split() for line in (*open("/proc/self/status"), *open("/proc/self/io"))]
    found = {name.rstrip(":"): int(value[0]) for name, *value in lines if name in ("RssAnon:", "RssFile:", "rchar:")}
    return found["RssAnon"] * 1024, found["RssFile"] * 1024 + found["rchar"]

small, large = sys.argv[1:]
load_index(small).search(np.zeros((1, 1), np.uint64), 10)  # loads numba and what is compiled
before = state()
index = load_index(large)
opened = state()
row = index.search(index.codes_of([3]), 1)[0][0, 0]
print(index.search(np.zeros((1, 1), np.uint64), 10)[1][0, 0], index.items[row])
for after in (opened, state()):
    print(*(b - a for a, b in zip(before, after)))
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no /proc, which says what memory a process has")
def test_opening_a_million_codes_takes_no_memory_and_does_not_read_their_names(tmp_path):
    words = np.random.default_rng(0).integers(1, 2**63, (1_000_000, 1), dtype=np.uint64)
    large = Index(words, np.zeros(len(words), np.uint8), np.arange(len(words)).astype("U24"))
    write_index(tmp_path / "large", large, About())
    write_index(tmp_path / "small", Index(words[:99], np.zeros(99, np.uint8), np.arange(99)), About())
    names = large.items.nbytes
    del large
    command = [sys.executable, "-c", OPENING, tmp_path / "small", tmp_path / "large"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said, *measured = done.stdout.splitlines()
    assert said == f"{int(np.bitwise_count(words).min())} 3"
    (opening, read), (searching, _) = ([int(part) for part in line.split()] for line in measured)
    print(f"private: {opening / 1e6:.1f} MB opened, {searching / 1e6:.1f} MB after searches; read {read / 1e6:.0f} MB")
    assert opening < 4e6
    assert searching < 16e6
    assert read < 40e6 < names


@pytest.mark.parametrize(
    "change",
    [
        {"words": np.zeros((4, 1))}, {"words": np.zeros(4, np.uint32)}, {"labels": np.zeros(3, int)},
        {"items": np.zeros((4, 1), int)}, {"items": np.zeros(4)}, {"labels": np.zeros(4, complex)}, {"words": None},
        {"about": np.array("no json")}, {"about": np.array(json.dumps({"root": 3}))},
        {"about": np.array(json.dumps({"class_names": [1]}))}, {"about": np.array("[]")},
        {"items": np.array([print] * 4, dtype=object)},
    ],
)  # fmt: skip
def test_what_is_no_index_is_told_in_one_line(tmp_path, change):
    content = {"words": np.zeros((4, 1), np.uint32), "labels": np.zeros(4, int), "items": np.arange(4)}
    np.savez(tmp_path / "index.npz", **content)
    assert len(load_index(tmp_path)) == 4
    np.savez(tmp_path / "index.npz", **{name: a for name, a in {**content, **change}.items() if a is not None})
    with pytest.raises(DataError) as caught:
        load_index(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'index.npz'}: not a readable index: ")
    assert "\n" not in str(caught.value)
