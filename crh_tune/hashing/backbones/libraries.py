"""Backbones of libraries: torchvision's classifiers, and those of timm's registry."""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crh_tune.ground import first_line
from crh_tune.hashing.backbones import TIMM, Shape

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
        import torchvision  # noqa: PLC0415  # seconds, with what it imports of torch: only for backbones of its own

        try:
            self.body = torchvision.models.get_model(name, weights=None, **_size_options(name, shape))
        except (AssertionError, ValueError) as error:
            reason = first_line(error)
            raise ValueError(f"backbone {name} cannot take inputs of shape {shape}: {reason}") from None
        layers = [(path, module) for path, module in self.body.named_modules() if isinstance(module, nn.Linear)]
        if not layers or name in ("inception_v3", "googlenet"):
            raise ValueError(f"backbone {name} has no last linear layer to take off: another one is needed")
        self.removed, last = layers[-1]
        self.features = last.in_features
        parent, _, attribute = self.removed.rpartition(".")
        setattr(self.body.get_submodule(parent), attribute, nn.Identity())
        _check_features(self, name, shape)

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


class Timm(nn.Module):
    """A model of timm's registry whose output is its pooled features, before the classifier.

    Raises ValueError for an unknown name, for inputs that are no RGB images, or of a size that the model cannot take.
    """

    def __init__(self, name: str, shape: Shape) -> None:
        super().__init__()
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"backbone {name} needs RGB images, got inputs of shape {shape}")
        self.body = create_timm(name, shape[1])
        self.features = int(self.body.num_features)
        _check_features(self, name, shape)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a model of this kind; its classifier is not needed.

        Their names may be those of another implementation that has the same layers in the same order.
        Raises ValueError where they do not fit.
        """
        own = self.body.state_dict()
        if not set(own) <= set(state):
            others = list(state.values())[: len(own)]
            state = dict(zip(own, others, strict=False)) if _same_shapes(list(own.values()), others) else state
        try:
            self.body.load_state_dict({name: state[name] for name in own if name in state})
        except (RuntimeError, ValueError) as error:
            raise ValueError(" ".join(str(error).split())[:300]) from None


def timm_config(name: str) -> Any:
    """timm's configuration of a backbone's pretrained weights: input size, mean, std, crop, licence.

    timm takes seconds to import, so only who needs it does. Raises ValueError for an unknown name.
    """
    import timm  # noqa: PLC0415

    plain = name.removeprefix(TIMM)
    found = timm.get_pretrained_cfg(plain, allow_unregistered=False) if timm.is_model(plain.partition(".")[0]) else None
    if found is None:
        near = ", ".join(f"{TIMM}{each}" for each in difflib.get_close_matches(plain, timm.list_models(), 3))
        raise ValueError(f"unknown backbone {name!r}: timm has none of that name{f'; near it: {near}' if near else ''}")
    return found


def create_timm(name: str, side: int) -> Any:
    """A model of timm's registry without its classifier, with random weights, for images of side x side.

    Raises ValueError where there is none.
    """
    import timm  # noqa: PLC0415

    config = timm_config(name)
    sized: Any = {"img_size": side} if config.fixed_input_size and side != config.input_size[1] else {}
    try:
        return timm.create_model(name.removeprefix(TIMM), pretrained=False, num_classes=0, **sized)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise ValueError(f"backbone {name} cannot be built for images of {side} x {side}: {reason}") from None


def _same_shapes(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return [value.shape for value in ours] == [value.shape for value in theirs]


@torch.no_grad()
def _check_features(backbone: Torchvision | Timm, name: str, shape: Shape) -> None:
    """Raises ValueError where the backbone cannot take inputs of this shape, or gives no feature vector."""
    backbone.body.eval()
    try:
        found = tuple(backbone.body(torch.zeros(1, *shape)).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = first_line(error)
        raise ValueError(f"backbone {name} cannot take inputs of shape {shape}: {reason}") from None
    backbone.body.train()
    if found != (1, backbone.features):
        raise ValueError(f"backbone {name} gives no feature vector: another one is needed")


def _size_options(name: str, shape: Shape) -> dict[str, Any]:
    """Transformers of the registry are built for one size of images."""
    if name.startswith("vit_"):
        return {"image_size": shape[1]}
    return {"input_size": shape[1:]} if name == "maxvit_t" else {}
