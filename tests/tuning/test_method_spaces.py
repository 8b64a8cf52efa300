"""Searching over methods and their parts: M and d are drawn where there is a codebook, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from crh_tune.hashing.methods import METHODS
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings, read_search
from crh_tune.settings.space import check_feasible
from crh_tune.settings.study import read_study
from crh_tune.settings.trial import ScalingSettings
from crh_tune.tuning.proposals import enqueue, propose
from crh_tune.tuning.study import prepare

CODEBOOK = {"codebook_ratio": {"choice": [1, 2]}, "head_dim": {"feasible": True}}
PAPER = sorted((Path(__file__).parents[2] / "search_spaces" / "paper").glob("*.yaml"))


def space(**search) -> SearchSettings:
    content = {"name": "m", "dataset": {"name": "digit_pairs"}, "trial": {"bits": 16, "epochs": 2}, "search": search}
    return SearchSettings.model_validate(content)


def proposals(settings: SearchSettings, count: int = 60) -> list[dict]:
    check_feasible(settings, 100)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    enqueue(study, settings, 100, False)
    return [propose(study.ask(), settings, 100) for _ in range(count)]


def test_a_search_over_all_methods_proposes_only_trials_that_exist():
    settings = space(method={"choice": list(METHODS)}, **CODEBOOK)
    drawn = proposals(settings, 150)
    assert {values["method"] for values in drawn} == set(METHODS)
    for values in drawn:
        assert ("codebook_ratio" in values) == (METHODS[values["method"]].centers == "codebook")
        resolved = settings.trial_settings(values, 0).resolve(100, False)
        if METHODS[values["method"]].centers not in ("codebook", "none"):
            assert resolved.trial.codebook_size == 100


def test_a_search_over_where_centres_come_from():
    settings = space(centers={"choice": ["codebook", "bernoulli", "hadamard", "mds"]}, **CODEBOOK)
    drawn = proposals(settings)
    assert {values["centers"] for values in drawn} == {"codebook", "bernoulli", "hadamard", "mds"}
    assert all(("head_dim" in values) == (values["centers"] == "codebook") for values in drawn)


def test_a_combination_that_cannot_be_is_refused_before_anything_starts():
    with pytest.raises(SettingsError, match="reassignment greedy needs centres"):
        check_feasible(space(centers={"choice": ["codebook", "none"]}), 100)
    parts = {"method": {"choice": ["crh", "hashnet"]}, "reassignment": {"choice": ["greedy", "hungarian"]}}
    with pytest.raises(SettingsError, match=r"method hashnet with reassignment greedy: .*needs centres"):
        check_feasible(space(**parts), 100)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_every_study_of_the_paper_can_be_run_on_digit_pairs(path: Path):
    study = read_study(path)
    trials = study.trials("digit_pairs")
    assert len({settings.resolve(100, False).model_dump_json() for _, settings in trials}) > 1
    assert {row for row, _ in trials} == set(study.rows())
    assert set(study.datasets) == {"stanford_cars", "nabirds", "coco"}
    assert {settings.scaling for _, settings in trials} == {ScalingSettings()}
    for name in study.datasets:
        alike = read_search(PAPER[0].parents[1] / f"{name}.yaml").scaling
        assert {settings.scaling for _, settings in study.trials(name)} == {alike}
        assert {settings.trial.weights for _, settings in study.trials(name)} == {"IMAGENET1K_V1"}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_every_study_of_the_paper_can_be_run_on_photos_seen_by_a_frozen_backbone(path: Path, tmp_path: Path):
    study = read_study(path).with_data("folder", tmp_path)
    trials = [settings for _, settings in study.trials("folder")]
    assert all(settings.trial.freeze and settings.dataset.options["path"] == str(tmp_path) for settings in trials)
    assert len({settings.resolve(100, False).model_dump_json() for settings in trials}) > 1


def test_there_is_a_study_for_every_table_and_figure():
    assert [path.stem for path in PAPER] == [
        *("figure2", "figure3", "figure4"), *("table1", "table2", "table3", "table4", "table5")
    ]  # fmt: skip


def test_a_mistake_in_a_study_names_the_cell(tmp_path: Path):
    path = tmp_path / "s.yaml"
    text = PAPER[-1].read_text()
    path.write_text(text.replace("method: crh}", "method: crh, margin: 7}"))
    with pytest.raises(SettingsError, match=r"table5: cells\.1: trial\.margin: .*got 7"):
        read_study(path).trials("digit_pairs")
    with pytest.raises(SettingsError, match="unknown dataset 'mnist'"):
        read_study(path).trials("mnist")
    path.write_text(text.replace("row: Init,", ""))
    with pytest.raises(SettingsError, match=r"s\.yaml: cells: 0\.row: is required"):
        read_study(path)
    path.write_text(f"{text}\nbudget: {{hours: 2}}\n")
    with pytest.raises(SettingsError, match=r"s\.yaml: budget: hours: a study runs all its cells: leave it out"):
        read_study(path)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"crop": {"choice": [8, 28]}}, "trial.crop: 28 pixels asked for"),
        (
            {"padding": {"int": [0, 4]}, "crop": {"choice": [None, 8]}, "learning_rate": {"log_uniform": [1e-4, 1e-2]}},
            "search: padding 4 is for crops",
        ),
        (
            {"backbone": {"choice": ["resnet18", "resnet50"]}, "weights": {"choice": ["DEFAULT", "IMAGENET1K_V2"]}},
            "unknown weights 'IMAGENET1K_V2' of resnet18",
        ),
    ],
)
def test_what_the_images_or_backbones_do_not_allow_is_refused_before_anything_starts(monkeypatch, search, said):
    """A value that is drawn later failed its trial, or ended the search with it."""
    monkeypatch.setattr("crh_tune.tuning.study.build_network", lambda *_: None)
    content = {**space(**search).model_dump(), "dataset": {"name": "digits"}}  # of squares
    with pytest.raises(SettingsError, match=said):
        prepare(SearchSettings.model_validate(content), lambda line: None)
