"""The run-once cache of a frozen backbone: the features of every image it has seen, as one memory-mapped array.

There is one for each backbone with its weights and preprocessing, and for each range of images of more than 8 bits. It
grows by blocks of images, keyed by the images' content, under a lock; a process that is killed loses at most the block
it was at. Every block has a checksum: files that are not exactly as they were when they were last checked are checked
again, and the features of a damaged block are computed anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.data.store.cache import (
    UNREAD,
    Say,
    cache_root,
    common_span,
    content_digests,
    disk_errors,
    locked,
    progress_bar,
    read_again,
    usable_cores,
)
from crh_tune.data.store.checked import file_states, is_checked, set_checked
from crh_tune.data.store.decode import BadImage, Fit, Span
from crh_tune.data.store.sources import Bytes, ImageSource
from crh_tune.data.store.stored import CachedFeatures, Rows
from crh_tune.ground import write_whole

Features = npt.NDArray[np.float32]
Compute = Callable[[Bytes], Features]
"""From uint8 images B x S x S x 3 to their features B x D."""
BLOCK = 256
_BATCH = 32
_DIGEST = 16
_ROWS, _BLOCKS = "features.f32", "blocks.jsonl"
_FILES = (_ROWS, _BLOCKS)


@dataclass(frozen=True)
class Recipe:
    """How features are made: D ``features`` of images fitted to ``size`` x ``size``.

    ``key`` names the backbone, its weights and its preprocessing; ``start`` makes what computes features, and is called
    only where some are missing. With ``mirrored``, the features of every image's mirror image are there too.
    """

    key: str
    features: int
    size: int
    fit: Fit
    start: Callable[[], Compute]
    mirrored: bool = False


@dataclass(frozen=True)
class FeatureCache:
    """The features of M images; ``bad`` says of which rows there are none, and why."""

    key: str
    array: Features
    places: Rows
    mirrors: Rows | None
    digests: Bytes
    bad: dict[int, str]
    plain: Rows
    """The images of which every pixel was found to be the same grey as their features were computed."""
    span: Span | None = None
    """What became 0 and 255 in images of more than 8 bits a channel; None where there are none."""

    def rows(self, rows: Rows) -> CachedFeatures:
        """The features of some of the images, to train on."""
        mirrors = None if self.mirrors is None else self.mirrors[rows]
        return CachedFeatures(self.array, self.places[rows], self.digests[rows], self.key, mirrors, self.span)


@dataclass
class _Store:
    """What a cache's files hold: where each digest's features are, which images are no images, and which are plain."""

    folder: Path
    width: int
    places: dict[bytes, int] = field(default_factory=dict)
    bad: dict[bytes, str] = field(default_factory=dict)
    plain: set[bytes] = field(default_factory=set)
    lines: list[bytes] = field(default_factory=list)
    damaged: int = 0
    length: int = 0

    def add(self, block: dict[str, Any]) -> None:
        digests = bytes.fromhex(block["digests"])
        count = len(digests) // _DIGEST
        keys = (digests[_DIGEST * place : _DIGEST * (place + 1)] for place in range(count))
        self.places.update(zip(keys, range(block["first"], block["first"] + count), strict=True))
        self.bad.update({bytes.fromhex(digest): str(reason) for digest, reason in block["bad"].items()})
        self.plain.update(map(bytes.fromhex, block.get("plain", ())))  # blocks of earlier versions do not say
        self.length = max(self.length, block["first"] + count)

    def missing(self, digests: Sequence[bytes], mirrored: bool) -> list[int]:
        """Which of the images lack features, their own or their mirror image's; each content once."""
        wanted: dict[bytes, int] = {}
        for row, digest in enumerate(digests):
            if digest != UNREAD and digest not in self.bad and self.lacks(digest, mirrored):
                wanted.setdefault(digest, row)
        return list(wanted.values())

    def lacks(self, digest: bytes, mirrored: bool) -> int:
        """How many features of an image are not there yet: of itself, and of its mirror image where that is wanted."""
        return (digest not in self.places) + (mirrored and mirror(digest) not in self.places)


