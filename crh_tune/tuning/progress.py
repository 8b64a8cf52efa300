"""What a person sees while runs end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from crh_tune.settings.trial import TrialSettings
from crh_tune.settings.used import short, symbols, unread
from crh_tune.tuning.record import COMPLETE, FAILED, Outcome

Say = Callable[[str], None]


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
