"""What one training run does: its network, its optimizer, its method's parts, and the codebook that they make.

Every default is the paper's own value. What depends on the method and the dataset is None here; it is filled in by
``TrialSettings.resolve``.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from crh_tune.data.augment import Augmentation
from crh_tune.hashing.backbones import OWN_BACKBONES, TIMM, torchvision_weights
from crh_tune.hashing.codebook import WHOLE_SPACE_MAX_BITS, feasible_head_dims, paper_head_dim
from crh_tune.hashing.methods import (
    Centers,
    HashLayer,
    Method,
    Optimizer,
    OptimizerName,
    Precision,
    Reassignment,
    Schedule,
)
from crh_tune.hashing.objectives import OBJECTIVES, Options, Symbol
from crh_tune.settings.base import Settings, known
from crh_tune.settings.weights import PACKAGES, has_weights

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Length = Annotated[int, Field(ge=2)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Full = Literal["full"]
SCRATCH_LEARNING_RATE = 2e-3


def _objective_fields() -> dict[str, list[FieldInfo]]:
    """All objectives' settings: by name, what each objective that has it declares."""
    fields: dict[str, list[FieldInfo]] = {}
    for kind in OBJECTIVES.values():
        for name, field in kind.options_type.own().items():
            fields.setdefault(name, []).append(field)
    return fields


def _unless_given(fields: list[FieldInfo]) -> tuple[Any, Any]:
    """An objective's setting as one of a trial: None by default, within the range that all who have it share."""
    kind: Any = fields[0].annotation
    for shared in fields[0].metadata:
        if all(shared in field.metadata for field in fields):
            kind = Annotated[kind, shared]
    return kind | None, None


OBJECTIVE_NAMES = tuple(_objective_fields())
"""The names of all objectives' settings."""
CODEBOOK_NAMES = ("codebook_ratio", "codebook_size", "head_dim", "nested")
"""Settings that only centres from a codebook have."""
ROUND_NAMES = ("update_interval", "early_epochs", "reassignment_codes")
"""Settings that only reassigned centres have."""


class _BeforeTheObjectives(Settings):
    bits: Annotated[int, Symbol("K")] = Field(32, ge=2, le=4096)
    """The length of the codes."""
    open_bits: int = Field(0, ge=0)
    """How many of the bits are not trained but fitted to the inputs, for classes that training does not see."""
    epochs: int = Field(300, ge=1, le=1_000_000)
    """How many passes over the training samples."""
    batch_size: int = Field(128, ge=1)
    """How many samples a step sees."""
    batch_size_of: Literal["global", "worker"] = "global"
    """Whether batch_size is the batch of a step, which the workers share, or each worker's share of it."""
    accumulate: int = Field(1, ge=1)
    """In how many parts a batch goes through the network; more parts need less memory."""
    backbone: str = "small_cnn"
    """The network before the hash layer: one of our own, of torchvision's classifiers, or timm/NAME of timm's."""
    weights: str | None = Field(None, min_length=1)
    """Pretrained weights: the library's name (DEFAULT), a file, or an installed package; null trains from scratch."""
    freeze: bool = False
    """Whether a pretrained backbone stays as it is: its features are computed once, only a head is trained on them."""
    head: Literal["linear", "mlp"] | None = None
    """What is trained on frozen features: the hash layer alone, or one hidden layer before it (mlp, the default)."""
    crop: int | None = Field(None, ge=4)
    """The side of the square that is cut from a training image at random, and from others at their centre."""
    padding: int = Field(0, ge=0, le=1024)
    """How many black pixels are put around a training image before it is cropped."""
    flip: bool = False
    """Whether training images are flipped at random, left to right."""
    precision: Precision = "fp32"
    """The numbers that the backbone computes with."""
    channels_last: bool = False
    """Whether images lie in memory with the channels last, which is faster for most convolutions."""
    compile: bool = False
    """Whether torch.compile is used: slow to start, faster afterwards."""
    optimizer: OptimizerName | None = None
    """What trains the network; from scratch, Adam under every method."""
    learning_rate: Positive | None = None
    """The learning rate of the hash layer; from scratch, 2e-3 under every method."""
    backbone_ratio: Positive | None = None
    """The backbone's learning rate, as a multiple of learning_rate; from scratch, 1 under every method."""
    weight_decay: NonNegative | None = None
    """The weight decay (L2)."""
    schedule: Schedule | None = None
    """How the learning rate falls: see crh_tune.hashing.methods.Schedule."""
    gradient_clip: NonNegative | None = None
    """The largest norm of a step's gradient; 0 clips nothing."""
    betas: tuple[Beta, Beta] | None = None
    """Adam's running means; RMSprop has none."""
    objective: str | None = None
    """The training objective, by the name of its file in crh_tune/hashing/objectives/."""
    centers: Centers | None = None
    """Where class centres come from: see crh_tune.hashing.methods.Centers."""
    reassignment: Reassignment | None = None
    """How centres are reassigned while the network trains."""
    hash_layer: HashLayer | None = None
    """The layer that gives the codes: see crh_tune.hashing.methods.HashLayer."""
    codebook_ratio: Annotated[
        Annotated[float, Field(ge=1, allow_inf_nan=False)] | Full | None, Symbol("M / C", "2, or as many as 2^K allow")
    ] = None
    """The codebook size as a multiple of the number of classes; full is all 2^K codewords."""
    codebook_size: Annotated[Annotated[int, Field(ge=2)] | Full | None, Symbol("M", "2C", told=True)] = None
    """How many codewords centres are chosen from; full is all 2^K."""
    head_dim: Annotated[
        int | None, Symbol("d", "the smallest power of two with 2^d >= M; K for one head", told=True)
    ] = Field(None, ge=1)
    """How many bits of a centre are chosen together; it divides K, and 2^d >= M."""
    nested: tuple[Length, ...] = ()
    """Shorter lengths, each some whole heads: the first so many bits of a code are trained as codes of their own."""


