"""A training run as it is proposed, and what the runs of a search share: all that a trial's process is handed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crh_tune.data.splits import Stage
from crh_tune.settings.trial import TrialSettings

RUNS_FOLDER = "runs"
"""The folder of a search in which each run has a folder with its checkpoints."""
SEARCH, CONFIRM, TEST = "search", "confirm", "test"
"""The stages that propose runs."""


@dataclass(frozen=True)
class Run:
    """One training run, from its proposal to its outcome. ``settings`` are resolved.

    Attributes:
        name: of its folder, its outcome and its run in MLflow; once in a search.
        split: which of the dataset's two splits it sees, with the ``fingerprint`` that split must have.
        stage: the stage that proposed it.
        start: where its settings come from: ``paper``, ``given``, ``cell``, ``drawn``; ``fixed`` without any proposal.
        tags: more of what MLflow is told.
        until: after how many epochs it has come to its end, where that is before its settings' last.
    """

    name: str
    settings: TrialSettings
    split: Stage
    fingerprint: str
    stage: str = TEST
    start: str = "fixed"
    tags: Mapping[str, str] = field(default_factory=dict)
    until: int | None = None


@dataclass(frozen=True)
class Shared:
    """What the runs of a search share: its folder, the name of its aggregator, the driver's cache of data."""

    folder: Path
    aggregator: str
    cache: str

    def folder_of(self, run: Run) -> Path:
        """Where a run's checkpoints are."""
        return self.folder / RUNS_FOLDER / run.name
