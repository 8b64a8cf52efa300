"""Trials that diverge, lose their process or hang, storage that is full, hours that are over: what the search does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from mlflow import MlflowClient
from optuna.exceptions import StorageInternalError

from benchmarks.soak import differences, processes_below
from crh_tune.errors import SearchFailed
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.training import checkpoints
from crh_tune.tuning import stopping, study
from crh_tune.tuning.events import Place, RunEvents
from crh_tune.tuning.record import Outcome, held, read_outcomes
from crh_tune.tuning.results import SearchResult
from crh_tune.tuning.stopping import Clock
from crh_tune.tuning.study import how_it_ended, prepare, run_search

SEARCH = "failing-001"
GRID = {"learning_rate": {"grid": [1.0e-3, 2.0e-3]}}
SPACE = {
    "name": "failing",
    "dataset": {"name": "digits"},
    "trial": {"bits": 16, "epochs": 20, "batch_size": 128, "learning_rate": 2.0e-3},
    "search": {"learning_rate": {"grid": [1.0e30, 1.0e-3, 2.0e-3, 3.0e-3]}},
    "scheduler": {},
    "start_from": [],
    "confirm": {"top": 1, "seeds": 1},
    "budget": {"concurrent": 1},
}


def search(storage: Path, **changes) -> SearchResult:
    settings = SearchSettings.model_validate({**SPACE, **changes})
    return run_search(settings, prepare(settings, print), storage, lambda line: None)


def send_once_it_trains(folder: Path, trial: str, number: signal.Signals) -> None:
    """Send a signal to the trial's process, once the trial has its second checkpoint."""
    deadline = time.monotonic() + 600
    while len(list((folder / "runs" / trial).glob("checkpoint_*/checkpoint.pt"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    [process] = [pid for pid, title in processes_below(os.getpid()).items() if title.startswith("ray::ImplicitFunc")]
    os.kill(process, number)


@pytest.mark.long
def test_trials_that_diverge_die_or_hang_fail_alone_and_the_search_goes_on(ray_session, tmp_path: Path):
    """One trial diverges, the process of one is killed (it goes on), the process of one freezes."""
    folder = tmp_path / "failing-001"
    dangers = [("trial-0001", signal.SIGKILL), ("trial-0002", signal.SIGSTOP)]
    threads = [threading.Thread(target=send_once_it_trains, args=(folder, *danger)) for danger in dangers]
    for thread in threads:
        thread.start()
    epochs = {**SPACE["trial"], "epochs": 60}  # enough that each still trains when its signal comes
    result = search(tmp_path, trial=epochs, budget={"concurrent": 1, "hang_minutes": 2})
    for thread in threads:
        thread.join()
    outcomes = read_outcomes(folder)
    statuses = [outcomes[f"trial-{number:04d}"].status for number in range(4)]
    assert statuses == ["failed", "complete", "failed", "complete"]
    assert differences(outcomes["trial-0001"]) == []
    assert outcomes["trial-0000"].error.startswith("TrainingDiverged: loss is ")
    assert outcomes["trial-0002"].error == "no progress for 2 minutes"
    assert result.ended == "finished"
    assert result.best.trial in ("trial-0001", "trial-0003")

    kept = optuna.load_study(study_name="failing-001", storage=f"sqlite:///{folder / 'optuna.db'}")
    assert [trial.state.name for trial in kept.trials] == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("failing").experiment_id])
    told = {run.data.tags["crh_tune.run"]: (run.info.status, run.data.tags.get("crh_tune.error")) for run in runs}
    assert len(told) == len(runs)
    for number in (0, 2):
        assert told[f"trial-{number:04d}"] == ("FAILED", outcomes[f"trial-{number:04d}"].error)
    assert told["trial-0001"] == ("FINISHED", None)
    assert not [title for title in processes_below(os.getpid()).values() if title.startswith("ray::ImplicitFunc.train")]


def test_a_search_whose_first_trials_all_fail_stops_early_with_the_reason(ray_session, tmp_path: Path):
    diverging = {"learning_rate": {"grid": [10.0**n for n in range(20, 32)]}}
    with pytest.raises(SearchFailed, match=r"^all of 5 trials failed, the last one: TrainingDiverged: loss is "):
        search(tmp_path, search=diverging)
    outcomes = read_outcomes(tmp_path / "failing-001")
    assert len(outcomes) == 5


def test_hours_that_are_over_stop_the_trials_that_run_and_everyone_is_told(
    ray_session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The hour is over as soon as the driver was told of the trial's second epoch, however fast the machine is."""
    folder, told = tmp_path / "failing-001", []
    reported = RunEvents.on_trial_result

    def note(*given, **info) -> None:
        reported(*given, **info)
        told.append(given)

    def monotonic() -> float:
        return time.monotonic() + 3600 * (len(told) >= 2)

    monkeypatch.setattr(RunEvents, "on_trial_result", note)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=monotonic))
    long = {**SPACE["trial"], "epochs": 100_000}
    with pytest.raises(SearchFailed, match="none of 1 trials came to its end: stopped by budget"):
        search(tmp_path, trial=long, budget={"concurrent": 1, "hours": 1}, search=GRID)
    [outcome] = read_outcomes(folder).values()
    assert outcome.status == "pruned"
    assert outcome.metrics["epoch"] > 1
    kept = optuna.load_study(study_name="failing-001", storage=f"sqlite:///{folder / 'optuna.db'}")
    assert [trial.state.name for trial in kept.trials[:2]] == ["PRUNED", "WAITING"]
    assert kept.trials[0].intermediate_values
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("failing").experiment_id])
    assert {run.data.tags["crh_tune.run"]: run.info.status for run in runs} == {
        "failing-001": "FAILED",
        "trial-0000": "FINISHED",
    }
    assert Clock(folder / "seconds_used", 3600).over()  # what was used before counts when it is resumed


