"""CIFAR in its Python batches, small, as Python 2 wrote them and as Python 3 does; and traps among them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from crh_tune.data.listing import DataError
from crh_tune.data.readers.cifar import ArrayListing, CifarOptions, list_cifar10, list_cifar100
from tests.data.readers.test_folder import touch

FINE = ("apple", "beaver", "dolphin", "pear 😀")
COARSE = np.array([1, 0, 0, 1])


def pixels(count: int, start: int) -> np.ndarray:
    """Rows of 3072: image i begins with i, its green plane with 100, its blue one with 200; the rest counts up."""
    data = np.tile(np.arange(3072) % 256, (count, 1)).astype(np.uint8)
    data[:, 0], data[:, 1024], data[:, 2048] = start + np.arange(count), 100, 200
    return data


def dump(file: Path, content: dict, protocol: int = 2) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, protocol))


def cifar10(folder: Path, count: int = 2, protocol: int = 2) -> Path:
    """Five batches and a test batch of ``count`` images each, their labels 0, 1, 2, 0, 1, ... over all."""
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        start = number * count
        labels = [row % 3 for row in range(start, start + count)]
        content = {b"data": pixels(count, start), b"labels": labels, b"batch_label": b"x", b"filenames": [b"a.png"]}
        dump(folder / name, content, protocol)
    dump(folder / "batches.meta", {b"label_names": [b"airplane", b"bird", b"cat"], b"num_vis": 3072}, protocol)
    return folder


def cifar100(folder: Path, train: list[int], test: list[int]) -> Path:
    for name, labels, start in (("train", train, 0), ("test", test, len(train))):
        coarse = COARSE[labels].tolist()
        dump(folder / name, {b"data": pixels(len(labels), start), b"fine_labels": labels, b"coarse_labels": coarse})
    names = [name.encode() for name in FINE]
    dump(folder / "meta", {b"fine_label_names": names, b"coarse_label_names": [b"mammals", b"fruit"]})
    return folder


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "."])
def test_batches_are_read_in_order(tmp_path, folder):
    where = cifar10(tmp_path / folder)
    found = list_cifar10(CifarOptions(path=tmp_path))
    assert isinstance(found, ArrayListing)
    assert found.problems == ()
    assert found.layout == "Python batches, full protocol"
    assert (found.root, found.class_names) == (where, ("airplane", "bird", "cat"))
    assert [file.name for file in found.files] == [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    assert all(file.parent == where for file in found.files)
    assert found.images.shape == (12, 32, 32, 3)
    assert found.images.dtype == np.uint8
    assert found.images[:, 0, 0].tolist() == [[row, 100, 200] for row in range(12)]
    assert found.images[0, 1, 2].tolist() == [34, 34, 34]
    assert found.labels.tolist() == [row % 3 for row in range(12)]
    assert found.labels.dtype == np.int64
    assert found.train_rows.tolist() == list(range(10))
    assert found.query_rows.tolist() == [10, 11]
    assert (found.database_rows, found.reference) == (None, None)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_other_protocols_are_read(tmp_path, protocol):
    found = list_cifar10(CifarOptions(path=cifar10(tmp_path, protocol=protocol)))
    assert found.images[:, 0, 0, 0].tolist() == list(range(12))


def test_pickles_of_python_2_are_read(tmp_path):
    """In these NumPy is numpy.core, and bytes are plain strings."""
    cifar10(tmp_path)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01M\x00\x0c\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    values = b"T\x00\x0c\x00\x00" + bytes(range(256)) * 12 + b"tb"
    batch = b"\x80\x02}(U\x04data" + array + dtype + values + b"U\x06labels]K\x02au."
    (tmp_path / "test_batch").write_bytes(batch)
    found = list_cifar10(CifarOptions(path=tmp_path))
    assert found.query_rows.tolist() == [10]
    assert found.labels[10] == 2
    assert found.images[10, 1, 2].tolist() == [34, 34, 34]


@pytest.mark.parametrize("folder", ["cifar-100-python", "."])
def test_fine_labels_are_classes_and_superclasses_the_reference(tmp_path, folder):
    cifar100(tmp_path / folder, [0, 1, 2, 3, 0], [3, 1])
    found = list_cifar100(CifarOptions(path=tmp_path))
    assert found.problems == ()
    assert found.class_names == FINE
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 3, 1]
    assert (found.train_rows.tolist(), found.query_rows.tolist()) == ([0, 1, 2, 3, 4], [5, 6])
    assert found.reference.tolist() == [[1, 0, 0, 0.5], [0, 1, 0.5, 0], [0, 0.5, 1, 0], [0.5, 0, 0, 1]]


def test_a_class_has_one_superclass(tmp_path):
    cifar100(tmp_path, [0, 1, 2, 3], [0])
    content = {b"data": pixels(1, 9), b"fine_labels": [0], b"coarse_labels": [0]}
    dump(tmp_path / "test", content)
    message = f"{tmp_path}: image 0 has another superclass than others of 'apple'"
    assert list_cifar100(CifarOptions(path=tmp_path)).problems == (message,)


def test_the_sampled_protocol_draws_100_and_500_a_class(tmp_path):
    cifar10(tmp_path, count=310)
    found, again, other = (
        list_cifar10(CifarOptions(path=tmp_path, protocol="sampled", seed=seed)) for seed in (0, 0, 1)
    )
    assert found.problems == ()
    assert found.layout == "Python batches, sampled protocol"
    assert np.bincount(found.labels[found.query_rows]).tolist() == [100, 100, 100]
    assert np.bincount(found.labels[found.train_rows]).tolist() == [500, 500, 500]
    queries, train, database = (
        set(rows.tolist()) for rows in (found.query_rows, found.train_rows, found.database_rows)
    )
    assert database == set(range(1860)) - queries
    assert train < database
    assert max(queries) >= 1550  # of the test batch, too
    assert np.array_equal(found.query_rows, again.query_rows)
    assert not np.array_equal(found.query_rows, other.query_rows)


def test_the_sampled_protocol_takes_600_images_a_class_as_cifar100_has(tmp_path):
    cifar100(tmp_path, [0, 1, 2, 3] * 500, [0, 1, 2, 3] * 100)
    found = list_cifar100(CifarOptions(path=tmp_path, protocol="sampled"))
    assert found.problems == ()
    for rows, count in ((found.train_rows, 500), (found.query_rows, 100), (found.database_rows, 500)):
        assert np.bincount(found.labels[rows]).tolist() == [count] * 4
    assert np.array_equal(found.train_rows, found.database_rows)


def test_the_sampled_protocol_wants_at_least_600_images_a_class(tmp_path):
    cifar100(tmp_path, [0, 1, 2, 3] * 499, [0, 1, 2, 3] * 100)
    problems = list_cifar100(CifarOptions(path=tmp_path, protocol="sampled")).problems
    assert problems == tuple(
        f"{tmp_path}: class '{name}' has 599 images: the sampled protocol wants at least 600" for name in FINE
    )


def test_class_folders_are_listed_in_either_protocol(tmp_path):
    touch(tmp_path, *(f"train/{name}/{i:03d}.png" for name in "ab" for i in range(500)))
    touch(tmp_path, *(f"test/{name}/{i:03d}.png" for name in "ab" for i in range(100)))
    full = list_cifar10(CifarOptions(path=tmp_path))
    assert (full.layout, full.database) == ("class folders under train/ and test/", None)
    assert (len(full.train), len(full.queries)) == (1000, 200)
    sampled = list_cifar100(CifarOptions(path=tmp_path, protocol="sampled"))
    assert sampled.problems == ()
    assert sampled.layout == "class folders under train/ and test/, sampled protocol"
    for part, count in ((sampled.train, 500), (sampled.queries, 100), (sampled.database, 500)):
        assert np.bincount(part.labels).tolist() == [count, count]
        assert [path.split("/")[1] for path in part.paths] == ["ab"[label] for label in part.labels]
    assert set(sampled.train.paths) == set(sampled.database.paths)
    assert not set(sampled.queries.paths) & set(sampled.database.paths)


def test_labels_out_of_range_are_named(tmp_path):
    cifar10(tmp_path)
    dump(tmp_path / "data_batch_2", {b"data": pixels(3, 2), b"labels": [3, 0, -1]})
    found = list_cifar10(CifarOptions(path=tmp_path))
    assert found.problems == (
        f"{tmp_path}/data_batch_2: image 0 has the label 3: want 0 to 2",
        f"{tmp_path}/data_batch_2: image 2 has the label -1: want 0 to 2",
    )
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 3, *range(4, 12)]
    assert len(found.train_rows) == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"data": pixels(1, 0)}, "has no labels: restore the original file"),
        ({"data": pixels(1, 0), "labels": [0]}, "has no data: restore the original file"),
        ([1, 2], "has no data: restore the original file"),
        ({b"data": pixels(2, 0), b"labels": [0]}, "has other labels than 2 integers: restore the original file"),
        ({b"data": pixels(1, 0), b"labels": ["0"]}, "has other labels than 1 integers: restore the original file"),
        ({b"data": [1], b"labels": [0]}, "has other data than N x 3072 uint8: restore the original file"),
        (
            {b"data": pixels(1, 0)[:, :3000], b"labels": [0]},
            "has other data than N x 3072 uint8: restore the original file",
        ),
        (
            {b"data": pixels(1, 0).astype(np.int64), b"labels": [0]},
            "has other data than N x 3072 uint8: restore the original file",
        ),
    ],
)
def test_other_contents_are_refused(tmp_path, content, message):
    cifar10(tmp_path)
    dump(tmp_path / "data_batch_4", content)
    with pytest.raises(DataError) as caught:
        list_cifar10(CifarOptions(path=tmp_path))
    assert str(caught.value) == f"{tmp_path}/data_batch_4: {message}"


class Call:
    """Is unpickled by a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("trap", "asked"),
    [
        (Call(exec, "open('sprung', 'w')"), "__builtin__.exec"),
        (Call(os.system, "touch sprung"), "posix.system"),
        (Call(np.save, "sprung", 1), "numpy.save"),
        (Call(getattr, "text", "upper"), "__builtin__.getattr"),
    ],
)
@pytest.mark.parametrize("name", ["batches.meta", "data_batch_1"])
def test_pickles_that_run_code_are_refused_before_they_do(tmp_path, monkeypatch, name, trap, asked):
    cifar10(tmp_path)
    dump(tmp_path / name, {b"data": trap, b"label_names": trap})
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError) as caught:
        list_cifar10(CifarOptions(path=tmp_path))
    why = f"it asks for {asked}, which no CIFAR file needs"
    message = f"{tmp_path / name}: cannot be read as a batch of CIFAR ({why}): restore the original file"
    assert str(caught.value) == message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kept", [0, 1, 30, 0.5, 0.999])
def test_truncated_batches_are_refused_in_one_line(tmp_path, kept):
    cifar10(tmp_path)
    file = tmp_path / "data_batch_5"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else kept])
    with pytest.raises(DataError) as caught:
        list_cifar10(CifarOptions(path=tmp_path))
    assert str(caught.value).startswith(f"{file}: cannot be read as a batch of CIFAR (")
    assert "\n" not in str(caught.value)


def test_a_missing_batch_is_asked_for(tmp_path):
    cifar10(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    (tmp_path / "batches.meta").unlink()
    with pytest.raises(DataError) as caught:
        list_cifar10(CifarOptions(path=tmp_path))
    assert str(caught.value) == f"{tmp_path}: batches of CIFAR-10 are missing: data_batch_3, batches.meta"


def test_a_folder_without_any_layout_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        list_cifar100(CifarOptions(path=tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: no layout of CIFAR-100 is there; looked for: cifar-100-python/ with train, test, meta; "
        "these files; class folders under train/ and test/"
    )


def test_options():
    assert CifarOptions().size == 32
    for options in ({"protocol": "other"}, {"seed": -1}, {"size": 2}, {"queries": 3}):
        with pytest.raises(ValidationError, match=next(iter(options))):
            CifarOptions(**options)
