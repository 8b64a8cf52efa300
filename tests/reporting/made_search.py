"""Folders of searches as a search leaves them, made in seconds: a few real training runs, and trials told to Optuna."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from PIL import Image

from crh_tune.data.splits import Stage
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.training import checkpoints
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning.record import Outcome

SCRIPT = "<script>alert(1)"
"""A class, and a folder of images, of this name."""
TRIALS = 14


def feature_data(path: Path) -> dict[str, Any]:
    """The dataset section of 160 features of four classes, one of them named as a script."""
    generator = np.random.default_rng(0)
    labels = np.arange(160) % 4
    features = generator.normal(size=(4, 12))[labels] * 1.2 + generator.normal(size=(160, 12))
    names = np.array([SCRIPT, "b & c", "$x^2$", "d"])[labels]
    np.savez(path, features=features.astype(np.float32), labels=names)
    return {"name": "features", "path": str(path)}


def image_data(folder: Path) -> dict[str, Any]:
    """The dataset section of a folder of small photos of three classes, 12 to train on and 4 to ask for in each."""
    generator = np.random.default_rng(1)
    for part, count in (("train", 12), ("test", 4)):
        for place, name in enumerate((SCRIPT, "b", "c")):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 90, (20, 20, 3), dtype=np.uint8)
                pixels[..., place] += 120
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return {"name": "folder", "path": str(folder), "size": 16}


def settings_of(name: str, dataset: dict[str, Any]) -> SearchSettings:
    backbone: dict[str, Any] = {"backbone": "mlp"} if dataset["name"] == "features" else {"backbone": "small_cnn"}
    backbone |= {"crop": 16} if dataset["name"] == "folder" else {}
    return SearchSettings.model_validate(
        {
            "name": name,
            "dataset": dataset,
            "trial": {"bits": 8, "epochs": 4, "batch_size": 32, "learning_rate": 2e-3, "evaluate_every": 1, **backbone},
            "search": {"quantization_weight": {"log_uniform": [0.001, 1.0]}, "margin": {"uniform": [0.0, 0.5]}},
            "scheduler": {"asha": {"grace_epochs": 1, "reduction": 2}},
            "budget": {"trials": TRIALS},
            "confirm": {"top": 2, "seeds": 2},
        }
    )


def make_search(storage: Path, dataset: dict[str, Any], name: str = "made", finished: bool = True) -> Path:
    """A search's folder ``name``-001: 14 trials of which half were stopped, the better the larger lambda.

    Trial 0 has the paper's setting, and trial 1 wins. A finished one has confirmation runs, final runs and a summary.
    """
    settings = settings_of(name, dataset)
    folder = storage / f"{name}-001"
    folder.mkdir(parents=True)
    write(folder / "search.json", settings.model_dump(mode="json"))
    splits = {stage: open_split(settings.trial_settings({}, 0), stage) for stage in ("search", "final")}
    write(folder / "splits.json", {stage: split.fingerprint for stage, split in splits.items()})
    first = splits["search"]
    study = optuna.create_study(study_name=folder.name, storage=f"sqlite:///{folder / 'optuna.db'}")
    generator = np.random.default_rng(0)
    resolved: list[TrialSettings] = []
    for number in range(TRIALS):
        values = {"quantization_weight": 10.0 ** (-3 * number / TRIALS), "margin": float(generator.uniform(0, 0.5))}
        values = {} if number == 0 else values
        resolved.append(settings.trial_settings(values, settings.seed).resolve(first.classes, first.multi_label))
        stopped = number % 2 == 0 and number > 0
        worth = 0.9 - 0.03 * number
        asked = study.ask()
        asked.set_user_attr("settings", resolved[-1].model_dump(mode="json"))
        asked.set_user_attr("start", "paper" if number == 0 else "drawn")
        for epoch in range(1, 3 if stopped else 5):
            asked.report(worth - 0.1 * (4 - epoch), epoch)
        told = optuna.trial.TrialState.PRUNED if stopped else optuna.trial.TrialState.COMPLETE
        study.tell(asked, None if stopped else worth, state=told)
        metrics = {"val/map": worth - (0.2 if stopped else 0.0), "epoch": 2.0 if stopped else 4.0}
        status = "pruned" if stopped else "complete"
        trained = None if number > 1 else train(folder, f"trial-{number:04d}", resolved[-1], "search")
        outcome = Outcome(f"trial-{number:04d}", asked.user_attrs["settings"], "drawn", status, metrics, trained)
        outcome.start = "paper" if number == 0 else "drawn"
        keep(folder, outcome)
    if finished:
        finish(folder, resolved)
    return folder


def finish(folder: Path, resolved: list[TrialSettings]) -> None:
    """Confirmation runs of trials 0, 1 and 3 (0.70, 0.80 and 0.75 in the mean), final runs, and the summary."""
    candidates = {}
    for number, mean in ((1, 0.80), (3, 0.75), (0, 0.70)):
        values = [mean - 0.01, mean + 0.01]
        candidates[number] = {"trial": f"trial-{number:04d}", "settings": resolved[number].model_dump(mode="json")}
        candidates[number]["values"] = values
        for seed, value in enumerate(values, start=1):
            name = f"confirm-trial-{number:04d}-seed{seed}"
            keep(
                folder, Outcome(name, resolved[number].model_dump(mode="json"), "fixed", "complete", {"val/map": value})
            )
            for epoch in range(1, 5):
                entry = {"values": {"val/map": value - 0.1 * (4 - epoch)}, "step": epoch, "time": 0}
                with (folder / "mlflow_outbox.jsonl").open("a") as outbox:
                    outbox.write(json.dumps(["metrics", f"{folder.name}/{name}", entry]) + "\n")
    tested = {}
    for name, number in (("final-best", 1), ("final-paper", 0)):
        checkpoint = train(folder, name, resolved[number], "final")
        metrics = checkpoints.load(Path(checkpoint)).header.metrics
        outcome = Outcome(name, resolved[number].model_dump(mode="json"), "fixed", "complete", metrics, checkpoint)
        keep(folder, outcome)
        tested[name] = asdict(outcome)
    summary = {
        "search_id": folder.name, "folder": str(folder), "tracking_uri": "", "best": candidates[1],
        "paper": candidates[0], "best_test": tested["final-best"], "paper_test": tested["final-paper"],
        "ended": "finished", "baselines": [], "unsent": 0, "unsent_why": "",
        "gain": {"mean": 0.1, "low": 0.05, "high": 0.15},
    }  # fmt: skip
    write(folder / "summary.json", summary)


def train(folder: Path, name: str, settings: TrialSettings, stage: Stage) -> str:
    """Train a run to its end; where its newest checkpoint is."""
    run = TrainingRun(settings, open_split(settings, stage), Workers(), solve_locally)
    below = folder / "runs" / name
    below.mkdir(parents=True)
    run.train(lambda metrics, save: checkpoints.keep(below, int(metrics["epoch"]), save) if save else None)
    newest = checkpoints.newest(below)
    assert newest is not None
    return str(newest)


def keep(folder: Path, outcome: Outcome) -> None:
    (folder / "outcomes").mkdir(exist_ok=True)
    write(folder / "outcomes" / f"{outcome.name}.json", asdict(outcome))


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
