"""Stanford Cars in its three layouts, small, with the structs of the original MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from crh_tune.data.listing import DataError
from crh_tune.data.readers.stanford_cars import StanfordCarsOptions, list_stanford_cars
from tests.data.readers.test_folder import touch

NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Škoda 'Fabia' 😀"]
BOX = tuple(f"bbox_{side}" for side in ("x1", "y1", "x2", "y2"))


def annotations(rows: list[dict]) -> np.ndarray:
    """The original 1 x N struct array: boxes and labels as 1 x 1 arrays."""
    fields = [*BOX, *rows[0]]
    array = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for number, row in enumerate(rows):
        array[0, number] = (*(np.array([[7]], np.uint16) for _ in BOX), *row.values())
    return array


def save(file: Path, **variables) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, variables)


def names_of(names: list[str] = NAMES) -> np.ndarray:
    """A 1 x C cell array."""
    cells = np.empty((1, len(names)), dtype=object)
    cells[0] = names
    return cells


def labelled(rows: list[tuple[str, int]]) -> np.ndarray:
    return annotations([{"class": np.array([[c]], np.uint8), "fname": name} for name, c in rows])


def devkit(
    root: Path,
    train: list,
    test: list,
    test_file: str = "cars_test_annos_withlabels.mat",
    train_file: str = "devkit/cars_train_annos.mat",
) -> Path:
    save(root / train_file, annotations=labelled(train))
    save(root / test_file, annotations=labelled(test))
    save(root / "devkit/cars_meta.mat", class_names=names_of())
    return touch(root, *(f"cars_train/{name}" for name, _ in train), *(f"cars_test/{name}" for name, _ in test))


def all_in_one(root: Path, rows: list[tuple[str, int, int]]) -> Path:
    entries = [
        {"relative_im_path": path, "class": np.array([[c]], np.uint8), "test": np.array([[test]], np.uint8)}
        for path, c, test in rows
    ]
    save(root / "cars_annos.mat", annotations=annotations(entries), class_names=names_of())
    return touch(root, *(path for path, _, _ in rows if ".." not in path))


def listed(root: Path):
    return list_stanford_cars(StanfordCarsOptions(path=root))


TRAIN = [("00001.jpg", 3), ("00002.jpg", 1), ("00003.jpg", 2)]
TEST = [("00001.jpg", 1), ("00002.jpg", 3)]


TEST_FILES = [
    "cars_test_annos_withlabels.mat",
    "devkit/cars_test_annoswithlabels.mat",
    "devkit/cars_test_annos_withlabels.mat",
]


@pytest.mark.parametrize("train_file", ["devkit/cars_train_annos.mat", "cars_train_annos.mat"])
@pytest.mark.parametrize("test_file", TEST_FILES)
def test_the_devkit_is_listed_in_its_order_with_labels_from_0(tmp_path, test_file, train_file):
    found = listed(devkit(tmp_path, TRAIN, TEST, test_file, train_file))
    assert found.problems == ()
    assert found.layout == "devkit with cars_train/ and cars_test/"
    assert found.class_names == tuple(NAMES)
    assert found.train.paths == ("cars_train/00001.jpg", "cars_train/00002.jpg", "cars_train/00003.jpg")
    assert found.train.labels.tolist() == [2, 0, 1]
    assert found.train.labels.dtype == np.int64
    assert found.queries.paths == ("cars_test/00001.jpg", "cars_test/00002.jpg")
    assert found.queries.labels.tolist() == [0, 2]
    assert found.database is None


def test_the_nested_folders_of_kaggles_archive_are_found(tmp_path):
    """It has cars_annos.mat too, but not the images of this layout."""
    save(tmp_path / "cars_annos.mat", annotations=labelled(TRAIN), class_names=names_of())
    for side in ("cars_train", "cars_test"):
        touch(tmp_path, *(f"{side}/{side}/{number:05}.jpg" for number in range(1, 4)))
    devkit_files = "devkit/cars_train_annos.mat or cars_train_annos.mat"
    with pytest.raises(DataError) as caught:
        listed(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: cars_annos.mat is of car_ims/, which is not there; for cars_train/ and cars_test/ add "
        f"{devkit_files}, and {' or '.join(TEST_FILES)}"
    )
    save(tmp_path / "cars_train_annos.mat", annotations=labelled(TRAIN))
    save(tmp_path / "cars_test_annos_withlabels.mat", annotations=labelled(TEST))
    save(tmp_path / "cars_meta.mat", class_names=names_of())
    found = listed(tmp_path)
    assert found.problems == ()
    assert found.class_names == tuple(NAMES)
    assert found.train.paths == tuple(f"cars_train/cars_train/{name}" for name, _ in TRAIN)
    assert found.queries.paths == tuple(f"cars_test/cars_test/{name}" for name, _ in TEST)


def test_one_annotation_alone_is_an_array_too(tmp_path):
    found = listed(devkit(tmp_path, TRAIN, TEST[:1]))
    assert found.problems == ()
    assert found.queries.paths == ("cars_test/00001.jpg",)


def test_without_the_meta_file_classes_are_numbered(tmp_path):
    devkit(tmp_path, TRAIN, TEST)
    (tmp_path / "devkit/cars_meta.mat").unlink()
    assert listed(tmp_path).class_names == ("1", "2", "3")
    assert listed(tmp_path).problems == ()


def test_cars_annos_is_cut_by_its_test_flag(tmp_path):
    rows = [
        ("car_ims/000001.jpg", 2, 0),
        ("car_ims/000002.jpg", 1, 1),
        ("car_ims/000003.jpg", 3, 0),
        ("car_ims/000004.jpg", 1, 0),
    ]
    found = listed(all_in_one(tmp_path, rows))
    assert found.problems == ()
    assert found.layout == "cars_annos.mat with car_ims/"
    assert found.class_names == tuple(NAMES)
    assert found.train.paths == ("car_ims/000001.jpg", "car_ims/000003.jpg", "car_ims/000004.jpg")
    assert found.train.labels.tolist() == [1, 2, 0]
    assert found.queries.paths == ("car_ims/000002.jpg",)
    assert found.queries.labels.tolist() == [0]


def test_class_folders_are_listed_too(tmp_path):
    touch(tmp_path, *(f"{side}/{name}/1.jpg" for side in ("train", "test") for name in NAMES))
    found = listed(tmp_path)
    assert found.problems == ()
    assert found.layout == "class folders under train/ and test/"
    assert found.class_names == tuple(sorted(NAMES))
    assert len(found.train) == len(found.queries) == 3


def test_labels_out_of_range_and_missing_images_are_named(tmp_path):
    devkit(tmp_path, [*TRAIN, ("00004.jpg", 0)], [*TEST, ("00003.jpg", 4)])
    (tmp_path / "cars_train/00002.jpg").unlink()
    found = listed(tmp_path)
    assert found.problems == (
        f"{tmp_path}/devkit/cars_train_annos.mat: annotation 4 (cars_train/00004.jpg): has the class 0: want 1 to 3",
        f"{tmp_path}/cars_test_annos_withlabels.mat: annotation 3 (cars_test/00003.jpg): has the class 4: want 1 to 3",
        f"{tmp_path}/cars_train/00002.jpg: does not exist, but is annotated",
    )
    assert found.train.labels.tolist() == [2, 0, 1]


def test_paths_that_lead_out_and_untrained_classes_are_named(tmp_path):
    rows = [("car_ims/1.jpg", 1, 0), ("../2.jpg", 2, 0), ("car_ims/3.jpg", 3, 1), ("car_ims/4.jpg", 1, 1)]
    file = tmp_path / "cars_annos.mat"
    assert listed(all_in_one(tmp_path, rows)).problems == (
        f"{file}: annotation 2 (../2.jpg): '../2.jpg' leads out of the data folder {tmp_path}",
        f"{file}: class {NAMES[2]!r} has no training sample: add some, or leave it out",
    )


def test_a_truncated_file_is_named_and_the_rest_is_read(tmp_path):
    devkit(tmp_path, TRAIN, TEST)
    file = tmp_path / "cars_test_annos_withlabels.mat"
    file.write_bytes(file.read_bytes()[:-300])
    found = listed(tmp_path)
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{file}: cannot be read as a MATLAB file (")
    assert found.problems[0].endswith("): restore the original file")
    assert (len(found.train), len(found.queries)) == (3, 0)


@pytest.mark.parametrize("content", [b"", b"no MATLAB file", b"x" * 500])
def test_files_that_are_no_matlab_files_are_named(tmp_path, content):
    devkit(tmp_path, TRAIN, TEST)
    file = tmp_path / "devkit/cars_meta.mat"
    file.write_bytes(content)
    assert [line.split(" (")[0] for line in listed(tmp_path).problems] == [f"{file}: cannot be read as a MATLAB file"]


def test_annotations_without_labels_are_named(tmp_path):
    devkit(tmp_path, TRAIN, TEST)
    file = tmp_path / "cars_test_annos_withlabels.mat"
    save(file, annotations=annotations([{"fname": "00001.jpg"}]))
    assert listed(tmp_path).problems == (f"{file}: annotations have no field class: restore the original file",)
    save(file, other=np.ones(3))
    assert listed(tmp_path).problems == (f"{file}: has no variable annotations: restore the original file",)


@pytest.mark.parametrize("left", [["devkit/cars_train_annos.mat"], []])
def test_annotations_that_are_missing_are_named(tmp_path, left):
    devkit(tmp_path, TRAIN, TEST, "devkit/cars_test_annos.mat")  # those without labels
    for name in {"devkit/cars_train_annos.mat", "devkit/cars_meta.mat"} - set(left):
        (tmp_path / name).unlink()
    with pytest.raises(DataError) as caught:
        listed(tmp_path)
    train = "" if left else "devkit/cars_train_annos.mat or cars_train_annos.mat, and "
    assert str(caught.value) == (
        f"{tmp_path}: annotations of cars_train/ and cars_test/ are missing: {train}{' or '.join(TEST_FILES)}"
    )


def test_a_folder_without_any_layout_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        listed(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no layout of Stanford Cars is there; looked for: devkit/cars_train_annos.mat with "
        "cars_test_annos_withlabels.mat; cars_annos.mat with car_ims/; class folders under train/ and test/"
    )
