"""Who stays in a race, and the interval of a gain, against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from crh_tune.tuning.race import Gain, clear, gain, most_runs, places, stay


def test_with_two_settings_the_interval_is_that_of_the_t_test_with_equal_variances():
    values = {"a": [0.81, 0.83, 0.80], "b": [0.78, 0.77]}
    theirs = scipy.stats.ttest_ind(values["a"], values["b"]).confidence_interval(0.95)
    mine = gain(values, "a", "b")
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))
    assert mine.mean == pytest.approx(0.81333333 - 0.775)


def test_other_settings_tell_of_the_noise_and_one_value_of_each_does_not():
    alone = {"a": [0.8], "b": [0.7], "failed": []}
    assert math.isnan(gain(alone, "a", "b").low)
    others = gain({**alone, "c": [0.5, 0.6]}, "a", "b")
    width = scipy.stats.t.ppf(0.975, 1) * math.sqrt(0.005 * 2)
    assert others.high - others.mean == pytest.approx(width)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        a, b, c = random.normal(0, 0.016, (3, 3)).tolist()
        found = gain({"a": [0.03 + each for each in a], "b": b, "c": c}, "a", "b")
        held += found.low <= 0.03 <= found.high
    assert 0.935 < held / 2000 < 0.965


def test_those_that_are_clearly_worse_drop_out_beyond_the_places_there_are():
    values = {"paper": [0.5, 0.51], "far": [0.1, 0.11], "near": [0.51, 0.49], "best": [0.52, 0.51], "failed": []}
    assert stay(values, "paper", 4, 1) == ["best", "near"]
    assert stay(values, "paper", 1, 1) == ["best"]
    assert stay(values, "paper", 4, -1) == ["far"]
    assert stay({"paper": [], "a": [0.5]}, "paper", 1, 1) == ["a"]


def test_a_race_has_the_runs_that_its_places_add_up_to():
    assert [places(6, run, 3) for run in range(4)] == [6, 4, 2, 1]
    assert most_runs(3, 3) == 3 + 3 + 2 + 1
    assert most_runs(2, 1) == 2 + 1
    assert most_runs(0, 3) == 3


def test_what_is_clear_depends_on_which_way_is_better():
    assert clear(Gain(0.1, 0.05, 0.15), 1)
    assert not clear(Gain(0.1, 0.05, 0.15), -1)
    assert clear(Gain(-0.1, -0.15, -0.05), -1)
    assert not clear(Gain(0.1, math.nan, math.nan), 1)