if TYPE_CHECKING:  # the objectives' settings are read through objective_options, which knows their types
    _WithTheObjectives = _BeforeTheObjectives
else:
    _WithTheObjectives = create_model(
        "_WithTheObjectives",
        __base__=_BeforeTheObjectives,
        **{name: _unless_given(fields) for name, fields in _objective_fields().items()},
    )


class TrainingSettings(_WithTheObjectives):
    """One training run. ``None`` is filled in from the method and the dataset: see ``TrialSettings.resolve``.

    Between a codebook's settings and those of reassignment stand the objectives' own, each declared beside its
    objective (``crh_tune.hashing.objectives``). Those that a trial does not set are left out when it is written.
    """

    update_interval: Annotated[int, Symbol("interval", told=True)] = Field(5, ge=1)
    """After the early epochs, centres are reassigned after every so many epochs."""
    early_epochs: int = Field(20, ge=0)
    """Centres are reassigned after each of the first so many epochs."""
    reassignment_codes: Literal["pass", "epoch"] = "pass"
    """The codes that a round stands on: those of a pass with the epoch's last network, or those that training saw."""
    evaluate_every: int = Field(1, ge=1)
    """How many epochs from one evaluation to the next; the last epoch is always evaluated."""
    seed: Seed = 0
    """What everything random is drawn from."""
    center_seed: Seed | None = None
    """What the codebook and the first centres are drawn from; null takes seed."""

    @model_serializer(mode="wrap")
    def _without_other_objectives(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        known = {name: value for name, value in content.items() if value is not None or name not in OBJECTIVE_NAMES}
        unused = {name for name in ("open_bits", "nested") if not getattr(self, name)}
        return {name: value for name, value in known.items() if name not in unused}

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        if value.startswith(TIMM) and len(value) > len(TIMM):  # looked up when it is built: timm takes seconds
            return value
        names = (*OWN_BACKBONES, *torchvision_weights())
        if value not in names:
            near = difflib.get_close_matches(value, names, 3)
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
        if has_weights(backbone, value):
            return value
        if Path(value).suffix:
            return str(Path(value).expanduser().absolute())
        if backbone.startswith(TIMM):
            raise ValueError(f"unknown weights {value!r} of {backbone}: DEFAULT, {', '.join(PACKAGES)}, or a file")
        names = ", ".join(torchvision_weights()[backbone])
        raise ValueError(f"unknown weights {value!r} of {backbone}: {names}, or a file such as weights.pth")

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str | None) -> str | None:
        return value if value is None else known(value, OBJECTIVES, "objective")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.learned_bits < 2:
            raise ValueError(
                f"open_bits {self.open_bits} of {self.bits} bits leave {self.learned_bits} to train: want 2"
            )
        if self.codebook_ratio is not None and self.codebook_size is not None:
            raise ValueError("give codebook_size or codebook_ratio, not both")
        if self.head_dim is not None and self.learned_bits % self.head_dim:
            raise ValueError(f"head_dim d = {self.head_dim} does not divide bits K = {self.learned_bits}")
        if isinstance(self.codebook_size, int) and self.codebook_size > 2**self.learned_bits:
            raise ValueError(f"codebook_size M = {self.codebook_size} is larger than 2^K = {2**self.learned_bits}")
        if list(self.nested) != sorted({*self.nested, self.learned_bits})[:-1]:
            raise ValueError(
                f"nested {list(self.nested)}: want lengths shorter than {self.learned_bits} bits, the shortest first"
            )
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
    def learned_bits(self) -> int:
        """The K of the method: of the bits, those that are trained."""
        return self.bits - self.open_bits

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths K whose codes are trained, the shortest first."""
        return (*self.nested, self.learned_bits)

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.crop, self.padding, self.flip)


def objective_options(trial: TrainingSettings, objective: str, classes: int = 3, multi_label: bool = False) -> Options:
    """What an objective gets from a trial: the settings it has, as given or by default, for K, C and the labels.

    Raises ValueError, in a ValidationError for a value that this objective cannot have.
    """
    kind = OBJECTIVES[objective].options_type
    given = {name: getattr(trial, name) for name in kind.own() if getattr(trial, name) is not None}
    return kind(bits=trial.learned_bits, classes=classes, multi_label=multi_label, **given)


def optimizer_defaults(optimizer: Optimizer, pretrained: bool) -> dict[str, Any]:
    """The method's optimizer; a backbone trained from scratch trains with Adam at one, larger rate throughout.

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
    own: dict[str, object] = {
        "codebook_ratio": 1, "codebook_size": classes, "head_dim": given.learned_bits, "nested": ()
    }  # fmt: skip
    for name in CODEBOOK_NAMES:
        if getattr(given, name) not in (None, own[name]):
            raise ValueError(f"{name} has no meaning with centers {centers}: leave it out, or use centers codebook")
    if centers == "none":
        if reassignment != "none":
            raise ValueError(f"reassignment {reassignment} needs centres: centers is none")
        return {}
    if classes > 2**given.learned_bits:
        raise ValueError(
            f"bits K = {given.learned_bits} give 2^K = {2**given.learned_bits} centres for C = {classes} classes"
        )
    return {"codebook_ratio": None, "codebook_size": classes, "head_dim": given.learned_bits}


