"""Datasets opened from files: every image traced to its label, and fingerprints that see every change."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from crh_tune.data.check import check_data
from crh_tune.data.datasets import open_dataset
from crh_tune.data.listing import DataError
from crh_tune.data.options import ImageOptions
from crh_tune.data.splits import Dataset, Samples, final_split, search_split
from crh_tune.data.store.decode import Fit
from crh_tune.data.store.feature_cache import FeatureCache, Recipe, open_features
from crh_tune.data.store.sources import ImageSource
from crh_tune.data.store.stored import (
    CachedImages,
    StoredRows,
    channel_moments,
    chunks,
    digest_of,
    pick,
    prototype_vectors,
)
from tests.data.readers.test_cifar import cifar10
from tests.data.store.test_decode import png_of_16_bits, tiff_of_16_bits

NAMES = ("ant", "bee", "cat")
PRINTS = """
import sys
from pathlib import Path
from crh_tune.data.check import check_data
from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import final_split, search_split
for name, path in zip(sys.argv[1::2], sys.argv[2::2]):
    size = {} if name == "features" else {"size": 8}
    dataset = open_dataset(name, {"path": Path(path), **size})
    print(final_split(dataset).fingerprint, search_split(dataset, 0.3, 1).fingerprint)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))


def draw(path: Path, number: int, label: int) -> None:
    """An image that tells its number and its label by its colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), (number, 100 + label, number // 2)).save(path)


def folders(root: Path, train: int = 12, test: int = 6) -> Path:
    """Class folders; training images have the numbers from 0 on, queries those from 100 on, their labels in turn."""
    for number in range(train):
        draw(root / "train" / NAMES[number % 3] / f"{number:03}.png", number, number % 3)
    for number in range(100, 100 + test):
        draw(root / "test" / NAMES[number % 3] / f"{number:03}.png", number, number % 3)
    return root


def test_images_of_more_pixels_than_the_option_allows_are_problems_and_a_cache_knows_its_limit(tmp_path):
    root = folders(tmp_path / "data")
    large = root / "train" / "ant" / "large.png"
    Image.new("RGB", (20, 10)).save(large)
    said = f"{large}: 20 x 10 pixels are 0.0002 million, dataset.max_megapixels allows 0.0001"
    assert check_data(root, megapixels=1e-4).problems == [said]
    assert check_data(root).problems == []
    small = {"path": root, "size": 8, "max_megapixels": 1e-4}
    with pytest.raises(DataError, match=f"^{re.escape(said)}: unreadable image"):
        open_dataset("folder", small)
    assert len(open_dataset("folder", {"path": root, "size": 8}).train) == 13
    skipping = open_dataset("folder", {**small, "on_bad_image": "skip"})
    assert (len(skipping.train), skipping.skipped) == (12, (said,))


def lists(root: Path, train: list[int], test: list[int], database: list[int] | None = None) -> Path:
    """List files of images ``img/<number>.png`` whose labels are the remainders of their numbers by 3."""
    for name, numbers in (("train", train), ("test", test), ("database", database)):
        if numbers is not None:
            for number in numbers:
                draw(root / "img" / f"{number:03}.png", number, number % 3)
            (root / f"{name}.txt").write_text("".join(f"img/{number:03}.png {number % 3}\n" for number in numbers))
    return root


def features(root: Path, **changes: np.ndarray) -> Path:
    generator = np.random.default_rng(0)
    given = {
        "train_features": generator.normal(size=(30, 5)).astype(np.float32),
        "train_labels": np.arange(30) % 3,
        "test_features": generator.normal(size=(6, 5)).astype(np.float32),
        "test_labels": np.arange(6) % 3,
        "database_features": generator.normal(size=(9, 5)).astype(np.float32),
        "database_labels": np.arange(9) % 3,
    }
    root.mkdir(parents=True, exist_ok=True)
    for name, array in {**given, **changes}.items():
        np.save(root / f"{name}.npy", array)
    return root


def opened(name: str, root: Path, **options) -> Dataset:
    return open_dataset(name, {"path": root, **({} if name == "features" else {"size": 8}), **options})


def numbers(samples: Samples) -> list[int]:
    """The numbers of samples, each of which has the label that its colour tells."""
    found = np.asarray(samples.inputs[:])
    assert found.shape == (len(samples), 3, 8, 8)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.broadcast_to(found[:, :, :1, :1], found.shape))
    assert found[:, 1, 0, 0].tolist() == (100 + samples.labels).tolist()
    return found[:, 0, 0, 0].tolist()


def refused(name: str, root: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        opened(name, root, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_class_folders_become_samples_with_their_labels(tmp_path):
    found = opened("folder", folders(tmp_path / "d"))
    assert (found.name, found.class_names, found.skipped) == ("folder", NAMES, ())
    assert numbers(found.train) == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert numbers(found.queries) == [102, 105, 100, 103, 101, 104]
    assert (found.database, found.reference, found.groups, found.train_ids) == (None, None, None, None)
    assert isinstance(found.train.inputs, CachedImages)


def test_lists_keep_their_order(tmp_path):
    train, test = [7, 2, 9, 0, 4, 11], [105, 100, 103]
    found = opened("lists", lists(tmp_path / "d", train, test))
    assert (numbers(found.train), numbers(found.queries)) == (train, test)


def test_batches_of_cifar_become_samples_with_their_labels(tmp_path):
    cifar10(tmp_path / "d")
    found = open_dataset("cifar10", {"path": tmp_path / "d"})
    assert found.class_names == ("airplane", "bird", "cat")
    assert found.train.inputs.shape == (10, 3, 32, 32)
    assert found.train.inputs[:][:, :, 0, 0].tolist() == [[row, 100, 200] for row in range(10)]
    assert found.queries.inputs[:][:, :, 0, 0].tolist() == [[row, 100, 200] for row in (10, 11)]
    assert found.train.labels.tolist() == [row % 3 for row in range(10)]
    assert found.queries.labels.tolist() == [1, 2]


def test_what_takes_time_is_said_once(tmp_path):
    said: list[str] = []
    root = folders(tmp_path / "d")
    for _ in range(2):
        open_dataset("folder", {"path": root, "size": 8}, said.append)
    assert len(said) == 1
    assert said[0].startswith(f"decoding 18 images to 8 x 8 pixels, once, into {tmp_path}/cache/")


def test_labels_stay_with_their_images_when_unreadable_ones_are_skipped(tmp_path):
    root = folders(tmp_path / "d")
    broken = ["test/bee/100.png", "train/ant/000.png", "train/bee/007.png", "train/cat/011.png"]
    for name in broken:
        (root / name).write_bytes(b"no image")
    found = opened("folder", root, on_bad_image="skip")
    assert numbers(found.train) == [3, 6, 9, 1, 4, 10, 2, 5, 8]
    assert numbers(found.queries) == [102, 105, 103, 101, 104]
    assert found.skipped == tuple(f"{root / name}: not an image" for name in broken)
    assert (len(found.train.inputs), len(found.train)) == (9, 9)


def test_multi_hot_labels_stay_with_their_images_too(tmp_path):
    root = lists(tmp_path / "d", list(range(6)), [6, 7])
    for name, rows in (("train", range(6)), ("test", range(6, 8))):
        bits = [f"img/{row:03}.png {row & 1} {row >> 1 & 1} {~row & 1}\n" for row in rows]
        (root / f"{name}.txt").write_text("".join(bits))
    (root / "img" / "002.png").write_bytes(b"")
    found = opened("lists", root, on_bad_image="skip")
    rows = [0, 1, 3, 4, 5]
    assert found.train.inputs[:][:, 0, 0, 0].tolist() == rows
    assert found.train.labels.tolist() == [[row & 1, row >> 1 & 1, ~row & 1] for row in rows]


def test_an_unreadable_image_stops_with_its_path_the_count_and_the_way_out(tmp_path):
    root = folders(tmp_path / "d")
    way_out = "unreadable image; mend it, or set dataset.on_bad_image: skip"
    (root / "train/bee/007.png").write_bytes(b"no image")
    assert refused("folder", root) == f"{root}/train/bee/007.png: not an image: {way_out}"
    (root / "test/ant/102.png").write_bytes(b"")
    (root / "train/ant/000.png").write_bytes(b"")
    assert (
        refused("folder", root)
        == f"{root}/test/ant/102.png: not an image (and 2 more, see crh-tune data check {root}): {way_out}"
    )


def test_an_unreadable_image_with_a_line_break_in_its_name_is_told_in_one_line(tmp_path):
    root = folders(tmp_path / "d")
    (root / "train/bee/a\nb.png").write_bytes(b"no image")
    assert refused("folder", root).startswith(f"{root}/train/bee/a\\nb.png: not an image: ")


def test_a_part_without_a_readable_image_is_refused(tmp_path):
    root = folders(tmp_path / "d")
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    assert "test" in refused("folder", root, on_bad_image="skip")


def test_a_database_without_a_readable_image_is_refused(tmp_path):
    root = lists(tmp_path / "d", list(range(6)), [100, 101], [50, 51])
    for number in (50, 51):
        (root / f"img/{number:03}.png").write_bytes(b"no image")
    assert "database" in refused("lists", root, on_bad_image="skip")


def test_a_search_is_told_of_trained_queries_and_of_images_that_are_not_read(tmp_path):
    root = folders(tmp_path / "d")
    said: list[str] = []
    open_dataset("folder", {"path": root, "size": 8}, said.append)
    assert [line for line in said if not line.startswith("decoding ")] == []
    shutil.copy(root / "train/ant/003.png", root / "test/ant/102.png")
    (root / "train/ant/IMG_1.heic").write_bytes(b"x")
    for name in ("train/bee/001.png", "test/bee/100.png"):
        (root / name).write_bytes(b"no image")
    open_dataset("folder", {"path": root, "size": 8, "on_bad_image": "skip"}, said.append)
    assert [line for line in said if not line.startswith("decoding ")] == [
        "1 image of kinds that are not read: .heic (train/ant/IMG_1.heic): convert them",
        "1 query is also among the training samples: test/ant/102.png = train/ant/003.png",
    ]


def test_validation_queries_with_the_content_of_a_training_image_are_counted(tmp_path):
    root = folders(tmp_path)
    for file in sorted((root / "train").rglob("*.png")):
        shutil.copy(file, file.with_name(f"copy-{file.name}"))
    split = search_split(opened("folder", root), 0.5, 0)
    left = {(root / item).read_bytes() for item in split.train.items}
    also = [item for item in split.queries.items if (root / item).read_bytes() in left]
    assert also
    (line,) = split.notes()
    assert line.startswith(f"{len(also)} validation quer")
    assert f" also among the training samples: {also[0]} = " in line
    check = dict(check_data(root).lines)
    assert check["duplicates"] == "no query is also among the training samples"
    assert check["copies"].startswith(f"{len(split.train) + len(split.queries) >> 1} training samples have the content")


def test_problems_of_a_listing_point_to_the_check(tmp_path):
    root = folders(tmp_path / "d")
    (root / "test" / "dog").mkdir()
    empty = f"{root}/test/dog: is empty: put the images of the class into it, or remove it"
    assert refused("folder", root) == f"{empty} (and 1 more): crh-tune data check {root} lists them all"
    (root / "test" / "dog").rmdir()
    (root / "train" / "loose.png").write_bytes(b"x")
    loose = "1 image outside of any class folder, such as loose.png: move them into the folder of their class"
    assert refused("folder", root) == f"{root}/train: {loose}: crh-tune data check {root} lists them all"


def test_problems_of_features_point_to_the_check(tmp_path):
    root = features(tmp_path / "d", train_labels=np.arange(29) % 3)
    message = f"{root}/train_features.npy: has 30 rows for 29 labels: want one label a row"
    assert refused("features", root) == f"{message}: crh-tune data check {root} lists them all"


def places(found: Dataset) -> list[int]:
    """For each training image its place in the database, by their ids."""
    assert found.train_ids is not None
    assert found.database_ids is not None
    database = found.database_ids.tolist()
    return [database.index(which) if which in database else -1 for which in found.train_ids.tolist()]


def test_training_images_are_found_in_a_separate_database(tmp_path):
    train, database = [7, 2, 9, 0, 4, 11, 13, 15], [0, 50, 9, 51, 2, 7, 4, 52, 11]
    found = opened("lists", lists(tmp_path / "d", train, [100, 101], database))
    assert found.database is not None
    assert (numbers(found.train), numbers(found.database)) == (train, database)
    assert places(found) == [5, 4, 2, 0, 6, 8, -1, -1]


def test_places_in_the_database_are_right_when_images_are_skipped(tmp_path):
    train, database = [7, 2, 9, 0, 4, 11], [0, 50, 9, 51, 2, 7, 4, 52, 11]
    root = lists(tmp_path / "d", train, [100, 101], database)
    for number in (9, 50, 7):
        (root / f"img/{number:03}.png").write_bytes(b"no image")
    found = opened("lists", root, on_bad_image="skip")
    assert found.database is not None
    assert (numbers(found.train), numbers(found.database)) == ([2, 0, 4, 11], [0, 51, 2, 4, 52, 11])
    assert places(found) == [2, 0, 3, 5]


@pytest.mark.parametrize("seed", range(5))
def test_a_search_takes_what_it_holds_out_out_of_the_database_and_nothing_else(tmp_path, seed):
    train, database = list(range(20)), [*range(30, 40), *range(18, 3, -1)]
    found = opened("lists", lists(tmp_path / "d", train, [100, 101], database))
    split = search_split(found, 0.3, seed)
    held = numbers(split.queries)
    assert len(held) == 6
    assert split.database is not None
    assert numbers(split.database) == [number for number in database if number not in held]
    assert sorted(numbers(split.train) + held) == train
    assert final_split(found).database is found.database


def test_a_training_image_that_the_database_lists_twice_is_taken_out_twice(tmp_path):
    train = list(range(12))
    found = opened("lists", lists(tmp_path / "d", train, [100, 101], [*train, *train]))
    split = search_split(found, 0.3, 0)
    assert split.database is not None
    assert not set(numbers(split.queries)) & set(numbers(split.database))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ">f4"])
def test_no_validation_query_of_features_is_in_the_database(tmp_path, dtype):
    train = np.arange(-30, 60, dtype=np.float32).reshape(30, 3)
    train[7, 0] = -0.0
    database = np.concatenate([train[::-1], train[:5] + 500]).astype(dtype)
    database[22, 0] = 0.0
    labels = {"train_labels": np.arange(30) % 3, "database_labels": np.arange(35) % 3}
    queries = {"test_features": np.ones((6, 3))}
    found = opened(
        "features", features(tmp_path, train_features=train, database_features=database, **queries, **labels)
    )
    for seed in range(5):
        split = search_split(found, 0.3, seed)
        assert split.database is not None
        held = split.queries.inputs[:].tolist()
        assert len(held) == 9
        assert split.database.inputs[:].tolist() == [row for row in database.tolist() if row not in held]
    assert final_split(found).database is found.database


def test_ids_of_features_are_taken_a_chunk_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("crh_tune.data.store.stored._CHUNK", 4)
    found = opened("features", features(tmp_path))
    assert found.train_ids is not None
    assert found.database_ids is not None
    assert len(np.unique(np.concatenate([found.train_ids, found.database_ids]))) == 39


@pytest.mark.parametrize("name", ["folder", "lists", "features"])
def test_a_reference_of_the_users_reaches_the_dataset(tmp_path, name):
    if name == "folder":
        root, names = folders(tmp_path / "d"), NAMES
    else:
        root = lists(tmp_path / "d", [0, 1, 2, 3], [4, 5]) if name == "lists" else features(tmp_path / "d")
        names = ("0", "1", "2")
    (tmp_path / "r.csv").write_text(f"{names[0]},small\n{names[2]},large\n{names[1]},small\n")
    found = opened(name, root, reference=tmp_path / "r.csv")
    assert found.reference is not None
    assert found.reference.tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]
    for split in (search_split(found, 0.5, 0), final_split(found)):
        assert split.reference is found.reference


def test_a_reference_with_a_row_a_training_sample_counts_the_skipped_ones(tmp_path):
    root = lists(tmp_path / "d", list(range(6)), [100, 101])
    (root / "img/004.png").write_bytes(b"no image")
    prototypes = np.array([[4.0, 0], [0, 1], [3, 3]])
    np.save(tmp_path / "r.npy", prototypes[np.arange(6) % 3])
    found = opened("lists", root, on_bad_image="skip", reference=tmp_path / "r.npy")
    centred = prototypes - prototypes.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert found.reference is not None
    assert np.allclose(found.reference, unit @ unit.T)


def test_features_stay_memory_mapped(tmp_path):
    root = features(tmp_path / "d")
    found = opened("features", root)
    assert found.database is not None
    for part, samples in (("train", found.train), ("test", found.queries), ("database", found.database)):
        assert type(samples.inputs) is StoredRows
        assert isinstance(samples.inputs.array, np.memmap)
        assert np.array_equal(samples.inputs[:], np.load(root / f"{part}_features.npy"))
        assert (samples.inputs.dtype, samples.inputs.ndim) == (np.float32, 2)
        assert np.array_equal(samples.labels, np.load(root / f"{part}_labels.npy"))
    split = search_split(found, 0.3, 0)
    assert isinstance(split.train.inputs, StoredRows)
    assert split.train.inputs.array is found.train.inputs.array
    everything = {tuple(row) for part in (split.train, split.queries) for row in part.inputs[:].tolist()}
    assert everything == {tuple(row) for row in np.load(root / "train_features.npy").tolist()}


def test_features_of_one_array_are_drawn_with_their_labels(tmp_path):
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "features.npy", np.arange(40, dtype=np.float32).reshape(20, 2))
    np.save(tmp_path / "d" / "labels.npy", np.arange(20) % 2)
    found = opened("features", tmp_path / "d")
    for samples, count in ((found.train, 16), (found.queries, 4)):
        assert isinstance(samples.inputs, StoredRows)
        assert isinstance(samples.inputs.array, np.memmap)
        assert samples.inputs.shape == (count, 2)
        assert (samples.inputs[:][:, 0] // 2 % 2).tolist() == samples.labels.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.uint8])
@pytest.mark.parametrize("shape", [(9001, 3), (4096, 2), (5000, 2, 3, 3)])
def test_what_is_computed_of_stored_rows_is_what_is_computed_of_the_array(tmp_path, dtype, shape):
    array = np.random.default_rng(0).integers(0, 200, (2 * shape[0], *shape[1:])).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    rows = np.random.default_rng(1).permutation(len(array))[: shape[0]]
    stored, held = StoredRows(np.load(tmp_path / "a.npy", mmap_mode="r"), rows), array[rows]
    assert (stored.shape, len(stored), stored.dtype) == (held.shape, len(held), held.dtype)
    assert digest_of(stored) == digest_of(held)
    assert Samples(stored, rows).fingerprint() == Samples(held, rows).fingerprint()
    for one, other in zip(channel_moments(stored), channel_moments(held), strict=True):
        assert np.array_equal(one, other)
    axes = (0, *range(2, held.ndim))
    assert np.allclose(channel_moments(stored)[0], held.mean(axis=axes, dtype=np.float64), rtol=1e-12)
    assert np.allclose(channel_moments(stored)[1], held.astype(np.float64).std(axis=axes), rtol=1e-12)
    assert np.array_equal(np.concatenate(list(prototype_vectors(stored))), held.reshape(len(held), -1))
    assert np.array_equal(np.concatenate(list(chunks(stored))), held)
    assert np.array_equal(pick(stored, np.array([4, 4, 0]))[:], pick(held, np.array([4, 4, 0])))


@pytest.mark.parametrize("size", [8, 32, 40])
def test_what_is_computed_of_cached_images_is_what_is_computed_of_their_pixels(tmp_path, size):
    root = tmp_path / "d"
    noise = np.random.default_rng(0).integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    for number, image in enumerate(noise):
        path = root / ("train" if number < 8 else "test") / NAMES[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    cached = open_dataset("folder", {"path": root, "size": size}).train.inputs
    assert isinstance(cached, CachedImages)
    held = noise[[0, 2, 4, 6, 1, 3, 5, 7]].transpose(0, 3, 1, 2)
    assert np.array_equal(cached[:], held)
    for some in (np.arange(8), np.array([6, 1, 1])):
        for one, other in zip(channel_moments(pick(cached, some)), channel_moments(held[some]), strict=True):
            assert np.allclose(one, other, rtol=1e-12)
    vectors = np.concatenate(list(prototype_vectors(cached)))
    if size <= 32:
        expected = held
    else:
        small = [Image.fromarray(image.transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BOX) for image in held]
        expected = np.stack([np.asarray(image) for image in small]).transpose(0, 3, 1, 2)
    side = min(size, 32)
    assert np.array_equal(vectors.reshape(8, side, side, 3).transpose(0, 3, 1, 2), expected)
    assert np.array_equal(np.concatenate(list(chunks(cached))), held)


def test_a_digest_of_cached_images_sees_their_order_and_which_they_are(tmp_path):
    inputs = opened("folder", folders(tmp_path / "d")).train.inputs
    chosen = [[0, 1, 2], [0, 2, 1], [0, 1], [0, 1, 3], [0, 1, 2, 2]]
    digests = [digest_of(pick(inputs, np.array(rows))) for rows in chosen]
    assert len(set(digests)) == len(chosen)
    assert digest_of(pick(pick(inputs, np.array([5, 0, 1, 2])), np.array([1, 2, 3]))) == digests[0]


def prints(dataset: Dataset) -> tuple[str, str]:
    return final_split(dataset).fingerprint, search_split(dataset, 0.3, 1).fingerprint


def test_fingerprints_are_the_same_in_another_process_and_of_a_copy(tmp_path):
    whole = {
        "folder": folders(tmp_path / "folder"),
        "lists": lists(tmp_path / "lists", list(range(12)), [100, 101], list(range(5, 30))),
        "features": features(tmp_path / "features"),
    }
    expected, arguments = [], []
    for name, root in whole.items():
        expected.append(prints(opened(name, root)))
        shutil.copytree(root, tmp_path / "copies" / name)
        assert prints(opened(name, tmp_path / "copies" / name)) == expected[-1]
        arguments += [name, str(root), name, str(tmp_path / "copies" / name)]
    assert len({fingerprint for pair in expected for fingerprint in pair}) == 6
    other = {**os.environ, "CRH_TUNE_CACHE": str(tmp_path / "other cache")}
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, *arguments], env=other, capture_output=True, text=True, check=True, timeout=180
    )
    found = [tuple(line.split()) for line in done.stdout.splitlines()]
    assert found == [pair for pair in expected for _ in range(2)]


def test_the_fingerprints_of_images_change_with_an_image_a_label_the_order_and_the_size(tmp_path):
    train, test, database = list(range(12)), [100, 101, 102], list(range(6, 30))
    root = lists(tmp_path / "d", train, test, database)
    seen = [final_split(opened("lists", root)).fingerprint, final_split(opened("lists", root, size=9)).fingerprint]
    for number in (0, 100, 29):  # of the training images, of the queries, of the database
        path = root / f"img/{number:03}.png"
        before = path.read_bytes()
        Image.new("RGB", (10, 8), (number, 100 + number % 3, 1 + number // 2)).save(path)
        seen.append(final_split(opened("lists", root)).fingerprint)
        path.write_bytes(before)
        assert final_split(opened("lists", root)).fingerprint == seen[0]
    for name, row in (("train", "img/000.png 0"), ("test", "img/100.png 1"), ("database", "img/029.png 2")):
        text = (root / f"{name}.txt").read_text()
        (root / f"{name}.txt").write_text(text.replace(row, f"{row[:-1]}{(int(row[-1]) + 1) % 3}"))
        seen.append(final_split(opened("lists", root)).fingerprint)
        (root / f"{name}.txt").write_text(text)
    lists(root, train[::-1], test, database)
    seen.append(final_split(opened("lists", root)).fingerprint)
    lists(root, train, test, database[:-1])
    seen.append(final_split(opened("lists", root)).fingerprint)
    assert len(set(seen)) == len(seen) == 10


def test_the_fingerprints_of_features_change_with_a_value_and_a_label(tmp_path):
    root = features(tmp_path / "d")
    seen = [final_split(opened("features", root)).fingerprint]
    for name in ("train", "test", "database"):
        for kind in ("features", "labels"):
            file = root / f"{name}_{kind}.npy"
            array = np.load(file)
            changed = array.copy()
            changed.flat[2] = 1 if kind == "labels" else np.nextafter(changed.flat[2], np.float32(9))
            np.save(file, changed)
            seen.append(final_split(opened("features", root)).fingerprint)
            np.save(file, array)
    assert len(set(seen)) == len(seen) == 7
    assert final_split(opened("features", root)).fingerprint == seen[0]


def deep_folders(root: Path) -> Path:
    """16-bit images of 12-bit values: image i holds values up to 400 (i + 1) of 4000."""

    def save(values: np.ndarray, path: Path) -> None:
        Image.fromarray(values.astype(np.uint16)).save(path)

    return deep_folders_of(root, save)


def deep_folders_of(root: Path, save: Callable[[np.ndarray, Path], object]) -> Path:
    for number in range(10):
        part = "train" if number < 6 else "test"
        path = root / part / NAMES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.linspace(0, 400 * (number + 1), 64).reshape(8, 8)
        save(values, path)
    return root


def test_images_of_more_than_8_bits_are_scaled_by_one_range_for_all(tmp_path):
    root, said = deep_folders(tmp_path / "d"), list[str]()
    dataset = open_dataset("folder", {"path": root, "size": 8}, said.append)
    assert "images of more than 8 bits a channel: 0 to 4000 become 0 to 255 (dataset.range sets others)" in said
    for part in (dataset.train, dataset.queries):
        brightest = part.inputs[np.arange(len(part))].max(axis=(1, 2, 3)).tolist()
        assert brightest == [round(400 * (int(Path(item).stem) + 1) / 4000 * 255) for item in part.items]
    again = open_dataset("folder", {"path": root, "size": 8}, said.append)
    assert again.train.fingerprint() == dataset.train.fingerprint()
    assert (again.train.inputs.span, again.queries.inputs.span) == ((0, 4000), (0, 4000))


def test_colour_of_16_bits_is_scaled_likewise_or_a_problem_that_says_what_to_do(tmp_path):
    def save(values: np.ndarray, path: Path) -> None:
        path.write_bytes(png_of_16_bits(np.repeat(values[..., None], 3, axis=2)))

    root, said = deep_folders_of(tmp_path / "d", save), list[str]()
    dataset = open_dataset("folder", {"path": root, "size": 8}, said.append)
    line = "images of more than 8 bits a channel: 0 to 4000 become 0 to 255 (dataset.range sets others)"
    assert line in said
    assert ("note", line) in check_data(root).lines
    brightest = dataset.queries.inputs[np.arange(4)].max(axis=(1, 2, 3)).tolist()
    assert brightest == [round(400 * (int(Path(item).stem) + 1) / 4000 * 255) for item in dataset.queries.items]
    (root / "train/ant/ink.tif").write_bytes(tiff_of_16_bits(np.ones((4, 4, 4)), photometric=5))
    found = "more than 8 bits a channel in a layout that is not read (CMYK): convert it to 8 bits a channel, or to grey"
    assert check_data(root).problems == [f"{root}/train/ant/ink.tif: {found}"]


def test_a_frozen_backbone_sees_images_scaled_by_the_same_range_and_says_it(tmp_path):
    root, said = deep_folders(tmp_path / "d"), list[str]()

    def brightest(source: ImageSource, options: ImageOptions, say: Callable[[str], None]) -> FeatureCache:
        def compute(images: np.ndarray) -> np.ndarray:
            return images.max(axis=(1, 2, 3))[:, None].astype(np.float32)

        return open_features(source, Recipe("brightest", 1, 8, Fit(), lambda: compute), say)

    dataset = open_dataset("folder", {"path": root, "size": 8}, said.append, brightest)
    assert "images of more than 8 bits a channel: 0 to 4000 become 0 to 255 (dataset.range sets others)" in said
    for part in (dataset.train, dataset.queries):
        wanted = [round(400 * (int(Path(item).stem) + 1) / 4000 * 255) for item in part.items]
        assert part.inputs[np.arange(len(part))][:, 0].tolist() == wanted
        assert part.inputs.span == (0, 4000)  # which an export keeps


def test_a_range_that_is_given_has_a_cache_of_its_own(tmp_path):
    root = deep_folders(tmp_path / "d")
    open_dataset("folder", {"path": root, "size": 8})
    dataset = open_dataset("folder", {"path": root, "size": 8, "range": [0, 8000]})
    assert dataset.queries.inputs[np.arange(4)].max() == round(4000 / 8000 * 255)
    with pytest.raises(ValidationError, match="two numbers of which the second is higher"):
        open_dataset("folder", {"path": root, "range": [5, 5]})


def test_images_of_a_single_value_are_named(tmp_path):
    root, said = folders(tmp_path / "d"), list[str]()
    Image.new("L", (9, 9), 7).save(root / "train/ant/black.png")
    open_dataset("folder", {"path": root, "size": 8}, said.append)
    assert "1 image of a single grey value: train/ant/black.png" in said
    notes = [text for name, text in check_data(root).lines if name == "note"]
    assert notes == ["1 image of a single grey value: train/ant/black.png"]
