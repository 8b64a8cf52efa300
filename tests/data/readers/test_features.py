"""Arrays of features as people save them, and the ways in which they are broken."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from crh_tune.data.listing import DataError
from crh_tune.data.readers.features import FeaturesOptions, feature_dataset, list_features
from tests.data.readers.test_lists import HOT, WRITTEN_HOT, WRITTEN_SETS


def arrays(**changes) -> dict[str, np.ndarray]:
    """Six training and three test samples of two classes in float32, D = 4."""
    generator = np.random.default_rng(0)
    whole = {
        "train_features": generator.normal(size=(6, 4)).astype(np.float32),
        "train_labels": np.array([0, 1, 0, 1, 0, 1]),
        "test_features": generator.normal(size=(3, 4)).astype(np.float32),
        "test_labels": np.array([1, 0, 1]),
    }
    return {name: array for name, array in {**whole, **changes}.items() if array is not None}


def saved(root: Path, kind: str, given: dict[str, np.ndarray]) -> Path:
    """Where the arrays lie: a ``.npz`` file, or a folder of ``.npy`` files."""
    if kind == "npz":
        np.savez(root / "f.npz", **given)
        return root / "f.npz"
    (root / "f").mkdir()
    for name, array in given.items():
        np.save(root / "f" / f"{name}.npy", array)
    return root / "f"


def problems_of(path: Path) -> tuple[str, ...]:
    return list_features(FeaturesOptions(path=path)).problems


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_train_and_test_are_read_as_they_are(tmp_path, kind):
    given = arrays()
    path = saved(tmp_path, kind, given)
    found = list_features(FeaturesOptions(path=path))
    assert found.problems == ()
    assert found.layout == {"npz": ".npz file with train, test", "npy": ".npy files with train, test"}[kind]
    assert (found.root, found.class_names, found.database) == (path, ("0", "1"), None)
    for part, name in ((found.train, "train"), (found.queries, "test")):
        assert np.array_equal(part.features, given[f"{name}_features"])
        assert part.features.dtype == np.float32
        assert np.array_equal(part.labels, given[f"{name}_labels"])
        assert part.labels.dtype == np.int64
        assert part.rows is None
        assert len(part) == len(given[f"{name}_labels"])
    assert isinstance(found.train.features, np.memmap) == (kind == "npy")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.uint8, np.int64])
def test_numbers_of_many_kinds_are_read(tmp_path, dtype):
    path = saved(tmp_path, "npy", arrays(train_features=np.arange(24).reshape(6, 4).astype(dtype)))
    found = list_features(FeaturesOptions(path=path))
    assert found.problems == ()
    assert found.train.features.tolist() == np.arange(24).reshape(6, 4).tolist()


def test_a_database_is_read(tmp_path):
    more = {"database_features": np.ones((5, 4), np.float32), "database_labels": np.array([0, 1, 1, 1, 0])}
    found = list_features(FeaturesOptions(path=saved(tmp_path, "npz", arrays(**more))))
    assert found.problems == ()
    assert found.layout == ".npz file with train, test and database"
    assert found.database.labels.tolist() == [0, 1, 1, 1, 0]
    assert found.database.features.shape == (5, 4)


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_features_alone_are_drawn_class_by_class(tmp_path, kind):
    features, labels = np.arange(60.0).reshape(30, 2), np.repeat([0, 1, 2], [10, 15, 5])
    path = saved(tmp_path, kind, {"features": features, "labels": labels})
    found, again, other = (list_features(FeaturesOptions(path=path, seed=seed)) for seed in (0, 0, 1))
    assert found.problems == ()
    assert found.layout.endswith(", queries drawn")
    assert np.bincount(found.queries.labels).tolist() == [2, 3, 1]
    assert sorted([*found.train.rows, *found.queries.rows]) == list(range(30))
    for part in (found.train, found.queries):
        assert np.array_equal(part.labels, labels[part.rows])
        assert np.array_equal(part.features, features)
    assert np.array_equal(found.queries.rows, again.queries.rows)
    assert not np.array_equal(found.queries.rows, other.queries.rows)
    half = list_features(FeaturesOptions(path=path, test_fraction=0.4))
    assert np.bincount(half.queries.labels).tolist() == [4, 6, 2]


@pytest.mark.parametrize("bytewise", [False, True])
def test_strings_are_classes_in_sorted_order(tmp_path, bytewise):
    train = np.array(["dog 😀", "ant", "bee", "ant", "bee", "dog 😀"])
    test = np.array(["bee", "dog 😀", "ant"])
    if bytewise:
        train, test = np.char.encode(train, "utf-8"), np.char.encode(test, "utf-8")
    found = list_features(FeaturesOptions(path=saved(tmp_path, "npz", arrays(train_labels=train, test_labels=test))))
    assert found.problems == ()
    assert found.class_names == ("ant", "bee", "dog 😀")
    assert found.train.labels.tolist() == [2, 0, 1, 0, 1, 2]
    assert found.queries.labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize("written", [*WRITTEN_HOT, *(each for each in WRITTEN_SETS if each != "names with commas")])
def test_strings_say_what_they_say_in_lists(tmp_path, written):
    labels = np.array({**WRITTEN_HOT, **WRITTEN_SETS}[written])
    given = arrays(train_labels=np.tile(labels, 2), test_labels=np.char.encode(labels, "utf-8"))
    found = list_features(FeaturesOptions(path=saved(tmp_path, "npz", given)))
    assert found.problems == ()
    assert found.class_names == (("ant", "bee", "cat") if "names" in written else ("0", "1", "2"))
    assert found.train.labels.tolist() == HOT * 2
    assert found.queries.labels.tolist() == HOT


def test_strings_that_can_be_read_in_two_ways_are_a_problem_until_the_classes_are_named(tmp_path):
    given = arrays(train_labels=np.array(["cat/dog", "cat", "dog"] * 2), test_labels=np.array(["cat", "dog", "dog"]))
    path = saved(tmp_path, "npy", given)
    both = "label 'cat/dog' can be one class, or several that '/' parts"
    assert problems_of(path) == (
        f"{path}/train_labels.npy: row 0: {both}: put bars between several, or give class_names",
    )
    np.save(path / "class_names.npy", np.array(["cat", "cat/dog", "dog"]))
    assert problems_of(path) == ()


def test_strings_that_are_wrong_are_named_with_their_row(tmp_path):
    numbers = arrays(train_labels=np.array(["0 1", "1 2", "0 4"] * 2), test_labels=np.array(["4 1", "x", "0 2"]))
    path = saved(tmp_path, "npz", numbers)
    gaps = "labels are numbered up to 4, but training samples have only 4 of these 5"
    assert problems_of(path) == (
        f"{path}: train_labels: {gaps}: number them without gaps, or give class_names",
        f"{path}: test_labels: row 1: label 'x': want integers from 0 to 4, each once",
    )


@pytest.mark.parametrize(
    "names",
    [
        ["golden retriever", "labrador retriever", "tabby cat"],
        ["class 0", "class 1", "class 2"],
        ["tench, Tinca tinca", "goldfish, Carassius auratus", "hen"],
        ["3", "7", "11"],
        ["True", "False", "Maybe"],
    ],
)
def test_strings_with_blanks_commas_or_a_number_are_the_names_of_classes(tmp_path, names):
    given = arrays(train_labels=np.array(names * 2), test_labels=np.array(names))
    found = list_features(FeaturesOptions(path=saved(tmp_path, "npz", given)))
    assert (found.problems, found.class_names) == ((), tuple(sorted(names)))
    assert [found.class_names[c] for c in found.train.labels] == names * 2


@pytest.mark.parametrize(
    ("labels", "which"),
    [
        (["ant,cat", "bee", "bee, ant"], "'ant,cat' can be one class, or several that a comma parts"),
        (["Paris, France", "Lyon, France", "Rome"], "'Paris, France' can be one class, or several that a comma parts"),
        (["hot dog", "hot", "dog"], "'hot dog' can be one class, or several that a blank parts"),
        (["cat dog", "dog ant", "cat ant"], "'cat dog' can be one class, or several that a blank parts"),
    ],
)
def test_strings_that_may_be_several_classes_are_a_problem_until_the_classes_are_named(tmp_path, labels, which):
    given = arrays(train_labels=np.array(labels * 2), test_labels=np.array(labels))
    path = saved(tmp_path, "npz", given)
    both = f"label {which}: put bars between several, or give class_names"
    assert problems_of(path) == (f"{path}: train_labels: row 0: {both}",)
    np.savez(path, **given, class_names=np.array(sorted(labels)))
    assert problems_of(path) == ()


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_minus_1_stands_for_0_in_rows_that_have_no_0(tmp_path, dtype):
    signs = (2 * np.array(HOT) - 1).astype(dtype)
    given = arrays(train_labels=np.tile(signs, (2, 1)), test_labels=signs)
    found = list_features(FeaturesOptions(path=saved(tmp_path, "npz", given)))
    assert (found.problems, found.train.labels.tolist(), found.queries.labels.tolist()) == ((), HOT * 2, HOT)
    signs[0, 0] = 0
    np.savez(tmp_path / "f.npz", **arrays(train_labels=np.tile(signs, (2, 1)), test_labels=np.sign(signs)))
    assert "want N integers, N strings, or N x C values 0 or 1 (-1 or 1)" in problems_of(tmp_path / "f.npz")[0]


@pytest.mark.parametrize("labels", [np.array([[0, 1, 1], [0, 0, 1], [1, 0, 1]]), np.array(["0,2", "1,2", "2"])])
def test_a_class_that_every_sample_has_is_a_problem(tmp_path, labels):
    path = saved(tmp_path, "npz", arrays(train_labels=np.concatenate([labels, labels]), test_labels=labels))
    where = f"{path}: train_labels" + (": row 0" if labels.ndim == 1 else "")
    why = "which would make all relevant to each other: leave it out"
    assert problems_of(path) == (f"{where}: every sample has the label '2', {why}",)


@pytest.mark.parametrize(
    ("labels", "first"),
    [
        (np.array(["ant", "bee", "", "nan"]), "no label"),
        (np.array(["0 1", "1 0", "[]", "0 0"]), "the label '[]', which is none"),
        (np.array([[1, 0], [0, 1], [np.nan] * 2, [0, 0]]), "no 1"),
    ],
)
def test_labels_that_say_nothing_are_left_out_on_request(tmp_path, labels, first):
    path = saved(tmp_path, "npz", arrays(train_labels=labels[[0, 1, 2, 3, 1, 0]], test_labels=labels[:3]))
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}: train_labels: row 2: has {first}: ")
    assert "(3 rows without a label in all, the next " in problem
    found = list_features(FeaturesOptions(path=path, on_no_label="skip"))
    assert found.notes == (f"3 rows without a label left out, the first of them {path}: train_labels: row 2",)
    assert (found.problems, found.train.rows.tolist(), found.queries.rows.tolist()) == ((), [0, 1, 4, 5], [0, 1])
    assert np.bincount(found.train.labels).tolist() == [2, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float32, np.int64])
def test_multi_hot_labels_stay_so_unless_each_row_has_one_1(tmp_path, dtype):
    hot, one = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]]), np.eye(3)
    labels = {"train_labels": np.tile(hot, (2, 1)).astype(dtype), "test_labels": one.astype(dtype)}
    found = list_features(FeaturesOptions(path=saved(tmp_path, "npz", arrays(**labels))))
    assert found.problems == ()
    assert found.class_names == ("0", "1", "2")
    assert found.train.labels.tolist() == np.tile(hot, (2, 1)).tolist()
    assert found.queries.labels.dtype == np.uint8
    labels["train_labels"] = np.tile(one, (2, 1)).astype(dtype)
    np.savez(tmp_path / "one.npz", **arrays(**labels))
    single = list_features(FeaturesOptions(path=tmp_path / "one.npz"))
    assert single.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert single.train.labels.dtype == np.int64


def test_classes_are_named_by_an_array_or_a_text_file(tmp_path):
    named = saved(tmp_path, "npz", arrays(class_names=np.array(["zebra", "ant"])))
    assert list_features(FeaturesOptions(path=named)).class_names == ("zebra", "ant")
    folder = saved(tmp_path, "npy", arrays(train_labels=np.array(["x", "y"] * 3), test_labels=np.array(["x"] * 3)))
    (folder / "class_names.txt").write_text("\ufeffy\r\nx\r\n", encoding="utf-8")
    found = list_features(FeaturesOptions(path=folder))
    assert (found.class_names, found.train.labels.tolist()) == (("y", "x"), [1, 0] * 3)
    (folder / "class_names.txt").write_text("y\ny\n")
    assert problems_of(folder)[0] == f"{folder}/class_names.txt: names the class 'y' twice: want each class once"
    (folder / "class_names.txt").write_bytes(b"\xff\n")
    assert problems_of(folder) == (f"{folder}/class_names.txt:1: is not UTF-8 text: save the file as UTF-8",)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(tmp_path, monkeypatch, bad):
    monkeypatch.setattr("crh_tune.data.readers.features._CHUNK", 8)  # two rows at a time
    features = arrays()["train_features"]
    features[3, 1] = features[5, 0] = bad
    path = saved(tmp_path, "npy", arrays(train_features=features))
    where = f"{path}/train_features.npy"
    assert problems_of(path) == (f"{where}: row 3 holds NaN or infinity: want finite values",)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"test_features": np.ones((3, 5))},
         ["test_features: has 5 values a row, the training features have 4: want the same"]),
        ({"test_features": np.ones((4, 4))}, ["test_features: has 4 rows for 3 labels: want one label a row"]),
        ({"train_features": np.ones((6, 2, 2))},
         ["train_features: has the shape (6, 2, 2): want N x D, a row a sample"]),
        (
            {"train_features": np.ones((0, 4)), "train_labels": np.zeros(0, int)},
            ["train_features: has the shape (0, 4): want N x D, a row a sample"],
        ),
        (
            {"train_features": np.ones((6, 4), complex)},
            ["train_features: is of dtype complex128: want floats of 16, 32 or 64 bits, or integers"],
        ),
        (
            {"train_features": np.full((6, 4), "x")},
            ["train_features: is of dtype <U1: want floats of 16, 32 or 64 bits, or integers"],
        ),
        (
            {"train_labels": np.array([1, 2] * 3), "test_labels": np.array([3, 1, 3])},
            ["train_labels: no sample has the label 0: want labels that count from 0",
             "test_labels: class '3' has no training sample: add some, or leave it out"],
        ),
        ({"train_labels": np.array([0, 1, -1, 10**9, 0, 1])},
         ["train_labels: labels are numbered up to 1000000000, but training samples have only 3 of these 1000000001: "
          "number them without gaps, or give class_names",
          "train_labels: row 2 has the label '-1': want an integer from 0 to 8",
          "train_labels: row 3 has the label '1000000000': want an integer from 0 to 8"]),
        ({"train_labels": np.array([0, 0.5] * 3)},
         ["train_labels: is an array of shape (6,) and dtype float64: want N integers, like the other labels"]),
        ({"train_labels": np.ones((6, 1), int), "test_labels": np.ones((3, 2, 2))},
         ["train_labels: is an array of shape (6, 1) and dtype int64: "
          "want N integers, N strings, or N x C values 0 or 1 (-1 or 1)",
          "test_labels: is an array of shape (3, 2, 2) and dtype float64: "
          "want N integers, N strings, or N x C values 0 or 1 (-1 or 1)"]),
        ({"test_labels": np.array(["0", "1", "0"])},
         ["test_labels: is an array of shape (3,) and dtype <U1: want N integers, like the other labels"]),
        ({"train_labels": np.tile(np.array([[1, 1], [0, 1]]), (3, 1)), "test_labels": np.ones((3, 3), int)},
         ["test_labels: has 3 columns: want 2, one a class"]),
        ({"class_names": np.array(["x"])},
         [*(f"train_labels: row {row} has the label '1': want an integer from 0 to 0" for row in (1, 3, 5)),
          *(f"test_labels: row {row} has the label '1': want an integer from 0 to 0" for row in (0, 2)),
          "1 class: at least 2 are needed"]),
        ({"class_names": np.arange(2)}, ["class_names: is an array of shape (2,) and dtype int64: want C strings"]),
        (
            {"train_labels": np.zeros(6, int), "test_labels": np.zeros(3, int)},
            ["1 class: at least 2 are needed"],
        ),
    ],
)  # fmt: skip
def test_every_problem_names_the_array(tmp_path, changes, messages):
    path = saved(tmp_path, "npz", arrays(**changes))
    assert problems_of(path) == tuple(f"{path}: {message}" for message in messages)


def test_rows_without_a_label_are_counted_and_left_out_on_request(tmp_path):
    hot = {"train_labels": np.array([[1, 1], [0, 0], [0, 1], [1, 0], [0, 0], [0, 0]]), "test_labels": np.eye(3)[:, :2]}
    path = saved(tmp_path, "npz", arrays(**hot))
    assert problems_of(path) == (
        f"{path}: train_labels: row 1: has no 1: a sample without a label can be neither learnt nor found "
        f"(4 rows without a label in all, the next {path}: train_labels: row 4, {path}: train_labels: row 5): "
        "give each one, or set dataset.on_no_label: skip",
    )
    found = list_features(FeaturesOptions(path=path, on_no_label="skip"))
    note = f"4 rows without a label left out, the first of them {path}: train_labels: row 1"
    assert (found.problems, found.notes) == ((), (note,))
    assert (found.train.rows.tolist(), found.queries.rows.tolist()) == ([0, 2, 3], [0, 1])
    assert found.train.labels.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert ("note", note) in found.described()
    heard = []
    made = feature_dataset("features", found, FeaturesOptions(path=path), heard.append)
    assert heard == [note]
    assert np.array_equal(made.train.inputs[0:3], arrays()["train_features"][[0, 2, 3]])


def test_queries_are_drawn_from_the_rows_with_a_label(tmp_path):
    labels = np.eye(3)[np.arange(60) % 3][:, :2]
    path = saved(tmp_path, "npz", {"features": np.arange(120.0).reshape(60, 2), "labels": labels})
    found = list_features(FeaturesOptions(path=path, on_no_label="skip"))
    assert (found.problems, len(found.train), len(found.queries)) == ((), 32, 8)
    assert sorted([*found.train.rows, *found.queries.rows]) == np.flatnonzero(labels.any(axis=1)).tolist()
    for part in (found.train, found.queries):
        assert np.array_equal(part.labels, labels[part.rows].argmax(axis=1))


def test_problems_of_several_arrays_are_all_named(tmp_path):
    features = arrays()["train_features"]
    features[0, 0] = np.nan
    changes = {"train_features": features, "test_features": np.ones((2, 4)), "test_labels": np.array([0, 7, 8])}
    path = saved(tmp_path, "npy", arrays(**changes))
    gaps = "labels are numbered up to 8, but training samples have only 2 of these 9"
    assert problems_of(path) == (
        f"{path}/train_labels.npy: {gaps}: number them without gaps, or give class_names",
        f"{path}/train_features.npy: row 0 holds NaN or infinity: want finite values",
        f"{path}/test_features.npy: has 2 rows for 3 labels: want one label a row",
        f"{path}/test_labels.npy: class '7' has no training sample: add some, or leave it out",
        f"{path}/test_labels.npy: class '8' has no training sample: add some, or leave it out",
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"x": np.ones(3)},
            "want the arrays train_features, train_labels, test_features and test_labels, or features and labels;"
            " there: x",
        ),
        (
            arrays(test_features=None, test_labels=None),
            "want the arrays train_features, train_labels, test_features and test_labels, or features and labels;"
            " there: train_features, train_labels",
        ),
        (arrays(test_labels=None), "has no array test_labels: features and labels go together"),
        (
            arrays(train_features=None, database_features=np.ones((2, 4))),
            "has no array database_labels and no array train_features: features and labels go together",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_arrays_that_are_missing_are_asked_for(tmp_path, kind, given, message):
    path = saved(tmp_path, kind, given)
    with pytest.raises(DataError) as caught:
        list_features(FeaturesOptions(path=path))
    assert str(caught.value) == f"{path}: {message}"


def test_numbers_with_gaps_make_no_empty_classes(tmp_path):
    ids = np.sort(np.random.default_rng(0).permutation(9000)[:199])
    labels = np.repeat([0, *ids[ids > 0], 9000], 50)
    classes = len(np.unique(labels))
    given = {"features": np.ones((len(labels), 2)), "labels": labels}
    path = saved(tmp_path, "npy", given)
    assert problems_of(path) == (
        f"{path}/labels.npy: labels are numbered up to 9000, but training samples have only {classes} of these 9001: "
        "number them without gaps, or give class_names",
    )
    np.save(path / "class_names.npy", np.array([f"class {c}" for c in range(9001)]))
    assert problems_of(path) == ()


def test_a_number_that_only_queries_have_is_no_gap(tmp_path):
    path = saved(tmp_path, "npz", arrays(train_labels=np.array([0, 2] * 3)))
    untrained = "class '1' has no training sample: add some, or leave it out"
    assert problems_of(path) == (f"{path}: test_labels: {untrained}",)


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return exec, ("import crh_tune.data; crh_tune.data.sprung = True",)


def test_arrays_of_objects_are_refused_and_not_run(tmp_path):
    import crh_tune.data  # noqa: PLC0415

    path = saved(tmp_path, "npz", arrays(train_labels=np.array([Trap()] * 6, dtype=object)))
    with pytest.raises(DataError) as caught:
        list_features(FeaturesOptions(path=path))
    start = f"{path}: train_labels: cannot be read as an array of numbers or strings: Object arrays cannot be loaded"
    assert str(caught.value).startswith(start)
    folder = saved(tmp_path, "npy", arrays(train_features=np.array([Trap()] * 6, dtype=object)))
    with pytest.raises(DataError, match=r"train_features\.npy: cannot be read as .*: .*objects in dtype"):
        list_features(FeaturesOptions(path=folder))
    (folder / "train_features.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"train_features\.npy: cannot be read as an array of numbers or strings: "):
        list_features(FeaturesOptions(path=folder))
    assert not hasattr(crh_tune.data, "sprung")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_files_are_refused_in_one_line(tmp_path, kept):
    path = saved(tmp_path, "npz", arrays(train_features=np.random.default_rng(0).normal(size=(6, 400))))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    folder = saved(tmp_path, "npy", arrays())
    array = (folder / "train_labels.npy").read_bytes()
    (folder / "train_labels.npy").write_bytes(array[: int(kept * len(array)) if kept < 1 else kept])
    for where, broken in ((path, path), (folder / "train_labels.npy", folder)):
        with pytest.raises(DataError) as caught:
            list_features(FeaturesOptions(path=broken))
        assert str(caught.value).startswith(f"{where}: cannot be read as an array of numbers or strings: ")
        assert "\n" not in str(caught.value)


def test_a_damaged_array_in_an_archive_is_refused(tmp_path):
    path = saved(tmp_path, "npz", arrays())
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 150] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="train_features: cannot be read as an array of numbers or strings: Bad CRC-32"):
        list_features(FeaturesOptions(path=path))


def test_an_encrypted_archive_is_refused(tmp_path):
    path = saved(tmp_path, "npz", arrays())
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of each member, here and in the directory
        at = content.find(signature)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(signature, at + 4)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as an array of numbers or strings: .*encrypted"):
        list_features(FeaturesOptions(path=path))


def test_other_paths_are_refused(tmp_path):
    (tmp_path / "f.npy").write_bytes(b"x")
    for name, found in (("f.npy", "is neither"), ("none.npz", "does not exist")):
        with pytest.raises(DataError) as caught:
            list_features(FeaturesOptions(path=tmp_path / name))
        wanted = "path must be an .npz file, or a folder of .npy files"
        assert str(caught.value) == f"{tmp_path / name}: {found}: {wanted}"
    with pytest.raises(DataError, match=r"dataset.path is not given: --data"):
        list_features(FeaturesOptions())
    for options in ({"test_fraction": 0}, {"seed": -1}, {"size": 32}):
        with pytest.raises(ValidationError, match=next(iter(options))):
            FeaturesOptions(**options)


def test_values_whose_spread_cannot_be_told_are_problems(tmp_path):
    given = arrays()
    wide = given["train_features"].astype(np.float64) * 1e40
    assert problems_of(saved(tmp_path, "npz", {**given, "train_features": wide})) == ()
    wide[3, 1] = -1e151
    path = saved(tmp_path, "npz", {**given, "train_features": wide})
    assert problems_of(path) == (f"{path}: train_features: row 3 holds a value beyond 1e+150: scale them",)


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_arrays_of_other_names_are_listed(tmp_path, kind):
    path = saved(tmp_path, kind, {"X": np.zeros((4, 2)), "y": np.zeros(4)})
    with pytest.raises(DataError, match=r"or features and labels; there: X, y$"):
        list_features(FeaturesOptions(path=path))
