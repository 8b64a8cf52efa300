"""The hash network of a trial: backbone, pretrained weights, and how its inputs are standardised."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crh_tune.data.splits import Split
from crh_tune.data.store.stored import channel_moments
from crh_tune.hashing.backbones import TIMM, Shape
from crh_tune.hashing.backbones.libraries import Timm, Torchvision, timm_config
from crh_tune.hashing.methods import HashLayer
from crh_tune.hashing.network import HashNetwork
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.weights import PACKAGES, transforms_of
from crh_tune.training.weights import pretrained_state

_LEAST_SPREAD = 0.1
"""Of the mean spread of a frozen backbone's features: one that hardly varies among the training images is not blown up,
since it may in other images."""


def input_shape(trial: TrainingSettings, split: Split) -> Shape:
    """The shape of the network's inputs: that of the split's, or of the crops taken from them.

    Raises SettingsError where inputs cannot be cropped or flipped.
    """
    shape = split.train.inputs.shape[1:]
    if trial.freeze or (trial.crop is None and not trial.flip):
        return shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise SettingsError(f"trial.crop, trial.flip: for square images only, got inputs of shape {shape}")
    if trial.crop is None:
        return shape
    if trial.crop > shape[1]:
        raise SettingsError(f"trial.crop: {trial.crop} pixels asked for, the images have {shape[1]} (dataset.size)")
    return (shape[0], trial.crop, trial.crop)


def build_network(
    trial: TrainingSettings, split: Split, outputs: int, hash_layer: HashLayer = "linear", open_bits: int = 0
) -> HashNetwork:
    """A trial's network with so many outputs that are trained, and room for open bits.

    Raises SettingsError where the backbone or its weights do not fit.

    Inputs are standardised as the pretrained weights were trained, or by the training samples' channel statistics. The
    network of a frozen backbone is the head on its features, which are what the split holds.
    """
    if trial.freeze:
        assert trial.head is not None
        mean, std = _own_moments(split)
        std = std.clamp(min=_LEAST_SPREAD * float(std.mean()))
        return HashNetwork(
            trial.head, split.train.inputs.shape[1:], outputs, mean, std, hash_layer, open_bits=open_bits
        )
    mean, std = _pretrained_moments(trial) if trial.weights else _own_moments(split)
    try:
        network = HashNetwork(
            trial.backbone, input_shape(trial, split), outputs, mean, std, hash_layer, trial.precision, open_bits
        )
        if trial.weights:
            assert isinstance(network.backbone, Torchvision | Timm)
            network.backbone.load(pretrained_state(trial.backbone, trial.weights))
    except SettingsError:
        raise
    except ValueError as error:
        where = f"trial.weights: {trial.weights}: " if trial.weights else "trial.backbone: "
        raise SettingsError(f"{where}{error}") from None
    if trial.channels_last and len(network.shape) == 3:
        network.in_channels_last()
    if trial.compile:
        network.backbone.compile()
    return network


def _own_moments(split: Split) -> tuple[Tensor, Tensor]:
    """A channel whose spread is no more than rounding is constant: its deviations are left as they are."""
    mean, std = channel_moments(split.train.inputs)
    std[std <= 1e-12 * np.abs(mean)] = 1
    return torch.from_numpy(mean), torch.from_numpy(std)


def _pretrained_moments(trial: TrainingSettings) -> tuple[Tensor, Tensor]:
    """Those of the weights, or of ImageNet for weights from a file, for pixels of 0 to 255."""
    assert trial.weights is not None
    package = PACKAGES.get(trial.weights)
    if package is not None:
        return torch.full((3,), package.mean).double(), torch.full((3,), package.std).double()
    if trial.backbone.startswith(TIMM):
        preset = timm_config(trial.backbone)
    else:
        preset = transforms_of(trial.backbone, trial.weights)
    return torch.tensor(preset.mean).double() * 255, torch.tensor(preset.std).double() * 255