def open_features(source: ImageSource, recipe: Recipe, say: Say) -> FeatureCache:
    """Open the features of some images, computing those that are not there yet.

    Raises DataError when a file is gone, the disk is too small, or a file changes while it is read.
    """
    root = cache_root()
    with disk_errors(root):
        (root / "signatures").mkdir(parents=True, exist_ok=True)
        span = common_span(source, root)
        source = source if span is None else source.within(span)
        kind = recipe.key + source.options
        folder = root / f"features-{hashlib.sha256(kind.encode()).hexdigest()[:24]}"
        folder.mkdir(exist_ok=True)
        digests = content_digests(source, root)
        keys = [row.tobytes() for row in digests]
        store = _read(folder, recipe.features)
        if store.damaged or store.missing(keys, recipe.mirrored):
            with locked(root / f"{folder.name}.lock", say, "computes the same features"):
                store = _read(folder, recipe.features)
                _drop_damaged(store, say)
                rows = store.missing(keys, recipe.mirrored)
                if rows:
                    _compute(source, rows, keys, recipe, store, say)
                    _read(folder, recipe.features)  # what was there before may have changed meanwhile
        return _opened(source, recipe, store, digests, keys)


def mirror(digest: bytes) -> bytes:
    """The key of an image's mirror image."""
    return hashlib.blake2b(digest + b"mirror", digest_size=_DIGEST).digest()


def _opened(source: ImageSource, recipe: Recipe, store: _Store, digests: Bytes, keys: Sequence[bytes]) -> FeatureCache:
    bad = {row: store.bad[key] for row, key in enumerate(keys) if key in store.bad}
    for row in (row for row, key in enumerate(keys) if key == UNREAD):
        try:
            source.read(row)
            bad[row] = "could not be read when its features were computed: start again"
        except BadImage as error:
            bad[row] = str(error)
    shape = (store.length, recipe.features)
    array: Any = np.memmap(store.folder / _ROWS, np.float32, "r", shape=shape) if store.length else np.empty(shape)
    mirrors = _places(store, [mirror(key) for key in keys]) if recipe.mirrored else None
    plain = np.flatnonzero([key in store.plain for key in keys])
    return FeatureCache(recipe.key, array, _places(store, keys), mirrors, digests, bad, plain, source.span)


def _places(store: _Store, keys: Sequence[bytes]) -> Rows:
    return np.fromiter((store.places.get(key, -1) for key in keys), np.int64, len(keys))


def _read(folder: Path, width: int) -> _Store:
    """What is there, without damaged blocks; files that have changed since they were checked are checked."""
    for name in _FILES:
        if not (folder / name).exists():
            (folder / name).touch()
    states = file_states(folder, _FILES)
    whole = is_checked(folder, states)
    store = _Store(folder, width)
    with (folder / _ROWS).open("rb") as file:
        for line in (folder / _BLOCKS).read_bytes().splitlines():
            block = _parsed(line)
            if block is not None and (whole or _checksum(file, block, width) == block["checksum"]):
                store.add(block)
                store.lines.append(line)
            else:
                store.damaged += 1
    if not whole and not store.damaged:
        set_checked(folder, states)
    return store


