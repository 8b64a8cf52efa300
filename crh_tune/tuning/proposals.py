"""From a search space to the settings of trials, define-by-run: M first, then d from what M allows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna

from crh_tune.errors import counted
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings, Value
from crh_tune.settings.space import allowed_head_dims
from crh_tune.settings.training import CODEBOOK_NAMES, OBJECTIVE_NAMES, ROUND_NAMES, codebook_size
from crh_tune.settings.trial import TrialSettings
from crh_tune.settings.used import PARTS

START = "start"
"""User attribute of a trial that was enqueued: ``paper``, ``given``, ``earlier`` or ``cell``."""
FIXED = "fixed"
"""User attribute: searched settings that this trial does not draw, because the space cannot express their value."""

LISTED = 1000
"""Spaces of up to so many settings are listed, so that a search of one can end when it has tried them all."""


def propose(trial: optuna.Trial, settings: SearchSettings, classes: int) -> dict[str, Any]:
    """Values for every searched setting. A name always has the same choices: d is named by what it is drawn from.

    The method and its parts come first: what they do not use is not drawn, such as M and d without a codebook.
    """
    fixed: dict[str, Any] = trial.user_attrs.get(FIXED, {})
    values: dict[str, Any] = {}
    for name in _in_order(settings):
        distribution = settings.search[name]
        if name == "head_dim" or (name not in PARTS and name in settings.unread(values)):
            continue
        if name in fixed:
            values[name] = fixed[name]
        elif distribution.kind in ("choice", "grid"):
            values[name] = trial.suggest_categorical(name, distribution.values)
        elif distribution.kind == "int":
            values[name] = trial.suggest_int(name, *distribution.values)
        else:
            values[name] = trial.suggest_float(name, *distribution.values, log=distribution.kind == "log_uniform")
    if "head_dim" in fixed:
        values["head_dim"] = fixed["head_dim"]
    elif "head_dim" in settings.search and settings.uses_codebook(values):
        allowed = _allowed(settings, values, classes)
        values["head_dim"] = (
            allowed[0] if len(allowed) == 1 else trial.suggest_categorical(head_dim_name(allowed), allowed)
        )
    return values


def _in_order(settings: SearchSettings) -> list[str]:
    """What is searched in the order it is drawn: the parts, what they use, and d last."""
    return sorted(settings.search, key=lambda name: (name not in PARTS, name == "head_dim"))


def same(content: Mapping[str, Any]) -> str:
    """What two resolved settings, as plain values, have in common when they are the same."""
    return json.dumps(content, sort_keys=True)


def every_setting(settings: SearchSettings, classes: int, multi_label: bool) -> dict[str, dict[str, Any]] | None:
    """All settings of a space, by what :func:`same` says of them: the values searched over, start points included.

    None where a range has no end of values, or there are more than LISTED.
    """
    if any(distribution.kind in ("uniform", "log_uniform") for distribution in settings.search.values()):
        return None
    listed = list(itertools.islice(_grow(settings, classes, _in_order(settings), {}), LISTED + 1))
    if len(listed) > LISTED:
        return None
    starts = [values for _, values in start_points(settings, classes, multi_label)]
    found: dict[str, dict[str, Any]] = {}
    for values in [*starts, *listed]:
        resolved = settings.trial_settings(values, values.get("seed", settings.seed)).resolve(classes, multi_label)
        found.setdefault(same(resolved.model_dump(mode="json")), values)
    return found


def planned(settings: SearchSettings, classes: int, multi_label: bool) -> str:
    """How many trials a search is to have, and of how many settings, where they can be counted."""
    if settings.lengths:
        among = ", ".join(map(str, settings.lengths))
        each = planned(settings.at_length(settings.lengths[0]), classes, multi_label)
        return f"up to {settings.most_lengths} of the code lengths {among}, each with up to {each}"
    every = every_setting(settings, classes, multi_label)
    short = f" (each {settings.share_of_epochs})" * bool(settings.share_of_epochs)
    if settings.is_grid or every is None:
        return f"{counted(settings.trials, 'trial')}{short}"
    if len(every) <= settings.trials:
        return f"{counted(len(every), 'trial')}{short}, one for each setting there is"
    return f"{counted(settings.trials, 'trial')}{short} of {len(every)} settings"


def _grow(settings: SearchSettings, classes: int, names: list[str], values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every way to give values to the names that are left, as :func:`propose` would draw them."""
    if not names:
        yield values
        return
    name, rest = names[0], names[1:]
    if name not in PARTS and name in settings.unread(values):
        options: list[dict[str, Any]] = [{}]
    else:
        drawable = _allowed(settings, values, classes) if name == "head_dim" else settings.drawn(name)
        options = [{name: value} for value in drawable]
    for option in options:
        yield from _grow(settings, classes, rest, {**values, **option})


