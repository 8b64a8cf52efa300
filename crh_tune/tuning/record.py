"""A search's folder is its record: settings, Optuna's study, how each run ended. A search resumes from it.

Every file is written whole or not at all; one process at a time holds the folder.
"""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from crh_tune import ground
from crh_tune.data.splits import Stage
from crh_tune.settings.base import Settings, SettingsError, one_line, validated
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings

SETTINGS_FILE = "search.json"
SPLITS_FILE = "splits.json"
STUDY_FILE = "optuna.db"
SUMMARY_FILE = "summary.json"
CLOCK_FILE = "seconds_used"
OUTBOX_FILE = "mlflow_outbox.jsonl"
"""What MLflow is told of the search, a line an entry: every metric of every run is in it."""
OUTCOMES_FOLDER = "outcomes"
COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
FINISHED = "finished"
"""How a search ended whose budget let it come to its end."""
Kind = TypeVar("Kind")
_HELD_SECONDS = 0.5
"""How long another process may hold a folder, or look whether one does, before it counts as at work there."""


@dataclass
class Outcome:
    """How one run ended: ``status`` is complete, pruned or failed; ``checkpoint`` is where its last one is.

    ``fingerprint`` is that of the split it saw; empty where an earlier version wrote it.
    """

    name: str
    settings: dict[str, Any]
    start: str = ""
    status: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    error: str = ""
    fingerprint: str = ""

    @property
    def trial_settings(self) -> TrialSettings:
        """What it ran with. Raises SettingsError where that was written by a version that knows other settings."""
        return validated(TrialSettings, self.settings, f"{self.name} was run by another version: begin a new search")


def write_record(path: Path, content: object) -> None:
    """Write plain values or a dataclass as JSON: the file is whole, or as it was.

    Raises OSError where the disk is full or gone.
    """
    ground.write_json(path, to_jsonable_python(content, inf_nan_mode="constants"), indent=2)


def read_record(kind: type[Kind], path: Path) -> Kind:
    """What ``write_record`` wrote, as the dataclass or type it was. Raises SettingsError, naming the file."""
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise SettingsError(f"{path}: not as this version writes it: {one_line(error, Settings)}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: not readable: {error}") from None


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Keep how a run of a search's folder ended. Raises OSError where the disk is full or gone."""
    (folder / OUTCOMES_FOLDER).mkdir(exist_ok=True)
    write_record(folder / OUTCOMES_FOLDER / f"{outcome.name}.json", outcome)


def read_outcomes(folder: Path) -> dict[str, Outcome]:
    """The outcomes of all runs of a search's folder that have ended, by name. Raises SettingsError."""
    found = [read_record(Outcome, path) for path in sorted((folder / OUTCOMES_FOLDER).glob("*.json"))]
    return {outcome.name: outcome for outcome in found}


