"""The replay of searches on a table decides as the product does, and what it says of a table is right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from benchmarks import search_worth
from benchmarks.search_live import WORTH_SEEDS
from benchmarks.search_replay import HALVING, Strategy, confirm, halved, replay
from benchmarks.search_table import Table, shipped, split_of, variances
from crh_tune.data.splits import final_split
from crh_tune.settings.course import AshaSettings, SchedulerSettings
from crh_tune.settings.search import SearchSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import open_data
from crh_tune.training.workers import Workers
from crh_tune.tuning.record import SUMMARY_FILE, Outcome, new_folder, write_record
from crh_tune.tuning.results import Candidate, SearchResult
from crh_tune.tuning.run import Run
from crh_tune.tuning.schedulers import scheduler_of

EPOCHS = 40
SPACE = shipped(None).model_copy(update={"scheduler": SchedulerSettings(asha=AshaSettings())})


def made_table(settings: int = 30, seeds: int = 5) -> Table:
    """Curves that rise to worths of spread .05, with noise of .03 and .01 of each seed for all."""
    chance = np.random.default_rng(0)
    worths = chance.normal(0.7, 0.05, (settings, 1, 1)) + chance.normal(0, 0.01, (1, seeds, 1))
    rise = np.linspace(0.2, 1, EPOCHS)
    return Table(worths * rise + chance.normal(0, 0.03, (settings, seeds, EPOCHS)), chance.normal(size=(settings, 5)))


def test_halving_on_a_table_stops_the_trials_that_the_products_scheduler_stops():
    curves = made_table().curves[:, 0]
    scheduler = scheduler_of(SPACE, optuna.create_study())
    assert scheduler is not None
    expected = []
    for number, curve in enumerate(curves):
        run = Run(f"trial-{number:04d}", SPACE.trial_settings({}, 0), "search", "s", "search")
        trial = SimpleNamespace(trial_id=str(number), config={"run": run})
        scheduler.on_trial_add(None, trial)
        results = ({"epoch": epoch, "val/map": curve[epoch - 1]} for epoch in range(5, EPOCHS + 1, 5))
        stops = [each["epoch"] for each in results if scheduler.on_trial_result(None, trial, each) == "STOP"]
        expected.append(stops[0])  # at the last epoch at the latest
    assert halved(curves, HALVING, EPOCHS) == expected
    assert set(expected) == {5, 15, EPOCHS}


def test_what_a_table_says_of_spread_and_noise_is_what_it_was_made_of():
    worth, common, noise = variances(made_table(400, 40).final)
    assert (worth, common, noise) == pytest.approx((0.05, 0.01, 0.03), rel=0.15)


def test_a_race_on_a_table_ends_with_the_best_and_a_replay_is_the_same_again():
    final = np.array([[0.5, 0.5, 0.5], [0.52, 0.51, 0.52], [0.7, 0.71, 0.7]])
    assert confirm(final, [1, 2])[0] == 2
    assert confirm(final[[0, 1]] - [[0], [0.1]], [1])[0] == 0
    whole = replay(made_table(), Strategy("all to the end"), np.random.default_rng(3))
    assert whole.search_epochs == 24 * EPOCHS
    again = [replay(made_table(), HALVING, np.random.default_rng(3)) for _ in range(2)]
    assert again[0] == again[1]


def test_a_winner_is_judged_with_seeds_of_its_own_on_queries_seen_and_unseen(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A run that is asked the test queries during training ends with the same mAP on them."""
    chance = np.random.default_rng(0)
    labels = np.arange(120) % 6
    features = (chance.normal(size=(6, 16))[labels] + 0.8 * chance.normal(size=(120, 16))).astype(np.float32)
    test = {"test_features": features[::3] + 0.5, "test_labels": labels[::3]}
    np.savez(tmp_path / "e.npz", train_features=features, train_labels=labels, **test)
    content = {
        "name": "s",
        "dataset": {"name": "features", "path": str(tmp_path / "e.npz")},
        "search": {"margin": {"uniform": [0, 1]}},
    }
    settings = SearchSettings.model_validate({**content, "trial": {"bits": 8, "epochs": 2, "backbone": "mlp"}})
    split = split_of(settings)
    best, paper = (
        settings.trial_settings({"margin": margin}, 0).resolve(split.classes, False) for margin in (0.4, 0.2)
    )
    folder = new_folder(tmp_path, settings)
    candidates = [Candidate("t", each.model_dump(mode="json"), [0.5, 0.7]) for each in (best, paper)]
    ended = Outcome("final-best", {})
    write_record(folder / SUMMARY_FILE, SearchResult(folder.name, folder, "", *candidates, ended, ended, "finished"))
    search_worth.report([folder])
    row, mean = ([float(cell) for cell in line.split("|")[2:-1]] for line in capsys.readouterr().out.splitlines()[2:])
    assert row == mean
    unseen = replace(split, queries=final_split(open_data(settings.dataset, settings.trial)).queries)
    for place, each in ((0, best), (3, paper)):
        for column, asked in ((1, split), (2, unseen)):
            seeded = [each.model_copy(update={"trial": each.trial.model_copy(update={"seed": s})}) for s in WORTH_SEEDS]
            runs = [TrainingRun(one, asked, Workers(), solve_locally).train(lambda *_: None) for one in seeded]
            assert row[place + column] == pytest.approx(np.mean([run["val/map"] for run in runs]), abs=5e-5)
    assert row[6:] == pytest.approx([row[n] - row[3 + n] for n in range(3)], abs=1.1e-4)
    assert row[0] == row[3] == 0.6
