"""The figures on MLflow's pages: which there are, that they are replaced, and what drawing them may take."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from crh_tune.reporting.search_data import read_search
from crh_tune.reporting.search_figures import epochs
from crh_tune.reporting.search_pictures import draw_pictures
from crh_tune.tuning import pictures
from crh_tune.tuning.pictures import Picture, Pictures

OF_SEARCH = {"history", "importance", "parallel_coordinates", "contour", "rungs", "epochs"}
ALIKE = np.eye(4) + 0.1 * np.arange(16).reshape(4, 4)


def test_a_search_that_has_ended_has_figures_of_itself_and_of_its_finalists(searches, tmp_path):
    folder = tmp_path / "made-001"
    shutil.copytree(searches / "made-001", folder)
    found = draw_pictures(folder, ALIKE + ALIKE.T)
    names: dict[str, set[str]] = {}
    for picture in found:
        assert Image.open(picture.path).width > 300
        names.setdefault(picture.run, set()).add(picture.path.stem)
    assert names.pop("") == OF_SEARCH
    assert names == {
        "trial-0001": {"learning_curve", "class_similarity"},
        "trial-0000": {"learning_curve", "class_similarity"},
        "trial-0003": {"learning_curve"},  # its checkpoints are gone
        "final-best": {"class_similarity"},
        "final-paper": {"class_similarity"},
    }
    assert draw_pictures(folder, None)[: len(OF_SEARCH)] == found[: len(OF_SEARCH)]  # the same files, replaced
    assert {path.name for path in (folder / "figures").glob("*.png")} == {f"{name}.png" for name in OF_SEARCH}


def test_a_search_under_way_has_figures_of_itself_alone(searches):
    data = read_search(searches / "photos-001")
    assert {picture.run for picture in draw_pictures(data.folder, ALIKE)} == {""}


def test_epochs_are_added_up_beside_a_search_without_stopping(searches):
    figure = epochs(read_search(searches / "made-001"))
    assert figure is not None
    trained, whole = (line.get_ydata().tolist() for line in figure.axes[0].lines)
    assert trained == np.cumsum([4, 4] + [2, 4] * 6).tolist()
    assert whole == [4 * count for count in range(1, 15)]


def test_drawing_takes_a_hundredth_of_the_time_whatever_a_drawing_costs(tmp_path, monkeypatch):
    """A day of evaluations, one every second, of which each drawing takes a second, then two, then three."""
    now, used, drawn, kept = [0.0], [0.0], [0], []

    def drawing(folder: Path, reference: pictures.Reference) -> list[Picture]:
        drawn[0] += 1
        used[0] += min(drawn[0], 3)
        return [Picture("", folder / f"{drawn[0]}.png")]

    clock = type("Clock", (), {"monotonic": staticmethod(lambda: now[0]), "thread_time": staticmethod(lambda: used[0])})
    monkeypatch.setattr(pictures, "time", clock)
    shown = Pictures(tmp_path, drawing, kept.append, print)
    for _ in range(24 * 3600):
        now[0] += 1
        shown.evaluated()
        shown.wait()
        assert used[0] <= pictures.SHARE * now[0] + 3  # the one that was drawn last is paid for afterwards
    assert drawn[0] > 250
    shown.finish(None)
    shown.wait()
    assert [int(picture.path.stem) for picture in kept] == list(range(1, drawn[0] + 1))


def test_a_drawing_that_fails_is_told_once_and_leaves_the_search_alone(tmp_path):
    def fails(folder: Path, reference: pictures.Reference) -> list[Picture]:
        raise ValueError("no such font\nand more")

    said: list[str] = []
    shown = Pictures(tmp_path, fails, lambda picture: None, said.append)
    for _ in range(2):
        shown.finish(None)
        shown.wait()
    assert said == ["figures for MLflow are left out: no such font"]
