"""The objective of CRH (AAAI 2026), Eq. 1 to 4: margin cross entropy to the centres plus quantization.

The cross entropy is OrthoHash's (Hoe et al., NeurIPS 2021), with s = sqrt(2) ln(C - 1) after AdaCos.
"""

from __future__ import annotations

import math

from torch import Tensor

from crh_tune.hashing.objectives.base import Objective, cosine_to_centers, quantization_loss, soft_cross_entropy


def paper_scale(classes: int) -> float:
    """s = sqrt(2) ln(C - 1); that of three classes, .98, for two, where the formula gives 0.

    Measured for two on pairs of digits under heavy noise (60 samples, 16 bits, mean test mAP of 9 runs):

        s        .1    .5    1     2     4     6.2   8     10    20
        CRH     .930  .942  .941  .928  .911  .891  .879  .874  .872
        CRH-U   .925  .928  .926  .924  .909  .892  .888  .883  .870

    With less noise (200 samples) .5 to 4 are within .003 of each other, and 8 is .005 lower.

    Raises ValueError below C = 2, where it is undefined and scale must be given.
    """
    if classes < 2:
        raise ValueError(f"scale s = sqrt(2) ln(C - 1) is undefined for C = {classes} classes: set scale yourself")
    return math.sqrt(2) * math.log(max(classes, 3) - 1)


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

    reads = frozenset({"scale", "margin", "quantization_weight"})

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
