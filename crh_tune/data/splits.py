"""Samples, datasets, and the two splits a dataset gives: one to search with and one to test with, once.

A search sees the search split only: its queries are held out of the training samples, and the dataset's test
queries are not in it at all. The final split trains on all training samples and is evaluated on the test queries.

Both can hold whole classes out as well, the same ones: their samples are then searched, and nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crh_tune.data.copies import QUERIES_ALSO, Named, row_twins
from crh_tune.data.store.stored import Array, Inputs, Rows, content_ids, digest_of, pick

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

    def named(self, kind: str, dtype: np.dtype[Any]) -> Named:
        """Numbers that tell their content in ``dtype``, and what each is called: its file, or a kind and its row."""
        items = np.arange(len(self)) if self.items is None else self.items

        def name(row: int) -> str:
            return items[row] if isinstance(items[row], str) else f"{kind} {items[row]}"

        return content_ids(self.inputs, dtype), name

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
class Unseen:
    """Classes that are held out whole, to be searched only: training, centres and statistics never see them.

    Labels count on from the split's own C classes: C is the first of ``class_names``. Multi-hot rows have the columns
    of all classes, the split's own first.
    """

    class_names: tuple[str, ...]
    queries: Samples
    database: Samples


@dataclass(frozen=True)
class Split:
    """What one training run sees: it trains on ``train`` and ranks ``database`` (None: ``train``) for ``queries``.

    ``unseen`` is what it does not see; none of its samples is among the others.
    """

    stage: Stage
    class_names: tuple[str, ...]
    train: Samples
    queries: Samples
    database: Samples | None
    reference: npt.NDArray[np.float64] | None
    unseen: Unseen | None = None

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
        if self.unseen is not None:
            parts += ["unseen", self.unseen.queries.fingerprint(), self.unseen.database.fingerprint()]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    @property
    def ranked(self) -> Samples:
        """What the queries are answered from."""
        return self.train if self.database is None else self.database

    def notes(self) -> list[str]:
        """What should be known of the split before it is trained on, a line each."""
        return [line for line in (self.unanswered(), self.untrained(), *self._copies()) if line is not None]

    def _copies(self) -> Iterator[str | None]:
        """On the validation queries that are also elsewhere; of test queries it is said when the data is opened."""
        if self.stage == "final":
            return
        ranked = "training sample" if self.database is None else "database item"
        pairs = [(self.queries, self.train, "training sample", QUERIES_ALSO[0])]
        if self.database is not None:
            pairs.append((self.queries, self.database, ranked, QUERIES_ALSO[1]))
        if self.unseen is not None:
            pairs.append((self.unseen.queries, self.unseen.database, ranked, "in the database of the classes held out"))
        for queries, others, kind, where in pairs:
            dtype = np.result_type(queries.inputs.dtype, others.inputs.dtype)
            asked = queries.named("training sample", dtype)
            yield row_twins(asked, others.named(kind, dtype), where, "validation ")

    def untrained(self) -> str | None:
        """A line on the classes that no training sample shows; None where there are none."""
        labels = self.train.labels
        counts = labels.sum(axis=0) if self.multi_label else np.bincount(labels, minlength=self.classes)
        names = [repr(self.class_names[c]) for c in np.flatnonzero(counts == 0)]
        where = "in the search" if self.stage == "search" else "in final runs"
        shown = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        return f"{len(names)} of {self.classes} classes have no training sample {where}: {shown}" if names else None

    def unanswered(self) -> str | None:
        """A line on the queries that have nothing relevant to find; None where there are none."""
        kind = "validation" if self.stage == "search" else "test"
        return unanswered_queries(f"{kind} queries", self.queries.labels, self.ranked.labels)


def unanswered_queries(name: str, queries: Array, ranked: Array) -> str | None:
    """How many queries share a label with nothing that is ranked, as a line; None where all do.

    Both are N class indices or N x C multi-hot.
    """
    missing = int((~_answered(queries, ranked)).sum())
    return f"{missing} of {len(queries)} {name} have nothing relevant to find" if missing else None


def none_answered(queries: Array, ranked: Array) -> bool:
    """Whether there are queries, and all of them share a label with nothing that is ranked."""
    return len(queries) > 0 and not _answered(queries, ranked).any()


def _answered(queries: Array, ranked: Array) -> npt.NDArray[np.bool_]:
    if queries.ndim == 2:
        return np.asarray((queries.astype(bool) & ranked.any(axis=0)).any(axis=1))
    return np.isin(queries, ranked)


def search_split(dataset: Dataset, fraction: float, seed: int, queries: int | None = None, classes: float = 0) -> Split:
    """Hold ``fraction`` of the training samples out as validation queries; groups stay whole.

    ``queries`` is the most that are held out, as near as groups come to it. What is held out is taken out of the
    database too. The last sample of a class never is held out; without groups, single labels are held out class by
    class. ``classes`` is the share of the classes that are held out whole (:class:`Unseen`).
    Raises ValueError for a fraction outside (0, 1), one that leaves nothing on a side, and queries of which none has
    anything relevant to find.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation.fraction must lie between 0 and 1 to search, got {fraction}")
    train = dataset.train
    try:
        kept, held = _held_out(dataset, fraction, seed, queries, _held_classes(len(dataset.class_names), classes, seed))
    except ValueError as error:
        raise ValueError(f"validation.fraction = {fraction} cannot be held out of {dataset.name}: {error}") from None
    database = dataset.database
    if database is not None and dataset.train_ids is not None and dataset.database_ids is not None:
        database = database[np.flatnonzero(~np.isin(dataset.database_ids, dataset.train_ids[held]))]
    names, reference = dataset.class_names, dataset.reference
    whole = Split("search", names, train[np.sort(kept)], train[np.sort(held)], database, reference)
    return _answerable(_with_unseen(whole, classes, seed))


