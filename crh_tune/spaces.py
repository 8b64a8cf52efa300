"""Where search-space files are: a path, the working folder's search_spaces/, or the ones that ship with the package."""

from __future__ import annotations

from pathlib import Path

import crh_tune
from crh_tune.settings.base import SettingsError, did_you_mean, read_yaml


def shipped() -> Path:
    """The folder of the search-space files of the package: inside it in a wheel, beside it in a checkout."""
    package = Path(crh_tune.__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def space_names() -> list[str]:
    """The names of all search spaces and studies there are."""
    return sorted({path.stem for folder in _folders() for path in folder.rglob("*.yaml")})


def find_space(name: str) -> Path:
    """The file of a search space, by path or by name. Raises SettingsError with the names there are."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml"):
        return given
    for folder in _folders():
        for path in (folder / f"{name}.yaml", folder / "paper" / f"{name}.yaml"):
            if path.is_file():
                return path
    known = space_names()
    raise SettingsError(
        f"unknown search space {name!r}: {did_you_mean(name, known)}a path to a YAML file, or one of {', '.join(known)}"
    )


def is_study(path: Path) -> bool:
    """Whether a file of search_spaces/ is a study: it has cells where a search has a space. Raises SettingsError."""
    return "cells" in read_yaml(path)


def _folders() -> list[Path]:
    return [Path("search_spaces"), shipped()]
