"""The decode-once cache: all images of a dataset as one memory-mapped uint8 array, one a node.

A cache is named after the content of the image files, their order and the size, so a changed dataset has another one.
It is built under a lock, in blocks, beside its place, and renamed when it is whole; whoever comes meanwhile waits, and
whoever finds a part that a killed process has left continues it. Every block has a checksum: a cache whose files are
not exactly as they were when they were last checked is checked again before it is read, and a bad one is built anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap
from PIL import Image
from tqdm import tqdm

from crh_tune.data.listing import DataError
from crh_tune.data.store.checked import (
    file_digest,
    file_states,
    is_checked,
    load_array,
    read_json,
    read_rows,
    set_checked,
    write_rows,
)
from crh_tune.data.store.decode import DECODER, BadImage, Span, joined
from crh_tune.data.store.sources import Bytes, ImageSource
from crh_tune.data.store.stored import CachedImages, Rows
from crh_tune.ground import write_json

Say = Callable[[str], None]
THUMBNAIL = 32
_FORMAT = 1
_BLOCK = 64
_FEW_BLOCKS = 8
_VALUES = np.arange(256)
_ZEROS = bytes(2**20)
_COMPLETE, _PROGRESS = "cache.json", "progress.jsonl"
_ARRAYS = ("images.npy", "thumbnails.npy", "moments.npy")
_FILES = (*_ARRAYS, _COMPLETE)


@dataclass(frozen=True)
class ImageCache:
    """An open cache of M images; ``bad`` says of which rows there is no image, and why."""

    folder: Path
    images: Bytes
    thumbnails: Bytes
    moments: npt.NDArray[np.int64]
    digests: Bytes
    bad: dict[int, str]
    span: Span | None = None
    """What became 0 and 255 in images of more than 8 bits a channel; None where there are none."""

    def rows(self, rows: Rows) -> CachedImages:
        """Some of the images, to train on."""
        return CachedImages(self.images, rows, self.digests, self.moments, self.thumbnails, self.span)

    @property
    def plain(self) -> Rows:
        """The images of which every pixel is the same grey: they tell nothing, and something may be wrong with them."""
        pixels = self.images.shape[1] * self.images.shape[2]
        sums, squares = self.moments[..., 0], self.moments[..., 1]
        same = ((squares * pixels == sums**2) & (sums == sums[:, :1])).all(axis=1)
        same[list(self.bad)] = False
        return np.flatnonzero(same)


def cache_root() -> Path:
    """The node's cache folder: ``CRH_TUNE_CACHE``, or ``~/.cache/crh_tune``."""
    return Path(os.environ.get("CRH_TUNE_CACHE") or "~/.cache/crh_tune").expanduser().absolute()


def open_cache(source: ImageSource, size: int, say: Say) -> ImageCache:
    """Open the cache of some images at size x size, building it where there is no whole one.

    Raises DataError when a file is gone, the disk is too small, or a file changes while it is read.
    """
    root = cache_root()
    with disk_errors(root):
        (root / "signatures").mkdir(parents=True, exist_ok=True)
        digests = content_digests(source, root)
        kind = f"{_FORMAT} {DECODER} {size} {THUMBNAIL}{source.options}"
        key = hashlib.sha256(kind.encode() + digests.tobytes()).hexdigest()[:24]
        folder = root / key
        found = _open_checked(folder, size, digests)
        if found is None:
            with locked(root / f"{key}.lock", say):
                found = _open_checked(folder, size, digests) or _check(folder, size, digests, say)
                if found is None:
                    _build(source, size, folder, digests, say)
                    found = _check(folder, size, digests, say)
    if found is None:
        raise DataError(f"{folder}: the cache just built cannot be read again: is the disk all right?")
    return found


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """An OSError inside becomes a DataError that names the cache folder's variable."""
    try:
        yield
    except OSError as error:
        where = error.filename or root
        raise DataError(f"{where}: {error.strerror}: CRH_TUNE_CACHE names another cache folder") from None


