"""The workers that share one training run: a lone process, or the ranks of a torch process group."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Array = npt.NDArray[Any]
Anything = TypeVar("Anything")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workers:
    """This worker's place among ``size`` workers, and its device. Methods other than ``share`` are collective."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    def share(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """This worker's part of the rows: every ``size``-th, from ``rank`` on."""
        return rows[self.rank :: self.size]

    def gather(self, part: Array) -> Array:
        """All workers' parts of an array whose rows were dealt by :meth:`share`, in the order before dealing."""
        if self.size == 1:
            return part
        parts: list[Array] = [part] * self.size
        dist.all_gather_object(parts, part)
        whole = np.empty((sum(len(p) for p in parts), *part.shape[1:]), dtype=part.dtype)
        for rank, rows in enumerate(parts):
            whole[rank :: self.size] = rows
        return whole

    def gather_batch(self, share: torch.Tensor) -> torch.Tensor:
        """All workers' shares of a batch (B x ...), in rank order; differentiable, shares may differ in size."""
        sizes = [torch.zeros(1, dtype=torch.int64, device=share.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(share)], device=share.device))
        counts = [int(size.item()) for size in sizes]
        first = sum(counts[: self.rank])
        padding = (0, 0) * (share.ndim - 1) + (first, sum(counts) - first - len(share))
        return sum_over_workers(nn.functional.pad(share, padding))

    def from_first(self, make: Callable[[], Anything]) -> Anything:
        """What the first worker makes, on all workers."""
        made: list[Any] = [make() if self.rank == 0 else None]
        if self.size > 1:
            dist.broadcast_object_list(made, src=0)
        return made[0]

    def all_true(self, flag: bool) -> bool:
        """Whether every worker says so."""
        if self.size == 1:
            return flag
        agreed = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        return bool(agreed.item())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise sum over all workers."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose gradients are averaged over the workers; its batch normalisation must be synchronised."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, device_ids=[self.device] if self.device.type == "cuda" else None)

    def averaging(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part of a batch: gradients are averaged with those of the last part."""
        return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()

    def synchronised(self, module: nn.Module) -> nn.Module:
        """The module with batch normalisation over the global batch: torch's own on GPUs, ours on CPUs."""
        if self.size == 1:
            return module
        if self.device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(module)
        for child in module.children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                child.__class__ = GlobalBatchNorm
            else:
                self.synchronised(child)
        return module


class _SumOverWorkers(torch.autograd.Function):
    """The sum over all workers; every worker's loss depends on it, so gradients are summed over them as well.

    torch.distributed.nn.functional.all_reduce does the same; it is deprecated, in favour of a private module.
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def sum_over_workers(value: torch.Tensor) -> torch.Tensor:
    """The differentiable sum over all workers of the process group."""
    return _SumOverWorkers.apply(value)  # type: ignore[no-any-return]


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batches of all workers, for backends (gloo) that torch's SyncBatchNorm refuses.

    A worker's share may be empty. Parameters, buffers and results are those of torch's batch normalisation of the
    global batch.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any input of at least two dimensions, B x C x ..., will do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = (1, -1) + (1,) * (input.ndim - 2)
        count = sum_over_workers(input.new_tensor(input.numel() // input.shape[1]))
        mean = sum_over_workers(input.sum(dim=axes)) / count
        centered = input - mean.reshape(shape)
        variance = sum_over_workers(centered.square().sum(dim=axes)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        normal = centered * torch.rsqrt(variance + self.eps).reshape(shape)
        return normal * self.weight.reshape(shape) + self.bias.reshape(shape) if self.affine else normal