def codebook_size(trial: TrainingSettings, classes: int) -> int | Full:
    """M for C classes: as given, or codebook_ratio * C, or the paper's 2C (2^K where that is more).

    Raises ValueError for M < C or M > 2^K, and for all 2^K with the Hungarian rule, which needs every word's cost.
    """
    if "full" in (trial.codebook_size, trial.codebook_ratio):
        if trial.reassignment == "hungarian":
            raise ValueError("reassignment hungarian is for listed codewords: with codebook_size full use greedy")
        if trial.learned_bits > WHOLE_SPACE_MAX_BITS:
            raise ValueError(f"codebook_size full needs bits <= {WHOLE_SPACE_MAX_BITS}, got {trial.learned_bits}")
        if classes > 2**trial.learned_bits:
            raise ValueError(
                f"bits K = {trial.learned_bits} give 2^K = {2**trial.learned_bits} codewords for C = {classes} classes"
            )
        return "full"
    size = trial.codebook_size
    if size is None and trial.codebook_ratio is None:
        size = max(min(2 * classes, 2**trial.learned_bits), classes)
    elif size is None:
        size = round(float(trial.codebook_ratio or 2) * classes)
    assert isinstance(size, int)
    if size < classes:
        raise ValueError(f"codebook_size M = {size} is smaller than the number of classes C = {classes}")
    if size > 2**trial.learned_bits:
        raise ValueError(
            f"codebook_size M = {size} is larger than 2^K = {2**trial.learned_bits} (bits K = {trial.learned_bits})"
        )
    return size


def head_dim(trial: TrainingSettings, size: int | Full, single: bool) -> int:
    """d for M codewords: as given, K for one head, or the paper's.

    Raises ValueError when 2^d < M, and where d does not divide a nested length.
    """
    dim = _head_dim(trial, size, single)
    cut = next((bits for bits in trial.nested if bits % dim), None)
    if cut is not None:
        raise ValueError(
            f"nested {cut}: codes of {cut} bits are no whole heads of head_dim d = {dim} bits: "
            f"set head_dim to a divisor of {cut}, or nested to multiples of {dim}"
        )
    return dim


def _head_dim(trial: TrainingSettings, size: int | Full, single: bool) -> int:
    if size == "full":
        if trial.head_dim not in (None, trial.learned_bits):
            raise ValueError(
                f"codebook_size full has one head: head_dim is {trial.learned_bits} or left out, got {trial.head_dim}"
            )
        return trial.learned_bits
    if trial.head_dim is None:
        return trial.learned_bits if single else paper_head_dim(trial.learned_bits, size)
    if size > 2**trial.head_dim:
        allowed = feasible_head_dims(trial.learned_bits, size)
        raise ValueError(
            f"head_dim d = {trial.head_dim} cannot hold M = {size} distinct codewords "
            f"(2^d = {2**trial.head_dim}): one of {allowed}"
        )
    return trial.head_dim