def head_dim_name(allowed: list[int]) -> str:
    """The name under which a head dimension is drawn from these values."""
    return f"head_dim_of_{'_'.join(map(str, allowed))}"


def _allowed(settings: SearchSettings, values: dict[str, Any], classes: int) -> list[int]:
    trial = settings.trial_settings({**values, "head_dim": None}, settings.seed).trial
    return allowed_head_dims(settings, trial.learned_bits, codebook_size(trial, classes))


def start_points(
    settings: SearchSettings, classes: int, multi_label: bool, earlier: Sequence[dict[str, Any]] = ()
) -> list[tuple[str, dict[str, Any]]]:
    """What is tried before anything is drawn: every cell of a grid, or what ``start_from`` names.

    ``earlier`` are the values it means by that name.
    """
    if settings.is_grid:
        return [("cell", cell) for cell in settings.cells()]
    points: list[tuple[str, dict[str, Any]]] = []
    for index, start in enumerate(settings.start_from):
        if start == "earlier":
            points += [(start, values) for values in earlier]
            continue
        given: dict[str, Any] = {} if isinstance(start, str) else start
        try:
            values = paper_values(settings, classes, multi_label, given)
        except SettingsError as error:
            raise SettingsError(f"start_from.{index}: {error}") from None
        points.append(("paper" if start == "paper" else "given", {**values, **given}))
    return points


def paper_values(
    settings: SearchSettings, classes: int, multi_label: bool, given: Mapping[str, Value] | None = None
) -> dict[str, Value]:
    """The paper's value of every searched setting: its default, resolved for this dataset and what is given."""
    fields = type(settings.trial).model_fields
    names = [name for name in (*CODEBOOK_NAMES, *OBJECTIVE_NAMES, *ROUND_NAMES) if name in settings.search]
    kept = {**{name: fields[name].default for name in names}, **(given or {})}
    resolved = settings.trial_settings(kept, settings.seed).resolve(classes, multi_label)
    return values_of(settings, resolved, classes)


def values_of(settings: SearchSettings, resolved: TrialSettings, classes: int) -> dict[str, Any]:
    """The searched values of a resolved trial, but what its method does not use."""
    values = {name: getattr(resolved.trial, name, None) for name in settings.search}
    if "method" in values:
        values["method"] = resolved.method
    size = resolved.trial.codebook_size
    if "codebook_ratio" in values and size is not None:
        values["codebook_ratio"] = size if size == "full" else size / classes
    unused = settings.unread(values)
    return {name: value for name, value in values.items() if value is not None and name not in unused}


def enqueue(
    study: optuna.Study,
    settings: SearchSettings,
    classes: int,
    multi_label: bool,
    earlier: Sequence[dict[str, Any]] = (),
) -> None:
    """Put the start points that a study does not have yet in its queue, each value under the name it is drawn by.

    A value that the space cannot draw (the paper's lambda = 0 in a log-uniform range) is fixed for that trial, and not
    told to the sampler as something it drew.
    """
    queued = sum(START in trial.user_attrs for trial in study.get_trials(deepcopy=False))
    for start, values in start_points(settings, classes, multi_label, earlier)[queued:]:
        params, fixed = as_drawn(settings, values, classes)
        study.enqueue_trial(params, user_attrs={START: start, FIXED: fixed})


def enqueue_drawn(study: optuna.Study, settings: SearchSettings, values: dict[str, Any], classes: int) -> None:
    """Put values that the space can draw in a study's queue, as if they had been drawn."""
    study.enqueue_trial(as_drawn(settings, values, classes)[0])


def as_drawn(settings: SearchSettings, values: dict[str, Any], classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values under the names they are drawn by, and those that the space cannot draw."""
    params: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    for name, value in values.items():
        distribution = settings.search[name]
        if name == "head_dim":
            allowed = _allowed(settings, values, classes)
            if value not in allowed:
                fixed[name] = value
            elif len(allowed) > 1:
                params[head_dim_name(allowed)] = value
        elif distribution.contains(value):
            params[name] = value
        else:
            fixed[name] = value
    return params, fixed
