"""CSQ (Yuan et al., CVPR 2020): every bit is a binary classification against the sample's hash centre."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from crh_tune.hashing.objectives.base import Objective, ObjectiveOptions, quantization_loss, sign

_TIE_SEED = 0


class CentralSimilarity(Objective):
    """BCE((h + 1) / 2, (c + 1) / 2), mean over bits, + lambda mean((|h| - 1)^2).

    lambda is 1e-4, as in the released code; its README says 0.05 (``quantization_weight: 0.05``).

    A multi-label sample's target is the sign of the mean of its labels' centres; where that is zero, the bit of one
    fixed random vector. With h = tanh(u), (h + 1) / 2 = sigmoid(2u), which keeps the logarithms finite.
    """

    reads = frozenset({"quantization_weight"})

    tie_breaker: Tensor

    def __init__(self, options: ObjectiveOptions) -> None:
        super().__init__(options)
        generator = torch.Generator().manual_seed(_TIE_SEED)
        bits = torch.randint(0, 2, (options.bits,), generator=generator).float() * 2 - 1
        self.register_buffer("tie_breaker", bits)

    @staticmethod
    def default_quantization_weight(bits: int, classes: int, multi_label: bool) -> float:
        return 1e-4

    def sample_centers(self, targets: Tensor, centers: Tensor) -> Tensor:
        """The +-1 target of each sample: B x C and C x K -> B x K."""
        total = targets @ centers
        return torch.where(total == 0, self.tie_breaker.to(total), sign(total))

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        goal = (self.sample_centers(targets, centers) + 1) / 2
        value = functional.binary_cross_entropy_with_logits(2 * outputs, goal, reduction="none").mean(dim=1)
        return {
            "central_similarity": value,
            "quantization": self.options.quantization_weight * quantization_loss(outputs),
        }
