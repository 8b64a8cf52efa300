"""What a search's folder knows, as plain values: all that figures, tables and the page of a report are made of.

This module alone reads the folder; a search that is still running, was stopped or has ended is read in the same way.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from optuna.trial import TrialState

from crh_tune.data.datasets import DATASETS
from crh_tune.data.splits import Samples, Split, Stage
from crh_tune.hashing.centers import build_codebook, first_table
from crh_tune.hashing.codebook import Codes
from crh_tune.retrieval.average_precision import LabelledCodes
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.used import short
from crh_tune.training.checkpoints import newest
from crh_tune.training.evaluation import encode_share, gather_codes
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import restored
from crh_tune.training.workers import Workers
from crh_tune.tuning.front import Point, front_of
from crh_tune.tuning.lengths import Length, contest, lengths_of
from crh_tune.tuning.progress import told
from crh_tune.tuning.race import Gain
from crh_tune.tuning.record import (
    COMPLETE,
    FAILED,
    OUTBOX_FILE,
    PRUNED,
    SPLITS_FILE,
    STUDY_FILE,
    SUMMARY_FILE,
    Outcome,
    read_outcomes,
    read_record,
    read_settings,
    trials_of,
)
from crh_tune.tuning.results import Baseline, read_result
from crh_tune.tuning.run import RUNS_FOLDER
from crh_tune.tuning.searcher import SETTINGS, begun_trials, reported_by

RUNNING = "running"
PAPER, WINNER = "the paper's setting", "winner"
BEST_SO_FAR = "best trial so far"
UNSEEN = ("map_unseen", "map_mixed", "map_harmonic", "map_unseen_itq")
"""The metrics of a split that holds classes out, without ``val/`` or ``test/``."""
Value = float | int | str
Series = Mapping[str, Mapping[int, float]]
"""Metric -> epoch -> value."""


@dataclass(frozen=True)
class Trial:
    """One trial of the search: its setting by the paper's symbols, and the searched metric by epoch.

    ``status`` is complete, pruned, failed or running. ``value`` is the metric at its last evaluation, None without any.
    ``is_rival`` tells those that finalists are taken from: all but where the smallest code length is searched for.
    """

    name: str
    number: int
    status: str
    start: str
    setting: Mapping[str, Value]
    values: Mapping[int, float]
    error: str = ""
    is_rival: bool = True

    @property
    def value(self) -> float | None:
        return self.values[max(self.values)] if self.values else None

    @property
    def known(self) -> float:
        """The same, NaN without any."""
        return math.nan if self.value is None else self.value

    @property
    def epoch(self) -> int:
        return max(self.values, default=0)


@dataclass(frozen=True)
class Confirmed:
    """A finalist, or the paper's setting, that ran again: the values of its fresh seeds and their curves by epoch."""

    trial: str
    setting: Mapping[str, Value]
    values: Sequence[float]
    curves: Sequence[Mapping[int, float]]
    is_paper: bool = False

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; NaN of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class SearchData:
    """A search as it stands.

    Attributes:
        ended: how it ended, or how far it is.
        metric, mode: what trials are judged by, and whether ``max`` or ``min`` of it is wanted.
        planned: how many trials it is to have; ``epochs``: how many a whole trial takes.
        rungs: the epochs after which weak trials are stopped; empty without ASHA.
        confirmed: the winner first, then those that stayed in the race longest, best mean first; empty before the first
            of them has ended.
        winner: the trial that won the confirmation; None while the search is not finished.
        test: test mAP of ``winner`` and ``paper``, where they were tested.
        series: of each run, by its name, every metric by epoch.
        splits: the fingerprint of the split of each stage.
        unseen: by label (winner, the paper's setting, or the best trial so far) every metric on classes held out, in
            the mean over fresh seeds where there are any; empty where none are held out.
        gain: what the winner has over the paper's setting on fresh seeds; None before the end, or where it is unknown.
        front: the trials on the front of two objectives, where there are two.
        lengths: what is known of each code length, where the smallest is searched for.
    """

    name: str
    folder: Path
    settings: SearchSettings
    ended: str
    finished: bool
    metric: str
    mode: Literal["max", "min"]
    planned: int
    epochs: int
    rungs: Sequence[int]
    trials: Sequence[Trial]
    confirmed: Sequence[Confirmed]
    winner: str | None
    test: Mapping[str, float]
    baselines: Sequence[Baseline]
    series: Mapping[str, Series]
    splits: Mapping[str, str]
    unseen: Mapping[str, Mapping[str, float]]
    gain: Gain | None
    lengths: Sequence[Length] = ()
    front: Sequence[Point] = ()

    @property
    def sign(self) -> int:
        return 1 if self.mode == "max" else -1

    @property
    def dataset(self) -> str:
        """The dataset's name, and that of its folder or file where it has one."""
        path = self.settings.dataset.options.get("path")
        name = self.settings.dataset.name
        return f"{name} {Path(str(path)).name}" if path else name

    @property
    def symbols(self) -> list[str]:
        """The names of all settings that trials differ in or have in common, in the order they are told."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.setting))

    @property
    def complete(self) -> list[Trial]:
        """The trials that came to their end, those that finalists are taken from before others, best first."""
        return _best_complete(self.trials, self.sign)

    @property
    def paper_trial(self) -> Trial | None:
        return _paper_of(self.trials)

    def confirmed_of(self, trial: str | None) -> Confirmed | None:
        return next((each for each in self.confirmed if each.trial == trial), None)

    @property
    def confirmed_paper(self) -> Confirmed | None:
        return next((each for each in self.confirmed if each.is_paper), None)


@dataclass(frozen=True)
class Model:
    """A trained run: its codes of the queries and of what they are answered from, its centres (C x K) now and at first.

    Without centres, or where the first ones are not known, these are None.
    """

    label: str
    run: str
    queries: LabelledCodes
    database: LabelledCodes
    centers: Codes | None
    first_centers: Codes | None


@dataclass(frozen=True)
class Evidence:
    """Runs of a search on one split, and that split: test queries where these were asked, else validation queries."""

    split: Split
    models: Sequence[Model]

    @property
    def kind(self) -> str:
        return "test" if self.split.stage == "final" else "validation"

    @property
    def reference(self) -> npt.NDArray[np.float64] | None:
        """How alike the classes are, C x C."""
        return self.split.reference


def read_search(folder: Path) -> SearchData:
    """Read a search's folder. Raises SettingsError where its settings or its result cannot be read."""
    settings = read_settings(folder)
    outcomes = read_outcomes(folder)
    finished = (folder / SUMMARY_FILE).exists()
    series = read_series(folder)
    trials = _trials(folder, settings, outcomes)
    confirmed = _confirmed(settings, outcomes, trials, series)
    winner, test = None, dict[str, float]()
    baselines: Sequence[Baseline] = ()
    gain = None
    if finished:
        result = read_result(folder)
        gain = result.gain
        winner, baselines, ended = result.best.trial, result.baselines, result.ended
        test = {"winner": result.best_test.metrics["test/map"], "paper": result.paper_test.metrics["test/map"]}
        confirmed.sort(key=lambda each: (each.trial != winner, -len(each.values)))  # equal ones stay best mean first
        shown = {
            WINNER: [*_runs_of(result.best.trial, outcomes), result.best_test.name],
            PAPER: [*_runs_of(result.paper.trial, outcomes), result.paper_test.name],
        }
    else:
        ended = _how_far(settings, trials, confirmed)
        paper, best = _paper_of(trials), _best_complete(trials, 1 if settings.objective.mode == "max" else -1)
        shown = {BEST_SO_FAR: [each.name for each in best[:1]], PAPER: [paper.name] if paper else []}
    epochs = max(settings.drawn("epochs"))
    splits = folder / SPLITS_FILE
    return SearchData(
        folder.name, folder, settings, ended, finished, settings.objective.metric, settings.objective.mode,
        settings.trials, epochs, settings.scheduler.rungs(epochs), trials, confirmed, winner, test, baselines, series,
        read_record(dict[str, str], splits) if splits.exists() else {}, _on_unseen(outcomes, shown), gain,
        lengths_of(settings, trials_of(outcomes)), front_of(settings, trials_of(outcomes).values()),
    )  # fmt: skip


