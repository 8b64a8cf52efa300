"""Groups of near-identical photos: those of close codes are compared by their pixels.

Codes alone do not tell: learned codes of one class collapse onto each other, so two photos of a class can have the same
code. They are what makes comparing pixels affordable: only photos within a few bits of each other are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from crh_tune.retrieval.packing import Packed, hamming_distances
from crh_tune.serving.codes import Described, Say, Source, described
from crh_tune.serving.encoder import Encoder

SIDE = 8
"""Pixels are compared at SIDE x SIDE."""
ALIKE = 6.0
"""Two photos are near-identical up to this mean difference of their small pictures' values (of 0 to 255)."""
_BLOCK = 2**24


def thumbnail(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """An encoder's input 3 x S x S as SIDE x SIDE x 3: each value the mean of what lies below it."""
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


def near_identical(encoder: Encoder, source: Source, partial: Path, say: Say) -> tuple[list[list[str]], Described]:
    """The groups of near-identical photos in a source, by their names, and what was read of it.

    ``partial`` keeps what is done while it runs: an interrupted call goes on from it. Raises DataError and OSError as
    ``codes.described``.
    """
    size = encoder.empty.shape[1] * encoder.empty.itemsize

    def describe(inputs: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        small = np.stack([thumbnail(image).reshape(-1) for image in inputs])
        return np.concatenate([encoder.encode(inputs).view(np.uint8), small], axis=1)

    found = described(encoder, source, describe, size + 3 * SIDE**2, partial, say)
    words = np.ascontiguousarray(found.bytes[:, :size]).view(encoder.empty.dtype)
    rows = groups(words, found.bytes[:, size:], encoder.bits)
    partial.unlink()
    return [[source.items[found.rows[row]] for row in each] for each in rows], found


def groups(words: Packed, thumbnails: npt.NDArray[np.uint8], bits: int) -> list[list[int]]:
    """The groups of near-identical photos among N, by packed codes N x W of K bits and thumbnails N x ...

    Two photos are joined where their codes are within K / 8 bits and their thumbnails alike; groups in the order of
    their first row.
    """
    within, flat = math.ceil(bits / 8), thumbnails.reshape(len(thumbnails), -1)
    distinct, codes = np.unique(words, axis=0, return_inverse=True)
    order = np.argsort(codes.reshape(-1), kind="stable")
    ends = np.searchsorted(codes.reshape(-1)[order], np.arange(len(distinct) + 1))
    members = [order[ends[i] : ends[i + 1]] for i in range(len(distinct))]
    parents = np.arange(len(words))
    for i, near in _close(distinct, within):
        others = np.concatenate([members[j] for j in near])
        for row in members[i]:
            alike = others[np.abs(flat[others].astype(np.int16) - flat[row]).mean(axis=1) <= ALIKE]
            for other in alike[alike != row]:
                _join(parents, int(row), int(other))
    roots = np.array([_root(parents, row) for row in range(len(words))], dtype=np.int64)
    found: dict[int, list[int]] = {}
    for row, root in enumerate(roots):
        found.setdefault(int(root), []).append(row)
    return [rows for rows in found.values() if len(rows) > 1]


def _close(distinct: Packed, within: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """For each distinct code those within so many bits that do not come before it, itself among them."""
    step = max(1, _BLOCK // max(1, len(distinct)))
    for start in range(0, len(distinct), step):
        distances = hamming_distances(distinct[start : start + step], distinct)
        for i, row in enumerate(distances, start):
            yield i, i + np.flatnonzero(row[i:] <= within)


def _root(parents: npt.NDArray[np.int64], row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = int(parents[row])
    return row


def _join(parents: npt.NDArray[np.int64], one: int, other: int) -> None:
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first