@contextmanager
def locked(path: Path, say: Say, what: str = "decodes the same images") -> Iterator[None]:
    """Hold a lock that other processes wait for; says so where this one has to."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that {what}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def content_digests(source: ImageSource, root: Path) -> Bytes:
    """The digest of every image, M x 16; read from the files only where one of them has changed since the last time."""
    memo = root / "signatures" / f"{source.signature()}.npy"
    known = read_rows(memo, len(source.names))
    if known is not None:
        return known
    blocks = list(_in_processes(_digest_block, [(part,) for part in _parts(source)]))
    digests = np.frombuffer(b"".join(found for found, _ in blocks), dtype=np.uint8).reshape(-1, 16)
    if all(whole for _, whole in blocks):
        write_rows(memo, digests)
    return digests


def common_span(source: ImageSource, root: Path) -> Span | None:
    """What becomes 0 and 255 in images of more than 8 bits a channel: what is given, or the lowest and highest value
    of all, which is looked for once. None where there are no such images."""
    if source.span is not None:
        return source.span
    kind = file_digest(f"{DECODER}{source.options}".encode()).hex()[:8]
    memo = root / "signatures" / f"{source.signature()}-{kind}.span"
    known = read_rows(memo, 1)
    if known is None:
        span = joined(_in_processes(_span_block, [(part,) for part in _parts(source)]))
        known = np.array([span or (np.nan, np.nan)]).view(np.uint8)
        write_rows(memo, known)
    low, high = known.view(np.float64)[0].tolist()
    return None if np.isnan(low) else (low, high)


def _parts(source: ImageSource) -> list[ImageSource]:
    return [source.part(_slice(block)) for block in range(_blocks(len(source.names)))]


UNREAD = file_digest(b"")
"""The digest that stands for a file that cannot be read."""


def _digest_block(source: ImageSource) -> tuple[bytes, bool]:
    """The digests of a block's images, and whether all of them could be read."""
    digests, whole = [], True
    for row in range(len(source.names)):
        try:
            digests.append(file_digest(source.read(row)))
        except BadImage:
            digests.append(UNREAD)
            whole = False
    return b"".join(digests), whole


def _span_block(source: ImageSource) -> Span | None:
    return joined(source.deep_span(row) for row in range(len(source.names)))


