"""The figures one wants to point at, drawn by plotly: history, learning curves, parallel coordinates, contour.

Plotly reads markup in its labels, so every text that comes from settings or names is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from crh_tune.errors import counted
from crh_tune.reporting.axes import setting_axis, value_axis, valued
from crh_tune.reporting.importance import Importance, varied
from crh_tune.reporting.search_data import SearchData, Trial, setting_text
from crh_tune.reporting.search_figures import (
    PAPER_MEAN,
    banded,
    best_so_far,
    diamonds,
    epoch_ticks,
    seed_band,
    two_most_important,
)
from crh_tune.reporting.search_tables import spread
from crh_tune.reporting.style import GREY, ORANGE, PALE, RED, STATUS_COLORS, STATUS_WORDS, metric_word
from crh_tune.tuning.record import COMPLETE

_HEIGHT = 420
_STOPPED = "#F3D9A0"


def history(data: SearchData) -> go.Figure | None:
    """The value of every trial in the order they were begun; pointing at one tells its setting."""
    trials = [trial for trial in data.trials if trial.value is not None]
    if not trials:
        return None
    figure = _figure("trial", metric_word(data.metric))
    for status in dict.fromkeys(trial.status for trial in trials):
        some = [trial for trial in trials if trial.status == status]
        symbol = "circle" if status == COMPLETE else "circle-open"
        figure.add_scatter(
            x=[trial.number for trial in some], y=[trial.value for trial in some], mode="markers",
            marker={"color": STATUS_COLORS[status], "size": 9, "symbol": symbol, "line": {"width": 2}},
            text=[_about(trial) for trial in some], hovertemplate="%{text}<extra></extra>", name=STATUS_WORDS[status],
        )  # fmt: skip
    best = best_so_far(data)
    if best:
        at, values = zip(*best, strict=True)
        figure.add_scatter(
            x=[*at, trials[-1].number], y=[*values, values[-1]], mode="lines", line={"color": GREY, "shape": "hv"},
            name="best so far", hoverinfo="skip",
        )  # fmt: skip
    for number, each, color, label in diamonds(data):
        figure.add_scatter(
            x=[number], y=[each.mean], mode="markers", error_y={"array": [float(np.nan_to_num(each.std))]},
            marker={"symbol": "diamond", "size": 13 if each.trial == data.winner else 9, "color": color},
            showlegend=bool(label), name=label,
            text=[f"{_safe(each.trial)} with {counted(len(each.values), 'fresh seed')}: {spread(each)}"],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    if data.confirmed_paper is not None:
        figure.add_hline(
            data.confirmed_paper.mean, line={"color": RED, "dash": "dash"}, name=PAPER_MEAN, showlegend=True
        )
    return figure


def learning_curves(data: SearchData) -> go.Figure | None:
    """The metric by epoch of every trial, with the bands of the settings that ran again."""
    trials = [trial for trial in data.trials if trial.values]
    bands = banded(data)
    if not trials and not bands:
        return None
    figure = _figure("epoch", metric_word(data.metric))
    for trial in trials:
        color = PALE if trial.status == COMPLETE else _STOPPED
        _line(figure, list(trial.values), list(trial.values.values()), color, 1.2, "", _about(trial))
    for each, color, label in bands:
        epochs, mean, low, high = seed_band(each)
        figure.add_scatter(
            x=[*epochs, *epochs[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=color, opacity=0.18,
            line={"width": 0}, hoverinfo="skip", showlegend=False, mode="lines",
        )  # fmt: skip
        _line(figure, epochs, mean, color, 2.6, _safe(label), f"{_safe(label)}<br>{_safe(setting_text(each.setting))}")
    for rung in data.rungs:
        figure.add_vline(rung, line={"color": "black", "dash": "dot", "width": 1})
    figure.update_xaxes(tickvals=epoch_ticks(data))
    return figure


def parallel_coordinates(data: SearchData) -> go.Figure | None:
    """One line per trial, through its settings to its value; marking a stretch of an axis shows its trials alone."""
    trials, values = valued(data)
    names = list(varied(data))
    if len(trials) < 2 or not names:
        return None
    axes = [*(setting_axis(trials, name) for name in names), value_axis(metric_word(data.metric), values)]
    figure = go.Figure(
        go.Parcoords(
            line={"color": values, "colorscale": "Viridis", "showscale": True},
            dimensions=[
                {
                    "label": _safe(axis.name), "values": axis.at.tolist(), "range": [0, 1],
                    "tickvals": [at for at, _ in axis.ticks], "ticktext": [_safe(label) for _, label in axis.ticks],
                }
                for axis in axes
            ],
        )
    )  # fmt: skip
    return figure.update_layout(height=_HEIGHT, margin={"l": 60, "r": 40, "t": 60, "b": 30}, font={"size": 13})


def contour(data: SearchData, found: Sequence[Importance]) -> go.Figure | None:
    """What trials came to over the two most important settings, smoothed; one point per trial."""
    surface_of = two_most_important(data, found)
    if surface_of is None:
        return None
    surface, trials, values = surface_of
    figure = _figure(_safe(surface.x.name), _safe(surface.y.name))
    low, high = min(values), max(values)  # of one scale, said to both: a color axis that they share hangs browsers
    figure.add_contour(
        x=surface.at.tolist(), y=surface.at.tolist(), z=_listed(surface.values), colorscale="Viridis", zmin=low,
        zmax=high, ncontours=14, line={"width": 0.5}, hoverinfo="skip",
        colorbar={"title": {"text": metric_word(data.metric)}},
    )  # fmt: skip
    color = {"color": values, "colorscale": "Viridis", "cmin": low, "cmax": high}
    figure.add_scatter(
        x=surface.x.at.tolist(), y=surface.y.at.tolist(), mode="markers", showlegend=False,
        marker={**color, "size": 10, "line": {"color": "white", "width": 1}},
        text=[_about(trial) for trial in trials], hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    best = int(np.argmax(data.sign * np.array(values)))
    figure.add_scatter(
        x=[surface.x.at[best]], y=[surface.y.at[best]], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"symbol": "star", "color": ORANGE, "size": 17, "line": {"color": "black", "width": 1}},
    )  # fmt: skip
    figure.update_xaxes(tickvals=[at for at, _ in surface.x.ticks], ticktext=[_safe(t) for _, t in surface.x.ticks])
    figure.update_yaxes(tickvals=[at for at, _ in surface.y.ticks], ticktext=[_safe(t) for _, t in surface.y.ticks])
    return figure


def _figure(x: str, y: str) -> go.Figure:
    layout: Mapping[str, object] = {
        "height": _HEIGHT,
        "margin": {"l": 60, "r": 40, "t": 20, "b": 50},
        "modebar": {"orientation": "v"},
        "template": "plotly_white",
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
        "legend": {"orientation": "h", "y": 1.12},
        "hovermode": "closest",
    }
    return go.Figure(layout=layout)


def _line(figure: go.Figure, x: list[int], y: list[float], color: str, width: float, name: str, about: str) -> None:
    figure.add_scatter(
        x=x, y=y, mode="lines" if len(x) > 1 else "markers", line={"color": color, "width": width}, name=name,
        marker={"color": color, "size": 5}, showlegend=bool(name),
        text=[about] * len(x), hovertemplate="%{text}<br>epoch %{x}: %{y:.4f}<extra></extra>",
    )  # fmt: skip


def _about(trial: Trial) -> str:
    """What is told of a trial when one points at it."""
    value = "" if trial.value is None else f"<br>{trial.value:.4f} after epoch {trial.epoch}"
    return f"{_safe(trial.name)}: {STATUS_WORDS[trial.status]}{value}<br>{_safe(setting_text(trial.setting))}"


def _safe(text: str) -> str:
    return html.escape(text)


def _listed(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]
