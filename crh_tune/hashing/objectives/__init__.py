"""Training objectives, one file each. An objective maps outputs, targets and centres to named per-sample losses."""

from __future__ import annotations

from collections.abc import Callable

from crh_tune.hashing.objectives.base import Objective, ObjectiveOptions
from crh_tune.hashing.objectives.margin_cross_entropy import MarginCrossEntropy

OBJECTIVES: dict[str, Callable[[ObjectiveOptions], Objective]] = {
    "margin_cross_entropy": MarginCrossEntropy,
}

__all__ = ["OBJECTIVES", "Objective", "ObjectiveOptions"]
