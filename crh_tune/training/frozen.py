"""A pretrained backbone that is not trained: what it is, and how it turns images into features, once.

What a backbone is (its weights' hash, input size, mean, std, crop) is noted beside the cache of features, so that a
trial on cached features loads neither timm nor the weights. The note is found by the content of the weights' file: it
holds on every node that shares the cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from crh_tune.data.images import OpenStore
from crh_tune.data.options import ImageOptions
from crh_tune.data.store.cache import Say, cache_root, disk_errors, usable_cores
from crh_tune.data.store.checked import read_json
from crh_tune.data.store.decode import DECODER, Fit
from crh_tune.data.store.feature_cache import Compute, FeatureCache, Features, Recipe, open_features
from crh_tune.data.store.sources import Bytes, ImageSource
from crh_tune.ground import first_line, write_json
from crh_tune.hashing.backbones import TIMM
from crh_tune.hashing.backbones.libraries import Timm, Torchvision, timm_config
from crh_tune.hashing.network import FeatureNetwork, FrozenHashNetwork, HashNetwork
from crh_tune.serving.session import open_session
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.weights import PACKAGES, transforms_of, weights_named
from crh_tune.training.onnx_file import write_onnx
from crh_tune.training.weights import pretrained_state, weights_file

_NOTE_FORMAT = 2
_TOLERANCE = 1e-4


class FeaturesMissing(Exception):
    """The cache has not all features that are asked for, and they are not to be computed by this process."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained backbone: its weights by name and hash, and the images it was trained for.

    ``mean`` and ``std`` are for pixels of 0 to 255; ``crop`` and ``interpolation`` are those of ``data.decode.Fit``.
    """

    backbone: str
    weights: str
    sha256: str
    licence: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None
    interpolation: Any
    features: int

    @property
    def fit(self) -> Fit:
        return Fit(self.crop, self.interpolation)

    @property
    def key(self) -> str:
        """Names everything that features depend on."""
        parts = {name: value for name, value in asdict(self).items() if name not in ("weights", "licence")}
        return json.dumps({**parts, "decoder": DECODER})

    @property
    def description(self) -> str:
        """One line for a model card."""
        return (
            f"{self.backbone} with weights {self.weights} (sha256 {self.sha256[:16]}, licence {self.licence}), "
            f"not trained further; images of {self.size} x {self.size} pixels"
        )


def frozen_store(trial: TrainingSettings, size: int | None, compute: bool = True) -> OpenStore:
    """What keeps a dataset's images as the features of a trial's frozen backbone. ``size``: instead of the model's.

    Without ``compute``, the backbone is not loaded, and the store raises FeaturesMissing where it would have to be.
    """

    def store(source: ImageSource, options: ImageOptions, say: Say) -> FeatureCache:
        found = pretrained(trial, size, compute)
        start = (lambda: _compute(feature_network(found), say)) if compute else _not_here
        recipe = Recipe(found.key, found.features, found.size, found.fit, start, trial.flip)
        return open_features(source, recipe, say)

    return store


def _not_here() -> NoReturn:
    raise FeaturesMissing


def pretrained(trial: TrainingSettings, size: int | None, look: bool = True) -> Pretrained:
    """What a frozen trial's backbone is, from the note of whoever looked last, if its weights are still the same.

    Raises SettingsError where the weights cannot be had or do not fit, FeaturesMissing where there is no note and one
    is not to ``look``.
    """
    assert trial.weights is not None
    file = weights_file(trial.backbone, trial.weights)
    version = importlib.metadata.version("timm") if trial.backbone.startswith(TIMM) else ""
    asked = json.dumps([_NOTE_FORMAT, trial.backbone, trial.weights, _file_hash(file), size, version])
    note = cache_root() / "backbones" / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"
    known = read_json(note)
    if known is not None:
        return Pretrained(**{**known, "mean": tuple(known["mean"]), "std": tuple(known["std"])})
    if not look:
        raise FeaturesMissing
    found = _look(trial, size)
    with disk_errors(note):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, asdict(found))
    return found


def _file_hash(file: Path | None) -> str:
    """Of the weights as they lie on the disk; empty where they do not, or a library keeps them."""
    if file is None or not file.is_file():
        return ""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()


def _look(trial: TrainingSettings, size: int | None) -> Pretrained:
    """Load the weights, and see what they are and what images they want."""
    assert trial.weights is not None
    try:
        wanted = _wanted(trial.backbone, trial.weights)
    except ValueError as error:
        raise SettingsError(f"trial.backbone: {error}") from None
    wanted |= {"size": size} if size is not None else {}
    blank = Pretrained(trial.backbone, trial.weights, "", features=0, **wanted)
    network = feature_network(blank)
    return Pretrained(trial.backbone, trial.weights, _hash(network), features=network.features, **wanted)


def _wanted(backbone: str, weights: str) -> dict[str, Any]:
    """The images that pretrained weights want, as their own configuration says, and the weights' licence."""
    package = PACKAGES.get(weights)
    if package is not None:
        return {
            "licence": package.licence, "size": package.size, "mean": (package.mean,) * 3, "std": (package.std,) * 3,
            "crop": None, "interpolation": "bilinear",
        }  # fmt: skip
    if backbone.startswith(TIMM):
        config = timm_config(backbone)
        return {
            "licence": config.license or "unknown", "size": config.input_size[1],
            "mean": tuple(255 * value for value in config.mean), "std": tuple(255 * value for value in config.std),
            "crop": float(config.crop_pct), "interpolation": _interpolation(config.interpolation),
        }  # fmt: skip
    named = weights_named(backbone, weights)
    preset = transforms_of(backbone, weights)
    size = preset.crop_size[0]
    return {
        "licence": "unknown" if named is None else "BSD-3-Clause (torchvision)", "size": size,
        "mean": tuple(255 * value for value in preset.mean), "std": tuple(255 * value for value in preset.std),
        "crop": size / preset.resize_size[0], "interpolation": _interpolation(preset.interpolation.value),
    }  # fmt: skip


