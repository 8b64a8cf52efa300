"""From samples to batches on the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crh_tune.data.augment import NO_AUGMENTATION, Augmentation
from crh_tune.data.splits import Samples
from crh_tune.data.store.stored import CachedFeatures, Rows
from crh_tune.training.workers import Workers

_AHEAD = 2


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


def batch_parts(batch: Rows, workers: Workers, accumulate: int) -> list[Rows]:
    """This worker's share of a global batch, in the parts that go through the network one after the other.

    Every worker has as many, of at least two samples each where a batch normalisation sees them.
    """
    count = max(1, min(accumulate, len(batch) // (2 * workers.size)))
    return np.array_split(workers.share(batch), count)


def mixed_seed(*parts: int) -> int:
    """A seed for torch's generators out of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def load_batches(
    samples: Samples,
    batches: Sequence[Rows],
    classes: int,
    device: torch.device,
    augmentation: Augmentation = NO_AUGMENTATION,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (B x ...), cropped and flipped, and multi-hot float targets (B x C) of each batch of rows.

    Features of a frozen backbone are those of the mirror image where an image would be flipped.
    """
    of_images = samples.inputs.ndim == 4
    drawn = augmentation.draw(len(samples), samples.inputs.shape[-1] if of_images else 0, seed, epoch)
    if augmentation.flip and isinstance(samples.inputs, CachedFeatures):
        samples = replace(samples, inputs=samples.inputs.turned(drawn[:, 2].astype(bool)))
    for rows, inputs in zip(batches, load_inputs(samples, batches, device), strict=True):
        labels = torch.from_numpy(samples.labels[rows]).to(device, non_blocking=True)
        yield augmentation.apply(inputs, drawn[rows]) if of_images else inputs, multi_hot(labels, classes)


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """Float targets, B x C, of B class indices or of B x C multi-hot labels."""
    if labels.ndim == 2:
        return labels.float()
    return torch.zeros(len(labels), classes, device=labels.device).scatter_(1, labels[:, None].long(), 1.0)


def load_inputs(samples: Samples, batches: Sequence[Rows], device: torch.device) -> Iterator[Tensor]:
    """The inputs (B x ...) of each batch of rows, on the device; a thread reads ahead of what is asked for.

    Not where they lie in memory and stay there: then there is nothing to wait for.
    """
    if device.type == "cpu" and type(samples.inputs) is np.ndarray:
        yield from (torch.from_numpy(samples.inputs[rows]) for rows in batches)
        return

    def read(rows: Rows) -> Tensor:
        inputs = torch.from_numpy(samples.inputs[rows])
        return inputs.pin_memory() if device.type == "cuda" else inputs

    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(read, rows) for rows in batches[:_AHEAD])
        for place in range(len(batches)):
            inputs = coming.popleft().result()
            if place + _AHEAD < len(batches):
                coming.append(reader.submit(read, batches[place + _AHEAD]))
            yield inputs.to(device, non_blocking=True)
