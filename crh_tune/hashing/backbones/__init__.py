"""Backbones by name: our own, torchvision's classifiers, and those of timm's registry as ``timm/NAME``.

What is needed to read settings is here, and imports neither torch nor torchvision.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

Shape = tuple[int, ...]
"""Shape of one input: (channels, height, width) of an image, (length,) of a feature vector."""
TIMM = "timm/"
"""What the names of timm's backbones begin with: ``timm/convnext_tiny``, ``timm/vit_small_patch14_dinov2.lvd142m``."""


class Backbone(Protocol):
    """An ``nn.Module`` from B x shape inputs to B x ``features``, both floating."""

    @property
    def features(self) -> int: ...
    def __call__(self, inputs: Tensor, /) -> Tensor: ...
    def parameters(self) -> Iterator[Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def compile(self) -> None: ...


OWN_BACKBONES = {
    "small_cnn": "own.SmallCNN",
    "mlp": "own.MLP",
    "linear": "own.Linear",
}
"""Backbones without pretrained weights: the file of this folder and the class in it, which is made with a shape."""


def build_backbone(name: str, shape: Shape) -> Backbone:
    """A backbone for inputs of a shape, with random weights. Raises ValueError where it cannot take them."""
    if name in OWN_BACKBONES:
        file, kind = OWN_BACKBONES[name].split(".")
        made: Backbone = getattr(_file(file), kind)(shape)
        return made
    libraries = _file("libraries")
    return libraries.Timm(name, shape) if name.startswith(TIMM) else libraries.Torchvision(name, shape)


def _file(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


@cache
def torchvision_weights() -> dict[str, tuple[str, ...]]:
    """torchvision's classifiers, and the names of each one's pretrained weights.

    They are read from its source: importing it takes seconds, and a mistake in a settings file is told at once.
    """
    found = importlib.util.find_spec("torchvision")
    assert found is not None
    assert found.submodule_search_locations is not None
    files = sorted((Path(found.submodule_search_locations[0]) / "models").glob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    kinds = {
        kind: tuple(re.findall(r"^    (\w+) = ", body, re.MULTILINE))
        for kind, body in re.findall(r"^class (\w+)\(WeightsEnum\):\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    }
    registered = r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(\s*\*,\s*weights: (?:Optional\[)?(\w+)"
    return {name: kinds[kind] for name, kind in sorted(re.findall(registered, text, re.MULTILINE))}
