"""Proposals: feasible whatever is drawn, the paper's setting first, the sampler told only of what it drew."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings, read_search
from crh_tune.settings.space import check_feasible
from crh_tune.tuning.proposals import (
    FIXED,
    START,
    enqueue,
    head_dim_name,
    paper_values,
    propose,
    start_points,
    values_of,
)

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

RATIOS = {"codebook_ratio": {"choice": [1, 2, 4, 8]}, "head_dim": {"feasible": True}}
WEIGHT = {"quantization_weight": {"log_uniform": [1e-3, 1.0]}}
REST = {"margin": {"uniform": [0.0, 0.5]}, "update_interval": {"int": [1, 10]}}


def space(search: dict[str, Any], bits: int = 16, **changes: Any) -> SearchSettings:
    content = {"name": "a-search", "dataset": {"name": "digit_pairs"}, "trial": {"bits": bits}, "search": search}
    return SearchSettings.model_validate({**content, **changes})


def proposals(settings_: SearchSettings, classes: int, multi_label: bool = False, trials: int = 25, seed: int = 0):
    """A study that has run: (values, resolved settings) of each of its trials."""
    random_values = random.Random(seed)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=8)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    enqueue(study, settings_, classes, multi_label)
    made = []
    for _ in range(trials):
        trial = study.ask()
        values = propose(trial, settings_, classes)
        made.append((values, settings_.trial_settings(values, 0).resolve(classes, multi_label).trial))
        study.tell(trial, random_values.random())
    return study, made


def one_choice_a_name(study: optuna.Study) -> bool:
    """Whether every name was drawn from one distribution only."""
    drawn: dict[str, Any] = {}
    return all(
        drawn.setdefault(name, distribution) == distribution
        for trial in study.trials
        for name, distribution in trial.distributions.items()
    )


SPACES = {
    "ratios": space({**RATIOS, **WEIGHT, **REST}),
    "ratios, d listed first": space({"head_dim": {"feasible": True}, "codebook_ratio": {"choice": [1, 2, 4, 8]}}),
    "a range of ratios": space({"codebook_ratio": {"uniform": [1.0, 8.0]}, "head_dim": {"feasible": True}}),
    "a range of sizes": space({"codebook_size": {"int": [600, 60_000]}, "head_dim": {"feasible": True}}),
    "bits": space({"bits": {"choice": [12, 16, 36, 64]}, "head_dim": {"feasible": True}}),
    "a range of bits": space({"bits": {"int": [12, 40]}, "head_dim": {"feasible": True}}),
    "listed dims": space({"codebook_ratio": {"choice": [1, 4]}, "head_dim": {"choice": [4, 8, 16, 32, 64]}}, 64),
    "a range of dims": space({"codebook_ratio": {"choice": [1, 4]}, "head_dim": {"int": [8, 64]}}, 64),
    "full": space({"codebook_ratio": {"choice": [1, 2, "full"]}, "head_dim": {"feasible": True}}),
    "d only": space({"head_dim": {"feasible": True}}, 64),
    "methods": space({"method": {"choice": ["crh", "crh_m", "crh_u"]}, **REST}),
}


@pytest.mark.parametrize("classes", [10, 100, 555])
@pytest.mark.parametrize("name", SPACES)
def test_every_proposal_is_feasible_and_a_name_always_has_the_same_choices(name, classes):
    check_feasible(SPACES[name], classes)
    study, made = proposals(SPACES[name], classes)
    for values, trial in made:
        assert set(values) == set(SPACES[name].search) - SPACES[name].unread(values)
        assert trial.bits % trial.head_dim == 0
        if trial.codebook_size == "full":
            assert trial.head_dim == trial.bits
        else:
            assert classes <= trial.codebook_size <= 2**trial.head_dim
        for setting, value in values.items():
            if setting not in ("head_dim", "codebook_ratio", "method"):
                assert getattr(trial, setting) == value
        if isinstance(values.get("codebook_ratio"), int | float):
            assert trial.codebook_size == round(values["codebook_ratio"] * classes)
        assert trial.head_dim == values.get("head_dim", trial.head_dim)
    assert one_choice_a_name(study)


@settings(max_examples=15, deadline=None)
@given(
    ratios=st.lists(st.integers(1, 20), min_size=1, max_size=4, unique=True),
    bits=st.lists(st.sampled_from([12, 16, 20, 24, 48, 64]), min_size=1, max_size=3, unique=True),
    classes=st.integers(3, 200),
    seed=st.integers(0, 1000),
)
def test_any_space_of_ratios_and_bits_proposes_feasible_trials(ratios, bits, classes, seed):
    search = {"bits": {"choice": bits}, "codebook_ratio": {"choice": ratios}, "head_dim": {"feasible": True}}
    study, made = proposals(space(search), classes, trials=12, seed=seed) if fits(ratios, bits, classes) else (None, [])
    for _, trial in made:
        assert trial.bits % trial.head_dim == 0
        assert trial.codebook_size <= 2**trial.head_dim
    if study is None:
        with pytest.raises(SettingsError, match="larger than"):
            check_feasible(space(search), classes)
    else:
        assert one_choice_a_name(study)


def fits(ratios: list[int], bits: list[int], classes: int) -> bool:
    return max(ratios) * classes <= 2 ** min(bits)


def refusal(search: dict[str, Any], bits: int, start_from: list[Any]) -> str | None:
    """What a space is refused with before anything starts; None where it is accepted."""
    try:
        made = space(search, bits, start_from=start_from)
        check_feasible(made, 100)
        start_points(made, 100, False)
    except (SettingsError, ValidationError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "start", [{"head_dim": 5}, {"head_dim": 4}, {"head_dim": "most"}, {"codebook_ratio": 8, "head_dim": 8}]
)
def test_an_impossible_start_is_refused_beforehand(start):
    line = refusal(RATIOS, 16, ["paper", start])
    assert line is not None
    assert "head_dim" in line


@pytest.mark.parametrize(
    ("search", "bits"),
    [
        ({"bits": {"int": [16, 32]}, "head_dim": {"choice": [8, 16, 32]}}, 16),  # none of them divides 17
        ({"codebook_ratio": {"grid": [1, 8]}, "head_dim": {"grid": [8, 16]}}, 16),  # M = 800 does not fit d = 8
        ({"bits": {"grid": [16, 64]}, "head_dim": {"grid": [16, 32]}}, 64),  # 32 does not divide 16
    ],
)
def test_a_space_with_impossible_corners_is_refused_beforehand_or_they_are_left_out(search, bits):
    line = refusal(search, bits, ["paper"])
    if line is not None:
        assert "head_dim" in line
        return
    made = space(search, bits)
    count = len(start_points(made, 100, False)) if made.is_grid else 30
    assert len(proposals(made, 100, trials=count)[1]) == count  # and all of them resolve


@pytest.mark.parametrize(("classes", "d"), [(100, 8), (196, 16), (80, 8)])
@pytest.mark.parametrize("seed", range(2))
def test_the_first_trial_is_the_papers_setting(classes, d, seed):
    settings_ = space({**RATIOS, **WEIGHT, **REST, "early_epochs": {"int": [0, 40]}}, bits=16)
    study, made = proposals(settings_, classes, trials=2, seed=seed)
    trial = made[0][1]
    assert (trial.codebook_size, trial.head_dim, trial.quantization_weight) == (2 * classes, d, 0.1)
    assert (trial.margin, trial.update_interval, trial.early_epochs) == (0.2, 5, 20)
    assert study.trials[0].user_attrs[START] == "paper"
    assert study.trials[0].user_attrs[FIXED] == {}
    assert START not in study.trials[1].user_attrs
    drawn = {"codebook_ratio": 2, "quantization_weight": 0.1, "margin": 0.2, "update_interval": 5, "early_epochs": 20}
    assert {name: study.trials[0].params[name] for name in drawn} == drawn


def test_the_papers_setting_is_the_papers_whatever_the_file_fixes():
    fixed = {"bits": 64, "codebook_ratio": 7, "head_dim": 64, "quantization_weight": 0.9, "margin": 0.4}
    search = {**RATIOS, **WEIGHT, **REST, "early_epochs": {"int": [0, 40]}}
    settings_ = space(search, trial={**fixed, "update_interval": 2, "early_epochs": 3})
    _, made = proposals(settings_, 100, trials=1)
    trial = made[0][1]
    assert (trial.codebook_size, trial.head_dim, trial.quantization_weight) == (200, 8, 0.1)
    assert (trial.margin, trial.update_interval, trial.early_epochs) == (0.2, 5, 20)


def test_what_is_not_searched_over_stays_as_the_file_fixes_it():
    fixed = {"bits": 64, "margin": 0.4, "quantization_weight": 0.9, "learning_rate": 2e-3, "epochs": 9}
    _, made = proposals(space(RATIOS, trial=fixed), 100, trials=5)
    for _, trial in made:
        assert {name: getattr(trial, name) for name in fixed} == fixed


@pytest.mark.parametrize(
    ("search", "multi_label", "outside"),
    [
        ({**RATIOS, **WEIGHT}, True, {"quantization_weight": 0.0}),  # no logarithm of 0
        ({"codebook_ratio": {"choice": [1, 4]}, **WEIGHT}, False, {"codebook_ratio": 2.0}),
        ({"margin": {"uniform": [0.3, 0.5]}, **WEIGHT}, False, {"margin": 0.2}),
        ({"update_interval": {"choice": [1, 2]}, **WEIGHT}, False, {"update_interval": 5}),
        ({"codebook_size": {"int": [300, 400]}, **WEIGHT}, False, {"codebook_size": 200}),
        ({"head_dim": {"choice": [16]}, **WEIGHT}, False, {"head_dim": 8}),
    ],
)
def test_a_paper_value_outside_the_space_is_fixed_and_not_told_to_the_sampler(search, multi_label, outside):
    study, made = proposals(space(search), 100, multi_label)
    (name, value), = outside.items()  # fmt: skip
    first, values = study.trials[0], made[0][0]
    assert values[name] == value
    assert set(values) == set(search)
    assert first.user_attrs[FIXED] == outside
    assert not [param for param in first.params if param.startswith(name)]
    assert not [param for param in first.distributions if param.startswith(name)]
    assert all(FIXED not in trial.user_attrs for trial in study.trials[1:])
    assert all(later[name] != value for later, _ in made[1:])
    assert one_choice_a_name(study)


def test_later_proposals_stay_within_the_space_and_move_about_in_it():
    _, made = proposals(space({**RATIOS, **WEIGHT, **REST}), 100, trials=40)
    drawn = [values for values, _ in made[1:]]
    assert {values["codebook_ratio"] for values in drawn} == {1, 2, 4, 8}
    assert {(values["codebook_ratio"], values["head_dim"]) for values in drawn} >= {(8, 16), (2, 8), (2, 16)}
    assert all(values["head_dim"] == 16 for values in drawn if values["codebook_ratio"] >= 4)
    assert all(1e-3 <= values["quantization_weight"] <= 1 and 0 <= values["margin"] <= 0.5 for values in drawn)
    assert {values["update_interval"] for values in drawn} <= set(range(1, 11))
    assert len({values["margin"] for values in drawn}) > 20


def test_a_given_start_is_the_papers_setting_with_the_given_values():
    starts = ["paper", {"margin": 0.4}, {"codebook_ratio": 1, "head_dim": 16}]
    study, made = proposals(space({**RATIOS, **WEIGHT, **REST}, start_from=starts), 100, trials=4)
    assert [trial.user_attrs.get(START) for trial in study.trials] == ["paper", "given", "given", None]
    paper = {"codebook_ratio": 2, "head_dim": 8, "quantization_weight": 0.1, "margin": 0.2, "update_interval": 5}
    assert [values for values, _ in made[:3]] == [paper, {**paper, "margin": 0.4}, {**paper, **starts[2]}]


def test_a_given_start_has_the_head_dim_that_its_own_codebook_needs():
    starts = ["paper", {"codebook_ratio": 8}]  # M = 800 does not fit the paper's d = 8 of M = 200
    _, made = proposals(space({**RATIOS, **REST}, start_from=starts), 100, trials=2)
    assert (made[1][1].codebook_size, made[1][1].head_dim, made[1][1].margin) == (800, 16, 0.2)


def test_without_a_start_the_first_trial_is_drawn():
    study, _ = proposals(space({**RATIOS, **REST}, start_from=[]), 100, trials=1)
    assert START not in study.trials[0].user_attrs


def test_a_grid_proposes_every_cell_once_in_order():
    search = {
        "method": {"grid": ["crh", "crh_m", "crh_u"]},
        "bits": {"grid": [16, 32, 64]},
        "margin": {"grid": [0, 0.2]},
    }
    study, made = proposals(space(search), 196, trials=18)
    every = itertools.product(["crh", "crh_m", "crh_u"], [16, 32, 64], [0, 0.2])
    assert [tuple(values.values()) for values, _ in made] == list(every)
    assert {trial.user_attrs[START] for trial in study.trials} == {"cell"}
    assert [trial.head_dim for values, trial in made if values["method"] == "crh_m"] == [16, 16, 32, 32, 64, 64]
    assert [trial.reassignment for values, trial in made if values["method"] == "crh_u"] == ["none"] * 6


def test_a_grid_of_head_dims_proposes_every_cell():
    search = {"codebook_ratio": {"grid": [1, 2, 4]}, "head_dim": {"grid": [16, 32, 64]}}
    _, made = proposals(space(search, bits=64), 196, trials=9)
    expected = list(itertools.product([196, 392, 784], [16, 32, 64]))
    assert [(trial.codebook_size, trial.head_dim) for _, trial in made] == expected


def test_a_head_dim_is_named_by_what_it_is_drawn_from():
    assert head_dim_name([8, 16]) != head_dim_name([16])
    assert head_dim_name([1, 16]) != head_dim_name([11, 6])
    study, _ = proposals(space(RATIOS), 100, trials=30)
    names = {name for trial in study.trials for name in trial.params if name.startswith("head_dim")}
    assert len(names) == 1  # of M = 100 and 200; M = 400 and 800 leave no choice at 16 bits


@pytest.mark.parametrize(("multi_label", "weight"), [(False, 0.1), (True, 0.0)])
def test_paper_values_are_of_the_searched_settings_only(multi_label, weight):
    values = paper_values(space({**RATIOS, **WEIGHT}), 196, multi_label)
    assert values == {"codebook_ratio": 2, "head_dim": 16, "quantization_weight": weight}


def test_the_built_in_search_starts_with_the_paper():
    built_in = read_search(Path(__file__).parents[2] / "search_spaces" / "digit_pairs.yaml")
    study, made = proposals(built_in, 100, trials=30)
    first = made[0][1]
    assert study.trials[0].user_attrs[START] == "paper"
    assert (first.codebook_size, first.head_dim, first.quantization_weight) == (200, 8, 0.1)
    assert all(trial.codebook_size <= 2**trial.head_dim for _, trial in made)


def test_the_values_of_a_trial_of_all_codewords_are_those_it_was_drawn_with():
    full = space({"codebook_ratio": {"choice": [1, 2, "full"]}, "head_dim": {"feasible": True}}, 8)
    drawn = {"codebook_ratio": "full", "head_dim": 8}
    assert values_of(full, full.trial_settings(drawn, 0).resolve(100, False), 100) == drawn
