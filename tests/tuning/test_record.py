"""What a search's folder holds, and what a searcher makes of a study that was left."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from crh_tune.settings.base import SettingsError
from crh_tune.settings.distribution import Distribution
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import ValidationSettings
from crh_tune.training.checkpoints import CheckpointError, Header, keep, load, newest, save
from crh_tune.training.opening import open_split
from crh_tune.tuning.proposals import enqueue
from crh_tune.tuning.record import (
    Outcome,
    earlier_ends,
    find_folder,
    go_on_with,
    new_folder,
    read_outcomes,
    read_settings,
    same_splits,
    with_more,
    write_outcome,
    write_record,
)
from crh_tune.tuning.run import Run
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.study import prepare

PARTS: dict[str, dict[str, object]] = {"model": {}, "optimizer": {}, "schedule": {}}
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


def ended(run: Run | None, **changes) -> Outcome:
    assert run is not None
    return Outcome(run.name, run.settings.model_dump(mode="json"), run.start, **{"status": "complete", **changes})


def test_running_trials_are_handed_out_again_as_they_were_and_the_budget_is_what_was_left():
    study = optuna.create_study(direction="maximize")
    enqueue(study, SETTINGS, 10, False)
    first = searcher(study)
    runs = [first.propose() for _ in range(3)]
    first.tell(ended(runs[0], metrics={"epoch": 9.0, "val/map": 0.5}))
    study.ask()  # killed before it had drawn anything
    enqueue(study, SETTINGS, 10, False)
    again = list(iter(searcher(study).propose, None))
    assert again[:2] == runs[1:]
    assert [run.name for run in again] == ["trial-0001", "trial-0002", "trial-0003"]
    assert again[2].settings.trial.codebook_size in (10, 20)
    assert sum("start" in trial.user_attrs for trial in study.trials) == 1


def test_an_outcome_that_the_study_was_not_told_is_told_once():
    study = optuna.create_study(direction="maximize")
    run = searcher(study).propose()
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
    (folder / "outcomes" / "trial-0001.json").write_text('{"name": "trial-0001"}')
    with pytest.raises(SettingsError, match=r"trial-0001\.json: not as this version writes it: settings: is required"):
        read_outcomes(folder)
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
        keep(tmp_path, epoch, lambda folder, epoch=epoch: save(Header(settings={}, epoch=epoch), PARTS, folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_000009", "checkpoint_000010"]
    path = tmp_path / "checkpoint_000010" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError):
        load(path.parent)
    assert newest(tmp_path) == tmp_path / "checkpoint_000009"
    path.unlink()
    assert newest(tmp_path) == tmp_path / "checkpoint_000009"


def test_a_search_does_not_go_on_with_other_data(tmp_path: Path):
    folder = new_folder(tmp_path, SETTINGS)
    same_splits(folder, {"search": "abc", "final": "def"})
    same_splits(folder, {"search": "abc", "final": "def"})
    with pytest.raises(SettingsError, match=r"^left-001 was begun on other data \(split abc, now xyz\): bring"):
        same_splits(folder, {"search": "xyz", "final": "def"})


def ended_search(storage: Path, hours: float | None = None, used: float = 0.0, epochs: int | None = None) -> Path:
    budget = SETTINGS.budget.model_copy(update={"hours": hours, "epochs": epochs})
    settings = SETTINGS.model_copy(update={"budget": budget})
    folder = new_folder(storage, settings)
    for number in range(4):
        write_outcome(folder, Outcome(f"trial-{number:04d}", {}, "drawn", "complete", {"epoch": 10.0}))
    write_outcome(folder, Outcome("confirm-trial-0000-seed1", {}, "fixed", "complete", {"epoch": 10.0}))
    if used:
        (folder / "seconds_used").write_text(str(used * 3600))
    (folder / "summary.json").write_text("{}")
    return folder


def test_what_is_added_to_a_search_that_has_ended_comes_on_top_of_what_it_has_used(tmp_path: Path):
    folder = ended_search(tmp_path, hours=2, used=1.5)
    more = with_more(folder, 20, 3)
    assert (more.budget.trials, more.budget.hours, more.budget.epochs) == (24, 4.5, None)
    assert with_more(folder, 20, 3, 100).budget.epochs == 140
    assert read_settings(folder).budget.trials == 4
    go_on_with(folder, more)
    assert read_settings(folder) == more
    assert [path.name for path in folder.glob("summary*")] == ["summary-1.json"]
    (folder / "summary.json").write_text("{}")
    go_on_with(folder, more)
    assert earlier_ends(folder) == 2


def test_what_is_added_to_a_search_that_its_target_has_stopped_is_spent(tmp_path: Path):
    """Of 9 trials 4 were tried: 20 more are 24, without the target, which would stop them at once."""
    folder = ended_search(tmp_path, hours=2, used=1.5)
    settings = read_settings(folder)
    budget = settings.budget.model_copy(update={"trials": 9})
    go_on_with(folder, settings.model_copy(update={"target": "val/map >= 0.3", "budget": budget}))
    (folder / "summary.json").write_text("{}")
    more = with_more(folder, 20, None)
    assert (more.budget.trials, more.target) == (24, None)
    assert with_more(folder, None, 1).budget.trials == 9


@pytest.mark.parametrize(
    ("ended", "trials", "hours", "message"),
    [
        ({}, None, 1.0, "left-001 has used its 4 trials: add some with --trials"),
        ({"epochs": 40}, 3, None, "left-001 has used its 40 epochs: add some with --epochs"),
        ({"hours": 2, "used": 2.1}, 3, None, "left-001 has used its 2.0 hours: add some with --hours"),
    ],
)
def test_what_would_add_nothing_is_refused(tmp_path: Path, ended, trials, hours, message):
    with pytest.raises(SettingsError, match=f"^{message}$"):
        with_more(ended_search(tmp_path, **ended), trials, hours)


def test_a_grid_that_was_stopped_goes_on_with_its_cells_in_more_hours_or_epochs(tmp_path: Path):
    """However many trials its budget has, which a grid does not look at."""
    folder = ended_search(tmp_path)
    content = {**SETTINGS.model_dump(mode="json"), "search": {"margin": {"grid": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]}}}
    grid = SearchSettings.model_validate({**content, "target": "val/map >= 0.3"})
    write_record(folder / "search.json", grid)
    for more in (with_more(folder, None, 2), with_more(folder, None, None, 50)):
        assert (more.trials, more.target) == (6, None)
    left = r"^left-001 is a grid, which has 2 of its 6 cells left: add --hours or --epochs$"
    with pytest.raises(SettingsError, match=left):
        with_more(folder, 20, None)
    for number in (4, 5):
        write_outcome(folder, Outcome(f"trial-{number:04d}", {}, "cell", "complete", {"epoch": 10.0}))
    with pytest.raises(SettingsError, match=r"^left-001 is a grid, which has tried all its 6 cells: nothing to add$"):
        with_more(folder, None, 2)


def test_the_cells_that_a_stopped_grid_has_left_are_those_it_goes_on_with(tmp_path: Path):
    grid = SETTINGS.model_copy(update={"search": {"margin": Distribution.model_validate({"grid": [0.0, 0.1, 0.2]})}})
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'optuna.db'}", direction="maximize")
    enqueue(study, grid, 10, False)
    before = OptunaSearcher(study, grid, 10, False, grid.trials)
    run = before.propose()
    assert run is not None
    before.tell(Outcome(run.name, run.settings.model_dump(mode="json"), "cell", "complete", {"val/map": 0.5}))
    before.stop()
    rest = iter(OptunaSearcher(study, grid, 10, False, grid.trials).propose, None)
    assert [each.settings.trial.margin for each in rest] == [0.1, 0.2]


def test_nothing_is_added_to_a_search_that_has_not_ended(tmp_path: Path):
    folder = ended_search(tmp_path)
    (folder / "summary.json").unlink()
    with pytest.raises(SettingsError, match=r"^left-001 has not ended: resume it without adding to it"):
        with_more(folder, 3, None)