def _interpolation(name: str) -> str:
    return "bilinear" if name == "bilinear" else "bicubic"


def feature_network(found: Pretrained) -> FeatureNetwork:
    """The backbone with its pretrained weights. Raises SettingsError where it cannot be had."""
    shape, mean, std = (3, found.size, found.size), torch.tensor(found.mean), torch.tensor(found.std)
    try:
        network = FeatureNetwork(found.backbone, shape, mean, std)
        assert isinstance(network.backbone, Timm | Torchvision)
        network.backbone.load(pretrained_state(found.backbone, found.weights))
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"trial.weights: {found.weights}: {error}") from None
    return network


def _hash(network: FeatureNetwork) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def frozen_network(head: HashNetwork, found: Pretrained) -> FrozenHashNetwork:
    """Backbone and trained head as one network, to export."""
    return FrozenHashNetwork(feature_network(found), head)


def _compute(network: FeatureNetwork, say: Say) -> Compute:
    """The fastest that is there: a GPU, else onnxruntime, where it agrees with PyTorch to 1e-4.

    Float32 on a GPU too: with bf16, one bit in 40 of the codes from cached features is another than the encoder's.
    """
    if torch.cuda.is_available():
        return _by_torch(network.cuda(), torch.device("cuda"))
    by_torch = _by_torch(network, torch.device("cpu"))
    try:
        compute = _by_onnxruntime(network)
    except Exception as error:  # whatever the exporter raises on a layer that it does not know
        why = first_line(error)[:120]
        say(f"onnxruntime cannot run this backbone ({why}): PyTorch does, more slowly")
        return by_torch
    sample = np.random.default_rng(0).integers(0, 256, (2, network.shape[1], network.shape[2], 3), dtype=np.uint8)
    expected = by_torch(sample)
    apart = float(np.abs(compute(sample) - expected).max())
    if apart > _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        say(f"onnxruntime and PyTorch differ by {apart:.2g} on this backbone: PyTorch computes, more slowly")
        return by_torch
    return compute


def _by_torch(network: FeatureNetwork, device: torch.device) -> Compute:
    @torch.inference_mode()
    def compute(images: Bytes) -> Features:
        threads = torch.get_num_threads()
        torch.set_num_threads(usable_cores())
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
                return network(torch.from_numpy(images).to(device).permute(0, 3, 1, 2)).cpu().numpy()
        finally:
            torch.set_num_threads(threads)  # a run that follows in this process has its own share

    return compute


def _by_onnxruntime(network: FeatureNetwork) -> Compute:
    with tempfile.TemporaryDirectory(prefix="crh-onnx-") as folder:
        path = Path(folder) / "backbone.onnx"
        write_onnx(network, torch.zeros((2, *network.shape), dtype=torch.uint8), path, ["images"], ["features"])
        session = open_session(path.read_bytes())

    def compute(images: Bytes) -> Features:
        values: Any = session.run(None, {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})[0]
        return values

    return compute
