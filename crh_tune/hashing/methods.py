"""The table of methods: method = objective x centres x reassignment x heads.

A method is a preset of trial settings. Any of them can be set beside the method, and then that value counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reassignment = Literal["greedy", "hungarian", "none"]
Heads = Literal["multi", "single"]


@dataclass(frozen=True)
class Method:
    """One row: its objective, where centres come from, how they are reassigned, and with how many heads."""

    title: str
    paper: str
    objective: str
    reassignment: Reassignment
    heads: Heads


METHODS: dict[str, Method] = {
    "crh": Method("CRH", "Yin et al., AAAI 2026", "margin_cross_entropy", "greedy", "multi"),
    "crh_m": Method("CRH-M", "Yin et al., AAAI 2026", "margin_cross_entropy", "greedy", "single"),
    "crh_u": Method("CRH-U", "Yin et al., AAAI 2026", "margin_cross_entropy", "none", "single"),
}
