"""The settings of a study: a table or figure of the paper as a grid of trials, run by the engine of a search.

A study compares settings that are all named beforehand, so it is evaluated on the test queries: nothing is selected by
them.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from crh_tune.data.datasets import DATASETS
from crh_tune.settings.base import Settings, SettingsError, known, read_yaml, validated
from crh_tune.settings.course import BudgetSettings
from crh_tune.settings.training import Seed, TrainingSettings
from crh_tune.settings.trial import DatasetSettings, EvaluationSettings, ScalingSettings, TrialSettings
from crh_tune.settings.used import given_in_vain

OWN_PHOTOS = ("folder", "lists")
"""The datasets of a user's own photos."""


class StudyDataset(Settings):
    """What a study sets on one dataset: options, fixed trial settings, how mAP is scored, bits, seeds, scaling."""

    options: dict[str, Any] = Field(default_factory=dict)
    """The dataset's options."""
    trial: dict[str, Any] = Field(default_factory=dict)
    """Settings of every trial on it."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How mAP is scored on it."""
    bits: tuple[int, ...] | None = None
    """Code lengths, in place of the study's."""
    seeds: tuple[Seed, ...] | None = None
    """Seeds, in place of the study's."""
    scaling: ScalingSettings | None = None
    """What a trial on it runs on, in place of the study's."""


class StudySettings(Settings):
    """A file of search_spaces/paper/.

    Each entry of ``cells`` has a ``row``, the label in the paper's table, and settings of a trial (``method`` among
    them); a list of values stands for each of them. Every cell is run for all bits and seeds. ``photos`` is for your
    own photos (the datasets folder and lists), ``others`` for any other dataset that the file does not name.
    ``random_draws`` adds the PCC of that many random centres (Table 5).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """What the study is called: its runs and its report carry the name."""
    title: str
    """The headline of its report."""
    kind: Literal["map", "pcc", "figure2", "figure3", "figure4"]
    """What the report shows: a table of mAP or of PCC, or one of the figures."""
    datasets: dict[str, StudyDataset]
    """What is set on each of the paper's datasets."""
    others: StudyDataset
    """What is set on any other dataset."""
    photos: StudyDataset | None = None
    """What is set on your own photos."""
    cells: tuple[dict[str, Any], ...] = Field(min_length=1)
    """The rows of the table, with the settings of their trials."""
    bits: tuple[int, ...] = (16, 32, 64)
    """The code lengths."""
    seeds: tuple[Seed, ...] = (0,)
    """The seeds of each cell."""
    random_draws: int = Field(0, ge=0)
    """How many draws of random centres the table of PCC has a row for; 0 has none."""
    budget: BudgetSettings = BudgetSettings()
    """How many trials run at once, and when one hangs."""
    scaling: ScalingSettings = ScalingSettings()
    """What one trial runs on."""

    @field_validator("cells")
    @classmethod
    def _rows_are_named(cls, cells: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for index, cell in enumerate(cells):
            if not isinstance(cell.get("row"), str):
                raise ValueError(f"{index}.row: is required, the label of this row")
        return cells

    @field_validator("budget")
    @classmethod
    def _all_cells_are_run(cls, budget: BudgetSettings) -> BudgetSettings:
        unused = sorted({"trials", "hours", "epochs"} & budget.model_fields_set)
        if unused:
            raise ValueError(f"{unused[0]}: a study runs all its cells: leave it out")
        return budget

    def rows(self) -> list[str]:
        """The row labels, in the order of the file."""
        return list(dict.fromkeys(cell["row"] for cell in self.cells))

    def on(self, dataset: str) -> StudyDataset:
        """What the study sets on this dataset."""
        own = self.photos if dataset in OWN_PHOTOS and self.photos else self.others
        return self.datasets.get(dataset, own)

    def scaling_on(self, dataset: str) -> ScalingSettings:
        """What a trial on this dataset runs on."""
        return self.on(dataset).scaling or self.scaling

    def with_data(self, dataset: str, path: Path) -> StudySettings:
        """The same study, with a dataset's files at a path."""
        there = self.on(dataset)
        there = there.model_copy(update={"options": {**there.options, "path": str(path.absolute())}})
        return self.model_copy(update={"datasets": {**self.datasets, dataset: there}})

    def trials(self, dataset: str) -> list[tuple[str, TrialSettings]]:
        """Every trial of the study on a dataset with the row it belongs to. Raises SettingsError."""
        there = self.on(dataset)
        known_dataset(dataset)
        result = []
        for index, cell in enumerate(self.cells):
            grid = {
                name: value if isinstance(value, list) else [value] for name, value in cell.items() if name != "row"
            }
            grid.setdefault("bits", list(there.bits or self.bits))
            grid.setdefault("seed", list(there.seeds or self.seeds))
            for values in itertools.product(*grid.values()):
                content = {**there.trial, **dict(zip(grid, values, strict=True))}
                method = content.pop("method", "crh")
                trial = validated(TrainingSettings, content, f"{self.name}: cells.{index}")
                settings = {
                    "dataset": DatasetSettings(name=dataset, **there.options),
                    "method": method,
                    "trial": trial,
                    "evaluation": there.evaluation,
                    "scaling": self.scaling_on(dataset),
                }
                made = validated(TrialSettings, settings, f"{self.name}: cells.{index}")
                vain = [name for name in given_in_vain(made.method, trial) if name in cell]
                if vain:
                    raise SettingsError(f"{self.name}: cells.{index}.{vain[0]}: method {method} does not use it")
                result.append((cell["row"], made))
        return result


def known_dataset(name: str) -> None:
    """Raises SettingsError unless there is a dataset of this name."""
    try:
        known(name, DATASETS, "dataset")
    except ValueError as error:
        raise SettingsError(str(error)) from None


def read_study(path: Path) -> StudySettings:
    """A study file. Raises SettingsError."""
    return validated(StudySettings, read_yaml(path), str(path))