def _best_complete(trials: Sequence[Trial], sign: int) -> list[Trial]:
    ended = [trial for trial in trials if trial.status == COMPLETE and trial.value is not None]
    return sorted(ended, key=lambda trial: (not trial.is_rival, -sign * trial.known))


def _runs_of(trial: str, outcomes: Mapping[str, Outcome]) -> list[str]:
    """The confirmation runs of a trial's setting."""
    return [name for name in outcomes if name.startswith("confirm-") and _confirmed_trial(name) == trial]


def _confirmed_trial(run: str) -> str:
    return run.removeprefix("confirm-").rpartition("-seed")[0]


def _on_unseen(outcomes: Mapping[str, Outcome], shown: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """By label, the metrics on classes that were held out, each in the mean of the runs that have it."""
    found: dict[str, dict[str, float]] = {}
    for label, runs in shown.items():
        values: dict[str, list[float]] = {}
        for run in runs:
            for name, value in (outcomes[run].metrics if run in outcomes else {}).items():
                if name.partition("/")[2] in UNSEEN and math.isfinite(value):
                    values.setdefault(name, []).append(value)
        if values:
            found[label] = {name: statistics.fmean(each) for name, each in values.items()}
    return found


def read_series(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Every metric of every run by epoch, from what the search keeps for MLflow; empty where that is gone."""
    series: dict[str, dict[str, dict[int, float]]] = {}
    try:
        lines = (folder / OUTBOX_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            kind, key, content = json.loads(line)
        except ValueError:  # what a crash left half-written
            continue
        if kind == "metrics":
            run = series.setdefault(str(key).rpartition("/")[2], {})
            for name, value in content["values"].items():
                run.setdefault(name, {})[int(content["step"])] = float(value)
    return series


def setting_of(settings: Mapping[str, Any], searched: Sequence[str]) -> dict[str, Value]:
    """The values of a trial by the paper's symbols, and by name what else is searched; only what its method uses."""
    values = told(settings, searched)
    return {name: value if isinstance(value, int | float) else str(value) for name, value in values.items()}


def setting_text(setting: Mapping[str, Value]) -> str:
    """``M=200 d=8 lambda=0.57``: a setting on one line."""
    return " ".join(f"{name}={short(value)}" for name, value in setting.items())


def _trials(folder: Path, settings: SearchSettings, outcomes: Mapping[str, Outcome]) -> list[Trial]:
    """All trials that have a setting, those under way included, in the order they were begun."""
    if not (folder / STUDY_FILE).exists():
        return []
    found = []
    rivals = contest(settings, trials_of(outcomes))[1]
    for number, (name, frozen) in enumerate(begun_trials(folder, settings)):
        if SETTINGS not in frozen.user_attrs or (frozen.state == TrialState.FAIL and name not in outcomes):
            continue  # a proposal of what was tried before
        outcome = outcomes.get(name)
        status = outcome.status if outcome else RUNNING
        values = {int(epoch): float(value) for epoch, value in reported_by(frozen).items()}
        setting = setting_of(frozen.user_attrs[SETTINGS], list(settings.search))
        start = frozen.user_attrs.get("start", "drawn")
        error, is_rival = outcome.error if outcome else "", not settings.lengths or name in rivals
        found.append(Trial(name, number, status, start, setting, values, error, is_rival))
    return found


def _paper_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial that ran the paper's setting, of those that finalists are taken from."""
    return next((trial for trial in trials if trial.start == "paper" and trial.is_rival), None)


def _confirmed(
    settings: SearchSettings, outcomes: Mapping[str, Outcome], trials: Sequence[Trial], series: Mapping[str, Series]
) -> list[Confirmed]:
    """The settings with confirmation runs, best mean first."""
    metric, sign = settings.objective.metric, 1 if settings.objective.mode == "max" else -1
    runs: dict[str, list[Outcome]] = {}
    for name, outcome in outcomes.items():
        if name.startswith("confirm-") and outcome.status == COMPLETE and metric in outcome.metrics:
            runs.setdefault(_confirmed_trial(name), []).append(outcome)
    ran = _paper_of(trials)
    paper = ran.name if ran else "paper"  # and behind it the code length, where there are several
    found = [
        Confirmed(
            trial,
            setting_of(mine[0].settings, list(settings.search)),
            [run.metrics[metric] for run in mine],
            [dict(series.get(run.name, {}).get(metric, {})) for run in mine],
            trial.startswith(paper),
        )
        for trial, mine in runs.items()
    ]
    return sorted(found, key=lambda each: -sign * each.mean)


def _how_far(settings: SearchSettings, trials: Sequence[Trial], confirmed: Sequence[Confirmed]) -> str:
    done = sum(trial.status in (COMPLETE, PRUNED, FAILED) for trial in trials)
    text = f"not finished: {done} of {settings.trials} trials have ended"
    return f"{text}, {len(confirmed)} settings were confirmed so far" if confirmed else text


def read_evidence(data: SearchData) -> Evidence:
    """The codes of the winner and of the paper's setting on test queries.

    Of a search that has not tested yet: of its best trial so far and of the paper's trial, on validation queries.

    Raises SettingsError or DataError where checkpoints or data cannot be read, LookupError where no run can be shown.
    """
    outcomes = read_outcomes(data.folder)
    stage: Stage = "final" if data.finished else "search"
    chosen: dict[str, str] = {}
    if data.finished:
        result = read_result(data.folder)
        chosen = {WINNER: result.best_test.name, PAPER: result.paper_test.name}
        if result.paper_test.name == result.best_test.name:
            chosen.pop(PAPER)
    elif data.complete:
        best, paper = data.complete[0], data.paper_trial
        chosen = {BEST_SO_FAR: best.name}
        if paper is not None and paper.status == COMPLETE and paper is not best:
            chosen[PAPER] = paper.name
    models, split = [], None
    workers = Workers(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for label, run in chosen.items():
        checkpoint = newest(data.folder / RUNS_FOLDER / run)
        if checkpoint is None:
            raise LookupError(f"the checkpoint of {run} is gone")
        training = restored(outcomes[run].trial_settings, stage, checkpoint, workers)
        models.append(_model(label, run, training))
        split = training.split
    if split is None:
        raise LookupError("no trial has come to its end yet")
    return Evidence(split, models)


def picture_folder(data: SearchData, split: Split) -> Path | None:
    """What the file names of a split's items lie below; None where its items are no files."""
    source = DATASETS[data.settings.dataset.name]
    if source.find is None or split.queries.items is None or split.queries.items.dtype != object:
        return None
    root = source.find(source.options(**data.settings.dataset.options)).root
    return Path(root)


def _model(label: str, run: str, training: TrainingRun) -> Model:
    workers, split = training.workers, training.split

    def codes(samples: Samples) -> LabelledCodes:
        return gather_codes(encode_share(training.network, samples, workers), samples, workers)

    centers = first = None
    if training.has_centers and training.codebook_spec is not None:
        spec = training.codebook_spec
        codebook = build_codebook(spec)
        centers, first = training.centers, codebook.centers(first_table(spec, codebook, split.classes))
    return Model(label, run, codes(split.queries), codes(split.ranked), centers, first)
