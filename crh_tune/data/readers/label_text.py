"""What the label of a list's row says: a class, several classes, or a value for every class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import lru_cache

_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,2})?|[+-]?\.[0-9]+", re.IGNORECASE)
_APART = re.compile(r"[\s,;|]+")
_MARKS = re.compile(r"\s*[,;|\t]\s*")
_BARE = str.maketrans("", "", "[](){}\"'")

Numbers = tuple[float, ...]


def numbers(label: str) -> Numbers | None:
    """The numbers of a label such as ``3``, ``0 1 0``, ``[1., 0.]`` or ``2|5``; None where it is a name.

    A number alone that is not whole is a name.
    """
    values = tuple(map(_value, filter(None, _APART.split(label.translate(_BARE)))))
    if not values or None in values or (len(values) == 1 and not values[0].is_integer()):  # type: ignore[union-attr]
        return None
    return values  # type: ignore[return-value]


@lru_cache(maxsize=10_000)
def _value(word: str) -> float | None:
    return float(word) if _NUMBER.fullmatch(word) else None


def lowest_bit(rows: Iterable[Numbers | None]) -> int:
    """What stands for "not of this class" beside 1 in rows of bits: 0, or -1 where more rows hold that."""
    counts = Counter(low for values in rows if values for low in (0, -1) if low in values and is_bits(values, low))
    return -1 if counts[-1] > counts[0] else 0


def is_bits(values: Numbers, low: int) -> bool:
    """Whether these can be one value, ``low`` or 1, for every class."""
    return len(values) >= 2 and set(values) <= {low, 1}


def is_indices(values: Numbers) -> bool:
    """Whether these can be class indices: whole numbers from 0 on, each once."""
    return len(set(values)) == len(values) and all(value >= 0 and value.is_integer() for value in values)


def reading(rows: Iterable[Numbers], classes: int | None) -> str:
    """How rows of numbers are read: ``bits``, ``indices``, or ``either`` where both would do.

    Rows that can only be one of them decide: ``0 1 1`` repeats a number, ``0 2`` has one above 1. ``0 1`` and ``1 0``
    alone are bits: as indices, all samples would be of both classes.

    Args:
        classes: how many classes there are, where they are named.
    """
    bits, indices, open_rows, highest = 0, 0, 0, 0.0
    for values in rows:
        as_bits, as_indices = is_bits(values, 0) or is_bits(values, -1), is_indices(values)
        if as_bits and as_indices and classes in (None, len(values)):
            open_rows += 1
        elif as_bits and not as_indices:
            bits += 1
        elif as_indices:
            indices, highest = indices + 1, max(highest, *values)
    if bits > indices or not (bits or indices):
        return "bits" if bits or open_rows else "indices"
    return "either" if open_rows and not bits and highest <= 1 else "indices"


def names_in(labels: Collection[str], known: Collection[str] | None) -> tuple[dict[str, tuple[str, ...]], str | None]:
    """The class names that each label holds, and a label that can be one name or several, if there is such a one.

    A comma, bar, semicolon or tab parts names. Where none occurs, a blank does if all that it parts are labels by
    themselves, too; if a word is in two labels otherwise, it cannot be told.

    Args:
        known: the names of the classes, where they are given; a label that holds another has no names.
    """
    if known is not None:
        return {label: _known_names(label, known) for label in labels}, None
    parted = {label: _parted(label) for label in labels}
    if any(len(names) > 1 for names in parted.values()):
        return parted, None
    words = {label: tuple(dict.fromkeys(names[0].split())) for label, names in parted.items()}
    often = Counter(word for each in words.values() for word in each)
    alone = {each[0] for each in words.values() if len(each) == 1}
    several = {label: each for label, each in words.items() if len(each) > 1}
    shared = [label for label, each in several.items() if any(often[word] > 1 for word in each)]
    if not shared:
        return parted, None
    if all(word in alone for each in several.values() for word in each):
        return words, None
    return parted, shared[0]


def _known_names(label: str, known: Collection[str]) -> tuple[str, ...]:
    for names in ((label,), _parted(label), tuple(dict.fromkeys(label.translate(_BARE).split()))):
        if all(name in known for name in names):
            return names
    return ()


def _parted(label: str) -> tuple[str, ...]:
    """The names between commas, bars, semicolons and tabs, without brackets and quotes around a list of them."""
    inner = label.strip("\"' ")
    if inner[:1] + inner[-1:] in ("[]", "()", "{}"):
        inner = inner[1:-1]
    names = (name.strip("\"' ") if inner != label else name.strip() for name in _MARKS.split(inner))
    return tuple(dict.fromkeys(filter(None, names))) or (label,)
