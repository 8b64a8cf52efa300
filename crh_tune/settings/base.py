"""What all settings share: a strict base, errors of one line, and YAML in and out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from crh_tune.errors import Mistake


class SettingsError(Mistake):
    """A user's mistake in settings or arguments: one line that says what is wrong, where, and what would be right."""


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, nothing changes after construction.

    The sentence below a field is what ``docs/settings.md`` says of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


def known(value: str, table: Mapping[str, Any], what: str) -> str:
    """``value`` if it is one of the table's names; raises ValueError naming the value and the names."""
    if value not in table:
        raise ValueError(f"unknown {what} {value!r}: {did_you_mean(value, table)}one of {', '.join(table)}")
    return value


def did_you_mean(value: str, names: Iterable[str]) -> str:
    """The name that a misspelt one looks like, as the beginning of a sentence; nothing where it looks like none."""
    nearest = difflib.get_close_matches(value, names, 1, cutoff=0.7)
    return f"did you mean {nearest[0]!r}? It is " if nearest else ""


def one_line(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first complaint of a pydantic error as ``field: what is wrong, got value`` (and how many more there are).

    ``kind`` is what was to be made: where a key is unknown, those it knows there are named, the nearest first.
    """
    first, count = error.errors()[0], error.error_count()
    field = ".".join(str(part) for part in first["loc"] if not _names_a_type(str(part)))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_one_of(str(first['loc'][-1]), _keys(kind, first['loc'][:-1]))}"
    elif first["type"] == "missing":
        message = "is required"
    elif first["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, got {_short(first['input'])}"
    line = ": ".join(part for part in (field, message) if part) + (f" (and {count - 1} more)" if count > 1 else "")
    return " ".join(line.splitlines())


def _one_of(key: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(key, names)
    in_order = [*nearest, *(name for name in names if name not in nearest)]
    return f": one of {', '.join(in_order)}" if in_order else ""


def _keys(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys that settings of a kind know at a place in them; none where it is not clear which settings lie there."""
    for part in place:
        field = kind.model_fields.get(str(part))
        inner = _settings_in(field.annotation) if field is not None else []
        if len(inner) == 1:
            kind = inner[0]
        elif not isinstance(part, int) and not _names_a_type(str(part)):
            return []
    return list(kind.model_fields)


def _settings_in(annotation: Any) -> list[type[BaseModel]]:
    """The kinds of settings that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _settings_in(part)]


def _names_a_type(part: str) -> bool:
    """Whether a part of pydantic's location is the member of a union that was tried, and no field."""
    return part in ("int", "float", "str", "dict") or "[" in part or "constrained-" in part


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3 for text, because it has no dot; here it is a number. A key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises SettingsError when it cannot be read, parsed, or is no mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe loader
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"{path}: expected a mapping of settings, got {_short(content)}")
    return content


AnySettings = TypeVar("AnySettings", bound=Settings)


def validated(kind: type[AnySettings], content: Mapping[str, Any], where: str) -> AnySettings:
    """Settings of a kind from plain values. Raises SettingsError, one line that begins with ``where``."""
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        raise SettingsError(f"{where}: {one_line(error, kind)}") from None
