"""From samples to batches on the device, and the statistics they are standardised by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from crh_tune.data.splits import Samples

Rows = npt.NDArray[np.int64]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """How many equal global batches of at most ``batch_size`` an epoch is cut into.

    Equal, so that no step stands on a handful of leftover samples; never fewer than the two samples a batch
    normalisation needs.
    """
    return max(1, min(math.ceil(samples / batch_size), samples // 2))


def epoch_batches(samples: int, batch_size: int, seed: int, epoch: int) -> list[Rows]:
    """The global batches of an epoch: all rows in an order drawn from (seed, epoch)."""
    order: npt.NDArray[Any] = np.random.default_rng([seed, epoch]).permutation(samples)
    return np.array_split(order, steps_per_epoch(samples, batch_size))


def load_batch(samples: Samples, rows: Rows, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs (B x ...) and multi-hot float targets (B x C) of some rows, on the device."""
    inputs = torch.from_numpy(samples.inputs[rows]).to(device)
    labels = torch.from_numpy(samples.labels[rows]).to(device)
    if labels.ndim == 1:
        labels = nn.functional.one_hot(labels, classes)
    return inputs, labels.float()


def channel_statistics(samples: Samples) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel (of each feature, for N x D inputs), in float64."""
    axes = (0, *range(2, samples.inputs.ndim))
    mean = samples.inputs.mean(axis=axes, dtype=np.float64)
    std = samples.inputs.std(axis=axes, dtype=np.float64)
    return torch.from_numpy(mean), torch.from_numpy(np.maximum(std, 1e-6))
