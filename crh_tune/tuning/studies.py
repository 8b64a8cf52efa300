"""Running a study: the trials that MLflow has no complete run of, and what it has of them afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray

from crh_tune.data.splits import Split, final_split
from crh_tune.errors import counted
from crh_tune.hashing.codebook import sample_codebook
from crh_tune.retrieval.alignment import semantic_alignment
from crh_tune.settings.base import SettingsError, validated
from crh_tune.settings.study import StudySettings, known_dataset
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import DatasetSettings
from crh_tune.training.evaluation import reference_similarity
from crh_tune.tuning import tracking
from crh_tune.tuning.engine import drive
from crh_tune.tuning.events import Place
from crh_tune.tuning.feature_pass import open_on_cluster
from crh_tune.tuning.progress import Say
from crh_tune.tuning.record import COMPLETE, Outcome, held, make_storage, read_outcomes
from crh_tune.tuning.results import checkpoint_in
from crh_tune.tuning.run import RUNS_FOLDER, TEST, Run
from crh_tune.tuning.stages import FixedRuns
from crh_tune.tuning.stopping import Stop
from crh_tune.tuning.tracking import PATIENCE, SHORT_PATIENCE, open_client
from crh_tune.tuning.worker import start_aggregator

VARIED = ("early_epochs", "reassignment")
"""What runs of a study may differ in, beside what every run is told with."""
ROW, STUDY = "crh_tune.row", "crh_tune.study"
RANDOM = "Random"
_PAGE = 1000


def _split(study: StudySettings, dataset: str, say: Say) -> Split:
    """The final split that all runs of a study on a dataset see. Raises SettingsError for an unknown dataset."""
    known_dataset(dataset)
    there = study.on(dataset)
    seen = {name: value for name, value in there.trial.items() if name in ("backbone", "weights", "freeze", "flip")}
    trial = validated(TrainingSettings, seen, f"{study.name}: datasets.{dataset}.trial")
    opened = DatasetSettings(name=dataset, **there.options)
    return final_split(open_on_cluster(opened, trial, study.scaling_on(dataset), say))


def run_study(study: StudySettings, dataset: str, storage: Path, say: Say, stop: Stop) -> int:
    """Run what is missing of a study on one dataset; returns how many of its runs are still missing. Ray is up.

    Raises SettingsError where the dataset is unknown, MLflow does not answer or another process runs this study,
    Interrupted where ``stop`` was signalled.
    """
    split = _split(study, dataset, say)
    runs = _runs(study, dataset, split, say)
    uri = tracking.default_tracking_uri(storage)
    make_storage(storage)
    with stop.in_order():
        experiment = tracking.connect(uri, study.name, storage)
    stop.raise_if_interrupted()
    with tracking.answering(uri):
        done = _complete(uri, experiment)
    key = f"{study.name}-{dataset}"
    missing = [run for run in runs if f"{key}/{run.name}" not in done]
    folder = storage.resolve() / key
    folder.mkdir(exist_ok=True)
    with held(folder):
        taken = _take_over(missing, folder, dataset)
        there, known_elsewhere = len(runs) - len(missing), f", {taken} of them trained by another study" * bool(taken)
        say(f"study {key}: {counted(len(runs), 'run')}, {there} there already, {len(missing)} to do{known_elsewhere}")
        known = read_outcomes(folder)
        if any(run.name in known and known[run.name].status == COMPLETE for run in missing):
            (folder / tracking.SENT_FILE).unlink(missing_ok=True)  # MLflow has lost them: it is told all of it again
        tracker = tracking.Tracker(uri, study.name, storage, folder)
        tracker.start_run(key, key, tags={STUDY: study.name, "crh_tune.stage": "parent"})
        aggregator = f"crh-aggregator-{key}-{time.time_ns()}"
        place = Place(key, folder, aggregator, tracker, stop, searched=VARIED)
        status = "KILLED"
        try:
            for bits in study.on(dataset).bits or study.bits if study.random_draws else ():
                _log_random(study, dataset, split, bits, place, done)
            failed = _run_missing(study, dataset, missing, place, say) if missing else 0
            status = "FINISHED" if failed == 0 else "FAILED"
        finally:
            tracker.end_run(key, status)
            if status == "KILLED":
                tracker.close(SHORT_PATIENCE)
            else:
                tracker.drain(PATIENCE)
    return failed


def _take_over(missing: list[Run], folder: Path, dataset: str) -> int:
    """Give runs the last checkpoint of the same run of another study, with which they are at their end; how many."""
    ended: list[tuple[Outcome, Path]] = []
    for other in sorted(folder.parent.glob(f"*-{dataset}")):
        with suppress(SettingsError):  # what another version has written
            complete = [each for each in read_outcomes(other).values() if each.status == COMPLETE and each.checkpoint]
            ended += [(each, checkpoint_in(other, each)) for each in complete if other != folder]
    taken = 0
    for run in missing:
        asked, own = (run.settings.model_dump(mode="json"), run.fingerprint), folder / RUNS_FOLDER / run.name
        there = [path for each, path in ended if (each.settings, each.fingerprint) == asked and path.is_dir()]
        if there and not own.exists():
            own.mkdir(parents=True)
            shutil.copytree(there[0], own / there[0].name)
            taken += 1
    return taken


def _run_missing(study: StudySettings, dataset: str, missing: list[Run], place: Place, say: Say) -> int:
    aggregator = start_aggregator(place.aggregator)
    try:
        outcomes = drive(place, study.scaling_on(dataset), study.budget, [FixedRuns(missing, say)])
    finally:
        ray.kill(aggregator)
    return sum(outcomes[run.name].status != COMPLETE for run in missing)


def _runs(study: StudySettings, dataset: str, split: Split, say: Say) -> list[Run]:
    """The study's runs, named by their settings and row; says which ones the dataset makes impossible."""
    runs: list[Run] = []
    for row, settings in study.trials(dataset):
        try:
            resolved = settings.resolve(split.classes, split.multi_label)
        except SettingsError as error:
            say(f"left out: {row} at {settings.trial.bits} bits: {error}")
            continue
        identity = json.dumps([row, resolved.model_dump(mode="json"), split.fingerprint], sort_keys=True)
        name = f"{settings.method}-{settings.trial.bits}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
        tags = {ROW: row, STUDY: study.name}
        runs.append(Run(name, resolved, "final", split.fingerprint, TEST, "cell", tags))
    return runs


