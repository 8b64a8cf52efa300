"""The outbox of a search on disk: what MLflow is to be told, a line an entry, and how far a server has it.

Entries are sent in two lanes. WORDS are runs, metrics, tags: short, in order. FILES are artifacts and models: a file is
sent once all words before it are, and never holds up the words after it.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from crh_tune.tuning.address import shown
from crh_tune.tuning.record import OUTBOX_FILE

SENT_FILE = "mlflow_sent"
WORDS, FILES = "sent", "files"
LANES = (WORDS, FILES)
"""The names under which the file of what was sent has them; earlier versions had one lane, ``sent``."""
_OF_FILES = ("artifact", "model")


def lane_of(kind: str) -> str:
    """The lane that sends entries of this kind."""
    return FILES if kind in _OF_FILES else WORDS


class Sent:
    """How many lines of an outbox each lane is past, on disk. Another server has nothing, and is sent all of them."""

    def __init__(self, path: Path, uri: str, lines: int) -> None:
        self._path, self._server, self._lock = path, shown(uri), threading.Lock()
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            known = kept["server"] == self._server
            words = int(kept[WORDS]) if known else 0
            past = {WORDS: words, FILES: int(kept.get(FILES, words)) if known else 0}
        except (OSError, ValueError, KeyError, TypeError):  # nothing, or what cannot be read: sent again, which is safe
            past = dict.fromkeys(LANES, 0)
        self.past = {lane: min(count, lines) for lane, count in past.items()}

    def move(self, lane: str) -> None:
        """One more line is behind this lane."""
        with self._lock:
            self.past[lane] += 1
            aside = self._path.with_name(f".{self._path.name}")
            with suppress(OSError):  # what is not kept, also in a crash, is sent again, and that is safe
                aside.write_text(json.dumps({**self.past, "server": self._server}), encoding="utf-8")
                aside.replace(self._path)


def unsent_in(folder: Path, uri: str) -> int:
    """How many entries of a search's outbox the tracking server has not got."""
    lines = whole_lines(folder / OUTBOX_FILE)
    past = Sent(folder / SENT_FILE, uri, len(lines)).past
    return sum(number >= past[lane_of(json.loads(line)[0])] for number, line in enumerate(lines))


def line_of(kind: str, key: str, content: dict[str, Any]) -> str:
    return json.dumps([kind, key, content], ensure_ascii=False) + "\n"


def whole_lines(outbox: Path) -> list[str]:
    """The entries of an outbox, made where there is none; what a crash left half-written at its end is cut off."""
    outbox.touch()
    content = outbox.read_bytes()
    good = 0
    lines = []
    for line in content.splitlines(keepends=True):
        try:
            _kind, _key, _content = json.loads(line)
        except (ValueError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        good += len(line)
        lines.append(line.decode())
    if good < len(content):
        os.truncate(outbox, good)
    return lines
