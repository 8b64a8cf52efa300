"""What a search explores: whether it fits the other settings of its file, and what of it a dataset allows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from crh_tune.errors import counted
from crh_tune.hashing.codebook import feasible_head_dims
from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES, Options
from crh_tune.settings.base import SettingsError, known, one_line
from crh_tune.settings.distribution import Distribution
from crh_tune.settings.training import Full, TrainingSettings, codebook_size, head_dim, objective_options
from crh_tune.settings.used import is_given

if TYPE_CHECKING:
    from crh_tune.settings.search import SearchSettings, Value


_TOGETHER = ("backbone", "weights", "freeze", "crop")
"""What a setting of the network's inputs and layers is possible with; all else is checked by itself."""


def check_space(settings: SearchSettings) -> None:
    """Raises ValueError where what is explored, or tried first, does not go together or with the rest of the search."""
    if not settings.search:
        raise ValueError("search: nothing to search over")
    kinds = {distribution.kind for distribution in settings.search.values()}
    if "grid" in kinds and len(kinds) > 1:
        raise ValueError("search: a grid cannot be mixed with other distributions")
    if "codebook_ratio" in settings.search and "codebook_size" in settings.search:
        raise ValueError("search: give codebook_size or codebook_ratio, not both")
    # what others are checked with comes first, so that each mistake is told of its own setting
    for name in sorted(settings.search, key=lambda name: (name != "bits", name not in _TOGETHER)):
        _check_searched(settings, name, settings.search[name])
    _check_read(settings)
    for index, start in enumerate(settings.start_from):
        _check_start(settings, index, start)
    _check_frozen(settings)
    settings.objective.check_second(settings.search, settings.lengths, settings.start_from)
    if settings.sampler == "cmaes":
        _check_cmaes(settings)
    if settings.scheduler.short is not None and (settings.lengths or settings.objective.also is not None):
        asks = "search.bits asks for the smallest" if settings.lengths else "objective names two"
        raise ValueError(f"scheduler: short does not train trials whole, and {asks}: take another, such as asha")


def _check_frozen(settings: SearchSettings) -> None:
    """Raises ValueError where the trials of a search would not all see the same inputs."""
    if settings.confirm.freeze is False and not settings.trial.freeze:
        raise ValueError("confirm.freeze: false is for a search on a frozen backbone: set trial.freeze: true")
    once = ("backbone", "weights", "flip", "precision", "channels_last", "compile")
    names = ("freeze", *(once if settings.trial.freeze else ()))
    fixed = next((name for name in names if name in settings.search), None)
    if fixed is not None:
        raise ValueError(f"search.{fixed}: features of a frozen backbone are computed once: set {fixed} in trial")


def _check_cmaes(settings: SearchSettings) -> None:
    """Raises ValueError where CMA-ES has nothing to move: it takes one objective, and ranges of every trial."""
    if settings.objective.also is not None:
        raise ValueError("sampler: cmaes takes one objective, and two are named: take tpe, gp or random")
    ranges = ("int", "uniform", "log_uniform")
    anywhere = frozenset.union(*map(settings.unread, settings.combinations()))
    moved = [name for name, each in settings.search.items() if each.kind in ranges and name not in anywhere]
    if len(moved) < 2:
        there = ", ".join(moved) or "none"
        raise ValueError(
            f"sampler: cmaes moves two or more ranges that every trial draws, and search has {there}: "
            "make choices ranges (int, uniform, log_uniform), or take tpe, gp or random"
        )


def _check_read(settings: SearchSettings) -> None:
    """Raises ValueError for a setting that no trial of this space reads, and for an objective that one has not."""
    combinations = settings.combinations()
    methods = " or ".join(dict.fromkeys(str(values.get("method", settings.method)) for values in combinations))
    nobody = frozenset.intersection(*map(settings.unread, combinations))
    for name in (name for name in TrainingSettings.model_fields if name in nobody):
        if name in settings.search:
            raise ValueError(f"search.{name}: method {methods} does not use it: leave it out")
        if is_given(settings.trial, name):
            raise ValueError(f"trial.{name}: method {methods} does not use it: leave it out")
    for values in combinations:
        _check_objective(settings, values)
        if settings.objective.metric == "centers/pcc" and "center_seed" in settings.unread(values):
            method = values.get("method", settings.method)
            raise ValueError(f"objective.metric: centers/pcc is of centres, which method {method} has not: val/map")


