"""What the label of a list's row says: a class, several classes, or a value for every class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,2})?|[+-]?\.[0-9]+", re.IGNORECASE)
_APART = re.compile(r"[\s,;|]+")
_MARKS = re.compile(r"\s*[,;|\t]\s*")
_PLAIN_MARKS = re.compile(r"\s*[;|\t]\s*")
"""Those of strings that are labels by themselves, as ``goldfish, Carassius auratus`` is."""
_COMMA = re.compile(r"\s*,\s*")
_BARE = str.maketrans("", "", "[](){}\"'")
_BETWEEN = r"[\s,;|\[\](){}\"']"
_NOTHING = re.compile(rf"{_BETWEEN}*(?:(?:nan|none|null)(?:{_BETWEEN}+|$))*", re.IGNORECASE)
_TRUTH = {"true": True, "yes": True, "y": True, "false": False, "no": False, "n": False}
_SIGN = r"(?:[^\w\s,;|.']|_)"
_OR = re.compile(r"\s*[/&+]\s*")
_SIGNS = re.compile(rf"\s*{_SIGN}\s*")
_DIGITS = re.compile(rf"[0-9](?:{_SIGN}?[0-9])+")
_VALUE = re.compile(r"(\w)[\"']?\s*[:=]\s*(?:[01](?:\.[0-9]*)?|\.[0-9]+|true|false)(?![\w.])", re.IGNORECASE)

Numbers = tuple[float, ...]
_BARS = "put bars between several"


class Doubt(NamedTuple):
    """A label that can be read in two ways, what these are, and how to write one of them."""

    label: str
    both: str
    written: str


def numbers(label: str) -> Numbers | None:
    """The numbers of a label such as ``3``, ``0 1 0``, ``[1., 0.]``, ``2|5`` or ``Y,N``; None where it is a name.

    A number alone that is not whole is a name, and so is a ``True`` or ``yes`` alone.
    """
    values = tuple(map(_value, filter(None, _APART.split(label.translate(_BARE)))))
    if not values or None in values or (len(values) == 1 and not _is_whole(values[0])):
        return None
    return values  # type: ignore[return-value]


@lru_cache(maxsize=10_000)
def _value(word: str) -> float | None:
    return float(word) if _NUMBER.fullmatch(word) else _TRUTH.get(word.lower())


def _is_whole(value: float | None) -> bool:
    return isinstance(value, float) and value.is_integer()


def says_nothing(label: str, known: Collection[str] | None) -> bool:
    """Whether this is no label: empty, ``[]``, ``nan``, ``None`` or ``null``, other than the name of a known class."""
    if _NOTHING.fullmatch(label) is None:
        return False
    return not any(word in (known or ()) for word in _APART.split(label.translate(_BARE)))


def lowest_bit(rows: Iterable[Numbers | None]) -> int:
    """What stands for "not of this class" beside 1 in rows of bits: 0, or -1 where more rows hold that."""
    counts = Counter(low for values in rows if values for low in (0, -1) if low in values and is_bits(values, low))
    return -1 if counts[-1] > counts[0] else 0


def is_bits(values: Numbers, low: int) -> bool:
    """Whether these can be one value, ``low`` or 1, for every class."""
    return len(values) >= 2 and set(values) <= {low, 1}


def is_indices(values: Numbers) -> bool:
    """Whether these can be class indices: whole numbers from 0 on, each once."""
    return len(set(values)) == len(values) and all(value >= 0 and _is_whole(value) for value in values)


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


def unparted_bits(labels: Sequence[str]) -> Doubt | None:
    """A label such as ``0101`` or ``0/1/0`` where most are such: equally long, of no other digits, one from 0 on."""
    found = [label for label in labels if _DIGITS.fullmatch(label.translate(_BARE))]
    digits = [re.sub("[^0-9]", "", label) for label in found]
    if 2 * len(found) <= len(labels) or len(set(map(len, digits))) > 1 or not set("".join(digits)) <= {"0", "1"}:
        return None
    if not any(each.startswith("0") for each in digits):
        return None
    both = f"can be one class, or a 0 or 1 for each of {len(digits[0])} classes"
    return Doubt(found[0], both, "put blanks between the 0s and 1s")


def names_in(
    labels: Collection[str], known: Collection[str] | None, *, strings: bool = False
) -> tuple[dict[str, tuple[str, ...]], Doubt | None]:
    """The class names that each label holds, and a label that can be read in two ways, if there is such a one.

    A comma, bar, semicolon or tab parts names. Where none occurs, a blank does if all that it parts are labels by
    themselves, too; if a word is in two labels otherwise, it cannot be told.

    Args:
        known: the names of the classes, where they are given; a label that holds another has no names.
        strings: whether the labels are strings of an array, in which a comma or blank is part of a name. It cannot be
            told where what a comma parts is in another name, too, or all that blanks part are names by themselves.
    """
    if known is not None:
        return {label: _known_names(label, known) for label in labels}, None
    if strings:
        found = {label: _parted(label, marks=_PLAIN_MARKS) for label in labels}
        return found, _doubt(found) or _joined(found)
    found, doubt = _by_blanks({label: _parted(label) for label in labels})
    return found, _doubt(found) or doubt


def _by_blanks(parted: dict[str, tuple[str, ...]]) -> tuple[dict[str, tuple[str, ...]], Doubt | None]:
    """The names between blanks, where marks part none and that is what blanks do."""
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
    return parted, Doubt(shared[0], "can be one class, or several that a blank parts", _BARS)


def _doubt(found: Mapping[str, tuple[str, ...]]) -> Doubt | None:
    """A label that holds names with values, names beside numbers, or a name that joins others by a sign."""
    every = {name for names in found.values() for name in names}
    combined = _combined({name: _OR.split(name) for name in every})
    for label, names in found.items():
        if (label.startswith("{") and ":" in label) or _holds_values(label):
            written = "write the names that apply with bars between, or a 0 or 1 for every class"
            return Doubt(label, "can be class names, or names with a value each", written)
        odd = [name for name in names if _value(name) is not None]
        if 0 < len(odd) < len(names):
            both = f"can be {len(names)} classes, or hold a value {odd[0]!r} that is no class"
            return Doubt(label, both, "leave out what is no class")
        for name in names:
            parts = set(_SIGNS.split(name))
            if len(parts) > 1 and (parts <= every or name in combined):
                sign = _SIGNS.search(name)[0].strip()  # type: ignore[index]
                return Doubt(label, f"can be one class, or several that {sign!r} parts", _BARS)
    return None


def _combined(parted: Mapping[str, Sequence[str]]) -> set[str]:
    """The names of several parts, where each of these is in other names, too: ``cat/dog``, ``dog/ant``, ``cat/ant``.

    None where a name has a part of its own, or one twice, or where each part has its place, as in ``red/round``.
    """
    often = Counter(part for parts in parted.values() for part in parts)
    several = {name: parts for name, parts in parted.items() if len(parts) > 1}
    alike = all(often[part] > 1 and parts.count(part) == 1 for parts in several.values() for part in parts)
    places = {(part, place) for parts in several.values() for place, part in enumerate(parts)}
    return set(several) if alike and len(places) > len({part for part, _ in places}) else set()


def _joined(found: Mapping[str, tuple[str, ...]]) -> Doubt | None:
    """A label with a name that may be several: what a comma parts is in another, or all that blanks part are names."""
    every = {name: label for label, names in found.items() for name in names}
    often = Counter(part for name in every for part in set(_COMMA.split(name)))
    combined = _combined({name: name.split() for name in every})
    for name, label in every.items():
        parts, words = set(_COMMA.split(name)), set(name.split())
        comma = len(parts) > 1 and any(often[part] > 1 for part in parts)
        if comma or (len(words) > 1 and (words <= every.keys() or name in combined)):
            both = f"can be one class, or several that a {'comma' if comma else 'blank'} parts"
            return Doubt(label, both, _BARS)
    return None


def _holds_values(label: str) -> bool:
    """Whether names have values, as in ``cat:0.9 dog:0.1`` or ``cat=1``; ``16:9`` has none."""
    before = _VALUE.findall(label)
    return len(before) > 1 or any(not character.isdigit() for character in before)


def _known_names(label: str, known: Collection[str]) -> tuple[str, ...]:
    for names in ((label,), _parted(label, known), tuple(dict.fromkeys(label.translate(_BARE).split()))):
        if all(name in known for name in names):
            return names
    return ()


def _parted(label: str, known: Collection[str] = (), marks: re.Pattern[str] = _MARKS) -> tuple[str, ...]:
    """The names between marks, without the brackets and quotes of a list of them, in which commas part names, too.

    What says nothing is no name: the empty cell of a table, or its ``nan``.
    """
    inner = label.strip("\"' ")
    if inner[:1] + inner[-1:] in ("[]", "()", "{}"):
        inner, marks = inner[1:-1], _MARKS
    names = (name.strip("\"' ") if inner != label else name.strip() for name in marks.split(inner))
    return tuple(dict.fromkeys(name for name in names if not says_nothing(name, known))) or (label,)
