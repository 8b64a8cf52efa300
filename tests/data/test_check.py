"""What `data check` finds in small folders, line by line, and every problem with its path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crh_tune.data.check import Findings, check_data, dataset_in
from crh_tune.data.datasets import open_dataset
from crh_tune.data.listing import DataError
from tests.data.readers.test_cifar import cifar10, cifar100
from tests.data.readers.test_folder import SUFFIXES, touch

NO_REFERENCE = ("reference", "the classes' mean inputs, or what dataset.reference says")
NO_TWINS = ("duplicates", "no query is also among the training samples")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def draw(root: Path, *paths: str, size: tuple[int, int] = (10, 8)) -> Path:
    """Images whose colours tell their paths apart."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        colour = tuple(sum(path[start::3].encode()) % 256 for start in range(3))
        Image.new("RGB", size, colour).save(root / path)
    return root


def folders(root: Path) -> Path:
    draw(root, "train/ant/1.png", "train/ant/2.png", "train/ant/3.png", "train/bee/4.png")
    return draw(root, "test/ant/5.png", "test/bee/6.png")


FOUND_IN_FOLDERS = [
    ("dataset", "folder: class folders under train/ and test/"),
    ("classes", "2 (ant, bee)"),
    ("train", "4 samples, 1 to 3 a class, imbalance 3.0"),
    ("queries", "2 samples, 1 a class"),
    ("sizes", "10 x 8, all of them"),
    NO_TWINS,
    NO_REFERENCE,
]


def test_class_folders_are_described(tmp_path, cache):
    assert check_data(folders(tmp_path / "d")) == Findings(FOUND_IN_FOLDERS, [])
    assert check_data(tmp_path / "d", "folder") == Findings(FOUND_IN_FOLDERS, [])
    assert not cache.exists()


def test_different_sizes_are_summed_up(tmp_path):
    root = draw(folders(tmp_path / "d"), "train/ant/7.png", size=(640, 4))
    draw(root, "test/bee/8.png", size=(3, 99))
    lines = dict(check_data(root).lines)
    assert lines["sizes"] == "3 to 640 wide, 4 to 99 high, most often 10 x 8 (6 of 8)"
    assert lines["queries"] == "3 samples, 1 to 2 a class, imbalance 2.0"


def test_more_than_five_classes_are_cut_short(tmp_path):
    draw(tmp_path, *(f"train/{name}/1.png" for name in "abcdef"), *(f"test/{name}/2.png" for name in "abcde"))
    lines = dict(check_data(tmp_path).lines)
    assert lines["classes"] == "6 (a, b, c, d, e, ...)"
    assert lines["train"] == "6 samples, 1 a class"
    assert lines["queries"] == "5 samples, 0 to 1 a class, 1 class without a sample"


def test_queries_with_nothing_in_the_database_are_counted_and_a_problem_where_all_are(tmp_path):
    root = draw(tmp_path, *(f"{number}.png" for number in range(6)))
    (root / "train.txt").write_text("0.png ant\n1.png bee\n")
    (root / "database.txt").write_text("2.png bee\n")
    (root / "test.txt").write_text("3.png ant\n4.png bee\n")
    found = check_data(root)
    assert dict(found.lines)["unanswered"] == "1 of 2 queries have nothing relevant to find"
    assert found.problems == []
    (root / "test.txt").write_text("3.png ant\n4.png ant\n")
    line = "2 of 2 queries have nothing relevant to find"
    assert check_data(root).problems == [f"{root}: {line}: want queries of the classes that are ranked"]


