"""A whole search: trials, confirmation with fresh seeds, retraining on all training data, one test, and the export."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import optuna
import ray
from optuna.exceptions import StorageInternalError
from ray.tune import TuneError
from ray.tune.schedulers import TrialScheduler

from crh_tune.data.splits import Split, Stage, final_split, search_split
from crh_tune.errors import SearchFailed, counted
from crh_tune.ground import write_text
from crh_tune.serving.encoder import load_encoder
from crh_tune.settings.base import SettingsError, validated
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.space import check_feasible, combined, without_effect
from crh_tune.settings.training import TrainingSettings
from crh_tune.training.evaluation import reference_similarity
from crh_tune.training.models import build_network, input_shape
from crh_tune.training.opening import open_data
from crh_tune.tuning import tracking
from crh_tune.tuning.address import shown, ui_command
from crh_tune.tuning.baselines import compare_with_baselines, validation_of_baselines
from crh_tune.tuning.board import Board
from crh_tune.tuning.champion import Champion
from crh_tune.tuning.cluster import concurrency
from crh_tune.tuning.earlier import known_before, tell_earlier
from crh_tune.tuning.engine import drive
from crh_tune.tuning.events import OUT_OF_TIME, Place
from crh_tune.tuning.feature_pass import open_on_cluster
from crh_tune.tuning.front import front_of
from crh_tune.tuning.lengths import check_lengths, ended_by, lengths_of, studies_of, suffix_of
from crh_tune.tuning.pages import STAGE_TAG, champion_note, origin, parent_metrics, search_params, tag_winner
from crh_tune.tuning.pictures import Draw, Picture, Pictures, Reference
from crh_tune.tuning.progress import Say, watching
from crh_tune.tuning.proposals import enqueue, every_setting, planned, start_points
from crh_tune.tuning.record import (
    CLOCK_FILE,
    FINISHED,
    SETTINGS_FILE,
    STUDY_FILE,
    SUMMARY_FILE,
    Outcome,
    earlier_ends,
    epochs_of,
    go_on_with,
    held,
    make_storage,
    new_folder,
    read_outcomes,
    read_settings,
    same_splits,
    trials_of,
    write_record,
)
from crh_tune.tuning.results import SearchResult, read_result
from crh_tune.tuning.schedulers import ByLength, scheduler_of
from crh_tune.tuning.searcher import LengthSearcher, OptunaSearcher
from crh_tune.tuning.stages import ConfirmStage, SearchStage, TestStage
from crh_tune.tuning.stopping import Clock, Interrupted, Stop
from crh_tune.tuning.worker import start_aggregator

SKIPPED_FILE = "skipped_images.txt"


@dataclass(frozen=True)
class After:
    """What is made of a search, by rooms above this one.

    Attributes:
        export: writes the export of a search's folder, and returns where that is; without it nothing is registered.
        draw: draws its figures for MLflow.
    """

    export: Callable[[Path], Path] | None = None
    draw: Draw | None = None


NOTHING = After()


@dataclass(frozen=True)
class Prepared:
    """The splits of a search that has been found possible on its dataset."""

    first: Split
    last: Split
    skipped: tuple[str, ...] = ()
    confirming: dict[Stage, str] = field(default_factory=dict)
    """The fingerprints of the splits that finalists are confirmed and tested on, where they see other inputs."""

    @property
    def splits(self) -> dict[Stage, str]:
        """The fingerprints of the splits that trials see."""
        return {"search": self.first.fingerprint, "final": self.last.fingerprint}


def prepare(settings: SearchSettings, say: Say) -> Prepared:
    """Open the dataset and check every setting that can be drawn against it; Ray is up where features come from it.

    Raises SettingsError where the search is impossible on this dataset, DataError where its files cannot be used.
    """
    check_lengths(settings)
    dataset = open_on_cluster(settings.dataset, settings.trial, settings.scaling, say)
    if dataset.skipped:
        more = "; ..." if len(dataset.skipped) > 3 else ""
        say(f"skipped {counted(len(dataset.skipped), 'unreadable image')}: {'; '.join(dataset.skipped[:3])}{more}")
    first, last = (
        search_split(dataset, **settings.validation.model_dump()),
        final_split(dataset, **settings.validation.held_classes),
    )
    for line in (*first.notes(), *last.notes()):
        say(line)
    check_feasible(settings, first.classes)
    for each in studies_of(settings).values():
        for _, values in start_points(each, first.classes, first.multi_label):
            each.trial_settings(values, settings.seed).resolve(first.classes, first.multi_label)
    fixed = settings.trial.model_dump()
    for views in combined(settings, ("crop", "padding", "flip")):
        input_shape(validated(TrainingSettings, {**fixed, **views}, "search"), first)
    if not settings.trial.freeze:
        for network in combined(settings, ("backbone", "weights")):
            build_network(validated(TrainingSettings, {**fixed, **network}, "search"), first, 2)
    return Prepared(first, last, dataset.skipped, _whole_splits(settings, say))


def _whole_splits(settings: SearchSettings, say: Say) -> dict[Stage, str]:
    """The fingerprints of the splits of images, where all layers of the finalists are trained; else none."""
    if settings.confirm.freeze is None:
        return {}
    trial = settings.trial.model_copy(update={"freeze": False, "head": None})
    dataset = open_data(settings.dataset, trial, say)
    first = search_split(dataset, **settings.validation.model_dump())
    build_network(trial, first, 2)
    return {"search": first.fingerprint, "final": final_split(dataset, **settings.validation.held_classes).fingerprint}


def run_search(
    settings: SearchSettings,
    prepared: Prepared,
    storage: Path,
    say: Say,
    stop: Stop | None = None,
    resume: Path | None = None,
    after: After = NOTHING,
) -> SearchResult:
    """Run a search to its end, in a new folder of ``storage`` or in the one that is resumed; Ray is up already.

    One that has ended continues where its settings have more trials or hours than those it ended with. ``after`` is
    what is made of what it finds.

    Raises SettingsError before anything starts where the machine is too small, MLflow does not answer, another process
    runs this search or it was begun on other data; SearchFailed where no trial ends well or storage fails; Interrupted,
    with the search's name, where ``stop`` was signalled.
    """
    at_once, stop = concurrency(settings.scaling, settings.budget), stop or Stop()
    make_storage(storage)
    uri = tracking.default_tracking_uri(storage)
    if resume is None:  # a search that is resumed can do without MLflow
        with stop.in_order():  # a new database that is half made is of no use to anyone
            tracking.connect(uri, settings.name, storage)
        stop.raise_if_interrupted()
    folder = resume or new_folder(storage, settings)
    stop.search_id = folder.name
    with held(folder):
        ended = (folder / SUMMARY_FILE).exists()
        if ended and settings == read_settings(folder):
            result = replace(read_result(folder), tracking_uri=shown(uri))
            tracker = tracking.Tracker(uri, settings.name, storage, folder)
            _hand_over(settings, result, tracker, after)
            return replace(result, unsent=tracker.close(tracking.SHORT_PATIENCE))
        same_splits(folder, prepared.splits)
        if ended:
            check_untried(settings, folder, prepared.first)
            go_on_with(folder, settings)
        tracker = tracking.Tracker(uri, settings.name, storage, folder)
        name = f"crh-aggregator-{folder.name}-{time.time_ns()}"
        first = prepared.first
        board = Board(settings, folder, settings.trials, first.classes, at_once)
        place = Place(
            folder.name, folder, name, tracker, stop, settings.search, board, watching(say), ui_command(shown(uri)),
            _pictures(folder, tracker, after, say),
        )  # fmt: skip
        say(
            f"search {place.search_id}: {settings.method} on {settings.dataset.name} "
            f"({first.classes} classes, {len(first.train)} training samples, {len(first.queries)} validation queries), "
            f"batches of {settings.trial.batch_size} ({settings.trial.batch_size_of}), "
            f"{planned(settings, first.classes, first.multi_label)}, {at_once} at a time"
        )
        for line in without_effect(settings):
            say(line)
        try:
            return _run(settings, prepared, place, shown(uri), say, after)
        except KeyboardInterrupt:
            raise Interrupted(place.search_id) from None


def check_untried(settings: SearchSettings, folder: Path, split: Split) -> None:
    """Raises SettingsError where a search that is added to has tried every setting of its space."""
    every = every_setting(settings, split.classes, split.multi_label)
    if every is not None and not settings.is_grid and len(trials_of(read_outcomes(folder))) >= len(every):
        raise SettingsError(
            f"{folder.name} has tried all {len(every)} settings of its space: nothing to add; "
            "begin a new search of a wider one, with start_from: [paper, earlier] to know what this one knows"
        )


def _pictures(folder: Path, tracker: tracking.Tracker, after: After, say: Say) -> Pictures | None:
    """What draws the search's figures, for its own run and those below it."""
    if after.draw is None:
        return None

    def keep(picture: Picture) -> None:
        key = f"{folder.name}/{picture.run}" if picture.run else folder.name
        tracker.artifact(key, picture.path, "figures")

    return Pictures(folder, after.draw, keep, say)


