"""The replay of searches on a table decides as the product does, and what it says of a table is right."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from benchmarks.search_replay import HALVING, Strategy, confirm, halved, replay
from benchmarks.search_table import Table, shipped, variances
from crh_tune.settings.course import AshaSettings, SchedulerSettings
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
