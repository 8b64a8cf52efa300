"""The course of a search: what stops its trials, how finalists are confirmed, how much is tried."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from crh_tune.settings.base import Settings, known


class AshaSettings(Settings):
    """Asynchronous successive halving: from ``grace_epochs`` on, each rung keeps one trial in ``reduction``."""

    grace_epochs: int = Field(5, ge=1)
    """How many epochs every trial gets."""
    reduction: float = Field(3, gt=1)
    """One in this many trials passes a rung; each rung is at this many times the epochs of the one before."""


class HyperbandSettings(AshaSettings):
    """Hyperband, asynchronously: ``brackets`` of successive halving, each of which begins to stop one rung later.

    A trial is in the first with the greatest chance; where a bracket has no rung left, its trials run to their end.
    """

    brackets: int = Field(3, ge=1, le=10)
    """How many brackets there are."""


class MedianStoppingSettings(Settings):
    """The median stopping rule: it ends a trial whose best value is below the median of the others' means so far."""

    grace_epochs: int = Field(5, ge=1)
    """How many epochs every trial gets; the means begin there."""
    min_trials: int = Field(3, ge=1)
    """Of how many others, at least, the median is taken."""


class ShortSettings(Settings):
    """Every trial ends after its first ``epochs``; only finalists are trained whole, as they are confirmed."""

    epochs: int = Field(10, ge=1)
    """How many epochs a trial gets; its learning rate falls as in a whole run."""


class SchedulerSettings(Settings):
    """What ends trials early: one of these, or its name alone; ``scheduler: none`` ends none."""

    asha: AshaSettings | None = None
    """Successive halving; what runs where a file has no `scheduler`, but for a grid, which then has none."""
    hyperband: HyperbandSettings | None = None
    """Several brackets of successive halving."""
    median_stopping: MedianStoppingSettings | None = None
    """The median stopping rule."""
    short: ShortSettings | None = None
    """Every trial ends after its first epochs."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, content: Any) -> Any:
        """``hyperband`` is ``{hyperband: {}}``."""
        if content is None or content == "none":
            return {}
        if not isinstance(content, str):
            return content
        return {known(content, {**cls.model_fields, "none": None}, "scheduler"): {}}

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given: one scheduler ends the trials of a search")
        return self

    @property
    def until(self) -> int | None:
        """After how many epochs a trial has come to its end, where that may be before its last."""
        return self.short.epochs if self.short is not None else None

    def rungs(self, epochs: int) -> list[int]:
        """The epochs at which trials of so many epochs are compared, where it has rungs."""
        chosen, found = self.asha or self.hyperband, []
        if chosen is not None:
            rung = float(chosen.grace_epochs)
            while rung < epochs:
                found.append(math.ceil(rung))
                rung *= chosen.reduction
        return found


class ConfirmSettings(Settings):
    """The ``top`` finalists and the paper's setting race with fresh seeds, ``seeds`` at most; the best mean wins.

    After a search on a frozen backbone, ``freeze: false`` trains all layers of them, for ``epochs`` epochs.
    """

    top: int = Field(3, ge=1)
    """How many of the best trials race."""
    seeds: int = Field(3, ge=1)
    """With how many fresh seeds at most; after each, the worst of those still in the race drop out."""
    freeze: Literal[False] | None = None
    """false trains all layers of the finalists of a search on a frozen backbone."""
    epochs: int | None = Field(None, ge=1, le=1_000_000)
    """How many epochs they are trained with all layers; as many as in the search if not set."""

    @model_validator(mode="after")
    def _epochs_are_of_the_whole_network(self) -> Self:
        if self.epochs is not None and self.freeze is None:
            raise ValueError(f"epochs {self.epochs} goes with freeze: false; else finalists run as they were tried")
        return self


def target_value(target: str, metric: str, mode: str) -> float:
    """The value that ``val/map >= 0.85`` asks for. Raises ValueError where it is not of the search's own metric."""
    sign = ">=" if mode == "max" else "<="
    found = re.fullmatch(r"\s*([\w/]+)\s*([<>]=)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*", target)
    if found is not None and found[1].startswith("test/"):
        raise ValueError(f"{found[1]} is of the test queries, which a search never asks: {metric} {sign} {found[3]}")
    try:
        value = float(found[3]) if found is not None and (found[1], found[2]) == (metric, sign) else math.nan
    except ValueError:  # 1.2.3
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"expected the search's metric, {sign} and a number: {metric} {sign} 0.85, got {target!r}")
    return value


class BudgetSettings(Settings):
    """How many trials, hours and epochs at most (null: no limit), how many at once (auto: what the machine fits).

    A trial that evaluates nothing for ``hang_minutes`` hangs, and fails: leave time for ``evaluate_every`` epochs.
    """

    trials: int = Field(24, ge=1)
    """How many trials are tried."""
    hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    """After how many hours the trials end: those still running are stopped; null sets no limit."""
    epochs: int | None = Field(None, ge=1)
    """After how many epochs of all trials together no new trial starts; null sets no limit."""
    hang_minutes: float = Field(60, gt=0, allow_inf_nan=False)
    """A trial that evaluates nothing for so long has failed."""
    concurrent: int | Literal["auto"] = "auto"
    """How many trials run at once; auto is what the machines fit."""

    @field_validator("concurrent")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"expected auto or at least 1, got {value}")
        return value
