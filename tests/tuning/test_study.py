"""A whole small search on Ray, and what it leaves in MLflow, in Optuna and on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pytest
import ray
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run as Logged

from crh_tune.cli import main
from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import final_split
from crh_tune.errors import SearchFailed
from crh_tune.export import load_encoder, load_index
from crh_tune.export.of_search import export_search
from crh_tune.reporting.search_data import read_search
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import read_trial
from crh_tune.tuning import tracking
from crh_tune.tuning.engine import drive
from crh_tune.tuning.events import Place, RunEvents
from crh_tune.tuning.record import Outcome, read_outcomes, with_more
from crh_tune.tuning.results import SearchResult, read_result
from crh_tune.tuning.run import Run
from crh_tune.tuning.stages import FixedRuns
from crh_tune.tuning.study import prepare, run_search
from crh_tune.tuning.worker import start_aggregator

SPACE = {
    "name": "small",
    "dataset": {"name": "digit_pairs", "images_per_class": 5},
    "trial": {"bits": 16, "epochs": 6, "batch_size": 128, "learning_rate": 2.0e-3, "evaluate_every": 2},
    "search": {
        "codebook_ratio": {"choice": [1, 2]},
        "head_dim": {"feasible": True},
        "quantization_weight": {"log_uniform": [0.001, 1.0]},
        "margin": {"uniform": [0.0, 0.5]},
        "update_interval": {"int": [1, 5]},
    },
    "scheduler": {"asha": {"grace_epochs": 2, "reduction": 3}},
    "confirm": {"top": 2, "seeds": 2},
    "budget": {"trials": 8},
}


def space(**changes) -> SearchSettings:
    return SearchSettings.model_validate({**SPACE, **changes})


def search(settings: SearchSettings, storage: Path, say) -> SearchResult:
    return run_search(settings, prepare(settings, say), storage, say)


@dataclass
class Finished:
    result: SearchResult
    runs: dict[str, Logged]
    parent: Logged
    storage: Path
    said: list[str]
    processes: dict[str, set[int]]
    """The processes that the runs of each stage were in."""


@pytest.fixture(scope="module")
def finished(ray_session, tmp_path_factory) -> Finished:
    storage = tmp_path_factory.mktemp("search") / "runs"
    said: list[str] = []
    processes: dict[str, set[int]] = {}
    reported = RunEvents.on_trial_result

    def note(events, iteration, trials, trial, result, **info) -> None:
        processes.setdefault(trial.config["run"].stage, set()).add(result["pid"])
        reported(events, iteration, trials, trial, result, **info)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunEvents, "on_trial_result", note)
        result = search(space(), storage, said.append)
    client = MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name("small")
    runs = {run.data.tags["crh_tune.run"]: run for run in client.search_runs([experiment.experiment_id])}
    return Finished(result, runs, runs.pop(result.search_id), storage, said, processes)


def test_the_processes_of_trials_are_kept_from_stage_to_stage(finished: Finished):
    assert set(finished.processes) == {"search", "confirm", "test"}
    # two at a time; one that starts more slowly than a trial lasts is given up, and started again
    assert len(set().union(*finished.processes.values())) <= 4 < len(finished.runs) / 2


def test_mlflow_has_one_parent_and_every_run_once_with_its_status(finished: Finished):
    trials = [f"trial-{n:04d}" for n in range(8)]
    assert set(trials) <= set(finished.runs)
    assert finished.parent.info.status == "FINISHED"
    for run in finished.runs.values():
        assert run.data.tags["mlflow.parentRunId"] == finished.parent.info.run_id
        assert run.info.status == "FINISHED"
    outcomes = [finished.runs[name].data.tags["crh_tune.outcome"] for name in trials]
    assert set(outcomes) == {"complete", "pruned"}
    assert finished.result.unsent == 0


def test_mlflow_has_the_stage_of_every_run(finished: Finished):
    expected = {"trial": "search", "confirm": "confirm", "final": "test"}
    for name, run in finished.runs.items():
        assert run.data.tags["crh_tune.stage"] == expected[name.split("-")[0]]


def test_every_run_has_what_was_searched_all_metrics_and_all_settings_in_its_file(finished: Finished):
    client = MlflowClient(finished.result.tracking_uri)
    for name, run in finished.runs.items():
        params, metrics = run.data.params, run.data.metrics
        symbols = {"M": "codebook_size", "d": "head_dim", "lambda": "quantization_weight", "margin": "margin"}
        symbols |= {"interval": "update_interval", "bits": "bits", "seed": "seed"}
        assert set(params) == {*symbols, "method", "dataset"}
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        assert f"{name}.yaml" in {item.path for item in client.list_artifacts(run.info.run_id)}
        kept = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert {symbol: str(kept["trial"][setting]) for symbol, setting in symbols.items()} == {
            symbol: params[symbol] for symbol in symbols
        }
        assert kept["trial"]["scale"] > 0
        assert set(kept["evaluation"]) == {"cutoff", "ties", "denominator", "no_relevant"}
        [data] = run.inputs.dataset_inputs
        assert data.dataset.digest == run.data.tags["crh_tune.split"]
        assert len(data.dataset.digest) == 16
        for metric in ("loss/total", "loss/cross_entropy", "loss/quantization", "centers/pcc", "centers/d_min"):
            assert metric in metrics
        for part in ("training", "encoding", "reassignment", "evaluation"):
            assert metrics[f"seconds/{part}"] >= 0


def test_mlflow_says_who_won_and_who_was_stopped(finished: Finished):
    won, result = finished.result.best.trial, finished.result
    roles = {name: run.data.tags.get("crh_tune.role") for name, run in finished.runs.items()}
    assert roles[won] == roles["final-best"] == "winner"
    assert list(roles.values()).count("winner") == 2
    for name, run in finished.runs.items():
        assert run.info.run_name.startswith("★ ") == (name == won)
        assert run.info.run_name.startswith("✂ ") == (run.data.tags["crh_tune.outcome"] == "pruned")
        assert " · " in run.info.run_name
        assert finished.runs[run.data.tags.get("crh_tune.trial", name)].data.tags["crh_tune.stage"] == (
            "search" if name.startswith(("confirm-trial", "trial")) else "test"
        )
    metrics = finished.parent.data.metrics
    assert metrics["confirmed/val_map_mean"] == pytest.approx(result.best.mean)
    assert metrics["confirmed/val_map_std"] == pytest.approx(result.best.std)
    assert metrics["test/map"] == pytest.approx(result.best_test.metrics["test/map"])
    note = finished.parent.data.tags["mlflow.note.content"]
    assert f"★ {won} won" in note
    assert f"crh-tune search --resume {result.search_id}" in note


def test_metric_curves_and_artifacts_are_kept(finished: Finished):
    client = MlflowClient(finished.result.tracking_uri)
    name = "confirm-trial-0000-seed1"  # no scheduler stops it, as ASHA may stop a trial
    run_id = finished.runs[name].info.run_id
    assert [point.step for point in client.get_metric_history(run_id, "val/map")] == [2, 4, 6]
    assert {item.path for item in client.list_artifacts(run_id)} == {"centers.npy", f"{name}.yaml"}


def test_only_the_final_runs_have_seen_test_queries(finished: Finished):
    search_split, final_split = set(), set()
    for name, run in finished.runs.items():
        final = name.startswith("final-")
        assert ("test/map" in run.data.metrics) == final
        assert ("val/map" in run.data.metrics) != final
        (final_split if final else search_split).add(run.data.tags["crh_tune.split"])
    assert len(search_split) == len(final_split) == 1
    assert search_split != final_split


def test_the_papers_setting_is_trial_0_and_is_confirmed_with_fresh_seeds(finished: Finished):
    first = finished.runs["trial-0000"]
    assert first.data.tags["crh_tune.start"] == "paper"
    expected = {
        "M": "200",
        "d": "8",
        "lambda": "0.1",
        "margin": "0.2",
        "interval": "5",
    }
    assert {name: first.data.params[name] for name in expected} == expected
    seeds = {finished.runs[f"confirm-trial-0000-seed{n}"].data.params["seed"] for n in (1, 2)}
    assert seeds == {"1", "2"}
    confirmed = [finished.runs[f"confirm-trial-0000-seed{n}"].data.metrics["val/map"] for n in (1, 2)]
    assert finished.result.paper.mean == pytest.approx(np.mean(confirmed))
    assert finished.result.paper.std == pytest.approx(np.std(confirmed, ddof=1))


def test_the_winner_has_the_best_mean_over_fresh_seeds(finished: Finished):
    means: dict[str, list[float]] = {}
    for name, run in finished.runs.items():
        if name.startswith("confirm-"):
            means.setdefault(name.rsplit("-seed", 1)[0], []).append(run.data.metrics["val/map"])
    stayed = {name: values for name, values in means.items() if len(values) == max(map(len, means.values()))}
    best = max(stayed, key=lambda name: np.mean(stayed[name]))
    assert f"confirm-{finished.result.best.trial}" == best
    assert finished.result.best.mean >= finished.result.paper.mean


def test_optuna_knows_stopped_trials_as_pruned_with_their_intermediate_values(finished: Finished):
    study = optuna.load_study(
        study_name=finished.result.search_id, storage=f"sqlite:///{finished.result.folder / 'optuna.db'}"
    )
    assert len(study.trials) == 8
    for trial in study.trials:
        outcome = finished.runs[f"trial-{trial.number:04d}"].data.tags["crh_tune.outcome"]
        assert trial.state.name.lower() == outcome
        assert set(trial.intermediate_values) <= {2, 4, 6}
        last = trial.intermediate_values[max(trial.intermediate_values)]
        assert last == finished.runs[f"trial-{trial.number:04d}"].data.metrics["val/map"]


def test_the_export_loads_encodes_and_finds(finished: Finished, tmp_path: Path):
    export_search(finished.result.folder, tmp_path)
    settings = read_trial(tmp_path / "settings.yaml")
    assert settings.model_dump(mode="json") == finished.result.best_test.settings
    assert torch.load(tmp_path / "encoder.pt", weights_only=True)["bits"] == 16
    centers = np.load(tmp_path / "centers.npy", allow_pickle=False)
    assert centers.shape == (100, 16)
    assert set(np.unique(centers)) == {-1, 1}
    encoder, index = load_encoder(tmp_path), load_index(tmp_path)
    dataset = open_dataset("digit_pairs", {"images_per_class": 5})
    assert np.array_equal(encoder.encode(dataset.train.inputs), index.words)
    rows, distances = index.search(encoder.encode(dataset.queries.inputs), 5)
    brute = np.bitwise_count(encoder.encode(dataset.queries.inputs) ^ index.words.T).astype(int)
    assert np.array_equal(distances, np.sort(brute, axis=1)[:, :5])
    assert (index.labels[rows[:, 0]] == dataset.queries.labels).mean() > 0.1  # one in a hundred by chance
    card = (tmp_path / "model_card.md").read_text()
    assert f"{finished.result.best_test.metrics['test/map']:.4f}" in card
    assert f"{finished.result.paper.mean:.4f}" in card


def test_a_search_is_exported_from_wherever_its_folder_was_moved_to(finished: Finished, tmp_path: Path, capsys):
    moved = tmp_path / "elsewhere" / finished.result.search_id
    shutil.copytree(finished.result.folder, moved)
    export_search(moved, tmp_path / "export")
    assert len(load_index(tmp_path / "export").words) == 500
    outcome = finished.result.best_test
    checkpoint = moved / "runs" / outcome.name / Path(outcome.checkpoint or "").name / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    arguments = ["export", moved.name, "--storage", str(moved.parent), "--to", str(tmp_path / "again")]
    assert main(arguments) == 2
    assert str(checkpoint.parent) in capsys.readouterr().err.splitlines()[-1]


def test_progress_names_every_run_and_counts_to_the_budget(finished: Finished):
    assert sum("trial-" in line and "confirm" not in line and "/8]" in line for line in finished.said) == 8
    assert any(line.startswith("[  8/8]") for line in finished.said)


@pytest.mark.long
def test_a_second_search_is_a_new_one(finished: Finished):
    again = search(space(budget={"trials": 1}, confirm={"top": 1, "seeds": 1}), finished.storage, lambda line: None)
    assert finished.result.search_id == "small-001"
    assert again.search_id == "small-002"
    assert again.best.trial == "trial-0000"
    assert json.loads((again.folder / "summary.json").read_text())["search_id"] == "small-002"


def test_a_search_whose_trials_all_fail_says_why(ray_session, tmp_path: Path):
    with pytest.raises(SearchFailed, match=r"none of 2 trials .*loss is"):
        search(
            space(trial={**SPACE["trial"], "learning_rate": 1e30}, budget={"trials": 2}), tmp_path, lambda line: None
        )
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FAILED"}
    assert sum("loss is" in run.data.tags.get("crh_tune.error", "") for run in runs) == 2


def test_a_trial_of_two_workers_reports_and_reassigns_like_one(ray_session, finished: Finished):
    """No learning (a rate of 1e-12), so that both see the same network and only the sharding differs."""
    trial = {**SPACE["trial"], "epochs": 2, "learning_rate": 1e-12, "evaluate_every": 1}
    outcomes = [
        fixed_run(finished, space(trial=trial, scaling={"workers_per_trial": workers}), f"group-{workers}")
        for workers in (1, 2)
    ]
    assert [outcome.status for outcome in outcomes] == ["complete", "complete"]
    one, two = outcomes
    for name in ("centers/d_avg", "centers/pcc", "test/map"):
        assert two.metrics[name] == pytest.approx(one.metrics[name], abs=1e-9)
    assert two.metrics["centers/reassigned"] == one.metrics["centers/reassigned"]
    ours, theirs = (np.load(Path(outcome.checkpoint or "") / "centers.npy") for outcome in outcomes)
    assert np.array_equal(ours, theirs)


def fixed_run(finished: Finished, settings: SearchSettings, name: str) -> Outcome:
    """One run of the paper's setting on the final split, through Ray Tune, beside a finished search."""
    dataset = open_dataset("digit_pairs", {"images_per_class": 5})
    resolved = settings.trial_settings({}, 0).resolve(100, False)
    folder = finished.storage / name
    folder.mkdir()
    tracker = tracking.Tracker(finished.result.tracking_uri, "small", finished.storage, folder)
    place = Place(name, folder, f"aggregator-{name}", tracker)
    tracker.start_run(name, name)
    aggregator = start_aggregator(place.aggregator)
    run = Run(name, resolved, "final", final_split(dataset).fingerprint)
    outcomes = drive(place, settings.scaling, settings.budget, [FixedRuns([run], print)])
    ray.kill(aggregator)
    assert tracker.drain(120) == 0
    return outcomes[name]


