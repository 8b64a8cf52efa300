"""Encoding many photos or rows: resumable, with progress; what cannot be read is listed and not fatal."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from crh_tune.data.store.decode import IMAGE_SUFFIXES, BadImage
from crh_tune.errors import DataError, counted, printable
from crh_tune.ground import check_archive, first_line, write_whole
from crh_tune.retrieval.packing import Packed, first_bits, pack_codes
from crh_tune.serving.encoder import Array, Encoder
from crh_tune.serving.index import About
from crh_tune.serving.session import usable_cores

Say = Callable[[str], None]
Describe = Callable[[Array], Array]
"""Of N inputs some bytes each: N x B, uint8."""
BATCH = 128
_EVERY = 5.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Codes:
    """Packed codes (N x W) by one encoder, with labels (N, text, empty where unknown) and items (N file names or rows).

    ``root`` is the folder that file names are relative to, ``unreadable`` has a line for each file without a code.
    """

    words: Packed
    labels: npt.NDArray[Any]
    items: npt.NDArray[Any]
    encoder: str
    bits: int
    root: str = ""
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What is to be encoded: N items with a stamp each, which changes with the content, and labels.

    ``array`` holds the inputs themselves; without, items are image files below ``root``.
    """

    items: tuple[str, ...]
    stamps: tuple[str, ...]
    labels: tuple[str, ...]
    root: Path
    array: Array | None = None
    several: bool = False
    """Whether an item may have several labels, which are then one text, such as ``0, 3``."""


