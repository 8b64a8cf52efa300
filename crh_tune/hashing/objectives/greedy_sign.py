"""GreedyHash (Su et al., NeurIPS 2018): a classifier on the codes themselves, gradients straight through the sign."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crh_tune.hashing.objectives.base import Objective, ObjectiveOptions, sign, soft_cross_entropy

_MANY_CLASSES = 100


class _StraightThroughSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return sign(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class GreedySign(Objective):
    """Cross entropy (targets y / ||y||_1) of a bias-free linear classifier on b = sign(u), + lambda mean ||u| - 1|^3.

    lambda is the paper's alpha: 0.1 (CIFAR-10), 1 for 100 classes and more (ImageNet).
    """

    reads = frozenset({"quantization_weight"})

    def __init__(self, options: ObjectiveOptions) -> None:
        super().__init__(options)
        self.classifier = nn.Linear(options.bits, options.classes, bias=False)

    @staticmethod
    def default_quantization_weight(bits: int, classes: int, multi_label: bool) -> float:
        return 0.1 if classes < _MANY_CLASSES else 1.0

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        codes = _StraightThroughSign.apply(outputs)
        return {
            "cross_entropy": soft_cross_entropy(self.classifier(codes), targets),
            "quantization": self.options.quantization_weight * (outputs.abs() - 1).abs().pow(3).mean(dim=1),
        }
