"""What is written for each store."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.errors import DataError
from crh_tune.retrieval.packing import Packed
from crh_tune.serving.handover.graph import Graph, in_words, measure
from crh_tune.serving.index import About, Index

_TEMPLATES = Path(__file__).parent
_TSV = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def hand_over(index: Index, about: About, bits: int, store: str, folder: Path, with_graph: bool = False) -> list[str]:
    """Write an index of K-bit codes as a store loads it; ``with_graph``: with a graph (HNSW), which is measured first.

    Returns what was measured, in sentences. Raises DataError.
    """
    if store not in STORES:
        raise DataError(f"--to: unknown store {store!r}: one of {', '.join(STORES)}")
    if with_graph and store not in WITH_GRAPH:
        raise DataError(f"--graph: none is made for {store}: for {', '.join(WITH_GRAPH)}")
    codes = bytes_of(index.words, bits)
    graph = measure(index, codes) if with_graph else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_items(index, about, folder / "items.csv")
        STORES[store](Handed(index, about, bits, codes, graph), folder)
        _fill(store, folder, {"bits": bits, "bytes": codes.shape[1], "count": len(index)}, graph)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    return [] if graph is None else graph.lines()


@dataclass(frozen=True)
class Handed:
    """What a store is written from; ``codes``: N x ceil(K / 8) bytes."""

    index: Index
    about: About
    bits: int
    codes: npt.NDArray[np.uint8]
    graph: Graph | None


def bytes_of(words: Packed, bits: int) -> npt.NDArray[np.uint8]:
    """Packed words as N x ceil(K / 8) bytes; bit i of a code is bit i % 8 (from the lowest) of byte i // 8."""
    whole = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    return np.ascontiguousarray(whole[:, : -(-bits // 8)])


def signs_of(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int8]:
    """N x ceil(K / 8) bytes as N x K of -1 and +1."""
    return 2 * np.unpackbits(codes, axis=1, count=bits, bitorder="little").astype(np.int8) - 1


def _array(handed: Handed, folder: Path) -> None:
    np.save(folder / "codes.npy", handed.codes)


def _qdrant(handed: Handed, folder: Path) -> None:
    np.save(folder / "vectors.npy", signs_of(handed.codes, handed.bits))


def _faiss(handed: Handed, folder: Path) -> None:
    try:
        import faiss  # noqa: PLC0415
    except ImportError:
        raise DataError("faiss is not installed: pip install 'crh-tune[faiss]'") from None
    if handed.graph is not None:
        index = handed.graph.faiss
    else:
        index = faiss.IndexBinaryFlat(8 * handed.codes.shape[1])
        index.add(handed.codes)
    faiss.write_index_binary(index, str(folder / "index.faiss"))


def _pgvector(handed: Handed, folder: Path) -> None:
    ones, index = signs_of(handed.codes, handed.bits) > 0, handed.index
    with (folder / "codes.tsv").open("w", encoding="utf-8", newline="\n") as file:
        for row, each in enumerate(ones):
            texts = (_text(handed.about.label(index.labels[row])), _text(str(index.items[row])))
            file.write("\t".join((str(row), *texts, "".join(map(str, each.astype(int))))) + "\n")


def _text(text: str) -> str:
    """Text as COPY reads it. PostgreSQL keeps neither null characters nor bytes that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "").translate(_TSV)


STORES: dict[str, Callable[[Handed, Path], None]] = {
    "faiss": _faiss,
    "pgvector": _pgvector,
    "milvus": _array,
    "qdrant": _qdrant,
    "numpy": _array,
}
WITH_GRAPH = ("faiss", "pgvector", "qdrant")


def _write_items(index: Index, about: About, path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "label", "item"))
        for row in range(len(index)):
            writer.writerow((row, about.label(index.labels[row]), str(index.items[row])))


def _fill(store: str, folder: Path, values: dict[str, Any], graph: Graph | None) -> None:
    """Copy the store's scripts and README, with the numbers of this index in them; ``graph_*`` where there is one."""
    (folder / "about.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
    values |= in_words(graph, store)
    for path in sorted((_TEMPLATES / store).glob("*.template")):
        if graph is not None or not path.name.startswith("graph_"):
            (folder / path.stem).write_text(_filled(path, values), encoding="utf-8")
    if graph is not None:
        with (folder / "README.md").open("a", encoding="utf-8") as readme:
            readme.write(_filled(_TEMPLATES / "graph.md.template", values))


def _filled(path: Path, values: dict[str, Any]) -> str:
    return Template(path.read_text(encoding="utf-8")).safe_substitute(values)