def trials_of(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Of the runs of a search its trials, without those that confirm and test."""
    return {name: outcome for name, outcome in outcomes.items() if outcome.start != "fixed"}


def make_storage(storage: Path) -> None:
    """Make the folder that searches are kept in. Raises SettingsError where it cannot be made or used."""
    path = str(storage.resolve())
    taken = re.search(r"[?{}]|%[0-9A-Fa-f]{2}|[\ud800-\udfff]", path)  # the last: bytes that are no UTF-8
    if taken is not None:
        raise SettingsError(
            f"--storage: {path}: the address of a database cannot hold {taken[0]!r}: name the folder otherwise"
        )
    try:
        storage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--storage: {path}: cannot be created: {error.strerror}") from None


def new_folder(storage: Path, settings: SearchSettings) -> Path:
    """Make the first free ``name-001``, ``name-002``, ... in the storage, and keep the settings in it.

    Raises SettingsError where it cannot be made.
    """
    number = 1
    while True:
        folder = storage.resolve() / f"{settings.name}-{number:03d}"
        try:
            folder.mkdir()
            write_record(folder / SETTINGS_FILE, settings)
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise SettingsError(f"{folder}: cannot be created: {error.strerror}") from None
        return folder


def find_folder(storage: Path, name: str) -> Path:
    """The folder of a search that was begun. Raises SettingsError, naming those there are, where there is no such."""
    folder = storage.resolve() / name
    if folder.parent != storage.resolve() or not (folder / SETTINGS_FILE).is_file():
        there = sorted(path.parent.name for path in storage.glob(f"*/{SETTINGS_FILE}"))
        raise SettingsError(f"no search {name!r} in {storage}: there is {', '.join(there) or 'none'}")
    return folder


def read_settings(folder: Path) -> SearchSettings:
    """The settings a search was begun with. Raises SettingsError."""
    path = folder / SETTINGS_FILE
    return validated(SearchSettings, read_record(dict[str, Any], path), str(path))


def with_more(folder: Path, trials: int | None, hours: float | None, epochs: int | None = None) -> SearchSettings:
    """The settings of a search that has ended with more trials, hours or epochs; nothing is changed on disk.

    A target is dropped: what is added is spent, after a trial that had what was asked for, whether confirmed or not.
    But for a search for the smallest code length, which goes on where its hours or epochs ended.

    Raises SettingsError where it has not ended, or where what is added would change nothing.
    """
    settings = read_settings(folder)
    if not (folder / SUMMARY_FILE).is_file():
        raise SettingsError(f"{folder.name} has not ended: resume it without adding to it, then add")
    tried = trials_of(read_outcomes(folder)).values()
    left = settings.trials - len(tried)
    if settings.is_grid and left <= 0:
        raise SettingsError(f"{folder.name} is a grid, which has tried all its {settings.trials} cells: nothing to add")
    if settings.is_grid and trials is not None:
        raise SettingsError(
            f"{folder.name} is a grid, which has {left} of its {settings.trials} cells left: add --hours or --epochs"
        )
    if settings.lengths and (trials is not None or _has_finished(folder)):
        raise SettingsError(
            f"{folder.name} shares its {settings.trials} trials out among code lengths as it begins: "
            "begin a new search, with start_from: [paper, earlier] to know what this one knows"
        )
    clock, budget = folder / CLOCK_FILE, settings.budget
    hours_used = float(clock.read_text()) / 3600 if clock.exists() else 0.0
    trained = epochs_of(tried)
    over = {
        "--trials": (trials, left <= 0, f"{budget.trials} trials"),
        "--hours": (hours, budget.hours is not None and hours_used >= budget.hours, f"{budget.hours} hours"),
        "--epochs": (epochs, budget.epochs is not None and trained >= budget.epochs, f"{budget.epochs} epochs"),
    }
    for option, (added, is_over, what) in over.items():
        if is_over and added is None:
            raise SettingsError(f"{folder.name} has used its {what}: add some with {option}")
    more = {
        "trials": (len(tried) if trials and settings.target else budget.trials) + (trials or 0),
        "hours": budget.hours if hours is None else hours_used + hours,
        "epochs": budget.epochs if epochs is None else trained + epochs,
    }
    target = settings.target if settings.lengths else None
    return settings.model_copy(update={"budget": budget.model_copy(update=more), "target": target})


def _has_finished(folder: Path) -> bool:
    """Whether the budget of a search that has ended let it come to its end."""
    return bool(read_record(dict[str, Any], folder / SUMMARY_FILE)["ended"] == FINISHED)


def epochs_of(outcomes: Iterable[Outcome]) -> int:
    """How many epochs these runs have trained in all."""
    return sum(int(outcome.metrics.get("epoch", 0)) for outcome in outcomes)


def go_on_with(folder: Path, settings: SearchSettings) -> None:
    """Let a search that has ended continue under these settings; its summary is kept as ``summary-1.json``, ..."""
    (folder / SUMMARY_FILE).rename(folder / f"summary-{earlier_ends(folder) + 1}.json")
    write_record(folder / SETTINGS_FILE, settings)  # last: before it, nothing has been added


def earlier_ends(folder: Path) -> int:
    """How often a search had ended before something was added to it."""
    return len(list(folder.glob("summary-*.json")))


def same_splits(folder: Path, splits: Mapping[Stage, str]) -> None:
    """Keep the fingerprint of each stage's split. Raises SettingsError where a search was begun with others."""
    path = folder / SPLITS_FILE
    begun = read_record(dict[str, str], path) if path.exists() else splits
    if begun != splits:
        raise SettingsError(
            f"{folder.name} was begun on other data (split {begun['search']}, now {splits['search']}): "
            "bring the data back as it was, or begin a new search"
        )
    write_record(path, splits)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder while it is worked in. Raises SettingsError where another process does."""
    with (folder / "lock").open("w") as lock:
        until = time.monotonic() + _HELD_SECONDS
        while not _locked(lock):
            if time.monotonic() > until:
                raise SettingsError(f"{folder.name} is being run by another process")
            time.sleep(_HELD_SECONDS / 10)
        yield


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
