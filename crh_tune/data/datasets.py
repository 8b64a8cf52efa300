"""The datasets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crh_tune.data import digits
from crh_tune.data.splits import Dataset


@dataclass(frozen=True)
class Source:
    """A named dataset: the options it takes, and what opens it."""

    options: type[digits.Options]
    open: Callable[[Any], Dataset]


DATASETS: dict[str, Source] = {
    "digits": Source(digits.DigitsOptions, digits.digits),
    "digit_pairs": Source(digits.DigitPairsOptions, digits.digit_pairs),
    "digit_sets": Source(digits.DigitSetsOptions, digits.digit_sets),
}


def open_dataset(name: str, options: Mapping[str, Any]) -> Dataset:
    """Open a dataset. Raises KeyError for an unknown name, pydantic's ValidationError for bad options."""
    source = DATASETS[name]
    return source.open(source.options(**options))