def find_source(path: Path) -> Source:
    """What lies at a path: a folder of photos, a text file with a path a line, or an array of inputs.

    A folder's photos have the name of the folder they lie in as label. A list's lines are ``path`` or
    ``path<TAB>label``, its paths relative to the list. An array is ``.npy``, or ``features`` or ``images`` (and
    ``labels``, one or C values 0 or 1 a row) of an ``.npz``. Raises DataError.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder: give a folder of photos, a list or an array")
    return _array(path) if path.suffix.lower() in (".npy", ".npz") else _list(path)


def _folder(root: Path) -> Source:
    names = []
    for folder, below, files in os.walk(root):
        below.sort()
        own = Path(folder).relative_to(root)
        names += [(own / name).as_posix() for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise DataError(f"{root}: no photos in it: files such as .jpg and .png are looked for")
    names.sort()
    return _files(root.absolute(), names, [Path(name).parent.name for name in names])


def _list(path: Path) -> Source:
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no UTF-8 text: give a folder, a list with a path a line, or .npy, .npz") from None
    rows = [line.partition("\t") for line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path}: the list is empty: want a path a line")
    return _files(path.absolute().parent, [name.strip() for name, _, _ in rows], [label for _, _, label in rows])


def _files(root: Path, names: Sequence[str], labels: Sequence[str]) -> Source:
    return Source(tuple(names), tuple(_stamp(root / name) for name in names), tuple(labels), root)


def _stamp(path: Path) -> str:
    try:
        state = path.stat()
    except (OSError, ValueError):  # ValueError: a name with a null character
        return "missing"
    return f"{state.st_size}-{state.st_mtime_ns}"


def _array(path: Path) -> Source:
    labels: Array | None = None
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            check_archive(path)
            with np.load(path, allow_pickle=False) as arrays:
                name = next((name for name in ("features", "images") if name in arrays), None)
                if name is None:
                    raise ValueError(f"has no features and no images, but {', '.join(arrays) or 'nothing'}")
                array, labels = arrays[name], arrays.get("labels")
        if not array.ndim:
            raise ValueError("holds a single value")
    except Exception as error:  # whatever zipfile and NumPy raise on a broken file
        raise DataError(f"{path}: not a readable array: {first_line(error)}") from None
    several = labels is not None and labels.ndim == 2 and labels.shape[1] > 1 and bool(np.isin(labels, (0, 1)).all())
    if labels is not None and (labels.shape[:1] != (len(array),) or (labels.ndim > 1 and not several)):
        wanted = f"one label, or C values 0 or 1, for each of {len(array)} rows is wanted"
        raise DataError(f"{path}: labels of shape {labels.shape}: {wanted}")
    texts = ("",) * len(array) if labels is None else tuple(map(About().label, labels))
    names = tuple(map(str, range(len(array))))
    return Source(names, (_stamp(path),) * len(array), texts, path.absolute(), array, several)


def encode_source(encoder: Encoder, source: Source, target: Path, say: Say) -> Codes:
    """Encode a source and write ``target``; what an interrupted call had done is not done again, at any length.

    Raises DataError where nothing can be read, inputs do not fit the encoder, or the file cannot be written.
    """

    whole = encoder.of_bits(encoder.lengths[-1])

    def codes(inputs: Array) -> Array:
        return whole.encode(inputs).view(np.uint8)

    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        found = described(whole, source, codes, whole.empty.shape[1] * whole.empty.itemsize, partial, say)
        words = first_bits(found.bytes, encoder.bits)
        items = np.array([int(source.items[i]) if source.array is not None else source.items[i] for i in found.rows])
        labels = np.array([source.labels[row] for row in found.rows])
        result = Codes(words, labels, items, encoder.name, encoder.bits, str(source.root), found.unreadable)
        write_codes(result, target)
        partial.unlink()
    except OSError as error:
        raise DataError(f"{error.filename or target}: cannot be written: {error.strerror}") from None
    return result


@dataclass(frozen=True)
class Described:
    """What was made of a source: ``rows`` of the items that can be read, B ``bytes`` of each, R x B, and a line for
    each of the others."""

    rows: list[int]
    bytes: npt.NDArray[np.uint8]
    unreadable: tuple[str, ...]


def described(encoder: Encoder, source: Source, describe: Describe, size: int, partial: Path, say: Say) -> Described:
    """Describe the items of a source by ``size`` bytes each, in batches, with progress.

    ``partial`` keeps what is done: an interrupted call goes on from it. Raises DataError where nothing can be read,
    inputs do not fit the encoder or the file is of something else, OSError where it cannot be written.
    """
    if source.array is None:
        try:
            encoder.want_images()
        except ValueError as error:
            raise DataError(str(error)) from None
    done, keys = _read_partial(partial, encoder.name), _keys(source)
    todo = [i for i, key in enumerate(keys) if key not in done]
    if len(todo) < len(keys):
        say(f"{len(keys) - len(todo):,} of {len(keys):,} were encoded before")
    with partial.open("a", encoding="utf-8") as log:
        _describe(encoder, source, todo, describe, done, log, say)
    values = [done[key] for key in keys]
    rows = [row for row, value in enumerate(values) if isinstance(value, bytes)]
    bad = [
        printable(f"{source.root / source.items[row]}: {value}")
        for row, value in enumerate(values)
        if isinstance(value, str)
    ]
    if not rows:
        raise DataError(f"none of {counted(len(bad), 'file')} can be read: {bad[0] if bad else source.root}")
    whole = b"".join(value for value in values if isinstance(value, bytes))
    if {len(value) for value in values if isinstance(value, bytes)} != {size}:
        raise DataError(f"{partial}: left by an interrupted run of something else: remove it")
    return Described(rows, np.frombuffer(whole, dtype=np.uint8).reshape(len(rows), size), tuple(bad))


def _keys(source: Source) -> list[str]:
    """Names every item and its content."""
    where = "" if source.array is None else f"{source.root}:"
    return [f"{where}{item}|{stamp}" for item, stamp in zip(source.items, source.stamps, strict=True)]


def _describe(
    encoder: Encoder, source: Source, todo: list[int], describe: Describe, done: dict[str, bytes | str], log: IO[str],
    say: Say,
) -> None:  # fmt: skip
    keys, start, said = _keys(source), time.monotonic(), time.monotonic()
    encoded = 0
    for rows, inputs, reasons in _inputs(encoder, source, todo):
        try:
            values = describe(inputs) if len(inputs) else np.zeros((0, 0), dtype=np.uint8)
        except ValueError as error:
            raise DataError(f"{source.root}: {error}") from None
        good = [row for row in rows if row not in reasons]
        found: dict[str, bytes | str] = {keys[row]: value.tobytes() for row, value in zip(good, values, strict=True)}
        found |= {keys[row]: reason for row, reason in reasons.items()}
        lines = {key: base64.b64encode(v).decode() if isinstance(v, bytes) else [v] for key, v in found.items()}
        log.write(json.dumps({"encoder": encoder.name, "found": lines}) + "\n")
        log.flush()
        done |= found
        encoded += len(rows)
        if time.monotonic() - said > _EVERY or encoded == len(todo):
            said = time.monotonic()
            say(f"{encoded:,} of {len(todo):,}  {encoded / max(said - start, 1e-9):,.0f} a second")


def _inputs(encoder: Encoder, source: Source, todo: list[int]) -> Iterator[tuple[list[int], Array, dict[int, str]]]:
    """Rows in batches with the inputs of those that can be read, and why the others cannot."""
    if source.array is not None:
        for rows in _cut(todo, 8 * BATCH):
            yield rows, source.array[rows], {}
        return

    def read(row: int) -> Array | str:
        try:
            return encoder.decode((source.root / source.items[row]).read_bytes())
        except BadImage as error:
            return str(error)
        except OSError as error:
            return str(error.strerror)
        except ValueError as error:  # a name with a null character
            return str(error)

    with ThreadPoolExecutor(usable_cores()) as pool:
        batches = _cut(todo, BATCH)
        ahead = [pool.submit(read, row) for row in batches[0]] if batches else []
        for i, rows in enumerate(batches):
            found = [each.result() for each in ahead]
            ahead = [pool.submit(read, row) for row in batches[i + 1]] if i + 1 < len(batches) else []
            images = [image for image in found if not isinstance(image, str)]
            reasons = {row: image for row, image in zip(rows, found, strict=True) if isinstance(image, str)}
            yield rows, np.stack(images) if images else np.zeros((0, *encoder.shape), dtype=np.uint8), reasons


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _read_partial(path: Path, encoder: str) -> dict[str, bytes | str]:
    """What is known already: the code or the reason of each key. A line that was being written counts for nothing."""
    done: dict[str, bytes | str] = {}
    if not path.exists():
        return done
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        content = content[: content.rfind(b"\n") + 1]
        os.truncate(path, len(content))
    try:
        for line in content.splitlines():
            entry = json.loads(line)
            if entry["encoder"] != encoder:
                raise DataError(f"{path}: begun with another encoder: remove it, or name another -o")
            for key, value in entry["found"].items():
                done[key] = base64.b64decode(value) if isinstance(value, str) else str(value[0])
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise DataError(f"{path}: not readable as what an interrupted encoding leaves: remove it") from None
    return done


def write_codes(codes: Codes, path: Path) -> None:
    """Write codes as an ``.npz`` file. Raises OSError."""
    notes = {"encoder": codes.encoder, "bits": codes.bits, "root": codes.root, "unreadable": codes.unreadable}

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez_compressed(
                file, words=codes.words, labels=codes.labels, items=codes.items, about=np.array(json.dumps(notes))
            )

    write_whole(path, write)


def read_codes(path: Path) -> Codes:
    """Read what ``write_codes`` wrote. Raises DataError, naming the file, where it is something else or broken."""
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as arrays:
            words, labels, items, about = (arrays[name] for name in ("words", "labels", "items", "about"))
        notes = json.loads(str(about))
        bits, size = int(notes["bits"]), len(words)
        empty = pack_codes(np.zeros((0, bits), dtype=bool))
        if words.dtype != empty.dtype or words.shape != (size, empty.shape[1]):
            raise ValueError(f"{words.dtype} words of shape {words.shape} for {bits} bits")
        if labels.shape != (size,) or items.shape != (size,) or items.dtype.kind not in "iuU":
            raise ValueError(f"labels of shape {labels.shape} and items of shape {items.shape}")
        return Codes(
            words, labels, items, str(notes["encoder"]), bits, str(notes["root"]), tuple(map(str, notes["unreadable"]))
        )
    except Exception as error:  # whatever zipfile and NumPy raise on a broken file
        raise DataError(f"{path}: not the codes that crh-tune encode writes: {first_line(error)}") from None


def joined(parts: Sequence[tuple[Path, Codes]]) -> Codes:
    """Codes of several files as one, in order; file names become absolute where the folders differ.

    Raises DataError where they are of different encoders, or of photos and rows mixed.
    """
    first = parts[0][1]
    for path, codes in parts:
        if codes.encoder != first.encoder or codes.bits != first.bits:
            raise DataError(f"{path}: codes of another encoder than those of {parts[0][0]}: encode it again")
        if codes.items.dtype.kind != first.items.dtype.kind:
            raise DataError(f"{path}: its items are no {'photos' if first.items.dtype.kind == 'U' else 'rows'}")
    root, items = first.root, [codes.items for _, codes in parts]
    if len({codes.root for _, codes in parts}) > 1:
        if first.items.dtype.kind != "U":
            raise DataError(f"{parts[1][0]}: rows of another array than {parts[0][0]}: index each by itself")
        root, items = "", [np.array([str(Path(c.root) / item) for item in c.items]) for _, c in parts]
    return Codes(
        np.concatenate([codes.words for _, codes in parts]),
        np.concatenate([codes.labels for _, codes in parts]),
        np.concatenate(items),
        first.encoder,
        first.bits,
        root,
        tuple(line for _, codes in parts for line in codes.unreadable),
    )