def _run(settings: SearchSettings, prepared: Prepared, place: Place, uri: str, say: Say, after: After) -> SearchResult:
    """The search in its folder, told to MLflow as the parent run, with an aggregator of its own."""
    tracker, key = place.tracker, place.search_id
    tracker.start_run(key, key, tags={STAGE_TAG: "parent"})
    tracker.params(key, search_params(settings))
    tracker.dataset(
        key, settings.dataset.name, prepared.first.fingerprint, origin(settings.dataset), "training and validation"
    )
    tracker.artifact(key, place.folder / SETTINGS_FILE)
    status = "FAILED"
    aggregator = start_aggregator(place.aggregator)
    if prepared.skipped:
        write_text(place.folder / SKIPPED_FILE, "\n".join([*prepared.skipped, ""]))
        tracker.artifact(key, place.folder / SKIPPED_FILE)
    try:
        result = _search(settings, place, prepared, uri, say)
        status = "FINISHED"
        if place.pictures is not None:
            place.pictures.finish(_known_reference(prepared.first))
        _hand_over(settings, result, tracker, after)
    except KeyboardInterrupt:
        status = "KILLED"
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
            if place.pictures is not None:
                place.pictures.wait()
            unsent = tracker.drain(tracking.PATIENCE, lambda: status == "KILLED" or place.stop.interrupted)
    why = tracker.last_error if unsent else ""
    return replace(result, unsent=unsent, unsent_why=why, experiment_id=tracker.experiment_id)


