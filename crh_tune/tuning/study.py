"""A whole search: trials, confirmation with fresh seeds, retraining on all training data, one test, and the export."""

from __future__ import annotations

import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from optuna.exceptions import StorageInternalError
from ray.tune import TuneError

from crh_tune.data.splits import Split, Stage, final_split, search_split
from crh_tune.errors import SearchFailed
from crh_tune.settings.search import SearchSettings, drawn
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.models import build_network
from crh_tune.training.opening import open_data
from crh_tune.tuning import tracking
from crh_tune.tuning.baselines import Baseline, compare_with_baselines
from crh_tune.tuning.feature_pass import open_on_cluster
from crh_tune.tuning.progress import Progress, Say
from crh_tune.tuning.proposals import enqueue, paper_values, planned, start_points
from crh_tune.tuning.record import (
    CLOCK_FILE,
    COMPLETE,
    SETTINGS_FILE,
    STUDY_FILE,
    SUMMARY_FILE,
    Outcome,
    held,
    make_storage,
    new_folder,
    read_outcomes,
    same_splits,
    write_json,
)
from crh_tune.tuning.runs import OUT_OF_TIME, Place, asha, concurrency, run_trials
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.stopping import Clock, Interrupted, Stop
from crh_tune.tuning.trial import start_aggregator

SKIPPED_FILE = "skipped_images.txt"


