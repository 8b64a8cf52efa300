"""What ends a search before its work is done: a person, its hours, or a failure."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune

from crh_tune.errors import ENDING, INTERRUPTED_CODE, Handled, Interrupted, unless_hung_up
from crh_tune.ground import write_whole

_KEEP_SECONDS = 2.0


class Clock:
    """The seconds that a search may use for its trials; those used are kept on disk, for a search that is resumed."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._used = float(path.read_text()) if path.exists() else 0.0
        self._last: float | None = None
        self._kept = 0.0

    def over(self) -> bool:
        """Whether the seconds are used up; the clock runs from the first time it is asked."""
        now = time.monotonic()
        self._used += now - (self._last or now)
        self._last = now
        if now - self._kept > _KEEP_SECONDS:
            write_whole(self._path, lambda aside: aside.write_text(str(self._used)))
            self._kept = now
        return self._used >= self._seconds


class Stop(tune.Stopper):
    """Tune asks it before every step whether to stop all runs."""

    def __init__(self) -> None:
        self.interrupted = False
        self.search_id = ""
        """The search that can be resumed; empty before there is one."""
        self.failure: Exception | None = None
        """Why it makes no sense to continue."""
        self._running = self._asked = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.interrupted or self.failure is not None

    @contextmanager
    def while_running(self) -> Iterator[None]:
        """Within it, Tune's steps ask what to do: a signal stops the runs in order. Raises Interrupted after one."""
        with self.in_order():
            yield
        self.raise_if_interrupted()

    def raise_if_interrupted(self) -> None:
        """Raises Interrupted where a signal has come."""
        if self.interrupted:
            raise Interrupted

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Within it, a first signal raises nothing: what is done there is done to its end."""
        self._running = True
        try:
            yield
        finally:
            self._running = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within it, Ctrl-C, SIGTERM and SIGHUP interrupt the search in order, a second one of the first two at once.

        Raises Interrupted.
        """
        with Handled(self._signalled, *ENDING):
            yield

    def _signalled(self, number: int, frame: Any) -> None:
        repeated = Handled.is_repeated(number)
        if not (repeated and self.interrupted):
            asked = number != signal.SIGHUP  # which comes together with SIGTERM at a logout
            if asked and self._asked:
                os._exit(INTERRUPTED_CODE)  # Ray's processes end with this one
            self._asked |= asked
            if self.interrupted:
                return
            self.interrupted = True
            with unless_hung_up():
                print("interrupted: ending in order; once more ends it at once", file=sys.stderr, flush=True)
        if not self._running:
            raise Interrupted

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its stopper down to restore it; a resumed search makes a new one."""
        return {}
