"""The figures of a search: how it went, what mattered, what was stopped. Each gives a figure, or None without data.

They take what ``search_data`` read and nothing else, so that a page, MLflow and a live view can all draw them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from crh_tune.reporting.axes import Surface, setting_axis, smooth_surface, value_axis, valued
from crh_tune.reporting.importance import Importance, varied
from crh_tune.reporting.search_data import Confirmed, SearchData, Trial
from crh_tune.reporting.style import (
    BLUE,
    GREEN,
    GREY,
    LINES,
    ORANGE,
    PALE,
    RED,
    STATUS_COLORS,
    STATUS_WORDS,
    metric_word,
)
from crh_tune.tuning.record import COMPLETE, PRUNED

DPI = 130
PAPER_MEAN = "mean of the paper's setting"
WIDE, SQUARE = (8.4, 4.0), (6.0, 4.6)


def new_figure(size: tuple[float, float]) -> Figure:
    return Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine())


def plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def history(data: SearchData) -> Figure | None:
    """The value of every trial in the order they were begun, the best so far, and what finalists were worth."""
    trials = [trial for trial in data.trials if trial.value is not None]
    if not trials:
        return None
    figure = new_figure(WIDE)
    axes = figure.subplots()
    for status in (PRUNED, "running", "failed", COMPLETE):
        some = [trial for trial in trials if trial.status == status]
        face = STATUS_COLORS[status] if status == COMPLETE else "white"
        axes.plot(
            [trial.number for trial in some], [trial.known for trial in some], "o", color=STATUS_COLORS[status],
            markerfacecolor=face, markersize=6, label=STATUS_WORDS[status] if some else None,
        )  # fmt: skip
    best = best_so_far(data)
    if best:
        at, values = zip(*best, strict=True)
        axes.step([*at, trials[-1].number], [*values, values[-1]], where="post", color=GREY, label="best so far")
    for number, each, color, label in diamonds(data):
        axes.errorbar(
            [number], [each.mean], yerr=[0.0 if math.isnan(each.std) else each.std], fmt="D",
            color=color, markersize=8 if each.trial == data.winner else 5, capsize=4, zorder=4, label=label or None,
        )  # fmt: skip
    paper = data.confirmed_paper
    if paper is not None:
        axes.axhline(paper.mean, color=RED, linestyle="--", linewidth=1.2, label=PAPER_MEAN)
    axes.set_xlabel("trial")
    axes.set_ylabel(metric_word(data.metric))
    axes.legend(frameon=False, fontsize=8)
    return figure


def diamonds(data: SearchData) -> list[tuple[int, Confirmed, str, str]]:
    """The trials that ran again with fresh seeds: number, values, colour, and a label, once for those that share it."""
    numbers = {trial.name: trial.number for trial in data.trials}
    found: list[tuple[int, Confirmed, str, str]] = []
    for each in data.confirmed:
        color, label = "black", "other finalists, fresh seeds"
        if each.trial == data.winner:
            color, label = GREEN, "winner, fresh seeds"
        elif each.is_paper:
            color, label = RED, "the paper's setting, fresh seeds"
        if each.trial in numbers:
            told = label in [row[3] for row in found]
            found.append((numbers[each.trial], each, color, "" if told else label))
    return found


def best_so_far(data: SearchData) -> list[tuple[int, float]]:
    """The complete trials that were better than all before them: number and value."""
    found: list[tuple[int, float]] = []
    for trial in sorted(data.complete, key=lambda trial: trial.number):
        assert trial.value is not None
        if not found or data.sign * trial.value > data.sign * found[-1][1]:
            found.append((trial.number, trial.value))
    return found


def importance(found: Sequence[Importance]) -> Figure | None:
    """The share of each setting, its interval, and what chance would give."""
    if not found:
        return None
    figure = new_figure((7.0, 0.5 * len(found) + 1.3))
    axes = figure.subplots()
    places = np.arange(len(found))[::-1]
    for place, each in zip(places, found, strict=True):
        color = BLUE if each.can_tell else PALE
        axes.barh(place, each.share, color=color, height=0.55)
        axes.plot([each.low, each.high], [place, place], color="black", linewidth=1.4)
        axes.plot([each.chance, each.chance], [place - 0.38, place + 0.38], color=RED, linewidth=1.6)
    axes.set_yticks(places, [plain(f"{each.name}{'' if each.can_tell else '  (cannot tell)'}") for each in found])
    axes.set_xlabel("share of importance (black: its interval, orange: what chance reaches)")
    axes.set_xlim(0, None)
    return figure


def rungs(data: SearchData) -> Figure | None:
    """How far each trial was trained, and where weak ones were stopped; None where all end alike."""
    trials = [trial for trial in data.trials if trial.epoch]
    if not trials or data.settings.share_of_epochs:
        return None
    figure = new_figure((8.4, min(12.0, 1.4 + 0.14 * len(trials))))
    axes = figure.subplots()
    for status in dict.fromkeys(trial.status for trial in trials):
        some = [trial for trial in trials if trial.status == status]
        axes.barh(
            [trial.number for trial in some], [trial.epoch for trial in some], height=0.7,
            color=STATUS_COLORS[status], label=STATUS_WORDS[status],
        )  # fmt: skip
    for rung in data.rungs:
        axes.axvline(rung, color="black", linestyle=":", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("epochs trained" + (" (dotted: where weak trials are stopped)" if data.rungs else ""))
    axes.set_ylabel("trial")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def epochs_spent(data: SearchData) -> tuple[int, int]:
    """The epochs that trials were trained for, and what they would have taken without any being stopped."""
    begun = [trial for trial in data.trials if trial.status != "running"]
    return sum(trial.epoch for trial in begun), data.epochs * len(begun)


def epochs(data: SearchData) -> Figure | None:
    """The epochs that the trials have taken, added up, beside a search that stops none; None where none can stop."""
    trials = [trial for trial in data.trials if trial.status != "running"]
    if not data.rungs or not trials:
        return None
    figure = new_figure(WIDE)
    axes = figure.subplots()
    count = np.arange(1, len(trials) + 1)
    axes.plot(count, np.cumsum([trial.epoch for trial in trials]), "o-", color=BLUE, markersize=3.5, label="trained")
    axes.plot(count, data.epochs * count, "--", color=GREY, label="without stopping any")
    used, whole = epochs_spent(data)
    axes.set_title(f"{used:,} of {whole:,} epochs trained, {100 - 100 * used / max(whole, 1):.0f} % saved", fontsize=10)
    axes.set_xlabel("trials that have ended")
    axes.set_ylabel("epochs")
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize=8)
    return figure


def learning_curves(data: SearchData, marked: str | None = None) -> Figure | None:
    """The metric by epoch: every trial, and the band over fresh seeds of the winner and of the paper's setting.

    ``marked`` is the run that the figure is about: its own curve is black.
    """
    trials = [trial for trial in data.trials if trial.values]
    bands = [each for each in data.confirmed if any(each.curves)]
    if not trials and not bands:
        return None
    figure = new_figure(WIDE)
    axes = figure.subplots()
    for trial in trials:
        color = PALE if trial.status == COMPLETE else "#F3D9A0"
        mark = "." if len(trial.values) == 1 else ""
        axes.plot(list(trial.values), list(trial.values.values()), marker=mark, color=color, linewidth=0.9)
    for each, color, label in banded(data):
        epochs, mean, low, high = seed_band(each)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(epochs, mean, "o-", color=color, markersize=3.5, label=label)
    own = data.series.get(marked or "", {}).get(data.metric, {})
    if own:
        axes.plot(list(own), list(own.values()), "s-", color="black", markersize=3.5, label="this run")
    axes.plot([], [], color=PALE, label="trials")
    axes.plot([], [], color="#F3D9A0", label="trials that were stopped")
    for rung in data.rungs:
        axes.axvline(rung, color="black", linestyle=":", linewidth=0.8)
    axes.set_xticks(epoch_ticks(data))
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric_word(data.metric))
    axes.legend(frameon=False, fontsize=8)
    return figure


def epoch_ticks(data: SearchData) -> list[int]:
    """The epochs after which runs were evaluated; of many, evenly chosen ones, a dozen at most."""
    curves = [trial.values for trial in data.trials] + [curve for each in data.confirmed for curve in each.curves]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    return epochs[:: -(-len(epochs) // 12) or 1]


def banded(data: SearchData) -> list[tuple[Confirmed, str, str]]:
    """The confirmed settings whose curves are known, with colour and label: winner, the paper's, then the others."""
    found = []
    others = iter(LINES[3:])
    for each in data.confirmed:
        if not any(each.curves):
            continue
        if each.trial == data.winner:
            found.append((each, GREEN, f"winner ({each.trial}), fresh seeds"))
        elif each.is_paper:
            found.append((each, RED, "the paper's setting, fresh seeds"))
        else:
            found.append((each, next(others, GREY), f"{each.trial}, fresh seeds"))
    return found


