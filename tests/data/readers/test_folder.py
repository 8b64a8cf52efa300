"""Class folders as people have them, listed path by path, and what is said about broken ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from crh_tune.data.listing import IMAGE_SUFFIXES, DataError
from crh_tune.data.readers.files import missing_files, stratified_draw
from crh_tune.data.readers.folder import FolderOptions, list_folder

SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))
NO_CLASSES = "neither train/ with one of test/, testing/, val/, valid/, validation/ nor one folder a class is there"


def touch(root: Path, *paths: str) -> Path:
    """Files of one byte; readers never look into an image."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def listed(root: Path, **options):
    return list_folder(FolderOptions(path=root, **options))


def test_train_and_test_are_listed_by_class_and_then_by_name(tmp_path):
    touch(tmp_path, "train/cat/b.JPG", "train/cat/a.png", "train/cat/2/z.jpeg", "train/ant/x.webp")
    touch(tmp_path, "test/cat/q.jpg", "test/ant/b.tiff", "test/ant/a.gif")
    found = listed(tmp_path)
    assert found.layout == "class folders under train/ and test/"
    assert found.root == tmp_path
    assert found.class_names == ("ant", "cat")
    assert found.train.paths == ("train/ant/x.webp", "train/cat/2/z.jpeg", "train/cat/a.png", "train/cat/b.JPG")
    assert found.train.labels.tolist() == [0, 1, 1, 1]
    assert found.train.labels.dtype == np.int64
    assert found.queries.paths == ("test/ant/a.gif", "test/ant/b.tiff", "test/cat/q.jpg")
    assert found.queries.labels.tolist() == [0, 0, 1]
    assert (found.database, found.reference, found.problems) == (None, None, ())


@pytest.mark.parametrize("train", ["train", "Train", "training", "TRAINING"])
@pytest.mark.parametrize("test", ["val", "valid", "validation", "Test", "testing", "Val"])
def test_other_names_stand_in_for_train_and_test(tmp_path, train, test):
    touch(tmp_path, f"{train}/a/1.jpg", f"{train}/b/2.jpg", f"{test}/a/3.jpg")
    found = listed(tmp_path)
    assert found.layout == f"class folders under {train}/ and {test}/"
    assert (found.class_names, found.problems) == (("a", "b"), ())
    assert found.train.paths == (f"{train}/a/1.jpg", f"{train}/b/2.jpg")
    assert found.queries.paths == (f"{test}/a/3.jpg",)


def test_what_stands_in_and_is_left_out_is_told(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "Validation/a/4.jpg", "test/b/5.jpg")
    found = listed(tmp_path)
    assert found.layout == "class folders under train/ and test/ (val/, Validation/ left out)"
    assert found.queries.paths == ("test/b/5.jpg",)


def test_a_test_folder_without_classes_gives_way_to_one_with(tmp_path):
    """As in ImageNet, whose test images have no labels."""
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/3.jpg")
    assert listed(tmp_path).problems[0].startswith(f"{tmp_path}/test: 1 image outside of any class folder")
    touch(tmp_path, "val/a/4.jpg")
    found = listed(tmp_path)
    assert found.layout == "class folders under train/ and val/ (test/ left out)"
    assert (found.queries.paths, found.problems) == (("val/a/4.jpg",), ())


def test_images_of_kinds_that_are_not_read_are_noted(tmp_path):
    touch(tmp_path, "train/a/1.jfif", "train/b/2.jpg", "test/a/3.JFIF")
    found = listed(tmp_path)
    assert (len(found.train), len(found.queries), found.notes) == (2, 1, ())
    touch(tmp_path, "train/a/IMG_1.heic", "train/b/x/2.NEF", "train/a/notes.txt")
    one_kind = "1 image of kinds that are not read: .heic (a/IMG_1.heic): convert them"
    touch(tmp_path / "drawn", "a/1.jpg", "a/2.jpg", "b/1.jpg", "a/IMG_1.heic")
    assert listed(tmp_path / "drawn").notes == (one_kind,)
    touch(tmp_path, "test/a/IMG_0.HEIC")
    found = listed(tmp_path)
    assert found.problems == ()
    shown = ".heic (test/a/IMG_0.HEIC), .nef (train/b/x/2.NEF)"
    assert found.notes == (f"3 images of kinds that are not read: {shown}: convert them",)


def test_names_with_spaces_quotes_and_emoji_stay_as_they_are(tmp_path):
    names = ['"quoted" it\'s', "a, b", "ünïcode", "😀 smile"]
    touch(tmp_path, *(f"{side}/{name}/my photo 😀.jpg" for side in ("train", "test") for name in names))
    found = listed(tmp_path)
    assert found.class_names == tuple(names)
    assert found.train.paths == tuple(f"train/{name}/my photo 😀.jpg" for name in names)
    assert found.problems == ()


