"""The export of a search: its tested winner, or of an unfinished one the best trial so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from crh_tune.data.splits import Stage
from crh_tune.export.onnx_file import export_run
from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.checkpoints import newest
from crh_tune.training.opening import restored
from crh_tune.training.workers import Workers
from crh_tune.tuning.record import STUDY_FILE, SUMMARY_FILE
from crh_tune.tuning.results import Candidate, SearchResult, card_lines, checkpoint_in, read_result
from crh_tune.tuning.run import RUNS_FOLDER
from crh_tune.tuning.searcher import METRICS, SETTINGS, trial_name


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
    study = optuna.load_study(study_name=search.name, storage=f"sqlite:///{search / STUDY_FILE}")
    own = [trial for trial in study.get_trials(states=(TrialState.COMPLETE,)) if SETTINGS in trial.user_attrs]
    if not own:
        raise SettingsError(f"{search}: no trial has finished yet")
    sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
    best = max(own, key=lambda trial: sign * (trial.value or 0.0))
    checkpoint = newest(search / RUNS_FOLDER / trial_name(best.number))
    if checkpoint is None:
        raise SettingsError(f"{search}: the checkpoint of {trial_name(best.number)} is gone")
    lines = [
        f"The best trial so far ({trial_name(best.number)}) of an unfinished search: neither confirmed nor tested."
    ]
    _export(best.user_attrs[SETTINGS], "search", checkpoint, best.user_attrs[METRICS], lines, target)


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
        f"| this | {best.mean:.4f} ± {best.std:.4f} ({len(best.values)} seeds) | {tested['test/map']:.4f} |",
        f"| the paper's setting | {paper.mean:.4f} ± {paper.std:.4f} ({len(paper.values)} seeds) "
        f"| {paper_tested['test/map']:.4f} |",
        *card_lines(result.baselines),
        *_what_was_frozen(best),
    ]
