"""Datasets built from scikit-learn's 1,797 handwritten digits (8 x 8, 10 classes): real pixels, nothing to download.

A quarter of each digit's images is set aside for test queries; the rest is cut into five folds, the groups of
a hold-out. A composed image takes all its digits from one fold, so that images of train, validation and
test never share a digit.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from crh_tune.data.options import Options
from crh_tune.data.splits import Dataset, Samples

FOLDS = 5
_TEST_SHARE = 0.25
_POOL_SEED = 0

Pools = list[npt.NDArray[np.int64]]
"""For each of the 10 digits, the rows of its images."""


class DigitsOptions(Options):
    """Single handwritten digits, built in: 10 classes."""


class DigitPairsOptions(Options):
    """Two digits side by side, built in: 100 classes."""

    images_per_class: int = Field(12, ge=2, le=10_000)
    """How many training pairs a class has."""
    queries_per_class: int = Field(5, ge=1, le=10_000)
    """How many test queries a class has."""
    seed: int = Field(0, ge=0)
    """What digits are paired with."""


class DigitSetsOptions(Options):
    """Canvases of several digits, built in: each has the labels of the digits on it."""

    images: int = Field(1200, ge=50, le=1_000_000)
    """How many training canvases there are."""
    queries: int = Field(400, ge=10, le=1_000_000)
    """How many test queries there are."""
    seed: int = Field(0, ge=0)
    """What canvases are composed with."""


def digits(options: DigitsOptions) -> Dataset:
    """The digits: 10 classes, 1 x 8 x 8."""
    images, labels = _images()
    test, folds = _pools(labels)
    train = np.sort(np.concatenate([np.concatenate(fold) for fold in folds]))
    queries = np.sort(np.concatenate(test))
    names = tuple(str(digit) for digit in range(10))
    return Dataset(
        "digits", names, Samples(images[train, None], labels[train]), Samples(images[queries, None], labels[queries])
    )


def digit_pairs(options: DigitPairsOptions) -> Dataset:
    """Two digits side by side: 100 classes, 1 x 8 x 16.

    Two classes are alike by the digits they share in the same place: reference similarity 0, 1/2 or 1.
    """
    images, labels = _images()
    test, folds = _pools(labels)
    generator = np.random.default_rng([_POOL_SEED, options.seed])
    classes = np.arange(100)
    wanted = np.repeat(classes, options.images_per_class)
    place = np.tile(np.arange(options.images_per_class), 100)
    groups = (wanted + place) % FOLDS
    train = _compose_pairs(images, wanted, [folds[group] for group in groups], generator)
    asked = np.repeat(classes, options.queries_per_class)
    queries = _compose_pairs(images, asked, [test] * len(asked), generator)
    tens, ones = classes // 10, classes % 10
    reference = (np.equal.outer(tens, tens).astype(np.float64) + np.equal.outer(ones, ones)) / 2
    names = tuple(f"{c:02d}" for c in classes)
    return Dataset(
        "digit_pairs", names, Samples(train, wanted), Samples(queries, asked), reference=reference, groups=groups
    )


def digit_sets(options: DigitSetsOptions) -> Dataset:
    """One to four digits on the quarters of a canvas: 10 labels, several an image, 1 x 16 x 16."""
    images, labels = _images()
    test, folds = _pools(labels)
    generator = np.random.default_rng([_POOL_SEED, options.seed, 1])
    groups = np.arange(options.images) % FOLDS
    train = _compose_sets(images, [folds[group] for group in groups], generator)
    queries = _compose_sets(images, [test] * options.queries, generator)
    names = tuple(str(digit) for digit in range(10))
    return Dataset("digit_sets", names, train, queries, groups=groups)


def _images() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All digits as 1797 x 8 x 8 uint8 on 0..255, and their labels."""
    found = importlib.util.find_spec("sklearn")  # whose import takes seconds of each process that trains
    assert found is not None
    assert found.submodule_search_locations is not None
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(path, delimiter=",")
    return np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), rows[:, -1].astype(np.int64)


def _pools(labels: npt.NDArray[np.int64]) -> tuple[Pools, list[Pools]]:
    """The test pool, and the five folds of the training pool."""
    generator = np.random.default_rng(_POOL_SEED)
    test: Pools = []
    folds: list[Pools] = [[] for _ in range(FOLDS)]
    for digit in range(10):
        rows = generator.permutation(np.flatnonzero(labels == digit))
        cut = round(_TEST_SHARE * len(rows))
        test.append(rows[:cut])
        for fold, part in zip(folds, np.array_split(rows[cut:], FOLDS), strict=True):
            fold.append(part)
    return test, folds


def _compose_pairs(
    images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64], pools: list[Pools], generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    rows = np.array(
        [
            (generator.choice(pool[c // 10]), generator.choice(pool[c % 10]))
            for c, pool in zip(classes, pools, strict=True)
        ]
    )
    return np.concatenate([images[rows[:, 0]], images[rows[:, 1]]], axis=2)[:, None]


def _compose_sets(images: npt.NDArray[np.uint8], pools: list[Pools], generator: np.random.Generator) -> Samples:
    canvas = np.zeros((len(pools), 1, 16, 16), dtype=np.uint8)
    labels = np.zeros((len(pools), 10), dtype=np.uint8)
    for row, pool in enumerate(pools):
        for quarter in generator.permutation(4)[: generator.integers(1, 5)]:
            digit = int(generator.integers(10))
            top, left = 8 * (quarter // 2), 8 * (quarter % 2)
            canvas[row, 0, top : top + 8, left : left + 8] = images[generator.choice(pool[digit])]
            labels[row, digit] = 1
    return Samples(canvas, labels)
