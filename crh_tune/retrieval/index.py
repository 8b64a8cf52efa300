"""An exact index of binary codes that stores each distinct code once, with the list of the items that have it.

Codes of a class collapse onto each other, so there are often far fewer codes than items; graph indexes stumble over
that, and here it saves time. One pass over the distinct codes answers a search, by Hamming distance or by real outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crh_tune.compiled import in_parts, usable_threads
from crh_tune.retrieval.asymmetric import checked_outputs
from crh_tune.retrieval.mapped import open_arrays, write_arrays
from crh_tune.retrieval.packing import Packed, distinct_codes, wide_words

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
_QUERIES = 256
_PAIRS_PER_THREAD = 2**22
"""Of queries and codes: fewer are compared by one thread, since starting another would take longer."""
_PARTS = ("codes", "rows", "ends", "labels", "items", "form")
_PIECE = 2**20


class Index:
    """Packed codes of a database (N x W words), their labels, and what each item is.

    ``items`` are N file names below the data folder, or N rows in the array that held the features or images. Results
    are rows: places in the database, in the order in which items were added. Raises ValueError where the three do not
    belong together.
    """

    def __init__(self, words: Packed, labels: Array, items: Array) -> None:
        _check(words, labels, items)
        self.labels, self.items, self._dtype, self._width = labels, items, words.dtype, words.shape[1]
        codes, rows, ends = distinct_codes(wide_words(words))
        small = np.uint32 if len(words) < 2**32 else np.int64
        self._codes = codes
        self._rows: Array = rows.astype(small)
        self._ends: Array = ends.astype(small)
        self._code: Array | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def words(self) -> Packed:
        """The packed codes of all items, N x W: put together anew whenever they are asked for."""
        wide = np.zeros((len(self), self._codes.shape[1]), dtype=np.uint64)
        wide[self._rows] = np.repeat(self._codes, np.diff(self._ends), axis=0)
        return self._narrow(wide)

    @property
    def empty(self) -> Packed:
        """No codes: 0 x W words of the type that these have."""
        return np.empty((0, self._width), dtype=self._dtype)

    @property
    def distinct(self) -> int:
        """How many distinct codes the items have."""
        return len(self._codes)

    def search(self, queries: Array, count: int, where: npt.NDArray[np.bool_] | None = None) -> tuple[Rows, Array]:
        """Rows of the ``count`` best items of each query, best first, and their distances or scores.

        Packed codes (Q x W words, as an encoder's) are compared by Hamming distance, the smallest first. Real outputs
        (Q x K floats, as ``encoder.outputs``) are compared with the stored bits by u . b, the largest first. Equal ones
        come in database order. ``where`` says which of the N items count: see :meth:`where`.

        Both results are Q x count, or less wide where fewer items count. Raises ValueError for queries of another
        width.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        alive = np.empty(0, dtype=np.bool_) if where is None else np.ascontiguousarray(where, dtype=np.bool_)
        if where is not None and alive.shape != (len(self),):
            raise ValueError(f"where must say of {len(self)} items whether they count, got shape {alive.shape}")
        count = min(count, len(self) if where is None else int(alive.sum()))
        by_outputs = queries.dtype.kind == "f"
        parts = [self._best(queries[start : start + _QUERIES], count, alive, by_outputs)
                 for start in range(0, max(1, len(queries)), _QUERIES)]  # fmt: skip
        rows, costs = (np.concatenate(column) for column in zip(*parts, strict=True))
        return rows, -costs if by_outputs else costs.astype(np.int64)

    def within(
        self, queries: Packed, radius: int, where: npt.NDArray[np.bool_] | None = None
    ) -> list[tuple[Rows, Rows]]:
        """Of each packed query: rows of all items within a Hamming distance, nearest first, and their distances.

        Equal distances come in database order.
        """
        found = []
        for distances in self._distances(self._wide(queries)):
            near = np.flatnonzero(distances <= radius)
            starts = self._ends[near].astype(np.int64)
            sizes = self._ends[near + 1].astype(np.int64) - starts
            places = np.repeat(starts, sizes) + _steps(sizes)
            rows, away = self._rows[places].astype(np.int64), np.repeat(distances[near], sizes).astype(np.int64)
            kept = slice(None) if where is None else where[rows]
            rows, away = rows[kept], away[kept]
            order = np.lexsort((rows, away))
            found.append((rows[order], away[order]))
        return found

    def _distances(self, queries: Packed) -> Iterator[npt.NDArray[np.integer]]:
        """Of each query of wide words the distances of every distinct code, overwritten by the next."""
        from crh_tune.retrieval import kernels  # noqa: PLC0415

        words = np.ascontiguousarray(self._codes.T)
        distances = np.empty(self.distinct, dtype=np.uint16)
        for query in queries:
            kernels.distances_into(query, words, 0, self.distinct, distances)
            yield distances

    def where(self, labels: Array | None = None, items: Array | None = None) -> npt.NDArray[np.bool_]:
        """Which items have one of some labels (class indices; of multi-hot rows, any of these columns), or are among
        some items: N flags, for ``search(..., where=...)``.
        """
        flags = np.ones(len(self), dtype=np.bool_)
        if labels is not None and self.labels.ndim > 1:
            flags &= self.labels[:, np.asarray(labels)].any(axis=1)
        elif labels is not None:
            flags &= np.isin(self.labels, labels)
        if items is not None:
            flags &= np.isin(self.items, items)
        return flags

    def add(self, words: Packed, labels: Array, items: Array) -> None:
        """Append items. Raises ValueError where their width, or the kind of their labels or items, is another."""
        _check(words, labels, items)
        if words.dtype != self._dtype or words.shape[1] != self._width or labels.shape[1:] != self.labels.shape[1:]:
            raise ValueError(
                f"codes of {self._width} {self._dtype} words with labels of shape N x {self.labels.shape[1:]} "
                f"expected, got {words.shape[1]} {words.dtype} words with labels of shape {labels.shape}"
            )
        for what, ours, theirs in (("labels", self.labels, labels), ("items", self.items, items)):
            if len(self) and _kind(ours) != _kind(theirs):  # joined, all would be text, and no number found any more
                raise ValueError(f"{what} of this index are {_kind(ours)}, got {_kind(theirs)}")
        joined = np.concatenate([self.words, words])
        self.__init__(joined, np.concatenate([self.labels, labels]), np.concatenate([self.items, items]))  # type: ignore[misc]

    def remove(self, which: npt.NDArray[np.bool_]) -> None:
        """Take out the items of which N flags say so (``index.where(items=...)``); later rows move up."""
        kept = ~np.asarray(which, dtype=np.bool_)
        if kept.shape != (len(self),):
            raise ValueError(f"which of {len(self)} items go must be said of each, got shape {kept.shape}")
        self.__init__(self.words[kept], self.labels[kept], self.items[kept])  # type: ignore[misc]

    def codes_of(self, rows: Array) -> Packed:
        """The packed codes of some items, R x W, by their rows."""
        if self._code is None:
            self._code = np.zeros(len(self), dtype=self._ends.dtype)
            self._code[self._rows] = np.repeat(np.arange(self.distinct, dtype=self._ends.dtype), np.diff(self._ends))
        return self._narrow(self._codes[self._code[rows]])

    def parts(self) -> dict[str, Array]:
        """The arrays that make up the index, for :meth:`of_parts`."""
        form = np.array([self._dtype.itemsize, self._width])
        return dict(zip(_PARTS, (self._codes, self._rows, self._ends, self.labels, self.items, form), strict=True))

    @classmethod
    def of_parts(cls, arrays: Mapping[str, Array]) -> Self:
        """An index of its :meth:`parts`, which are not copied. Raises ValueError for other content."""
        missing = [name for name in _PARTS if name not in arrays]
        if missing:
            raise ValueError(f"not an index: it has no {', '.join(missing)}")
        codes, rows, ends, labels, items, form = (arrays[name] for name in _PARTS)
        _check_parts(codes, rows, ends, labels, items, form)
        index = cls.__new__(cls)
        index._codes, index._rows, index._ends, index.labels, index.items = codes, rows, ends, labels, items
        index._dtype, index._width, index._code = np.dtype(f"<u{form[0]}"), int(form[1]), None
        return index

    def save(self, path: str | Path) -> None:
        """Write the index into a file that :meth:`open` maps into memory; one opened from there may be saved there.

        Raises ValueError where items or labels are objects, OSError where the file cannot be written.
        """
        write_arrays(Path(path), self.parts())

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A saved index, mapped into memory: what is not asked for is not read. Raises ValueError for other content,
        and whatever zipfile and NumPy raise on a broken file.
        """
        return cls.of_parts(open_arrays(Path(path)))

    def _narrow(self, wide: npt.NDArray[np.uint64]) -> Packed:
        narrow: Packed = wide.view(self._dtype)[:, : self._width]
        return np.ascontiguousarray(narrow)

    def _wide(self, queries: Packed) -> npt.NDArray[np.uint64]:
        if queries.ndim != 2 or queries.dtype != self._dtype or queries.shape[1] != self._width:
            wanted = f"Q x {self._width} {self._dtype} words, or Q x K real outputs"
            raise ValueError(f"{wanted} expected, got {queries.dtype} of shape {queries.shape}")
        return wide_words(queries)

    def _best(
        self, queries: Array, count: int, alive: npt.NDArray[np.bool_], by_outputs: bool
    ) -> tuple[Rows, npt.NDArray[np.float64]]:
        """Rows and costs of the best, Q x count, ascending by cost and then row."""
        from crh_tune.retrieval import index_kernels, kernels  # noqa: PLC0415

        asked = self._by_outputs(queries) if by_outputs else self._by_codes(queries)
        if count == 0 or not len(queries):
            return np.empty((len(queries), count), dtype=np.int64), np.empty((len(queries), count))
        words = self._codes.T if self._codes.shape[1] == 1 else np.ascontiguousarray(self._codes.T)
        most = asked[1].shape[1] == 1 and 64 * self._codes.shape[1] <= 255
        heaps: list[tuple[npt.NDArray[np.float64], Rows]] = []

        def part(first: int, last: int) -> None:
            costs, rows = np.full((len(queries), count), np.inf), np.full((len(queries), count), len(self))
            buffer = np.empty(kernels.BLOCK, dtype=np.uint8 if most else np.uint16)
            stored = words, self._codes, self._rows, self._ends, alive
            index_kernels.least_cost(*asked, *stored, first, last, buffer, costs, rows)
            heaps.append((costs, rows))

        threads = 1 + len(queries) * self.distinct // _PAIRS_PER_THREAD
        in_parts(part, self.distinct, min(usable_threads(), threads), per_thread=1)
        costs, rows = (np.concatenate(column, axis=1) for column in zip(*heaps, strict=True))
        order = np.lexsort((rows, costs))[:, :count]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(costs, order, axis=1)

    def _by_codes(self, queries: Packed) -> tuple[Array, ...]:
        """What the kernel asks with: codes, all bits of weight 1, the bound is the distance."""
        own = self._wide(queries)
        masks = np.full((len(own), 1, own.shape[1]), 2**64 - 1, dtype=np.uint64)
        return own, masks, np.zeros(len(own)), np.ones(len(own)), np.empty((0, 1, 256))

    def _by_outputs(self, outputs: Array) -> tuple[Array, ...]:
        """Signs, bits by the size of |u| in sevenths of the largest, and the scores of each byte.

        -u . b = -sum |u| + 2 sum of |u| where b differs from sign(u): counting |u| in whole steps, rounded down, gives
        what the cost is at least.
        """
        from crh_tune.retrieval import index_kernels, kernels  # noqa: PLC0415

        capacity = 8 * self._width * self._dtype.itemsize
        bits = outputs.shape[1] if outputs.ndim == 2 else 0
        if not 0 < bits <= capacity or -(-bits // 8) <= (self._width - 1) * self._dtype.itemsize:
            raise ValueError(f"outputs of Q x at most {capacity} bits expected, got shape {outputs.shape}")
        outputs = checked_outputs(outputs, bits)
        size = np.abs(outputs)
        step = np.maximum(size.max(axis=1, initial=0), 1e-300) / (2**index_kernels.PLANES - 1)
        steps = np.floor(size / step[:, None] + 1e-10).astype(np.int64)
        masks = np.stack([_packed((steps >> plane) & 1 == 1) for plane in range(index_kernels.PLANES)], axis=1)
        tables = np.empty((len(outputs), -(-bits // 8), 256))
        for output, table in zip(outputs, tables, strict=True):
            kernels.byte_tables(output, table)
        return _packed(outputs >= 0), masks, -size.sum(axis=1), 2 * step, tables


def _packed(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(wide_words(np.packbits(flags, axis=1, bitorder="little")))


def _steps(sizes: Rows) -> Rows:
    """0 to n - 1 for each size n, one after the other."""
    before = np.repeat(np.cumsum(sizes) - sizes, sizes)
    steps: Rows = np.arange(len(before)) - before
    return steps


def _check(words: Array, labels: Array, items: Array) -> None:
    if words.ndim != 2 or words.dtype.kind != "u" or len(labels) != len(words) or items.shape != (len(words),):
        shapes = f"labels of shape {labels.shape} and items of shape {items.shape}"
        raise ValueError(f"{words.dtype} words of shape {words.shape} with {shapes}")


def _kind(array: Array) -> str:
    return {"U": "text", "S": "text", "O": "objects"}.get(array.dtype.kind, "numbers")


def _check_parts(codes: Array, rows: Array, ends: Array, labels: Array, items: Array, form: Array) -> None:
    """Raises ValueError where arrays are no index. Lists of items are looked at in pieces, codes not at all."""
    counted = [codes.dtype == np.uint64, *(each.dtype in (np.uint32, np.int64) for each in (rows, ends))]
    if not all(counted) or (codes.ndim, rows.ndim, ends.ndim, items.ndim) != (2, 1, 1, 1) or labels.ndim < 1:
        raise ValueError("not an index: arrays of other types or shapes")
    size, width = form.tolist() if form.dtype == np.int64 and form.shape == (2,) else (0, 0)
    if size not in (1, 2, 4, 8) or not 0 < size * width <= 8 * codes.shape[1] < size * width + 8:
        raise ValueError(f"not an index: codes of {codes.shape[1]} words for {width} of {size} bytes")
    lengths = {len(rows), len(labels), len(items), int(ends[-1]) if len(ends) else -1}
    if len(lengths) > 1 or len(ends) != len(codes) + 1 or ends[0]:
        raise ValueError("not an index: its arrays do not belong together")
    for start in range(0, len(ends), _PIECE):
        some = ends[start : start + _PIECE + 1]
        if (some[1:] < some[:-1]).any():
            raise ValueError("not an index: its lists of items overlap")
    for start in range(0, len(rows), _PIECE):
        some = rows[start : start + _PIECE]
        if some.min() < 0 or some.max() >= len(rows):
            raise ValueError("not an index: its lists of items are out of range")
