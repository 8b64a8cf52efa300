"""The figures of a search show what their titles and legends say."""

from __future__ import annotations

import asyncio

import pytest
from matplotlib.collections import PathCollection
from matplotlib.contour import QuadContourSet

from crh_tune.reporting import interactive, search_figures
from crh_tune.reporting.importance import Importance
from crh_tune.reporting.search_data import read_search
from tests.browser import CHROMIUM, browser

FOUND = [
    Importance("lambda", 0.5, 0.4, 0.6, 0.2),
    Importance("interval", 0.3, 0.1, 0.4, 0.4),  # more than margin, but no more than chance
    Importance("margin", 0.2, 0.1, 0.3, 0.1),
]


def test_the_contour_is_over_the_settings_that_the_verdict_names_first(searches):
    data = read_search(searches / "made-001")
    figure, moving = search_figures.contour(data, FOUND), interactive.contour(data, FOUND)
    assert figure is not None
    assert moving is not None
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("lambda", "margin")
    assert (moving.layout.xaxis.title.text, moving.layout.yaxis.title.text) == ("lambda", "margin")


def test_a_colour_of_the_contour_is_one_value_in_points_and_surface(searches):
    data = read_search(searches / "made-001")
    figure, moving = search_figures.contour(data, FOUND), interactive.contour(data, FOUND)
    assert figure is not None
    [surface] = figure.axes[0].findobj(QuadContourSet)
    [points] = [each for each in figure.axes[0].collections if type(each) is PathCollection]
    values = [float(value) for value in points.get_array()]
    assert points.get_clim() == surface.get_clim() == (min(values), max(values))
    assert moving is not None
    colours = moving.data[1].marker
    assert (moving.data[0].zmin, moving.data[0].zmax) == (colours.cmin, colours.cmax) == (min(values), max(values))
    assert moving.data[0].colorscale == colours.colorscale


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_draws_the_contour_that_moves(searches, tmp_path):
    """One whose surface and points shared a color axis never came to an end."""
    figure, page = interactive.contour(read_search(searches / "made-001"), FOUND), tmp_path / "contour.html"
    assert figure is not None
    figure.write_html(page)

    async def visit() -> None:
        async with browser() as opened:
            await opened.open(page.as_uri())
            await opened.until("document.querySelector('.contourlayer .contourfill path') !== null")

    asyncio.run(visit())


def test_the_diamond_of_the_papers_setting_is_called_so(searches):
    data = read_search(searches / "made-001")
    named = {each.trial: label for _, each, _, label in search_figures.diamonds(data)}
    assert named == {
        "trial-0001": "winner, fresh seeds",
        "trial-0003": "other finalists, fresh seeds",
        "trial-0000": "the paper's setting, fresh seeds",
    }
    figure, moving = search_figures.history(data), interactive.history(data)
    assert figure is not None
    assert moving is not None
    legend = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert {*named.values(), "mean of the paper's setting"} <= legend
    assert set(named.values()) <= {trace.name for trace in moving.data}
    assert [shape.name for shape in moving.layout.shapes] == ["mean of the paper's setting"]


def test_the_axis_of_epochs_names_those_that_were_evaluated(searches):
    data = read_search(searches / "made-001")
    figure = search_figures.learning_curves(data)
    assert figure is not None
    assert figure.axes[0].get_xticks().tolist() == search_figures.epoch_ticks(data) == [1, 2, 3, 4]
