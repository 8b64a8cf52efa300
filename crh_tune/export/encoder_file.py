"""``encoder.pt``: what it says of the network, and the network's weights, loadable with ``weights_only=True``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from crh_tune.data.store.decode import MEGAPIXELS, STRETCHED, Fit, Interpolation, Span
from crh_tune.ground import first_line, write_whole
from crh_tune.hashing.methods import HashLayer
from crh_tune.hashing.network import FeatureNetwork, FrozenHashNetwork, HashNetwork
from crh_tune.settings.base import SettingsError, one_line
from crh_tune.training.checkpoints import read_tensors
from crh_tune.training.frozen import feature_network, pretrained
from crh_tune.training.loop import TrainingRun

_WEIGHTS = "weights"


class FrozenBackbone(BaseModel):
    """A backbone that was not trained, and how images were brought to its size; whatever else is known is kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    backbone: str
    crop: float | None
    interpolation: Interpolation


class EncoderHeader(BaseModel):
    """What an encoder's file says beside its weights. What an older version did not write has its default.

    ``shape`` is that of one input of the trained network, ``inputs`` that of one input of the encoder: they differ
    where images are cropped, and where a frozen backbone stands before the network.
    """

    model_config = ConfigDict(frozen=True)

    backbone: str
    shape: tuple[int, ...] = Field(min_length=1)
    inputs: tuple[int, ...]
    bits: int = Field(ge=1)
    hash_layer: HashLayer
    class_names: tuple[str, ...]
    open_bits: int = Field(0, ge=0)
    nested: tuple[int, ...] = ()
    span: Span | None = None
    megapixels: float = MEGAPIXELS
    pretrained: FrozenBackbone | None = None

    @property
    def fit(self) -> Fit:
        """How an image file becomes an input."""
        return STRETCHED if self.pretrained is None else Fit(self.pretrained.crop, self.pretrained.interpolation)

    def network(self) -> HashNetwork | FrozenHashNetwork:
        """The network without its weights. Raises ValueError where there is no such network."""
        blank, colours = torch.zeros(self.shape[0]), torch.zeros(3)
        trained = self.bits - self.open_bits
        head = HashNetwork(self.backbone, self.shape, trained, blank, blank, self.hash_layer, open_bits=self.open_bits)
        if self.pretrained is None:
            return head
        return FrozenHashNetwork(FeatureNetwork(self.pretrained.backbone, self.inputs, colours, colours), head)


def write_encoder(path: Path, run: TrainingRun, network: HashNetwork) -> Mapping[str, Tensor]:
    """Write the network of a finished run, and return its weights; a frozen backbone is part of both."""
    options = run.settings.dataset.options
    header = EncoderHeader(
        backbone=str(run.trial.head) if run.trial.freeze else run.trial.backbone,
        shape=network.shape,
        inputs=tuple(run.split.train.inputs.shape[1:]),
        bits=run.trial.bits,
        hash_layer=run.trial.hash_layer or "linear",
        class_names=run.split.class_names,
        open_bits=run.trial.open_bits,
        nested=run.trial.nested,
        span=getattr(run.split.train.inputs, "span", None) or options.get("range"),
        megapixels=options.get("max_megapixels", MEGAPIXELS),
    )
    weights = network.state_dict()
    if run.trial.freeze:
        found = pretrained(run.trial, options.get("size"))
        whole = FrozenHashNetwork(feature_network(found), network)
        known = FrozenBackbone.model_validate(asdict(found))
        header = header.model_copy(update={"inputs": tuple(whole.shape), "pretrained": known})
        weights = whole.state_dict()
    content = {**header.model_dump(), _WEIGHTS: weights}
    write_whole(path, lambda aside: torch.save(content, aside))
    return weights


def read_encoder(path: Path) -> tuple[EncoderHeader, HashNetwork | FrozenHashNetwork]:
    """What ``write_encoder`` wrote. Raises SettingsError, naming the file, where it is broken or something else."""
    try:
        content = read_tensors(path)
        header = EncoderHeader.model_validate(content)
        if _WEIGHTS not in content:
            raise ValueError(f"{_WEIGHTS}: is required")
        network = header.network()
        network.load_state_dict(content[_WEIGHTS])
    except ValidationError as error:
        raise SettingsError(f"{path}: not a readable encoder: {one_line(error, EncoderHeader)}") from None
    except Exception as error:  # whatever torch raises on a broken file, or on weights of another network
        raise SettingsError(f"{path}: not a readable encoder: {first_line(error)}") from None
    return header, network