def _held_out(dataset: Dataset, fraction: float, seed: int, queries: int | None, whole: Array) -> tuple[Rows, Rows]:
    """Which training samples stay, and which are held out, where these classes will be held out whole."""
    labels, count = dataset.train.labels, len(dataset.train)
    few = queries is not None and fraction * count > queries
    if dataset.groups is None and labels.ndim == 1:
        held = _by_class(labels, queries if few and queries is not None else round(fraction * count), seed)
        return np.setdiff1d(np.arange(count), held), held
    size: float | int = fraction
    if few and queries is not None:
        size = queries if dataset.groups is None else queries / count
    shown = labels.astype(bool) if labels.ndim == 2 else np.eye(len(dataset.class_names), dtype=bool)[labels]
    outside = shown[:, whole].any(axis=1)
    shown[np.ix_(outside, np.setdiff1d(np.arange(shown.shape[1]), whole))] = False  # nothing is trained on them
    if dataset.groups is None:
        return _drawn(shown, size, seed)
    groups, of = np.unique(dataset.groups, return_inverse=True)
    counts = np.zeros((len(groups), shown.shape[1]), dtype=np.int64)
    np.add.at(counts, of, shown)
    kept, held = (np.flatnonzero(np.isin(of, part)) for part in _drawn(counts, size, seed))
    return kept, held


def _drawn(counts: Array, size: float, seed: int) -> tuple[Rows, Rows]:
    """Which of N stay, and the share or number of them that is held out: those of scikit-learn's ShuffleSplit, less
    what would leave a label without a sample. ``counts``, N x C, is how many samples of a label each has.

    Its import takes seconds of each process that trains. Raises ValueError where none is left, or can be held out.
    """
    count = len(counts)
    wanted = math.ceil(size * count) if isinstance(size, float) else size
    if wanted >= count:
        raise ValueError(f"{wanted} of {count} are to be held out, and nothing is left to train on")
    order = np.random.RandomState(seed).permutation(count)
    held = leaving_each(order, counts, wanted)
    if not len(held):
        raise ValueError("each of them has a label that no other has: one to train on and one to ask for are needed")
    return order[np.isin(order, held, invert=True)], held


def leaving_each(order: Rows, counts: Array, wanted: int) -> Rows:
    """The first ``wanted`` of N in an order, passing over those with the last samples of a label, as far as they go.

    ``counts``, N x C, is how many samples of a label each has.
    """
    left = counts.sum(axis=0, dtype=np.int64)
    taken: list[int] = []
    for one in order.tolist():
        if len(taken) == wanted:
            break
        if not (counts[one].astype(bool) & (counts[one] == left)).any():
            left = left - counts[one]
            taken.append(one)
    return np.array(taken, dtype=np.int64)


