"""The objective of CRH (AAAI 2026), Eq. 1 to 4: margin cross entropy to the centres plus quantization.

The cross entropy is OrthoHash's (Hoe et al., NeurIPS 2021), with s = sqrt(2) ln(C - 1) after AdaCos.
"""

from __future__ import annotations

import math

from torch import Tensor

from crh_tune.hashing.objectives.base import Objective, cosine_to_centers, quantization_loss, soft_cross_entropy


def paper_scale(classes: int) -> float:
    """s = sqrt(2) ln(C - 1). Raises ValueError below C = 3, where it is 0 or undefined and scale must be given."""
    if classes < 3:
        raise ValueError(f"scale s = sqrt(2) ln(C - 1) is not positive for C = {classes} classes: set scale yourself")
    return math.sqrt(2) * math.log(classes - 1)


def margin_cross_entropy(outputs: Tensor, targets: Tensor, centers: Tensor, *, scale: float, margin: float) -> Tensor:
    """Eq. 1 and 2 per sample: soft cross entropy over s (cos(u, c) - y * margin).

    Args:
        outputs: B x K. targets: B x C multi-hot. centers: C x K, +-1.

    Returns:
        B losses.
    """
    return soft_cross_entropy(scale * (cosine_to_centers(outputs, centers) - margin * targets), targets)


class MarginCrossEntropy(Objective):
    """Eq. 4: L = L_CE + lambda L_q, lambda 0.1 (0 for multi-label data)."""

    @staticmethod
    def default_scale(classes: int) -> float:
        return paper_scale(classes)

    @staticmethod
    def default_quantization_weight(bits: int, classes: int, multi_label: bool) -> float:
        return 0.0 if multi_label else 0.1

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        options = self.options
        return {
            "cross_entropy": margin_cross_entropy(
                outputs, targets, centers, scale=options.scale, margin=options.margin
            ),
            "quantization": options.quantization_weight * quantization_loss(outputs),
        }