def test_queries_that_are_in_the_database_are_named_by_their_content(tmp_path):
    root = draw(tmp_path, *(f"{number}.png" for number in range(6)))
    (root / "5.png").write_bytes((root / "3.png").read_bytes())
    (root / "train.txt").write_text("0.png ant\n1.png bee\n")
    (root / "database.txt").write_text("2.png bee\n5.png ant\n0.png ant\n")
    (root / "test.txt").write_text("3.png ant\n4.png bee\n")
    line = "1 query is also in the database: 3.png = 5.png"
    assert dict(check_data(root).lines)["duplicates"] == line
    said: list[str] = []
    open_dataset("lists", {"path": root, "size": 8}, said.append)
    assert line in said


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_of_queries_that_are_elsewhere_are_named(tmp_path, dtype):
    vectors = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    vectors[[7, 10]] = vectors[[2, 6]]  # query 1 is training sample 2, and query 0 the last of the database
    labels = np.arange(11) % 2
    parts = {"train": slice(0, 6), "test": slice(6, 8), "database": slice(8, 11)}
    arrays = {f"{name}_labels": labels[rows] for name, rows in parts.items()}
    arrays |= {f"{name}_features": vectors[rows].astype(dtype) for name, rows in parts.items()}
    arrays["train_features"] = arrays["train_features"].astype(np.float64)
    np.savez(tmp_path / "f.npz", **arrays)
    wanted = [
        "1 query is also among the training samples: query 1 = training sample 2",
        "1 query is also in the database: query 0 = database item 2",
    ]
    assert [text for name, text in check_data(tmp_path / "f.npz").lines if name == "duplicates"] == wanted
    said: list[str] = []
    open_dataset("features", {"path": tmp_path / "f.npz"}, said.append)
    assert said == wanted


def test_training_features_that_are_there_again_are_counted(tmp_path):
    vectors = np.arange(24, dtype=np.float32).reshape(6, 4)
    train = vectors[[0, 1, 2, 0, 3, 0, 1]]
    labels = {"train_labels": np.arange(7) % 2, "test_labels": np.arange(2)}
    np.savez(tmp_path / "f.npz", train_features=train, test_features=vectors[4:], **labels)
    pairs = "; ".join(f"training sample {one} = training sample {other}" for one, other in ((3, 0), (5, 0), (6, 1)))
    lines = dict(check_data(tmp_path / "f.npz").lines)
    assert lines["duplicates"] == NO_TWINS[1]
    text = f"3 training samples have the content of another: {pairs}"
    assert lines["copies"] == f"{text}: one may be held out to ask for the other"


def test_broken_images_are_problems_with_their_paths(tmp_path):
    root = folders(tmp_path / "d")
    (root / "train/ant/2.png").write_bytes(b"no image")
    (root / "test/bee/6.png").write_bytes((root / "test/bee/6.png").read_bytes()[:-30])
    found = check_data(root)
    assert found.lines == FOUND_IN_FOLDERS
    assert len(found.problems) == 2
    assert found.problems[0].startswith(f"{root}/test/bee/6.png: image file is truncated")
    assert found.problems[1] == f"{root}/train/ant/2.png: not an image"


def test_images_of_kinds_that_are_not_read_are_a_note_and_no_problem(tmp_path):
    root = folders(tmp_path / "d")
    touch(root, "train/ant/IMG_1.heic")
    note = ("note", "1 image of kinds that are not read: .heic (train/ant/IMG_1.heic): convert them")
    assert check_data(root) == Findings([*FOUND_IN_FOLDERS[:5], note, *FOUND_IN_FOLDERS[5:]], [])


def test_a_folder_without_a_readable_image_is_described(tmp_path):
    root = touch(tmp_path / "d", "train/ant/1.png", "train/bee/2.png", "test/ant/3.png")
    found = check_data(root)
    assert found.problems == [
        f"{root}/{name}: not an image" for name in ("test/ant/3.png", "train/ant/1.png", "train/bee/2.png")
    ]
    assert dict(found.lines)["sizes"] == "no readable image"
    assert dict(found.lines)["duplicates"] == NO_TWINS[1]


def test_every_problem_is_told_with_its_path(tmp_path):
    root = folders(tmp_path / "d")
    (root / "train/cat").mkdir()
    touch(root, "test/dog/notes.txt", "train/loose.png", "train/bee/9.png")
    (root / "train/bee/gone.png").symlink_to(root / "nowhere.png")
    found = check_data(root)
    move = "move them into the folder of their class"
    assert found.problems == [
        f"{root}/train: 1 image outside of any class folder, such as loose.png: {move}",
        f"{root}/train/bee/gone.png: is a link to a file that does not exist: restore it, or remove it",
        f"{root}/train/cat: is empty: put the images of the class into it, or remove it",
        f"{root}/test/dog: holds 1 file but no image; images end in {SUFFIXES}",
        f"{root}/test/dog: has no counterpart in {root}/train: add training images, or remove it",
        f"{root}/train/bee/9.png: not an image",
    ]


def test_broken_images_are_told_where_the_folder_has_a_colon_in_its_name(tmp_path):
    root = folders(tmp_path / "photos: mine")
    (root / "train/cat").mkdir()
    (root / "train/bee/4.png").write_bytes(b"no image")
    assert check_data(root).problems == [
        f"{root}/train/cat: is empty: put the images of the class into it, or remove it",
        f"{root}/train/bee/4.png: not an image",
    ]


