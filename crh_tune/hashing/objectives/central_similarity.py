"""CSQ (Yuan et al., CVPR 2020): every bit is a binary classification against the sample's hash centre."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crh_tune.hashing.objectives.base import (
    Objective,
    Options,
    QuantizationWeight,
    quantization_loss,
    sample_centers,
    tie_breaker,
)
from crh_tune.later import torch

if TYPE_CHECKING:
    from torch import Tensor


class CentralSimilarityOptions(Options):
    quantization_weight: QuantizationWeight = 1e-4
    """Weight of the quantization term; 1e-4 is the released code's, its README says 0.05."""


class CentralSimilarity(Objective):
    """BCE((h + 1) / 2, (c + 1) / 2), mean over bits, + lambda mean((|h| - 1)^2).

    A multi-label sample's target is the sign of the mean of its labels' centres; where that is zero, the bit of one
    fixed random vector. With h = tanh(u), (h + 1) / 2 = sigmoid(2u), which keeps the logarithms finite.
    """

    options_type = CentralSimilarityOptions
    options: CentralSimilarityOptions

    tie_breaker: Tensor

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.register_buffer("tie_breaker", tie_breaker(options.bits))

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        goal = (sample_centers(targets, centers, self.tie_breaker) + 1) / 2
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        value = entropy(2 * outputs, goal, reduction="none").mean(dim=1)
        return {
            "central_similarity": value,
            "quantization": self.options.quantization_weight * quantization_loss(outputs),
        }
