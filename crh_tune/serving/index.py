"""The index of an export, or of other photos: codes, labels, what each item is, and where the photos lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.errors import DataError
from crh_tune.ground import first_line
from crh_tune.retrieval.index import Index
from crh_tune.retrieval.mapped import open_arrays, write_arrays
from crh_tune.retrieval.packing import Packed, hamming_distances

INDEX_FILE = "index.npz"
Array = npt.NDArray[Any]
_CODES = 2**14


class PlainIndex(Index):
    """The same answers where numba is not installed: NumPy compares a query with every distinct code."""

    def _best(
        self, queries: Array, count: int, alive: npt.NDArray[np.bool_], by_outputs: bool
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        if by_outputs and not 0 < queries.shape[1] <= 8 * self._width * self._dtype.itemsize:
            raise ValueError(f"outputs of {queries.shape[1]} bits, not of this index's")
        words = None if by_outputs else self._wide(queries)
        rows, costs = np.empty((len(queries), count), dtype=np.int64), np.empty((len(queries), count))
        every = np.empty(len(self))
        for i in range(len(queries)):
            own = self._costs(queries[i]) if words is None else hamming_distances(words[i : i + 1], self._codes)[0]
            every[self._rows] = np.repeat(own, np.diff(self._ends))
            if alive.size:
                every[~alive] = np.inf
            rows[i] = np.argsort(every, kind="stable")[:count]
            costs[i] = every[rows[i]]
        return rows, costs

    def _distances(self, queries: Packed) -> Iterator[npt.NDArray[np.integer]]:
        return (hamming_distances(queries[i : i + 1], self._codes)[0] for i in range(len(queries)))

    def _costs(self, output: Array) -> npt.NDArray[np.float64]:
        """-u . b of every distinct code, added up in the order in which the compiled index does: byte by byte."""
        size = 8 * (-(-len(output) // 8))
        values = np.zeros(size)
        values[: len(output)] = output
        costs = np.empty(self.distinct)
        for start in range(0, self.distinct, _CODES):
            codes = np.ascontiguousarray(self._codes[start : start + _CODES]).view(np.uint8)
            ones = np.unpackbits(codes, axis=1, count=size, bitorder="little")
            each = np.where(ones, values, -values).reshape(len(codes), -1, 8)
            costs[start : start + len(codes)] = -each.cumsum(axis=2)[:, :, -1].cumsum(axis=1)[:, -1]
        return costs


def fastest_index() -> type[Index]:
    """The compiled index where numba is installed, else the plain one: the answers are the same."""
    try:
        import numba  # noqa: F401, PLC0415
    except ImportError:
        return PlainIndex
    return Index


@dataclass(frozen=True)
class About:
    """What an index says of itself: its encoder's name, the folder of its photos, its classes' names, its codes' bits.

    ``bits`` is None in an index of before codes could be shorter than their encoder's.
    """

    encoder: str | None = None
    root: str | None = None
    class_names: tuple[str, ...] = ()
    bits: int | None = None

    def label(self, label: Any) -> str:
        """A label in words: a class index or C flags by the classes' names, text as it is."""
        names = self.class_names
        if np.ndim(label):
            return ", ".join(names[i] if i < len(names) else str(i) for i in np.flatnonzero(label))
        if isinstance(label, int | np.integer) and 0 <= label < len(names):
            return names[int(label)]
        return str(label)


def write_index(folder: Path, index: Index, about: About) -> None:
    """Write an index's folder. Raises OSError where it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = index.parts()
    if parts["items"].dtype == object:
        parts["items"] = parts["items"].astype(str)  # text without pickle
    write_arrays(folder / INDEX_FILE, {**parts, "about": np.array(json.dumps(asdict(about)))})


def load_index(folder: str | Path) -> Index:
    """Read the index in a folder. Raises DataError, naming the file, when it is missing or broken."""
    return open_index(folder)[0]


def open_index(folder: str | Path) -> tuple[Index, About]:
    """The index in a folder, mapped into memory, and what it says of itself. Raises DataError as ``load_index``.

    Indexes of before they were mapped are read.
    """
    path, kind = Path(folder) / INDEX_FILE, fastest_index()
    try:
        arrays = open_arrays(path)
        of_items = "words" in arrays
        index = kind(*(arrays[name] for name in ("words", "labels", "items"))) if of_items else kind.of_parts(arrays)
        if index.items.dtype.kind not in "iuU" or index.labels.dtype.kind not in "iubU":
            raise ValueError(f"items of type {index.items.dtype} and labels of type {index.labels.dtype}")
        about = _about(json.loads(str(arrays["about"])) if "about" in arrays else {})
    except Exception as error:  # whatever zipfile and NumPy raise on a broken file
        raise DataError(f"{path}: not a readable index: {first_line(error)}") from None
    return index, about


def _about(content: dict[str, Any]) -> About:
    encoder, root, names = content.get("encoder"), content.get("root"), tuple(content.get("class_names", ()))
    if not all(isinstance(text, str) for text in names) or not all(isinstance(t, str | None) for t in (encoder, root)):
        raise ValueError("names that are no text")
    bits = content.get("bits")
    if bits is not None and type(bits) is not int:
        raise ValueError(f"codes of {bits!r} bits")
    return About(encoder, root, names, bits)