def _by_class(labels: Array, wanted: int, seed: int) -> Rows:
    """About ``wanted`` of N samples, each class its share of them, but never the last sample of a class.

    What is left of whole samples goes to the classes whose shares are cut most, by chance where they are cut alike.
    Raises ValueError where that gives none.
    """
    generator = np.random.default_rng(seed)
    codes = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(codes)
    if sizes.max() < 2:
        raise ValueError("no class has two training samples: one to train on and one to ask for are needed")
    wanted = min(wanted, int((sizes - 1).sum()))
    shares = np.where(sizes > 1, sizes * (wanted / sizes[sizes > 1].sum()), 0)
    taken = np.minimum(np.floor(shares), sizes - 1).astype(np.int64)
    while wanted > taken.sum():
        cut = np.where(taken < sizes - 1, shares - taken, -np.inf)
        order = np.lexsort((generator.random(len(cut)), -cut))[: wanted - taken.sum()]
        taken[order[np.isfinite(cut[order])]] += 1
    if not taken.sum():
        raise ValueError("it leaves no queries")
    order = generator.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    place = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[place < np.repeat(taken, sizes)]


def _answerable(split: Split) -> Split:
    """The split itself. Raises ValueError where no query has anything relevant to find."""
    if none_answered(split.queries.labels, split.ranked.labels):
        raise ValueError(f"{split.unanswered()}: want queries of the classes that are ranked")
    return split


def final_split(dataset: Dataset, classes: float = 0, seed: int = 0) -> Split:
    """All training samples, and the test queries; without the classes that a search holds out with the same arguments.

    Raises ValueError where no query has anything to find.
    """
    names, reference = dataset.class_names, dataset.reference
    whole = Split("final", names, dataset.train, dataset.queries, dataset.database, reference)
    return _answerable(_with_unseen(whole, classes, seed))


def _with_unseen(split: Split, share: float, seed: int) -> Split:
    """The split without a share of its C classes, drawn by the seed, which are held out whole; itself for share 0.

    An image with several labels is held out where one of them is. Raises ValueError where too few classes are left,
    or nothing of those held out can be asked for.
    """
    if not share:
        return split
    held = _held_classes(split.classes, share, seed)
    if split.classes - len(held) < 2:
        left = split.classes - len(held)
        raise ValueError(f"validation.classes = {share} leaves {left} of {split.classes} classes")
    try:
        return hold_out(split, held)
    except ValueError as error:
        raise ValueError(f"validation.classes = {share}: {error}") from None


def _held_classes(classes: int, share: float, seed: int) -> Rows:
    """Which of C classes are held out whole, ascending: a share of them, at least one, or none for share 0."""
    count = max(1, round(share * classes)) if share else 0
    return np.sort(np.random.default_rng([seed, count]).permutation(classes)[:count])


def hold_out(split: Split, held: Array) -> Split:
    """The split without these classes (indices, ascending), which are searched only: :class:`Unseen`.

    Raises ValueError where nothing is left to train on or ask for, or nothing of those held out can be found.
    """
    seen = np.setdiff1d(np.arange(split.classes), held)
    train, unseen_train = _apart(split.train, seen, held)
    queries, unseen_queries = _apart(split.queries, seen, held)
    database, unseen_database = (None, unseen_train) if split.database is None else _apart(split.database, seen, held)
    if not len(train) or not len(queries):
        raise ValueError(f"every image shows one of the {len(held)} classes held out")
    unseen = Unseen(tuple(split.class_names[c] for c in held), unseen_queries, unseen_database)
    asked, ranked = (unseen_labels(part, len(seen)) for part in (unseen_queries, unseen_database))
    if not len(asked) or none_answered(asked, ranked):
        raise ValueError(f"none of the {len(asked)} queries of the {len(held)} classes held out has anything to find")
    names = tuple(split.class_names[c] for c in seen)
    reference = None if split.reference is None else split.reference[np.ix_(seen, seen)]
    return Split(split.stage, names, train, queries, database, reference, unseen)


def _apart(samples: Samples, seen: Array, held: Array) -> tuple[Samples, Samples]:
    """The samples without a held-out class, and those with one, labels in the order of the seen and the held."""
    order = np.concatenate([seen, held])
    if samples.labels.ndim == 2:
        outside = samples.labels[:, held].any(axis=1)
        labels = samples.labels[:, order]
    else:
        outside = np.isin(samples.labels, held)
        labels = np.argsort(order).astype(samples.labels.dtype)[samples.labels]
    relabelled = replace(samples, labels=labels)
    own, other = relabelled[np.flatnonzero(~outside)], relabelled[np.flatnonzero(outside)]
    return (replace(own, labels=own.labels[:, : len(seen)]) if labels.ndim == 2 else own), other


def unseen_labels(samples: Samples, classes: int) -> Array:
    """What samples of held-out classes are relevant by among themselves: class indices, or held-out columns only."""
    return samples.labels[:, classes:] if samples.labels.ndim == 2 else samples.labels
