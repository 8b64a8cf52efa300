"""What mattered is found where it did, and not claimed where nothing or too little is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crh_tune.reporting.importance import final_values, importances, positions, varied, verdict
from crh_tune.reporting.search_data import Trial


def trial(number: int, values: dict[int, float], status: str = "complete", **setting: Any) -> Trial:
    return Trial(f"trial-{number:04d}", number, status, "drawn", setting, values)


def a_search(trials: list[Trial], sign: int = 1) -> Any:
    """The parts of SearchData that importance looks at."""
    complete = [each for each in trials if each.status == "complete"]
    names = list(dict.fromkeys(name for each in trials for name in each.setting))
    return SimpleNamespace(trials=trials, complete=complete, sign=sign, symbols=names)


def drawn(count: int, seed: int, effect: float, sign: int = 1) -> Any:
    """Trials in which d = 8 and a large lambda help by as much as found on digit pairs, times ``effect``."""
    generator = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        setting = {"M": int(generator.choice([100, 200, 400, 800])), "d": int(generator.choice([8, 16]))}
        setting |= {"lambda": float(10 ** generator.uniform(-3, 0)), "margin": float(generator.uniform(0, 0.5))}
        value = effect * (0.05 * (setting["d"] == 8) + 0.03 * np.log10(setting["lambda"])) + 0.016 * generator.normal()
        trials.append(trial(number, {40: sign * float(value)}, **setting))
    return a_search(trials, sign)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_decides_is_told_from_what_does_not(sign):
    found = {each.name: each for each in importances(drawn(48, 0, 1.0, sign))}
    assert sum(each.share for each in found.values()) == pytest.approx(1)
    assert found["d"].can_tell
    assert found["lambda"].can_tell
    assert not found["margin"].can_tell
    assert all(each.low <= each.high for each in found.values())


def test_nothing_is_claimed_of_noise():
    claims = [each.name for seed in range(4) for each in importances(drawn(24, seed, 0.0)) if each.can_tell]
    assert len(claims) <= 2  # of 16, at a chance of one in twenty each
    text = verdict(importances(drawn(24, 2, 0.0)), 24)
    assert "cannot tell" in text or "cannot be told" in text


def test_few_trials_cannot_tell():
    assert importances(drawn(11, 0, 1.0)) == []
    assert "cannot be told from 11 trials" in verdict([], 11)


def test_a_stopped_trial_counts_with_what_others_gained_from_there():
    trials = [
        trial(0, {5: 0.5, 40: 0.8}, a=1),
        trial(1, {5: 0.4, 40: 0.9}, a=2),
        trial(2, {5: 0.6, 40: 0.7}, a=3),
        trial(3, {5: 0.3}, "pruned", a=4),
        trial(4, {}, "failed", a=5),
    ]
    values = final_values(a_search(trials))
    assert values["trial-0003"] == pytest.approx(0.3 + 0.3)  # gains .3, .5 and .1
    assert "trial-0004" not in values


def test_a_setting_all_trials_share_is_no_axis():
    trials = [trial(number, {1: 0.1 * number}, a=number, b=3) for number in range(4)]
    assert varied(a_search(trials)) == {"a": [0, 1, 2, 3]}


def test_what_spans_much_is_placed_by_its_logarithm():
    assert positions([0.001, 0.01, 0.1, 1.0]).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert positions([0.0, 0.01, 1.0]).tolist() == pytest.approx([0, 0, 1])  # the paper's lambda = 0
    assert positions([0.0, 0.2, 0.4]).tolist() == pytest.approx([0, 0.5, 1])
