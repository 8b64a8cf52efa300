"""Settings that a method does not use: refused where they are given, and none in what a trial is resolved to."""

from __future__ import annotations

import math
from typing import Any

import pytest

from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES
from crh_tune.settings.base import SettingsError, validated
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.study import StudySettings
from crh_tune.settings.training import OBJECTIVE_NAMES, objective_options
from crh_tune.settings.trial import TrialSettings
from crh_tune.settings.used import refuse_in_vain, symbols, unread

CODEBOOK = {"codebook_ratio", "codebook_size", "head_dim", "nested"}
ROUNDS = {"update_interval", "early_epochs", "reassignment_codes"}
PAPERS = {"scale", "margin", "quantization_weight"}
OTHERS = {"bank_momentum", "beta_growth"}


def settings(method: str, **trial: Any) -> TrialSettings:
    content = {"dataset": {"name": "digits"}, "method": method, "trial": {"bits": 32, **trial}}
    return TrialSettings.model_validate(content)


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("crh", {}, OTHERS),
        ("crh_u", {}, ROUNDS | OTHERS),
        ("crh", {"reassignment": "none"}, ROUNDS | OTHERS),
        ("crh", {"centers": "mds"}, CODEBOOK | OTHERS),
        ("crh", {"optimizer": "rmsprop"}, {"betas"} | OTHERS),
        ("crh", {"objective": "polarization"}, {"scale", "quantization_weight"} | OTHERS),
        ("orthohash", {}, CODEBOOK | ROUNDS | OTHERS | {"quantization_weight"}),
        ("mds_u", {}, CODEBOOK | {"scale", "margin", "beta_growth"}),
        (
            "mds",
            {"backbone": "resnet18", "weights": "DEFAULT"},
            CODEBOOK | ROUNDS | {"scale", "margin", "beta_growth", "betas"},
        ),
        (
            "mds",  # a head on frozen features is trained from scratch, and with Adam
            {"backbone": "resnet18", "weights": "DEFAULT", "freeze": True},
            CODEBOOK | ROUNDS | {"scale", "margin", "beta_growth"},
        ),
        ("hashnet", {}, CODEBOOK | ROUNDS | PAPERS | {"center_seed", "bank_momentum"}),
        ("dtsh", {}, CODEBOOK | ROUNDS | OTHERS | {"scale", "margin", "center_seed"}),
        ("dpn", {}, CODEBOOK | ROUNDS | OTHERS | {"scale", "quantization_weight"}),
    ],
)
def test_what_a_trial_does_not_read_follows_from_its_method_and_parts(method, given, expected):
    assert unread(method, settings(method, **given).trial) == expected


@pytest.mark.parametrize("pretrained", [{}, {"backbone": "resnet18", "weights": "DEFAULT"}])
@pytest.mark.parametrize("method", METHODS)
def test_resolved_settings_hold_nothing_in_vain(method, pretrained):
    refuse_in_vain(settings(method, **pretrained).resolve(10, False), "settings.yaml")


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("hashnet", {"margin": 0.3}),
        ("hashnet", {"quantization_weight": 0.1}),
        ("hashnet", {"center_seed": 1}),
        ("csq", {"scale": 3.0}),
        ("crh", {"bank_momentum": 0.5}),
        ("dpn", {"quantization_weight": 0.1}),
        ("csq", {"update_interval": 2}),
        ("orthohash", {"early_epochs": 3}),
        ("crh", {"optimizer": "rmsprop", "betas": [0.9, 0.9]}),
    ],
)
def test_one_given_to_a_single_trial_or_a_studys_cell_is_refused(method, given):
    name = list(given)[-1]
    complaint = rf"trial\.{name}: method {method} does not use it"
    with pytest.raises(SettingsError, match=f"^settings.yaml: {complaint}"):
        refuse_in_vain(settings(method, **given), "settings.yaml")
    cell = {"row": "a", "method": method, **given, **({"betas": [given["betas"]]} if "betas" in given else {})}
    study = {"name": "s", "title": "S", "kind": "map", "datasets": {}, "others": {}, "cells": [cell]}
    with pytest.raises(SettingsError, match=rf"^s: cells\.0\.{name}: method {method} does not use it"):
        StudySettings.model_validate(study).trials("digits")


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_trial_is_written_with_its_objectives_settings_and_no_others(method):
    resolved = settings(method).resolve(10, False)
    own = OBJECTIVES[METHODS[method].objective].options_type.own()
    written = resolved.model_dump(mode="json")["trial"]
    assert {name for name in OBJECTIVE_NAMES if name in written} == set(own)
    assert all(written[name] is not None for name in own)
    assert TrialSettings.model_validate(resolved.model_dump(mode="json")) == resolved


