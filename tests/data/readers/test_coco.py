"""MS COCO in its own format, small: drawn splits, list files, and what is said about broken annotations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from crh_tune.data.listing import DataError
from crh_tune.data.readers import coco as coco_module
from crh_tune.data.readers.coco import CocoOptions, list_coco
from tests.data.readers.test_folder import touch

CATEGORIES = {1: "person", 2: "bicycle", 90: "toothbrush", 7: "zebra 😀"}
NAMES = ("bicycle", "person", "toothbrush", "zebra 😀")
IDS = {"train2014": range(1, 19), "val2014": range(101, 113)}
UNLABELLED = {5, 110}


def name_of(image: int) -> str:
    part = "train2014" if image < 100 else "val2014"
    return f"COCO_{part}_{image:012d}.jpg"


def path_of(image: int) -> str:
    return f"{name_of(image).split('_')[1]}/{name_of(image)}"


def categories_of(image: int) -> set[int]:
    """Which categories an image has; those of 5 and 110: none."""
    if image in UNLABELLED:
        return set()
    return {list(CATEGORIES)[image % 4], list(CATEGORIES)[image // 4 % 4]}


def bits_of(image: int) -> list[int]:
    return [int(name in {CATEGORIES[category] for category in categories_of(image)}) for name in NAMES]


def content_of(part: str) -> dict:
    """A file of instances, outlines included, images not in order."""
    annotations = [
        {"image_id": image, "category_id": category, "segmentation": [[1.5, 2.5, 3.0]], "iscrowd": 0, "id": image}
        for image in IDS[part]
        for category in [*categories_of(image), *categories_of(image)]
    ]
    crowd = {"counts": [1, 2], "size": [3, 4]}
    annotations.append({**annotations[0], "segmentation": crowd, "iscrowd": 1})
    images = [{"id": image, "file_name": name_of(image), "height": 4} for image in reversed(IDS[part])]
    categories = [{"id": number, "name": name, "supercategory": "x"} for number, name in CATEGORIES.items()]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write(root: Path, part: str, content: dict) -> Path:
    file = root / f"annotations/instances_{part}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


@pytest.fixture
def coco(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))
    for part in IDS:
        write(tmp_path, part, content_of(part))
    return touch(tmp_path, *(path_of(image) for part in IDS.values() for image in part))


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """The annotation files that were read, in order."""
    files: list[Path] = []
    real = coco_module._read
    monkeypatch.setattr(coco_module, "_read", lambda file: files.append(file) or real(file))
    return files


def listed(root: Path, **options):
    return list_coco(CocoOptions(path=root, **{"queries": 6, "train": 8, **options}))


def bits_by_path() -> dict[str, list[int]]:
    return {path_of(image): bits_of(image) for part in IDS.values() for image in part}


def test_labels_are_multi_hot_in_alphabetical_order(coco):
    found = listed(coco)
    assert found.problems == ()
    assert found.layout == "annotations, split drawn"
    assert found.class_names == NAMES
    for part in (found.train, found.queries, found.database):
        assert part.labels.dtype == np.uint8
        assert part.labels.tolist() == [bits_by_path()[path] for path in part.paths]
        assert list(part.paths) == sorted(part.paths)


def test_images_with_a_label_are_drawn_into_queries_and_training_images(coco):
    labelled = {path for path, bits in bits_by_path().items() if any(bits)}
    assert len(labelled) == 28
    found, without = listed(coco), listed(coco, database_contains_train=False)
    train, queries, database = (set(part.paths) for part in (found.train, found.queries, found.database))
    assert (len(found.queries), len(found.train), len(found.database)) == (6, 8, 22)
    assert database == labelled - queries
    assert train < database
    assert (without.train.paths, without.queries.paths) == (found.train.paths, found.queries.paths)
    assert set(without.database.paths) == labelled - queries - train


def test_the_seed_decides_the_draw(coco):
    one, again, other = (listed(coco, seed=seed) for seed in (0, 0, 1))
    assert one.queries.paths == again.queries.paths != other.queries.paths
    assert one.train.paths == again.train.paths != other.train.paths


@pytest.mark.parametrize(("train", "contains", "fits"), [(22, True, True), (22, False, False), (23, True, False)])
def test_too_few_images_are_a_problem(coco, train, contains, fits):
    message = f"{coco}: 28 images have a label: too few for 6 queries and {train} training images and a database"
    found = listed(coco, train=train, database_contains_train=contains)
    assert found.problems == (() if fits else (message,))


def write_lists(folder: Path, prefix: str = "data/coco/", **lists: list[int]) -> None:
    folder.mkdir()
    for name, images in lists.items():
        rows = [f"{prefix}{path_of(image)} {' '.join(map(str, bits_of(image)))}\n" for image in images]
        (folder / f"{name}.txt").write_text("".join(rows))


@pytest.mark.parametrize("prefix", ["", "data/coco/", "/home/somebody/coco/", "..\\coco\\"])
def test_list_files_are_matched_on_file_names(coco, prefix):
    write_lists(coco / "split", prefix, train=[3, 101, 1, 2], test=[102, 6], database=[7, 8, 3, 4])
    found = listed(coco, lists="split")
    assert found.problems == ()
    assert found.layout == "annotations, split from list files"
    assert found.class_names == NAMES
    assert found.train.paths == tuple(map(path_of, [3, 101, 1, 2]))
    assert found.train.labels.tolist() == [bits_of(image) for image in [3, 101, 1, 2]]
    assert found.queries.paths == (path_of(102), path_of(6))
    assert found.database.paths == tuple(map(path_of, [7, 8, 3, 4, 101, 1, 2]))
    assert found.database.labels.tolist() == [bits_of(image) for image in [7, 8, 3, 4, 101, 1, 2]]
    without = listed(coco, lists=str(coco / "split"), database_contains_train=False)
    assert without.database.paths == tuple(map(path_of, [7, 8, 4]))
    assert without.database.labels.tolist() == [bits_of(image) for image in [7, 8, 4]]


def test_rows_of_lists_that_are_wrong_are_named(coco):
    write_lists(coco / "split", train=[1, 2, 3], test=[6, 1], database=[7])
    with (coco / "split/train.txt").open("a") as file:
        file.write(f"COCO_train2014_000000000099.jpg 1 0 0 0\n{name_of(8)} 1 0 0\n{name_of(9)} 0 0 0 0\n")
    split = coco / "split"
    assert listed(coco, lists="split").problems == (
        f"{split}/train.txt:4: COCO_train2014_000000000099.jpg is no image of {coco}/annotations: leave it out",
        f"{split}/test.txt:2: {path_of(1)} is a training image ({split}/train.txt:1): want other queries",
        f"{split}/train.txt:5: has 3 values 0 or 1: want 4, one a class",
        f"{split}/train.txt:6: has no 1: a sample without a label can be neither learnt nor found "
        "(1 row without a label in all): give each one, or set dataset.on_no_label: skip",
    )


def test_rows_of_lists_that_say_nothing_are_left_out_on_request(coco):
    write_lists(coco / "split", train=[1, 2, 3], test=[6], database=[7])
    with (coco / "split/train.txt").open("a") as file:
        file.write(f"{name_of(8)}\n{name_of(9)} nan\n")
    (problem,) = listed(coco, lists="split").problems
    assert problem.startswith(f"{coco}/split/train.txt:4: has no label: ")
    found = listed(coco, lists="split", on_no_label="skip")
    note = f"2 rows without a label left out, the first of them {coco}/split/train.txt:4"
    assert (found.problems, found.notes, len(found.train)) == ((), (note,), 3)


def test_labels_in_another_order_of_classes_are_noticed(coco):
    write_lists(coco / "split", train=[1, 2, 3], test=[6], database=[7])
    for name in ("train", "test", "database"):
        file = coco / f"split/{name}.txt"
        rows = [line.split() for line in file.read_text().splitlines()]
        file.write_text("".join(f"{path} {' '.join(reversed(bits))}\n" for path, *bits in rows))
    assert listed(coco, lists="split").problems == (
        f"{coco}/split: 3 of 5 rows have other labels than the annotations: "
        "want a 0 or 1 for every class in alphabetical order of the names",
    )


def test_missing_images_are_named_once(coco):
    (coco / path_of(1)).unlink()
    assert listed(coco).problems == (f"{coco}/{path_of(1)}: does not exist, but is annotated",)
    (coco / path_of(5)).unlink()  # has no label, so it is not listed
    assert len(listed(coco).problems) == 1


def test_annotations_of_unknown_images_and_paths_that_lead_out_are_named(coco):
    content = content_of("val2014")
    content["annotations"] += [{"image_id": 999, "category_id": 1}, {"image_id": 101, "category_id": 3}]
    content["images"].append({"id": 102, "file_name": "../../x.jpg"})
    file = write(coco, "val2014", content)
    assert listed(coco).problems == (
        f"{file}: an annotation names image 999 and category 1, of which one is not in the file",
        f"{file}: an annotation names image 101 and category 3, of which one is not in the file",
        f"{file}: 'val2014/../../x.jpg' leads out of the data folder {coco}",
    )


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text[: len(text) // 2], "JSONDecodeError: "),
        (lambda text: "", "JSONDecodeError: Expecting value"),
        (lambda text: "[1, 2]", "TypeError: "),
        (lambda text: "{}", "KeyError: 'categories'"),
        (lambda text: text.replace('"file_name"', '"name"'), "KeyError: 'file_name'"),
        (lambda text: "[" * 100_000, "RecursionError: "),
    ],
)
def test_damaged_annotations_are_named_and_the_rest_is_read(coco, damage, why):
    file = coco / "annotations/instances_train2014.json"
    file.write_text(damage(file.read_text()))
    found = listed(coco, queries=3, train=4)
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{file}: cannot be read as annotations of COCO ({why}")
    assert (len(found.queries), len(found.train), len(found.database)) == (3, 4, 8)


def test_files_that_are_missing_are_asked_for(coco):
    (coco / "annotations/instances_val2014.json").unlink()
    with pytest.raises(DataError) as caught:
        listed(coco)
    file = coco / "annotations/instances_val2014.json"
    assert str(caught.value) == f"{coco}: files were looked for and not found: {file}"


def test_list_files_that_are_missing_are_asked_for(coco):
    write_lists(coco / "split", train=[1], test=[2])
    with pytest.raises(DataError) as caught:
        listed(coco, lists="split")
    message = f"{coco}/split: files were looked for and not found: {coco}/split/database.txt"
    assert str(caught.value) == message


@pytest.mark.parametrize("options", [{"queries": 0}, {"train": 0}, {"seed": -1}, {"test": 3}])
def test_other_options_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        CocoOptions(**options)


def same(one, other) -> bool:
    parts = ("train", "queries", "database")
    return one.class_names == other.class_names and all(
        getattr(one, part).paths == getattr(other, part).paths
        and np.array_equal(getattr(one, part).labels, getattr(other, part).labels)
        for part in parts
    )


def test_annotations_are_read_once_and_again_when_they_change(coco, read):
    first = listed(coco)
    assert [file.name for file in read] == ["instances_train2014.json", "instances_val2014.json"]
    assert same(listed(coco), first)
    assert listed(coco).train.labels.dtype == np.uint8
    assert not same(listed(coco, seed=1), first)
    assert len(read) == 2
    content = content_of("val2014")
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 101]
    write(coco, "val2014", content)
    changed = listed(coco, queries=1, train=20)
    assert len(read) == 4
    assert path_of(101) not in {*changed.train.paths, *changed.queries.paths, *changed.database.paths}


def test_annotations_with_problems_are_read_every_time(coco, read):
    content = content_of("val2014")
    content["annotations"].append({"image_id": 999, "category_id": 1})
    write(coco, "val2014", content)
    problems = listed(coco).problems
    assert len(problems) == 1
    assert listed(coco).problems == problems
    assert len(read) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "folder"])
def test_what_was_kept_of_annotations_is_not_used_when_damaged(coco, read, damage):
    first = listed(coco)
    (memo,) = (coco / "cache/annotations").iterdir()
    content = bytearray(memo.read_bytes())
    if damage == "folder":
        memo.unlink()
        memo.mkdir()
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
        memo.write_bytes(content)
    else:
        memo.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    assert same(listed(coco), first)
    assert len(read) == 4


def test_annotations_are_read_where_nothing_can_be_kept(coco, read):
    (coco / "cache").write_text("a file")
    assert listed(coco).problems == ()
    assert listed(coco).problems == ()
    assert len(read) == 4
