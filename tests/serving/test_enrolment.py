"""Codewords for new classes: which they take, that nothing else changes, and that it can be undone."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from crh_tune.errors import DataError
from crh_tune.export import load_encoder as load_with_torch
from crh_tune.retrieval.packing import pack_codes
from crh_tune.serving.codes import Codes, read_codes
from crh_tune.serving.encoder import load_encoder
from crh_tune.serving.enrolment import Enrolment, least_together, open_enrolment, unpacked, write_codebook
from crh_tune.serving.index import open_index
from tests.serving.test_commands import run


def codebook(seed: int, heads: int = 2, size: int = 8, dim: int = 5, classes: int = 3) -> Enrolment:
    generator = np.random.default_rng(seed)
    words = (generator.integers(0, 2, (heads, size, dim)) * 2 - 1).astype(np.int8)
    table = np.stack([generator.permutation(size)[:classes] for _ in range(heads)]).astype(np.int64)
    return Enrolment("encoder", 16, words, table, tuple("abc"[:classes]), {})


def codes_of(bits: np.ndarray, labels: list[str]) -> Codes:
    items = np.array([f"{i}.jpg" for i in range(len(labels))])
    return Codes(pack_codes(bits), np.array(labels), items, "encoder", bits.shape[1])


def labelled(seed: int, labels: str, bits: int = 16) -> Codes:
    return codes_of(np.random.default_rng(seed).random((len(labels), bits)) < 0.5, list(labels))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 4), more=st.integers(0, 3), ties=st.booleans())
def test_the_assignment_is_the_cheapest_of_all(seed, rows, more, ties):
    generator = np.random.default_rng(seed)
    cost = generator.normal(size=(rows, rows + more))
    cost = np.round(cost) if ties else cost
    found = least_together(cost)
    assert len(set(found.tolist())) == rows
    every = itertools.permutations(range(rows + more), rows)
    least = min(sum(cost[i, column] for i, column in enumerate(columns)) for columns in every)
    assert cost[np.arange(rows), found].sum() == pytest.approx(least, abs=1e-12)


def test_the_assignment_of_many_costs_as_scipys():
    cost = np.random.default_rng(0).random((60, 200)).round(2)
    theirs = cost[scipy.optimize.linear_sum_assignment(cost)].sum()
    assert cost[np.arange(60), least_together(cost)].sum() == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_new_classes_take_the_free_words_of_least_cost(seed):
    """Eq. 7 photo by photo in float64, over every way to give the new classes free words, head by head."""
    book, codes = codebook(seed), labelled(seed, "xxyyyzxz")
    found = book.enroll(codes)
    signs = np.where(unpacked(codes.words, 16), 1.0, -1.0)
    for head in range(2):
        free = [i for i in range(8) if i not in book.table[head]]
        own = {name: signs[codes.labels == name, 5 * head : 5 * head + 5] for name in "xyz"}
        cost = {
            (name, i): float(((own[name] - book.words[head, i]) ** 2).sum(axis=1).mean()) for name in own for i in free
        }
        least = min(sum(map(cost.get, zip("xyz", words, strict=True))) for words in itertools.permutations(free, 3))
        taken = [found.classes[name].words[head] for name in "xyz"]
        assert len(set(taken)) == 3
        assert set(taken) <= set(free)
        assert sum(cost[key] for key in zip("xyz", taken, strict=True)) == pytest.approx(least, abs=1e-12)


def test_who_has_a_word_keeps_it_whatever_comes_later():
    once = codebook(0).enroll(labelled(1, "xxyy"))
    assert once.enroll(labelled(2, "xyxyx")) == replace(once)
    later = once.enroll(labelled(3, "xzzzy"))
    assert {name: later.classes[name] for name in "xy"} == once.classes
    assert later.without("z").classes == once.classes
    again = later.without("x").enroll(labelled(1, "xx"))
    assert set(again.classes) == set("xyz")


def test_items_of_enrolled_classes_have_the_word_and_open_bits_of_their_own():
    codes = labelled(4, "axbyx")
    enrolled = codebook(0).enroll(labelled(1, "xxyy"))
    before, after = unpacked(codes.words, 16), unpacked(enrolled.stored(codes, "word"), 16)
    assert np.array_equal(after[:, 10:], before[:, 10:])
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    for row, name in ((1, "x"), (3, "y"), (4, "x")):
        word = np.concatenate([enrolled.words[head, enrolled.classes[name].words[head]] for head in range(2)])
        assert np.array_equal(np.where(after[row, :10], 1, -1), word)
    assert enrolled.stored(codes, "own") is codes.words


def test_the_middle_of_a_class_has_in_each_bit_what_most_of_its_photos_have():
    first, codes = labelled(1, "xxyxy"), labelled(4, "axbyx")
    after = unpacked(codebook(0).enroll(first).stored(codes, "middle"), 16)
    given = unpacked(first.words, 16)
    assert np.array_equal(after[[0, 2]], unpacked(codes.words, 16)[[0, 2]])
    for row, name in ((1, "x"), (3, "y"), (4, "x")):
        mine = given[first.labels == name].astype(int)
        assert after[row].tolist() == [2 * bit.sum() >= len(bit) for bit in mine.T]


@pytest.fixture
def new(photos: Path, tmp_path: Path) -> Path:
    """Photos of two classes that the export has not seen, and a copy of the export beside them."""
    for old, name in (("a", "heron"), ("b", "ibis")):
        shutil.copytree(photos / "test" / old, tmp_path / "new" / name)
    return tmp_path / "new"


@pytest.fixture
def own(export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export, tmp_path / "export"))


def test_an_export_holds_the_words_of_its_centres(own, encoder):
    book = open_enrolment(own, encoder)
    centers = np.concatenate([words[row] for words, row in zip(book.words, book.table, strict=True)], axis=1)
    assert np.array_equal(centers, np.load(own / "centers.npy"))
    assert book.free == 3
    assert book.trained == load_with_torch(own).class_names == ("a", "b", "c")


def test_enrolling_changes_no_code_that_is_there_is_the_same_when_repeated_and_is_undone_by_name(
    own, photos, new, tmp_path, capsys
):
    state, files = own / "enrolled.json", {path: path.read_bytes() for path in own.iterdir()}
    assert run("encode", own, photos / "train", "-o", tmp_path / "old.npz") == 0
    assert run("index", own, tmp_path / "old.npz", "-o", tmp_path / "before") == 0
    assert run("enroll", own, new, "-o", tmp_path / "new.npz") == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "class  photos  codeword",
        "heron       2  new",
        "ibis        2  new",
        "2 classes enrolled; 1 codeword left",
    ]
    first = state.read_bytes()
    assert run("enroll", own, new, "-o", tmp_path / "new.npz") == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "heron       2  kept",
        "ibis        2  kept",
        "0 classes enrolled; 1 codeword left",
    ]
    assert state.read_bytes() == first
    assert {path: path.read_bytes() for path in own.iterdir() if path != state} == files

    both = [tmp_path / "old.npz", tmp_path / "new.npz"]
    assert run("index", own, *both, "-o", tmp_path / "after", "--enrolled", "word") == 0
    (before, _), (after, _) = open_index(tmp_path / "before"), open_index(tmp_path / "after")
    assert np.array_equal(after.words[:18], before.words)
    book = open_enrolment(own, load_encoder(own))
    for row, name in enumerate(after.labels[18:].tolist(), 18):
        assert np.array_equal(unpacked(after.words[row : row + 1], 20)[0], book.word(name) > 0)
    assert run("index", own, *both, "-o", tmp_path / "plain", "--enrolled", "own") == 0
    assert np.array_equal(open_index(tmp_path / "plain")[0].words[18:], read_codes(both[1]).words)
    assert run("index", own, *both, "-o", tmp_path / "middle") == 0
    middle, codes = open_index(tmp_path / "middle")[0], read_codes(both[1])
    assert np.array_equal(middle.words[18:], book.stored(codes, "middle"))
    assert middle.distinct <= before.distinct + 2

    assert run("enroll", own, "--undo", "heron") == 0
    assert list(json.loads(state.read_bytes())["classes"]) == ["ibis"]
    assert run("enroll", own, "--undo", "ibis") == 0
    assert run("enroll", own, new, "-o", tmp_path / "new.npz") == 0
    assert state.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "give labelled photos, DIR/<class>/*.jpg, or --undo NAME"),
        (["{photos}/test"], "class 'a' has a word already: the encoder was trained on it"),
        (["{photos}/test/a"], "photos without a class: want DIR/<class>/*.jpg, or an array with labels"),
        (["{tmp}/four"], "4 new classes, and 3 free codewords of 6: train again with these classes"),
        (["--undo", "ibis"], "class 'ibis' is not enrolled: none can be undone"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(own, photos, tmp_path, capsys, monkeypatch, arguments, line):
    for name in "wxyz":
        shutil.copytree(photos / "test" / "a", tmp_path / "four" / name)
    monkeypatch.chdir(tmp_path)
    assert run("enroll", own, *[each.format(photos=photos, tmp=tmp_path) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (own / "enrolled.json").exists()


def test_an_export_without_listed_words_is_told_what_is_missing(own, new, capsys):
    (own / "codebook.npz").unlink()
    assert run("enroll", own, new) == 2
    error = capsys.readouterr().err
    assert "codebook.npz: there is no such file: enrolling takes free words of a codebook" in error
    assert error.count("\n") == 1


def test_files_that_are_damaged_or_of_another_encoder_are_named(own, encoder):
    book = open_enrolment(own, encoder)
    free = [next(i for i in range(6) if i not in held) for held in book.table.tolist()]
    good = {"words": free, "middle": "00" * 3}
    classes = [{**good, "words": [int(book.table[0, 0]), free[1]]}, {**good, "words": [6, free[1]]}, 1]
    classes += [{**good, "words": free[:1]}, {**good, "middle": "00"}, {**good, "middle": "no"}]
    bad = [*({"ibis": each} for each in classes), {"ibis": good, "owl": good}, [], None]
    files = [{"encoder": encoder.name, "classes": classes} for classes in bad]
    for content in (*files, {"encoder": "another", "classes": {"ibis": good}}, [], {}):
        (own / "enrolled.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"enrolled\.json: not what crh-tune enroll writes: "):
            open_enrolment(own, encoder)
    whole = (own / "codebook.npz").read_bytes()
    for damaged in (whole[:-30], whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], b""):
        (own / "codebook.npz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"codebook\.npz: not a readable codebook: "):
            open_enrolment(own, encoder)
    write_codebook(own, book.words, book.table[:, :2], encoder.name)
    with pytest.raises(DataError, match="for 3 classes"):
        open_enrolment(own, encoder)
    write_codebook(own, book.words, book.table, "another")
    with pytest.raises(DataError, match="of another encoder than this export's"):
        open_enrolment(own, encoder)