def test_a_result_says_whether_the_hours_ended_it():
    settings = SearchSettings.model_validate({**SPACE, "budget": {"hours": 0.5}})
    whole, cut = Outcome("trial-0000", {}), Outcome("trial-0001", {}, error="stopped by budget.hours")
    assert how_it_ended(settings, [whole], 1) == "finished"
    said = "stopped by budget: 0.5 hours were over after 2 of 24 trials"
    assert how_it_ended(settings, [whole, cut], 24) == said
    assert how_it_ended(settings, [whole, whole], 24) == said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the databases of a search, and not for its checkpoints."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a full disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_fails_the_trials_and_stops_the_search_with_the_reason(ray_session, small_disk: Path):
    rates = {"learning_rate": {"grid": [n * 1e-3 for n in range(1, 9)]}}
    with pytest.raises(SearchFailed, match="all of 5 trials failed, the last one: OSError: "):
        search(small_disk, search=rates)
    assert all("checkpoint could not be written" in each.error for each in read_outcomes(small_disk / SEARCH).values())
    for path in small_disk.glob("*/runs/*/checkpoint_*/checkpoint.pt"):  # there was room for one
        checkpoints.load(path.parent)
    assert list(small_disk.glob("*/runs/*/checkpoint_*/.*")) == []


def test_a_folder_that_is_gone_stops_the_search_with_the_reason(ray_session, tmp_path: Path):
    def vanish() -> None:
        while not list(tmp_path.glob("*/runs/*/checkpoint_*/checkpoint.pt")):
            time.sleep(0.02)
        (tmp_path / SEARCH).rename(tmp_path / "elsewhere")

    threading.Thread(target=vanish, daemon=True).start()
    long = {**SPACE["trial"], "epochs": 100_000}
    with pytest.raises(SearchFailed, match=r"No such file or directory: .*failing-001"):
        search(tmp_path, trial=long, search=GRID)


@pytest.mark.parametrize("error", [StorageInternalError("attempt to write a readonly database"), SearchFailed("none")])
def test_a_folder_that_is_gone_and_was_made_anew_is_gone(ray_session, tmp_path: Path, monkeypatch, error: Exception):
    """Tune makes the folder again for what it writes; what it had held is elsewhere all the same."""

    def vanish(settings: SearchSettings, place: Place, *rest: object) -> SearchResult:
        place.folder.rename(tmp_path / "elsewhere")
        (place.folder / "tune").mkdir(parents=True)
        raise error

    monkeypatch.setattr(study, "_search", vanish)
    with pytest.raises(SearchFailed, match=r"^No such file or directory: .*failing-001$"):
        search(tmp_path)


def test_two_processes_never_run_the_same_search(tmp_path: Path):
    with held(tmp_path), pytest.raises(SettingsError, match="is being run by another process"), held(tmp_path):
        pass
    with held(tmp_path):
        pass


WAITING = """
import signal, sys, time
from crh_tune.tuning.stopping import Stop
stop = Stop()
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with stop.on_signals(), stop.while_running():
    print("up", flush=True)
    while not stop.stop_all():
        time.sleep(0.01)
    print("stopping", flush=True)
    while True:
        time.sleep(1)
"""


BOTH = """
import os, signal
from crh_tune.tuning.stopping import Stop
stop, both = Stop(), (signal.SIGTERM, signal.SIGHUP)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with stop.on_signals(), stop.in_order():
    signal.pthread_sigmask(signal.SIG_BLOCK, both)
    for number in both:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    print("in order" if stop.interrupted else "not interrupted")
"""


def test_sigterm_and_sighup_at_once_are_one_interruption():
    """As at a logout. Python calls the handlers in the order of the signals' numbers."""
    done = subprocess.run([sys.executable, "-c", BOTH], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "in order\n")
    assert done.stderr == "interrupted: ending in order; once more ends it at once\n"


def test_a_second_interruption_ends_the_process_at_once():
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGHUP)  # which systemd sends with the first one
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130  # and it would have gone on for ever
