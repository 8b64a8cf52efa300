"""From settings to what a run sees, images as pixels or as a frozen backbone's features, and to a run that was kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Dataset, Split, Stage, final_split, search_split
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import DatasetSettings, TrialSettings, ValidationSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.checkpoints import CheckpointError
from crh_tune.training.evaluation import reference_similarity
from crh_tune.training.frozen import frozen_store
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers


def open_data(
    dataset: DatasetSettings,
    trial: TrainingSettings,
    say: Callable[[str], None] = lambda line: None,
    compute: bool = True,
) -> Dataset:
    """A run's dataset; with ``trial.freeze`` its inputs are features, which are computed where they are not there yet.

    Raises SettingsError and DataError where weights or files cannot be used; without ``compute`` FeaturesMissing where
    features are not there yet.
    """
    store = frozen_store(trial, dataset.options.get("size"), compute) if trial.freeze else None
    return open_dataset(dataset.name, dataset.options, say, store)


def open_split(settings: TrialSettings, stage: Stage) -> Split:
    """The split a trial trains on, opened once a process."""
    trial = settings.trial
    seen = {"backbone": trial.backbone, "weights": trial.weights, "freeze": True, "flip": trial.flip}
    parts = [settings.dataset.model_dump(mode="json"), settings.validation.model_dump(), seen if trial.freeze else {}]
    return _open_split(json.dumps(parts, sort_keys=True), stage)


@lru_cache(maxsize=2)
def _open_split(key: str, stage: Stage) -> Split:
    dataset, validation, seen = json.loads(key)
    opened = open_data(DatasetSettings(**dataset), TrainingSettings(**seen))
    validating = ValidationSettings(**validation)
    if stage == "search":
        split = search_split(opened, **validating.model_dump())
    else:
        split = final_split(opened, **validating.held_classes)
    return replace(split, reference=reference_similarity(split))


def restored(settings: TrialSettings, stage: Stage, checkpoint: Path, workers: Workers) -> TrainingRun:
    """The run of resolved settings as its checkpoint left it; what an older version did not write has its default.

    Raises SettingsError where the checkpoint cannot be read.
    """
    split = open_split(settings, stage)
    run = TrainingRun(settings.resolve(split.classes, split.multi_label), split, workers, solve_locally)
    try:
        run.restore(checkpoint)
    except CheckpointError as error:
        raise SettingsError(str(error)) from None
    return run