def _hand_over(settings: SearchSettings, result: SearchResult, tracker: tracking.Tracker, after: After) -> None:
    """Export what was found, and have its model logged and registered."""
    if after.export is None:
        return
    export = after.export(result.folder)
    ended = int((result.folder / SUMMARY_FILE).stat().st_mtime * 1000)
    champion = Champion(settings.name, str(export.resolve()), load_encoder(export).name, ended, champion_note(result))
    tracker.model(f"{result.search_id}/{result.best_test.name}", champion)


def _untrained(board: Board, settings: SearchSettings, first: Split) -> None:
    """Let the board know what needs no training, while the first trials run."""
    if settings.objective.metric != "val/map" or settings.lengths:  # which length it is to be is not known yet
        return
    with suppress(Exception):  # it is scored again at the end, and what is wrong with it is said there
        board.untrained = validation_of_baselines(settings, first)


def _known_reference(split: Split) -> Reference:
    """How alike the classes are, where that takes no pass over files."""
    if split.reference is None and not isinstance(split.train.inputs, np.ndarray):
        return None
    return reference_similarity(split)


def _search(settings: SearchSettings, place: Place, prepared: Prepared, uri: str, say: Say) -> SearchResult:
    """The stages of the search, then what needs no training, and the summary. Raises SearchFailed."""
    classes, multi_label = prepared.first.classes, prepared.first.multi_label
    splits = prepared.confirming or prepared.splits
    searcher = searcher_of(settings, place, prepared.first, say)
    if place.board is not None:
        place.board.planned = searcher.total
        threading.Thread(target=_untrained, args=(place.board, settings, prepared.first), daemon=True).start()
    place.describe()
    clock = Clock(place.folder / CLOCK_FILE, settings.budget.hours * 3600) if settings.budget.hours else None
    search = SearchStage(settings, searcher, say, clock)
    confirm = ConfirmStage(settings, search, classes, multi_label, splits["search"], say)
    test = TestStage(settings, confirm, splits["final"], say)
    drive(place, settings.scaling, settings.budget, [search, confirm, test], _scheduler(settings, searcher))
    best_test, paper_test = test.tested()
    baselines = compare_with_baselines(place, prepared.first, prepared.last, best_test, settings.seed, say)
    result = SearchResult(
        search_id=place.search_id,
        folder=place.folder,
        tracking_uri=uri,
        best=test.best,
        paper=test.paper,
        best_test=best_test,
        paper_test=paper_test,
        ended=how_it_ended(settings, list(search.outcomes.values()), searcher.total),
        baselines=baselines,
        gain=confirm.gain(test.best),
        lengths=lengths_of(settings, search.outcomes),
        front=front_of(settings, search.outcomes.values()),
        experiment_id=place.tracker.experiment_id,
    )
    write_record(place.folder / SUMMARY_FILE, result)
    place.tracker.artifact(place.search_id, place.folder / SUMMARY_FILE)
    place.tracker.metrics(
        place.search_id, parent_metrics(result, settings.objective.metric), earlier_ends(place.folder)
    )
    if place.board is not None:
        place.board.result = result
        tag_winner(place.tracker, place.key, place.board)
        place.describe()
    return result


