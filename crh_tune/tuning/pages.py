"""What MLflow's pages say of a training run: its name, its few parameters, its tags and its data."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import DatasetSettings, TrialSettings
from crh_tune.settings.used import short
from crh_tune.tuning.board import Board, stage_of
from crh_tune.tuning.progress import told
from crh_tune.tuning.record import COMPLETE, FAILED, Outcome
from crh_tune.tuning.results import SearchResult
from crh_tune.tuning.run import CONFIRM, SEARCH, TEST, Run
from crh_tune.tuning.tracking import Tracker

STAGE_TAG, SPLIT_TAG, OUTCOME_TAG, ROLE_TAG = "crh_tune.stage", "crh_tune.split", "crh_tune.outcome", "crh_tune.role"
_LETTERS = {"lambda": "λ", "margin": "m", "interval": "u"}
"""How a run's name writes what the paper calls so."""


def setting_name(settings: dict[str, Any], searched: Collection[str] = (), classes: int = 0) -> str:
    """A setting as run names write it, such as ``M=2C d=8 λ=0.57 m=0.18 u=1``."""
    values = told(settings, searched)
    size = values.get("M")
    if classes and isinstance(size, int) and size % classes == 0:
        values["M"] = f"{size // classes}C"
    return " ".join(f"{_LETTERS.get(name, name)}={short(value)}" for name, value in values.items())


def ended_name(
    outcome: Outcome, stage: str, metric: str, searched: Collection[str] = (), classes: int = 0, won: bool = False
) -> str:
    """The name of a run that has ended: what it reached, what it was, and its setting.

    ``won`` marks the trial that won; behind the value of one that was stopped early stands its epoch. A run of the test
    stage is named by its test mAP, others by ``metric``.
    """
    value = outcome.metrics.get("test/map" if stage == TEST else metric)
    reached = "no value" if value is None else f"{value:.3f}"
    if outcome.status == FAILED:
        reached = "failed"
    elif outcome.status != COMPLETE:
        reached = f"✂ {reached} @{outcome.metrics.get('epoch', 0):.0f}"
    parts = [f"★ {reached}" if won else reached]
    if stage in (CONFIRM, TEST):
        parts.append(f"{stage} {outcome.settings['trial']['seed']}")
    return " · ".join(filter(None, [*parts, setting_name(outcome.settings, searched, classes)]))


def run_params(settings: TrialSettings, searched: Collection[str]) -> dict[str, Any]:
    """The parameters of a run: what was searched by the paper's symbols, and what identifies the run.

    All its settings are in its artifact.
    """
    content = settings.model_dump(mode="json")
    fixed = {"method": settings.method, "dataset": settings.dataset.name}
    return {**told(content, searched), **fixed, "bits": settings.trial.bits, "seed": settings.trial.seed}


def search_params(settings: SearchSettings) -> dict[str, Any]:
    """The parameters of a search's own run; all its settings are in its artifact."""
    bits = ", ".join(map(str, settings.lengths)) or settings.trial.bits
    fixed = {"method": settings.method, "dataset": settings.dataset.name, "bits": bits}
    return {**fixed, "trials": settings.trials, "searched": " ".join(settings.search), "seed": settings.seed}


def parent_metrics(result: SearchResult, metric: str) -> dict[str, float]:
    """What a search found, as the metrics of its own run."""
    name = metric.replace("/", "_")
    best, paper = result.best_test.metrics["test/map"], result.paper_test.metrics["test/map"]
    return {
        f"confirmed/{name}_mean": result.best.mean,
        f"confirmed/{name}_std": result.best.std,
        f"paper/{name}_mean": result.paper.mean,
        f"paper/{name}_std": result.paper.std,
        "test/map": best,
        "paper/test_map": paper,
        "gain/test_map": best - paper,
    }


def champion_note(result: SearchResult) -> str:
    """What is said of the registered model of a search's winner: plain text, as MLflow's list of versions shows it."""
    best, paper = result.best, result.paper
    return (
        f"Winner of search {result.search_id} ({best.trial}): {best.mean:.4f} ± {best.std:.4f} on validation queries "
        f"with fresh seeds, the paper's setting {paper.mean:.4f} ± {paper.std:.4f}; test mAP "
        f"{result.best_test.metrics['test/map']:.4f}, the paper's setting {result.paper_test.metrics['test/map']:.4f}."
    )


def tag_winner(tracker: Tracker, key: Callable[[str], str], board: Board) -> None:
    """Tag the winner, the finalists and the paper's setting, and mark the winner in its name."""
    for each in board.confirmed:
        if each.trial not in board.outcomes:  # the paper's setting that no trial ran
            continue
        won, outcome = each.trial == board.winner, board.outcomes[each.trial]
        role = "winner" if won else "paper" if each.is_paper else "finalist"
        tracker.tags(key(each.trial), {ROLE_TAG: role})
        named = ended_name(outcome, stage_of(outcome), board.metric, board.settings.search, board.classes, won)
        tracker.rename(key(each.trial), named)
    if board.result is not None:
        tracker.tags(key(board.result.paper_test.name), {ROLE_TAG: "paper"})
        tracker.tags(key(board.result.best_test.name), {ROLE_TAG: "winner"})


def run_tags(run: Run) -> dict[str, str]:
    """The tags that runs are filtered by."""
    return {STAGE_TAG: run.stage, SPLIT_TAG: run.fingerprint, "crh_tune.start": run.start, **run.tags}


def origin(dataset: DatasetSettings) -> str:
    """Where a dataset comes from: its files, or the package that it is made by."""
    return str(dataset.options.get("path") or f"crh_tune:{dataset.name}")


def splits_seen(run: Run) -> str:
    """What part of the dataset a run sees, as the context of MLflow's dataset."""
    return "training and validation" if run.stage in (SEARCH, CONFIRM) else "training and test"
