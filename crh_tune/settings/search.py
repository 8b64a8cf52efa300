"""The settings of a search: what is explored, from where, for how long and on what. The format of search_spaces/."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from crh_tune.data.datasets import DATASETS
from crh_tune.data.options import FileOptions
from crh_tune.hashing.methods import METHODS
from crh_tune.settings.base import Settings, known, read_yaml, validated
from crh_tune.settings.course import (
    AshaSettings,
    BudgetSettings,
    ConfirmSettings,
    SchedulerSettings,
    target_value,
)
from crh_tune.settings.distribution import Distribution
from crh_tune.settings.objective import ObjectiveSettings
from crh_tune.settings.space import check_space
from crh_tune.settings.training import (
    Seed,
    TrainingSettings,
    optimizer_defaults,
)
from crh_tune.settings.trial import (
    DatasetSettings,
    EvaluationSettings,
    ScalingSettings,
    TrialSettings,
    ValidationSettings,
    with_data,
)
from crh_tune.settings.used import PARTS, unread

Value = float | int | str


class SearchSettings(Settings):
    """A search-space file. ``start_from`` holds settings tried first: ``paper``, ``earlier``, or mappings."""

    name: str
    """What the search is called: its folder and its MLflow experiment are named after it."""
    dataset: DatasetSettings
    """The dataset's name and its options: see data.md."""
    method: str = "crh"
    """The method: see the table below."""
    trial: TrainingSettings = TrainingSettings()
    """What is fixed: the settings of every trial."""
    search: dict[str, Distribution]
    """What is explored: settings of a trial, each with what it is drawn from."""
    start_from: tuple[Literal["paper", "earlier"] | dict[str, Value], ...] = ("paper",)
    """What is tried first: the paper's own setting, mappings of searched settings to values, or earlier winners."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What the search optimises."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How mAP is scored."""
    validation: ValidationSettings = ValidationSettings()
    """Which training samples are held out as validation queries."""
    sampler: Literal["tpe", "gp", "cmaes", "random"] = "tpe"
    """What proposes trials: Optuna's TPE, its Gaussian process, CMA-ES (of two ranges at least), or chance."""
    scheduler: SchedulerSettings = SchedulerSettings(asha=AshaSettings())
    """What ends trials early."""
    confirm: ConfirmSettings = ConfirmSettings()
    """How the best trials are confirmed with fresh seeds."""
    budget: BudgetSettings = BudgetSettings()
    """How much is tried."""
    target: str | None = None
    """What is enough, such as val/map >= 0.85: once a trial has it, no new one starts, and the best are confirmed."""
    scaling: ScalingSettings = ScalingSettings()
    """What one trial runs on."""
    seed: Seed = 0
    """What proposals are drawn from, and the seed of every trial."""

    @model_validator(mode="before")
    @classmethod
    def _a_grid_runs_all_its_cells(cls, content: Any) -> Any:
        """Nothing stops the trials of a grid, unless its file names a scheduler."""
        if not isinstance(content, Mapping) or "scheduler" in content or not isinstance(content.get("search"), Mapping):
            return content
        grid = any(isinstance(each, Mapping) and "grid" in each for each in content["search"].values())
        return {**content, "scheduler": {}} if grid else content

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
            raise ValueError(f"expected up to 64 letters, digits, '.', '_' or '-', got {value[:80]!r}")
        return value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return known(value, METHODS, "method")

    @model_validator(mode="after")
    def _space_fits_the_settings(self) -> Self:
        check_space(self)
        if self.target is not None:
            try:
                target_value(self.target, self.objective.metric, self.objective.mode)
            except ValueError as error:
                raise ValueError(f"target: {error}") from None
        if self.objective.metric == "val/map_harmonic" and not self.validation.classes:
            raise ValueError("objective.metric: val/map_harmonic needs validation.classes, such as 0.2")
        return self

    def combinations(self) -> list[dict[str, Any]]:
        """All that can be drawn of the parts that decide which settings are read."""
        names = [name for name in PARTS if name in self.search]
        product = itertools.product(*(self.search[name].values for name in names))
        return [dict(zip(names, values, strict=True)) for values in product]

    def drawn(self, name: str) -> list[Any]:
        """The values of a whole-number or named setting that can be drawn, or the fixed one."""
        if name not in self.search:
            return [getattr(self.trial, name)]
        distribution = self.search[name]
        if distribution.kind == "int":
            return list(range(distribution.values[0], distribution.values[1] + 1))
        return list(distribution.values)

    def unread(self, values: Mapping[str, Any]) -> frozenset[str]:
        """The settings that a trial with these searched values never looks at."""
        parts = {name: values[name] for name in PARTS if name in values and name != "method"}
        return unread(str(values.get("method", self.method)), self.trial.model_copy(update=parts))

    def reaches_target(self, value: float) -> bool:
        """Whether a value of the objective is enough; never without a target."""
        if self.target is None:
            return False
        enough = target_value(self.target, self.objective.metric, self.objective.mode)
        return value >= enough if self.objective.mode == "max" else value <= enough

    @property
    def lengths(self) -> list[int]:
        """The code lengths, ascending, of which the smallest that reaches the target is wanted; empty where none is."""
        bits = self.search.get("bits")
        return sorted(map(int, bits.values)) if bits is not None and bits.kind == "smallest" else []

    @property
    def most_lengths(self) -> int:
        """How many of the lengths are tried at most: each that is tried rules out half of those left."""
        return len(self.lengths).bit_length()

    def at_length(self, bits: int) -> Self:
        """The search among the settings of one of the lengths, with an equal share of the trials."""
        changed = {
            "search": {name: each for name, each in self.search.items() if name != "bits"},
            "trial": self.trial.model_copy(update={"bits": bits}),
            "budget": self.budget.model_copy(update={"trials": self.budget.trials // self.most_lengths}),
        }
        return self.model_copy(update=changed)

    @property
    def share_of_epochs(self) -> str:
        """What trials have of a whole run, such as ``10 of 40 epochs``; empty where they may have all of it."""
        until, epochs = self.scheduler.until, max(self.drawn("epochs"))
        return f"{until} of {epochs} epochs" if until is not None and until < epochs else ""

    @property
    def after_share(self) -> str:
        """What stands behind a trial's value: `` after 10 of 40 epochs``; empty where it may be that of a whole run."""
        return f" after {self.share_of_epochs}" if self.share_of_epochs else ""

    @property
    def is_grid(self) -> bool:
        return any(distribution.kind == "grid" for distribution in self.search.values())

    def cells(self) -> list[dict[str, Value]]:
        """All combinations of a grid's values, the last name varying fastest.

        A setting that a method does not use is left out of its cells, so that each setting is there once.
        """
        names = list(self.search)
        product = itertools.product(*(self.search[name].values for name in names))
        combinations = (dict(zip(names, values, strict=True)) for values in product)
        cells: list[dict[str, Value]] = []
        for values in combinations:
            hidden = self.unread(values)
            cell = {name: value for name, value in values.items() if name not in hidden}
            if cell not in cells:
                cells.append(cell)
        return cells

    @property
    def trials(self) -> int:
        """How many trials the search has: every cell of a grid, or the budget's."""
        return len(self.cells()) if self.is_grid else self.budget.trials

    def trial_settings(self, values: Mapping[str, Any], seed: int) -> TrialSettings:
        """The trial with these searched values in place of the fixed ones, without those that its method does not use.

        Raises SettingsError.
        """
        trial = {**self.trial.model_dump(), "seed": seed, **values}
        method = trial.pop("method", self.method)
        if "codebook_size" in values or "codebook_ratio" in values:
            other = {"codebook_size", "codebook_ratio"} - set(values)
            trial.update(dict.fromkeys(other))
        fields = TrainingSettings.model_fields
        trial.update({name: fields[name].default for name in self.unread(values)})
        return TrialSettings(
            dataset=self.dataset,
            method=method,
            trial=validated(TrainingSettings, trial, "trial"),
            evaluation=self.evaluation,
            validation=self.validation,
            scaling=self.scaling,
        )

    def confirmed(self, resolved: TrialSettings, classes: int, multi_label: bool) -> TrialSettings:
        """A tried setting as it is confirmed: as it was, or with all layers of its backbone trained.

        What follows from a frozen backbone, its head and how that is optimised, becomes what the method has for
        pretrained networks. Raises SettingsError.
        """
        if self.confirm.freeze is None:
            return resolved
        frozen = self.trial.model_dump(include=set(optimizer_defaults(METHODS[resolved.method].optimizer, True)))
        changed = {"freeze": False, "head": None, "epochs": self.confirm.epochs or resolved.trial.epochs, **frozen}
        trial = validated(TrainingSettings, {**resolved.trial.model_dump(), **changed}, "confirm")
        return resolved.model_copy(update={"trial": trial}).resolve(classes, multi_label)

    def uses_codebook(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial with these searched values chooses its centres from a codebook, so that M and d matter."""
        return "head_dim" not in self.unread(values)


def read_search(path: Path, dataset: str | None = None, data: Path | None = None) -> SearchSettings:
    """A search-space file, with another dataset, or data at another place, than its own. Raises SettingsError.

    Another dataset keeps the options that both have (``size``, say), so that they still fit the trial's settings.
    """
    return search_settings(read_yaml(path), str(path), dataset, data)


def search_settings(
    content: Mapping[str, Any], where: str, dataset: str | None = None, data: Path | None = None
) -> SearchSettings:
    """The content of a search-space file as :func:`read_search` reads it; errors begin with ``where``."""
    content = dict(content)
    if dataset is not None:
        content["dataset"] = {**_shared_options(content.get("dataset"), dataset), "name": dataset}
    return validated(SearchSettings, with_data(content, data), where)


def _shared_options(own: Any, dataset: str) -> dict[str, Any]:
    """Of a file's own dataset, the options that this dataset takes too; where files lie is the dataset's own."""
    name = own.get("name") if isinstance(own, Mapping) else None
    if name == dataset:
        return dict(own)
    if not isinstance(name, str) or name not in DATASETS or dataset not in DATASETS:
        return {}
    here, there = (DATASETS[each].options.model_fields for each in (name, dataset))
    shared = {each for each in here if each in there and here[each].annotation == there[each].annotation}
    return {option: value for option, value in own.items() if option in shared - set(FileOptions.model_fields)}
