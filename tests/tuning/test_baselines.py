"""What the last lines and the model card say of the baselines, and that a search does not end with them."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import final_split
from crh_tune.settings.trial import TrialSettings
from crh_tune.tuning import baselines as scoring
from crh_tune.tuning.baselines import compare_with_baselines
from crh_tune.tuning.results import Baseline, baseline_lines, card_lines


def baseline(name: str, low: float, high: float) -> Baseline:
    return Baseline(name, 5120 if name == "float cosine" else 8, 0.25, 0.2, (low + high) / 2, low, high)


def three(low: float, high: float) -> list[Baseline]:
    return [
        baseline("float cosine", 0.3, 0.4),
        baseline("PCA + rotation", 0.5, 0.6),
        baseline("PCA + ITQ", low, high),
    ]


def test_a_clear_gain_is_said_with_its_interval_and_the_memory_of_each():
    assert baseline_lines(three(0.4, 0.5)) == [
        "float cosine     0.2000 (validation 0.2500), 5,120 bytes an item",
        "PCA + rotation   0.2000 (validation 0.2500), 8 bytes an item as the trained codes",
        "PCA + ITQ        0.2000 (validation 0.2500), 8 bytes an item as the trained codes",
        "training brings  +0.4500 test mAP over PCA + ITQ (95 % interval +0.4000 to +0.5000)",
        "training brings  +0.3500 test mAP over float cosine (95 % interval +0.3000 to +0.4000)",
    ]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.1, 0.1, "on these test queries the trained codes are not measurably better than PCA + ITQ"),
        (0.0, 0.1, "on these test queries the trained codes are not measurably better than PCA + ITQ"),
        (-0.2, -0.1, "PCA + ITQ ranks better than the trained codes"),
        (math.nan, math.nan, "too few test queries to compare the trained codes with PCA + ITQ"),
    ],
)
def test_where_the_gain_is_not_above_zero_it_is_said_in_plain_words(low, high, said):
    assert baseline_lines(three(low, high))[5:] == [f"no gain          {said}"]
    assert f"No gain: {said}." in card_lines(three(low, high))


@pytest.mark.parametrize("error", [ValueError("array must not contain infs or NaNs"), MemoryError("no room for 80 GB")])
def test_baselines_that_cannot_be_scored_are_left_out_with_a_line_and_the_search_stands(error, monkeypatch):
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(scoring, "_winner_precisions", lambda *_: np.ones(3))
    monkeypatch.setattr(scoring, "checkpoint_in", lambda *_: None)
    monkeypatch.setattr(scoring, "pca_rotation", failing)
    split = final_split(open_dataset("digits", {}))
    split = replace(split, train=replace(split.train, inputs=np.ones((len(split.train), 4))))
    tested = SimpleNamespace(trial_settings=TrialSettings(dataset={"name": "digits"}, method="crh"))
    said: list[str] = []
    assert compare_with_baselines(SimpleNamespace(folder=None, board=None), split, split, tested, 0, said.append) == ()
    assert said[1:] == [f"no ranking without training is scored: {error}"]


def test_without_baselines_nothing_is_said():
    assert baseline_lines([]) == []
    assert card_lines([]) == []
