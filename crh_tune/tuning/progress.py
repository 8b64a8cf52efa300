"""What a person sees while runs end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from crh_tune.settings.trial import TrialSettings
from crh_tune.settings.used import short, symbols, unread
from crh_tune.tuning.board import Board, left_line
from crh_tune.tuning.record import COMPLETE, FAILED, Outcome

Say = Callable[[str], None]


_SILENT_SECONDS = 60.0


@runtime_checkable
class Watching(Protocol):
    """A ``say`` that is also shown how the search stands, whenever that changes."""

    def watch(self, board: Board) -> None:
        """Show it."""


class Lines:
    """Says when a trial comes to a rung, and what is under way once nothing was said for a minute."""

    def __init__(self, say: Say) -> None:
        self._say, self._last = say, time.monotonic()
        self._seen: dict[str, int] = {}
        self._ended = 0

    def __call__(self, board: Board) -> None:
        if len(board.outcomes) != self._ended:  # a line was said for the run that has ended
            self._ended, self._last = len(board.outcomes), time.monotonic()
        for name, outcome in board.running.items():
            rung = board.rung_of(outcome)
            if rung > self._seen.get(name, 0):
                self._tell(f"{under_way(board, outcome)}, rung {rung} of {len(board.rungs)}")
            self._seen[name] = rung
        if board.running and time.monotonic() - self._last > _SILENT_SECONDS:
            running = "; ".join(under_way(board, outcome) for outcome in board.running.values())
            self._tell("; ".join(filter(None, [f"under way: {running}", left_line(board)])))

    def _tell(self, line: str) -> None:
        self._last = time.monotonic()
        self._say(f"          {line}")


def watching(say: Say) -> Callable[[Board], None]:
    """What is shown how a search stands: ``say`` itself where it can, else lines for it."""
    return say.watch if isinstance(say, Watching) else Lines(say)


def under_way(board: Board, outcome: Outcome) -> str:
    """Where a run is, in words."""
    epoch, value = outcome.metrics.get("epoch"), outcome.metrics.get(board.metric)
    if epoch is None:
        return f"{outcome.name} begins"
    reached = "" if value is None else f" with {board.metric} {value:.4f}"
    return f"{outcome.name} at epoch {epoch:.0f} of {outcome.settings['trial']['epochs']}{reached}"


class Progress:
    """Says one line for every run that ends: how many are done, what it was, its value, the best so far.

    ``before`` are runs of a resumed search that had ended: they are counted, and not said again. ``searched`` names
    what the search explores.
    """

    def __init__(
        self,
        say: Say,
        total: int,
        metric: str,
        mode: str,
        before: Sequence[Outcome] = (),
        searched: Collection[str] = (),
    ) -> None:
        self._searched = searched
        self._say, self._total, self._metric, self._sign = say, total, metric, 1 if mode == "max" else -1
        self._done, self._best, self._start = 0, "", time.monotonic()
        self._best_value = float("-inf")
        for outcome in before:
            self._count(outcome)

    def _count(self, outcome: Outcome) -> None:
        self._done += 1
        value = outcome.metrics.get(self._metric)
        if outcome.status == COMPLETE and value is not None and self._sign * value > self._best_value:
            self._best_value, self._best = self._sign * value, outcome.name

    def __call__(self, outcome: Outcome) -> None:
        self._count(outcome)
        value = outcome.metrics.get(self._metric)
        if outcome.status == FAILED or value is None:
            said = f"failed: {outcome.error}"
        else:
            stopped = "" if outcome.status == COMPLETE else f" stopped after epoch {outcome.metrics['epoch']:.0f}"
            said = f"{self._metric} {value:.4f}{stopped}"
        best = f"  best {self._sign * self._best_value:.4f} ({self._best})" if self._best else ""
        elapsed = time.monotonic() - self._start
        self._say(
            f"[{self._done:>3}/{self._total}] {elapsed:4.0f} s  {outcome.name}  {said}  "
            f"{describe(outcome.settings, self._searched)}{best}"
        )


def describe(settings: dict[str, Any], searched: Collection[str] = ()) -> str:
    """The settings of a trial on one line: ``told`` with its values shortened."""
    return " ".join(f"{name}={short(value)}" for name, value in told(settings, searched).items())


def told(settings: Mapping[str, Any], searched: Collection[str] = ()) -> dict[str, Any]:
    """The settings of a trial in the paper's symbols, and by name what else is searched; only what its method uses."""
    whole = TrialSettings.model_validate(settings)
    trial = whole.trial
    named = {name: symbol.name for name, symbol in symbols(whole.method, trial).items() if symbol.told}
    hidden = unread(whole.method, trial)
    others = [name for name in searched if name not in (*named, *hidden, "codebook_ratio")]
    values = {name: whole.method if name == "method" else getattr(trial, name) for name in others}
    return {**{symbol: getattr(trial, name) for name, symbol in named.items()}, **values}
