"""What a search found, as it is kept and told. Needs neither Ray nor MLflow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crh_tune.settings.search import SearchSettings
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.used import short
from crh_tune.tuning.front import Point
from crh_tune.tuning.lengths import Length
from crh_tune.tuning.race import Gain, clear
from crh_tune.tuning.record import SUMMARY_FILE, Outcome, read_record
from crh_tune.tuning.run import RUNS_FOLDER

FLOAT_COSINE, ROTATION, ITQ = "float cosine", "PCA + rotation", "PCA + ITQ"


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
class Baseline:
    """A ranking that needs no training: its mAP on validation and on test queries, and the winner's gain over it.

    ``gain`` is in test mAP, with its 95 % interval (NaN: unknown, with fewer than two test queries);
    ``bytes_per_item`` is what an item of the database takes.
    """

    name: str
    bytes_per_item: int
    validation: float
    test: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class SearchResult:
    """What a search that has ended found. ``best_test`` and ``paper_test`` are the test mAP, each measured once.

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
    gain: Gain | None = None
    """What the winner has over the paper's setting on fresh seeds; unknown of a search by an earlier version."""
    lengths: tuple[Length, ...] = ()
    """What is known of each code length, where the smallest that reaches the target was searched for."""
    front: tuple[Point, ...] = ()
    """The trials on the front of two objectives, where there are two; each value is that of one run."""
    experiment_id: str = ""
    """MLflow's id of the experiment; empty where the tracking server was not reached."""
    unsent: int = 0
    """How many entries the tracking server has not got, and why."""
    unsent_why: str = ""


def read_result(folder: Path) -> SearchResult:
    """The result of a search that has ended, from its folder. Raises SettingsError where it cannot be read."""
    return replace(read_record(SearchResult, folder / SUMMARY_FILE), folder=folder)


def checkpoint_in(folder: Path, outcome: Outcome) -> Path:
    """Where an outcome's checkpoint is, wherever the search's folder has been moved to."""
    return folder / RUNS_FOLDER / outcome.name / Path(str(outcome.checkpoint)).name


def gain_lines(result: SearchResult, metric: str, mode: str) -> list[str]:
    """What :func:`gains` says, for the last lines of a search."""
    return [f"{label:<17}{text}" for label, text in gains(result, metric, mode)]


def gains(result: SearchResult, metric: str, mode: str) -> list[tuple[str, str]]:
    """What the winner has over the paper's setting on fresh seeds, and whether that is more than chance.

    Each is a label and a text; nothing where the two cannot be compared.
    """
    gain, sign = result.gain, 1 if mode == "max" else -1
    if result.best.trial == result.paper.trial:
        return [("no gain", "nothing that was tried is better than the paper's setting, which is the winner")]
    if gain is None:
        return []
    known = not math.isnan(gain.low)
    interval = (
        f"95 % interval {gain.low:+.4f} to {gain.high:+.4f}" if known else "interval unknown: one seed is too few"
    )
    found = [("search gains", f"{gain.mean:+.4f} {metric} over the paper's setting ({interval})")]
    if not clear(gain, sign):
        found.append(("no gain", "with these seeds it is not measurably better than the paper's setting"))
    return found


def bound_lines(settings: SearchSettings, best: Candidate) -> list[str]:
    """Advice where the winner lies at the end of a range beyond which there are values that a trial can have."""
    ends = []
    for name, distribution in settings.search.items():
        value = best.settings["method"] if name == "method" else best.settings["trial"].get(name)
        past = distribution.beyond(value)
        if past is not None and _possible(name, past):
            ends.append(f"{name} {short(value)} of {list(distribution.values)}")
    if not ends:
        return []
    return [f"on a bound       the winner lies at the end of what was searched: {', '.join(ends)}: search beyond it"]


def _possible(name: str, value: float) -> bool:
    try:
        TrainingSettings.model_validate({name: value})
    except ValueError:
        return False
    return True


def baseline_lines(baselines: Sequence[Baseline]) -> list[str]:
    """The baselines and what training brings over them, for the last lines of a search; nothing without baselines."""
    rows = [f"{each.name:<17}{each.test:.4f} (validation {each.validation:.4f}), {_size(each)}" for each in baselines]
    compared = _compared(baselines)
    return [
        *rows,
        *(f"{'training brings':<17}{_gain(each)}" for each in compared),
        *(f"{'no gain':<17}{doubt}" for doubt in map(_doubt, compared) if doubt),
    ]


def card_lines(baselines: Sequence[Baseline]) -> list[str]:
    """The baselines as rows of the model card's table, and below it what training brings over them."""
    rows = [f"| {each.name}, {_size(each)} | {each.validation:.4f} | {each.test:.4f} |" for each in baselines]
    said = [f"Training brings {_gain(each)}." for each in _compared(baselines)]
    doubts = [f"No gain: {doubt}." for doubt in map(_doubt, _compared(baselines)) if doubt]
    return [*rows, *(line for text in [*said, *doubts] for line in ("", text))]


def _size(baseline: Baseline) -> str:
    same = "" if baseline.name == FLOAT_COSINE else " as the trained codes"
    return f"{baseline.bytes_per_item:,} bytes an item{same}"


def _compared(baselines: Sequence[Baseline]) -> list[Baseline]:
    """Those that training is held against: the best codes without it, and the features themselves."""
    return [each for name in (ITQ, FLOAT_COSINE) for each in baselines if each.name == name]


def _gain(baseline: Baseline) -> str:
    known = not math.isnan(baseline.gain_low)
    interval = f"95 % interval {baseline.gain_low:+.4f} to {baseline.gain_high:+.4f}" if known else "interval unknown"
    return f"{baseline.gain:+.4f} test mAP over {baseline.name} ({interval})"


def _doubt(baseline: Baseline) -> str:
    """Why no gain over a baseline can be claimed; empty where one can."""
    if baseline.gain_low > 0:
        return ""
    if baseline.gain_high < 0:
        return f"{baseline.name} ranks better than the trained codes"
    if math.isnan(baseline.gain_low):
        return f"too few test queries to compare the trained codes with {baseline.name}"
    return f"on these test queries the trained codes are not measurably better than {baseline.name}"
