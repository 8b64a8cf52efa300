"""The searches of a storage folder: what is there, how far each is, and freeing the checkpoints of one that has ended.

Needs neither Ray nor MLflow nor Optuna: only the record on disk is read.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crh_tune.errors import counted
from crh_tune.ground import aligned
from crh_tune.settings.base import SettingsError
from crh_tune.tuning.record import (
    COMPLETE,
    SETTINGS_FILE,
    SUMMARY_FILE,
    Outcome,
    find_folder,
    held,
    read_outcomes,
    read_settings,
)
from crh_tune.tuning.results import read_result
from crh_tune.tuning.run import RUNS_FOLDER

TUNE_FOLDER = "tune"
NEEDED = "final-"
"""How the names of the runs begin whose newest checkpoint an export, a report or a comparison needs."""


@dataclass(frozen=True)
class Listed:
    """A search of a storage folder: how it stands, the best value it has found, the bytes it takes on disk."""

    name: str
    state: str
    best: str
    size: int


def list_searches(storage: Path) -> list[Listed]:
    """All searches of a storage folder by name; one whose files cannot be read is listed with the reason."""
    found = []
    for path in sorted(storage.glob(f"*/{SETTINGS_FILE}")):
        try:
            state, best = _state(path.parent)
        except (SettingsError, OSError) as error:
            state, best = f"not readable: {error}", ""
        found.append(Listed(path.parent.name, state, best, size_of(path.parent)))
    return found


def list_lines(storage: Path) -> list[str]:
    """The searches of a storage folder as a table to print, a line each."""
    found = list_searches(storage)
    if not found:
        return [f"no search in {storage}"]
    rows = [("search", "state", "best", "on disk")]
    rows += [(each.name, each.state, each.best, megabytes(each.size)) for each in found]
    return aligned(rows)


def _state(folder: Path) -> tuple[str, str]:
    settings = read_settings(folder)
    metric, sign = settings.objective.metric, 1 if settings.objective.mode == "max" else -1
    if (folder / SUMMARY_FILE).exists():
        result = read_result(folder)
        test = result.best_test.metrics["test/map"]
        return result.ended, f"{metric} {result.best.mean:.4f}, test/map {test:.4f}"
    outcomes = list(read_outcomes(folder).values())
    trials = [outcome for outcome in outcomes if outcome.start != "fixed"]
    fixed = len(outcomes) - len(trials)
    state = f"{'running' if is_held(folder) else 'stopped'}, {len(trials)} of {settings.trials} trials"
    state += f" and {counted(fixed, 'run')} of finalists" if fixed else ""
    best = max(filter(None, (_value(trial, metric, sign) for trial in trials)), default=None)
    return state, f"{metric} {sign * best[0]:.4f} ({best[1]})" if best else ""


def _value(outcome: Outcome, metric: str, sign: int) -> tuple[float, str] | None:
    if outcome.status != COMPLETE or metric not in outcome.metrics:
        return None
    return sign * outcome.metrics[metric], outcome.name


def is_held(folder: Path) -> bool:
    """Whether a process works in the folder just now."""
    try:
        with (folder / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def clean(storage: Path, name: str) -> list[str]:
    """Delete the checkpoints of a search that has ended, but for what its export and report need; what to print.

    Raises SettingsError where there is no such search, it has not ended, or another process works in it.
    """
    folder = find_folder(storage, name)
    with held(folder):
        if not (folder / SUMMARY_FILE).exists():
            raise SettingsError(
                f"{name} has not ended, and needs its checkpoints to resume: crh-tune search --resume {name} first"
            )
        before = size_of(folder)
        for path in _freed(folder):
            shutil.rmtree(path)
        freed = before - size_of(folder)
    kept = ", ".join(sorted(run.name for run in (folder / RUNS_FOLDER).glob(f"{NEEDED}*")))
    return [
        f"freed        {megabytes(freed)} of {megabytes(before)}: the checkpoints of trials and finalists",
        f"kept         the newest checkpoint of {kept}, settings, outcomes, Optuna's study, the summary",
        f"still works  crh-tune export, report and compare {name}; MLflow keeps its runs",
    ]


def _freed(folder: Path) -> Iterator[Path]:
    """The folders that nothing needs any more."""
    for run in sorted((folder / RUNS_FOLDER).glob("*/")):
        checkpoints = sorted(run.glob("checkpoint_*"))
        if not run.name.startswith(NEEDED):
            yield run
        elif _named(folder, run.name) in {path.name for path in checkpoints}:
            yield from (path for path in checkpoints if path.name != _named(folder, run.name))
    if (folder / TUNE_FOLDER).is_dir():
        yield folder / TUNE_FOLDER


def _named(folder: Path, run: str) -> str:
    """The name of the checkpoint that a run ended with; it alone is needed, where it is there."""
    outcome = read_outcomes(folder).get(run)
    return Path(str(outcome.checkpoint)).name if outcome is not None else ""


def size_of(folder: Path) -> int:
    """The bytes that a folder's files have; what goes away meanwhile counts as nothing."""
    total = 0
    for where, _, names in os.walk(folder):  # unlike Path.rglob, it goes on where a folder is gone
        for name in names:
            with suppress(OSError):
                found = os.lstat(os.path.join(where, name))
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
