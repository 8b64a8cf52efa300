"""GreedyHash (Su et al., NeurIPS 2018): a classifier on the codes themselves, gradients straight through the sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from crh_tune.hashing.objectives.base import Objective, Options, Symbol, sign, soft_cross_entropy
from crh_tune.later import torch

if TYPE_CHECKING:
    from torch import Tensor

_MANY_CLASSES = 100


class GreedySignOptions(Options):
    quantization_weight: Annotated[
        float, Field(ge=0), Symbol("lambda", f"0.1, 1 for {_MANY_CLASSES} classes and more", "the paper's alpha", True)
    ] = Field(default_factory=lambda known: 0.1 if known["classes"] < _MANY_CLASSES else 1.0)
    """Weight of the penalty that draws outputs to -1 and +1; the paper has 0.1 on CIFAR-10 and 1 on ImageNet."""


class GreedySign(Objective):
    """Cross entropy of a bias-free linear classifier on b = sign(u), targets y / ||y||_1, + lambda mean ||u| - 1|^3."""

    options_type = GreedySignOptions
    options: GreedySignOptions

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.classifier = torch.nn.Linear(options.bits, options.classes, bias=False)

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        codes = sign(outputs).detach() + (outputs - outputs.detach())  # plus zero, whose gradient is one
        return {
            "cross_entropy": soft_cross_entropy(self.classifier(codes), targets),
            "quantization": self.options.quantization_weight * (outputs.abs() - 1).abs().pow(3).mean(dim=1),
        }
