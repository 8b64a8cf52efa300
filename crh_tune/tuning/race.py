"""Who stays in a race of settings that are judged under noise, and what the winner's gain is worth.

Settings run one fresh seed after another. The noise is one number for all of them: the standard deviation of a value
around the mean of its setting, pooled. A difference of two means has the interval of Student's t with it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import scipy.special

CONFIDENCE = 0.95
Values = Mapping[str, Sequence[float]]
"""The values of each setting, one a seed."""


@dataclass(frozen=True)
class Gain:
    """The difference of two means, with its 95 % interval; NaN where there are too few values to know it."""

    mean: float
    low: float
    high: float


def gain(values: Values, of: str, over: str) -> Gain:
    """How much more one setting has than another in the mean; the noise is estimated from all of them.

    Both have at least one value; the interval needs a setting that has two.
    """
    mean = statistics.fmean(values[of]) - statistics.fmean(values[over])
    freedom = sum(len(each) - 1 for each in values.values() if each)
    if freedom == 0:
        return Gain(mean, math.nan, math.nan)
    squares = sum((value - statistics.fmean(each)) ** 2 for each in values.values() if each for value in each)
    error = math.sqrt(squares / freedom * (1 / len(values[of]) + 1 / len(values[over])))
    width = float(scipy.special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Gain(mean, mean - width, mean + width)


def places(finalists: int, run: int, seeds: int) -> int:
    """How many of so many finalists stay in a race of ``seeds`` seeds once ``run`` of them have been run: equally
    many drop out after each seed, and one stays at least."""
    return max(1, math.ceil(finalists * (seeds - run) / seeds))


def most_runs(finalists: int, seeds: int) -> int:
    """How many runs a race of finalists and the paper's setting has at most."""
    return seeds + sum(places(finalists, run, seeds) for run in range(seeds) if finalists)


def stay(values: Values, paper: str, most: int, sign: int) -> list[str]:
    """The finalists that stay, best first: at most so many, and none that is clearly worse than the best of all.

    ``values`` has those still in the race, the paper's setting among them; ``sign`` is 1 where more is better, else -1.
    A finalist without a value drops out.
    """
    known = {name: each for name, each in values.items() if each}
    ranked = sorted(known, key=lambda name: (-sign * statistics.fmean(known[name]), name))
    return [name for name in ranked if name != paper and not clear(gain(known, ranked[0], name), sign)][:most]


def clear(difference: Gain, sign: int) -> bool:
    """Whether a gain is above zero with its whole interval (below, where less is better); never where it is unknown."""
    return difference.low > 0 if sign > 0 else difference.high < 0
