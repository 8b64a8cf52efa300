"""What every objective is: a module from (outputs, targets, centres) to named per-sample loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import new_class
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from crh_tune.later import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
else:
    Module = object  # until one is made: see Objective.__new__

_TIE_SEED = 0
Gather = Callable[["Tensor"], "Tensor"]
"""From a worker's share of a batch (B x ...) to the whole batch, all workers' shares in rank order; differentiable."""


@dataclass(frozen=True)
class Symbol:
    """How the paper writes a setting.

    ``default`` says what the value follows from where no number is the default, ``where`` is the equation that it
    stands in. One that is ``told`` is named wherever a trial is told in a line, searched over or not.
    """

    name: str
    default: str = ""
    where: str = ""
    told: bool = False


class Options(BaseModel):
    """What an objective knows: K bits, C classes, whether samples have several labels, and its own settings.

    An objective with settings makes a class of its own from this one. Each is a field with its range, its default
    (from bits, classes and multi_label, perhaps), its :class:`Symbol`, and a sentence below it. They stand under
    ``trial`` in a settings file, so objectives that share a name share its type and mean the same by it; defaults and
    ranges are each objective's own. Raises ValueError for a value out of range, or without a default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    bits: int
    classes: int
    multi_label: bool = False

    @classmethod
    def own(cls) -> dict[str, FieldInfo]:
        """The objective's own settings by name."""
        return {name: field for name, field in cls.model_fields.items() if name not in Options.model_fields}


QuantizationWeight = Annotated[float, Field(ge=0), Symbol("lambda", told=True)]


@dataclass(frozen=True)
class Batch:
    """The whole batch of all workers, and which of its rows are this worker's (from ``first`` on)."""

    outputs: Tensor
    targets: Tensor
    first: int


class Objective(ABC, Module):
    """Base of the objectives, each an ``nn.Module``; one may hold trainable parameters and buffers of its own.

    ``options_type`` declares its settings. ``epoch`` counts from 1 and is set before each epoch. ``gather`` is the
    identity unless several workers share a batch. ``within_batch``: a sample's loss depends on the others of its batch.
    ``nests``: of the first bits of outputs and centres it is the loss of a shorter code, since nothing in it is of K.

    Its file imports torch from ``crh_tune.later``, so that the settings in it are read without torch.
    """

    within_batch = False
    nests = False
    options_type: ClassVar[type[Options]] = Options
    options: Options

    def __new__(cls, *_options: Any) -> Self:
        """An objective becomes a module when it is made, and not when its file is imported: that would need torch."""
        return object.__new__(_as_module(cls))

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.epoch = 1
        self.rank = 0
        self.gather: Gather = _alone

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
        first = int(sizes[: self.rank].sum().item()) if self.rank else 0  # which the device is not waited for
        return Batch(self.gather(outputs), self.gather(targets), first)


@cache
def _as_module(kind: type[Any]) -> type[Any]:
    """The same class as an ``nn.Module``."""
    if issubclass(kind, torch.nn.Module):
        return kind
    same = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    return new_class(kind.__name__, (kind, torch.nn.Module), exec_body=lambda made: made.update(same))


def _alone(part: Tensor) -> Tensor:
    return part


def nested_terms(
    objective: Objective, lengths: Sequence[int], outputs: Tensor, targets: Tensor, centers: Tensor
) -> dict[str, Tensor]:
    """Codes of several lengths in one: the mean over the lengths k of the loss of the first k bits.

        L = (1 / |P|) sum_{k in P} L_k(u_{1..k}, y, c_{1..k})

    Arguments and result as of :meth:`Objective.forward`; ``lengths`` are P.
    """
    each = [objective(outputs[:, :bits], targets, centers[:, :bits]) for bits in lengths]
    return {name: torch.stack([terms[name] for terms in each]).mean(dim=0) for name in each[0]}


def quantization_loss(outputs: Tensor) -> Tensor:
    """Eq. 3 of CRH per sample: (1/K) sum_k (|h_k| - 1)^2 with h = tanh(u). B x K -> B."""
    return (outputs.tanh().abs() - 1).square().mean(dim=1)


def soft_targets(targets: Tensor) -> Tensor:
    """Multi-hot B x C as y / ||y||_1; a sample without a label stays all zero."""
    return targets / targets.sum(dim=1, keepdim=True).clamp(min=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c y_c / ||y||_1 log softmax(logits)_c per sample: B x C -> B."""
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1) / targets.sum(dim=1).clamp(min=1)


def tie_breaker(bits: int) -> Tensor:
    """The K bits, -1 and +1, that :func:`sample_centers` has where the sum of a sample's centres is zero: always these.

    The generator of the network's weights is left alone.
    """
    generator = torch.Generator().manual_seed(_TIE_SEED)
    return torch.randint(0, 2, (bits,), generator=generator).float() * 2 - 1


def sample_centers(targets: Tensor, centers: Tensor, ties: Tensor) -> Tensor:
    """The +-1 target of each sample, the sign of the mean of its labels' centres: B x C and C x K -> B x K."""
    total = targets @ centers
    return torch.where(total == 0, ties.to(total), sign(total))


def cosine_to_centers(outputs: Tensor, centers: Tensor) -> Tensor:
    """cos(u, c): B x K and C x K -> B x C."""
    normalize = torch.nn.functional.normalize
    return normalize(outputs, dim=1) @ normalize(centers, dim=1).T


def sign(values: Tensor) -> Tensor:
    """+-1 with sign(0) = +1."""
    return torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
