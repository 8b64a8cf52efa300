"""DTSH (Wang, Shi and Kitani, ACCV 2016): the likelihood of triplets in a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from crh_tune.hashing.objectives.base import Objective, Options, Symbol, sign
from crh_tune.later import torch

if TYPE_CHECKING:
    from torch import Tensor

_BITS_OF_ONE = 225


class TripletLikelihoodOptions(Options):
    quantization_weight: Annotated[float, Field(ge=0), Symbol("lambda", f"K / {_BITS_OF_ONE}", told=True)] = Field(
        default_factory=lambda known: known["bits"] / _BITS_OF_ONE
    )
    """Weight of the quantization term; the default is the authors' release's."""


class TripletLikelihood(Objective):
    """-mean ln sigmoid(theta_ip - theta_in - alpha), theta = u.v / 2, alpha = K / 2, + lambda mean_k (u - sign u)^2.

    The mean is over all triplets of the batch: anchor i, p != i sharing a label with it, n sharing none.
    """

    within_batch = True
    options_type = TripletLikelihoodOptions
    options: TripletLikelihoodOptions

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        batch = self.whole_batch(outputs, targets)
        total = len(batch.outputs)
        rows = torch.arange(batch.first, batch.first + len(outputs), device=outputs.device)
        similar = batch.targets @ batch.targets.T > 0
        positive = similar & ~torch.eye(total, dtype=torch.bool, device=outputs.device)
        count = (positive.sum(dim=1) * (~similar).sum(dim=1)).sum().clamp(min=1).to(outputs.dtype)
        theta = batch.outputs[rows] @ batch.outputs.T / 2
        anchors, partners = positive[rows].nonzero(as_tuple=True)  # of many classes few pairs are alike
        gap = theta[anchors, partners][:, None] - theta[anchors] - self.options.bits / 2
        losses = (-torch.nn.functional.logsigmoid(gap) * ~similar[rows][anchors]).sum(dim=1)
        return {
            "triplets": losses.new_zeros(len(outputs)).index_add(0, anchors, losses) * (total / count),
            "quantization": self.options.quantization_weight * (outputs - sign(outputs)).square().mean(dim=1),
        }
