"""The settings reference, ``docs/settings.md``, from the settings themselves.

python -m crh_tune.settings.reference > docs/settings.md
"""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from crh_tune.data.datasets import DATASETS
from crh_tune.data.options import FileOptions, ImageOptions, LabelOptions, Options
from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES
from crh_tune.settings.distribution import KINDS
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.training import OBJECTIVE_NAMES, TrainingSettings, optimizer_defaults
from crh_tune.settings.used import symbol_of

_INTRODUCTION = """# Settings

<!-- Written by: python -m crh_tune.settings.reference > docs/settings.md -->

A search-space file is YAML. `crh-tune search FILE` runs it, and what is wrong in it is told in one line. An export's
`settings.yaml` holds the settings of one trial: `dataset`, `method`, `trial`, `evaluation`, `validation` and `scaling`
are the same in both. `null` in the column of defaults means: not set."""

_DATASET = """## dataset

The dataset's `name`, and beside it the options that this dataset takes. [data.md](data.md) says how its files lie on
disk."""

_SEARCHED = """## search

`search` maps settings of `trial`, and `method`, to what they are drawn from: `margin: {uniform: [0, 0.5]}`. What a
method does not use is not drawn in its trials."""

_TRIAL = """## trial

Each default is the paper's. Where it says *the method's*, the table of methods below has it; where a number of classes
C or of bits K decides, the formula is given. A setting that a method does not use is refused."""

_OBJECTIVES = """## Settings of the objectives

These stand under `trial` (or `search`) like all others, and belong to one objective or to several. Each objective has
a range and a default of its own. K is the number of bits, C that of classes, u the last layer's outputs, h = tanh(u),
c a class centre, y the labels."""

_METHODS = """## Methods

A method is a preset of these settings: each can be set beside it. The optimizer is that for a pretrained backbone; a
backbone trained from scratch, and a head on a frozen one, trains with Adam at 2e-3 under every method. CRH is the only
method with several heads (`head_dim` below K)."""


def reference() -> str:
    """The whole page, Markdown."""
    return "\n\n".join(
        [
            _INTRODUCTION,
            "## A search-space file",
            settings_table(SearchSettings),
            *_parts("", SearchSettings.model_fields),
            _DATASET,
            *_datasets(),
            _SEARCHED,
            _table(("distribution", "takes"), ((f"`{name}`", text) for name, text in KINDS.items())),
            _TRIAL,
            settings_table(
                TrainingSettings, [name for name in TrainingSettings.model_fields if name not in OBJECTIVE_NAMES]
            ),
            _OBJECTIVES,
            *(_objective(name) for name in OBJECTIVES),
            _METHODS,
            _methods(),
            "",
        ]
    ).replace("\n\n\n", "\n\n")


def sentences(kind: type[BaseModel]) -> dict[str, str]:
    """The sentence below each field of a model, in its source or in that of the classes it is made from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        for field, below in itertools.pairwise(_body(each)):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = inspect.cleandoc(ast.literal_eval(below.value))
    return found


def _body(kind: type) -> list[ast.stmt]:
    """The lines of a class of ours; none of one that is made by a call, or is a library's."""
    try:
        source = inspect.getsource(kind) if kind.__module__.startswith("crh_tune.") else ""
    except OSError:
        return []
    return [line for part in ast.parse(source).body if isinstance(part, ast.ClassDef) for line in part.body]


def settings_table(kind: type[BaseModel], names: Iterable[str] | None = None) -> str:
    """A table of a model's settings, or of some: name, the paper's symbol, default, range, what it is."""
    rows, said = [], sentences(kind)
    for name in kind.model_fields if names is None else names:
        field = kind.model_fields[name]
        symbol = symbol_of(field)
        written = f"{symbol.name} ({symbol.where})" if symbol and symbol.where else symbol.name if symbol else ""
        sentence = said.get(name, "").replace("``", "`")
        rows.append((f"`{name}`", written, default_of(name, field), range_of(field), sentence))
    return _table(("setting", "symbol", "default", "range", "what it is"), rows)


def default_of(name: str, field: FieldInfo) -> str:
    """A setting's default in words."""
    symbol = symbol_of(field)
    if symbol is not None and symbol.default:
        return symbol.default
    if field.is_required():
        return "required"
    default = field.default
    if isinstance(default, BaseModel):
        return "see below"
    if default is None and name in _of_methods():
        return "the method's"
    if isinstance(default, tuple):
        return f"[{', '.join(map(_plain, default))}]"
    return _plain(default)


