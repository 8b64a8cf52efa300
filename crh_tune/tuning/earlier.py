"""What a search takes from finished ones of the same data, method and protocol: their winners, and their trials.

It is kept in the search's folder when it begins, so that a resumed search knows what it knew, whatever has ended since.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from crh_tune.data.splits import Split
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.progress import Say
from crh_tune.tuning.proposals import as_drawn, enqueue_drawn, propose, same, start_points, values_of
from crh_tune.tuning.record import (
    COMPLETE,
    PRUNED,
    SPLITS_FILE,
    SUMMARY_FILE,
    Outcome,
    read_outcomes,
    read_record,
    read_settings,
    write_record,
)
from crh_tune.tuning.results import read_result

EARLIER = "earlier"
"""What ``start_from`` calls it; and the user attribute of a study's trial that was another search's: its name there."""
MOST_STARTS = 3
"""Winners of so many searches are tried first, the latest ones."""


@dataclass(frozen=True)
class Known:
    """A trial of an earlier search: its name, the searched values, how it ended, with what and after which epoch."""

    run: str
    values: dict[str, Any]
    status: str
    value: float
    epoch: int


@dataclass(frozen=True)
class Earlier:
    """What is taken from earlier searches: their winners' values, to be tried first, and their trials."""

    searches: list[str] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    trials: list[Known] = field(default_factory=list)


def known_before(folder: Path, settings: SearchSettings, split: Split, say: Say, suffix: str = "") -> Earlier:
    """What the search in this folder takes from those beside it: as it was when it began, or as it is now.

    ``split`` is what its trials see; ``suffix`` tells its studies apart, where it has several. Raises SettingsError
    where what is kept cannot be read.
    """
    path = folder / f"earlier{suffix}.json"
    if EARLIER not in settings.start_from:
        return Earlier()
    if path.exists():
        return read_record(Earlier, path)
    found = _look(folder, settings, split)
    write_record(path, found)
    if found.searches:
        taken = f"tries {len(found.starts)} of their winners first, and knows {len(found.trials)} of their trials"
        say(f"starts from {', '.join(found.searches)}: {taken}")
    else:
        say("starts from nothing earlier: no finished search in this storage has the same data, method and protocol")
    return found


def _look(folder: Path, settings: SearchSettings, split: Split) -> Earlier:
    """The searches that agree, the latest first. A trial is taken where this search would run it as it was run."""
    agreeing = _agreeing(folder, settings, split.fingerprint)
    searches = {other: outcomes for other, _, outcomes in agreeing}
    winners = [outcomes.get(best) for _, best, outcomes in agreeing]
    starts: list[dict[str, Any]] = []
    for values in (_drawable(settings, won, split.classes) for won in winners if won is not None):
        if values is not None and values not in starts and len(starts) < MOST_STARTS:
            starts.append(values)
    tried = [values for _, values in start_points(settings, split.classes, split.multi_label, starts)]
    trials: dict[str, Known] = {}
    for other, outcomes in searches.items():
        if read_settings(other).scheduler.until != settings.scheduler.until:
            continue  # its trials came to their end after other epochs
        for outcome in outcomes.values():
            values = _drawable(settings, outcome, split.classes)
            if values is not None and values not in tried and _is_run_alike(settings, outcome, values, split):
                known = _known(f"{other.name}/{outcome.name}", outcome, values, settings.objective.metric)
                trials.update({same(outcome.settings): known} if known else {})
    return Earlier([other.name for other in searches], starts, list(trials.values()))


def _agreeing(folder: Path, settings: SearchSettings, fingerprint: str) -> list[tuple[Path, str, dict[str, Outcome]]]:
    """The finished searches beside a search that saw the same split by the same method and protocol, latest first.

    Each is its folder, the name of its best trial, and its outcomes. One that this version cannot read is left out.
    """
    found = []
    for path in folder.parent.glob(f"*/{SUMMARY_FILE}"):
        other = path.parent
        try:
            theirs = read_settings(other)
            split = read_record(dict[str, str], other / SPLITS_FILE)["search"]
            best = read_result(other).best.trial
            agrees = other != folder and split == fingerprint and _protocol(theirs) == _protocol(settings)
            found += [(path.stat().st_mtime, other, best, read_outcomes(other))] if agrees else []
        except (SettingsError, FileNotFoundError):  # of another version; gone on with just now
            continue
    return [each[1:] for each in sorted(found, key=lambda each: each[:2], reverse=True)]


def _protocol(settings: SearchSettings) -> tuple[object, ...]:
    return settings.dataset, settings.method, settings.evaluation, settings.validation, settings.objective


def _drawable(settings: SearchSettings, outcome: Outcome, classes: int) -> dict[str, Any] | None:
    """The searched values of a trial; None of another run, and where the space cannot draw them."""
    if outcome.start == "fixed":
        return None
    try:
        values = values_of(settings, outcome.trial_settings, classes)
        return None if as_drawn(settings, values, classes)[1] else values
    except ValueError:  # no trial of this search can have them, such as more codewords than shorter codes allow
        return None


def _is_run_alike(settings: SearchSettings, outcome: Outcome, values: Mapping[str, Any], split: Split) -> bool:
    """Whether this search would run these values as the trial was run, up to the seed."""
    theirs = outcome.trial_settings
    try:
        ours = settings.trial_settings(values, theirs.trial.seed).resolve(split.classes, split.multi_label)
    except SettingsError:
        return False
    return ours == theirs


def _known(run: str, outcome: Outcome, values: dict[str, Any], metric: str) -> Known | None:
    """A trial with a usable value that ended well or was stopped."""
    value, epoch = outcome.metrics.get(metric), int(outcome.metrics.get("epoch", 0))
    if outcome.status not in (COMPLETE, PRUNED) or value is None or not math.isfinite(value):
        return None
    return Known(run, values, outcome.status, value, epoch)


def tell_earlier(study: optuna.Study, settings: SearchSettings, trials: Sequence[Known], classes: int) -> None:
    """Add trials of earlier searches that a study does not have yet, before it has any of its own."""
    there = {trial.user_attrs.get(EARLIER) for trial in study.get_trials(deepcopy=False)}
    for known in trials:
        if known.run not in there:
            study.add_trial(_as_proposed(settings, known, classes))


def _as_proposed(settings: SearchSettings, known: Known, classes: int) -> FrozenTrial:
    """The trial as a study of this search would have it, had it been proposed here."""
    drawing = optuna.create_study()
    enqueue_drawn(drawing, settings, known.values, classes)
    trial = drawing.ask()
    propose(trial, settings, classes)
    complete = known.status == COMPLETE
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=known.value if complete else None,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values={known.epoch: known.value},
        user_attrs={EARLIER: known.run},
    )
