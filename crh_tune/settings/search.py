"""The settings of a search: what is explored, from where, for how long and on what. The format of search_spaces/."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, field_validator, model_validator

from crh_tune.data.datasets import DATASETS
from crh_tune.data.options import FileOptions
from crh_tune.hashing.codebook import feasible_head_dims
from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES, Options
from crh_tune.settings.base import Settings, SettingsError, known, one_line, read_yaml, validated
from crh_tune.settings.course import (
    AshaSettings,
    BudgetSettings,
    ConfirmSettings,
    SchedulerSettings,
    target_value,
)
from crh_tune.settings.distribution import Distribution
from crh_tune.settings.objective import ObjectiveSettings
from crh_tune.settings.training import (
    Full,
    Seed,
    TrainingSettings,
    codebook_size,
    head_dim,
    objective_options,
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
from crh_tune.settings.used import PARTS, is_given, unread

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
        if not self.search:
            raise ValueError("search: nothing to search over")
        kinds = {distribution.kind for distribution in self.search.values()}
        if "grid" in kinds and len(kinds) > 1:
            raise ValueError("search: a grid cannot be mixed with other distributions")
        if "codebook_ratio" in self.search and "codebook_size" in self.search:
            raise ValueError("search: give codebook_size or codebook_ratio, not both")
        for name in sorted(self.search, key=lambda name: name != "bits"):  # the others are checked against the bits
            self._check_searched(name, self.search[name])
        self._check_read()
        for index, start in enumerate(self.start_from):
            self._check_start(index, start)
        self._check_frozen()
        self.objective.check_second(self.search, self.lengths, self.start_from)
        if self.sampler == "cmaes":
            self._check_cmaes()
        if self.scheduler.short is not None and (self.lengths or self.objective.also is not None):
            asks = "search.bits asks for the smallest" if self.lengths else "objective names two"
            raise ValueError(f"scheduler: short does not train trials whole, and {asks}: take another, such as asha")
        if self.target is not None:
            try:
                target_value(self.target, self.objective.metric, self.objective.mode)
            except ValueError as error:
                raise ValueError(f"target: {error}") from None
        if self.objective.metric == "val/map_harmonic" and not self.validation.classes:
            raise ValueError("objective.metric: val/map_harmonic needs validation.classes, such as 0.2")
        return self

    def _check_frozen(self) -> None:
        """Raises ValueError where the trials of a search would not all see the same inputs."""
        if self.confirm.freeze is False and not self.trial.freeze:
            raise ValueError("confirm.freeze: false is for a search on a frozen backbone: set trial.freeze: true")
        names = ("freeze", *(("backbone", "weights", "flip") if self.trial.freeze else ()))
        fixed = next((name for name in names if name in self.search), None)
        if fixed is not None:
            raise ValueError(f"search.{fixed}: features of a frozen backbone are computed once: set {fixed} in trial")

    def _check_cmaes(self) -> None:
        """Raises ValueError where CMA-ES has nothing to move: it takes one objective, and ranges of every trial."""
        if self.objective.also is not None:
            raise ValueError("sampler: cmaes takes one objective, and two are named: take tpe, gp or random")
        ranges = ("int", "uniform", "log_uniform")
        anywhere = frozenset.union(*map(self.unread, self._combinations()))
        moved = [name for name, each in self.search.items() if each.kind in ranges and name not in anywhere]
        if len(moved) < 2:
            there = ", ".join(moved) or "none"
            raise ValueError(
                f"sampler: cmaes moves two or more ranges that every trial draws, and search has {there}: "
                "make choices ranges (int, uniform, log_uniform), or take tpe, gp or random"
            )

    def _check_read(self) -> None:
        """Raises ValueError for a setting that no trial of this space reads, and for an objective that one has not."""
        combinations = self._combinations()
        methods = " or ".join(dict.fromkeys(str(values.get("method", self.method)) for values in combinations))
        nobody = frozenset.intersection(*map(self.unread, combinations))
        for name in (name for name in TrainingSettings.model_fields if name in nobody):
            if name in self.search:
                raise ValueError(f"search.{name}: method {methods} does not use it: leave it out")
            if is_given(self.trial, name):
                raise ValueError(f"trial.{name}: method {methods} does not use it: leave it out")
        for values in combinations:
            self._check_objective(values)
            if self.objective.metric == "centers/pcc" and "center_seed" in self.unread(values):
                method = values.get("method", self.method)
                raise ValueError(f"objective.metric: centers/pcc is of centres, which method {method} has not: val/map")

    def _check_objective(self, values: Mapping[str, Any]) -> None:
        """Raises ValueError for a setting of an objective, fixed or searched over, that it cannot have."""
        method = str(values.get("method", self.method))
        objective = str(values.get("objective") or self.trial.objective or METHODS[method].objective)
        for name in OBJECTIVES[objective].options_type.own():
            searched = self.search[name].values if name in self.search else [getattr(self.trial, name)]
            for value in searched:
                try:
                    objective_options(self.trial.model_copy(update={name: value}), objective)
                except ValidationError as error:
                    where = "search" if name in self.search else "trial"
                    raise ValueError(f"{where}.{one_line(error, Options)}") from None

    def _combinations(self) -> list[dict[str, Any]]:
        """All that can be drawn of the parts that decide which settings are read."""
        names = [name for name in PARTS if name in self.search]
        product = itertools.product(*(self.search[name].values for name in names))
        return [dict(zip(names, values, strict=True)) for values in product]

    def unread(self, values: Mapping[str, Any]) -> frozenset[str]:
        """The settings that a trial with these searched values never looks at."""
        parts = {name: values[name] for name in PARTS if name in values and name != "method"}
        return unread(str(values.get("method", self.method)), self.trial.model_copy(update=parts))

    def _check_searched(self, name: str, distribution: Distribution) -> None:
        searchable = {"method": None, **TrainingSettings.model_fields}
        try:
            known(name, searchable, "setting")
            if name in ("betas", "nested"):
                raise ValueError("a list of numbers cannot be searched over: set it under trial")
            if distribution.kind == "feasible":
                if name != "head_dim":
                    raise ValueError("feasible is for head_dim only")
                return
            if distribution.kind == "smallest" and name != "bits":
                raise ValueError("smallest is for bits only")
            for value in distribution.values:
                self._check_value(name, value)
            if distribution.kind in ("uniform", "log_uniform") and _is_whole(name):
                raise ValueError(f"{distribution.kind} draws fractions, {name} is a whole number: use int")
        except ValueError as error:
            raise ValueError(f"search.{name}: {error}") from None

    def _check_value(self, name: str, value: Any) -> None:
        """Raises ValueError where no trial could have this value, whatever the others are."""
        if name == "method":
            known(value, METHODS, "method")
            return
        bits = [self.trial.bits] if name == "bits" else drawn(self, "bits")
        learned = [k - free for k, free in itertools.product(bits, drawn(self, "open_bits"))]
        if name == "head_dim" and isinstance(value, int) and value >= 1 and any(k % value == 0 for k in learned):
            return
        try:
            made = TrainingSettings(**{"bits": max(bits), name: value})
        except ValidationError as error:
            raise ValueError(one_line(error, TrainingSettings).removeprefix(f"{name}: ")) from None
        if getattr(made, name) != value:
            raise ValueError(f"expected {getattr(made, name)!r}, got {value!r}")

    def _check_start(self, index: int, start: str | dict[str, Value]) -> None:
        if isinstance(start, str):
            return
        for name, value in start.items():
            where = f"start_from.{index}.{name}"
            if name not in self.search:
                raise ValueError(f"{where}: not searched over: one of {', '.join(self.search)}")
            distribution = self.search[name]
            if distribution.kind == "smallest":
                raise ValueError(f"{where}: which length is tried is not drawn: leave it out")
            if distribution.kind != "feasible" and not distribution.contains(value):
                raise ValueError(f"{where}: {value!r} is not in {distribution.model_dump()}")
            try:
                self._check_value(name, value)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if name in self.unread(start):
                raise ValueError(f"{where}: method {start.get('method', self.method)} does not use it: leave it out")

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
        until, epochs = self.scheduler.until, max(drawn(self, "epochs"))
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

    def check_feasible(self, classes: int) -> None:
        """Raises SettingsError where a codebook size or head dimension that can be drawn is impossible for C."""
        if self.objective.metric == "centers/pcc" and classes < 3:
            raise SettingsError("objective.metric: centers/pcc compares pairs of classes, two classes are one: val/map")
        if self.is_grid:
            for cell in self.cells():
                try:
                    self.trial_settings(cell, self.seed).resolve(classes, False)
                except SettingsError as error:
                    raise SettingsError(f"search: {cell}: {error}") from None
            return
        named = [name for name in ("reassignment", "objective", "hash_layer", "open_bits") if name in self.search]
        others = [drawn(self, name) for name in named]
        parts = itertools.product(drawn(self, "bits"), self._drawn_methods(), drawn(self, "centers"), *others)
        for bits, method, centers, *rest in parts:
            values = {"bits": bits, "method": method, "centers": centers, **dict(zip(named, rest, strict=True))}
            if self.uses_codebook(values):
                for ratio_or_size in _drawn_codebook(self):
                    self._check_codebook({**values, **ratio_or_size}, classes)
                continue
            try:
                self.trial_settings(values, self.seed).resolve(classes, False)
            except SettingsError as error:
                which = ", ".join(f"{name} {value}" for name, value in zip(named, rest, strict=True))
                raise SettingsError(f"search: method {method}{f' with {which}' if which else ''}: {error}") from None

    def uses_codebook(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial with these searched values chooses its centres from a codebook, so that M and d matter."""
        return "head_dim" not in self.unread(values)

    def _drawn_methods(self) -> list[str]:
        return list(self.search["method"].values) if "method" in self.search else [self.method]

    def _check_codebook(self, values: dict[str, Any], classes: int) -> None:
        searched = {"head_dim": None} if "head_dim" in self.search else {}
        settings = self.trial_settings({**values, **searched}, self.seed)
        trial = settings.trial
        try:
            size = codebook_size(trial, classes)
            head_dim(trial, size, METHODS[settings.method].heads == "single")
        except ValueError as error:
            raise SettingsError(f"search: {error}") from None
        bits = trial.learned_bits
        divided = f"bits K = {bits}{f' and nested {list(trial.nested)}' if trial.nested else ''}"
        if not allowed_head_dims(self, bits, size):
            raise SettingsError(
                f"search.head_dim: none of {list(self.search['head_dim'].values)} divides {divided} and "
                f"holds M = {size} codewords: one of {feasible_head_dims(math.gcd(bits, *trial.nested), int(size))}"
            )


