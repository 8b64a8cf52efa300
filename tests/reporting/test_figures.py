"""Figures: the band against scipy and the formula, what stands on the axes, and the files."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.image import imread

from crh_tune.reporting import figures
from crh_tune.reporting.figures import DPI, PANEL, figure2, figure3, figure4, regression_band
from tests.reporting.conftest import a_run

ALIGNED = {"CRH-U": (0.0, 0.85), "CRH-M": (0.11, 0.88), "CRH": (0.4, 0.9), "CSQ": (0.01, 0.86), "CSQ_U": (0.1, 0.87)}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, as matplotlib objects."""
    kept, write = [], figures._write
    monkeypatch.setattr(figures, "_write", lambda figure, *rest: (kept.append(figure), write(figure, *rest))[1])
    return kept


def aligned(**others):
    return pd.DataFrame([a_run(row, value, pcc=pcc, **others) for row, (pcc, value) in ALIGNED.items()])


def texts(labels):
    return [label.get_text() for label in labels]


def left(figure):
    """The panels without their second axes."""
    return [axes for axes in figure.axes if axes.get_title()]


def test_band_is_that_of_the_mean_response():
    generator = np.random.default_rng(0)
    x = generator.normal(size=9)
    y = 3 * x + generator.normal(size=9)
    at = np.array([x.mean(), -2.0, 0.0, 2.5])
    line, lower, upper = regression_band(x, y, at)
    fit = scipy.stats.linregress(x, y)
    assert line == pytest.approx(fit.intercept + fit.slope * at)
    # variance of intercept + slope * at, written with the standard errors that scipy gives: cov = -mean(x) var(slope)
    variance = fit.intercept_stderr**2 + at**2 * fit.stderr**2 - 2 * at * x.mean() * fit.stderr**2
    half = scipy.stats.t.ppf(0.975, 7) * np.sqrt(variance)
    assert upper - line == pytest.approx(half)
    assert line - lower == pytest.approx(half)
    residual = np.sqrt(((y - fit.intercept - fit.slope * x) ** 2).sum() / 7)
    assert (upper - line)[0] == pytest.approx(2.364624251 * residual / 3)  # at the mean: t(7) s / sqrt n


def test_band_covers_the_true_line_as_often_as_it_says():
    generator, x, at = np.random.default_rng(1), np.array([0.0, 1, 2, 5]), np.array([4.0])
    hits = 0
    for _ in range(2000):
        _, lower, upper = regression_band(x, 1 + 2 * x + generator.normal(size=4), at)
        hits += bool(lower[0] <= 9 <= upper[0])
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_points_on_a_line_have_no_band_and_two_points_no_line():
    x = np.array([0.0, 1.0, 3.0])
    line, lower, upper = regression_band(x, 2 * x + 1, x)
    assert np.allclose([line, lower, upper], 2 * x + 1)
    for bad in (x[:2], np.ones(4)):
        with pytest.raises(ValueError, match="three points"):
            regression_band(bad, bad, x)


def sweep():
    runs = [
        a_run("CRH", 0.8, d_min=4.0, d_avg=16.0, codebook_size=m, head_dim=d, seed=seed)
        for m, d in [(196.0, 8.0), (392.0, 16.0), (784.0, 16.0), (math.nan, math.nan), (392.0, 4.0), (392.0, 32.0)]
        for seed in (0, 1)
    ]
    return pd.DataFrame(runs)


@pytest.mark.parametrize(
    ("draw", "runs", "panels"), [(figure2, aligned(), (1, 1)), (figure3, aligned(), (1, 1)), (figure4, sweep(), (2, 1))]
)
def test_png_and_svg_are_written_at_their_size(tmp_path, draw, runs, panels):
    png, svg = draw(runs, tmp_path / "new" / "folder")
    name = draw.__name__
    assert (png.name, svg.name) == (f"{name}.png", f"{name}.svg")
    width, height = PANEL[0] * panels[0] * DPI, (PANEL[1] * panels[1] + 0.7) * DPI
    pixels = imread(png)
    assert pixels.shape[:2] == (int(height), int(width))
    assert pixels[..., :3].std() > 0.05  # something is drawn
    assert ET.parse(svg).getroot().tag.endswith("svg")


