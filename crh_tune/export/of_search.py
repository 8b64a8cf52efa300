"""The export of a search: its tested winner, or of an unfinished one the best trial so far."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from crh_tune.data.splits import Stage
from crh_tune.errors import counted
from crh_tune.export.onnx_file import export_run
from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.checkpoints import newest
from crh_tune.training.opening import restored
from crh_tune.training.workers import Workers
from crh_tune.tuning.lengths import contest
from crh_tune.tuning.record import COMPLETE, STUDY_FILE, SUMMARY_FILE, Outcome, read_outcomes, read_settings, trials_of
from crh_tune.tuning.results import Candidate, SearchResult, card_lines, checkpoint_in, read_result
from crh_tune.tuning.run import RUNS_FOLDER


def export_search(search: Path, target: Path) -> None:
    """Write the export of a search's folder.

    Raises SettingsError when there is nothing finished in it, or its checkpoint cannot be read.
    """
    if (search / SUMMARY_FILE).exists():
        result = read_result(search)
        tested = result.best_test
        _export(tested.settings, "final", checkpoint_in(search, tested), tested.metrics, _verdict(result), target)
        return
    if not (search / STUDY_FILE).exists():
        raise SettingsError(f"{search}: no search here (there is no {SUMMARY_FILE} and no {STUDY_FILE})")
    best = _best_so_far(search)
    checkpoint = newest(search / RUNS_FOLDER / best.name)
    if checkpoint is None:
        raise SettingsError(f"{search}: the checkpoint of {best.name} is gone")
    lines = [f"The best trial so far ({best.name}) of an unfinished search: neither confirmed nor tested."]
    if read_settings(search).share_of_epochs:
        lines.append(f"It was trained for {best.metrics['epoch']:.0f} epochs of {best.settings['trial']['epochs']}.")
    _export(best.settings, "search", checkpoint, best.metrics, lines, target)


def _best_so_far(search: Path) -> Outcome:
    """The best complete trial of those that finalists are taken from. Raises SettingsError where there is none."""
    settings = read_settings(search)
    metric, sign = settings.objective.metric, 1 if settings.objective.mode == "max" else -1
    trials = trials_of(read_outcomes(search))
    ended = [
        each
        for each in contest(settings, trials)[1].values()
        if each.status == COMPLETE and math.isfinite(each.metrics.get(metric, math.nan))
    ]
    if not ended:
        raise SettingsError(f"{search}: no trial has finished yet")
    return max(ended, key=lambda each: sign * each.metrics[metric])


def _export(
    settings: dict[str, Any], stage: Stage, checkpoint: Path, metrics: dict[str, float], lines: list[str], target: Path
) -> None:
    run = restored(TrialSettings.model_validate(settings), stage, checkpoint, Workers())
    export_run(target, run, metrics, lines)


def _what_was_frozen(best: Candidate) -> list[str]:
    if best.frozen is None:
        return []
    return ["", f"All layers were trained; on frozen features its trial had {best.frozen:.4f}."]


def _verdict(result: SearchResult) -> list[str]:
    """The winner against the paper's setting, as the search measured them."""
    best, paper = result.best, result.paper
    tested, paper_tested = result.best_test.metrics, result.paper_test.metrics
    return [
        f"Found by search {result.search_id} ({best.trial}).",
        "",
        "| | validation, fresh seeds | test |",
        "|---|---|---|",
        f"| this | {best.mean:.4f} ± {best.std:.4f} ({counted(len(best.values), 'seed')}) | {tested['test/map']:.4f} |",
        f"| the paper's setting | {paper.mean:.4f} ± {paper.std:.4f} ({counted(len(paper.values), 'seed')}) "
        f"| {paper_tested['test/map']:.4f} |",
        *card_lines(result.baselines),
        *_what_was_frozen(best),
    ]
