"""Inputs that stay on disk: rows of a memory-mapped array, of which a batch at a time is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
_CHUNK = 4096


@dataclass(frozen=True)
class StoredRows:
    """Some rows of an array on disk, M x ...; like an array N x ... that reads what it is asked for."""

    array: Array
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __getitem__(self, index: Rows | slice) -> Array:
        values = self.array[self.rows[index]]
        return np.asarray(values, dtype=values.dtype.newbyteorder("="))

    def pick(self, index: Rows) -> Self:
        """The same array with some of these rows."""
        return replace(self, rows=self.rows[index])


@dataclass(frozen=True)
class CachedImages(StoredRows):
    """Decoded images, kept as M x S x S x 3 and read as N x 3 x S x S, with what was summed up when they were decoded.

    Attributes:
        digests: M x 16 bytes, of each image's file.
        moments: M x 3 x 2: sum and sum of squares of each channel's pixels.
        thumbnails: M x T x T x 3 uint8, T at most 32.
        span: the values that became 0 and 255 in images of more than 8 bits a channel; None where there are none.
    """

    digests: npt.NDArray[np.uint8]
    moments: npt.NDArray[np.int64]
    thumbnails: npt.NDArray[np.uint8]
    span: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), self.array.shape[3], *self.array.shape[1:3])

    def __getitem__(self, index: Rows | slice) -> Array:
        return super().__getitem__(index).transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class CachedFeatures(StoredRows):
    """Features of a frozen backbone, R x D on disk, of which these N rows are asked for.

    Attributes:
        digests: N x 16 bytes, of each image's file.
        key: which backbone, weights and preprocessing they come from.
        mirrors: N rows of the same array with the features of the mirror images, where they were computed.
        span: the values that became 0 and 255 in images of more than 8 bits a channel; None where there are none.
    """

    digests: npt.NDArray[np.uint8]
    key: str
    mirrors: Rows | None = None
    span: tuple[float, float] | None = None

    def pick(self, index: Rows) -> Self:
        mirrors = None if self.mirrors is None else self.mirrors[index]
        return replace(self, rows=self.rows[index], digests=self.digests[index], mirrors=mirrors)

    def turned(self, mirrored: npt.NDArray[np.bool_]) -> StoredRows:
        """The same images, those that ``mirrored`` says (N) as their mirror images."""
        assert self.mirrors is not None
        return StoredRows(self.array, np.where(mirrored, self.mirrors, self.rows))


Inputs = Array | StoredRows


def pick(inputs: Inputs, rows: Rows) -> Inputs:
    """Some rows of inputs; nothing is read of those on disk."""
    return inputs.pick(rows) if isinstance(inputs, StoredRows) else inputs[rows]


def chunks(inputs: Inputs) -> Iterator[Array]:
    """The inputs in order, a few thousand at a time."""
    for start in range(0, len(inputs), _CHUNK):
        yield inputs[start : start + _CHUNK]


def digest_of(inputs: Inputs) -> bytes:
    """A digest over every input, in order; that of cached images over their files and shape.

    That of a frozen backbone's features is over the images' files and the backbone's key: floats differ by processor.
    """
    digest = hashlib.sha256(f"{inputs.dtype.str}{inputs.shape}".encode())
    parts: Iterable[Array] = chunks(inputs)
    if isinstance(inputs, CachedImages):
        parts = [inputs.digests[inputs.rows]]
    elif isinstance(inputs, CachedFeatures):
        digest.update(inputs.key.encode())
        parts = [inputs.digests]
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()


def content_ids(inputs: Inputs, dtype: np.dtype[Any] | None = None) -> Rows:
    """A number for each of N inputs, the same for equal content: an image's file, or the values in ``dtype``."""
    if isinstance(inputs, CachedImages | CachedFeatures):
        digests = inputs.digests[inputs.rows] if isinstance(inputs, CachedImages) else inputs.digests
        return np.ascontiguousarray(digests[:, :8]).view(np.int64)[:, 0]
    kind = dtype or inputs.dtype
    rows = [
        hashlib.blake2b(row.tobytes(), digest_size=8).digest()
        for part in chunks(inputs)
        for row in part.astype(kind) + kind.type(0)  # -0 becomes 0
    ]
    return np.frombuffer(b"".join(rows), dtype=np.int64)


def channel_moments(inputs: Inputs) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each channel (of each feature, for N x D inputs), in float64."""
    if isinstance(inputs, CachedImages):
        pixels = len(inputs) * inputs.shape[2] * inputs.shape[3]
        sums = inputs.moments[inputs.rows].sum(axis=0) / pixels
        return sums[:, 0], np.sqrt(np.maximum(sums[:, 1] - sums[:, 0] ** 2, 0))
    axes = (0, *range(2, inputs.ndim))
    shape = (1, -1) + (1,) * (inputs.ndim - 2)
    each = np.prod([inputs.shape[axis] for axis in axes])
    mean = sum(part.sum(axis=axes, dtype=np.float64) for part in chunks(inputs)) / each
    squares = sum(np.square(part - mean.reshape(shape)).sum(axis=axes) for part in chunks(inputs))
    return mean, np.sqrt(squares / each)


def prototype_vectors(inputs: Inputs) -> Iterator[Array]:
    """The inputs as vectors to be averaged over a class, chunk by chunk: features, pixels, or a thumbnail's pixels."""
    source = StoredRows(inputs.thumbnails, inputs.rows) if isinstance(inputs, CachedImages) else inputs
    for part in chunks(source):
        yield part.reshape(len(part), -1)
