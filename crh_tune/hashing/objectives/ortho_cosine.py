"""OrthoHash (Hoe et al., NeurIPS 2021): one cosine loss, s = 8 and margin 0.2, no quantization term."""

from __future__ import annotations

from torch import Tensor

from crh_tune.hashing.objectives.base import Objective
from crh_tune.hashing.objectives.margin_cross_entropy import margin_cross_entropy


class OrthoCosine(Objective):
    """Soft cross entropy over s (cos(u, c) - m y), targets y / ||y||_1."""

    reads = frozenset({"scale", "margin"})

    @staticmethod
    def default_scale(classes: int) -> float:
        return 8.0

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        options = self.options
        value = margin_cross_entropy(outputs, targets, centers, scale=options.scale, margin=options.margin)
        return {"cross_entropy": value}
