"""NABirds in its text files, small, and similarities computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crh_tune.data.listing import DataError
from crh_tune.data.readers.nabirds import NABirdsOptions, list_nabirds
from tests.data.readers.test_folder import touch

#   0 Birds - 1 Ducks - 295 Mallard, 1010 Mallard
#           - 2 Hawks - 3 Large Hawks - 817 Red-tailed Hawk (Dark morph)
FILES = {
    "images.txt": "a-1 0817/a1.jpg\nb-2 0295/b 2.jpg\nc-3 1010/c3.jpg\nd-4 0817/d4.jpg\n",
    "image_class_labels.txt": "a-1 817\nb-2 295\nc-3 1010\nd-4 817\n",
    "train_test_split.txt": "a-1 1\nb-2 1\nc-3 1\nd-4 0\n",
    "classes.txt": "0 Birds\n1 Ducks\n2 Hawks\n3 Large Hawks\n295 Mallard\n1010 Mallard\n"
    "817 Red-tailed Hawk (Dark morph)\n",
    "hierarchy.txt": "1 0\n2 0\n3 2\n295 1\n1010 1\n817 3\n",
}
IMAGES = ("images/0817/a1.jpg", "images/0295/b 2.jpg", "images/1010/c3.jpg", "images/0817/d4.jpg")


def listed(root: Path, **changes: str | bytes | None):
    """Write the files, some of them changed or left out, then list them."""
    touch(root, *IMAGES)
    for name, text in {**FILES, **{f"{name}.txt": text for name, text in changes.items()}}.items():
        if text is not None:
            (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return list_nabirds(NABirdsOptions(path=root))


def test_labels_are_ranks_of_the_class_ids_in_use(tmp_path):
    found = listed(tmp_path)
    assert found.problems == ()
    assert found.layout == "text files of NABirds"
    assert found.class_names == ("Mallard (295)", "Red-tailed Hawk (Dark morph)", "Mallard (1010)")
    assert found.train.paths == IMAGES[:3]
    assert found.train.labels.tolist() == [1, 0, 2]
    assert found.train.labels.dtype == np.int64
    assert found.queries.paths == IMAGES[3:]
    assert found.queries.labels.tolist() == [1]
    assert found.database is None


def test_the_reference_is_wu_palmer_similarity(tmp_path):
    # Depths: Mallards 3, the hawk 4; the Mallards meet at depth 2, a Mallard and the hawk at the root, 1.
    wanted = np.array([[1, 2 / 7, 4 / 6], [2 / 7, 1, 2 / 7], [4 / 6, 2 / 7, 1]])
    assert listed(tmp_path).reference == pytest.approx(wanted, abs=1e-15)


def test_a_class_may_be_above_another(tmp_path):
    found = listed(tmp_path, hierarchy="1 0\n2 0\n3 2\n295 1\n1010 295\n817 3\n")
    assert found.reference[0].tolist() == pytest.approx([1, 2 / 7, 6 / 7])


def test_without_a_hierarchy_there_is_no_reference(tmp_path):
    found = listed(tmp_path, hierarchy=None)
    assert (found.reference, found.problems) == (None, ())


@pytest.mark.parametrize(
    ("hierarchy", "message"),
    [
        ("1 0\n2 3\n3 2\n295 1\n1010 1\n817 3\n", "class 817 is below itself (817 in 3 in 2 in 3): want a tree"),
        ("1 0\n295 1\n1010 1\n817 3\n3 2\n", "class 817 ends at 2, class 295 at 0: a parent is missing; want one root"),
        ("1 0\n2 0\n3 2\n295 1\n1010 1\n", "class 817 ends at 817, class 295 at 0: a parent is missing; want one root"),
    ],
)
def test_hierarchies_that_are_no_trees_are_named(tmp_path, hierarchy, message):
    found = listed(tmp_path, hierarchy=hierarchy)
    assert found.problems == (f"{tmp_path}/hierarchy.txt: {message}",)
    assert found.reference is None


def test_bom_carriage_returns_and_backslashes_are_no_obstacle(tmp_path):
    windows = {name.removesuffix(".txt"): "\ufeff" + text.replace("\n", "\r\n") for name, text in FILES.items()}
    found = listed(tmp_path, **{**windows, "images": windows["images"].replace("/", "\\")})
    assert found.problems == ()
    assert (found.train.paths, found.queries.paths) == (IMAGES[:3], IMAGES[3:])
    assert found.class_names == ("Mallard (295)", "Red-tailed Hawk (Dark morph)", "Mallard (1010)")
    assert np.array_equal(found.reference, listed(tmp_path).reference)


def test_every_problem_is_named(tmp_path):
    found = listed(
        tmp_path,
        images=FILES["images.txt"] + "e-5 ../../e.jpg\nf-6 0817/f6.jpg\ng-7 0817/a1.jpg\nh-8\na-1 0817/other.jpg\n"
        "i-9 0295/i9.jpg\nj-10 0999/j.jpg\n",
        image_class_labels=FILES["image_class_labels.txt"] + "e-5 817\ng-7 hawk\ni-9 295\nj-10 999\n",
        train_test_split=FILES["train_test_split.txt"] + "i-9 2\nj-10 0\n",
        hierarchy=None,
    )
    assert found.problems == (
        f"{tmp_path}/images.txt:8: 'h-8' stands alone: want two fields",
        f"{tmp_path}/images.txt:9: a-1 has another row above: want one",
        f"{tmp_path}/images.txt: 'images/../../e.jpg' leads out of the data folder {tmp_path}",
        f"{tmp_path}/image_class_labels.txt: image f-6 has the label (none): want the number of a class",
        f"{tmp_path}/image_class_labels.txt: image g-7 has the label hawk: want the number of a class",
        f"{tmp_path}/train_test_split.txt: image i-9 has the side 2: want 1 (train) or 0 (test)",
        f"{tmp_path}/classes.txt: class 999 is in use and has no name: add its row",
        f"{tmp_path}/image_class_labels.txt: class '999' has no training sample: add some, or leave it out",
        f"{tmp_path}/images/0999/j.jpg: does not exist, but images.txt lists it",
    )


def test_text_that_is_no_utf8_is_named_with_its_line(tmp_path):
    found = listed(tmp_path, classes=b"295 Mallard\n817 Caf\xe9\n")
    assert found.problems[0] == f"{tmp_path}/classes.txt:2: is not UTF-8 text: save the file as UTF-8"


def test_files_that_are_missing_are_asked_for(tmp_path):
    with pytest.raises(DataError) as caught:
        listed(tmp_path, images=None, classes=None)
    message = f"{tmp_path}: files were looked for and not found: {tmp_path}/images.txt, {tmp_path}/classes.txt"
    assert str(caught.value) == message
