"""The last lines of a search that has ended: what it found, where that is, and how to look at it."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from crh_tune.command import DEFAULT_STORAGE
from crh_tune.errors import counted
from crh_tune.export.bundle import on_unseen_classes
from crh_tune.settings.search import SearchSettings
from crh_tune.training.evaluation import shorter_test_maps
from crh_tune.tuning.address import UI_PORT, pages_at, runs_page, ui_command
from crh_tune.tuning.champion import CHAMPION
from crh_tune.tuning.lengths import verdict
from crh_tune.tuning.progress import describe
from crh_tune.tuning.record import FINISHED, STUDY_FILE
from crh_tune.tuning.results import Candidate, SearchResult, baseline_lines, bound_lines, gain_lines

CLUSTER_FILE = "ray_bootstrap_config.yaml"
"""What ``ray up`` leaves in the home folder of a cluster's head."""


def last_lines(settings: SearchSettings, result: SearchResult, target: Path) -> list[str]:
    """What was found, where it is, and how to look at it; ``target`` is the export's folder."""
    best, paper, tested = result.best, result.paper, result.best_test.metrics
    metric = "validation mAP" if settings.objective.metric == "val/map" else settings.objective.metric
    counts = sorted({len(best.values), len(paper.values)})
    seeds = f"mean of {' and '.join(map(str, counts))} fresh seed{'s' * (counts != [1])}"
    lines = [
        "",
        f"best settings    {describe(best.settings, settings.search)}  ({best.trial})",
        f"{metric:<17}{best.mean:.4f} ± {best.std:.4f}, the paper's setting "
        f"{paper.mean:.4f} ± {paper.std:.4f} ({seeds})",
        *gain_lines(result, metric, settings.objective.mode),
        *length_lines(settings, result),
        *front_lines(settings, result),
        *target_lines(settings, result),
        *bound_lines(settings, best),
        *_what_all_layers_changed(best, metric),
        f"test mAP         {tested['test/map']:.4f}, the paper's setting {result.paper_test.metrics['test/map']:.4f}",
        *(f"at {bits} bits".ljust(17) + f"{value:.4f}" for bits, value in shorter_test_maps(tested).items()),
        *_on_unseen_classes(tested),
        *baseline_lines(result.baselines),
        f"exported to      {_near(target)}",
        f"registered as    models:/{settings.name}@{CHAMPION} in MLflow",
    ]
    if result.unsent_why:
        lines.append(f"MLflow           {result.unsent_why}")
    if result.unsent:
        lines.append(
            f"MLflow           {counted(result.unsent, 'entry is', 'entries are')} still unsent, and kept: "
            f"crh-tune sync {result.search_id}{storage_option(result.folder.parent)} sends them"
        )
    return [*lines, *_pages(settings, result), result.ended]


def length_lines(settings: SearchSettings, result: SearchResult) -> list[str]:
    """Which code length is enough, where the smallest that reaches the target was searched for."""
    if not result.lengths:
        return []
    return [f"code length      {verdict(result.lengths, str(settings.target))}"]


def front_lines(settings: SearchSettings, result: SearchResult) -> list[str]:
    """The front of two objectives, a line each trial on it."""
    return [
        f"{'front' if place == 0 else '':<17}{point.told(settings)}: {describe(point.settings, settings.search)} "
        f"({point.trial}, one run)"
        for place, point in enumerate(result.front)
    ]


def target_lines(settings: SearchSettings, result: SearchResult) -> list[str]:
    """Whether the winner's mean over fresh seeds is what the search's target asks for; if not, how to search on."""
    if settings.target is None:
        return []
    reached = f"reached with {result.best.mean:.4f} on average over fresh seeds"
    if not settings.reaches_target(result.best.mean):
        option = storage_option(result.folder.parent)
        more = "--hours 1" if settings.is_grid else "--trials 20"
        go_on = f"crh-tune search --resume {result.search_id} {more}{option} searches on"
        if result.lengths:
            go_on = "a longer code may be needed"
        elif settings.is_grid and result.ended == FINISHED:
            go_on = "all cells of the grid were tried"
        reached = f"not {reached}: {go_on}"
    return [f"target           {settings.target}: {reached}"]


def _pages(settings: SearchSettings, result: SearchResult) -> list[str]:
    """How to look at what was found: MLflow's pages, Optuna's, and on a cluster's head what to type at home."""
    uri, metric, mode = result.tracking_uri, settings.objective.metric, settings.objective.mode
    command, study = ui_command(uri, _mlflow_program()), f"sqlite:///{result.folder.absolute() / STUDY_FILE}"
    lines = [f"Optuna's pages   optuna-dashboard {shlex.quote(study)}"]
    if (Path.home() / CLUSTER_FILE).exists():
        there = shlex.quote(f"{result.folder.absolute()}/")
        lines.append(f"copy it home     ray rsync-down CLUSTER.yaml {there} {shlex.quote(result.folder.name)}/")
        if not uri.startswith(("http:", "https:")):
            command = f"ray exec --port-forward {UI_PORT} CLUSTER.yaml {shlex.quote(command)}"
    pages = runs_page(pages_at(uri), result.experiment_id, metric, mode)
    return [*lines, f"open the UI      {command}", f"see the runs     {pages}"]


def _on_unseen_classes(metrics: dict[str, float]) -> list[str]:
    return [on_unseen_classes(metrics)] if "test/map_unseen" in metrics else []


def _what_all_layers_changed(best: Candidate, metric: str) -> list[str]:
    """After a search on a frozen backbone whose finalists were trained with all layers, the difference."""
    if best.frozen is None:
        return []
    gain = best.mean - best.frozen
    return [f"all layers       {gain:+.4f} {metric} over the trial on frozen features, {best.frozen:.4f}"]


def storage_option(storage: Path) -> str:
    """The --storage option that a command for a search in this storage needs, with a space before it."""
    return "" if storage.resolve() == Path(DEFAULT_STORAGE).resolve() else f" --storage {_near(storage)}"


def _mlflow_program() -> str:
    beside = Path(sys.executable).parent / "mlflow"
    return _near(beside) if beside.exists() else shutil.which("mlflow") or "mlflow"


def _near(path: Path) -> str:
    """The path as seen from the working folder, where it lies below it."""
    absolute = path.absolute()
    return shlex.quote(str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute))
