"""Whole searches of the product, without Ray: its stages, samplers and schedulers, one trial at a time in one process.

For what no table can replay: a sampler that proposes settings by what it has seen. Each search is a line of a file, so
that they are run in parts.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import torch
from scipy.special import stdtrit

from benchmarks.search_table import split_of
from crh_tune.data.splits import Split
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import Metrics, Save, TrainingRun
from crh_tune.training.workers import Workers
from crh_tune.tuning.proposals import enqueue
from crh_tune.tuning.record import COMPLETE, PRUNED, Outcome, epochs_of
from crh_tune.tuning.run import Run
from crh_tune.tuning.schedulers import scheduler_of
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.stages import ConfirmStage, SearchStage, Stage
from crh_tune.tuning.study import sampler_of

STRATEGIES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    **{
        f"{trials} trials of {epochs} epochs": {
            "scheduler": {"short": {"epochs": epochs}},
            "budget": {"trials": trials},
        }
        for trials, epochs in ((36, 10), (30, 10), (24, 10), (48, 5), (8, 5), (12, 5))
    },
    **{f"{trials} trials, ASHA": {"scheduler": "asha", "budget": {"trials": trials}} for trials in (8, 24, 36)},
    "TPE, all to the end": {"scheduler": "none"},
    "random, all to the end": {"scheduler": "none", "sampler": "random"},
    "random, ASHA": {"scheduler": "asha", "sampler": "random"},
    "Gaussian process, all to the end": {"scheduler": "none", "sampler": "gp"},
    "hyperband": {"scheduler": "hyperband"},
    "median stopping": {"scheduler": "median_stopping"},
}
"""What each changes in the search as it is shipped."""
WORTH_SEEDS = range(1001, 1005)
"""What winners are judged with; no search has them."""
SEARCHES = 1000
"""The seeds of searches are so far apart that none shares a seed of its confirmation with another."""


_curves: dict[str, dict[int, float]] = {}
"""val/map by epoch of what was trained before: strategies share their first trials and the races of the paper's."""


class _Stopped(Exception):
    pass


def live(path: Path, shipped: SearchSettings, strategies: list[str], searches: int, minutes: float) -> None:
    """Run each strategy's searches of this space that the file has not yet, for at most so many minutes of a core."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    split, begun = split_of(shipped), time.process_time()
    for number in range(searches):
        for name in strategies:
            if any(line["strategy"] == name and line["search"] == number for line in read(path)):
                continue
            if time.process_time() - begun > 60 * minutes:
                return
            settings = {**shipped.model_dump(mode="json"), **STRATEGIES[name], "seed": SEARCHES * (number + 2)}
            line = {"strategy": name, "search": number, **one(SearchSettings.model_validate(settings), split)}
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
            print(line, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The searches that have been run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def one(settings: SearchSettings, split: Split) -> dict[str, float]:
    """One search with its confirmation: epochs, what it says of its winner, and what that and the paper's are worth."""
    study = optuna.create_study(direction="maximize", sampler=sampler_of(settings, settings.seed))
    enqueue(study, settings, split.classes, False)
    searcher = OptunaSearcher(study, settings, split.classes, False, settings.trials)
    search = SearchStage(settings, searcher, lambda line: None, None)
    confirm = ConfirmStage(settings, search, split.classes, False, "", lambda line: None)
    scheduler = scheduler_of(settings, study)
    stages: tuple[Stage, ...] = (search, confirm)
    for stage in stages:
        stage.begin({})
        while not stage.done:
            run = stage.propose()
            assert run is not None
            stage.told(trained(run, split, stage, scheduler))
    best = max(confirm.candidates(), key=lambda candidate: candidate.mean)
    paper = confirm.candidates()[-1]
    return {
        "search_epochs": epochs_of(search.outcomes.values()),
        "race_epochs": epochs_of(confirm.outcomes.values()),
        "saw": max(each.metrics["val/map"] for each in search.outcomes.values() if each.status == COMPLETE),
        "says": best.mean,
        "worth": worth(best.settings, split),
        "paper": worth(paper.settings, split),
    }


def trained(run: Run, split: Split, stage: Stage, scheduler: Any) -> Outcome:
    """How a run ends that the stage and its scheduler hear of, as in the product."""
    outcome = Outcome(run.name, run.settings.model_dump(mode="json"), run.start, PRUNED)
    trial = SimpleNamespace(trial_id=run.name, config={"run": run})
    last = min(run.until or run.settings.trial.epochs, run.settings.trial.epochs)
    known = _curves.setdefault(json.dumps(outcome.settings), {})

    def report(metrics: Metrics, save: Save | None) -> None:
        if metrics["epoch"] <= outcome.metrics.get("epoch", 0):
            return
        outcome.metrics = {name: metrics[name] for name in ("epoch", "val/map")}
        known[int(metrics["epoch"])] = metrics["val/map"]
        stage.reported(outcome)
        ended = metrics["epoch"] == last
        if scheduler is not None and scheduler.on_trial_result(None, trial, outcome.metrics) == "STOP" and not ended:
            raise _Stopped

    if scheduler is not None:
        scheduler.on_trial_add(None, trial)
    with suppress(_Stopped):
        for epoch, value in list(known.items()):
            if epoch <= last:
                report({"epoch": epoch, "val/map": value}, None)
        if last not in known:
            TrainingRun(run.settings, split, Workers(), solve_locally).train(report, run.until)
        outcome.status = COMPLETE
    if scheduler is not None:
        scheduler.on_trial_complete(None, trial, outcome.metrics)
    return outcome


def worth(content: dict[str, Any], split: Split) -> float:
    """The mean of a setting's whole runs with seeds that no search has."""
    settings, last = TrialSettings.model_validate(content), []
    for seeded in with_worth_seeds(settings):
        curve = _curves.setdefault(json.dumps(seeded.model_dump(mode="json")), {})
        if settings.trial.epochs not in curve:
            TrainingRun(seeded, split, Workers(), solve_locally).train(
                lambda metrics, save, curve=curve: curve.update({int(metrics["epoch"]): metrics["val/map"]})
            )
        last.append(curve[settings.trial.epochs])
    return statistics.fmean(last)


def with_worth_seeds(settings: TrialSettings) -> Iterator[TrialSettings]:
    """The settings with each of the seeds that winners are judged with."""
    for seed in WORTH_SEEDS:
        yield settings.model_copy(update={"trial": settings.trial.model_copy(update={"seed": seed})})


def report(path: Path) -> None:
    """A row a strategy: means over its searches with their 95 % intervals (Student's t)."""
    print(
        "| search | searches | epochs | worth | over the paper's setting | best number too good by | says too much by |"
    )
    print("|---|---|---|---|---|---|---|")
    lines = read(path)
    for name in dict.fromkeys(line["strategy"] for line in lines):
        mine = [line for line in lines if line["strategy"] == name]
        columns = [
            [line["worth"] for line in mine],
            [line["worth"] - line["paper"] for line in mine],
            [line["saw"] - line["worth"] for line in mine],
            [line["says"] - line["worth"] for line in mine],
        ]
        epochs = statistics.fmean(line["search_epochs"] + line["race_epochs"] for line in mine)
        print(f"| {name} | {len(mine)} | {epochs:.0f} | {' | '.join(map(_with_interval, columns))} |")


def _with_interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4f}"
    half = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.4f} ± {half:.4f}"
