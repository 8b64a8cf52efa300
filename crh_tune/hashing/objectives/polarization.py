"""DPN (Fan et al., IJCAI 2020): every output is pushed past a margin on the side of its target bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from crh_tune.hashing.objectives.base import Objective, Options, Symbol, sample_centers, tie_breaker

if TYPE_CHECKING:
    from torch import Tensor


class PolarizationOptions(Options):
    margin: Annotated[float, Field(ge=0), Symbol("m", told=True)] = 1.0
    """How far from zero an output has to be, on the side of its target bit, to cost nothing."""


class Polarization(Objective):
    """sum_k max(0, m - u_k c_k), with c the centre of the sample's class; no quantization term.

    A multi-label sample's target is that of ``central_similarity``. Centres are fixed here: the paper's scheme that
    redraws them from the codes while the network trains is left to ``reassignment``.
    """

    options_type = PolarizationOptions
    options: PolarizationOptions

    tie_breaker: Tensor

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.register_buffer("tie_breaker", tie_breaker(options.bits))

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        goal = sample_centers(targets, centers, self.tie_breaker)
        return {"polarization": (self.options.margin - outputs * goal).clamp(min=0).sum(dim=1)}
