"""The hash function: a backbone and one hash layer. h = tanh(u), b = sign(h) with sign(0) = +1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crh_tune.hashing.methods import HashLayer

Shape = tuple[int, ...]
"""Shape of one input: (channels, height, width) of an image."""


class SmallCNN(nn.Sequential):
    """Two 3 x 3 convolution blocks of 32 channels and one hidden layer of 256: for small images, without pretraining.

    Batch normalisation in every block matters: without it, reassigning the centres in the first epochs, while all codes
    are still alike, can leave the network with one code for everything.

    Raises ValueError for inputs that are not images of at least 4 x 4.
    """

    features = 256

    def __init__(self, shape: Shape) -> None:
        if len(shape) != 3 or min(shape[1:]) < 4:
            raise ValueError(f"backbone small_cnn needs images of at least 4 x 4, got inputs of shape {shape}")
        channels, height, width = shape
        super().__init__(
            *_convolution_block(channels, 32),
            *_convolution_block(32, 32),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), self.features, bias=False),
            nn.BatchNorm1d(self.features),
            nn.ReLU(),
        )


def _convolution_block(channels_in: int, channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]


FROM_SCRATCH = frozenset({"small_cnn"})
"""Backbones that have no pretrained weights."""
BACKBONES: dict[str, Callable[[Shape], SmallCNN]] = {"small_cnn": SmallCNN}


class HashNetwork(nn.Module):
    """f: inputs B x shape -> u, B x K. Inputs are standardised by the training set's channel statistics."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: str, shape: Shape, bits: int, mean: Tensor, std: Tensor, hash_layer: HashLayer = "linear"
    ) -> None:
        super().__init__()
        self.bits = bits
        self.backbone = BACKBONES[backbone](shape)
        features = self.backbone.features
        self.hash_layer: nn.Module
        if hash_layer == "linear":
            self.hash_layer = nn.Linear(features, bits)
        else:  # OrthoHash's
            self.hash_layer = nn.Sequential(nn.Linear(features, bits, bias=False), nn.BatchNorm1d(bits))
        per_channel = (1, -1) + (1,) * (len(shape) - 1)
        self.register_buffer("mean", mean.float().reshape(per_channel).clone())
        self.register_buffer("std", std.float().reshape(per_channel).clone())

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.backbone((inputs.float() - self.mean) / self.std)
        return self.hash_layer(hidden)

    @torch.inference_mode()
    def encode(self, inputs: Tensor) -> Tensor:
        """Codes b = sign(h) of a batch: B x K, boolean, True for +1. The caller sets eval mode."""
        return self(inputs) >= 0