def seed_band(each: Confirmed) -> tuple[list[int], list[float], list[float], list[float]]:
    """Epochs that all seeds have, and mean, lowest and highest value there."""
    curves = [curve for curve in each.curves if curve]
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    table = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
    return epochs, table.mean(axis=0).tolist(), table.min(axis=0).tolist(), table.max(axis=0).tolist()


def parallel_coordinates(data: SearchData) -> Figure | None:
    """One line per trial, through its settings to its value."""
    trials, values = valued(data)
    names = list(varied(data))
    if len(trials) < 2 or not names:
        return None
    axes_of = [*(setting_axis(trials, name) for name in names), value_axis(metric_word(data.metric), values)]
    figure = new_figure((8.4, 4.2))
    axes = figure.subplots()
    lines = np.stack([axis.at for axis in axes_of], axis=1)
    order = np.argsort(data.sign * np.array(values))
    segments = [np.column_stack([np.arange(len(axes_of)), line]) for line in lines[order]]
    drawn = LineCollection(segments, cmap="viridis", array=np.array(values)[order], linewidth=1.6, alpha=0.85)
    axes.add_collection(drawn)
    for place, axis in enumerate(axes_of):
        axes.axvline(place, color="black", linewidth=0.8)
        for at, label in axis.ticks:
            axes.annotate(
                plain(label), (place, at), xytext=(-4, 0), textcoords="offset points", ha="right", va="center",
                fontsize=8, bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    axes.set_xlim(-0.45, len(axes_of) - 0.8)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xticks(range(len(axes_of)), [plain(axis.name) for axis in axes_of])
    axes.set_yticks([])
    for side in ("top", "bottom", "left", "right"):
        axes.spines[side].set_visible(False)
    figure.colorbar(drawn, ax=axes, label=metric_word(data.metric), shrink=0.8)
    return figure


def two_most_important(
    data: SearchData, found: Sequence[Importance]
) -> tuple[Surface, list[Trial], list[float]] | None:
    """The surface over the two most important settings, with the trials it stands on and their values.

    Those of which one can tell that they matter come first, as in the verdict.
    """
    trials, values = valued(data)
    if len(found) < 2 or len(trials) < 4:
        return None
    first = sorted(found, key=lambda each: not each.can_tell)[:2]  # equal ones stay the largest share first
    x, y = (setting_axis(trials, each.name) for each in first)
    return smooth_surface(x, y, values), trials, values


def contour(data: SearchData, found: Sequence[Importance]) -> Figure | None:
    """What trials came to over the two most important settings, smoothed; one point per trial."""
    surface_of = two_most_important(data, found)
    if surface_of is None:
        return None
    surface, _, values = surface_of
    figure = new_figure(SQUARE)
    axes = figure.subplots()
    low, high = min(values), max(values)
    levels = np.linspace(low, max(high, low + 1e-6), 15)
    one_scale: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": levels[-1]}
    filled = axes.contourf(surface.at, surface.at, surface.values, levels=levels, **one_scale)
    axes.scatter(surface.x.at, surface.y.at, c=values, edgecolors="white", s=42, **one_scale)
    best = int(np.argmax(data.sign * np.array(values)))
    axes.plot(surface.x.at[best], surface.y.at[best], "*", color=ORANGE, markersize=15, markeredgecolor="black")
    axes.set_xticks([at for at, _ in surface.x.ticks], [plain(label) for _, label in surface.x.ticks])
    axes.set_yticks([at for at, _ in surface.y.ticks], [plain(label) for _, label in surface.y.ticks])
    axes.set_xlabel(plain(surface.x.name))
    axes.set_ylabel(plain(surface.y.name))
    figure.colorbar(filled, ax=axes, label=metric_word(data.metric))
    return figure