def _complete(uri: str, experiment: str) -> set[str]:
    """The keys of all complete runs of an experiment."""
    return {run.data.tags[tracking.KEY_TAG] for run in _all_runs(uri, experiment) if _is_complete(run)}


def _is_complete(run: Any) -> bool:
    return run.info.status == "FINISHED" and run.data.tags.get("crh_tune.outcome") == COMPLETE


def _all_runs(uri: str, experiment: str) -> list[Any]:
    client, token = open_client(uri), None
    runs: list[Any] = []
    while True:
        page = client.search_runs([experiment], max_results=_PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _log_random(study: StudySettings, dataset: str, split: Split, bits: int, place: Place, done: set[str]) -> None:
    """PCC of random centres over many draws, as one run."""
    key = place.key(f"random-{bits}-{study.random_draws}")
    if key in done:
        return
    reference = reference_similarity(split)
    draws = [
        semantic_alignment(sample_codebook(bits, split.classes, bits, seed).words[0], reference)
        for seed in range(study.random_draws)
    ]
    tags = {ROW: RANDOM, STUDY: study.name, "crh_tune.outcome": COMPLETE}
    place.tracker.start_run(key, f"random-{bits}", place.search_id, tags)
    place.tracker.params(key, {"dataset": dataset, "bits": bits, "seed": 0, "draws": len(draws)})
    values = {"centers/pcc": float(np.mean(draws)), "centers/pcc_std": float(np.std(draws, ddof=1))}
    place.tracker.metrics(key, values, 0)
    place.tracker.end_run(key, "FINISHED")


def study_runs(study: str, storage: Path) -> pd.DataFrame:
    """The complete runs of a study, one row each, from MLflow; empty where there are none.

    Columns: row, dataset, bits, seed, map (0 to 1), pcc, pcc_std, d_min, d_avg, update_interval, early_epochs,
    codebook_size, head_dim, reassignment; NaN where a run has no such value. Raises SettingsError where the tracking
    server does not answer.
    """
    uri = tracking.default_tracking_uri(storage)
    with tracking.answering(uri):
        found = open_client(uri).get_experiment_by_name(study)
        runs = [run for run in _all_runs(uri, found.experiment_id) if _is_complete(run)] if found else []
    return pd.DataFrame([_row(run) for run in runs], columns=list(_COLUMNS))


_COLUMNS = {
    "row": str, "dataset": str, "bits": int, "seed": int, "map": float, "pcc": float, "pcc_std": float, "d_min": float,
    "d_avg": float, "update_interval": float, "early_epochs": float, "codebook_size": float, "head_dim": float,
    "reassignment": str,
}  # fmt: skip


_SYMBOLS = {"update_interval": "interval", "codebook_size": "M", "head_dim": "d"}
"""The columns that runs are told by a symbol of the paper's."""


def _row(run: Any) -> dict[str, Any]:
    params, metrics = run.data.params, run.data.metrics
    if "trial.bits" in params:  # version 0.1.0 logged every setting, by section
        params = {"dataset": params["dataset.name"]} | {
            name.removeprefix("trial."): value for name, value in params.items() if name.startswith("trial.")
        }
    else:
        params = params | {name: params[symbol] for name, symbol in _SYMBOLS.items() if symbol in params}
    return {
        "row": run.data.tags[ROW],
        "dataset": params["dataset"],
        "bits": int(params["bits"]),
        "seed": int(params["seed"]),
        "map": metrics.get("test/map", float("nan")),
        **{name: metrics.get(f"centers/{name}", float("nan")) for name in ("pcc", "pcc_std", "d_min", "d_avg")},
        **{name: _number(params.get(name)) for name in (*_SYMBOLS, "early_epochs")},
        "reassignment": params.get("reassignment", ""),
    }


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:  # "full", "None"
        return float("nan")
