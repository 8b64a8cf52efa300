"""The settings reference is what the settings say of themselves, and the page in docs/ is up to date."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest
from pydantic import BaseModel, Field

from crh_tune.data.datasets import DATASETS
from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES, Symbol
from crh_tune.settings.reference import default_of, range_of, reference, sentences
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.study import StudySettings
from crh_tune.settings.training import OBJECTIVE_NAMES, TrainingSettings
from crh_tune.settings.trial import TrialSettings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def settings_in(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """This kind of settings and those inside it."""
    found = {kind}
    waiting = [field.annotation for field in kind.model_fields.values()]
    while waiting:
        each = waiting.pop()
        if isinstance(each, type) and issubclass(each, BaseModel) and each not in found:
            found |= settings_in(each)
        waiting += get_args(each)
    return found


ALL = {kind for root in (SearchSettings, TrialSettings, StudySettings) for kind in settings_in(root)}
ALL |= {source.options for source in DATASETS.values()}


def test_the_page_is_up_to_date():
    command = "run .venv/bin/python -m crh_tune.settings.reference > docs/settings.md"
    assert PAGE.read_text(encoding="utf-8") == reference(), command


@pytest.mark.parametrize("kind", sorted(ALL, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_setting_has_a_sentence(kind):
    told = sentences(kind)
    for name in set(kind.model_fields) - set(OBJECTIVE_NAMES):  # those are told with their objectives
        assert told.get(name, "").endswith("."), name


def test_every_setting_objective_and_method_is_on_the_page():
    page = reference()
    for kind in settings_in(SearchSettings) - {TrainingSettings}:
        if kind.__name__ not in ("Distribution", "DatasetSettings"):
            assert all(f"\n| `{name}` |" in page for name in kind.model_fields), kind
    for name, source in DATASETS.items():
        assert re.search(rf"\n### .*`{name}`", page), name
        assert all(f"\n| `{option}` |" in page for option in source.options.model_fields), name
    assert all(f"\n| `{name}` |" in page for name in (*TrainingSettings.model_fields, *METHODS))
    for name, kind in OBJECTIVES.items():
        part = page.split(f"### {name}\n")[1].split("\n#")[0]
        assert all(f"\n| `{setting}` |" in part for setting in kind.options_type.own())
        assert all(f"`{method}`" in part for method, row in METHODS.items() if row.objective == name)


class Sample(BaseModel):
    whole: int | None = Field(None, ge=1, le=9)
    share: Annotated[float, Field(gt=0), Symbol("x", "C / 2", "Eq. 1")] = Field(default_factory=lambda: 1.0)
    either: Annotated[int, Field(ge=2)] | Literal["full"] = "full"
    pair: tuple[float, float] = (0.5, 1.0)
    flag: bool = False
    needed: str


@pytest.mark.parametrize(
    ("name", "default", "values"),
    [
        ("whole", "null", "whole number >= 1, <= 9"),
        ("share", "C / 2", "number > 0"),
        ("either", "full", "whole number >= 2 or `full`"),
        ("pair", "[0.5, 1]", "a list of: number"),
        ("flag", "false", "`true` or `false`"),
        ("needed", "required", "text"),
    ],
)
def test_a_default_and_a_range_in_words(name, default, values):
    field = Sample.model_fields[name]
    assert (default_of(name, field), range_of(field)) == (default, values)
