"""What every objective is: a module from (outputs, targets, centres) to named per-sample loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ObjectiveOptions:
    """The settings an objective may use; each takes what its formula has.

    bits K, classes C, scale s, margin, quantization_weight lambda.
    """

    bits: int
    classes: int
    scale: float
    margin: float
    quantization_weight: float


class Objective(nn.Module, ABC):
    """Base of the objectives; an objective may hold trainable parameters of its own."""

    @abstractmethod
    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        """Loss terms of a batch.

        Args:
            outputs: u, the last linear layer's outputs, B x K.
            targets: multi-hot labels, B x C, floating.
            centers: +-1 class centres, C x K, floating.

        Returns:
            Named terms, each B per-sample losses, weights (lambda) already applied: the objective is the batch
            mean of their sum.
        """


def quantization_loss(outputs: Tensor) -> Tensor:
    """Eq. 3 per sample: (1/K) sum_k (|h_k| - 1)^2 with h = tanh(u). B x K -> B."""
    return (outputs.tanh().abs() - 1).square().mean(dim=1)


def soft_targets(targets: Tensor) -> Tensor:
    """Multi-hot B x C as y / ||y||_1; a sample without a label stays all zero."""
    return targets / targets.sum(dim=1, keepdim=True).clamp(min=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c y_c / ||y||_1 log softmax(logits)_c per sample: B x C -> B."""
    return -(soft_targets(targets) * torch.log_softmax(logits, dim=1)).sum(dim=1)
