"""HashNet (Cao et al., ICCV 2017): weighted pairwise likelihood, with tanh(beta u) sharpened as training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from crh_tune.hashing.objectives.base import Objective, Options, Symbol
from crh_tune.later import torch

if TYPE_CHECKING:
    from torch import Tensor

_REFRESH, _LINEAR_BEYOND = 200, 15.0


class PairwiseContinuationOptions(Options):
    beta_growth: Annotated[float, Field(ge=0), Symbol("gamma")] = 0.005
    """How fast tanh(beta u) gets sharper: beta = sqrt(1 + gamma t) after t steps; 0 leaves beta at 1."""


class PairwiseContinuation(Objective):
    """sum_ij w_ij [ln(1 + e^theta_ij) - s_ij theta_ij] / sum_ij w_ij over the batch's pairs i != j.

    theta = (10 / K) h.h' with h = tanh(beta u); s_ij = 1 where the two share a label; similar pairs weigh |S| / |S_1|,
    dissimilar ones |S| / |S_0|. Beyond theta = 15 the logarithm is linear. beta = sqrt(1 + gamma t) with the step t,
    counted from 1, refreshed every 200 steps: the 200th is the first with a larger beta.
    """

    within_batch = True
    options_type = PairwiseContinuationOptions
    options: PairwiseContinuationOptions

    steps: Tensor

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def beta(self) -> Tensor:
        """The present sharpness of tanh(beta u)."""
        return (1 + self.options.beta_growth * (self.steps // _REFRESH * _REFRESH)).double().sqrt()

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.steps += 1
        batch = self.whole_batch((self.beta.to(outputs.dtype) * outputs).tanh(), targets)
        total = len(batch.outputs)
        rows = torch.arange(batch.first, batch.first + len(outputs), device=outputs.device)
        pairs = ~torch.eye(total, dtype=torch.bool, device=outputs.device)
        similar = (batch.targets @ batch.targets.T > 0) & pairs
        weights = self._weights(similar, pairs, outputs.dtype)
        theta = (10 / self.options.bits) * batch.outputs[rows] @ batch.outputs.T
        losses = torch.nn.functional.softplus(theta, threshold=_LINEAR_BEYOND) - similar[rows] * theta
        return {"pairs": (weights[rows] * losses).sum(dim=1) * (total / weights.sum().clamp(min=1e-12))}

    @staticmethod
    def _weights(similar: Tensor, pairs: Tensor, dtype: torch.dtype) -> Tensor:
        count, alike = pairs.sum().to(dtype), similar.sum().to(dtype)
        per_similar = count / alike.clamp(min=1)
        per_dissimilar = count / (count - alike).clamp(min=1)
        return torch.where(similar, per_similar, per_dissimilar) * pairs