def test_more_gpus_than_there_are_is_refused_before_anything_starts(ray_session, tmp_path: Path):
    with pytest.raises(SettingsError, match="gpus_per_worker: a trial needs 1 GPU"):
        search(space(scaling={"gpus_per_worker": 1}), tmp_path / "none", lambda line: None)
    assert not (tmp_path / "none").exists()


def test_a_tracking_server_that_does_not_answer_is_refused(
    ray_session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"MLFLOW_TRACKING_URI: .*127\.0\.0\.1:9 does not answer"):
        search(space(), tmp_path, lambda line: None)


def test_the_outbox_keeps_what_cannot_be_sent_and_a_later_tracker_sends_it_once(tmp_path: Path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    experiment = tracking.connect(uri, "outbox", tmp_path)
    tracker = tracking.Tracker("http://127.0.0.1:9", "outbox", tmp_path, tmp_path)
    tracker.start_run("a", "a")
    tracker.metrics("a", {"val/map": 0.5}, 1)
    tracker.end_run("a", "FINISHED")
    assert tracker.close(patience=0.1) == 3
    for _ in range(2):  # the second has nothing left to send
        later = tracking.Tracker(uri, "outbox", tmp_path, tmp_path)
        assert later.drain(120) == 0
    runs = MlflowClient(uri).search_runs([experiment])
    assert [(run.data.tags["crh_tune.run"], run.info.status, run.data.metrics) for run in runs] == [
        ("a", "FINISHED", {"val/map": 0.5})
    ]


def test_the_search_space_files_of_the_package_are_valid():
    paths = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
    assert paths
    for path in paths:
        assert SearchSettings.model_validate(yaml.safe_load(path.read_text())).name


def test_the_smallest_code_length_is_confirmed_told_and_exported_even_before_the_end(ray_session, tmp_path: Path):
    """Every trial has the target: 16 bits are left for 12."""
    search_of = {"bits": {"smallest": [12, 16, 24]}, "margin": {"uniform": [0.0, 0.5]}}
    settings = space(
        search=search_of, target="val/map >= 0.01", budget={"trials": 4}, confirm={"top": 1, "seeds": 1},
        trial={**SPACE["trial"], "epochs": 2},
    )  # fmt: skip
    said: list[str] = []
    result = search(settings, tmp_path / "runs", said.append)
    assert [(each.bits, each.trials > 0, each.reached) for each in result.lengths] == [
        (12, True, True), (16, True, True), (24, False, False),
    ]  # fmt: skip
    assert result.ended == "finished"
    for settings_of in (result.best.settings, result.paper.settings, result.best_test.settings):
        assert settings_of["trial"]["bits"] == 12
    client = MlflowClient(result.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    [parent] = [run for run in runs if run.data.tags["crh_tune.run"] == result.search_id]
    assert "12 bits are enough for val/map" in parent.data.tags["mlflow.note.content"]
    data = read_search(result.folder)
    assert data.complete[0].setting["bits"] == 12
    assert {trial.setting["bits"] for trial in data.trials} == {12, 16}
    (result.folder / "summary.json").unlink()
    export_search(result.folder, tmp_path / "export")
    assert load_encoder(tmp_path / "export").bits == 12


def test_only_the_finalists_of_short_trials_are_trained_whole(ray_session, tmp_path: Path):
    short = space(scheduler={"short": {"epochs": 3}}, budget={"trials": 3}, confirm={"top": 1, "seeds": 1})
    result = search(short, tmp_path / "runs", print)
    outcomes = read_outcomes(result.folder)
    epochs = {name: each.metrics["epoch"] for name, each in outcomes.items()}
    assert [epochs[f"trial-{number:04d}"] for number in range(3)] == [3, 3, 3]
    assert {each.status for each in outcomes.values()} == {"complete"}
    assert {epoch for name, epoch in epochs.items() if not name.startswith("trial-")} == {6}
    storage = f"sqlite:///{result.folder / 'optuna.db'}"
    for trial in optuna.load_study(study_name=result.search_id, storage=storage).get_trials():
        assert list(trial.intermediate_values) == [2, 3]
        assert trial.value == trial.intermediate_values[3]
    (result.folder / "summary.json").unlink()
    export_search(result.folder, tmp_path / "export")
    assert "trained for 3 epochs of 6" in (tmp_path / "export" / "model_card.md").read_text()


def test_trials_are_added_to_a_search_that_has_ended(finished: Finished):
    """The last test: it changes the search that the others look at."""
    folder = finished.result.folder
    before = {path.name: path.read_bytes() for path in (folder / "outcomes").iterdir()}
    summary = (folder / "summary.json").read_bytes()
    more = with_more(folder, 2, None)
    result = run_search(more, prepare(more, print), finished.storage, print, resume=folder)
    after = {path.name: path.read_bytes() for path in (folder / "outcomes").iterdir()}
    assert {name: after[name] for name in before} == before
    assert sum(name.startswith("trial-") for name in after) == 10
    assert (folder / "summary-1.json").read_bytes() == summary
    assert read_result(folder).best == result.best
    assert run_search(more, prepare(more, print), finished.storage, print, resume=folder).best == result.best
    client = MlflowClient(result.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    runs = [run for run in runs if run.data.tags["crh_tune.key"].partition("/")[0] == folder.name]
    keys = sorted(run.data.tags["crh_tune.key"] for run in runs)
    assert keys == sorted(set(keys))
    assert {run.info.status for run in runs} == {"FINISHED"}
    [parent] = [run for run in runs if run.data.tags["crh_tune.run"] == folder.name]
    assert parent.data.metrics["confirmed/val_map_mean"] == pytest.approx(result.best.mean)
