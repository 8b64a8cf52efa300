"""References from files, compared with similarities computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from crh_tune.data.listing import DataError
from crh_tune.data.readers.reference import read_reference, same_superclass

NAMES = ("sparrow", "hawk, red 😀", "oak")
LABELS = np.array([0, 0, 1, 2])
TREE = [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    "text",
    [
        'sparrow,bird\n"hawk, red 😀",bird\noak,tree\n',
        '\ufeffClass,Superclass\r\noak,tree\r\n\r\n"hawk, red 😀", bird \r\nsparrow,bird\r\n',
        'sparrow,bird\nsparrow,bird\n"hawk, red 😀",bird\noak,tree',
    ],
)
def test_superclasses_make_1_one_half_and_0(tmp_path, text):
    (tmp_path / "r.csv").write_text(text, encoding="utf-8", newline="")
    reference = read_reference(tmp_path / "r.csv", NAMES, LABELS)
    assert reference.dtype == np.float64
    assert reference.tolist() == TREE


def test_same_superclass():
    assert same_superclass(np.array([7, 7, -1])).tolist() == TREE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparrow,bird\noak,tree\n", ": class 'hawk, red 😀' is missing: want a row class,superclass for every class"),
        ("oak,tree\n", ": class 'sparrow' (and 1 more) is missing: want a row class,superclass for every class"),
        ("oak,tree\nelm,tree\n", ":2: 'elm' is not a class of the dataset: leave it out, or mend its name"),
        ("oak,tree\noak,plant\n", ":2: class 'oak' has the superclass 'tree' already: want one"),
        ("oak,tree,plant\n", ":1: 'oak,tree,plant': want class,superclass"),
        ("oak,\n", ":1: 'oak,': want class,superclass"),
        ("oak\n", ":1: 'oak': want class,superclass"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, text, message):
    (tmp_path / "r.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_reference(tmp_path / "r.csv", NAMES, LABELS)
    assert str(caught.value) == f"{tmp_path}/r.csv{message}"


def test_text_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"oak,tree\nsparrow,\xff\n")
    with pytest.raises(DataError, match=r"r\.csv:2: is not UTF-8 text"):
        read_reference(tmp_path / "r.csv", NAMES, LABELS)


def cosines(prototypes: np.ndarray) -> list[list[float]]:
    centred = prototypes - prototypes.mean(axis=0)
    return [[float(a @ b / np.sqrt((a @ a) * (b @ b))) for b in centred] for a in centred]


def test_a_row_a_class_is_a_prototype(tmp_path):
    prototypes = np.array([[1.0, 0, 2], [0, 1, 5], [4, 4, 4]])
    np.save(tmp_path / "r.npy", prototypes.astype(np.float32))
    reference = read_reference(tmp_path / "r.npy", NAMES, LABELS)
    assert reference == pytest.approx(np.array(cosines(prototypes)), abs=1e-12)
    assert np.diag(reference).tolist() == [1, 1, 1]


def test_a_row_a_sample_is_averaged_over_the_samples_with_the_label(tmp_path):
    features = np.array([[1.0, 0], [3, 2], [0, 5], [4, 4]])
    np.save(tmp_path / "r.npy", features)
    single = read_reference(tmp_path / "r.npy", NAMES, LABELS)
    assert single == pytest.approx(np.array(cosines(np.array([[2.0, 1], [0, 5], [4, 4]]))), abs=1e-12)
    hot = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]], dtype=np.uint8)
    several = read_reference(tmp_path / "r.npy", NAMES, hot)
    means = np.array([[1.0, 0], [8 / 3, 2], [2, 4.5]])
    assert several == pytest.approx(np.array(cosines(means)), abs=1e-12)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((5, 2)), "has the shape (5, 2): want (3, D), a row a class, or (4, D), a row a training sample"),
        (np.ones(3), "has the shape (3,): want (3, D), a row a class, or (4, D), a row a training sample"),
        (np.ones((3, 0)), "has the shape (3, 0): want (3, D), a row a class, or (4, D), a row a training sample"),
        (
            np.array([[1, 2], [np.nan, 1], [0, 0]]),
            "holds NaN or infinity, or no numbers at all (float64): want finite numbers",
        ),
        (np.full((3, 2), "x"), "holds NaN or infinity, or no numbers at all (<U1): want finite numbers"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "r.npy", array)
    with pytest.raises(DataError) as caught:
        read_reference(tmp_path / "r.npy", NAMES, LABELS)
    assert str(caught.value) == f"{tmp_path}/r.npy: {message}"


def test_a_class_without_a_sample_cannot_be_averaged(tmp_path):
    np.save(tmp_path / "r.npy", np.ones((4, 2)))
    with pytest.raises(DataError, match="class 'oak' has no training sample to average: want a row a class"):
        read_reference(tmp_path / "r.npy", NAMES, np.array([0, 0, 1, 1]))


def test_files_that_are_unreadable_or_of_another_kind_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object))
    np.save(tmp_path / "cut.npy", np.ones((3, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "r.txt").write_text("oak,tree")
    wanted = "reference must be a .csv file class,superclass or a .npy array"
    for name, message in (
        ("objects.npy", "cannot be read as an array of numbers: "),
        ("cut.npy", "cannot be read as an array of numbers: "),
        ("empty.npy", "cannot be read as an array of numbers: "),
        ("r.txt", f"is neither: {wanted}"),
        ("none.csv", f"does not exist: {wanted}"),
    ):
        with pytest.raises(DataError) as caught:
            read_reference(tmp_path / name, NAMES, LABELS)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
        assert "\n" not in str(caught.value)
