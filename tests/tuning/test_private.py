"""Private interfaces of other libraries are used in the one module that says why, and nowhere else."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import crh_tune

PACKAGE = Path(crh_tune.__file__).parent
PRIVATE = {"ray_private.py": "ray", "train_private.py": "ray", "optuna_private.py": "optuna"}
ALLOWED = {"_exit", "_replace", "_BatchNorm", "_metadata"}  # of os, named tuples and torch


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(source: str) -> set[str]:
    """The names that a module defines, of ``self`` too."""
    nodes = list(ast.walk(ast.parse(source)))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    of_self = (n for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self")
    return own | {node.attr for node in of_self if isinstance(node.ctx, ast.Store)}


def foreign_private_names(source: str) -> Iterator[str]:
    """Private names that a module imports, or asks of an object, and neither it nor one of ours it imports defines."""
    nodes = list(ast.walk(ast.parse(source)))
    own = defined(source)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crh_tune."):
            file = PACKAGE.parent / (node.module or "").replace(".", "/")
            own |= defined(file.with_suffix(".py").read_text(encoding="utf-8")) if not file.is_dir() else set()
    for node in nodes:
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr] if node.attr not in own or ast.unparse(node.value) == "super()" else []
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        yield from (name for name in names if is_private(name) and name not in ALLOWED)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from ray._private import worker", ["_private"]),
        ("import ray._raylet", ["_raylet"]),
        ("study._storage.get_trial(trial._trial_id)", ["_storage", "_trial_id"]),
        ("class A(B):\n def f(self):\n  return self._rungs", ["_rungs"]),
        ("class A(B):\n def _f(self):\n  return super()._f()", ["_f"]),
        ("class A:\n def __init__(self, b):\n  self._b = b\n def f(self, other):\n  return self._b + other._b", []),
        ("class A:\n def _f(self):\n  return self._f() and self.__dict__", []),
    ],
)
def test_what_counts_as_foreign(source: str, found: list[str]):
    assert sorted(foreign_private_names(source)) == found


def test_no_module_uses_a_private_interface_but_the_one_that_says_why():
    found = {path: list(foreign_private_names(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py")}
    assert {path.name for path, names in found.items() if names} == set(PRIVATE)


def test_no_class_overrides_a_private_method_of_ray_or_optuna_elsewhere():
    for module in pkgutil.walk_packages(crh_tune.__path__, "crh_tune."):
        if module.name.endswith("__main__") or module.name.rpartition(".")[2] + ".py" in PRIVATE:
            continue
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ != module.name:
                continue
            foreign = [base for base in kind.__mro__ if base.__module__.split(".")[0] in PRIVATE.values()]
            private = {name for base in foreign for name in vars(base) if is_private(name)} - {"_abc_impl"}
            assert not private & set(vars(kind)), kind


@pytest.mark.parametrize(("name", "library"), PRIVATE.items())
def test_the_one_module_is_of_one_library(name: str, library: str):
    tree = ast.parse((PACKAGE / "tuning" / name).read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {module.split(".")[0] for module in modules} & {"ray", "optuna"} == {library}
