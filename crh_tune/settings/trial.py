"""The settings of one training run.

Every default is the paper's own value, so a trial in which nothing is set is the paper's setting. What depends on the
dataset (M, d, s, lambda) is filled in by :meth:`TrialSettings.resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from crh_tune.data.datasets import DATASETS
from crh_tune.ground import write_text
from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES, Options
from crh_tune.retrieval.average_precision import Denominator, NoRelevant, RankingProtocol, Ties
from crh_tune.settings.base import Settings, SettingsError, known, one_line, read_yaml, validated
from crh_tune.settings.training import (
    OBJECTIVE_NAMES,
    Seed,
    TrainingSettings,
    codebook_of,
    objective_options,
    optimizer_defaults,
)


class DatasetSettings(Settings):
    """A dataset's name, and beside it the options that dataset takes."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    """The dataset's name."""

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


class EvaluationSettings(Settings):
    """How mAP is scored: see ``crh_tune.retrieval.average_precision``. ``cutoff: null`` ranks the whole database.

    ``no_relevant`` is about queries with nothing relevant in the whole database. ``skip`` is what HashNet's Caffe code
    does; its PyTorch code skips queries with nothing relevant among the *retrieved* ``cutoff``, and so scores higher.
    """

    cutoff: int | None = Field(None, ge=1)
    """How many of the nearest items are scored (mAP@k); null scores the whole database."""
    ties: Ties = "expected"
    """How items at one distance are ordered: by the expectation, as they stand, or at random."""
    denominator: Denominator = "retrieved"
    """What average precision divides by: the relevant items retrieved, or all there could be."""
    no_relevant: NoRelevant = "zero"
    """What a query with nothing relevant in the whole database does to the mean."""

    @property
    def protocol(self) -> RankingProtocol:
        return RankingProtocol(self.cutoff, self.ties, self.denominator, self.no_relevant)


class ValidationSettings(Settings):
    """The share of the training samples held out as validation queries, at most ``queries``; ``seed`` picks them.

    ``classes`` holds whole classes out as well: neither a search nor its final runs train on them, they are searched
    only. ``val/map_unseen`` (and ``test/map_unseen``) is the mAP among themselves, ``val/map_mixed`` that of all
    queries in one database.
    """

    fraction: float = Field(0.2, gt=0, lt=1)
    """The share of the training samples that are held out."""
    queries: int = Field(10_000, ge=1)
    """How many are held out at most."""
    seed: Seed = 0
    """What picks them."""
    classes: float = Field(0, ge=0, lt=1)
    """The share of the classes that are held out whole, and only searched."""

    @property
    def held_classes(self) -> dict[str, Any]:
        """What ``final_split`` is told, so that it holds the same classes out as the search."""
        return {"classes": self.classes, "seed": self.seed}


class ScalingSettings(Settings):
    """What one trial runs on. With one worker it trains in the trial's own process, with several in a worker group."""

    workers_per_trial: int = Field(1, ge=1)
    """How many processes train one trial together."""
    cpus_per_worker: int = Field(1, ge=1)
    """How many CPU cores each of them has."""
    gpus_per_worker: float = Field(0, ge=0)
    """How many GPUs each of them has; a part of one lets trials share it."""

    @model_validator(mode="after")
    def _whole_gpus_in_groups(self) -> Self:
        if self.workers_per_trial > 1 and self.gpus_per_worker not in (0, 1):
            raise ValueError(f"gpus_per_worker is 0 or 1 with several workers, got {self.gpus_per_worker}")
        return self


class TrialSettings(Settings):
    """Everything one training run depends on; with the same seed, machine and workers it gives the same metrics."""

    dataset: DatasetSettings
    """The dataset's name and its options."""
    method: str = "crh"
    """The method."""
    trial: TrainingSettings = TrainingSettings()
    """How it trains."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How mAP is scored."""
    validation: ValidationSettings = ValidationSettings()
    """Which training samples are held out as validation queries."""
    scaling: ScalingSettings = ScalingSettings()
    """What it runs on."""

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return known(value, METHODS, "method")

    @model_validator(mode="after")
    def _its_objective_takes_its_settings(self) -> Self:
        try:
            objective_options(self.trial, self.objective)
        except ValidationError as error:
            raise ValueError(f"trial.{one_line(error, Options)}") from None
        return self

    @property
    def objective(self) -> str:
        """The name of the training objective: the trial's own, or its method's."""
        return self.trial.objective or METHODS[self.method].objective

    @property
    def global_batch(self) -> int:
        """How many samples one step sees, over all workers."""
        return self.trial.batch_size * (self.scaling.workers_per_trial if self.trial.batch_size_of == "worker" else 1)

    def resolve(self, classes: int, multi_label: bool) -> TrialSettings:
        """Fill in what follows from the method, the backbone and C: its parts, optimizer, objective's settings, M, d.

        For CRH, M = 2C; d = the smallest power of two >= log2 M that divides K (K itself for one head). Centres of
        their own are C words with one head. What other objectives have is taken out.

        Raises SettingsError where no such trial exists (M < C, M > 2^K, H > K / log2 M, C < 2, nested lengths that are
        no whole heads).
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
            if given.nested and not objective.nests:
                raise ValueError(f"nested: objective {filled['objective']} is not defined on the first bits of a code")
            defaults = {
                **optimizer_defaults(method.optimizer, given.weights is not None and not given.freeze),
            }
            defaults |= {"head": "mlp"} if given.freeze else {}
            filled |= {name: value for name, value in defaults.items() if getattr(given, name) is None}
            options = objective_options(given, filled["objective"], classes, multi_label)
            filled |= {name: getattr(options, name, None) for name in OBJECTIVE_NAMES}
            filled |= codebook_of(given, filled["centers"], filled["reassignment"], method, classes)
            trial = TrainingSettings(**{**given.model_dump(), **filled})
        except ValidationError as error:
            raise SettingsError(f"trial: {one_line(error, TrainingSettings)}") from None
        except ValueError as error:
            raise SettingsError(f"trial: {error}") from None
        return self.model_copy(update={"trial": trial})


def read_trial(path: Path, data: Path | None = None) -> TrialSettings:
    """The settings of one training run from a YAML file, perhaps with data at another place. Raises SettingsError."""
    return trial_settings(read_yaml(path), str(path), data)


def trial_settings(content: Mapping[str, Any], where: str, data: Path | None = None) -> TrialSettings:
    """The content of a file of one training run as :func:`read_trial` reads it; errors begin with ``where``."""
    return validated(TrialSettings, with_data(dict(content), data), where)


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
    write_text(path, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
