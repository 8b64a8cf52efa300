"""What every objective is: a module from (outputs, targets, centres) to named per-sample loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Gather = Callable[[Tensor], Tensor]
"""From a worker's share of a batch (B x ...) to the whole batch, all workers' shares in rank order; differentiable."""


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


@dataclass(frozen=True)
class Batch:
    """The whole batch of all workers, and which of its rows are this worker's (from ``first`` on)."""

    outputs: Tensor
    targets: Tensor
    first: int


class Objective(nn.Module, ABC):
    """Base of the objectives; one may hold trainable parameters and buffers of its own.

    ``epoch`` counts from 1 and is set before each epoch. ``gather`` is the
    identity unless several workers share a batch. ``within_batch``: a sample's loss depends on the others of its batch.
    ``reads``: those of the options scale, margin and quantization_weight that its formula has.
    """

    within_batch = False
    reads: frozenset[str] = frozenset()

    def __init__(self, options: ObjectiveOptions) -> None:
        super().__init__()
        self.options = options
        self.epoch = 1
        self.rank = 0
        self.gather: Gather = _alone

    @staticmethod
    def default_scale(classes: int) -> float | None:
        """s where the settings give none; None where the formula has no s. Raises ValueError where it is undefined."""
        return None

    @staticmethod
    def default_quantization_weight(bits: int, classes: int, multi_label: bool) -> float:
        """lambda where the settings give none, for K bits and C classes."""
        return 0.0

    @abstractmethod
    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        """Loss terms of a batch.

        Args:
            outputs: u, the last linear layer's outputs, B x K.
            targets: multi-hot labels, B x C, floating.
            centers: +-1 class centres, C x K, floating; of no meaning for objectives without centres.

        Returns:
            Named terms, each B per-sample losses, weights (lambda) already applied: the objective is the batch
            mean of their sum.
        """

    def whole_batch(self, outputs: Tensor, targets: Tensor) -> Batch:
        """The batch of all workers, for objectives over pairs and triplets."""
        sizes = self.gather(torch.tensor([len(outputs)], dtype=outputs.dtype, device=outputs.device))
        first = int(sizes[: self.rank].sum().item())
        return Batch(self.gather(outputs), self.gather(targets), first)


def _alone(part: Tensor) -> Tensor:
    return part


def quantization_loss(outputs: Tensor) -> Tensor:
    """Eq. 3 of CRH per sample: (1/K) sum_k (|h_k| - 1)^2 with h = tanh(u). B x K -> B."""
    return (outputs.tanh().abs() - 1).square().mean(dim=1)


def soft_targets(targets: Tensor) -> Tensor:
    """Multi-hot B x C as y / ||y||_1; a sample without a label stays all zero."""
    return targets / targets.sum(dim=1, keepdim=True).clamp(min=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c y_c / ||y||_1 log softmax(logits)_c per sample: B x C -> B."""
    return -(soft_targets(targets) * torch.log_softmax(logits, dim=1)).sum(dim=1)


def cosine_to_centers(outputs: Tensor, centers: Tensor) -> Tensor:
    """cos(u, c): B x K and C x K -> B x C."""
    return nn.functional.normalize(outputs, dim=1) @ nn.functional.normalize(centers, dim=1).T


def sign(values: Tensor) -> Tensor:
    """+-1 with sign(0) = +1."""
    return torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
