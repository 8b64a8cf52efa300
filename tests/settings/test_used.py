"""Settings that a method does not use: refused where they are given, and none in what a trial is resolved to."""

from __future__ import annotations

from typing import Any

import pytest

from crh_tune.hashing.methods import METHODS
from crh_tune.settings.base import SettingsError
from crh_tune.settings.study import StudySettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.settings.used import refuse_in_vain, unread

CODEBOOK = {"codebook_ratio", "codebook_size", "head_dim"}
ROUNDS = {"update_interval", "early_epochs", "reassignment_codes"}


def settings(method: str, **trial: Any) -> TrialSettings:
    content = {"dataset": {"name": "digits"}, "method": method, "trial": {"bits": 32, **trial}}
    return TrialSettings.model_validate(content)


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("crh", {}, set()),
        ("crh_u", {}, ROUNDS),
        ("crh", {"reassignment": "none"}, ROUNDS),
        ("crh", {"centers": "mds"}, CODEBOOK),
        ("crh", {"optimizer": "rmsprop"}, {"betas"}),
        ("orthohash", {}, CODEBOOK | ROUNDS | {"quantization_weight"}),
        ("mds_u", {}, CODEBOOK | {"scale", "margin"}),
        ("mds", {"backbone": "resnet18", "weights": "DEFAULT"}, CODEBOOK | ROUNDS | {"scale", "margin", "betas"}),
        (
            "mds",  # a head that is trained on frozen features starts from nothing, and with Adam
            {"backbone": "resnet18", "weights": "DEFAULT", "freeze": True},
            CODEBOOK | ROUNDS | {"scale", "margin"},
        ),
        ("hashnet", {}, CODEBOOK | ROUNDS | {"scale", "margin", "quantization_weight", "center_seed"}),
        ("dtsh", {}, CODEBOOK | ROUNDS | {"scale", "margin", "center_seed"}),
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