def test_what_programs_leave_behind_and_other_files_are_not_listed(tmp_path):
    images = ["train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg"]
    touch(tmp_path, *images, "train/a/Thumbs.db", "train/a/._1.jpg", "train/b/.hidden/h.jpg", "train/b/notes.txt")
    touch(tmp_path, "train/.ipynb_checkpoints/1.jpg", "__MACOSX/train/a/1.jpg", "test/__MACOSX/3.jpg", "README.md")
    found = listed(tmp_path)
    assert [*found.train.paths, *found.queries.paths] == images
    assert found.class_names == ("a", "b")
    assert found.problems == ()


def test_one_folder_is_drawn_class_by_class(tmp_path):
    sizes = {"a": 10, "b": 5, "pair": 2, "single": 1}
    touch(tmp_path, *(f"{name}/{i:02d}.jpg" for name, size in sizes.items() for i in range(size)))
    found = listed(tmp_path)
    assert found.layout == "class folders, test queries drawn"
    assert found.class_names == tuple(sizes)
    assert np.bincount(found.queries.labels, minlength=4).tolist() == [2, 1, 1, 0]
    assert np.bincount(found.train.labels, minlength=4).tolist() == [8, 4, 1, 1]
    for part in (found.train, found.queries):
        assert part.paths == tuple(sorted(part.paths))
        assert [path.split("/")[0] for path in part.paths] == [found.class_names[c] for c in part.labels]
    assert len({*found.train.paths, *found.queries.paths}) == 18
    assert found.problems == ()


def test_seed_and_fraction_decide_the_draw(tmp_path):
    touch(tmp_path, *(f"{name}/{i}.jpg" for name in "ab" for i in range(40)))
    drawn = [listed(tmp_path, seed=seed).queries.paths for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert np.bincount(listed(tmp_path, test_fraction=0.5).queries.labels).tolist() == [20, 20]
    assert np.bincount(listed(tmp_path, test_fraction=0.99).train.labels).tolist() == [1, 1]


@pytest.mark.parametrize("options", [{"test_fraction": 0}, {"test_fraction": 1.0}, {"seed": -1}, {"fraction": 0.2}])
def test_other_options_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        FolderOptions(**options)


def test_every_problem_is_named(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/text/a.txt", "train/text/b.csv", "test/a/2.jpg", "test/new/3.jpg")
    touch(tmp_path, "train/loose 1.jpg", "train/loose 2.jpg")
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "train/a/dead.jpg").symlink_to(tmp_path / "gone.jpg")
    train = tmp_path / "train"
    found = listed(tmp_path)
    assert found.problems == (
        f"{train}: 2 images outside of any class folder, such as loose 1.jpg: move them into the folder of their class",
        f"{train}/a/dead.jpg: is a link to a file that does not exist: restore it, or remove it",
        f"{train}/empty: is empty: put the images of the class into it, or remove it",
        f"{train}/text: holds 2 files but no image; images end in {SUFFIXES}",
        f"{tmp_path}/test/new: has no counterpart in {train}: add training images, or remove it",
    )
    assert found.class_names == ("a", "empty", "new", "text")


def test_one_class_is_a_problem(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "test/a/2.jpg")
    assert listed(tmp_path).problems == (f"{tmp_path}: 1 class: at least 2 are needed",)
    assert listed(tmp_path / "train").problems == (
        f"{tmp_path}/train: 1 class: at least 2 are needed",
        f"{tmp_path}/train: no class has two images: one to train on and one to ask for are needed",
    )


def test_names_that_are_no_utf8_or_break_the_line_make_one_line_each(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (tmp_path / "line\nbreak").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b/\xff.jpg")).write_bytes(b"x")
    assert listed(tmp_path).problems == (
        f"{tmp_path}/b/\\udcff.jpg: has a name that is not UTF-8: rename it",
        f"{tmp_path}/line\\nbreak: is empty: put the images of the class into it, or remove it",
    )


def test_links_are_followed_and_loops_end(tmp_path):
    touch(tmp_path / "disk", "1.jpg", "more/2.jpg")
    (tmp_path / "disk/more/back").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/itself").symlink_to("itself")
    touch(tmp_path / "data", "train/b/1.jpg", "test/a/1.jpg")
    (tmp_path / "data/train/a").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    found = listed(tmp_path / "link")
    assert found.train.paths == ("train/a/1.jpg", "train/a/more/2.jpg", "train/b/1.jpg")
    assert found.problems == ()


NESTED = "the folders here hold folders and no images: if their folders are the classes, set path to what holds these"


@pytest.mark.parametrize(
    ("files", "problems"),
    [
        (
            ["train/train/a/1.jpg", "train/train/b/2.jpg", "test/test/a/3.jpg", "test/test/b/4.jpg"],
            {"train": "train/train", "test": "test/test"},
        ),
        (["mydata/train/a/1.jpg", "mydata/train/b/2.jpg", "mydata/test/a/3.jpg"], {"": "mydata"}),
        (["images/a/1.jpg", "images/a/2.jpg", "images/b/3.jpg", "masks/a/1.png"], {"": "images or {root}/masks"}),
    ],
)
def test_class_folders_that_hold_folders_only_are_a_problem_that_says_where_the_data_seems_to_be(
    tmp_path, files, problems
):
    touch(tmp_path, *files)
    found = [line for line in listed(tmp_path).problems if "hold folders and no images" in line]
    assert found == [
        f"{tmp_path / part}: {NESTED}, such as {tmp_path}/{likely.format(root=tmp_path)}; "
        "otherwise move the images up into the folder of their class"
        for part, likely in problems.items()
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["images/a/1.jpg", "images/b/2.jpg", "masks/1.png", "masks/2.png"], "1 class folder holds {}: images/"),
        (["train/a/1.jpg", "train/b/x/1.jpg", "test/a/y/1.jpg", "test/b/1.jpg"],
         "2 class folders hold {}: train/b/, test/a/"),
    ],
)  # fmt: skip
def test_class_folders_that_alone_hold_folders_only_are_noted(tmp_path, files, said):
    touch(tmp_path, *files)
    found = listed(tmp_path)
    assert found.notes == (said.format("folders and no images, and what is below is one class"),)


