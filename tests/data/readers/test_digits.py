"""The built-in datasets: every composed image is taken apart and its digits looked up in scikit-learn's."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Dataset, Samples, search_split

BUILT = ("digits", "digit_pairs", "digit_sets")
PIXELS, DIGITS = load_digits(return_X_y=True)
ROW_OF = {pixels.astype(np.uint8).tobytes(): row for row, pixels in enumerate(PIXELS)}


def row_of(image: np.ndarray) -> int:
    """Which of scikit-learn's digits an 8 x 8 image on 0..255 is (KeyError: none)."""
    return ROW_OF[np.round(image * (16 / 255)).astype(np.uint8).tobytes()]


def quarters(image: np.ndarray) -> list[np.ndarray]:
    """The 8 x 8 parts of a 1 x H x W image that are not empty."""
    _, height, width = image.shape
    parts = [image[0, y : y + 8, x : x + 8] for y in range(0, height, 8) for x in range(0, width, 8)]
    return [part for part in parts if part.any()]


def rows_of(samples: Samples) -> list[list[int]]:
    """For each image, the digits it is made of, in reading order."""
    return [[row_of(part) for part in quarters(image)] for image in samples.inputs]


@pytest.fixture(scope="module", params=["digits", "digit_pairs", "digit_sets"])
def dataset(request) -> Dataset:
    return open_dataset(request.param, {})


def test_scikit_learns_digits_are_all_different():
    assert len(ROW_OF) == len(PIXELS) == 1797  # otherwise no digit could be told from another


@pytest.mark.parametrize("fraction", [0.2, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_images_of_train_validation_and_test_never_share_a_digit(dataset, fraction, seed):
    split = search_split(dataset, fraction, seed)
    used = [{row for rows in rows_of(part) for row in rows} for part in (split.train, split.queries, dataset.queries)]
    assert all(len(rows) > 50 for rows in used)
    assert not used[0] & used[1]
    assert not used[0] & used[2]
    assert not used[1] & used[2]


@pytest.mark.parametrize("part", ["train", "queries"])
def test_labels_are_those_of_the_digits_in_the_image(dataset, part):
    samples = getattr(dataset, part)
    for rows, label in zip(rows_of(samples), samples.labels, strict=True):
        digits = DIGITS[rows].tolist()
        if dataset.name == "digits":
            assert digits == [label]
        elif dataset.name == "digit_pairs":
            assert digits == [label // 10, label % 10]
        else:
            assert set(digits) == set(np.flatnonzero(label).tolist())
            assert 1 <= len(digits) <= 4


@pytest.mark.parametrize(
    ("name", "train", "queries", "classes", "shape"),
    [
        ("digits", 1347, 450, 10, (1, 8, 8)),
        ("digit_pairs", 1200, 500, 100, (1, 8, 16)),
        ("digit_sets", 1200, 400, 10, (1, 16, 16)),
    ],
)
def test_shapes_of_images_and_labels(name, train, queries, classes, shape):
    opened = open_dataset(name, {})
    assert opened.name == name
    assert len(opened.class_names) == len(set(opened.class_names)) == classes
    for samples, count in ((opened.train, train), (opened.queries, queries)):
        assert samples.inputs.shape == (count, *shape)
        assert samples.inputs.dtype == np.uint8
        assert samples.inputs.max() == 255
        if name == "digit_sets":
            assert samples.labels.shape == (count, classes)
            assert set(np.unique(samples.labels)) == {0, 1}
            assert (samples.labels.sum(axis=1) > 1).any()
        else:
            assert samples.labels.shape == (count,)
            assert set(samples.labels.tolist()) == set(range(classes))


def test_digits_uses_every_image_once_and_a_quarter_of_each_digit_for_the_test():
    opened = open_dataset("digits", {})
    rows = rows_of(opened.train) + rows_of(opened.queries)
    assert sorted(row for (row,) in rows) == list(range(1797))
    asked = np.bincount(opened.queries.labels)
    assert np.abs(asked - np.bincount(DIGITS) / 4).max() <= 0.5


def test_digit_pairs_has_as_many_images_of_each_class_as_asked_for():
    opened = open_dataset("digit_pairs", {"images_per_class": 3, "queries_per_class": 2})
    assert np.bincount(opened.train.labels).tolist() == [3] * 100
    assert np.bincount(opened.queries.labels).tolist() == [2] * 100


def test_digit_sets_has_as_many_images_as_asked_for():
    opened = open_dataset("digit_sets", {"images": 60, "queries": 10})
    assert (len(opened.train), len(opened.queries)) == (60, 10)


def test_pairs_are_alike_by_the_digits_they_share_in_the_same_place():
    opened = open_dataset("digit_pairs", {"images_per_class": 2})
    assert opened.reference is not None
    for i, one in enumerate(opened.class_names):
        for j, other in enumerate(opened.class_names):
            assert opened.reference[i, j] == sum(a == b for a, b in zip(one, other, strict=True)) / 2


@pytest.mark.parametrize("seed", range(4))
def test_a_hold_out_of_pairs_leaves_every_class_on_both_sides(seed):
    split = search_split(open_dataset("digit_pairs", {}), 0.2, seed)
    assert set(split.train.labels.tolist()) == set(split.queries.labels.tolist()) == set(range(100))


@pytest.mark.parametrize("name", ["digit_pairs", "digit_sets"])
def test_the_seed_composes_the_images(name):
    small = {"images_per_class": 2} if name == "digit_pairs" else {"images": 50}
    one, again, other = (open_dataset(name, {**small, "seed": seed}) for seed in (1, 1, 2))
    assert np.array_equal(one.train.inputs, again.train.inputs)
    assert np.array_equal(one.queries.inputs, again.queries.inputs)
    assert not np.array_equal(one.train.inputs, other.train.inputs)
    assert not np.array_equal(one.queries.inputs, other.queries.inputs)


def test_fingerprints_are_the_same_in_another_process():
    code = (
        "from crh_tune.data.datasets import open_dataset\n"
        "from crh_tune.data.splits import search_split\n"
        f"print(*(search_split(open_dataset(name, {{}}), 0.2, 3).fingerprint for name in {BUILT}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = [search_split(open_dataset(name, {}), 0.2, 3).fingerprint for name in BUILT]
    assert answer.stdout.split() == here
    assert len(set(here)) == len(BUILT)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {"images": 3}),
        ("digit_pairs", {"images_per_class": 1}),
        ("digit_pairs", {"seed": -1}),
        ("digit_sets", {"images": 0}),
        ("digit_sets", {"images_per_class": 3}),
    ],
)
def test_options_that_a_dataset_does_not_take_are_refused(name, options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        open_dataset(name, options)
