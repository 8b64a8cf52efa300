"""The front of a search with two objectives: the trials that no other beats in one and equals or beats in the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.record import COMPLETE, Outcome


@dataclass(frozen=True)
class Point:
    """A trial on the front, with the values of both objectives: each of one run, with the seed of all trials."""

    trial: str
    settings: dict[str, Any]
    value: float
    also: float

    def told(self, settings: SearchSettings) -> str:
        """Both values in words."""
        objective = settings.objective
        also = f"{self.also:.0f} bits" if objective.also == "bits" else f"{objective.also} {self.also:.4f}"
        return f"{objective.metric} {self.value:.4f}, {also}"


def values_of(settings: SearchSettings, outcome: Outcome) -> list[float]:
    """What a trial has of each objective; NaN where it has nothing."""
    objective = settings.objective
    found = [outcome.metrics.get(objective.metric, math.nan)]
    if objective.also == "bits":
        found.append(float(outcome.settings["trial"]["bits"]))
    elif objective.also is not None:
        found.append(outcome.metrics.get(objective.also, math.nan))
    return found


def front_of(settings: SearchSettings, trials: Iterable[Outcome]) -> tuple[Point, ...]:
    """The front among the complete trials, that with the best first objective first; empty with one objective."""
    if settings.objective.also is None:
        return ()
    signs = [1 if direction == "maximize" else -1 for direction in settings.objective.directions]
    known = [(each, values_of(settings, each)) for each in trials if each.status == COMPLETE]
    found = [
        (each, [sign * value for sign, value in zip(signs, values, strict=True)])
        for each, values in known
        if all(map(math.isfinite, values))
    ]
    best = [(each, values) for each, values in found if not any(_dominates(other, values) for _, other in found)]
    best.sort(key=lambda pair: ([-value for value in pair[1]], pair[0].name))
    return tuple(Point(each.name, each.settings, *values_of(settings, each)) for each, _ in best)


def _dominates(these: Sequence[float], those: Sequence[float]) -> bool:
    """Whether these values, of which more is better, are nowhere worse and somewhere better."""
    return all(a >= b for a, b in zip(these, those, strict=True)) and list(these) != list(those)
