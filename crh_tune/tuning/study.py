"""A whole search: trials, confirmation with fresh seeds, retraining on all training data, one test, and the export."""

from __future__ import annotations

import itertools
import json
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import ray

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Split, final_split, search_split
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings, drawn
from crh_tune.training.models import build_network
from crh_tune.tuning import tracking
from crh_tune.tuning.progress import Progress, Say
from crh_tune.tuning.proposals import enqueue, paper_values, start_points
from crh_tune.tuning.runs import COMPLETE, FAILED, RUNS_FOLDER, Outcome, Place, asha, concurrency, run_trials
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.trial import start_aggregator

SUMMARY_FILE = "summary.json"
SETTINGS_FILE = "search.json"
STUDY_FILE = "optuna.db"
SKIPPED_FILE = "skipped_images.txt"
__all__ = ["RUNS_FOLDER", "SETTINGS_FILE", "STUDY_FILE", "SUMMARY_FILE", "Candidate", "SearchResult", "run_search"]


class SearchFailed(RuntimeError):
    """A search without a result, and why."""


@dataclass(frozen=True)
class Candidate:
    """A setting that was confirmed: the trial it comes from, its settings, its values with fresh seeds."""

    trial: str
    settings: dict[str, Any]
    values: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class SearchResult:
    """What a finished search found. ``best_test`` and ``paper_test`` are the test mAP, each asked once."""

    search_id: str
    folder: Path
    tracking_uri: str
    best: Candidate
    paper: Candidate
    best_test: Outcome
    paper_test: Outcome
    unsent: int


@dataclass(frozen=True)
class Prepared:
    """The splits of a search that has been found possible on its dataset."""

    first: Split
    last: Split
    skipped: tuple[str, ...] = ()


def prepare(settings: SearchSettings, say: Say) -> Prepared:
    """Open the dataset and check every setting that can be drawn against it; needs no Ray.

    Raises SettingsError where the search is impossible on this dataset, DataError where its files cannot be used.
    """
    dataset = open_dataset(settings.dataset.name, settings.dataset.options, say)
    if dataset.skipped:
        more = "; ..." if len(dataset.skipped) > 3 else ""
        say(f"skipped {len(dataset.skipped)} unreadable images: {'; '.join(dataset.skipped[:3])}{more}")
    first = search_split(dataset, settings.validation.fraction, settings.validation.seed)
    settings.check_feasible(first.classes)
    for _, values in start_points(settings, first.classes, first.multi_label):
        settings.trial_settings(values, settings.seed).resolve(first.classes, first.multi_label)
    for backbone, weights in itertools.product(drawn(settings, "backbone"), drawn(settings, "weights")):
        build_network(settings.trial.model_copy(update={"backbone": backbone, "weights": weights}), first, 2)
    return Prepared(first, final_split(dataset), dataset.skipped)


def run_search(settings: SearchSettings, prepared: Prepared, storage: Path, say: Say) -> SearchResult:
    """Run a search to its end, in a new folder of ``storage``; Ray is up already.

    Raises SettingsError before anything starts where the machine is too small or MLflow does not answer, SearchFailed
    where no trial ends well.
    """
    first, last = prepared.first, prepared.last
    at_once = concurrency(settings.scaling, settings.budget)
    storage.mkdir(parents=True, exist_ok=True)
    uri = tracking.default_tracking_uri(storage)
    experiment_id = tracking.connect(uri, settings.name, storage)
    folder = _new_folder(storage, settings.name)
    (folder / SETTINGS_FILE).write_text(settings.model_dump_json(indent=2))
    tracker = tracking.Tracker(uri, experiment_id, folder)
    place = Place(
        folder.name,
        folder,
        f"crh-aggregator-{folder.name}-{time.time_ns()}",
        tracker,
        {"search": first.fingerprint, "final": last.fingerprint},
    )
    say(
        f"search {place.search_id}: {settings.method} on {settings.dataset.name} "
        f"({first.classes} classes, {len(first.train)} training samples, {len(first.queries)} validation queries), "
        f"{settings.budget.trials} trials, {at_once} at a time"
    )
    aggregator = start_aggregator(place.aggregator)
    tracker.start_run(place.search_id, place.search_id, tags={"crh_tune.stage": "parent"})
    tracker.params(place.search_id, tracking.flat(settings.model_dump(mode="json")))
    tracker.artifact(place.search_id, folder / SETTINGS_FILE)
    if prepared.skipped:
        (folder / SKIPPED_FILE).write_text("\n".join([*prepared.skipped, ""]), encoding="utf-8")
        tracker.artifact(place.search_id, folder / SKIPPED_FILE)
    status = "FAILED"
    try:
        result = _search(settings, place, first.classes, first.multi_label, uri, say)
        status = "FINISHED"
    finally:
        tracker.end_run(place.search_id, status)
        unsent = tracker.close()
        ray.kill(aggregator)
    return SearchResult(**{**result, "unsent": unsent})


