"""The hash function: a backbone and one hash layer. h = tanh(u), b = sign(h) with sign(0) = +1."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from crh_tune.hashing.methods import HashLayer

Shape = tuple[int, ...]
"""Shape of one input: (channels, height, width) of an image, (length,) of a feature vector."""
Precision = Literal["fp32", "bf16"]
"""bf16: the backbone under bfloat16 autocast; the hash layer, the objective and the weights stay in float32."""


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


class MLP(nn.Sequential):
    """One hidden layer of 1024 with batch normalisation, for feature vectors. Raises ValueError for images."""

    features = 1024

    def __init__(self, shape: Shape) -> None:
        super().__init__(
            nn.Linear(_vector_length("mlp", shape), self.features, bias=False),
            nn.BatchNorm1d(self.features),
            nn.ReLU(),
        )


class Linear(nn.Identity):
    """No backbone: the hash layer alone, on feature vectors. Raises ValueError for images."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.features = _vector_length("linear", shape)


def _vector_length(name: str, shape: Shape) -> int:
    if len(shape) != 1:
        raise ValueError(f"backbone {name} needs feature vectors, got inputs of shape {shape}")
    return shape[0]


_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
"""torchvision's files of DenseNets have a dot in names of layers where its models have none."""


class Torchvision(nn.Module):
    """A classifier of torchvision's registry without its last linear layer, whose inputs are the features.

    Raises ValueError where inputs are no RGB images, where the model cannot take images of that size, or is none whose
    features can be had in this way.
    """

    def __init__(self, name: str, shape: Shape) -> None:
        super().__init__()
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"backbone {name} needs RGB images, got inputs of shape {shape}")
        try:
            self.body = torchvision.models.get_model(name, weights=None, **_size_options(name, shape))
        except (AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"backbone {name} cannot take inputs of shape {shape}: {reason}") from None
        layers = [(path, module) for path, module in self.body.named_modules() if isinstance(module, nn.Linear)]
        if not layers or name in ("inception_v3", "googlenet"):
            raise ValueError(f"backbone {name} has no last linear layer to take off: another one is needed")
        self.removed, last = layers[-1]
        self.features = last.in_features
        parent, _, attribute = self.removed.rpartition(".")
        setattr(self.body.get_submodule(parent), attribute, nn.Identity())
        self._check(name, shape)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a classifier of this kind; those of its last layer are not needed.

        Raises ValueError where they do not fit.
        """
        new = {_OLD_NAME.sub(r"\1\2", name): value for name, value in state.items()}
        kept = OrderedDict((name, value) for name, value in new.items() if not name.startswith(f"{self.removed}."))
        kept._metadata = getattr(state, "_metadata", {})  # type: ignore[attr-defined]  # versions of its layers
        try:
            self.body.load_state_dict(kept)
        except (RuntimeError, ValueError) as error:
            raise ValueError(" ".join(str(error).split())[:300]) from None

    @torch.no_grad()
    def _check(self, name: str, shape: Shape) -> None:
        self.body.eval()
        try:
            found = tuple(self.body(torch.zeros(1, *shape)).shape)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"backbone {name} cannot take inputs of shape {shape}: {reason}") from None
        self.body.train()
        if found != (1, self.features):
            raise ValueError(f"backbone {name} gives no feature vector: another one is needed")


def _size_options(name: str, shape: Shape) -> dict[str, Any]:
    """Transformers of the registry are built for one size of images."""
    if name.startswith("vit_"):
        return {"image_size": shape[1]}
    return {"input_size": shape[1:]} if name == "maxvit_t" else {}


OWN_BACKBONES: dict[str, Callable[[Shape], SmallCNN | MLP | Linear]] = {
    "small_cnn": SmallCNN,
    "mlp": MLP,
    "linear": Linear,
}
"""Backbones without pretrained weights."""
BACKBONES: tuple[str, ...] = (*OWN_BACKBONES, *torchvision.models.list_models(module=torchvision.models))


def build_backbone(name: str, shape: Shape) -> SmallCNN | MLP | Linear | Torchvision:
    """A backbone for inputs of a shape, with random weights. Raises ValueError where it cannot take them."""
    return OWN_BACKBONES[name](shape) if name in OWN_BACKBONES else Torchvision(name, shape)


class HashNetwork(nn.Module):
    """f: inputs B x shape -> u, B x K, in float32 whatever the precision.

    Inputs are standardised by ``mean`` and ``std``, one a channel; images larger than the shape are cropped at their
    centre. With precision bf16 the backbone runs under autocast.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        shape: Shape,
        bits: int,
        mean: Tensor,
        std: Tensor,
        hash_layer: HashLayer = "linear",
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.bits, self.shape, self.precision = bits, shape, precision
        self.memory_format = torch.contiguous_format
        self.backbone = build_backbone(backbone, shape)
        features = self.backbone.features
        self.hash_layer: nn.Module
        if hash_layer == "linear":
            self.hash_layer = nn.Linear(features, bits)
        else:  # OrthoHash's
            self.hash_layer = nn.Sequential(nn.Linear(features, bits, bias=False), nn.BatchNorm1d(bits))
        per_channel = (1, -1) + (1,) * (len(shape) - 1)
        self.register_buffer("mean", mean.float().reshape(per_channel).clone())
        self.register_buffer("std", std.float().reshape(per_channel).clone())

    def in_channels_last(self) -> None:
        """Keep images and convolution weights in channels-last order: the same numbers, another place in memory."""
        self.memory_format = torch.channels_last
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = center_crop(inputs, self.shape) if len(self.shape) == 3 else inputs
        values = standardised(inputs, self.mean, self.std).contiguous(memory_format=self.memory_format)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            hidden = self.backbone(values)
        return self.hash_layer(hidden.float())

    @torch.inference_mode()
    def encode(self, inputs: Tensor) -> Tensor:
        """Codes b = sign(h) of a batch: B x K, boolean, True for +1. The caller sets eval mode."""
        return self(inputs) >= 0


def standardised(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std in float32; mean and std are 1 x C x 1 x 1 for images, 1 x D for vectors.

    They are laid out like the inputs first: on CPUs, spreading three values over images in channels-last order takes
    ten times as long as the arithmetic.
    """
    channels_last = inputs.ndim == 4 and not inputs.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    spread = [part.expand(1, *inputs.shape[1:]).contiguous(memory_format=layout) for part in (mean, std)]
    return (inputs.float() - spread[0]).div_(spread[1])


def center_crop(images: Tensor, shape: Shape) -> Tensor:
    """The middle of B x C x H x W images, of the height and width of ``shape``."""
    top, left = (images.shape[2] - shape[1]) // 2, (images.shape[3] - shape[2]) // 2
    return images[:, :, top : top + shape[1], left : left + shape[2]]
