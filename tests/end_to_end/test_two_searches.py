"""Two whole searches at once on one machine, in one storage folder with one MLflow, do not touch each other.

They have the same name and the same settings. What they share is MLflow's database, its artifacts, and the folder that
their own folders are made in; Optuna's database is not shared: each search keeps its own in its folder, by design.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow import MlflowClient

from benchmarks.soak import SPACE, Driver, processes_below
from crh_tune.tuning.record import read_outcomes

pytestmark = pytest.mark.long
TRIALS = 3
NAMES = ["soak-001", "soak-002"]
ALIKE = ["trial-0000", "confirm-trial-0000-seed1"]
"""Runs of the paper's setting: what else is tried may depend on how fast trials end."""


class Both:
    """The two searches, started together and run to their ends."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        trial = {**SPACE["trial"], "epochs": 12, "evaluate_every": 2}
        space = {**SPACE, "trial": trial, "scheduler": {}, "budget": {"trials": TRIALS, "concurrent": 1}}
        storage.mkdir()
        (storage / "space.yaml").write_text(yaml.safe_dump(space))
        arguments = ["search", str(storage / "space.yaml"), "--storage", str(storage)]
        drivers = [Driver(arguments, storage / f"output-{number}.txt") for number in range(2)]
        self.rays = [0, 0]
        """The most Ray clusters that each of them has run as its own."""
        while any(driver.running() for driver in drivers):
            for place, driver in enumerate(drivers):
                own = sum("gcs_server" in title.split(" ")[0] for title in processes_below(driver.process.pid).values())
                self.rays[place] = max(self.rays[place], own)
            time.sleep(0.2)
        self.codes = [driver.process.returncode for driver in drivers]
        self.said = [driver.lines for driver in drivers]
        self.outcomes = {name: read_outcomes(storage / name) for name in NAMES}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("two") / "runs")


def test_both_finish_under_names_of_their_own_and_on_rays_of_their_own(both: Both):
    assert both.codes == [0, 0], both.said
    assert [lines[-1] for lines in both.said] == ["finished", "finished"]
    assert sorted(line.split()[1].rstrip(":") for lines in both.said for line in lines[:1]) == NAMES
    assert both.rays == [1, 1]


def test_each_has_its_own_trials_once(both: Both):
    for name in NAMES:
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{both.storage / name / 'optuna.db'}")
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * TRIALS
        assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == TRIALS
        assert {run.status for run in both.outcomes[name].values()} == {"complete"}
        assert [run for run in both.outcomes[name] if run.startswith("trial-")] == [
            f"trial-{number:04d}" for number in range(TRIALS)
        ]
        for outcome in both.outcomes[name].values():
            assert Path(outcome.checkpoint or "").is_relative_to(both.storage / name)


def test_mlflow_has_each_search_and_each_run_once_under_its_search(both: Both):
    client = MlflowClient(f"sqlite:///{both.storage / 'mlflow.db'}")
    [experiment] = [each for each in client.search_experiments() if each.name == "soak"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = Counter(run.data.tags["crh_tune.key"] for run in runs)
    wanted = {f"{name}/{outcome}" for name in NAMES for outcome in both.outcomes[name]} | set(NAMES)
    assert keys == dict.fromkeys(wanted, 1)
    by_id = {run.info.run_id: run.data.tags["crh_tune.key"] for run in runs}
    for run in runs:
        key = run.data.tags["crh_tune.key"]
        assert run.info.status == "FINISHED", key
        if "/" not in key:
            assert "mlflow.parentRunId" not in run.data.tags
            continue
        search, name = key.split("/")
        assert by_id[run.data.tags["mlflow.parentRunId"]] == search
        told = both.outcomes[search][name].metrics
        assert run.data.metrics == {metric: value for metric, value in told.items() if metric != "epoch"}, key
        for metric in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            assert steps == sorted(set(steps)), key


def measured(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds/")}


def test_what_must_be_equal_is_equal_to_the_last_bit(both: Both):
    for run in ALIKE:
        first, second = (both.outcomes[name][run] for name in NAMES)
        assert first.settings == second.settings
        assert measured(first.metrics) == measured(second.metrics)
    first_test, second_test = (json.loads((both.storage / name / "summary.json").read_text()) for name in NAMES)
    assert first_test["paper"] == second_test["paper"]
    assert measured(first_test["paper_test"]["metrics"]) == measured(second_test["paper_test"]["metrics"])
