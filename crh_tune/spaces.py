"""Where search-space files are: a path, the working folder's search_spaces/, or the ones that ship with the package."""

from __future__ import annotations

from pathlib import Path

import crh_tune
from crh_tune.settings.base import SettingsError


def shipped() -> Path:
    """The folder of the search-space files of the package: inside it in a wheel, beside it in a checkout."""
    package = Path(crh_tune.__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def find_space(name: str) -> Path:
    """The file of a search space, by path or by name. Raises SettingsError with the names there are."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml"):
        return given
    folders = [Path("search_spaces"), shipped()]
    for folder in folders:
        for path in (folder / f"{name}.yaml", folder / "paper" / f"{name}.yaml"):
            if path.is_file():
                return path
    known = sorted({path.stem for folder in folders for path in folder.rglob("*.yaml")})
    raise SettingsError(f"unknown search space {name!r}: a path to a YAML file, or one of {', '.join(known)}")
