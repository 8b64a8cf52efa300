"""One setting, trained on all training data, evaluated on the test set once, and exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crh_tune.command import Say, prepare_process, silent
from crh_tune.errors import AGAIN, SearchFailed
from crh_tune.export.onnx_file import export_run
from crh_tune.search import interruptible_ray
from crh_tune.settings.base import SettingsError, read_yaml
from crh_tune.settings.trial import trial_settings
from crh_tune.settings.used import refuse_in_vain
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import PREPARED, Metrics, Save, TrainingDiverged, TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning.cluster import device_of
from crh_tune.tuning.groups import train_group


@dataclass(frozen=True)
class Trained:
    """What ``train`` gives: the metrics of the last epoch, by name, and the folder of the export.

    ``test/map`` is the mAP on the test queries, between 0 and 1.
    """

    metrics: dict[str, float]
    exported_to: Path


def train(
    settings: str | Path | Mapping[str, Any],
    *,
    data: str | Path | None = None,
    to: str | Path = "crh_model",
    say: Say | None = None,
) -> Trained:
    """Train one setting on all training data, evaluate it on the test set once, and export it.

    Args:
        settings: a YAML file, such as an export's ``settings.yaml``, or its content as a mapping.
        data: the folder (or .npz file) with the dataset's files, where it is not the one in the settings.
        to: the folder of the export, made where it is not there; what ``load_encoder`` and ``load_index`` read.
        say: called with every line of progress (None: nothing is said).

    Raises:
        SettingsError: the settings are wrong or do not fit the data, or ``to`` cannot be written to.
        DataError: the dataset's files cannot be used as they are.
        SearchFailed: training diverged.
    """
    prepare_process()
    say, to = say or silent, Path(to).expanduser()
    where = "settings" if isinstance(settings, Mapping) else str(settings)
    content = settings if isinstance(settings, Mapping) else read_yaml(Path(settings).expanduser())
    trial = trial_settings(content, where, None if data is None else Path(data).expanduser())
    refuse_in_vain(trial, where)
    split = open_split(trial, "final")
    trial = trial.resolve(split.classes, split.multi_label)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--to {to}: {error.strerror}: name a folder that can be written to") from None
    run = TrainingRun(trial, split, Workers(device=device_of(trial.scaling)), solve_locally)

    def progress(metrics: Metrics, save: Save | None) -> None:
        if PREPARED in metrics:
            say(f"classifier that the first centres are learned from: epoch {metrics[PREPARED]:>4.0f}")
        else:
            say(f"epoch {metrics['epoch']:>4.0f}  loss {metrics['loss/total']:.4f}")

    try:
        if trial.scaling.workers_per_trial == 1:
            metrics = run.train(progress)
        else:
            with interruptible_ray("crh-tune train", lambda stop: AGAIN) as stop:
                metrics = train_group(trial, split.fingerprint, run)
            stop.raise_if_interrupted()
    except TrainingDiverged as error:
        raise SearchFailed(str(error)) from None
    say("encoding the database for the index")
    export_run(to, run, metrics, [])
    return Trained(dict(metrics), to)
