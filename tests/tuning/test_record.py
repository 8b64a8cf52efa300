"""What a search's folder holds, and what a searcher makes of a study that was left."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from mlflow import MlflowClient

from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import BudgetSettings, SearchSettings
from crh_tune.settings.trial import ValidationSettings
from crh_tune.training.checkpoints import CheckpointError, keep, load, newest, save
from crh_tune.training.opening import open_split
from crh_tune.tuning.proposals import enqueue
from crh_tune.tuning.record import (
    Outcome,
    find_folder,
    new_folder,
    read_outcomes,
    read_settings,
    same_splits,
    write_outcome,
)
from crh_tune.tuning.runs import OUT_OF_TIME, Place, RunEvents
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.study import prepare
from crh_tune.tuning.tracking import Tracker, default_tracking_uri

SETTINGS = SearchSettings.model_validate(
    {
        "name": "left",
        "dataset": {"name": "digits"},
        "trial": {"bits": 16},
        "search": {"margin": {"uniform": [0.0, 0.5]}, "codebook_ratio": {"choice": [1, 2]}},
        "budget": {"trials": 4},
    }
)


def searcher(study: optuna.Study) -> OptunaSearcher:
    return OptunaSearcher(study, SETTINGS, 10, False, 4)


def handed_out(of: OptunaSearcher) -> list[dict]:
    given = []
    while (suggested := of.suggest("any")) != "FINISHED":
        given.append(suggested["run"])
    return given


def ended(run: dict, **changes) -> Outcome:
    return Outcome(run["name"], run["settings"], run["start"], **{"status": "complete", **changes})


def test_running_trials_are_handed_out_again_as_they_were_and_the_budget_is_what_was_left():
    study = optuna.create_study(direction="maximize")
    enqueue(study, SETTINGS, 10, False)
    first = searcher(study)
    runs = [first.suggest("any")["run"] for _ in range(3)]
    first.tell(ended(runs[0], metrics={"epoch": 9.0, "val/map": 0.5}))
    study.ask()  # killed before it had drawn anything
    enqueue(study, SETTINGS, 10, False)
    again = handed_out(searcher(study))
    assert again[:2] == runs[1:]
    assert [run["name"] for run in again] == ["trial-0001", "trial-0002", "trial-0003"]
    assert "margin" in again[2]["settings"]["trial"]
    assert sum("start" in trial.user_attrs for trial in study.trials) == 1


def test_an_outcome_that_the_study_was_not_told_is_told_once():
    study = optuna.create_study(direction="maximize")
    run = searcher(study).suggest("any")["run"]
    outcome = ended(run, metrics={"epoch": 9.0, "val/map": 0.5})
    for _ in range(2):
        resumed = searcher(study)
        resumed.tell(outcome)
    assert study.trials[0].state.name == "COMPLETE"
    assert study.trials[0].value == 0.5


def test_a_search_is_found_again_with_its_settings_and_outcomes(tmp_path: Path):
    folder = new_folder(tmp_path, SETTINGS)
    assert folder.name == "left-001"
    assert new_folder(tmp_path, SETTINGS).name == "left-002"
    assert find_folder(tmp_path, "left-001") == folder
    assert read_settings(folder) == SETTINGS
    outcome = Outcome("trial-0000", {"a": 1}, "paper", "failed", {"epoch": 1.0}, None, "why")
    write_outcome(folder, outcome)
    assert read_outcomes(folder) == {"trial-0000": outcome}
    with pytest.raises(SettingsError, match=r"no search 'left-003' .*left-001, left-002"):
        find_folder(tmp_path, "left-003")
    (folder / "search.json").write_text(json.dumps(SETTINGS.model_dump(mode="json"))[:50])
    with pytest.raises(SettingsError, match=r"search\.json: not readable"):
        read_settings(folder)


def test_a_search_of_before_there_was_a_most_of_validation_queries_is_still_read(tmp_path: Path):
    folder = new_folder(tmp_path, SETTINGS)
    content = json.loads((folder / "search.json").read_text())
    assert content["validation"].pop("queries") == 10_000
    (folder / "search.json").write_text(json.dumps(content))
    assert read_settings(folder) == SETTINGS


def test_search_and_trial_hold_the_same_queries_out_at_most_as_many_as_set():
    settings = SETTINGS.model_copy(update={"validation": ValidationSettings(queries=100)})
    first = prepare(settings, lambda line: None).first
    assert len(first.queries) == 100
    assert open_split(settings.trial_settings({}, 0), "search").fingerprint == first.fingerprint


def test_the_newest_readable_checkpoint_is_found_and_two_are_kept(tmp_path: Path):
    assert newest(tmp_path) is None
    for epoch in (8, 9, 10):
        keep(tmp_path, epoch, lambda folder, epoch=epoch: save({"epoch": epoch}, folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_000009", "checkpoint_000010"]
    path = tmp_path / "checkpoint_000010" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError):
        load(path.parent)
    assert newest(tmp_path) == tmp_path / "checkpoint_000009"
    path.unlink()
    assert newest(tmp_path) == tmp_path / "checkpoint_000009"


def test_hours_that_were_over_at_a_crash_end_the_trials_it_left_everywhere(tmp_path: Path):
    """A process that ran two trials was killed; the one that goes on finds that no time is left for them."""
    study = optuna.create_study(direction="maximize")
    begun = searcher(study)
    uri = default_tracking_uri(tmp_path)
    before = Tracker(uri, "left", tmp_path, tmp_path)
    before.start_run("left-001", "left-001")
    for run in (begun.suggest("any")["run"], begun.suggest("any")["run"]):
        before.start_run(f"left-001/{run['name']}", run["name"], "left-001")
    begun.suggest("any")  # handed out, and killed before it had started
    assert before.close() == 0

    tracker = Tracker(uri, "left", tmp_path, tmp_path)
    place = Place("left-001", tmp_path, "no-aggregator", tracker, {"search": "0"})
    place.stop.out_of_time = True
    said: list[Outcome] = []
    RunEvents(place, BudgetSettings(), said.append, searcher(study), in_groups=False).close()
    assert tracker.close() == 0
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 3
    assert {name: outcome.error for name, outcome in read_outcomes(tmp_path).items()} == {
        "trial-0000": OUT_OF_TIME,
        "trial-0001": OUT_OF_TIME,
    }
    assert len(said) == 2
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("left").experiment_id])
    statuses = {run.info.run_name: run.info.status for run in runs}
    assert statuses == {"left-001": "RUNNING", "trial-0000": "FAILED", "trial-0001": "FAILED"}


def test_a_search_does_not_go_on_with_other_data(tmp_path: Path):
    folder = new_folder(tmp_path, SETTINGS)
    same_splits(folder, {"search": "abc", "final": "def"})
    same_splits(folder, {"search": "abc", "final": "def"})
    with pytest.raises(SettingsError, match=r"^left-001 was begun on other data \(split abc, now xyz\): bring"):
        same_splits(folder, {"search": "xyz", "final": "def"})


def test_a_process_that_dies_before_its_trial_starts_fails_the_trial_and_not_the_search(tmp_path: Path):
    study = optuna.create_study(direction="maximize")
    begun = searcher(study)
    run = begun.suggest("any")["run"]
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "left", tmp_path, tmp_path)
    tracker.start_run("left-001", "left-001")
    place = Place("left-001", tmp_path, "no-aggregator", tracker, {"search": "0"})
    events = RunEvents(place, BudgetSettings(), lambda outcome: None, begun, in_groups=False)
    events.on_trial_error(1, [], SimpleNamespace(config={"run": run}, num_failures=4, error_file=None))
    assert tracker.close() == 0
    [outcome] = read_outcomes(tmp_path).values()
    assert (outcome.status, outcome.error) == ("failed", "its process died 4 times, the last time: without a word")
    assert study.trials[0].state.name == "FAIL"
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("left").experiment_id])
    assert {run.info.run_name: run.info.status for run in runs}["trial-0000"] == "FAILED"
