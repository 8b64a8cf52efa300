"""What one training run does: its network, its optimizer, its method's parts, and the codebook that they make.

Every default is the paper's own value. What depends on the method and the dataset is None here; it is filled in by
``TrialSettings.resolve``.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torchvision
from pydantic import Field, ValidationInfo, field_validator, model_validator

from crh_tune.data.augment import Augmentation
from crh_tune.hashing.backbones import BACKBONES, OWN_BACKBONES, TIMM
from crh_tune.hashing.codebook import WHOLE_SPACE_MAX_BITS, feasible_head_dims, paper_head_dim
from crh_tune.hashing.methods import Centers, HashLayer, Method, Optimizer, OptimizerName, Reassignment, Schedule
from crh_tune.hashing.network import Precision
from crh_tune.hashing.objectives import OBJECTIVES
from crh_tune.settings.base import Settings, known
from crh_tune.settings.weights import PACKAGES, weights_named

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Full = Literal["full"]
SCRATCH_LEARNING_RATE = 2e-3


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
