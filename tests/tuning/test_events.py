"""What becomes of runs: that make progress or none, that have no time left."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from ray.tune.experiment import Trial

from crh_tune.settings.trial import TrialSettings
from crh_tune.training.loop import PREPARED
from crh_tune.tuning import events as events_module
from crh_tune.tuning.events import OUT_OF_TIME, RunEvents
from crh_tune.tuning.record import read_outcomes
from crh_tune.tuning.run import Run
from crh_tune.tuning.worker import RESTARTS

SETTINGS = TrialSettings.model_validate({"dataset": {"name": "digits"}, "trial": {"bits": 16}})


def place_in(folder: Path) -> Any:
    stop = SimpleNamespace(interrupted=False)
    return SimpleNamespace(
        folder=folder, tracker=MagicMock(), key=str, search_id="s", stop=stop, board=None, pictures=None, searched=()
    )


def test_a_trial_that_learns_its_first_centres_makes_progress_and_one_that_says_nothing_hangs(tmp_path, monkeypatch):
    ended: list[object] = []
    now = [0.0]
    monkeypatch.setattr(events_module.ray, "kill", ended.append)
    monkeypatch.setattr(events_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stage = SimpleNamespace(out_of_time=False, reported=MagicMock(), told=MagicMock())
    events = RunEvents(place_in(tmp_path), 10, False, lambda: stage, MagicMock())
    run = Run("trial-0000", SETTINGS, "search", "1", "search", "drawn")
    actor = SimpleNamespace(ray_actor="its process")
    trial = SimpleNamespace(config={"run": run}, status=Trial.RUNNING, temporary_state=actor, num_failures=2)
    events.on_trial_start(0, [trial], trial)
    for epoch in (1, 2):
        now[0] += 500
        events.on_trial_result(0, [trial], trial, {"epoch": 0.0, PREPARED: float(epoch)})
        events.on_step_begin(0, [trial])
    assert ended == []
    assert trial.max_failures == 2 + RESTARTS
    assert (events.outcomes["trial-0000"].metrics, events.outcomes["trial-0000"].status) == ({}, "")
    now[0] += 601
    events.on_step_begin(0, [trial])
    assert ended == ["its process"]
    events.on_trial_error(0, [trial], trial)
    [outcome] = read_outcomes(tmp_path).values()
    assert (outcome.status, outcome.error) == ("failed", "no progress for 10 minutes")
    stage.told.assert_called_once_with(outcome)


def test_a_run_that_no_time_is_left_for_is_ended_with_what_it_had(tmp_path, monkeypatch):
    ended: list[object] = []
    monkeypatch.setattr(events_module.ray, "kill", ended.append)
    stage = SimpleNamespace(out_of_time=False, reported=MagicMock(), told=MagicMock())
    events = RunEvents(place_in(tmp_path), 10, False, lambda: stage, MagicMock())
    actor = SimpleNamespace(ray_actor="its process")
    runs = [Run(f"trial-000{number}", SETTINGS, "search", "1", "search", "drawn") for number in range(2)]
    trials = [
        SimpleNamespace(config={"run": run}, status=Trial.RUNNING, temporary_state=actor, num_failures=0)
        for run in runs
    ]
    for trial in trials:
        events.on_trial_start(0, trials, trial)
    events.on_trial_result(0, trials, trials[0], {"epoch": 3, "val/map": 0.5})
    events.on_step_begin(0, trials)
    assert ended == []
    stage.out_of_time = True
    for _ in range(2):
        events.on_step_begin(0, trials)
    assert ended == ["its process"] * 2
    for trial in trials:
        assert trial.max_failures == 0
        events.on_trial_error(0, trials, trial)
    found = {name: (outcome.status, outcome.error) for name, outcome in read_outcomes(tmp_path).items()}
    assert found == {"trial-0000": ("pruned", OUT_OF_TIME), "trial-0001": ("failed", OUT_OF_TIME)}
