"""Training objectives, one file each. An objective maps outputs, targets and centres to named per-sample losses.

A file of this folder is found by itself: it holds one class made from :class:`Objective`, whose name in the settings
is the file's.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from crh_tune.hashing.objectives.base import Objective, Options, Symbol, nested_terms


def _in_file(name: str) -> list[type[Objective]]:
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Objective)]
    return [kind for kind in kinds if kind.__module__ == module.__name__ and not inspect.isabstract(kind)]


OBJECTIVES: dict[str, type[Objective]] = {
    file.name: kind for file in pkgutil.iter_modules(__path__) for kind in _in_file(file.name)
}

__all__ = ["OBJECTIVES", "Objective", "Options", "Symbol", "nested_terms"]
