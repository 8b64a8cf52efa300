"""MDS (Wang et al., CVPR 2023): class probabilities from cosines to the centres, then positive pairs together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from crh_tune.hashing.objectives.base import (
    Objective,
    Options,
    QuantizationWeight,
    Symbol,
    cosine_to_centers,
    quantization_loss,
    soft_targets,
)
from crh_tune.later import torch

if TYPE_CHECKING:
    from torch import Tensor

_PAIRS_AFTER_EPOCH = 9


class MinimalDistanceOptions(Options):
    quantization_weight: QuantizationWeight = 1e-4
    """Weight of the quantization term."""
    bank_momentum: Annotated[float, Field(ge=0, lt=1), Symbol("momentum")] = 0.9
    """How much of a class's mean output, which its samples are drawn to, stays at each step."""


class MinimalDistance(Objective):
    """-mean_c [y ln p + (1 - y) ln(1 - p)], p = softmax(sqrt(K) cos(h, c)), + lambda quantization.

    h = tanh(u); the hash layer that belongs to it is batch-normalised, as in the authors' release.
    After epoch 9, plus ln(1 + exp((1 - cos(h, bank_y)) / 2)) against a bank with momentum. The bank here has one
    row a class, the running mean of its samples' h, so that its size does not depend on the number of
    samples; a multi-label sample takes the mean of the cosines to its classes' rows.
    """

    within_batch = True
    options_type = MinimalDistanceOptions
    options: MinimalDistanceOptions

    bank: Tensor

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.register_buffer("bank", torch.zeros(options.classes, options.bits))

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        codes = outputs.tanh()
        logits = math.sqrt(self.options.bits) * cosine_to_centers(codes, centers)
        log_p = torch.log_softmax(logits, dim=1)
        log_rest = torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
        terms = {
            "cross_entropy": -(targets * log_p + (1 - targets) * log_rest).mean(dim=1),
            "quantization": self.options.quantization_weight * quantization_loss(outputs),
        }
        if self.epoch > _PAIRS_AFTER_EPOCH:
            terms["pairs"] = self._pairs(codes, targets)
        if self.training:
            with torch.no_grad():
                self._update_bank(codes.detach(), targets)
        return terms

    def _pairs(self, codes: Tensor, targets: Tensor) -> Tensor:
        cosine = (soft_targets(targets) * cosine_to_centers(codes, self.bank)).sum(dim=1)
        return torch.nn.functional.softplus((1 - cosine) / 2)

    def _update_bank(self, codes: Tensor, targets: Tensor) -> None:
        batch = self.whole_batch(codes, targets)
        count = batch.targets.sum(dim=0)[:, None]
        means = batch.targets.T @ batch.outputs / count.clamp(min=1)
        known = self.bank.abs().sum(dim=1, keepdim=True) > 0
        momentum = self.options.bank_momentum
        moved = torch.where(known, momentum * self.bank + (1 - momentum) * means, means)
        self.bank.copy_(torch.where(count > 0, moved, self.bank))
