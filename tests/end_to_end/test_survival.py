"""A search whose processes are killed and interrupted, and whose files are damaged, ends as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient

from benchmarks.soak import SPACE, Driver, Report, soak
from crh_tune.cli import main
from crh_tune.training.checkpoints import CHECKPOINT_FILE
from crh_tune.tuning.board import Board
from crh_tune.tuning.leaderboard import leaderboard
from crh_tune.tuning.record import read_outcomes, read_settings
from crh_tune.tuning.results import read_result

PLAN = [("driver", 2), ("trial", 2), ("aggregator", 2), ("trial", 2), ("interrupted", 18)]
"""The first trial, of 16 epochs, is in its beginning at the first death, and has ended at the last."""
TRIALS = 5
MARK = 1e6
"""Seconds, added to those of a checkpoint: what goes on from it has them."""


class Survived:
    """A search under PLAN; before each resumption its files are damaged as a crash could have left them."""

    def __init__(self, storage: Path) -> None:
        self.storage, self.folder = storage, storage / "soak-001"
        self.before: list[dict[str, int]] = []
        """The outcomes that were there at each death, with the time they were written."""
        self.cut: list[Path] = []
        trial = {**SPACE["trial"], "epochs": 16, "evaluate_every": 1}
        asha = {"asha": {"grace_epochs": 6, "reduction": 2}}
        space = {**SPACE, "trial": trial, "scheduler": asha, "budget": {"trials": TRIALS, "concurrent": 1}}
        self.report: Report = soak(PLAN, space, storage, self.damage)

    def damage(self, folder: Path) -> None:
        self.before.append({path.name: path.stat().st_mtime_ns for path in (folder / "outcomes").glob("*.json")})
        for run in sorted((folder / "runs").iterdir()):
            files = sorted(run.glob(f"checkpoint_*/{CHECKPOINT_FILE}"))
            if f"{run.name}.json" not in self.before[-1] and len(files) >= 2:
                for between in files[1:-1]:  # it was to be removed as the driver died
                    shutil.rmtree(between.parent)
                older, newest = files[0], files[-1]
                newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
                content = torch.load(older, weights_only=True)
                content["seconds"] = {phase: seconds + MARK for phase, seconds in content["seconds"].items()}
                torch.save(content, older)
                self.cut.append(newest)
        with (folder / "mlflow_outbox.jsonl").open("a") as outbox:
            outbox.write('["metrics", "soak-001/trial-00')
        (folder / "mlflow_sent").write_text('{"sent": 1')


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Survived:
    return Survived(tmp_path_factory.mktemp("survival") / "runs")


def test_nothing_is_lost_and_nothing_is_there_twice(survived: Survived):
    """Every trial has the metrics of the undisturbed one, to the last bit; Optuna and MLflow know each of them once."""
    print(survived.report)
    assert survived.report.kills.total() == len(PLAN)
    assert survived.report.verdict == "lost: 0, duplicated: 0", survived.report


def test_mlflow_has_one_leaderboard_one_of_each_figure_and_one_champion(survived: Survived):
    client = MlflowClient(f"sqlite:///{survived.storage / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("soak").experiment_id])
    [parent] = [run for run in runs if run.data.tags["crh_tune.stage"] == "parent"]
    result, said = read_result(survived.folder), parent.data.tags["mlflow.note.content"]
    assert said.startswith(f"**★ {result.best.trial} won")
    settings = read_settings(survived.folder)
    board = Board(settings, survived.folder, TRIALS, 10, 1, read_outcomes(survived.folder), result=result)
    table = [line for line in leaderboard(board, "").splitlines() if line.startswith("| ")]
    assert [line.split("|")[2] for line in said.splitlines() if line.startswith("| ")] == [
        line.split("|")[2] for line in table
    ]
    figures = [file.path for file in client.list_artifacts(parent.info.run_id, "figures")]
    assert "figures/history.png" in figures
    assert len(figures) == len(set(figures)) == len(list((survived.folder / "figures").glob("*.png")))
    [version] = client.search_model_versions("name = 'soak'")
    assert client.get_model_version_by_alias("soak", "champion").version == version.version


def test_what_had_ended_is_not_run_again(survived: Survived):
    assert len(survived.before) == 2
    assert survived.before[-1], "nothing had ended when the driver died for the last time"
    for before in survived.before:
        for name, written in before.items():
            assert (survived.folder / "outcomes" / name).stat().st_mtime_ns == written, name


def test_a_running_trial_goes_on_from_the_checkpoint_before_a_broken_one(survived: Survived):
    assert survived.cut
    for path in survived.cut:
        outcome = json.loads((survived.folder / "outcomes" / f"{path.parents[1].name}.json").read_text())
        assert outcome["status"] in ("complete", "pruned")
        assert outcome["metrics"]["seconds/training"] > MARK


def test_the_budget_is_what_was_left_and_no_proposal_is_made_twice(survived: Survived):
    study = optuna.load_study(study_name="soak-001", storage=f"sqlite:///{survived.folder / 'optuna.db'}")
    assert len(study.trials) == TRIALS
    assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == TRIALS
    assert sum("start" in trial.user_attrs for trial in study.trials) == 1


def test_an_interruption_ends_it_in_order_and_says_how_to_go_on(survived: Survived):
    said = next(lines for lines in survived.report.outputs if lines and lines[-1].startswith("interrupted: resume"))
    assert said[-1] == f"interrupted: resume with crh-tune search --resume soak-001 --storage {survived.storage}"


def test_it_says_that_it_finished_and_says_it_again_interrupted_or_not(survived: Survived, tmp_path: Path):
    """The interruption comes when all is said, and nothing is left to be interrupted."""
    assert survived.report.outputs[-1][-1] == "finished"
    again = Driver(["search", "--resume", "soak-001", "--storage", str(survived.storage)], tmp_path / "again.txt")
    running = True
    while running and "finished" not in again.lines:
        time.sleep(0.01)
        running = again.running()
    with suppress(ProcessLookupError):  # it may have ended by then
        os.killpg(again.process.pid, signal.SIGINT)
    assert again.process.wait(120) == 0
    assert again.lines[-1] == "finished"
    assert next(line for line in again.lines if line.startswith("test mAP")) in survived.report.outputs[-1]


def test_a_search_that_is_not_there_is_named_beside_those_that_are(
    survived: Survived, capsys: pytest.CaptureFixture[str]
):
    assert main(["search", "--resume", "soak-002", "--storage", str(survived.storage)]) == 2
    assert "no search 'soak-002'" in (said := capsys.readouterr().err)
    assert "soak-001" in said
