"""Which state of a cache's files was found to be sound, so that they are not read through again each time; and small
files that are checked whenever they are read."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crh_tune.ground import write_array, write_json

Bytes = npt.NDArray[np.uint8]
_CHECKED = "checked.json"
"""The states that each node which uses the cache has checked last, by the node's name."""


def file_states(folder: Path, names: Sequence[str]) -> list[Any]:
    """What changes when one of the files is written to, or the machine was off before all was on its disk."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    found = [os.stat(folder / name) for name in names]
    states = [[state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino] for state in found]
    return [boot.read_text().strip() if boot.exists() else "", *states]


def is_checked(folder: Path, states: list[Any]) -> bool:
    """Whether this node has checked a cache's files in this state."""
    known = read_json(folder / _CHECKED)
    return isinstance(known, dict) and known.get(platform.node()) == states


def set_checked(folder: Path, states: list[Any]) -> None:
    known = read_json(folder / _CHECKED)
    write_json(folder / _CHECKED, {**(known if isinstance(known, dict) else {}), platform.node(): states})


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def load_array(path: Path, shape: tuple[int, ...], dtype: Any, mode: Literal["r", "r+"] = "r") -> Any:
    """A memory-mapped array of this shape and type; None where there is no such one."""
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except Exception:  # whatever NumPy raises on a broken header
        return None
    return array if isinstance(array, np.memmap) and array.shape == shape and array.dtype == dtype else None


def file_digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def read_rows(path: Path, count: int) -> Bytes | None:
    """``count`` rows of 16 bytes; None where they are not there, or not as they were written."""
    found = load_array(path, (count + 1, 16), np.uint8)
    sound = found is not None and file_digest(found[:-1].tobytes()) == found[-1].tobytes()
    return np.array(found[:-1]) if sound else None


def write_rows(path: Path, rows: Bytes) -> None:
    """Write rows of 16 bytes with their own digest. Raises OSError."""
    own = np.frombuffer(file_digest(rows.tobytes()), dtype=np.uint8)
    write_array(path, np.vstack([rows, own]))