def _search(
    settings: SearchSettings, place: Place, classes: int, multi_label: bool, uri: str, say: Say
) -> dict[str, Any]:
    study = _new_study(settings, place)
    enqueue(study, settings, classes, multi_label)
    trials = len(settings.cells()) if settings.is_grid else settings.budget.trials
    searcher = OptunaSearcher(study, settings, classes, multi_label, trials)
    seconds = settings.budget.hours * 3600 if settings.budget.hours else None
    progress = Progress(say, trials, settings.objective.metric, settings.objective.mode)
    outcomes = run_trials(
        place, settings.scaling, settings.budget, progress, searcher=searcher, scheduler=asha(settings), seconds=seconds
    )
    finalists, paper = _finalists(settings, outcomes, classes, multi_label)
    candidates = _confirm(settings, place, finalists, paper, say)
    sign = 1 if settings.objective.mode == "max" else -1
    best = max(candidates, key=lambda candidate: sign * candidate.mean)
    confirmed_paper = candidates[-1]
    best_test, paper_test = _test(settings, place, best, confirmed_paper, say)
    result = {
        "search_id": place.search_id,
        "folder": place.folder,
        "tracking_uri": uri,
        "best": best,
        "paper": confirmed_paper,
        "best_test": best_test,
        "paper_test": paper_test,
    }
    summary = {name: _plain(value) for name, value in result.items()}
    (place.folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2))
    place.tracker.artifact(place.search_id, place.folder / SUMMARY_FILE)
    place.tracker.metrics(place.search_id, _parent_metrics(best, confirmed_paper, best_test, paper_test), 0)
    return result


def _finalists(
    settings: SearchSettings, outcomes: dict[str, Outcome], classes: int, multi_label: bool
) -> tuple[list[Outcome], Outcome]:
    """The best complete trials, best first, and the paper's setting as the run it was, or would be.

    Raises SearchFailed when no trial is complete.
    """
    metric, sign = settings.objective.metric, 1 if settings.objective.mode == "max" else -1
    complete = [outcome for outcome in outcomes.values() if outcome.status == COMPLETE]
    if not complete:
        reasons = {outcome.error for outcome in outcomes.values() if outcome.status == FAILED}
        raise SearchFailed(
            f"none of {len(outcomes)} trials came to its end: {'; '.join(sorted(reasons)[:3]) or 'no time'}"
        )
    complete.sort(key=lambda outcome: -sign * outcome.metrics[metric])
    paper = next((outcome for outcome in outcomes.values() if outcome.start == "paper"), None)
    if paper is None:
        values = paper_values(settings, classes, multi_label)
        resolved = settings.trial_settings(values, settings.seed).resolve(classes, multi_label)
        paper = Outcome("paper", resolved.model_dump(mode="json"), "paper")
    return complete[: settings.confirm.top], paper


def _confirm(
    settings: SearchSettings, place: Place, finalists: list[Outcome], paper: Outcome, say: Say
) -> list[Candidate]:
    """Run the finalists, and last the paper's setting, with fresh seeds."""
    chosen = [outcome for outcome in finalists if outcome.settings != paper.settings] + [paper]
    seeds = [settings.seed + 1 + n for n in range(settings.confirm.seeds)]
    say(f"confirming {len(chosen)} settings with {len(seeds)} fresh seeds each")
    runs = [
        _run(f"confirm-{outcome.name}-seed{seed}", outcome.settings, seed, "search")
        for outcome in chosen
        for seed in seeds
    ]
    progress = Progress(say, len(runs), settings.objective.metric, settings.objective.mode)
    done = run_trials(place, settings.scaling, settings.budget, progress, fixed=runs)
    candidates = []
    for outcome in chosen:
        mine = [done[f"confirm-{outcome.name}-seed{seed}"] for seed in seeds]
        values = [run.metrics[settings.objective.metric] for run in mine if run.status == COMPLETE]
        if not values:
            raise SearchFailed(f"{outcome.name} could not be confirmed: {mine[0].error}")
        candidates.append(Candidate(outcome.name, outcome.settings, values))
    return candidates


def _test(
    settings: SearchSettings, place: Place, best: Candidate, paper: Candidate, say: Say
) -> tuple[Outcome, Outcome]:
    """Retrain the winner, and the paper's setting to compare, on all training samples; ask the test queries once."""
    say("retraining on all training samples, and asking the test queries once")
    runs = [_run("final-best", best.settings, settings.seed, "final")]
    if paper is not best:
        runs.append(_run("final-paper", paper.settings, settings.seed, "final"))
    done = run_trials(place, settings.scaling, settings.budget, Progress(say, len(runs), "test/map", "max"), fixed=runs)
    for run in runs:
        if done[run["name"]].status != COMPLETE:
            raise SearchFailed(f"{run['name']} did not come to its end: {done[run['name']].error}")
    return done["final-best"], done[runs[-1]["name"]]


def _run(name: str, settings: dict[str, Any], seed: int, stage: str) -> dict[str, Any]:
    content = {**settings, "trial": {**settings["trial"], "seed": seed}}
    return {"name": name, "settings": content, "stage": stage, "start": "fixed"}


def _new_folder(storage: Path, name: str) -> Path:
    """The first free ``name-001``, ``name-002``, ... in the storage, made so that nobody else has it."""
    number = 1
    while True:
        folder = storage / f"{name}-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise SettingsError(f"{folder}: cannot be created: {error.strerror}") from None
        return folder.resolve()


def _new_study(settings: SearchSettings, place: Place) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna.create_study(
        study_name=place.search_id,
        storage=f"sqlite:///{place.folder / STUDY_FILE}",
        sampler=optuna.samplers.TPESampler(seed=settings.seed, multivariate=True, group=True, constant_liar=True),
        direction="maximize" if settings.objective.mode == "max" else "minimize",
    )


def _parent_metrics(best: Candidate, paper: Candidate, best_test: Outcome, paper_test: Outcome) -> dict[str, float]:
    return {
        "best/mean": best.mean,
        "best/std": best.std,
        "paper/mean": paper.mean,
        "paper/std": paper.std,
        "best/test_map": best_test.metrics["test/map"],
        "paper/test_map": paper_test.metrics["test/map"],
    }


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Candidate | Outcome) else str(value)