def test_a_broken_image_with_a_line_break_in_its_name_is_one_line(tmp_path):
    root = folders(tmp_path / "d")
    (root / "train/bee/a\nb.png").write_bytes(b"no image")
    assert check_data(root).problems == [f"{root}/train/bee/a\\nb.png: not an image"]


def test_queries_with_the_content_of_a_training_image_are_counted(tmp_path):
    root = folders(tmp_path / "d")
    (root / "test/ant/5.png").write_bytes((root / "train/bee/4.png").read_bytes())
    found = check_data(root)
    text = "1 query is also among the training samples: test/ant/5.png = train/bee/4.png"
    assert dict(found.lines)["duplicates"] == text
    assert found.problems == []
    for number in range(3):
        (root / f"test/bee/copy {number}.png").write_bytes((root / "train/ant/1.png").read_bytes())
    copies = "test/bee/6.png = train/ant/2.png; test/bee/copy 0.png = train/ant/1.png"
    (root / "test/bee/6.png").write_bytes((root / "train/ant/2.png").read_bytes())
    text = f"5 queries are also among the training samples: test/ant/5.png = train/bee/4.png; {copies}; ..."
    assert dict(check_data(root).lines)["duplicates"] == text


def test_two_broken_files_of_the_same_content_are_no_duplicates(tmp_path):
    root = folders(tmp_path / "d")
    for name in ("train/ant/1.png", "test/ant/5.png"):
        (root / name).write_bytes(b"no image")
    assert dict(check_data(root).lines)["duplicates"] == NO_TWINS[1]


def test_lists_with_a_database_are_described(tmp_path):
    draw(tmp_path, *(f"img/{number}.png" for number in range(7)))
    (tmp_path / "train.txt").write_text("img/0.png 1 0 1\nimg/1.png 0 1 1\nimg/2.png 1 0 0\n")
    (tmp_path / "test.txt").write_text("img/3.png 1 0 0\n")
    (tmp_path / "database.txt").write_text("img/4.png 0 1 1\nimg/5.png 1 1 1\nimg/0.png 1 0 1\n")
    assert check_data(tmp_path) == Findings(
        [
            ("dataset", "lists: list files with a database"),
            ("classes", "3 (0, 1, 2)"),
            ("train", "3 samples, 1 to 2 a class, imbalance 2.0, 1.7 labels a sample"),
            ("queries", "1 sample, 0 to 1 a class, 1.0 labels a sample, 2 classes without a sample"),
            ("database", "3 samples, 2 to 3 a class, imbalance 1.5, 2.3 labels a sample"),
            ("sizes", "10 x 8, all of them"),
            ("duplicates", f"{NO_TWINS[1]} or in the database"),
            NO_REFERENCE,
        ],
        [],
    )


def test_a_listed_image_that_is_not_there_is_told_once(tmp_path):
    draw(tmp_path, *(f"img/{number}.png" for number in range(3)))
    (tmp_path / "img/1.png").write_bytes(b"no image")
    (tmp_path / "train.txt").write_text("img/0.png 0\nimg/1.png 1\nimg/8.png 1\n")
    (tmp_path / "test.txt").write_text("img/2.png 0\nimg/2.png x\n")
    assert check_data(tmp_path).problems == [
        f"{tmp_path}/test.txt:2: img/2.png has another label at {tmp_path}/test.txt:1: want one",
        f"{tmp_path}/test.txt:2: label 'x': want an integer from 0 to 1",
        f"{tmp_path}/img/8.png: does not exist, but {tmp_path}/train.txt:3 lists it",
        f"{tmp_path}/img/1.png: not an image",
    ]


def feature_arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "train_features": np.arange(24, dtype=np.float32).reshape(6, 4),
        "train_labels": np.array([0, 1, 0, 1, 0, 0]),
        "test_features": np.ones((2, 4), dtype=np.float32),
        "test_labels": np.array([0, 1]),
        **changes,
    }


