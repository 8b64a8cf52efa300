"""A search with two objectives: its front, what Optuna is told, and that it resumes as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from mlflow import MlflowClient

from crh_tune.last_lines import front_lines
from crh_tune.reporting import search_tables
from crh_tune.reporting.search_data import read_search
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.board import Board
from crh_tune.tuning.front import Point, front_of
from crh_tune.tuning.leaderboard import leaderboard
from crh_tune.tuning.proposals import enqueue
from crh_tune.tuning.record import COMPLETE, FAILED, FINISHED, PRUNED, Outcome, read_outcomes
from crh_tune.tuning.results import Candidate, SearchResult
from crh_tune.tuning.run import Run
from crh_tune.tuning.schedulers import Asha, scheduler_of
from crh_tune.tuning.searcher import OptunaSearcher, begun_trials, reported_by
from crh_tune.tuning.study import prepare, run_search, sampler_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
BASE = {
    "name": "pair",
    "dataset": {"name": "digit_pairs", "images_per_class": 5},
    "trial": {"epochs": 6, "batch_size": 128, "learning_rate": 2.0e-3, "evaluate_every": 2},
    "search": {"bits": {"choice": [12, 16, 24]}, "margin": {"uniform": [0.0, 0.5]}},
    "objective": ["val/map", "bits"],
    "scheduler": {"asha": {"grace_epochs": 2, "reduction": 3}},
    "confirm": {"top": 1, "seeds": 1},
    "budget": {"trials": 12},
}


def space(**changes: Any) -> SearchSettings:
    return SearchSettings.model_validate({**BASE, **changes})


def searcher_in(folder: Path, settings: SearchSettings, seed: int = 0) -> OptunaSearcher:
    """As a search in this folder begins, or is resumed."""
    study = optuna.create_study(
        study_name=folder.name, storage=f"sqlite:///{folder / 'optuna.db'}", sampler=sampler_of(settings, seed),
        directions=settings.objective.directions, load_if_exists=True,
    )  # fmt: skip
    enqueue(study, settings, 100, False)
    return OptunaSearcher(study, settings, 100, False, settings.trials)


def outcome_of(run: Run, status: str = COMPLETE, **metrics: float) -> Outcome:
    value = run.settings.trial.bits / 100 + (run.settings.trial.margin or 0.0)
    found = {"epoch": 6.0, "val/map": value} | {name.replace("_", "/", 1): each for name, each in metrics.items()}
    return Outcome(run.name, run.settings.model_dump(mode="json"), run.start, status, found)


def trial(number: int, value: float, bits: int, status: str = COMPLETE, **changes: float) -> Outcome:
    settings = space().trial_settings({"bits": bits, "margin": number / 100}, 0).resolve(100, False)
    metrics = {"epoch": 6.0, "val/map": value, **changes}
    return Outcome(f"trial-{number:04d}", settings.model_dump(mode="json"), "drawn", status, metrics)


def test_the_front_is_that_of_optuna_and_begins_with_the_best_first_objective():
    chance, settings = np.random.default_rng(0), space()
    for _ in range(20):
        trials = [trial(n, float(chance.integers(20)) / 20, int(chance.choice([12, 16, 24, 32]))) for n in range(12)]
        study = optuna.create_study(directions=["maximize", "minimize"])
        for each in trials:
            values = [each.metrics["val/map"], each.settings["trial"]["bits"]]
            study.add_trial(optuna.trial.create_trial(values=values))
        points = front_of(settings, trials)
        assert {point.trial for point in points} == {f"trial-{each.number:04d}" for each in study.best_trials}
        assert [point.value for point in points] == sorted((point.value for point in points), reverse=True)
        assert points[0].value == max(each.metrics["val/map"] for each in trials)


def test_only_complete_trials_with_both_values_are_on_the_front_and_a_metric_may_be_the_second():
    settings = space(objective=["val/map", "val/map_asymmetric"])
    trials = [
        trial(0, 0.5, 16, **{"val/map_asymmetric": 0.6}),
        trial(1, 0.4, 16, **{"val/map_asymmetric": 0.7}),
        trial(2, 0.4, 16, **{"val/map_asymmetric": 0.6}),
        trial(3, 0.9, 16),
        trial(4, 0.9, 16, PRUNED, **{"val/map_asymmetric": 0.9}),
    ]
    assert [point.trial for point in front_of(settings, trials)] == ["trial-0000", "trial-0001"]
    assert front_of(settings, trials)[1].told(settings) == "val/map 0.4000, val/map_asymmetric 0.7000"
    assert front_of(space(objective={"metric": "val/map"}), trials) == ()


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_optuna_is_told_both_values_and_a_resumed_search_knows_what_was_reported(tmp_path: Path, sampler: str):
    settings = space(sampler=sampler)
    searcher = searcher_in(tmp_path, settings)
    runs = []
    for number in range(8):
        run = searcher.propose()
        assert run is not None
        runs.append(run)
        searcher.report(run.name, {"epoch": 2.0, "val/map": 0.1 * number})
        if number == 7:
            break  # killed in the midst of it
        status = {3: PRUNED, 4: FAILED}.get(number, COMPLETE)
        searcher.tell(outcome_of(run, status))
    resumed = searcher_in(tmp_path, settings, seed=1)
    again = resumed.propose()
    assert again == runs[7]
    resumed.report(again.name, {"epoch": 2.0, "val/map": 0.9})  # it had reported that epoch
    resumed.report(again.name, {"epoch": 4.0, "val/map": 0.8})
    scheduler = scheduler_of(settings, resumed.study)
    assert isinstance(scheduler, Asha)
    [rung] = [found for epoch, found in scheduler._brackets[0]._rungs if epoch == 2]
    assert sorted(rung.values()) == pytest.approx([0.1 * number for number in range(8)])
    resumed.tell(outcome_of(again))
    rest = []
    for run in iter(resumed.propose, None):
        rest.append(run)
        resumed.tell(outcome_of(run))
    assert len(rest) == 4
    trials = dict(begun_trials(tmp_path, settings))
    for run in (*runs[:3], *rest):
        bits = run.settings.trial.bits
        assert trials[run.name].values == pytest.approx([outcome_of(run).metrics["val/map"], bits])
    assert [trials[run.name].state.name for run in runs[3:5]] == ["PRUNED", "FAIL"]
    assert reported_by(trials[runs[7].name]) == pytest.approx({2: 0.7, 4: 0.8})


def test_the_last_lines_and_the_leaderboard_have_the_front(tmp_path: Path):
    settings = space()
    trials = [trial(0, 0.5, 24), trial(1, 0.4, 12), trial(2, 0.3, 16)]
    best = Candidate("trial-0000", trials[0].settings, [0.5])
    result = SearchResult(
        "pair-001", tmp_path, "", best, best, trials[0], trials[0], FINISHED, front=front_of(settings, trials)
    )
    first, second = front_lines(settings, result)
    assert first.startswith("front            val/map 0.5000, 24 bits: ")
    assert second.startswith("                 val/map 0.4000, 12 bits: ")
    assert second.endswith("(trial-0001, one run)")
    board = Board(settings, tmp_path, 3, 100, 1, {each.name: each for each in trials})
    lines = leaderboard(board, "mlflow ui").splitlines()
    place = lines.index("Front, of single runs:")
    assert lines[place + 2].startswith("- val/map 0.5000, 24 bits: trial-0000, ")
    assert lines[place + 3].startswith("- val/map 0.4000, 12 bits: trial-0001, ")
    assert lines[place + 4] == ""


def test_a_search_with_two_objectives_keeps_and_tells_its_front(ray_session, tmp_path: Path):
    settings = space(budget={"trials": 5})
    result = run_search(settings, prepare(settings, print), tmp_path / "runs", print)
    outcomes = read_outcomes(result.folder)
    trials = [each for name, each in outcomes.items() if name.startswith("trial-")]
    assert result.front == front_of(settings, trials)
    assert len(trials) == 5
    assert result.front[0].value == max(each.metrics["val/map"] for each in trials if each.status == COMPLETE)
    assert result.best.trial in (result.front[0].trial, result.paper.trial)  # one finalist races the paper's setting
    client = MlflowClient(result.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("pair").experiment_id])
    [parent] = [run for run in runs if run.data.tags["crh_tune.run"] == result.search_id]
    assert "Front, of single runs:" in parent.data.tags["mlflow.note.content"]
    data = read_search(result.folder)
    assert list(search_tables.front(data)["trial"]) == [point.trial for point in result.front]
    for each in data.trials:
        assert each.value == pytest.approx(outcomes[each.name].metrics["val/map"])


def test_a_point_is_told_with_its_bits():
    assert Point("t", {}, 0.5, 16.0).told(space()) == "val/map 0.5000, 16 bits"