@dataclass(frozen=True)
class Candidate:
    """A setting that was confirmed: the trial it comes from, its settings, its values with fresh seeds."""

    trial: str
    settings: dict[str, Any]
    values: list[float]
    frozen: float | None = None
    """Where all layers were trained: what its trial had on the frozen backbone's features."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class SearchResult:
    """What a search that has ended found. ``best_test`` and ``paper_test`` are the test mAP, each asked once.

    ``tracking_uri`` is without a password: the result is kept and printed.
    """

    search_id: str
    folder: Path
    tracking_uri: str
    best: Candidate
    paper: Candidate
    best_test: Outcome
    paper_test: Outcome
    ended: str
    """How it ended: ``finished``, or ``stopped by budget`` and where."""
    baselines: tuple[Baseline, ...] = ()
    """What needs no training, on the same queries; none where the inputs are images that no network has seen."""
    unsent: int = 0
    """How many entries the tracking server has not got, and why."""
    unsent_why: str = ""


@dataclass(frozen=True)
class Prepared:
    """The splits of a search that has been found possible on its dataset."""

    first: Split
    last: Split
    skipped: tuple[str, ...] = ()
    confirming: dict[Stage, str] = field(default_factory=dict)
    """The fingerprints of the splits that finalists are confirmed and tested on, where they see other inputs."""


def prepare(settings: SearchSettings, say: Say) -> Prepared:
    """Open the dataset and check every setting that can be drawn against it; Ray is up where features come from it.

    Raises SettingsError where the search is impossible on this dataset, DataError where its files cannot be used.
    """
    dataset = open_on_cluster(settings.dataset, settings.trial, settings.scaling, say)
    if dataset.skipped:
        more = "; ..." if len(dataset.skipped) > 3 else ""
        say(f"skipped {len(dataset.skipped)} unreadable images: {'; '.join(dataset.skipped[:3])}{more}")
    first, last = search_split(dataset, **settings.validation.model_dump()), final_split(dataset)
    for line in filter(None, (first.unanswered(), last.unanswered())):
        say(line)
    settings.check_feasible(first.classes)
    for _, values in start_points(settings, first.classes, first.multi_label):
        settings.trial_settings(values, settings.seed).resolve(first.classes, first.multi_label)
    if not settings.trial.freeze:
        for backbone, weights in itertools.product(drawn(settings, "backbone"), drawn(settings, "weights")):
            build_network(settings.trial.model_copy(update={"backbone": backbone, "weights": weights}), first, 2)
    return Prepared(first, last, dataset.skipped, _whole_splits(settings, say))


def _whole_splits(settings: SearchSettings, say: Say) -> dict[Stage, str]:
    """The fingerprints of the splits of images, where all layers of the finalists are trained; else none."""
    if settings.confirm.freeze is None:
        return {}
    trial = settings.trial.model_copy(update={"freeze": False, "head": None})
    dataset = open_data(settings.dataset, trial, say)
    first = search_split(dataset, **settings.validation.model_dump())
    build_network(trial, first, 2)
    return {"search": first.fingerprint, "final": final_split(dataset).fingerprint}


def run_search(
    settings: SearchSettings,
    prepared: Prepared,
    storage: Path,
    say: Say,
    stop: Stop | None = None,
    resume: Path | None = None,
) -> SearchResult:
    """Run a search to its end, in a new folder of ``storage`` or in the one that is resumed; Ray is up already.

    Raises SettingsError before anything starts where the machine is too small, MLflow does not answer, another process
    runs this search or it was begun on other data; SearchFailed where no trial ends well or storage fails; Interrupted,
    with the search's name, where ``stop`` was signalled.
    """
    at_once, stop = concurrency(settings.scaling, settings.budget), stop or Stop()
    make_storage(storage)
    uri = tracking.default_tracking_uri(storage)
    if resume is None:  # a search that goes on does so without MLflow too
        with stop.in_order():  # a new database that is half made is of no use to anyone
            tracking.connect(uri, settings.name, storage)
        stop.raise_if_interrupted()
    folder = resume or new_folder(storage, settings)
    stop.search_id = folder.name
    with held(folder):
        if (folder / SUMMARY_FILE).exists():
            return read_result(folder, uri)
        splits: dict[Stage, str] = {"search": prepared.first.fingerprint, "final": prepared.last.fingerprint}
        same_splits(folder, splits)
        tracker = tracking.Tracker(uri, settings.name, storage, folder)
        name = f"crh-aggregator-{folder.name}-{time.time_ns()}"
        place = Place(folder.name, folder, name, tracker, splits, stop)
        first = prepared.first
        say(
            f"search {place.search_id}: {settings.method} on {settings.dataset.name} "
            f"({first.classes} classes, {len(first.train)} training samples, {len(first.queries)} validation queries), "
            f"batches of {settings.trial.batch_size} ({settings.trial.batch_size_of}), "
            f"{planned(settings, first.classes, first.multi_label)}, {at_once} at a time"
        )
        try:
            return _run(settings, prepared, place, tracking.shown(uri), say)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(place.search_id) from None


def _run(settings: SearchSettings, prepared: Prepared, place: Place, uri: str, say: Say) -> SearchResult:
    """The search in its folder, told to MLflow as the parent run, with an aggregator of its own."""
    tracker, key = place.tracker, place.search_id
    tracker.start_run(key, key, tags={"crh_tune.stage": "parent"})
    tracker.params(key, tracking.flat(settings.model_dump(mode="json")))
    tracker.artifact(key, place.folder / SETTINGS_FILE)
    status, patience = "FAILED", tracking.PATIENCE
    aggregator = start_aggregator(place.aggregator)
    if prepared.skipped:
        (place.folder / SKIPPED_FILE).write_text("\n".join([*prepared.skipped, ""]), encoding="utf-8")
        tracker.artifact(key, place.folder / SKIPPED_FILE)
    try:
        result = _search(settings, place, prepared, uri, say)
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status, patience = "KILLED", tracking.SHORT_PATIENCE
        raise
    except (OSError, StorageInternalError, TuneError, SearchFailed) as error:
        if not (
            place.folder / SETTINGS_FILE
        ).is_file():  # the folder itself may have been made anew, by Tune or a trial
            raise SearchFailed(f"No such file or directory: {place.folder}") from error
        raise error if isinstance(error, SearchFailed) else SearchFailed(_last_line(error)) from error
    finally:
        with place.stop.in_order():
            ray.kill(aggregator)
            with suppress(OSError):  # where storage is gone, that is why it ends
                tracker.end_run(key, status)
            unsent = tracker.close(patience)
    return replace(result, unsent=unsent, unsent_why=tracker.last_error if unsent else "")


def _search(settings: SearchSettings, place: Place, prepared: Prepared, uri: str, say: Say) -> SearchResult:
    classes, multi_label = prepared.first.classes, prepared.first.multi_label
    study = _open_study(settings, place)
    enqueue(study, settings, classes, multi_label)
    searcher = OptunaSearcher(study, settings, classes, multi_label, settings.trials)
    clock = Clock(place.folder / CLOCK_FILE, settings.budget.hours * 3600) if settings.budget.hours else None
    before = [outcome for outcome in read_outcomes(place.folder).values() if outcome.start != "fixed"]
    progress = Progress(
        say, searcher.total, settings.objective.metric, settings.objective.mode, before, settings.search
    )
    outcomes = run_trials(
        place, settings.scaling, settings.budget, progress, searcher=searcher, scheduler=asha(settings, study),
        clock=clock,
    )  # fmt: skip
    if place.stop.hopeless:
        raise SearchFailed(place.stop.hopeless)
    outcomes = {name: outcome for name, outcome in outcomes.items() if outcome.start != "fixed"}
    finalists, paper = _finalists(settings, outcomes, classes, multi_label)
    place = replace(place, splits=prepared.confirming or place.splits)

    def confirmed(tried: dict[str, Any]) -> dict[str, Any]:
        resolved = settings.confirmed(TrialSettings.model_validate(tried), classes, multi_label)
        return resolved.model_dump(mode="json")

    candidates = _confirm(settings, place, finalists, paper, say, confirmed if prepared.confirming else dict)
    sign = 1 if settings.objective.mode == "max" else -1
    best = max(candidates, key=lambda candidate: sign * candidate.mean)
    confirmed_paper = candidates[-1]
    best_test, paper_test = _test(settings, place, best, confirmed_paper, say)
    baselines = compare_with_baselines(place, prepared.first, prepared.last, best_test, settings.seed, say)
    ended = how_it_ended(settings, list(outcomes.values()), searcher.total)
    result = SearchResult(
        place.search_id, place.folder, uri, best, confirmed_paper, best_test, paper_test, ended, baselines
    )
    write_json(place.folder / SUMMARY_FILE, {name: _plain(value) for name, value in vars(result).items()})
    place.tracker.artifact(place.search_id, place.folder / SUMMARY_FILE)
    place.tracker.metrics(place.search_id, _parent_metrics(best, confirmed_paper, best_test, paper_test), 0)
    return result


def how_it_ended(settings: SearchSettings, outcomes: list[Outcome], trials: int) -> str:
    """The last line of a search: finished, or how far its hours let it get."""
    in_time = len(outcomes) == trials and not any(outcome.error == OUT_OF_TIME for outcome in outcomes)
    if in_time or settings.budget.hours is None:
        return "finished"
    return f"stopped by budget: {settings.budget.hours:g} hours were over after {len(outcomes)} of {trials} trials"


def read_result(folder: Path, uri: str) -> SearchResult:
    """The result of a search that has ended."""
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    summary |= {name: Candidate(**summary[name]) for name in ("best", "paper")}
    summary |= {name: Outcome(**summary[name]) for name in ("best_test", "paper_test")}
    summary["baselines"] = tuple(Baseline(**each) for each in summary.get("baselines", []))
    known = {"folder": folder, "tracking_uri": tracking.shown(uri), "unsent": tracking.unsent_in(folder, uri)}
    return SearchResult(**{**summary, **known})


def _finalists(
    settings: SearchSettings, outcomes: dict[str, Outcome], classes: int, multi_label: bool
) -> tuple[list[Outcome], Outcome]:
    """The best complete trials, best first, each setting once, and the paper's as the run it was, or would be.

    Raises SearchFailed when no trial is complete and has the metric.
    """
    metric, sign = settings.objective.metric, 1 if settings.objective.mode == "max" else -1
    complete = [each for each in outcomes.values() if each.status == COMPLETE and metric in each.metrics]
    if not complete:
        reasons = {outcome.error for outcome in outcomes.values() if outcome.error}
        reasons |= {f"no {metric}" for outcome in outcomes.values() if outcome.status == COMPLETE}
        raise SearchFailed(
            f"none of {len(outcomes)} trials came to its end: {'; '.join(sorted(reasons)[:3]) or 'no time'}"
        )
    complete.sort(key=lambda outcome: -sign * outcome.metrics[metric])
    paper = next((outcome for outcome in outcomes.values() if outcome.start == "paper"), None)
    if paper is None:
        values = paper_values(settings, classes, multi_label)
        resolved = settings.trial_settings(values, settings.seed).resolve(classes, multi_label)
        paper = Outcome("paper", resolved.model_dump(mode="json"), "paper")
    different: dict[str, Outcome] = {}
    for outcome in complete:
        different.setdefault(json.dumps(outcome.settings, sort_keys=True), outcome)
    return list(different.values())[: settings.confirm.top], paper


def _confirm(
    settings: SearchSettings,
    place: Place,
    finalists: list[Outcome],
    paper: Outcome,
    say: Say,
    confirmed: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> list[Candidate]:
    """Run the finalists, and last the paper's setting, with fresh seeds; a finalist of which all fail is left out.

    ``confirmed`` makes what is run of what was tried.

    Raises SearchFailed where all runs of the paper's setting fail, which everything is compared with.
    """
    metric = settings.objective.metric
    chosen = [outcome for outcome in finalists if outcome.settings != paper.settings] + [paper]
    seeds = [settings.seed + 1 + n for n in range(settings.confirm.seeds)]
    whole = settings.confirm.freeze is False
    say(f"confirming {len(chosen)} settings with {len(seeds)} fresh seeds each{', all layers trained' * whole}")
    runs = [
        _fixed(f"confirm-{outcome.name}-seed{seed}", confirmed(outcome.settings), seed, "search")
        for outcome in chosen
        for seed in seeds
    ]
    progress = Progress(say, len(runs), metric, settings.objective.mode, _before(place, runs), settings.search)
    done = run_trials(place, settings.scaling, settings.budget, progress, fixed=runs)
    candidates = []
    for outcome in chosen:
        mine = [done[f"confirm-{outcome.name}-seed{seed}"] for seed in seeds]
        values = [run.metrics[metric] for run in mine if run.status == COMPLETE and metric in run.metrics]
        if not values and outcome is paper:
            raise SearchFailed(f"the paper's setting could not be confirmed: {mine[0].error}")
        if not values:
            say(f"{outcome.name} is left out, it could not be confirmed: {mine[0].error}")
            continue
        frozen = outcome.metrics.get(metric) if whole else None
        candidates.append(Candidate(outcome.name, confirmed(outcome.settings), values, frozen))
    return candidates


def _test(
    settings: SearchSettings, place: Place, best: Candidate, paper: Candidate, say: Say
) -> tuple[Outcome, Outcome]:
    """Retrain the winner, and the paper's setting to compare, on all training samples; ask the test queries once."""
    say("retraining on all training samples, and asking the test queries once")
    runs = [_fixed("final-best", best.settings, settings.seed, "final")]
    if paper is not best:
        runs.append(_fixed("final-paper", paper.settings, settings.seed, "final"))
    progress = Progress(say, len(runs), "test/map", "max", _before(place, runs), settings.search)
    done = run_trials(place, settings.scaling, settings.budget, progress, fixed=runs)
    for run in runs:
        if done[run["name"]].status != COMPLETE:
            raise SearchFailed(f"{run['name']} did not come to its end: {done[run['name']].error}")
    return done["final-best"], done[runs[-1]["name"]]


