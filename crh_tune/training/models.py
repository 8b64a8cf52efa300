"""The hash network of a trial: backbone, pretrained weights, and how its inputs are standardised."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from crh_tune.data.splits import Split
from crh_tune.data.stored import channel_moments
from crh_tune.hashing.methods import HashLayer
from crh_tune.hashing.network import HashNetwork, Shape, Torchvision
from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import TrainingSettings, weights_named


def input_shape(trial: TrainingSettings, split: Split) -> Shape:
    """The shape of the network's inputs: that of the split's, or of the crops taken from them.

    Raises SettingsError where inputs cannot be cropped or flipped.
    """
    shape = split.train.inputs.shape[1:]
    if trial.crop is None and not trial.flip:
        return shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise SettingsError(f"trial.crop, trial.flip: for square images only, got inputs of shape {shape}")
    if trial.crop is None:
        return shape
    if trial.crop > shape[1]:
        raise SettingsError(f"trial.crop: {trial.crop} pixels asked for, the images have {shape[1]} (dataset.size)")
    return (shape[0], trial.crop, trial.crop)


def build_network(trial: TrainingSettings, split: Split, outputs: int, hash_layer: HashLayer = "linear") -> HashNetwork:
    """A trial's network with so many outputs. Raises SettingsError where the backbone or its weights do not fit.

    Inputs are standardised as the pretrained weights were trained, or by the training samples' channel statistics.
    """
    mean, std = _pretrained_moments(trial) if trial.weights else _own_moments(split)
    try:
        network = HashNetwork(
            trial.backbone, input_shape(trial, split), outputs, mean, std, hash_layer, trial.precision
        )
        if trial.weights:
            assert isinstance(network.backbone, Torchvision)
            network.backbone.load(_pretrained(trial.backbone, trial.weights))
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
    mean, std = channel_moments(split.train.inputs)
    return torch.from_numpy(mean), torch.from_numpy(std).clamp(min=1e-6)


def _pretrained_moments(trial: TrainingSettings) -> tuple[Tensor, Tensor]:
    """Those of the weights, or of ImageNet for weights from a file, for pixels of 0 to 255."""
    assert trial.weights is not None
    named = weights_named(trial.backbone, trial.weights) or torchvision.models.ResNet18_Weights.DEFAULT
    preset = named.transforms()
    return torch.tensor(preset.mean).double() * 255, torch.tensor(preset.std).double() * 255


def _pretrained(backbone: str, weights: str) -> Mapping[str, Tensor]:
    """The state of a torchvision classifier by the name of its weights, or from a file.

    Raises SettingsError where they are neither here nor to be had.
    """
    named = weights_named(backbone, weights)
    if named is None:
        return _from_file(Path(weights))
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(named.url).name
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            prefix = torch.hub.HASH_REGEX.search(file.name)
            torch.hub.download_url_to_file(named.url, str(file), prefix.group(1) if prefix else None, progress=False)
        except (OSError, RuntimeError) as error:
            raise SettingsError(
                f"trial.weights: {weights} of {backbone} are not at {file} and cannot be downloaded "
                f"({_said(error)}): put them there, give a file, or leave weights out to train from scratch"
            ) from None
    return _from_file(file)


def _from_file(path: Path) -> Mapping[str, Tensor]:
    """A state dict of tensors. Raises SettingsError for anything else; nothing in the file is executed."""
    if not path.is_file():
        raise SettingsError(f"trial.weights: {path}: no such file, nor weights that torchvision has under this name")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever torch raises on a broken file, with advice that would execute it
        raise SettingsError(f"trial.weights: {path}: cut short, or no file of weights alone") from None
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise SettingsError(f"trial.weights: {path}: expected a state dict of tensors")
    plain = OrderedDict((name.removeprefix("module."), value) for name, value in state.items())
    plain._metadata = getattr(state, "_metadata", {})  # type: ignore[attr-defined]  # versions of its layers
    return plain


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
