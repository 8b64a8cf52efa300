"""The figures on MLflow's pages, drawn anew while a search runs, by a thread of the process that drives it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crh_tune.ground import first_line

Reference = npt.NDArray[np.float64] | None
SHARE = 0.01
"""The share of a search's time that drawing may take, in seconds of one processor: 20 ms of two seconds."""
_FIRST_COST = 0.6
"""What the first drawing is taken to cost, in seconds."""


@dataclass(frozen=True)
class Picture:
    """A figure as a file, and the run that it belongs to: its name, empty for the search's own."""

    run: str
    path: Path


Draw = Callable[[Path, Reference], list[Picture]]
"""Draws the figures of a search's folder as it stands; with how alike the classes are (C x C) those of a class too."""


class Pictures:
    """Has the figures of a search's folder drawn, and gives them to ``keep``, so that each replaces the one before.

    A drawing that fails leaves the search as it is: ``say`` hears why, once.
    """

    def __init__(self, folder: Path, draw: Draw, keep: Callable[[Picture], None], say: Callable[[str], None]) -> None:
        self._folder, self._draw, self._keep, self._say = folder, draw, keep, say
        self._thread: threading.Thread | None = None
        self._last, self._cost = time.monotonic(), _FIRST_COST
        self._failed = False

    def evaluated(self) -> None:
        """A trial was evaluated: draw, where the last drawing is long enough ago."""
        if not self._busy and self._cost <= SHARE * (time.monotonic() - self._last):
            self._begin(None)

    def finish(self, reference: Reference) -> None:
        """Begin the last drawing, of the search as it has ended."""
        self.wait()
        self._begin(reference)

    def wait(self) -> None:
        """Wait for a drawing that is under way."""
        if self._thread is not None:
            self._thread.join()

    @property
    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _begin(self, reference: Reference) -> None:
        self._thread = threading.Thread(target=self._drawn, args=(reference,), daemon=True, name="pictures")
        self._thread.start()

    def _drawn(self, reference: Reference) -> None:
        begun = time.thread_time()
        try:
            for picture in self._draw(self._folder, reference):
                self._keep(picture)
        except Exception as error:  # whatever a drawing library raises
            if not self._failed:
                self._say(f"figures for MLflow are left out: {first_line(error)}")
            self._failed = True
        self._cost, self._last = time.thread_time() - begun, time.monotonic()
