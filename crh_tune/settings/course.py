"""The course of a search: what stops its trials, how finalists are confirmed, how much is tried."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from crh_tune.settings.base import Settings


class AshaSettings(Settings):
    """Asynchronous successive halving: from ``grace_epochs`` on, each rung keeps one trial in ``reduction``."""

    grace_epochs: int = Field(5, ge=1)
    """How many epochs every trial gets."""
    reduction: float = Field(3, gt=1)
    """One in this many trials passes a rung; each rung is at this many times the epochs of the one before."""


class SchedulerSettings(Settings):
    """What stops weak trials early; ``scheduler: {}`` stops none."""

    asha: AshaSettings | None = None
    """Successive halving, the default; a grid has none unless it says so."""


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


class BudgetSettings(Settings):
    """How many trials, hours and epochs at most (null: no limit), how many at once (auto: what the machine fits).

    A trial that evaluates nothing for ``hang_minutes`` hangs, and fails: leave time for ``evaluate_every`` epochs.
    """

    trials: int = Field(24, ge=1)
    """How many trials are tried."""
    hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    """After how many hours no new trial starts; null sets no limit."""
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