def searcher_of(settings: SearchSettings, place: Place, first: Split, say: Say) -> OptunaSearcher | LengthSearcher:
    """What hands out the trials of a search, which see its first split."""

    def opened(among: SearchSettings) -> OptunaSearcher:
        seen = first.classes, first.multi_label
        suffix = suffix_of(settings, among.trial.bits)
        study = _open_study(among, place, suffix)
        earlier = known_before(place.folder, among, first, say, suffix)
        tell_earlier(study, among, earlier.trials, first.classes)
        enqueue(study, among, *seen, earlier.starts)
        return OptunaSearcher(study, among, *seen, among.trials, first.fingerprint, suffix)

    if not settings.lengths:
        return opened(settings)
    return LengthSearcher(settings, lambda bits: opened(settings.at_length(bits)), say)


def _scheduler(settings: SearchSettings, searcher: OptunaSearcher | LengthSearcher) -> TrialScheduler | None:
    """What stops weak trials; those of each code length have a scheduler of their own."""
    if isinstance(searcher, OptunaSearcher):
        return scheduler_of(settings, searcher.study)
    return ByLength(
        lambda bits: scheduler_of(settings.at_length(bits), searcher.study_at(bits), suffix_of(settings, bits))
    )


def how_it_ended(settings: SearchSettings, outcomes: list[Outcome], trials: int) -> str:
    """The last line of a search: finished, or how far its hours or epochs let it get."""
    reached = ended_by(settings, outcomes)
    if reached is not None and len(outcomes) < trials:
        return f"stopped by target: {reached.name} has {settings.target} after {len(outcomes)} of {trials} trials"
    in_time = len(outcomes) == trials and not any(outcome.error == OUT_OF_TIME for outcome in outcomes)
    hours, epochs = settings.budget.hours, settings.budget.epochs
    if in_time or (hours is None and epochs is None):
        return FINISHED
    if epochs is not None and epochs_of(outcomes) >= epochs:
        return f"stopped by budget: {epochs} epochs were trained after {len(outcomes)} of {trials} trials"
    if hours is None:
        return FINISHED
    return f"stopped by budget: {hours:g} hours were over after {len(outcomes)} of {trials} trials"


def _open_study(settings: SearchSettings, place: Place, suffix: str) -> optuna.Study:
    """The search's study, new or as it was left. A sampler that is resumed proposes nothing a second time."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        study_name=f"{place.search_id}{suffix}",
        storage=f"sqlite:///{place.folder / STUDY_FILE}",
        directions=settings.objective.directions,
        load_if_exists=True,
    )
    seed = int(np.random.SeedSequence((settings.seed, len(study.trials))).generate_state(1)[0])
    study.sampler = sampler_of(settings, seed)
    return study


def sampler_of(settings: SearchSettings, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that a search's settings name.

    The Gaussian process has noise in it, and draws d by chance; CMA-ES draws all but ranges by chance.
    """
    chance = optuna.samplers.RandomSampler(seed=seed)
    if settings.sampler == "random":
        return chance
    if settings.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, independent_sampler=chance, warn_independent_sampling=False)
    if settings.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, independent_sampler=chance, warn_independent_sampling=False)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def _last_line(error: BaseException) -> str:
    """What went wrong at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