def progress_bar(total: int, initial: int = 0) -> tqdm[Any]:
    """A bar of how many images are done, on standard error: in a log, where it cannot move, anew every ten seconds."""
    return tqdm(total=total, initial=initial, unit=" images", mininterval=0.1 if sys.stderr.isatty() else 10)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_processes(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """What each task gives, in order, from as many processes as there are cores; few tasks are done in this one.

    Threads would wait for each other: most of the work on a small image is Python's.
    """
    processes = min(usable_cores(), len(tasks) // _FEW_BLOCKS)
    if processes < 2:
        yield from (work(*task) for task in tasks)
        return
    from joblib import Parallel, delayed  # noqa: PLC0415 - half a second to import

    try:
        yield from Parallel(processes, backend="loky", return_as="generator")(delayed(work)(*task) for task in tasks)
    except BrokenExecutor:
        raise DataError(
            "a decoding process was killed, perhaps for memory: start again, what is done is kept"
        ) from None


def _open_checked(folder: Path, size: int, digests: Bytes) -> ImageCache | None:
    """The cache, if its files are exactly those that were checked last."""
    found = _open(folder, size, digests)
    try:
        return found if found is not None and is_checked(folder, file_states(folder, _FILES)) else None
    except OSError:  # another process removes it
        return None


def _check(folder: Path, size: int, digests: Bytes, say: Say) -> ImageCache | None:
    """The cache, if every block still has its checksum; a bad one is removed.

    Its files are known to be sound in the state that they had before they were read: a later change is seen.
    """
    states = file_states(folder, _FILES) if all((folder / name).exists() for name in _FILES) else []
    found, complete = _open(folder, size, digests), read_json(folder / _COMPLETE)
    if found is not None:
        arrays = (found.images, found.thumbnails, found.moments)
        if [_checksum(arrays, block, found.bad) for block in range(_blocks(len(digests)))] == complete.get("blocks"):
            set_checked(folder, states)
            return found
    if folder.exists():
        say(f"the image cache {folder} is damaged: building it anew")
        shutil.rmtree(folder)
    return None


def _open(folder: Path, size: int, digests: Bytes) -> ImageCache | None:
    try:
        complete = read_json(folder / _COMPLETE)
        bad, span = _bad_rows(complete["bad"]), complete["span"] and (complete["span"][0], complete["span"][1])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    kinds = _kinds(len(digests), size)
    arrays = [load_array(folder / name, shape, dtype) for name, (shape, dtype) in zip(_ARRAYS, kinds, strict=True)]
    if any(array is None for array in arrays):
        return None
    return ImageCache(folder, arrays[0], arrays[1], arrays[2], digests, bad, span)


def _bad_rows(content: dict[str, str]) -> dict[int, str]:
    return {int(row): str(reason) for row, reason in content.items()}


def _build(source: ImageSource, size: int, folder: Path, digests: Bytes, say: Say) -> None:
    """Decode what a part left by another process does not have yet; rename the part when it is whole."""
    part, count = folder.with_suffix(".part"), len(digests)
    part.mkdir(exist_ok=True)
    arrays = _open_arrays(part, count, size)
    done = _finished_blocks(part, arrays)
    left = [block for block in range(_blocks(count)) if block not in done]
    say(f"decoding {count} images to {size} x {size} pixels, once, into {folder}")
    if done:
        say(f"{count - _size(left, count)} of them are there already")
    (part / _PROGRESS).write_text("".join(json.dumps(entry) + "\n" for entry in done.values()), encoding="utf-8")
    parts, span = _parts(source), common_span(source, folder.parent)
    if span is not None:
        parts = [each.within(span) for each in parts]
    with (
        (part / _PROGRESS).open("a", encoding="utf-8") as progress,
        progress_bar(count, count - _size(left, count)) as bar,
    ):
        tasks = [(parts[block], size, digests[_slice(block)], part, block) for block in left]
        for entry in _in_processes(_decode_block, tasks):
            progress.write(json.dumps(entry) + "\n")
            progress.flush()
            done[entry["block"]] = entry
            bar.update(_size([entry["block"]], count))
    bad = {row: reason for entry in done.values() for row, reason in entry["bad"].items()}
    blocks = [done[block]["checksum"] for block in range(_blocks(count))]
    write_json(part / _COMPLETE, {"format": _FORMAT, "size": size, "blocks": blocks, "bad": bad, "span": span})
    (part / _PROGRESS).unlink()
    part.rename(folder)


def _kinds(count: int, size: int) -> list[tuple[tuple[int, ...], Any]]:
    """Shape and type of the arrays of a cache."""
    small = min(size, THUMBNAIL)
    return [((count, size, size, 3), np.uint8), ((count, small, small, 3), np.uint8), ((count, 3, 2), np.int64)]


def _open_arrays(part: Path, count: int, size: int) -> list[Any]:
    """The part's arrays, memory-mapped: those that are there, or new ones whose place on the disk is reserved.

    Raises OSError where the disk is too small.
    """
    kinds = zip(_ARRAYS, _kinds(count, size), strict=True)
    return [_open_array(part / name, shape, dtype) for name, (shape, dtype) in kinds]


def _open_array(path: Path, shape: tuple[int, ...], dtype: Any) -> Any:
    there = load_array(path, shape, dtype, "r+")
    if there is not None:
        return there
    path.unlink(missing_ok=True)
    array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    try:
        with path.open("r+b", buffering=0) as file:
            _reserve(file, int(array.offset), path.stat().st_size)
    except OSError:
        path.unlink()
        raise
    return array


def _reserve(file: IO[bytes], header: int, size: int) -> None:
    """Have a new file's place on the disk, which is all zeros after its header. Raises OSError on a full disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    place = file.seek(header)  # macOS has no such call: zeros take the place as well
    while place < size:
        place += file.write(_ZEROS[: size - place])


def _finished_blocks(part: Path, arrays: Sequence[Any]) -> dict[int, dict[str, Any]]:
    """The blocks that the part's progress file has, if their pixels still have the checksum."""
    found: dict[int, dict[str, Any]] = {}
    path = part / _PROGRESS
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            block, bad = int(entry["block"]), _bad_rows(entry["bad"])
            whole = 0 <= block < _blocks(len(arrays[0])) and _checksum(arrays, block, bad) == entry["checksum"]
        except (ValueError, KeyError, TypeError, AttributeError):  # such as the line that was being written
            continue
        if whole:
            found[block] = entry
    return found


def _blocks(count: int) -> int:
    return -(-count // _BLOCK)


def _rows(block: int, count: int) -> Rows:
    return np.arange(block * _BLOCK, min((block + 1) * _BLOCK, count))


def _slice(block: int) -> slice:
    return slice(block * _BLOCK, (block + 1) * _BLOCK)


def _size(blocks: Sequence[int], count: int) -> int:
    return sum(_rows(block, count).size for block in blocks)


def _checksum(arrays: Sequence[Any], block: int, bad: dict[int, str]) -> int:
    """The checksum of a block of cache arrays, and of what could not be decoded in it."""
    rows = _rows(block, len(arrays[0])).tolist()
    parts = [array[rows[0] : rows[-1] + 1] for array in arrays]
    return _checksum_of(parts, {row: bad[row] for row in rows if row in bad})


def _checksum_of(parts: Sequence[Any], bad: dict[int, str], checksum: int = 0) -> int:
    for part in parts:
        checksum = zlib.crc32(np.ascontiguousarray(part).data, checksum)
    return zlib.crc32(json.dumps(sorted(bad.items())).encode(), checksum)


def _decode_block(source: ImageSource, size: int, digests: Bytes, part: Path, block: int) -> dict[str, Any]:
    """Decode a block into its place in the files; says its checksum, and what could not be decoded and why.

    Raises DataError where a file has changed since its digest was taken.
    """
    count, first = len(source.names), block * _BLOCK
    small, moments = (np.zeros(shape, dtype=dtype) for shape, dtype in _kinds(count, size)[1:])
    bad: dict[int, str] = {}
    checksum = 0
    with (part / _ARRAYS[0]).open("r+b", buffering=0) as file:
        file.seek(_header_bytes(part / _ARRAYS[0]) + first * size * size * 3)
        for row in range(count):
            pixels = bytes(size * size * 3)
            try:
                image = source.open(row, read_again(source, row, digests[row].tobytes()), size)
                pixels = image.tobytes()
                small[row] = image if size <= THUMBNAIL else _thumbnail(image)
                moments[row] = _moments(image)
            except BadImage as error:
                bad[first + row] = str(error)
            checksum = zlib.crc32(pixels, checksum)
            file.write(pixels)
    for name, values in zip(_ARRAYS[1:], (small, moments), strict=True):
        with (part / name).open("r+b", buffering=0) as file:
            file.seek(_header_bytes(part / name) + first * values.nbytes // count)
            file.write(values.data)
    return {"block": block, "checksum": _checksum_of([small, moments], bad, checksum), "bad": bad}


def _header_bytes(path: Path) -> int:
    """Where the values of an array's file begin."""
    return int(np.load(path, mmap_mode="r", allow_pickle=False).offset)


def read_again(source: ImageSource, row: int, digest: bytes) -> bytes:
    """The content that the digest was taken of.

    Raises BadImage where it could not be read then either, DataError where it has changed.
    """
    try:
        content = source.read(row)
        changed = file_digest(content) != digest
    except BadImage:
        if digest == UNREAD:
            raise
        changed = True
    if changed:
        raise DataError(f"{source.names[row]}: changed while it was read: start again when all is copied")
    return content


def _thumbnail(image: Image.Image) -> Image.Image:
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=1.0)


def _moments(image: Image.Image) -> npt.NDArray[np.int64]:
    """Sum and sum of squares of each channel, 3 x 2, from the counts of its 256 values."""
    counts = np.array(image.histogram()).reshape(3, 256)
    return np.stack([counts @ _VALUES, counts @ _VALUES**2], axis=1)