def test_a_suffix_in_capitals_is_one_too(tmp_path):
    np.savez(tmp_path / "e.npz", **feature_arrays())
    (tmp_path / "e.npz").rename(tmp_path / "E.NPZ")
    assert dict(check_data(tmp_path / "E.NPZ").lines)["dataset"] == "features: .npz file with train, test"


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_features_are_described(tmp_path, kind):
    if kind == "npz":
        path = tmp_path / "f.npz"
        np.savez(path, **feature_arrays())
    else:
        path = tmp_path
        for name, array in feature_arrays().items():
            np.save(path / f"{name}.npy", array)
    assert check_data(path) == Findings(
        [
            ("dataset", f"features: {'.npz file' if kind == 'npz' else '.npy files'} with train, test"),
            ("classes", "2 (0, 1)"),
            ("train", "6 samples, 2 to 4 a class, imbalance 2.0"),
            ("queries", "2 samples, 1 a class"),
            ("features", "vectors of 4 (float32)"),
            NO_TWINS,
            NO_REFERENCE,
        ],
        [],
    )


def test_problems_of_features_are_told_with_their_path(tmp_path):
    path = tmp_path / "f.npz"
    broken = np.ones((6, 4), dtype=np.float32)
    broken[3, 1] = np.nan
    np.savez(path, **feature_arrays(train_features=broken, test_labels=np.array([0, 1, 1])))
    assert check_data(path).problems == [
        f"{path}: train_features: row 3 holds NaN or infinity: want finite values",
        f"{path}: test_features: has 2 rows for 3 labels: want one label a row",
    ]


def test_batches_of_cifar_are_described(tmp_path):
    cifar10(tmp_path / "ten" / "cifar-10-batches-py")
    cifar100(tmp_path / "hundred", [0, 1, 2, 3, 3], [0, 1, 2, 3])
    assert check_data(tmp_path / "ten") == Findings(
        [
            ("dataset", "cifar10: Python batches, full protocol"),
            ("classes", "3 (airplane, bird, cat)"),
            ("train", "10 samples, 3 to 4 a class, imbalance 1.3"),
            ("queries", "2 samples, 0 to 1 a class, 1 class without a sample"),
            ("sizes", "32 x 32, all of them"),
            NO_REFERENCE,
        ],
        [],
    )
    found = dict(check_data(tmp_path / "hundred").lines)
    assert found["dataset"] == "cifar100: Python batches, full protocol"
    assert found["reference"] == "the dataset's own"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["train/a/1.jpg", "test/a/2.jpg"], "folder"),
        (["a/1.jpg", "b/2.jpg"], "folder"),
        ([], "folder"),
        (["train.txt", "img/1.jpg"], "lists"),
        (["features.npy", "labels.npy"], "features"),
        (["train_features.npy"], "features"),
        (["cars_annos.mat"], "stanford_cars"),
        (["devkit/cars_train_annos.mat"], "stanford_cars"),
        (["cars_train_annos.mat"], "stanford_cars"),
        (["cars_train/cars_train/00001.jpg"], "stanford_cars"),
        (["image_class_labels.txt", "train.txt"], "nabirds"),
        (["annotations/instances_val2017.json"], "coco"),
        (["data_batch_1"], "cifar10"),
        (["cifar-10-batches-py/data_batch_1"], "cifar10"),
        (["cifar-100-python/train"], "cifar100"),
        (["train", "test", "meta"], "cifar100"),
    ],
)
def test_the_dataset_is_told_by_its_files(tmp_path, files, name):
    assert dataset_in(touch(tmp_path, *files)) == name


def test_a_npz_file_holds_features(tmp_path):
    assert dataset_in(tmp_path / "f.npz") == "features"


def test_a_npz_file_in_a_folder_is_no_sign_of_features_in_the_folder(tmp_path):
    root = folders(tmp_path / "d")
    np.savez(root / "notes.npz", a=np.zeros(3))
    assert check_data(root) == Findings(FOUND_IN_FOLDERS, [])


def test_a_dataset_of_an_unknown_name_or_without_files_is_no_dataset_to_check(tmp_path):
    for name in ("nonsense", "digits"):
        with pytest.raises(KeyError, match=name):
            check_data(tmp_path, name)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError) as caught:
        check_data(tmp_path / "nowhere")
    assert str(caught.value) == f"{tmp_path}/nowhere: does not exist: path must be the folder that holds the dataset"


def test_a_dataset_whose_files_are_not_there_is_told(tmp_path):
    with pytest.raises(DataError) as caught:
        check_data(folders(tmp_path / "d"), "lists")
    root = tmp_path / "d"
    assert str(caught.value) == f"{root}: files were looked for and not found: {root}/train.txt, {root}/test.txt"
