"""Which files take their names once they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def names_taken() -> Iterator[set[Path]]:
    """Collects the files that are renamed to their names within it, as ``write_whole`` does."""
    taken: set[Path] = set()
    rename = Path.replace

    def renamed(path: Path, target: Path) -> Path:
        taken.add(Path(target))
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", renamed)
        yield taken