def _check_objective(settings: SearchSettings, values: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting of an objective, fixed or searched over, that it cannot have."""
    method = str(values.get("method", settings.method))
    objective = str(values.get("objective") or settings.trial.objective or METHODS[method].objective)
    for name in OBJECTIVES[objective].options_type.own():
        searched = settings.search[name].values if name in settings.search else [getattr(settings.trial, name)]
        for value in searched:
            try:
                objective_options(settings.trial.model_copy(update={name: value}), objective)
            except ValidationError as error:
                where = "search" if name in settings.search else "trial"
                raise ValueError(f"{where}.{one_line(error, Options)}") from None


def _check_searched(settings: SearchSettings, name: str, distribution: Distribution) -> None:
    searchable = {"method": None, **TrainingSettings.model_fields}
    try:
        known(name, searchable, "setting")
        if name in ("betas", "nested"):
            raise ValueError("a list of numbers cannot be searched over: set it under trial")
        if distribution.kind == "feasible":
            if name != "head_dim":
                raise ValueError("feasible is for head_dim only")
            return
        if distribution.kind == "smallest" and name != "bits":
            raise ValueError("smallest is for bits only")
        for value in distribution.values:
            _check_value(settings, name, value)
        if distribution.kind in ("uniform", "log_uniform") and _is_whole(name):
            raise ValueError(f"{distribution.kind} draws fractions, {name} is a whole number: use int")
    except ValueError as error:
        raise ValueError(f"search.{name}: {error}") from None


def _check_value(settings: SearchSettings, name: str, value: Any) -> None:
    """Raises ValueError where no trial could have this value, whatever the others are."""
    if name == "method":
        known(value, METHODS, "method")
        return
    bits = [settings.trial.bits] if name == "bits" else settings.drawn("bits")
    learned = [k - free for k, free in itertools.product(bits, settings.drawn("open_bits"))]
    if name == "head_dim" and isinstance(value, int) and value >= 1 and any(k % value == 0 for k in learned):
        return
    errors = []
    for others in combined(settings, [each for each in _TOGETHER if each != name]):
        try:
            made = TrainingSettings(**{"bits": max(bits), **others, name: value})
        except ValidationError as error:
            errors.append(one_line(error, TrainingSettings).removeprefix(f"{name}: "))
            continue
        if getattr(made, name) != value:
            raise ValueError(f"expected {getattr(made, name)!r}, got {value!r}")
        return
    raise ValueError(errors[0])


def combined(settings: SearchSettings, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All that these settings can be together: what is fixed, or the values (of a range, its ends) searched over."""
    values = [
        settings.search[name].values if name in settings.search else [getattr(settings.trial, name)] for name in names
    ]
    return (dict(zip(names, each, strict=True)) for each in itertools.product(*values))


def _check_start(settings: SearchSettings, index: int, start: str | dict[str, Value]) -> None:
    if isinstance(start, str):
        return
    for name, value in start.items():
        where = f"start_from.{index}.{name}"
        if name not in settings.search:
            raise ValueError(f"{where}: not searched over: one of {', '.join(settings.search)}")
        distribution = settings.search[name]
        if distribution.kind == "smallest":
            raise ValueError(f"{where}: which length is tried is not drawn: leave it out")
        if distribution.kind != "feasible" and not distribution.contains(value):
            raise ValueError(f"{where}: {value!r} is not in {distribution.model_dump()}")
        try:
            _check_value(settings, name, value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if name in settings.unread(start):
            raise ValueError(f"{where}: method {start.get('method', settings.method)} does not use it: leave it out")


def without_effect(settings: SearchSettings) -> list[str]:
    """What was asked for and changes nothing in the trials of this search, a line each."""
    return [line for line in (_interval_unseen(settings), _scheduler_unseen(settings)) if line]


def _scheduler_unseen(settings: SearchSettings) -> str:
    chosen, epochs = settings.scheduler, max(settings.drawn("epochs"))
    limited = chosen.asha or chosen.hyperband or chosen.median_stopping
    first = limited.grace_epochs if limited is not None else chosen.until
    if "scheduler" not in settings.model_fields_set or first is None or first < epochs:
        return ""
    return f"scheduler: ends no trial early: trials have {counted(epochs, 'epoch')}, and it begins after {first}"


def _interval_unseen(settings: SearchSettings) -> str:
    if "update_interval" not in settings.search:
        return ""
    whole, early = max(settings.drawn("epochs")), min(settings.drawn("early_epochs"))
    epochs = min(settings.scheduler.until or whole, whole)
    if epochs > early + 1:  # after the last epoch an update changes nothing
        return ""
    return (
        f"update_interval: trials of {counted(epochs, 'epoch')} cannot tell its values apart, as centres are "
        f"reassigned after each of the first {early} (early_epochs)"
    )


def check_feasible(settings: SearchSettings, classes: int) -> None:
    """Raises SettingsError where a codebook size or head dimension that can be drawn is impossible for C."""
    if settings.objective.metric == "centers/pcc" and classes < 3:
        raise SettingsError("objective.metric: centers/pcc compares pairs of classes, two classes are one: val/map")
    if settings.is_grid:
        for cell in settings.cells():
            try:
                settings.trial_settings(cell, settings.seed).resolve(classes, False)
            except SettingsError as error:
                raise SettingsError(f"search: {cell}: {error}") from None
        return
    named: list[str] = [
        name for name in ("reassignment", "objective", "hash_layer", "open_bits") if name in settings.search
    ]
    others = [settings.drawn(name) for name in named]
    if "accumulate" in settings.search:  # more than one part is what some objectives refuse
        named, others = [*named, "accumulate"], [*others, [max(settings.drawn("accumulate"))]]
    parts = itertools.product(settings.drawn("bits"), _drawn_methods(settings), settings.drawn("centers"), *others)
    for bits, method, centers, *rest in parts:
        values = {"bits": bits, "method": method, "centers": centers, **dict(zip(named, rest, strict=True))}
        uses = settings.uses_codebook(values)
        drawable = [{**values, **each} for each in _drawn_codebook(settings)] if uses else [values]
        found = [{**each, **_head_dim_for(settings, each, classes)} if uses else each for each in drawable]
        try:
            for each in found:
                settings.trial_settings(each, settings.seed).resolve(classes, False)
        except SettingsError as error:
            which = ", ".join(f"{name} {value}" for name, value in zip(named, rest, strict=True))
            raise SettingsError(f"search: method {method}{f' with {which}' if which else ''}: {error}") from None


def _drawn_methods(settings: SearchSettings) -> list[str]:
    return list(settings.search["method"].values) if "method" in settings.search else [settings.method]


def _head_dim_for(settings: SearchSettings, values: dict[str, Any], classes: int) -> dict[str, Any]:
    """A head dimension that can be drawn beside these values; none where it is not searched over.

    Raises SettingsError where there is no such codebook.
    """
    searched = {"head_dim": None} if "head_dim" in settings.search else {}
    made = settings.trial_settings({**values, **searched}, settings.seed)
    trial = made.trial
    try:
        size = codebook_size(trial, classes)
        head_dim(trial, size, METHODS[made.method].heads == "single")
    except ValueError as error:
        raise SettingsError(f"search: {error}") from None
    bits = trial.learned_bits
    divided = f"bits K = {bits}{f' and nested {list(trial.nested)}' if trial.nested else ''}"
    allowed = allowed_head_dims(settings, bits, size)
    if not allowed:
        raise SettingsError(
            f"search.head_dim: none of {list(settings.search['head_dim'].values)} divides {divided} and "
            f"holds M = {size} codewords: one of {feasible_head_dims(math.gcd(bits, *trial.nested), int(size))}"
        )
    return {"head_dim": allowed[0]} if searched else {}


def _is_whole(name: str) -> bool:
    """Whether a setting takes whole numbers only."""
    annotation = str(TrainingSettings.model_fields[name].annotation)
    return "int" in annotation and "float" not in annotation


def allowed_head_dims(settings: SearchSettings, bits: int, size: int | Full) -> list[int]:
    """The head dimensions a search may draw for this K and M: the feasible ones, or those of them it lists."""
    if size == "full":
        return [bits]
    feasible = feasible_head_dims(math.gcd(bits, *settings.trial.nested), size)
    distribution = settings.search.get("head_dim")
    if distribution is None or distribution.kind == "feasible":
        return feasible
    if distribution.kind in ("choice", "grid"):
        return [d for d in feasible if d in distribution.values]
    return [d for d in feasible if distribution.contains(d)]


def _drawn_codebook(settings: SearchSettings) -> list[dict[str, Any]]:
    for name in ("codebook_ratio", "codebook_size"):
        if name in settings.search:
            return [{name: value} for value in settings.search[name].values]
    return [{}]
