"""Samples, datasets, and the two splits a dataset gives: one to search with and one to test with, once.

A search sees the search split only: its queries are held out of the training samples, and the dataset's test
queries are not in it at all. The final split trains on all training samples and asks the test queries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

from crh_tune.data.stored import Array, Inputs, Rows, digest_of, pick

Stage = Literal["search", "final"]


@dataclass(frozen=True)
class Samples:
    """N inputs (uint8 images N x C x H x W, or float features N x D) and labels: N class indices or N x C multi-hot.

    ``items`` says what each of them is to the user: its file, below the data folder, or its row in the user's array.
    """

    inputs: Inputs
    labels: Array
    items: Array | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Rows) -> Samples:
        return Samples(pick(self.inputs, rows), self.labels[rows], None if self.items is None else self.items[rows])

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over every input and label, in order."""
        return hashlib.sha256(digest_of(self.inputs) + digest_of(self.labels)).hexdigest()[:16]


@dataclass(frozen=True)
class Dataset:
    """A dataset as it is on disk or built.

    Attributes:
        train: all training samples.
        queries: the test queries.
        database: what test queries are ranked against; None: the training samples.
        reference: C x C similarity of the classes where the dataset knows one (None: that of the inputs' prototypes).
        groups: per training sample, a group that must not be torn apart by a hold-out (None: every sample alone).
        train_ids, database_ids: which image each training sample and each database item is, so that what is held out
            can be taken out of the database.
        skipped: what of the files was left out, one line each.
    """

    name: str
    class_names: tuple[str, ...]
    train: Samples
    queries: Samples
    database: Samples | None = None
    reference: npt.NDArray[np.float64] | None = None
    groups: npt.NDArray[np.int64] | None = None
    train_ids: Rows | None = None
    database_ids: Rows | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """What one training run sees: it trains on ``train`` and ranks ``database`` (None: ``train``) for ``queries``."""

    stage: Stage
    class_names: tuple[str, ...]
    train: Samples
    queries: Samples
    database: Samples | None
    reference: npt.NDArray[np.float64] | None

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def multi_label(self) -> bool:
        return self.train.labels.ndim == 2

    @property
    def metric_prefix(self) -> str:
        """``val`` or ``test``: under which name the metrics of these queries go."""
        return "val" if self.stage == "search" else "test"

    @cached_property
    def fingerprint(self) -> str:
        """Names the split: equal exactly where training samples, queries, database and their order are equal."""
        parts = [self.stage, self.train.fingerprint(), self.queries.fingerprint()]
        if self.database is not None:
            parts.append(self.database.fingerprint())
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def search_split(dataset: Dataset, fraction: float, seed: int, queries: int | None = None) -> Split:
    """Hold ``fraction`` of the training samples out as validation queries; groups stay whole.

    ``queries`` is the most that are held out, as near as groups come to it. What is held out is taken out of the
    database too. Without groups the hold-out is stratified by class where the labels are single, every class has two
    samples and ``queries`` leave one for each class.
    Raises ValueError for a fraction outside (0, 1), or one that leaves nothing on a side.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation.fraction must lie between 0 and 1 to search, got {fraction}")
    train, count = dataset.train, len(dataset.train)
    size: float | int = fraction
    if queries is not None and fraction * count > queries:
        size = queries if dataset.groups is None else queries / count
    splitter: GroupShuffleSplit | StratifiedShuffleSplit | ShuffleSplit
    if dataset.groups is not None:
        splitter = GroupShuffleSplit(1, test_size=size, random_state=seed)
    elif _can_be_stratified(train.labels, size):
        splitter = StratifiedShuffleSplit(1, test_size=size, random_state=seed)
    else:
        splitter = ShuffleSplit(1, test_size=size, random_state=seed)
    try:
        kept, held = next(splitter.split(np.zeros(count), train.labels, dataset.groups))
    except ValueError as error:
        raise ValueError(f"validation.fraction = {fraction} cannot be held out of {dataset.name}: {error}") from None
    database = dataset.database
    if database is not None and dataset.train_ids is not None and dataset.database_ids is not None:
        database = database[np.flatnonzero(~np.isin(dataset.database_ids, dataset.train_ids[held]))]
    return Split("search", dataset.class_names, train[np.sort(kept)], train[np.sort(held)], database, dataset.reference)


def _can_be_stratified(labels: Array, size: float | int) -> bool:
    """Whether labels are single, two or more of each class, and ``size``, where it counts samples, has one of each."""
    if labels.ndim != 1:
        return False
    samples = np.bincount(labels.astype(np.int64))
    return bool(samples.min() >= 2 and (isinstance(size, float) or size >= len(samples)))


def final_split(dataset: Dataset) -> Split:
    """All training samples, and the test queries."""
    return Split("final", dataset.class_names, dataset.train, dataset.queries, dataset.database, dataset.reference)