def test_links_back_to_the_data_folder_are_left_out_with_a_note(tmp_path):
    touch(tmp_path, *(f"d/{name}/{number}.jpg" for name in "ab" for number in range(3)))
    (tmp_path / "d/all").symlink_to(tmp_path / "d")
    (tmp_path / "d/above").symlink_to("..")
    (tmp_path / "d/a/back").symlink_to(tmp_path / "d")
    found = listed(tmp_path / "d")
    assert (found.problems, found.class_names) == ((), ("a", "b"))
    assert len(found.train) + len(found.queries) == 6
    assert found.notes == ("links back to the data folder are left out: above, all",)


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, *(f"{name}/{i}.jpg" for name in ("bus", "train") for i in range(2)))
    assert listed(tmp_path).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], NO_CLASSES),
        (["1.jpg"], NO_CLASSES),
        (["a/notes.txt", "b/notes.txt"], f"no images in the folders below; images end in {SUFFIXES}"),
        (
            ["train/a/1.jpg", "train/b/1.jpg"],
            f"{NO_CLASSES} (train/ is; to draw test queries from it, set path to {{root}}/train)",
        ),
        (["val/a/1.jpg", "Test/b/1.jpg"], f"{NO_CLASSES} (only Test/, val/ there)"),
        (["TRAIN/1.jpg", "notes.txt"], f"{NO_CLASSES} (only TRAIN/ there)"),
        (
            ["Training/a/1.jpg", "docs/1.jpg"],
            f"{NO_CLASSES} (Training/ is; to draw test queries from it, set path to {{root}}/Training)",
        ),
    ],
)
def test_a_folder_without_class_folders_is_refused(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(DataError) as caught:
        listed(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {message.format(root=tmp_path)}"


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    touch(tmp_path, "file")
    for path, found in ((tmp_path / "file", "is a file"), (tmp_path / "none", "does not exist")):
        with pytest.raises(DataError) as caught:
            listed(path)
        assert str(caught.value) == f"{path}: {found}: path must be the folder that holds the dataset"
    with pytest.raises(DataError, match=r"dataset.path is not given: --data names"):
        list_folder(FolderOptions())


def test_missing_files_are_those_at_whose_path_there_is_no_file(tmp_path):
    touch(tmp_path, "a/1.jpg", "2.jpg")
    (tmp_path / "a/dead.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "a/itself").symlink_to("itself")
    paths = ["a/1.jpg", "2.jpg", "a", "a/2.jpg", "b/1.jpg", "2.jpg/x", "a/dead.jpg", "a\0/1.jpg"]
    assert missing_files(tmp_path, paths) == {"a", "a/2.jpg", "b/1.jpg", "2.jpg/x", "a/dead.jpg", "a\0/1.jpg"}


@pytest.mark.parametrize("seed", range(5))
def test_of_several_labels_the_last_sample_of_none_is_drawn(seed):
    labels = np.zeros((120, 41), dtype=np.uint8)
    labels[:, 0] = 1
    for c in range(1, 41):
        labels[np.random.default_rng([seed, c]).choice(120, 2, replace=False), c] = 1
    drawn = stratified_draw(labels, 0.3, seed)
    assert drawn.sum() == 36
    assert labels[~drawn].any(axis=0).all()
    assert not stratified_draw(np.eye(8, dtype=np.uint8), 0.3, seed).any()  # the last of each


def test_of_several_labels_a_fraction_of_all_samples_is_drawn():
    drawn = stratified_draw(np.ones((50, 3), dtype=np.uint8), 0.3, 0)
    assert drawn.sum() == 15