def _before(place: Place, runs: list[dict[str, Any]]) -> list[Outcome]:
    """The outcomes of those runs that are complete already."""
    known = read_outcomes(place.folder)
    return [known[run["name"]] for run in runs if run["name"] in known and known[run["name"]].status == COMPLETE]


def _fixed(name: str, settings: dict[str, Any], seed: int, stage: str) -> dict[str, Any]:
    content = {**settings, "trial": {**settings["trial"], "seed": seed}}
    return {"name": name, "settings": content, "stage": stage, "start": "fixed"}


def _open_study(settings: SearchSettings, place: Place) -> optuna.Study:
    """The search's study, new or as it was left. A sampler that goes on proposes nothing a second time."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        study_name=place.search_id,
        storage=f"sqlite:///{place.folder / STUDY_FILE}",
        direction="maximize" if settings.objective.mode == "max" else "minimize",
        load_if_exists=True,
    )
    seed = int(np.random.SeedSequence((settings.seed, len(study.trials))).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    return study


def _parent_metrics(best: Candidate, paper: Candidate, best_test: Outcome, paper_test: Outcome) -> dict[str, float]:
    return {
        "best/mean": best.mean,
        "best/std": best.std,
        "paper/mean": paper.mean,
        "paper/std": paper.std,
        "best/test_map": best_test.metrics["test/map"],
        "paper/test_map": paper_test.metrics["test/map"],
    }


def _last_line(error: BaseException) -> str:
    """What went wrong at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [asdict(each) for each in value]
    return asdict(value) if isinstance(value, Candidate | Outcome) else str(value)
