"""Which state of a cache's files was found to be sound, so that they are not read through again each time."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crh_tune.ground import write_json

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
