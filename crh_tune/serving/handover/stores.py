"""What is written for each store."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.errors import DataError
from crh_tune.retrieval.packing import Packed
from crh_tune.serving.index import About, Index

_TEMPLATES = Path(__file__).parent
_TSV = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def hand_over(index: Index, about: About, bits: int, store: str, folder: Path) -> None:
    """Write an index of K-bit codes as a store loads it. Raises DataError."""
    if store not in STORES:
        raise DataError(f"--to: unknown store {store!r}: one of {', '.join(STORES)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_items(index, about, folder / "items.csv")
        STORES[store](index, about, bits, folder)
        _fill(store, folder, {"bits": bits, "bytes": -(-bits // 8), "count": len(index.words)})
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None


def bytes_of(words: Packed, bits: int) -> npt.NDArray[np.uint8]:
    """Packed words as N x ceil(K / 8) bytes; bit i of a code is bit i % 8 (from the lowest) of byte i // 8."""
    whole = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    return np.ascontiguousarray(whole[:, : -(-bits // 8)])


def signs_of(words: Packed, bits: int) -> npt.NDArray[np.int8]:
    """Packed words as N x K of -1 and +1."""
    ones = np.unpackbits(bytes_of(words, bits), axis=1, count=bits, bitorder="little")
    return 2 * ones.astype(np.int8) - 1


def _numpy(index: Index, about: About, bits: int, folder: Path) -> None:
    np.save(folder / "codes.npy", bytes_of(index.words, bits))


def _milvus(index: Index, about: About, bits: int, folder: Path) -> None:
    np.save(folder / "codes.npy", bytes_of(index.words, bits))


def _qdrant(index: Index, about: About, bits: int, folder: Path) -> None:
    np.save(folder / "vectors.npy", signs_of(index.words, bits))


def _faiss(index: Index, about: About, bits: int, folder: Path) -> None:
    try:
        import faiss  # noqa: PLC0415
    except ImportError:
        raise DataError("faiss is not installed: pip install 'crh-tune[faiss]'") from None
    codes = bytes_of(index.words, bits)
    flat = faiss.IndexBinaryFlat(8 * codes.shape[1])
    flat.add(codes)
    faiss.write_index_binary(flat, str(folder / "index.faiss"))


def _pgvector(index: Index, about: About, bits: int, folder: Path) -> None:
    ones = signs_of(index.words, bits) > 0
    with (folder / "codes.tsv").open("w", encoding="utf-8", newline="\n") as file:
        for row, each in enumerate(ones):
            texts = (_text(about.label(index.labels[row])), _text(str(index.items[row])))
            file.write("\t".join((str(row), *texts, "".join(map(str, each.astype(int))))) + "\n")


def _text(text: str) -> str:
    """Text as COPY reads it. PostgreSQL keeps neither null characters nor bytes that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "").translate(_TSV)


STORES: dict[str, Callable[[Index, About, int, Path], None]] = {
    "faiss": _faiss,
    "pgvector": _pgvector,
    "milvus": _milvus,
    "qdrant": _qdrant,
    "numpy": _numpy,
}


def _write_items(index: Index, about: About, path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "label", "item"))
        for row in range(len(index.words)):
            writer.writerow((row, about.label(index.labels[row]), str(index.items[row])))


def _fill(store: str, folder: Path, values: dict[str, Any]) -> None:
    """Copy the store's scripts and README, with the numbers of this index in them."""
    for path in sorted((_TEMPLATES / store).glob("*.template")):
        text = path.read_text(encoding="utf-8")
        (folder / path.stem).write_text(Template(text).safe_substitute(values), encoding="utf-8")
    (folder / "about.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
