"""The figures of a search as files for MLflow's pages: those of the report, drawn while it runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from crh_tune.ground import write_whole
from crh_tune.reporting import search_figures
from crh_tune.reporting.evidence_figures import center_maps
from crh_tune.reporting.importance import importances
from crh_tune.reporting.search_data import SearchData, read_search
from crh_tune.training.checkpoints import CENTERS_FILE, latest
from crh_tune.tuning.pictures import Picture, Reference
from crh_tune.tuning.record import read_outcomes
from crh_tune.tuning.run import RUNS_FOLDER

FOLDER = "figures"
"""Where they lie in a search's folder, and in MLflow below each run."""


def draw_pictures(folder: Path, reference: Reference) -> list[Picture]:
    """Draw the figures of a search as it stands; of one that has ended, also those of its finalists.

    ``reference`` is how alike the classes are, C x C, beside which their centres are shown; None: they are not.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # letters that the font has not got
    data = read_search(folder)
    found = importances(data)
    figures = {
        "history": search_figures.history(data),
        "importance": search_figures.importance(found),
        "parallel_coordinates": search_figures.parallel_coordinates(data),
        "contour": search_figures.contour(data, found),
        "rungs": search_figures.rungs(data),
        "epochs": search_figures.epochs(data),
    }
    pictures = _written(folder, "", figures)
    if data.finished:
        for run in _shown(data):
            pictures += _written(folder, run, _of_run(data, run, reference))
    return pictures


def _shown(data: SearchData) -> list[str]:
    """The runs that have figures of their own: the trials of finalists and of the paper's setting, and the tests."""
    trials = {trial.name for trial in data.trials}
    tests = [name for name in read_outcomes(data.folder) if name.startswith("final-")]
    return [*(each.trial for each in data.confirmed if each.trial in trials), *tests]


def _of_run(data: SearchData, run: str, reference: Reference) -> dict[str, Figure | None]:
    checkpoint = latest(data.folder / RUNS_FOLDER / run)
    centers = None if checkpoint is None else checkpoint / CENTERS_FILE
    maps = None
    if reference is not None and centers is not None and centers.exists():
        maps = center_maps(np.load(centers, allow_pickle=False), reference)
    curve = None if run.startswith("final-") else search_figures.learning_curves(data, run)
    return {"learning_curve": curve, "class_similarity": maps}


def _written(folder: Path, run: str, figures: Mapping[str, Figure | None]) -> list[Picture]:
    """Write figures as PNG, each whole or as it was: one may be on its way to MLflow."""
    pictures = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / FOLDER / run / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, partial(figure.savefig, format="png"))
            pictures.append(Picture(run, path))
    return pictures