def range_of(field: FieldInfo) -> str:
    """The values that a setting may have, in words."""
    return " or ".join(dict.fromkeys(_kinds(field.annotation, field.metadata)))


_WORDS = {bool: ["`true`", "`false`"], str: ["text"], Path: ["a path"], dict: ["a mapping"]}
_SIGNS = {
    annotated_types.Ge: ("ge", ">="),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "<="),
    annotated_types.Lt: ("lt", "<"),
}


def _kinds(annotation: Any, constraints: Iterable[Any] = ()) -> list[str]:
    """Each kind of value that a type takes, within its bounds; null, a default, is left out."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [each for part in parts[1:] for each in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return _kinds(parts[0], [*inner, *constraints])
    if origin is Literal:
        return [f"`{_plain(value)}`" for value in parts]
    if origin in (Union, UnionType, tuple):
        found = [text for part in parts if part is not NoneType for text in _kinds(part, constraints)]
        return found if origin is not tuple else [f"a list of: {' or '.join(dict.fromkeys(found))}"]
    if annotation in (int, float):
        return [f"{'whole number' if annotation is int else 'number'} {_bounds(constraints)}".strip()]
    return ["a mapping"] if _has_settings(annotation) else _WORDS.get(origin or annotation, [])


def _bounds(constraints: Iterable[Any]) -> str:
    found = ((*_SIGNS[type(each)], each) for each in constraints if type(each) in _SIGNS)
    return ", ".join(f"{sign} {_plain(getattr(each, name))}" for name, sign, each in found)


def _parts(above: str, fields: Mapping[str, FieldInfo]) -> list[str]:
    """A heading, a sentence and a table for each mapping of settings in a file, and for those inside it."""
    found = []
    for name, field in fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if _has_settings(kind)]
        if name in ("trial", "dataset", "search") or not kinds:
            continue
        where = f"{above}{name}"
        found += [f"## {where}", _docstring(kinds[0]), settings_table(kinds[0])]
        found += _parts(f"{where}.", kinds[0].model_fields)
    return found


def _has_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


_SHARED_OPTIONS = {"files": FileOptions, "images": ImageOptions, "labels": LabelOptions}


def _datasets() -> list[str]:
    """The options that datasets share, and then each dataset with its own."""
    found = [f"### Options of {name}\n\n{_docstring(kind)}\n\n{_own(kind)}" for name, kind in _SHARED_OPTIONS.items()]
    for kind in dict.fromkeys(source.options for source in DATASETS.values()):
        names = ", ".join(f"`{name}`" for name, source in DATASETS.items() if source.options is kind)
        shared = [name for name, each in _SHARED_OPTIONS.items() if issubclass(kind, each)]
        takes = f"Also the options of {', '.join(shared)}." if shared else ""
        found.append("\n\n".join(part for part in (f"### {names}", _docstring(kind), takes, _own(kind)) if part))
    return found


def _own(kind: type[Options]) -> str:
    """A table of the options that a class declares itself; nothing where it declares none."""
    own = [name for name in kind.model_fields if name in vars(kind).get("__annotations__", {})]
    return settings_table(kind, own) if own else ""


def _objective(name: str) -> str:
    kind = OBJECTIVES[name]
    users = ", ".join(f"`{method}`" for method, row in METHODS.items() if row.objective == name)
    own = kind.options_type.own()
    table = settings_table(kind.options_type, own) if own else "It has no settings."
    return f"### {name}\n\nOf {users}. {_docstring(kind)}\n\n{table}"


def _docstring(kind: type) -> str:
    return (inspect.getdoc(kind) or "").replace("``", "`")


def _of_methods() -> set[str]:
    parts = {"objective", "centers", "reassignment", "hash_layer"}
    return parts | set(optimizer_defaults(METHODS["crh"].optimizer, pretrained=True))


def _methods() -> str:
    rows = []
    for name, row in METHODS.items():
        parts = [row.objective, row.centers, row.reassignment, row.hash_layer]
        optimizer = optimizer_defaults(row.optimizer, pretrained=True)
        betas = "" if row.optimizer.name != "adam" else f"{list(row.optimizer.betas)}"
        values = [*parts, *(_plain(value) for key, value in optimizer.items() if key != "betas"), betas]
        rows.append((f"`{name}`", row.paper, *values))
    names = ["objective", "centers", "reassignment", "hash_layer", *optimizer_defaults(METHODS["crh"].optimizer, True)]
    return _table(("method", "paper", *(f"`{name}`" for name in names)), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _plain(value: object) -> str:
    """A value as YAML would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(reference(), end="")
