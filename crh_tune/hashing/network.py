"""The hash function: a backbone and one hash layer. h = tanh(u), b = sign(h) with sign(0) = +1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from crh_tune.hashing.backbones import Shape, build_backbone
from crh_tune.hashing.methods import HashLayer, Precision


class HashNetwork(nn.Module):
    """f: inputs B x shape -> u, B x K, in float32 whatever the precision.

    Inputs are standardised by ``mean`` and ``std``, one a channel; images larger than the shape are cropped at their
    centre. With precision bf16 the backbone runs under autocast. K is ``bits`` that are trained, and behind them
    ``open_bits`` that are not: (inputs - open_mean) open_projection, which are zero until they are set.
    """

    mean: Tensor
    std: Tensor
    open_mean: Tensor
    open_projection: Tensor

    def __init__(
        self,
        backbone: str,
        shape: Shape,
        bits: int,
        mean: Tensor,
        std: Tensor,
        hash_layer: HashLayer = "linear",
        precision: Precision = "fp32",
        open_bits: int = 0,
    ) -> None:
        super().__init__()
        self.bits, self.open_bits, self.shape, self.precision = bits + open_bits, open_bits, shape, precision
        self.memory_format = torch.contiguous_format
        self.backbone = build_backbone(backbone, shape)
        features = self.backbone.features
        self.hash_layer: nn.Module
        if hash_layer == "linear":
            self.hash_layer = nn.Linear(features, bits)
        elif hash_layer == "linear_batch_norm":
            self.hash_layer = nn.Sequential(nn.Linear(features, bits, bias=False), nn.BatchNorm1d(bits))
        else:
            self.hash_layer = _three_layers(features, bits)
        per_channel = (1, -1) + (1,) * (len(shape) - 1)
        self.register_buffer("mean", mean.double().reshape(per_channel).clone())
        self.register_buffer("std", std.double().reshape(per_channel).clone())
        if open_bits:
            self.register_buffer("open_mean", torch.zeros(math.prod(shape), dtype=torch.float64))
            self.register_buffer("open_projection", torch.zeros(math.prod(shape), open_bits, dtype=torch.float64))

    def in_channels_last(self) -> None:
        """Keep images and convolution weights in channels-last order: the same numbers, another place in memory."""
        self.memory_format = torch.channels_last
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor, trained_only: bool = False) -> Tensor:
        """u, B x K; with ``trained_only`` without the open bits, as an objective sees it."""
        inputs = center_crop(inputs, self.shape) if len(self.shape) == 3 else inputs
        values = standardised(inputs, self.mean, self.std).contiguous(memory_format=self.memory_format)
        if self.precision == "bf16":
            with torch.autocast(inputs.device.type, torch.bfloat16):
                hidden = self.backbone(values)
        else:
            hidden = self.backbone(values)
        trained = self.hash_layer(hidden.float())
        if trained_only or not self.open_bits:
            return trained
        fitted = (inputs.flatten(1).double() - self.open_mean) @ self.open_projection
        return torch.cat([trained, fitted.float()], dim=1)

    @torch.inference_mode()
    def encode(self, inputs: Tensor) -> Tensor:
        """Codes b = sign(h) of a batch: B x K, boolean, True for +1. The caller sets eval mode."""
        return self(inputs) >= 0


class FeatureNetwork(nn.Module):
    """A pretrained backbone that is not trained: uint8 images B x 3 x S x S -> features B x D, float32.

    Images are standardised by ``mean`` and ``std``, one a channel, for pixels of 0 to 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, shape: Shape, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = build_backbone(backbone, shape)
        self.features = self.backbone.features
        self.register_buffer("mean", mean.float().reshape(1, -1, 1, 1).clone())
        self.register_buffer("std", std.float().reshape(1, -1, 1, 1).clone())
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Always in eval mode: its batch normalisation keeps the statistics that it was trained with."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone((images.float() - self.mean) / self.std).float()


class FrozenHashNetwork(nn.Module):
    """f: images B x 3 x S x S -> u, B x K: a backbone that was not trained, and the head that was."""

    def __init__(self, features: FeatureNetwork, head: HashNetwork) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.bits, self.shape = head.bits, features.shape

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))

    @torch.inference_mode()
    def encode(self, inputs: Tensor) -> Tensor:
        """Codes b = sign(h) of a batch: B x K, boolean, True for +1. The caller sets eval mode."""
        return self(inputs) >= 0


def _three_layers(features: int, bits: int) -> nn.Sequential:
    """The hash layers of CSQ's release, without their tanh."""
    return nn.Sequential(
        nn.Linear(features, features),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(features, features),
        nn.ReLU(),
        nn.Linear(features, bits),
    )


_WIDE = {torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64}


def standardised(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std as float32; mean and std are 1 x C x 1 x 1 for images, 1 x D for vectors.

    Inputs that float32 does not hold (float64, wide integers) are taken less the mean before they are cut to it.
    They are laid out like the inputs first: on CPUs, spreading three values over images in channels-last order takes
    ten times as long as the arithmetic.
    """
    channels_last = inputs.ndim == 4 and not inputs.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if inputs.dtype in _WIDE:
        return ((inputs.double() - mean) / std).float()
    if inputs.ndim == 2:
        return (inputs.float() - mean.float()).div_(std.float())
    spread = [part.float().expand(1, *inputs.shape[1:]).contiguous(memory_format=layout) for part in (mean, std)]
    return (inputs.float() - spread[0]).div_(spread[1])


def center_crop(images: Tensor, shape: Shape) -> Tensor:
    """The middle of B x C x H x W images, of the height and width of ``shape``."""
    top, left = (images.shape[2] - shape[1]) // 2, (images.shape[3] - shape[2]) // 2
    return images[:, :, top : top + shape[1], left : left + shape[2]]
