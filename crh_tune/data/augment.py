"""Random crops and flips of whole batches, on the device the batch is on.

What is drawn for a sample comes from (seed, epoch) and the sample's row alone, so it depends neither on the batch it is
in nor on how many workers there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crh_tune.data.store.stored import Array
from crh_tune.later import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Square crops of ``crop`` pixels (None: none) out of images padded with ``padding`` black pixels; flips."""

    crop: int | None = None
    padding: int = 0
    flip: bool = False

    def draw(self, count: int, side: int, seed: int, epoch: int) -> Array:
        """For each of N samples of side x side pixels: top, left, and 1 where it is flipped; N x 3 int64."""
        generator = np.random.default_rng([seed, epoch, 1])
        room = side + 2 * self.padding - self.crop if self.crop else 0
        choices = np.array([room + 1, room + 1, 2 if self.flip else 1])
        return (generator.random((count, 3)) * choices).astype(np.int64)

    def apply(self, images: Tensor, drawn: Array) -> Tensor:
        """B x C x S x S images as B x C x crop x crop, each cut and flipped as its row of ``drawn`` (B x 3) says."""
        if self.crop is None and not self.flip:
            return images
        size, pad = self.crop or images.shape[2], (self.padding,) * 4
        if not len(images):  # a worker's share may be empty
            return images.new_zeros((0, images.shape[1], size, size))
        pixels = torch.nn.functional.pad(images.permute(0, 2, 3, 1), (0, 0, *pad)).contiguous()  # as cached images lie
        batch, side, _, channels = pixels.shape
        place = torch.from_numpy(drawn).to(images.device)
        rows = torch.arange(batch, device=images.device)[:, None] * side + place[:, :1]
        starts = (rows + torch.arange(size, device=images.device)) * side + place[:, 1:2]
        # Each row of a crop is `size` neighbouring pixels of the whole batch, from its start on.
        runs = pixels.view(-1).as_strided((batch * side * side - size + 1, size * channels), (channels, 1))
        crops = runs.index_select(0, starts.reshape(-1)).view(batch, size, size, channels)
        crops = torch.where(place[:, 2].bool()[:, None, None, None], crops.flip(2), crops)
        return crops.permute(0, 3, 1, 2)


NO_AUGMENTATION = Augmentation()
