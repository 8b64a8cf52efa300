"""The smallest code length that reaches a target: which length is tried next, and what is known of each.

Lengths are bisected, on the assumption that a longer code is no worse. All of it follows from how trials ended, so that
a search that is resumed takes the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from crh_tune.errors import counted
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.record import COMPLETE, Outcome


@dataclass(frozen=True)
class Length:
    """What is known of a code length: how many trials have ended, the best value of those that came to their end."""

    bits: int
    trials: int
    best: float | None
    reached: bool
    """Whether a trial has the target."""


def check_lengths(settings: SearchSettings) -> None:
    """Raises SettingsError where a search for the smallest length has no target, or too few trials."""
    if settings.lengths and settings.target is None:
        sign = ">=" if settings.objective.mode == "max" else "<="
        goal = f"{settings.objective.metric} {sign} 0.85"
        raise SettingsError(f"search.bits: smallest needs to know what is to be reached: set target, such as {goal}")
    if settings.budget.trials < settings.most_lengths:
        raise SettingsError(
            f"budget.trials: {settings.budget.trials} is too few: up to {settings.most_lengths} of the "
            f"{len(settings.lengths)} code lengths are tried, with one trial each at least"
        )


def next_length(lengths: Sequence[int], enough: Mapping[int, bool]) -> int | None:
    """The length to try, given of those tried whether they were enough; None once the smallest is known, or none is.

    It is the middle one of those between the longest that was not enough and the shortest that was, ascending; of two
    the longer, since a length that is enough is soon left.
    """
    too_short = max((bits for bits, reached in enough.items() if not reached), default=0)
    long_enough = min((bits for bits, reached in enough.items() if reached), default=math.inf)
    left = [bits for bits in lengths if too_short < bits < long_enough]
    return left[len(left) // 2] if left else None


def reaching(settings: SearchSettings, outcomes: Iterable[Outcome]) -> Outcome | None:
    """The first complete trial, by name, that has what the search's target asks for."""
    metric = settings.objective.metric
    enough = [
        each
        for each in outcomes
        if each.status == COMPLETE and metric in each.metrics and settings.reaches_target(each.metrics[metric])
    ]
    return min(enough, key=lambda each: each.name, default=None)


def ended_by(settings: SearchSettings, outcomes: Iterable[Outcome]) -> Outcome | None:
    """The trial that a search ends at, since it has the target.

    None in a search for the smallest length, which goes on with a shorter one.
    """
    return None if settings.lengths else reaching(settings, outcomes)


def suffix_of(settings: SearchSettings, bits: int) -> str:
    """What the names of all that belongs to one length have in them: its trials, its study, what it takes over.

    Empty in a search that does not ask for the smallest length.
    """
    return f"-{bits}bits" if settings.lengths else ""


def studies_of(settings: SearchSettings) -> dict[str, SearchSettings]:
    """The settings of each study of a search, by its suffix: one study for every length, or one for all trials."""
    lengths = {suffix_of(settings, bits): settings.at_length(bits) for bits in settings.lengths}
    return lengths or {"": settings}


def of_length(trials: Mapping[str, Outcome], bits: int) -> dict[str, Outcome]:
    """The trials with codes of this length, by name."""
    return {name: trial for name, trial in trials.items() if trial.settings["trial"]["bits"] == bits}


def lengths_of(settings: SearchSettings, trials: Mapping[str, Outcome]) -> tuple[Length, ...]:
    """What trials tell of each length, ascending; nothing of a search that does not ask for the smallest."""
    metric, best = settings.objective.metric, max if settings.objective.mode == "max" else min
    found = []
    for bits in settings.lengths:
        mine = of_length(trials, bits).values()
        values = [each.metrics[metric] for each in mine if each.status == COMPLETE and metric in each.metrics]
        found.append(Length(bits, len(mine), best(values, default=None), reaching(settings, mine) is not None))
    return tuple(found)


def contest(settings: SearchSettings, trials: Mapping[str, Outcome]) -> tuple[SearchSettings, Mapping[str, Outcome]]:
    """The trials that finalists are taken from, and the settings of a search among them.

    These are all, but where the smallest length is wanted: then those of the smallest that was enough, and where none
    was, of the longest that has a complete trial.
    """
    if not settings.lengths:
        return settings, trials
    known = lengths_of(settings, trials)
    enough = [each.bits for each in known if each.reached]
    ended = [each.bits for each in known if each.best is not None]
    bits = enough[0] if enough else max(ended, default=settings.lengths[-1])
    return settings.at_length(bits), of_length(trials, bits)


def verdict(lengths: Sequence[Length], target: str) -> str:
    """Which length is enough by the trials so far, which are not, and which were not tried, in one line."""
    enough = next((each.bits for each in lengths if each.reached), None)
    told = [f"{each.bits} bits {_said(each)}" for each in lengths if each.trials]
    untried = [str(each.bits) for each in lengths if not each.trials]
    told += [f"not tried: {', '.join(untried)}"] if untried else []
    head = "no length is enough" if enough is None else f"{enough} bits are enough"
    return f"{head} for {target}: {'; '.join(told)}"


def _said(length: Length) -> str:
    if length.best is None:
        return f"have no value yet in {counted(length.trials, 'trial')}"
    return f"have {length.best:.4f}" + ("" if length.reached else f" at best in {counted(length.trials, 'trial')}")
