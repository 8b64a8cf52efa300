"""What a search optimises: one metric, or a metric and beside it a second one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import model_validator

from crh_tune.settings.base import Settings


class ObjectiveSettings(Settings):
    """What the search optimises: a metric of the validation queries or of the centres.

    ``objective: [val/map, bits]`` is short for a metric of which more is better, and a second objective.
    """

    metric: Literal["val/map", "val/map_harmonic", "centers/pcc"] = "val/map"
    """mAP of the validation queries, its harmonic mean with that of classes held out, or how well centres agree."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better, or less."""
    also: Literal["bits", "val/map_asymmetric"] | None = None
    """A second objective: few bits, or much mAP of the queries' real outputs; the search tells the front of both."""

    @model_validator(mode="before")
    @classmethod
    def _from_a_pair(cls, content: Any) -> Any:
        if not isinstance(content, list | tuple):
            return content
        if len(content) != 2:
            raise ValueError(f"a list takes a metric and a second one, such as [val/map, bits], got {list(content)}")
        return {"metric": content[0], "also": content[1]}

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """What Optuna is to do with each objective."""
        maximized = [self.mode == "max", *([] if self.also is None else [self.also != "bits"])]
        return ["maximize" if more else "minimize" for more in maximized]

    def check_second(self, searched: Collection[str], lengths: Collection[int], starts: Collection[object]) -> None:
        """Raises ValueError where a second objective does not go with what is searched over or started from."""
        if self.also is None:
            return
        if self.also == "bits" and "bits" not in searched:
            raise ValueError("objective: bits are the same in all trials: search over bits")
        if lengths:
            raise ValueError("objective: one is enough where search.bits asks for the smallest: leave the second out")
        if "earlier" in starts:
            raise ValueError(
                "start_from: earlier searches are known by one objective: leave earlier out, or the second"
            )
