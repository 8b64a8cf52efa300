"""What a searcher hands out: every setting once, until the budget is spent or nothing new is left."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.proposals import enqueue, same
from crh_tune.tuning.record import COMPLETE, Outcome, write_outcome
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.study import check_untried, sampler_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
optuna.logging.set_verbosity(optuna.logging.ERROR)
CHOICES = {"margin": {"choice": [0.1, 0.2, 0.3]}, "update_interval": {"choice": [1, 5, 10]}}


def space(search: dict[str, Any], trials: int = 24, **changes: Any) -> SearchSettings:
    content = {"name": "s", "dataset": {"name": "digit_pairs"}, "trial": {"bits": 16}, "search": search}
    return SearchSettings.model_validate({**content, "budget": {"trials": trials}, **changes})


def searcher(settings: SearchSettings, storage: str | None = None, seed: int = 0) -> OptunaSearcher:
    sampler = sampler_of(settings, seed)
    study = optuna.create_study(
        study_name="s", storage=storage, sampler=sampler, direction="maximize", load_if_exists=True
    )
    enqueue(study, settings, 100, False)
    return OptunaSearcher(study, settings, 100, False, settings.trials)


def handed_out(source: OptunaSearcher, limit: int = 100) -> list[dict[str, Any]]:
    """The settings of all its trials, each told a value that is the higher, the smaller margin and interval are."""
    made = []
    for run in itertools.islice(iter(source.propose, None), limit):
        settings = run.settings.model_dump(mode="json")
        value = 1 - (run.settings.trial.margin or 0.0) - run.settings.trial.update_interval / 100
        source.tell(Outcome(run.name, settings, run.start, COMPLETE, {"val/map": value, "epoch": 1.0}))
        made.append(settings)
    return made


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_space_of_nine_settings_is_tried_once_through_and_then_over(seed):
    source = searcher(space(CHOICES), seed=seed)
    made = handed_out(source)
    expected = set(itertools.product((0.1, 0.2, 0.3), (1, 5, 10)))
    assert source.total == len(made) == 9
    assert {(each["trial"]["margin"], each["trial"]["update_interval"]) for each in made} == expected
    assert not source.has_work


def test_each_sampler_proposes_the_same_again_and_those_with_a_model_find_the_better_half():
    """The value falls with the margin; after its first trials a model asks for small ones, chance does not."""
    wide = {"margin": {"uniform": [0.0, 0.5]}, "codebook_ratio": {"choice": [1, 2]}, "head_dim": {"feasible": True}}
    late: dict[str, float] = {}
    for name in ("tpe", "gp", "random"):
        settings = space(wide, trials=16, sampler=name)
        made = handed_out(searcher(settings))
        assert made == handed_out(searcher(settings))
        late[name] = sum(each["trial"]["margin"] for each in made[11:]) / 5
    assert late["tpe"] < 0.2 < late["random"]
    assert late["gp"] < 0.2


def test_nothing_is_added_to_a_search_that_has_tried_its_whole_space(tmp_path: Path):
    settings = space(CHOICES)
    split = SimpleNamespace(classes=100, multi_label=False)
    for number, content in enumerate(handed_out(searcher(settings))):
        check_untried(settings, tmp_path, split)
        write_outcome(tmp_path, Outcome(f"trial-{number:04d}", content, "drawn", COMPLETE))
    with pytest.raises(SettingsError, match="has tried all 9 settings of its space: nothing to add"):
        check_untried(settings, tmp_path, split)
    check_untried(space({**CHOICES, "scale": {"uniform": [1, 9]}}), tmp_path, split)


def test_cma_es_proposes_the_same_again_and_moves_to_small_margins_and_intervals():
    """The value falls with both. In a file that is opened again it goes on from the generations before."""
    ranges = {"margin": {"uniform": [0.0, 0.5]}, "update_interval": {"int": [1, 40]}, "head_dim": {"feasible": True}}
    settings = space(ranges, trials=40, sampler="cmaes")
    made = handed_out(searcher(settings))
    assert made == handed_out(searcher(settings))
    late = [each["trial"] for each in made[28:]]
    assert sum(trial["margin"] + trial["update_interval"] / 100 for trial in late) / len(late) < 0.25
    assert {trial["head_dim"] for trial in late} == {8, 16}


def test_cma_es_goes_on_from_its_generations_where_a_search_is_resumed(tmp_path: Path):
    ranges = {"margin": {"uniform": [0.0, 0.5]}, "quantization_weight": {"uniform": [0.0, 1.0]}}
    settings = space(ranges, trials=80, sampler="cmaes")
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    begun = handed_out(searcher(settings, storage), 70)
    late = [each["trial"]["margin"] for each in handed_out(searcher(settings, storage, seed=1))]
    assert len(begun) + len(late) == 80
    assert sum(late) / 10 < 0.08  # a new beginning would draw around .25


def test_a_budget_below_the_number_of_settings_is_spent_on_different_ones():
    made = handed_out(searcher(space({"update_interval": {"int": [1, 40]}}, trials=30)))
    assert len(made) == len({same(each) for each in made}) == 30


def test_a_start_point_outside_the_space_is_one_setting_more():
    """The paper's margin is .2."""
    source = searcher(space({"margin": {"choice": [0.1, 0.3]}}))
    assert next(each["trial"]["margin"] for each in handed_out(source)) == 0.2
    assert source.total == 3


def test_trials_are_short_where_the_scheduler_says_so():
    for scheduler, until in (("short", 10), ({"short": {"epochs": 3}}, 3), ("asha", None), ("none", None)):
        run = searcher(space(CHOICES, scheduler=scheduler)).propose()
        assert run is not None
        assert run.until == until


def test_a_start_point_named_twice_is_tried_once():
    made = handed_out(searcher(space(CHOICES, start_from=["paper", {"margin": 0.2}, {"margin": 0.1}])))
    assert len(made) == len({same(each) for each in made}) == 9


def test_a_method_that_uses_nothing_searched_is_tried_once_beside_one_that_does():
    settings = space({"method": {"choice": ["crh", "hashnet"]}, "margin": {"uniform": [0.0, 0.5]}}, trials=30)
    made = handed_out(searcher(settings))
    assert len(made) == 30
    assert [each["method"] for each in made].count("hashnet") == 1


def test_head_dims_that_m_does_not_allow_are_no_settings():
    source = searcher(space({"codebook_ratio": {"choice": [1, 2, 4]}, "head_dim": {"feasible": True}}))
    made = handed_out(source)
    pairs = {(each["trial"]["codebook_size"], each["trial"]["head_dim"]) for each in made}
    assert pairs == {(100, 8), (100, 16), (200, 8), (200, 16), (400, 16)}
    assert len(made) == source.total == 5


def test_a_search_that_is_resumed_tries_what_is_left(tmp_path: Path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    first = searcher(space(CHOICES), storage)
    made = handed_out(first, limit=5)
    interrupted = first.propose()
    assert interrupted is not None
    again = searcher(space(CHOICES), storage, seed=1)
    rest = handed_out(again)
    assert rest[0] == interrupted.settings.model_dump(mode="json")
    assert len({same(each) for each in [*made, *rest]}) == len(made) + len(rest) == 9


def test_a_grid_has_no_scheduler_unless_it_names_one():
    grid = {"method": {"grid": ["crh", "crh_u"]}}
    assert space(grid).scheduler.asha is None
    assert space(grid, scheduler={"asha": {}}).scheduler.asha is not None
    assert space(CHOICES).scheduler.asha is not None
    kept = SearchSettings.model_validate(space(grid).model_dump(mode="json"))
    assert kept.scheduler.asha is None
