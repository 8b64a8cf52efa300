"""List files as people write them: every format, and every way in which a row can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crh_tune.data.listing import DataError
from crh_tune.data.readers.label_text import names_in
from crh_tune.data.readers.lists import ListsOptions, list_lists
from tests.data.readers.test_folder import touch

IMAGES = [f"img/{name}.jpg" for name in "abcdef"]


def listed(root: Path, train: str, test: str, database: str | None = None, **options):
    """Write the lists and the images a to f, then list them."""
    touch(root, *IMAGES)
    for name, text in (("train.txt", train), ("test.txt", test), ("database.txt", database)):
        if text is not None:
            (root / name).write_bytes(text.encode())
    return list_lists(ListsOptions(path=root, **options))


def rows(*labels: str, separator: str = " ", start: int = 0) -> str:
    """Rows of the images from number ``start`` on."""
    return "".join(f"{IMAGES[start + i]}{separator}{label}\n" for i, label in enumerate(labels))


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "  "])
def test_integers_are_classes(tmp_path, separator):
    train, test = rows("1", "0", "2", separator=separator), rows("2", "0", separator=separator, start=3)
    found = listed(tmp_path, train, test)
    assert found.problems == ()
    assert found.layout == "list files"
    assert found.root == tmp_path
    assert found.class_names == ("0", "1", "2")
    assert found.train.paths == tuple(IMAGES[:3])
    assert found.train.labels.tolist() == [1, 0, 2]
    assert found.train.labels.dtype == np.int64
    assert found.queries.paths == tuple(IMAGES[3:5])
    assert found.queries.labels.tolist() == [2, 0]
    assert found.database is None


@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_names_are_classes_in_sorted_order(tmp_path, separator):
    names = ["golden retriever 😀", "747", "ant"]
    found = listed(tmp_path, rows(*names, separator=separator), rows("ant", separator=separator, start=3))
    assert found.problems == ()
    assert found.class_names == ("747", "ant", "golden retriever 😀")
    assert found.train.labels.tolist() == [2, 0, 1]
    assert found.queries.labels.tolist() == [1]


def test_paths_may_hold_blanks_commas_and_emoji(tmp_path):
    names = ["my photo 1.JPG", "a,b 0 1.jpeg", "😀.png", "old.jpg copy.jpg"]
    touch(tmp_path, *names)
    text = "".join(f"{name} {i % 2} 1 1\n" for i, name in enumerate(names))
    found = listed(tmp_path, text, rows("1 0 0"))
    assert found.problems == ()
    assert found.train.paths == tuple(names)


@pytest.mark.parametrize(
    ("labels", "names", "train"),
    [
        (['"bee"', '"ant"', "bee"], ("ant", "bee"), [1, 0, 1]),
        (["2", '"0"', '"1"'], ("0", "1", "2"), [2, 0, 1]),
        (['"bee","ant"', '"cat",""', '"bee"'], ("ant", "bee", "cat"), [[1, 1, 0], [0, 0, 1], [0, 1, 0]]),
        (['"0","1","0"', '"1","0","1"', '"1","0","0"'], ("0", "1", "2"), [[0, 1, 0], [1, 0, 1], [1, 0, 0]]),
    ],
)
@pytest.mark.parametrize("separator", [",", "\t", " "])
def test_paths_and_labels_may_be_in_quotes_as_tables_write_them(tmp_path, labels, names, train, separator):
    paths = ["a,b.jpg", 'the "old" one.jpg', "in/.jpg folder/c.jpg"]
    touch(tmp_path, *paths)
    written = ['"' + path.replace('"', '""') + '"' for path in paths]
    text = "".join(f"{path}{separator}{label}\n" for path, label in zip(written, labels, strict=True))
    found = listed(tmp_path, text, rows(labels[1]))
    assert found.problems == ()
    assert found.train.paths == tuple(paths)
    assert found.class_names == names
    assert found.train.labels.tolist() == train


def test_quotes_say_where_a_path_ends(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    found = listed(tmp_path, '"a.jpg",bee.jpg fly\n"b.jpg","ant"\n', rows("ant"))
    assert found.problems == ()
    assert found.train.paths == ("a.jpg", "b.jpg")
    assert found.class_names == ("ant", "bee.jpg fly")
    found = listed(tmp_path, '"a.jpg",\n"b.jpg","ant"\n', rows("ant"))
    assert [each for each in found.problems if "has no label" in each]


def test_several_ones_in_a_row_make_multi_hot_labels(tmp_path):
    found = listed(tmp_path, rows("0 1 1", "1 0 0"), rows("0 0 1", start=2), rows("1 1 1", "0\t1,0", start=3))
    assert found.problems == ()
    assert found.layout == "list files with a database"
    assert found.class_names == ("0", "1", "2")
    assert found.train.labels.dtype == np.uint8
    assert found.train.labels.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert found.queries.labels.tolist() == [[0, 0, 1]]
    assert found.database.labels.tolist() == [[1, 1, 1], [0, 1, 0]]
    assert found.database.paths == tuple(IMAGES[3:5])


def test_exactly_one_1_everywhere_makes_class_indices(tmp_path):
    found = listed(tmp_path, rows("0 1", "1 0"), rows("0 1", start=2), rows("1 0", start=3))
    assert found.problems == ()
    assert [part.labels.tolist() for part in (found.train, found.queries, found.database)] == [[1, 0], [1], [0]]
    assert found.train.labels.dtype == np.int64


HOT = [[1, 0, 1], [0, 1, 0], [1, 1, 0]]
WRITTEN_HOT = {
    "savetxt": [
        "1.000000000000000000e+00 0.000000000000000000e+00 1.000000000000000000e+00",
        "0.0 1.0 0.0",
        "1. 1. 0.",
    ],
    "signs": ["1 -1 1", "-1 1 -1", "1 1 -1"],
    "float signs": ["1.0 -1.0 1.0", "-1.0 1.0 -1.0", "1.0 1.0 -1.0"],
    "truth": ["True,False,True", "false,true,false", "[TRUE, TRUE, FALSE]"],
    "answers": ["Y,N,Y", "n,y,n", "yes,yes,no"],
    "brackets": ["[1, 0, 1]", "[0 1 0]", '"[1, 1, 0]"'],
    "commas": ["1,0,1", "0,1,0", "1,1,0"],
    "bars": ["1|0|1", "0|1|0", "1|1|0"],
}
WRITTEN_SETS = {
    "indices with blanks": ["0 2", "1", "0 1"],
    "indices with commas": ["0,2", "1", "1, 0"],
    "indices with bars": ["0|2", "1", "0|1"],
    "indices in brackets": ["[0, 2]", "[1]", "[1, 0]"],
    "float indices": ["0.0 2.0", "1.0", "0.0 1.0"],
    "names with commas": ["ant,cat", "bee", "bee, ant"],
    "names with bars": ["ant|cat", "bee", "ant | bee"],
    "names with semicolons": ["ant;cat", "bee", "ant;bee"],
    "names with tabs": ["ant\tcat", "bee", "ant\tbee"],
    "names in brackets": ["['ant', 'cat']", "['bee']", "['bee', 'ant']"],
}


@pytest.mark.parametrize("separator", [" ", "\t", ","])
@pytest.mark.parametrize("written", [*WRITTEN_HOT, *WRITTEN_SETS])
def test_every_way_to_write_several_labels_is_read_the_same(tmp_path, written, separator):
    labels = {**WRITTEN_HOT, **WRITTEN_SETS}[written]
    found = listed(tmp_path, rows(*labels, separator=separator), rows(*labels, separator=separator, start=3))
    assert found.problems == ()
    assert found.class_names == (("ant", "bee", "cat") if "names" in written else ("0", "1", "2"))
    for part in (found.train, found.queries):
        assert part.labels.dtype == np.uint8
        assert part.labels.tolist() == HOT


def test_names_between_blanks_are_several_where_each_is_a_label_too(tmp_path):
    found = listed(tmp_path, rows("ant bee", "bee", "ant"), rows("ant", "bee", "bee ant", start=3))
    assert (found.problems, found.class_names) == ((), ("ant", "bee"))
    assert found.train.labels.tolist() == [[1, 1], [0, 1], [1, 0]]


def test_a_tab_parts_names_that_hold_blanks(tmp_path):
    train, test = rows("golden retriever\tcat", "old dog", separator="\t"), rows("cat", separator="\t", start=3)
    found = listed(tmp_path, train, test)
    assert (found.problems, found.class_names) == ((), ("cat", "golden retriever", "old dog"))
    assert found.train.labels.tolist() == [[1, 1, 0], [0, 0, 1]]


def test_a_blank_that_parts_names_or_belongs_to_one_is_a_problem_until_the_classes_are_named(tmp_path):
    train, test = rows("red car", "red bus", "car"), rows("car", "red car", start=3)
    both = "label 'red car' can be one class, or several that a blank parts"
    assert listed(tmp_path, train, test).problems == (
        f"{tmp_path}/train.txt:1: {both}: put bars between several, or name the classes in classes.txt",
    )
    (tmp_path / "classes.txt").write_text("red car\nred bus\ncar\n")
    one = listed(tmp_path, train, test)
    assert (one.problems, one.train.labels.tolist()) == ((), [0, 1, 2])
    (tmp_path / "classes.txt").write_text("red\ncar\nbus\n")
    several = listed(tmp_path, train, test)
    assert (several.problems, several.train.labels.tolist()) == ((), [[1, 1, 0], [1, 0, 1], [0, 1, 0]])
    commas = listed(tmp_path, rows("red car,red bus", "red bus", "red car"), rows("red car", start=3), classes=None)
    assert commas.problems != ()  # classes.txt still names other classes
    (tmp_path / "classes.txt").unlink()
    commas = listed(tmp_path, rows("red car,red bus", "red bus", "red car"), rows("red car", start=3))
    assert (commas.problems, commas.class_names) == ((), ("red bus", "red car"))


@pytest.mark.parametrize(
    ("labels", "both", "written"),
    [
        (["cat/dog", "cat", "dog"], "can be one class, or several that '/' parts", "put bars between several"),
        (["cat + dog", "cat", "dog"], "can be one class, or several that '+' parts", "put bars between several"),
        (["cat_dog", "cat,ant", "dog"], "can be one class, or several that '_' parts", "put bars between several"),
        (["cat/dog", "dog/ant", "cat/ant"], "can be one class, or several that '/' parts", "put bars between several"),
        (["0 & 1", "2 & 0", "1 & 2"], "can be one class, or several that '&' parts", "put bars between several"),
        (["cat,.9", "dog,.8"], "can be 2 classes, or hold a value '.9' that is no class", "leave out what is no class"),
        (["dog|cat|True", "dog|False"],
         "can be 3 classes, or hold a value 'True' that is no class", "leave out what is no class"),
        *(([first, "ant", "bee"], "can be class names, or names with a value each",
           "write the names that apply with bars between, or a 0 or 1 for every class")
          for first in ("{'cat': 1, 'dog': 0}", '{"labels": ["ant", "bee"]}', "cat:0.9 dog:0.1", "cat=1;dog=0")),
        *(([first, other], f"can be one class, or a 0 or 1 for each of {count} classes",
           "put blanks between the 0s and 1s")
          for first, other, count in (("0101010101", "1101010101", 10), ("10", "01", 2), ("0/1/0", "1/0/0", 3))),
    ],
)  # fmt: skip
def test_labels_that_can_be_read_in_two_ways_are_a_problem_until_the_classes_are_named(tmp_path, labels, both, written):
    train, test = rows(*labels), rows(*labels[:1], start=3)
    assert listed(tmp_path, train, test).problems == (
        f"{tmp_path}/train.txt:1: label {labels[0]!r} {both}: {written}, or name the classes in classes.txt",
    )
    (tmp_path / "classes.txt").write_text("\n".join(labels))
    assert listed(tmp_path, train, test).problems == ()


@pytest.mark.parametrize(
    "labels",
    [
        ["GO:0008150,GO:0003674", "GO:0008150", "GO:0003674"],
        ["001.Black_footed_Albatross", "002.Laysan_Albatross", "sea-lion"],
        ["16:9", "4:3", "C++"],
        ["animal/cat", "animal/dog", "R&B"],
        ["True", "False", "True"],
        ["yes", "no", "maybe"],
    ],
)
def test_signs_numbers_and_answers_can_be_in_names(tmp_path, labels):
    found = listed(tmp_path, rows(*labels), rows(*labels, start=3))
    assert found.problems == ()
    assert set(found.class_names) >= set(labels[1:])


def test_names_of_two_words_that_all_come_again_are_names():
    for names in (
        {"red_square", "red_disc", "blue_square", "blue_disc"},
        {"in/day", "in/night", "out/day", "out/night"},
    ):
        assert names_in(names, None) == ({name: (name,) for name in names}, None)


@pytest.mark.parametrize(
    ("labels", "shared"),
    [
        (["cat,train", "dog,train", "cat,train"], "train"),
        (["0 3", "1 3", "2,3"], "3"),
        (["0 1 1", "0 0 1", "1 0 1"], "2"),
    ],
)
def test_a_class_that_every_sample_has_is_a_problem(tmp_path, labels, shared):
    why = "which would make all relevant to each other: leave it out"
    assert listed(tmp_path, rows(*labels), rows(*labels, start=3)).problems == (
        f"{tmp_path}/train.txt:1: every sample has the label {shared!r}, {why}",
    )


def test_answers_are_no_indices(tmp_path):
    found = listed(tmp_path, rows("0 2", "1", "yes no"), rows("2", start=3))
    assert found.problems == (f"{tmp_path}/train.txt:3: label 'yes no': want integers from 0 to 2, each once",)


def test_rows_that_can_be_bits_or_indices_are_a_problem(tmp_path):
    found = listed(tmp_path, rows("0 1", "1", "1 0"), rows("0", start=3))
    both = "label '0 1' can be a 0 or 1 for each of two classes, or the classes 0 and 1"
    assert found.problems == (f"{tmp_path}/train.txt:1: {both}: write names, or a 0 or 1 for every class",)


def test_rows_that_mix_0_and_minus_1_are_no_bits(tmp_path):
    found = listed(tmp_path, rows("0 1 1", "1 -1 0", "1 -1 1", "1 0 0"), rows("0 1 0", start=4))
    assert found.problems == tuple(
        f"{tmp_path}/train.txt:{row}: label {label!r}: want 3 values, each 0 or 1"
        for row, label in ((2, "1 -1 0"), (3, "1 -1 1"))
    )


def test_numbers_that_are_neither_bits_nor_indices_are_named(tmp_path):
    found = listed(tmp_path, rows("0 2", "1", "2 2 0", "0.5 0.5"), rows("1", start=4))
    assert found.problems == tuple(
        f"{tmp_path}/train.txt:{row}: label {label!r}: want integers from 0 to 2, each once"
        for row, label in ((3, "2 2 0"), (4, "0.5 0.5"))
    )


def test_classes_are_named_by_a_file(tmp_path):
    (tmp_path / "classes.txt").write_text("zebra\nant\n\n")
    assert listed(tmp_path, rows("0", "1"), rows("1", start=2)).class_names == ("zebra", "ant")
    named = listed(tmp_path, rows("ant", "zebra"), rows("ant", start=2))
    assert (named.class_names, named.train.labels.tolist()) == (("zebra", "ant"), [1, 0])
    (tmp_path / "numbers.txt").write_text("1\n2\n")
    numbered = listed(tmp_path, rows("1", "2"), rows("2", start=2), classes="numbers.txt")
    assert (numbered.class_names, numbered.train.labels.tolist(), numbered.problems) == (("1", "2"), [0, 1], ())


def test_lists_lie_where_the_options_say(tmp_path):
    data, lists = tmp_path / "data", tmp_path / "lists"
    touch(data, *IMAGES)
    lists.mkdir()
    (lists / "a.csv").write_text(rows("x", "y", separator=","))
    (data / "b.txt").write_text(rows("x", start=2))
    found = list_lists(ListsOptions(path=data, train=str(lists / "a.csv"), test="b.txt", database="b.txt"))
    assert found.train.paths == tuple(IMAGES[:2])
    assert found.database == found.queries
    with pytest.raises(DataError) as caught:
        list_lists(ListsOptions(path=data, test="b.txt", database="none.txt"))
    message = f"{data}: files were looked for and not found: {data}/train.txt, {data}/none.txt"
    assert str(caught.value) == message


def test_bom_carriage_returns_backslashes_and_blank_lines_are_no_obstacle(tmp_path):
    found = listed(tmp_path, "\ufeffimg\\a.jpg 0\r\n\r\n.\\img\\b.jpg 1\r\n", "./img//c.jpg 1")
    assert found.problems == ()
    assert found.train.paths == ("img/a.jpg", "img/b.jpg")
    assert found.train.labels.tolist() == [0, 1]
    assert found.queries.paths == ("img/c.jpg",)


def test_wrong_rows_of_bits_are_named(tmp_path):
    text = rows("0 1 1", "1 0 0", "1 0", "0 0 0", "2 0 1", "cat")
    touch(tmp_path, "img/x.jpg", "img/y.jpg")
    train = tmp_path / "train.txt"
    found = listed(tmp_path, text, "img/x.jpg 0 1 1 0\nimg/y.jpg 1 0 0\n")
    assert found.problems == (
        f"{train}:3: has 2 values 0 or 1: want 3, one a class",
        f"{train}:5: label '2 0 1': want 3 values, each 0 or 1",
        f"{train}:6: label 'cat': want 3 values, each 0 or 1",
        f"{tmp_path}/test.txt:1: has 4 values 0 or 1: want 3, one a class",
        f"{train}:4: has no 1: a sample without a label can be neither learnt nor found "
        "(1 row without a label in all): give each one, or set dataset.on_no_label: skip",
    )
    assert found.train.paths == tuple(IMAGES[:2])
    assert found.train.labels.tolist() == [[0, 1, 1], [1, 0, 0]]


def test_rows_without_a_label_are_counted_and_left_out_on_request(tmp_path):
    train, test = rows("0 1 1", "0 0 0", "1 0 0"), rows("0 0 0", "0 1 1", start=3)
    (problem,) = listed(tmp_path, train, test).problems
    assert problem.startswith(f"{tmp_path}/train.txt:2: has no 1: ")
    assert f"(2 rows without a label in all, the next {tmp_path}/test.txt:1)" in problem
    found = listed(tmp_path, train, test, on_no_label="skip")
    assert found.problems == ()
    assert found.notes == (f"2 rows without a label left out, the first of them {tmp_path}/train.txt:2",)
    assert (found.train.paths, found.queries.paths) == ((IMAGES[0], IMAGES[2]), (IMAGES[4],))
    assert found.train.labels.tolist() == [[0, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("nothing", ["", ",", "[]", "nan", "NaN", "None", "null", "['']", "[nan, None]", '""'])
@pytest.mark.parametrize("classes", [None, "ant\nbee\n"])
@pytest.mark.parametrize(
    "labels", [("ant", "bee", "bee"), ("ant", "bee", "ant,bee"), ("0 1", "1 0", "1 1"), ("0", "1", "1")]
)
def test_a_row_that_says_nothing_is_without_a_label(tmp_path, nothing, classes, labels):
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
    train, test = rows(*labels[:2], nothing, nothing), rows(labels[2], nothing, start=4)
    (problem,) = listed(tmp_path, train, test).problems
    said = nothing.strip(",")
    what = f"has the label {said!r}, which is none" if said else "has no label"
    assert problem == (
        f"{tmp_path}/train.txt:3: {what}: a sample without a label can be neither learnt nor found (3 rows without a "
        f"label in all, the next {tmp_path}/train.txt:4, {tmp_path}/test.txt:2): give each one, or set "
        "dataset.on_no_label: skip"
    )
    found = listed(tmp_path, train, test, on_no_label="skip")
    assert found.problems == ()
    assert found.notes == (f"3 rows without a label left out, the first of them {tmp_path}/train.txt:3",)
    assert (found.train.paths, found.queries.paths) == (tuple(IMAGES[:2]), (IMAGES[4],))
    assert len(found.class_names) == 2


def test_a_class_that_a_file_names_none_is_one(tmp_path):
    (tmp_path / "classes.txt").write_text("None\nMild\n")
    found = listed(tmp_path, rows("None", "Mild", "['None']", "None, Mild"), rows("None", start=4))
    assert found.problems == ()
    assert found.train.labels.tolist() == [[1, 0], [0, 1], [1, 0], [1, 1]]


def test_empty_cells_of_a_table_are_no_class(tmp_path):
    found = listed(tmp_path, rows("ant,nan", "bee,ant", "bee,,None", separator=","), rows("ant,", start=3))
    assert (found.problems, found.class_names) == ((), ("ant", "bee"))
    assert found.train.labels.tolist() == [[1, 0], [1, 1], [0, 1]]


def test_lists_without_any_label_are_problems(tmp_path):
    found = listed(tmp_path, rows("", "nan"), rows("[]", start=2), on_no_label="skip")
    assert found.problems == (f"{tmp_path}/train.txt: 0 classes: at least 2 are needed",)


def test_wrong_labels_are_named(tmp_path):
    (tmp_path / "classes.txt").write_text("x\ny\n")
    found = listed(tmp_path, rows("0", "1", "2", "-1", "x"), rows("1", start=5))
    assert found.problems == (
        f"{tmp_path}/train.txt:3: label '2': want an integer from 0 to 1",
        f"{tmp_path}/train.txt:4: label '-1': want an integer from 0 to 1",
        f"{tmp_path}/train.txt:5: label 'x': want an integer from 0 to 1",
    )
    assert found.train.labels.tolist() == [0, 1]
    unknown = listed(tmp_path, rows("x", "y", "z"), rows("y", start=3))
    assert unknown.problems == (f"{tmp_path}/train.txt:3: label 'z': want the name of a class",)


def test_a_stray_number_makes_no_million_classes(tmp_path):
    found = listed(tmp_path, rows("0", "1", "20240131"), rows("1", start=3))
    assert found.class_names == ("0", "1", "2", "3")
    gaps = "labels are numbered up to 20240131, but training samples have only 3 of these 20240132"
    assert found.problems == (
        f"{tmp_path}/train.txt: {gaps}: number them without gaps, or name the classes in classes.txt",
        f"{tmp_path}/train.txt:3: label '20240131': want an integer from 0 to 3",
    )


def test_numbers_with_gaps_are_a_problem_unless_classes_are_named(tmp_path):
    train, test = rows("0", "1", "4", "0"), rows("1", "4", start=4)
    gaps = "labels are numbered up to 4, but training samples have only 3 of these 5"
    assert listed(tmp_path, train, test).problems == (
        f"{tmp_path}/train.txt: {gaps}: number them without gaps, or name the classes in classes.txt",
    )
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    assert listed(tmp_path, train, test).problems == ()


def test_labels_from_1_and_classes_without_training_images_are_problems(tmp_path):
    found = listed(tmp_path, rows("1", "2", "1"), rows("3", start=3))
    assert found.problems == (
        f"{tmp_path}/train.txt:1: no row has the label 0: want labels that count from 0",
        f"{tmp_path}/test.txt: class '3' has no training sample: add some, or leave it out",
    )


def test_rows_that_are_none_and_paths_that_lead_out_are_named(tmp_path):
    touch(tmp_path.parent, "outside.jpg")
    train = f"path,label\n{rows('0', '1')}img/c.txt 0\n../outside.jpg 1\n/etc/x.jpg 0\nimg/../../outside.jpg 1\n"
    found = listed(tmp_path, train, rows("0", start=3))
    wanted = "want the path of an image, a blank, tab or comma, and its label (or 0 or 1 for every class)"
    where = f"{tmp_path}/train.txt"
    assert found.problems == (
        f"{where}:1: 'path,label' is no row of a list: {wanted}",
        f"{where}:4: 'img/c.txt 0' is no row of a list: {wanted}",
        f"{where}:5: '../outside.jpg' leads out of the data folder {tmp_path}",
        f"{where}:6: '/etc/x.jpg' leads out of the data folder {tmp_path}",
        f"{where}:7: 'img/../../outside.jpg' leads out of the data folder {tmp_path}",
    )
    assert found.train.paths == tuple(IMAGES[:2])


def test_absolute_paths_may_lie_in_the_data_folder(tmp_path):
    data, link = tmp_path / "data", tmp_path / "link"
    data.mkdir()
    link.symlink_to(data)
    train = f"{data}/img/a.jpg 0\n{data}/x/../img/b.jpg 1\n"
    for root in (data, link):
        found = listed(root, train, f"{link}/img/c.jpg 0\n" if root == link else rows("0", start=2))
        assert found.problems == ()
        assert (found.train.paths, found.queries.paths) == (tuple(IMAGES[:2]), (IMAGES[2],))
    beside = [f"{data}-2/img/a.jpg", f"{data}/../img/a.jpg"]
    found = listed(data, train + "".join(f"{path} 1\n" for path in beside), f"{data}/img/a.jpg 0\n")
    assert found.problems == (
        *(f"{data}/train.txt:{row}: {beside[row - 3]!r} leads out of the data folder {data}" for row in (3, 4)),
        f"{data}/test.txt:1: img/a.jpg is a training image ({data}/train.txt:1): want other queries",
    )


def test_images_that_are_not_there_are_named_once(tmp_path):
    gone = "img/gone.jpg 0\n"
    found = listed(tmp_path, rows("0", "1") + gone, rows("0", start=2), gone)
    assert found.problems == (f"{tmp_path}/img/gone.jpg: does not exist, but {tmp_path}/train.txt:3 lists it",)


def test_an_image_has_one_label_and_no_query_is_listed_elsewhere(tmp_path):
    found = listed(tmp_path, rows("0", "1") + rows("1"), rows("1", "0", start=1), rows("0", "1", start=2))
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    assert found.problems == (
        f"{train}:3: img/a.jpg has another label at {train}:1: want one",
        f"{test}:1: img/b.jpg is a training image ({train}:2): want other queries",
        f"{tmp_path}/database.txt:1: img/c.jpg is a query ({test}:2): want it in one of the two lists",
    )


def test_text_that_is_no_utf8_is_named_with_its_line(tmp_path):
    touch(tmp_path, *IMAGES)
    (tmp_path / "train.txt").write_bytes(b"img/a.jpg 0\nimg/\xff.jpg 1\n")
    (tmp_path / "test.txt").write_bytes("img/c.jpg 0\n".encode("utf-16"))
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    assert list_lists(ListsOptions(path=tmp_path)).problems == (
        f"{tmp_path}/classes.txt:1: is not UTF-8 text: save the file as UTF-8",
        f"{tmp_path}/train.txt:2: is not UTF-8 text: save the file as UTF-8",
        f"{tmp_path}/test.txt:1: is not UTF-8 text: save the file as UTF-8",
        f"{tmp_path}/train.txt: 0 classes: at least 2 are needed",
    )


def test_empty_lists_and_repeated_class_names_are_problems(tmp_path):
    (tmp_path / "classes.txt").write_text("x\ny\nx\n")
    assert listed(tmp_path, rows("0", "1"), "\n").problems == (
        f"{tmp_path}/classes.txt:3: class 'x' is in line 1 already",
        f"{tmp_path}/test.txt: has no rows: want the path of an image and its label a line",
    )


def test_images_that_a_list_has_twice_are_noted(tmp_path):
    train = rows("cat", "dog") + rows("cat")
    found = listed(tmp_path, train, rows("cat", "dog", start=3))
    assert found.problems == ()
    assert found.notes == (
        "1 row names an image that its list has already, so that it counts more than once: "
        f"{tmp_path}/train.txt:3 {IMAGES[0]}",
    )
