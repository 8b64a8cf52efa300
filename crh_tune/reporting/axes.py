"""Where the trials of a search stand on the axes of its settings; shared by figures that are still and interactive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crh_tune.reporting.importance import final_values, is_logarithmic, positions, varied
from crh_tune.reporting.search_data import SearchData, Trial, Value
from crh_tune.settings.used import short

Floats = npt.NDArray[np.float64]
_FEW = 8
_GRID = 60
_WIDTH = 0.13


@dataclass(frozen=True)
class Axis:
    """A setting from 0 to 1: where each of some trials stands, and which values are marked where."""

    name: str
    at: Floats
    ticks: Sequence[tuple[float, str]]


def setting_axis(trials: Sequence[Trial], name: str) -> Axis:
    """Text and few numbers evenly spaced, else a range, logarithmic where the values span much."""
    given = [trial.setting[name] for trial in trials]
    distinct: list[Value] = sorted(set(given), key=lambda value: (isinstance(value, str), value))
    if any(isinstance(value, str) for value in distinct) or len(distinct) <= _FEW:
        places = {value: index / max(len(distinct) - 1, 1) for index, value in enumerate(distinct)}
        ticks = [(place, short(value)) for value, place in places.items()]
        return Axis(name, np.array([places[value] for value in given]), ticks)
    numbers = [float(value) for value in given]
    return Axis(name, positions(numbers), _ticks(numbers))


def value_axis(name: str, values: Sequence[float]) -> Axis:
    """Numbers on a linear axis."""
    low, high = min(values), max(values)
    marks = np.linspace(low, high, 5)
    at = (np.array(values) - low) / ((high - low) or 1.0)
    return Axis(name, at, [(place, f"{mark:.3f}") for place, mark in zip(np.linspace(0, 1, 5), marks, strict=True)])


def _ticks(numbers: Sequence[float]) -> list[tuple[float, str]]:
    low, high = min(numbers), max(numbers)
    if is_logarithmic(numbers):
        low = min(value for value in numbers if value > 0)
        marks = np.geomspace(low, high, 5)
        return [(place, short(float(mark))) for place, mark in zip(np.linspace(0, 1, 5), marks, strict=True)]
    marks = np.linspace(low, high, 5)
    return [(place, f"{mark:.2g}") for place, mark in zip(np.linspace(0, 1, 5), marks, strict=True)]


def valued(data: SearchData) -> tuple[list[Trial], list[float]]:
    """The trials that have a value and all settings that differ, and what each came to or would have."""
    values, names = final_values(data), varied(data)
    trials = [trial for trial in data.trials if trial.name in values and all(name in trial.setting for name in names)]
    return trials, [values[trial.name] for trial in trials]


@dataclass(frozen=True)
class Surface:
    """What trials near a place came to, on a grid over two axes: G x G, NaN where none is near; y first."""

    x: Axis
    y: Axis
    at: Floats
    values: Floats


def smooth_surface(x: Axis, y: Axis, values: Sequence[float]) -> Surface:
    """Each place's mean over trials, weighted by a Gaussian of their distance (0.13 of an axis)."""
    at = np.linspace(-0.05, 1.05, _GRID)
    gaps = (at[None, :, None] - x.at) ** 2 + (at[:, None, None] - y.at) ** 2
    weights = np.exp(-gaps / (2 * _WIDTH**2))
    total = weights.sum(axis=2)
    smooth = weights @ np.array(values) / np.maximum(total, 1e-12)
    return Surface(x, y, at, np.where(total > 0.25, smooth, np.nan))