def _drop_damaged(store: _Store, say: Say) -> None:
    """Leave damaged blocks out of the list of blocks. The last one may be what a killed process was writing."""
    if store.damaged:
        many = store.damaged > 1
        count = f"{store.damaged} block{'s' if many else ''} of features in {store.folder}"
        say(f"{count} {'are' if many else 'is'} damaged: computing {'them' if many else 'it'} anew")
        lines = b"".join(line + b"\n" for line in store.lines)
        write_whole(store.folder / _BLOCKS, lambda aside: aside.write_bytes(lines))


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A block's line; None for one that is no such line, like the one that was being written."""
    try:
        block = json.loads(line)
        sound = (
            int(block["first"]) >= 0
            and bytes.fromhex(block["digests"]) is not None
            and block["bad"].items() is not None
        )
        return block if sound and "checksum" in block else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _checksum(file: Any, block: dict[str, Any], width: int) -> int:
    digests = bytes.fromhex(block["digests"])
    file.seek(block["first"] * width * 4)
    return _checksum_of(digests, file.read(len(digests) // _DIGEST * width * 4), block["bad"])


def _checksum_of(digests: bytes, features: bytes, bad: dict[str, str]) -> int:
    return zlib.crc32(json.dumps(sorted(bad.items())).encode(), zlib.crc32(features, zlib.crc32(digests)))


def _compute(
    source: ImageSource, rows: Sequence[int], keys: Sequence[bytes], recipe: Recipe, store: _Store, say: Say
) -> None:
    """Compute the features of some images block by block; each block is on the disk before the next one begins."""
    and_mirrors = " and of their mirror images" if recipe.mirrored else ""
    say(f"computing the features of {len(rows)} images{and_mirrors}, once, into {store.folder}")
    compute = recipe.start()
    images = _decoded(source, rows, keys, recipe)
    with (
        (store.folder / _ROWS).open("r+b") as file,
        (store.folder / _BLOCKS).open("ab") as lines,
        progress_bar(sum(store.lacks(keys[row], recipe.mirrored) for row in rows)) as bar,
    ):
        for start in range(0, len(rows), BLOCK):
            block = [next(images) for _ in rows[start : start + BLOCK]]
            bad = {keys[row].hex(): pixels for row, pixels in block if isinstance(pixels, str)}
            good = {keys[row]: pixels for row, pixels in block if not isinstance(pixels, str)}
            found, digests = _features_of(good, recipe, store, compute, bar.update)
            file.seek(store.length * recipe.features * 4)
            file.write(found.tobytes())
            bar.update(len(bad) * (2 if recipe.mirrored else 1))
            for each in (file, lines):
                each.flush()
                os.fsync(each.fileno())
            plain = [key.hex() for key, pixels in good.items() if (pixels == pixels[0, 0, 0]).all()]
            entry = {"first": store.length, "digests": digests.hex(), "bad": bad, "plain": plain}
            entry["checksum"] = _checksum_of(digests, found.tobytes(), bad)
            lines.write(json.dumps(entry).encode() + b"\n")
            lines.flush()
            store.add(entry)


def _features_of(
    images: dict[bytes, Bytes], recipe: Recipe, store: _Store, compute: Compute, done: Callable[[int], object]
) -> tuple[Features, bytes]:
    """What is missing of the features of some images, then of those of their mirror images; and the keys of both."""
    own = [(key, pixels) for key, pixels in images.items() if key not in store.places]
    mirrors = [(mirror(key), pixels[:, ::-1]) for key, pixels in images.items()] if recipe.mirrored else []
    mirrors = [(key, pixels) for key, pixels in mirrors if key not in store.places]
    parts: list[Features] = [np.empty((0, recipe.features), np.float32)]
    for side in (own, mirrors):
        for start in range(0, len(side), _BATCH):
            parts.append(compute(np.stack([pixels for _, pixels in side[start : start + _BATCH]])))
            done(len(parts[-1]))
    return np.concatenate(parts).astype(np.float32, copy=False), b"".join(key for key, _ in [*own, *mirrors])


def _decoded(
    source: ImageSource, rows: Sequence[int], keys: Sequence[bytes], recipe: Recipe
) -> Iterator[tuple[int, Any]]:
    """Each image's pixels S x S x 3, or why it is none, in order; threads decode ahead of what is asked for."""

    def decode(row: int) -> Any:
        try:
            return np.asarray(source.open(row, read_again(source, row, keys[row]), recipe.size, recipe.fit))
        except BadImage as error:
            return str(error)

    ahead: deque[tuple[int, Future[Any]]] = deque()
    with ThreadPoolExecutor(usable_cores()) as threads:
        for row in rows:
            ahead.append((row, threads.submit(decode, row)))
            if len(ahead) > 2 * BLOCK:
                first, pixels = ahead.popleft()
                yield first, pixels.result()
        for first, pixels in ahead:
            yield first, pixels.result()