@pytest.mark.parametrize(
    ("method", "written"),
    [
        ("hashnet", {"quantization_weight": 0.0, "margin": 0.2, "scale": None}),
        ("mds", {"quantization_weight": 1e-4, "margin": 0.2, "scale": None}),
        ("orthohash", {"quantization_weight": 0.0, "margin": 0.2, "scale": 8.0}),
        ("crh", {"quantization_weight": 0.1, "margin": 0.2, "scale": math.sqrt(2) * math.log(9)}),
    ],
)
def test_what_version_0_1_wrote_is_read_as_it_was_meant(method, written):
    """It wrote the same three settings for every method, and no others."""
    refuse_in_vain(settings(method, **written), "settings.yaml")
    assert settings(method, **written).resolve(10, False) == settings(method).resolve(10, False)
    space = {"name": "s", "dataset": {"name": "digits"}, "method": method, "search": {"bits": {"choice": [16, 32]}}}
    read = SearchSettings.model_validate({**space, "trial": {"margin": 0.2, "quantization_weight": None}})
    values = {"bits": 32}
    assert read.trial_settings(values, 0).resolve(10, False).trial == settings(method).resolve(10, False).trial


def test_an_objective_of_its_own_brings_settings_to_trial_search_and_the_lines_that_tell_them():
    """Nothing outside the objective's file names its settings."""
    search = {
        "method": {"choice": ["crh", "dpn", "hashnet"]},
        "margin": {"uniform": [0.0, 0.5]},
        "beta_growth": {"log_uniform": [1e-3, 1e-1]},
    }
    space = SearchSettings.model_validate({"name": "s", "dataset": {"name": "digits"}, "search": search})
    assert "margin" in space.unread({"method": "hashnet"})
    assert "beta_growth" in space.unread({"method": "dpn"})
    told = space.trial_settings({"method": "dpn", "margin": 0.4}, 0).resolve(10, False)
    assert symbols("dpn", told.trial)["margin"].name == "m"
    assert told.trial.margin == 0.4
    grown = space.trial_settings({"method": "hashnet", "beta_growth": 0.05}, 0).resolve(10, False)
    assert objective_options(grown.trial, "pairwise_continuation", 10).beta_growth == 0.05


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"method": "crh", "trial": {"margin": 3}}, r"^f: trial\.margin: .*less than or equal to 2, got 3"),
        (
            {"method": "crh", "search": {"margin": {"uniform": [0, 3]}}},
            r"^f: search\.margin: .*equal to 2, got 3",
        ),
        (
            {"search": {"method": {"choice": ["dpn", "crh"]}, "margin": {"choice": [1, 3]}}},
            r"^f: search\.margin: .*less than or equal to 2, got 3",
        ),
        (
            {"method": "mds", "search": {"bank_momentum": {"choice": [0.5, 1.0]}}},
            r"^f: search\.bank_m.*less than 1",
        ),
        (
            {"method": "dpn", "search": {"beta_growth": {"choice": [1, 2]}}},
            r"^f: search\.beta_growth: method dpn ",
        ),
    ],
)
def test_each_objective_has_ranges_of_its_own(content, complaint):
    whole = {"name": "s", "dataset": {"name": "digits"}, "search": {"bits": {"choice": [16, 32]}}, **content}
    with pytest.raises(SettingsError, match=complaint):
        validated(SearchSettings, whole, "f")
    assert settings("dpn", margin=3).trial.margin == 3
    with pytest.raises(SettingsError, match=r"^f: trial\.margin: .*less than or equal to 2, got 3"):
        validated(TrialSettings, {"dataset": {"name": "digits"}, "trial": {"margin": 3}}, "f")
