"""What mattered: how much each setting decides whether a trial is among the good ones, and whether one can tell.

PED-ANOVA (Watanabe et al., IJCAI 2023) compares how a setting is spread among the best trials with how it is spread
among all. All trials count: one that was stopped early with what it would have come to, as estimated from the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from crh_tune.reporting.search_data import SearchData, Trial, Value

Floats = npt.NDArray[np.float64]

FEWEST_TRIALS = 12
"""With fewer trials nothing is said about what mattered."""
_BEST = 8
"""How many trials count as the good ones, at least; from 80 trials on it is a tenth."""
_ROUNDS = 40
_CHANCE = 0.05


@dataclass(frozen=True)
class Importance:
    """A setting's share of what all settings decide (0 to 1).

    ``low`` and ``high`` hold the middle 80 % of shares where a fifth of the trials, drawn anew each time, is left out;
    ``chance`` is the share that shuffled values stay below in 95 % of draws.
    """

    name: str
    share: float
    low: float
    high: float
    chance: float

    @property
    def can_tell(self) -> bool:
        """Whether the share is more than chance would give."""
        return self.share > self.chance


def final_values(data: SearchData) -> dict[str, float]:
    """What each trial came to, or would have: by its name, trials without any value left out.

    A trial that was stopped after an epoch counts with its value there plus what the trials that went on gained from
    that epoch to their end, on median.
    """
    complete = [trial for trial in data.complete if trial.values]
    found = {trial.name: float(trial.value) for trial in complete if trial.value is not None}
    for trial in data.trials:
        if trial.name not in found and trial.value is not None:
            gains = [found[other.name] - other.values[trial.epoch] for other in complete if trial.epoch in other.values]
            found[trial.name] = trial.value + (float(np.median(gains)) if gains else 0.0)
    return found


def varied(data: SearchData) -> dict[str, list[Value]]:
    """The settings in which the trials that have a value differ: their distinct values, ascending."""
    known = [trial for trial in data.trials if trial.value is not None]
    values: dict[str, list[Value]] = {}
    for name in data.symbols:
        distinct = {trial.setting[name] for trial in known if name in trial.setting}
        if len(distinct) > 1:
            values[name] = sorted(distinct, key=lambda value: (isinstance(value, str), value))
    return values


def importances(data: SearchData, seed: int = 0) -> list[Importance]:
    """The importance of each setting that trials differ in, the largest first; none with fewer than 12 trials."""
    values = final_values(data)
    trials = [trial for trial in data.trials if trial.name in values]
    names = [name for name in varied(data) if all(name in trial.setting for trial in trials)]
    if len(trials) < FEWEST_TRIALS or not names:
        return []
    study = _study(trials, names)
    losses = -data.sign * np.array([values[trial.name] for trial in trials])
    generator = np.random.default_rng(seed)
    found = _importance(study, names, losses)
    total = float(found.sum())
    if not total > 0:
        return []
    left_out = [generator.permutation(len(trials))[: len(trials) // 5] for _ in range(_ROUNDS)]
    without = np.array([_importance(study, names, _masked(losses, rows)) for rows in left_out])
    shares = without / np.maximum(without.sum(axis=1, keepdims=True), 1e-12)
    chance = np.array([_importance(study, names, generator.permutation(losses)) for _ in range(_ROUNDS)]) / total
    rows = zip(names, found / total, *np.quantile(shares, (0.1, 0.9), axis=0), _quantile(chance), strict=True)
    importances = [Importance(name, *map(float, numbers)) for name, *numbers in rows]
    return sorted(importances, key=lambda each: -each.share)


def _masked(losses: Floats, rows: npt.NDArray[np.int64]) -> Floats:
    """The losses without those of some trials, which PED-ANOVA then leaves out."""
    masked = losses.copy()
    masked[rows] = np.nan
    return masked


def _quantile(chance: Floats) -> Floats:
    return np.asarray(np.quantile(chance, 1 - _CHANCE, axis=0))


def verdict(found: Sequence[Importance], trials: int) -> str:
    """What can be said about what mattered, in a sentence."""
    if not found:
        return f"What mattered cannot be told from {trials} trials: {FEWEST_TRIALS} are needed at least."
    sure = [each.name for each in found if each.can_tell]
    if not sure:
        return (
            f"What mattered cannot be told from {trials} trials: no setting stands out from what chance gives. "
            "More trials would tell."
        )
    rest = [each.name for each in found if not each.can_tell]
    order = ", in this order" if len(sure) > 1 else ""
    more = f"; {trials} trials are too few to judge {_listed(rest)}" if rest else ""
    return f"What mattered: {_listed(sure)}{order}{more}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _columns(
    trials: Sequence[Trial], names: Sequence[str]
) -> tuple[list[dict[str, Value]], Mapping[str, BaseDistribution]]:
    """Each trial's values under one distribution a setting: choices for text and few numbers, else a range."""
    distributions: dict[str, BaseDistribution] = {}
    columns: list[dict[str, Value]] = [{} for _ in trials]
    for name in names:
        given = [trial.setting[name] for trial in trials]
        numbers = [value for value in given if isinstance(value, int | float)]
        if len(numbers) < len(given):
            distributions[name] = CategoricalDistribution(sorted(set(map(str, given))))
            placed: list[Value] = [str(value) for value in given]
        elif all(isinstance(value, int) for value in numbers):
            kinds = sorted(set(numbers))
            if len(kinds) <= 4:
                distributions[name], placed = CategoricalDistribution(kinds), list(numbers)
            else:
                distributions[name], placed = IntDistribution(int(kinds[0]), int(kinds[-1])), list(numbers)
        else:
            axis = positions(numbers)
            distributions[name], placed = FloatDistribution(0.0, 1.0), [float(value) for value in axis]
        for column, value in zip(columns, placed, strict=True):
            column[name] = value
    return columns, distributions


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether positive values span more than a factor of 30, so that a logarithmic axis shows them."""
    positive = [value for value in values if value > 0]
    return len(positive) > 1 and min(values) >= 0 and max(positive) / min(positive) > 30


def positions(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Numbers on an axis from 0 to 1, logarithmic where they span much; a zero there stands at its low end."""
    array = np.array(values, dtype=np.float64)
    if is_logarithmic(values):
        array = np.log(np.maximum(array, min(value for value in values if value > 0)))
    return np.asarray((array - array.min()) / (np.ptp(array) or 1.0))


def _study(trials: Sequence[Trial], names: Sequence[str]) -> optuna.Study:
    """The trials as a study of their own; their values are looked at by number, so it holds none that count."""
    columns, distributions = _columns(trials, names)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(seed=0))
    for column in columns:
        study.add_trial(optuna.trial.create_trial(params=dict(column), distributions=dict(distributions), value=0.0))
    return study


def _importance(study: optuna.Study, names: Sequence[str], losses: Floats) -> Floats:
    """PED-ANOVA of the trials with these losses by number, those without one left out: a value for each name."""
    known = int(np.isfinite(losses).sum())
    quantile = max(0.1, min(1 / 3, _BEST / known))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = PedAnovaImportanceEvaluator(target_quantile=quantile).evaluate(
            study, list(names), target=lambda trial: float(losses[trial.number])
        )
    return np.array([found[name] for name in names])
