"""OrthoHash (Hoe et al., NeurIPS 2021): one cosine loss, s = 8 and margin 0.2, no quantization term."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from crh_tune.hashing.objectives.base import Objective, Options, Symbol
from crh_tune.hashing.objectives.margin_cross_entropy import margin_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


class OrthoCosineOptions(Options):
    margin: Annotated[float, Field(ge=0, le=2), Symbol("margin", where="the paper's m", told=True)] = 0.2
    """How much nearer than the others its own centre has to be, in the cosine."""
    scale: Annotated[float, Field(gt=0), Symbol("s")] = 8.0
    """How sharp the softmax over the cosines is."""


class OrthoCosine(Objective):
    """Soft cross entropy over s (cos(u, c) - m y), targets y / ||y||_1."""

    nests = True
    options_type = OrthoCosineOptions
    options: OrthoCosineOptions

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        options = self.options
        value = margin_cross_entropy(outputs, targets, centers, scale=options.scale, margin=options.margin)
        return {"cross_entropy": value}