def _is_whole(name: str) -> bool:
    """Whether a setting takes whole numbers only."""
    annotation = str(TrainingSettings.model_fields[name].annotation)
    return "int" in annotation and "float" not in annotation


def allowed_head_dims(settings: SearchSettings, bits: int, size: int | Full) -> list[int]:
    """The head dimensions a search may draw for this K and M: the feasible ones, or those of them it lists."""
    if size == "full":
        return [bits]
    feasible = feasible_head_dims(math.gcd(bits, *settings.trial.nested), size)
    distribution = settings.search.get("head_dim")
    if distribution is None or distribution.kind == "feasible":
        return feasible
    if distribution.kind in ("choice", "grid"):
        return [d for d in feasible if d in distribution.values]
    return [d for d in feasible if distribution.contains(d)]


def drawn(settings: SearchSettings, name: str) -> list[Any]:
    """The values of a whole-number or named setting that can be drawn, or the fixed one."""
    if name not in settings.search:
        return [getattr(settings.trial, name)]
    distribution = settings.search[name]
    if distribution.kind == "int":
        return list(range(distribution.values[0], distribution.values[1] + 1))
    return list(distribution.values)


def _drawn_codebook(settings: SearchSettings) -> list[dict[str, Any]]:
    for name in ("codebook_ratio", "codebook_size"):
        if name in settings.search:
            return [{name: value} for value in settings.search[name].values]
    return [{}]


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