@pytest.mark.parametrize("draw", [figure2, figure3, figure4])
def test_runs_without_what_is_drawn_give_no_file(tmp_path, draw):
    runs = aligned().assign(map=math.nan, pcc=math.nan)
    assert draw(runs, tmp_path / "out") == []
    assert draw(runs.iloc[:0], tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_figure2_puts_a_panel_to_each_dataset_and_an_arrow_to_each_step(tmp_path, drawn):
    runs = pd.concat([aligned(), aligned(seed=1), aligned(dataset="$x$", bits=32)])
    figure2(runs, tmp_path)
    panels = {axes.get_title(): axes for axes in left(drawn[0])}
    cars = next(axes for title, axes in panels.items() if title.startswith("Stanford Cars, 16 bits (r = "))
    pccs, maps = zip(*ALIGNED.values(), strict=True)
    assert f"r = {scipy.stats.pearsonr(pccs, maps).statistic:.2f}" in cars.get_title()
    steps = {(note.xyann, note.xy) for note in cars.texts}
    assert len(steps) == 3
    assert any(start == pytest.approx((0.0, 85)) and end == pytest.approx((0.11, 88)) for start, end in steps)
    assert sum("no runs" in texts(axes.texts) for axes in panels.values()) == 2
    assert (cars.get_xlabel(), cars.get_ylabel()) == ("PCC", "mAP (%)")
    assert set(ALIGNED) <= set(texts(drawn[0].legends[0].get_texts()))


def test_figure3_orders_intervals_from_often_to_never(tmp_path, drawn):
    kinds = [(5.0, 20.0), (math.nan, math.nan), (5.0, 0.0), (10.0, math.nan), (1.0, 0.0)]
    runs = [
        a_run("CRH", 0.8 + 0.01 * index + 0.002 * seed, pcc=0.1 * index, update_interval=i, early_epochs=e, seed=seed)
        for index, (i, e) in enumerate(kinds)
        for seed in (0, 1)
    ]
    runs.append(a_run("CRH-U", 0.811, pcc=0.1, update_interval=5.0, reassignment="none"))
    figure3(pd.DataFrame(runs), tmp_path)
    maps, pccs = drawn[0].axes
    assert texts(maps.get_xticklabels()) == ["1", "5 (20)", "5", "10", "∞"]
    assert maps.lines[0].get_ydata() == pytest.approx([84.1, 80.1, 82.1, 83.1, 81.1])
    assert pccs.lines[0].get_ydata() == pytest.approx([0.4, 0.0, 0.2, 0.3, 0.1])
    assert (maps.get_ylabel(), pccs.get_ylabel()) == ("mAP (%)", "PCC")


def test_figure4_marks_c_and_2c_and_names_an_unusual_d(tmp_path, drawn):
    figure4(sweep(), tmp_path)
    sizes, dims = left(drawn[0])
    assert texts(sizes.get_xticklabels()) == ["196\nC\n(8)", "392\n2C", "784", "$2^K$"]
    assert [label.get_fontweight() for label in sizes.get_xticklabels()] == ["normal", "bold", "normal", "normal"]
    assert sizes.get_xlabel() == "codebook size M (d = 16, else in brackets)"
    assert texts(dims.get_xticklabels()) == ["4", "16", "32"]
    assert dims.get_xlabel() == "head dimension d (M = 392 = 2C)"


def test_figure4_takes_a_shared_d_where_the_papers_is_not_there(tmp_path, drawn):
    figure4(sweep().replace({"head_dim": {8.0: 16.0}}), tmp_path)
    assert texts(left(drawn[0])[0].get_xticklabels()) == ["196\nC", "392\n2C", "784", "$2^K$"]


def test_figure4_without_codebooks_says_so(tmp_path, drawn):
    figure4(sweep().assign(codebook_size=math.nan), tmp_path)
    sizes, dims = left(drawn[0])
    assert texts(sizes.get_xticklabels()) == ["$2^K$"]
    assert texts(dims.texts) == ["no runs"]
