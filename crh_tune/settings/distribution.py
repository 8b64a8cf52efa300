"""What a searched setting is drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_serializer, model_validator

from crh_tune.settings.base import Settings

Kind = Literal["choice", "grid", "uniform", "log_uniform", "int", "feasible", "smallest"]
KINDS: dict[str, str] = {
    "choice": "a list of values",
    "grid": "a list of values, all of them tried",
    "uniform": "[low, high]",
    "log_uniform": "[low, high], both positive",
    "int": "[low, high], whole numbers",
    "feasible": "true (head_dim only)",
    "smallest": "a list of code lengths, of which the smallest that reaches the target is found (bits only)",
}


class Distribution(Settings):
    """What one setting is drawn from, written as one key: ``{uniform: [0, 0.5]}``."""

    kind: Kind
    """How it is drawn."""
    values: tuple[Any, ...] = ()
    """What it is drawn from."""

    @model_validator(mode="before")
    @classmethod
    def _from_one_key(cls, content: Any) -> Any:
        if not isinstance(content, Mapping) or len(content) != 1:
            raise ValueError(f"expected one of {_kinds()}, got {content!r}")
        kind, values = next(iter(content.items()))
        if kind not in KINDS:
            raise ValueError(f"unknown distribution {kind!r}: one of {_kinds()}")
        if kind == "feasible":
            if values is not True:
                raise ValueError(f"feasible takes {KINDS[kind]}, got {values!r}")
            return {"kind": kind}
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{kind} takes {KINDS[kind]}, got {values!r}")
        return {"kind": kind, "values": tuple(values)}

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.kind in ("choice", "grid", "smallest"):
            if any(self.values.index(value) < place for place, value in enumerate(self.values)):
                raise ValueError(f"{self.kind} names a value twice: {list(self.values)}")
            if self.kind == "smallest" and len(self.values) == 1:
                raise ValueError(f"smallest takes two code lengths or more, got {list(self.values)}")
        elif self.kind != "feasible":
            self._check_range()
        return self

    def _check_range(self) -> None:
        kind = int if self.kind == "int" else (int, float)
        fits = len(self.values) == 2 and all(isinstance(v, kind) and not isinstance(v, bool) for v in self.values)
        if not fits or not self.values[0] < self.values[1] or (self.kind == "log_uniform" and self.values[0] <= 0):
            raise ValueError(f"{self.kind} takes {KINDS[self.kind]}, low < high, got {list(self.values)}")

    @model_serializer
    def _as_one_key(self) -> dict[str, Any]:
        return {self.kind: True if self.kind == "feasible" else list(self.values)}

    def contains(self, value: Any) -> bool:
        """Whether the distribution can draw this value."""
        if self.kind in ("choice", "grid", "smallest"):
            return value in self.values
        if self.kind == "int" and not isinstance(value, int):
            return False
        return isinstance(value, int | float) and bool(self.values[0] <= value <= self.values[1])

    def beyond(self, value: Any) -> float | None:
        """A value just beyond the end of a range that this value lies at, within a twentieth; None elsewhere.

        A twentieth of the logarithms of a log_uniform range.
        """
        if self.kind not in ("uniform", "log_uniform", "int") or not self.contains(value):
            return None
        scale, back = (math.log, math.exp) if self.kind == "log_uniform" else (float, float)
        low, high, at = (scale(each) for each in (*self.values, value))
        near = (high - low) / 20
        step = 1 if self.kind == "int" else near
        for end, there in ((low, at - low <= near), (high, high - at <= near)):
            if there:
                past = back(end - step if end == low else end + step)
                return int(past) if self.kind == "int" else past
        return None


def _kinds() -> str:
    return ", ".join(KINDS)
