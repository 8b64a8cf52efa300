"""The paper's Figures 2 to 4 from measured runs, as PNG and SVG. One panel a dataset and bit length.

All take ``runs``, one row a finished run (row, dataset, bits, map from 0 to 1, pcc, d_min, d_avg, update_interval,
early_epochs, codebook_size, head_dim; NaN where missing), average over seeds, write into ``folder`` (made where
missing) and return the two paths; where no run has what the figure shows, they write nothing and return no path.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from crh_tune.ground import write_whole
from crh_tune.reporting.labels import dataset_title, ordered_datasets

Floats = NDArray[np.float64]

DPI = 150
PANEL = (4.4, 3.4)
"""Width and height of one panel, inches."""
CLASSES = {"stanford_cars": 196, "nabirds": 555, "coco": 80, "digits": 10, "digit_pairs": 100}
"""C of the datasets on whose codebook sizes C and 2C are marked."""

# Okabe and Ito's colours, told apart by all common kinds of colour vision
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
_CHAINS = {
    ("CRH-U", "CRH-M", "CRH"): (_RED, "o"),
    ("CSQ", "CSQ_U"): (_BLUE, "s"),
    ("MDS", "MDS_U"): (_GREEN, "^"),
    ("OrthoHash", "OrthoHash_U"): (_ORANGE, "D"),
}
"""Arrows of Figure 2, from the base to its variants."""
_OTHERS = ((_PURPLE, "v"), (_SKY, "P"), ("#555555", "X"), ("#000000", "*"))


def regression_band(x: Floats, y: Floats, at: Floats, confidence: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """The least-squares line through n points (x, y) and the confidence band of the mean response, at each of ``at``.

    Returns line, lower and upper, shaped like ``at``; the half width is t(n - 2) s sqrt(1/n + (at - mean x)^2 / Sxx).
    Raises ValueError for fewer than three points or equal x.
    """
    n, center = len(x), x.mean()
    spread = float(((x - center) ** 2).sum())
    if n < 3 or spread == 0:
        raise ValueError("a regression band needs three points that differ in x")
    slope = float(((x - center) * (y - y.mean())).sum()) / spread
    line = y.mean() + slope * (at - center)
    residuals = y - y.mean() - slope * (x - center)
    error = math.sqrt(float((residuals**2).sum()) / (n - 2))
    t = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 2))
    half = t * error * np.sqrt(1 / n + (at - center) ** 2 / spread)
    return line, line - half, line + half


def figure2(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """mAP against PCC: a point a row, arrows from base to variant, the regression line and its 95 % confidence band."""
    runs = runs.dropna(subset=["map", "pcc"])
    if runs.empty:
        return []
    styles = _styles(runs["row"])
    figure, panels = _grid(runs)
    for panel, part in panels:
        points = part.groupby("row", sort=False)[["pcc", "map"]].mean()
        points["map"] *= 100
        _scatter(panel, points, styles)
        panel.set_xlabel("PCC")
        panel.set_ylabel("mAP (%)")
    handles: list[Artist] = [_marker(row, *style) for row, style in styles.items()]
    handles += [Line2D([], [], color="#555555", label="regression"), Patch(color="#DDDDDD", label="95 % confidence")]
    _legend(figure, handles)
    return _write(figure, folder, "figure2")


def _scatter(axes: Axes, points: pd.DataFrame, styles: dict[str, tuple[str, str, str]]) -> None:
    x, y = points["pcc"].to_numpy(float), points["map"].to_numpy(float)
    axes.set_xlim(*_limits(x, 0.01))
    axes.set_ylim(*_limits(y, 0.5))
    if len(x) >= 3 and np.ptp(x) > 0:
        at = np.linspace(*axes.get_xlim(), 200)
        line, lower, upper = regression_band(x, y, at)
        axes.fill_between(at, lower, upper, color="#DDDDDD", linewidth=0, zorder=0)
        axes.plot(at, line, color="#555555", linewidth=1.2, zorder=1)
        if np.ptp(y) > 0:
            axes.set_title(f"{axes.get_title()} (r = {np.corrcoef(x, y)[0, 1]:.2f})", fontsize=11)
    for chain, (color, _) in _CHAINS.items():
        present = [row for row in chain if row in points.index]
        for start, end in itertools.pairwise(present):
            arrow = {"arrowstyle": "-|>", "color": color, "shrinkA": 5, "shrinkB": 5, "linewidth": 1.3}
            axes.annotate("", xy=tuple(points.loc[end]), xytext=tuple(points.loc[start]), arrowprops=arrow, zorder=2)
    for row, point in points.iterrows():
        color, shape, face = styles[str(row)]
        axes.plot(*point, shape, color=color, markerfacecolor=face, markersize=8, markeredgewidth=1.6, zorder=3)


def _styles(rows: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and face of each row: a family's base is hollow, CRH-M pale, its last variant full."""
    present = list(dict.fromkeys(rows))
    styles: dict[str, tuple[str, str, str]] = {}
    for chain, (color, shape) in _CHAINS.items():
        faces = ("white", color) if len(chain) == 2 else ("white", "#F5C7A9", color)
        styles |= {row: (color, shape, face) for row, face in zip(chain, faces, strict=True) if row in present}
    for index, row in enumerate(row for row in present if row not in styles):
        color, shape = _OTHERS[index % len(_OTHERS)]
        styles[row] = (color, shape, color if index < len(_OTHERS) else "white")
    return styles


def _marker(row: str, color: str, shape: str, face: str) -> Line2D:
    return Line2D(
        [], [], color=color, marker=shape, markerfacecolor=face, markersize=8, linestyle="", label=_plain(row)
    )


def figure3(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """mAP (left axis) and PCC (right axis) against the update interval.

    "5 (20)" is interval 5 after 20 epochs with an update each, "∞" no updates: an interval that is NaN, infinite or not
    above 0, or a reassignment of "none" where ``runs`` has that column.
    """
    runs = runs.dropna(subset=["map", "pcc"], how="all")
    if runs.empty:
        return []
    runs = runs.assign(key=[_interval(run) for run in runs.to_dict("records")])
    figure, panels = _grid(runs)
    for panel, part in panels:
        ticks = sorted(set(part["key"]), key=lambda key: (key[0], -key[1]))
        _two_axes(panel, part, ticks, [_interval_label(*tick) for tick in ticks], ("pcc",))
        panel.set_xlabel("update interval (epochs)")
    _line_legend(figure, ("map", "pcc"))
    return _write(figure, folder, "figure3")


def _interval(run: dict[str, Any]) -> tuple[float, int]:
    """Interval and early epochs; (infinity, 0) for no updates."""
    interval, early = run["update_interval"], run["early_epochs"]
    if run.get("reassignment") == "none" or not 0 < interval < math.inf:
        return math.inf, 0
    return interval, int(early) if early > 0 else 0


def _interval_label(interval: float, early: int) -> str:
    if math.isinf(interval):
        return "∞"
    return f"{interval:g} ({early})" if early else f"{interval:g}"


def figure4(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """mAP (left axis), d_min and d_avg in bits (right axis) against the codebook size M and the head dimension d.

    Against M, each M counts at the paper's d, the smallest power of two >= log2 M, where all have it; else at the d
    that most M share, or without it at its largest. Ticks name an unusual d in brackets. A codebook_size of NaN is
    the whole space, 2^K, with any d. Against d, runs count at the M that has most d.
    Ticks at M = C and 2C are marked, on the datasets of ``CLASSES``.
    """
    runs = runs.dropna(subset=["map", "d_min", "d_avg"], how="all")
    if runs.empty:
        return []
    datasets, bits = ordered_datasets(runs["dataset"]), sorted(set(runs["bits"]))
    columns = 2 * len(bits)
    figure = _figure(len(datasets), columns)
    axes = figure.subplots(len(datasets), columns, squeeze=False)
    for line, dataset in zip(axes, datasets, strict=True):
        for index, length in enumerate(bits):
            part = runs[(runs["dataset"] == dataset) & (runs["bits"] == length)]
            for panel, draw in ((line[index], _against_size), (line[len(bits) + index], _against_dim)):
                panel.set_title(_title(dataset, length), fontsize=11)
                draw(panel, part, dataset)
    _line_legend(figure, ("map", "d_min", "d_avg"))
    return _write(figure, folder, "figure4")


def _against_size(axes: Axes, runs: pd.DataFrame, dataset: str) -> None:
    whole, sized = runs[runs["codebook_size"].isna()], runs.dropna(subset=["codebook_size", "head_dim"])
    sizes = sorted(set(sized["codebook_size"]))
    dims = _dims(sized)
    usual = max(dims.values(), key=list(dims.values()).count, default=math.nan)
    parts, labels = [], []
    for size in sizes:
        there = (sized["codebook_size"] == size) & (sized["head_dim"] == dims[size])
        parts.append(sized[there].assign(key=size))
        labels.append(_size_label(size, dataset) + (f"\n({dims[size]:g})" if dims[size] != usual else ""))
    if len(whole):
        parts.append(whole.assign(key=math.inf))
        labels.append("$2^K$")
    if not parts:
        return _nothing(axes)
    _two_axes(axes, pd.concat(parts), [*sizes, *([math.inf] if len(whole) else [])], labels, ("d_min", "d_avg"))
    for label in axes.get_xticklabels():
        if label.get_text().split("\n")[1:2] == ["2C"]:
            label.set_fontweight("bold")
    note = ", else in brackets" if len(set(dims.values())) > 1 else ""
    axes.set_xlabel("codebook size M" + (f" (d = {usual:g}{note})" if sizes else ""))


def _dims(runs: pd.DataFrame) -> dict[float, float]:
    """The d at which each M counts; see figure4."""
    there = {size: set(part["head_dim"]) for size, part in runs.groupby("codebook_size")}
    paper = {size: next(2.0**i for i in itertools.count() if 2.0 ** (2**i) >= size) for size in there}
    if all(paper[size] in dims for size, dims in there.items()):
        return paper
    most = max(itertools.chain(*there.values()), key=lambda dim: (sum(dim in dims for dims in there.values()), dim))
    return {size: most if most in dims else max(dims) for size, dims in there.items()}


def _size_label(size: float, dataset: str) -> str:
    ratio = size / CLASSES[dataset] if dataset in CLASSES else math.nan
    return f"{size:g}\n{'C' if ratio == 1 else '2C'}" if ratio in (1, 2) else f"{size:g}"


def _against_dim(axes: Axes, runs: pd.DataFrame, dataset: str) -> None:
    sized = runs.dropna(subset=["codebook_size", "head_dim"])
    if sized.empty:
        return _nothing(axes)
    dims = sized.groupby("codebook_size")["head_dim"].nunique()
    size = float(dims.idxmax())
    part = sized[sized["codebook_size"] == size].rename(columns={"head_dim": "key"})
    ticks = sorted(set(part["key"]))
    _two_axes(axes, part, ticks, [f"{tick:g}" for tick in ticks], ("d_min", "d_avg"))
    axes.set_xlabel(f"head dimension d (M = {_size_label(size, dataset).replace(chr(10), ' = ')})")


@dataclass(frozen=True)
class _Line:
    label: str
    axis: str
    color: str
    marker: str
    style: str


_LINES = {
    "map": _Line("mAP", "mAP (%)", _BLUE, "o", "-"),
    "pcc": _Line("PCC", "PCC", _RED, "s", "--"),
    "d_min": _Line("$d_{min}$", "distance of centres (bits)", _RED, "s", "--"),
    "d_avg": _Line("$d_{avg}$", "distance of centres (bits)", _GREEN, "^", "-."),
}


def _two_axes(axes: Axes, runs: pd.DataFrame, ticks: Sequence[float], labels: list[str], right: Sequence[str]) -> None:
    """mAP on the left axis and ``right`` on a second one against equally spaced ticks, values of ``runs["key"]``.

    Error bars are the standard deviation over the runs of a tick.
    """
    other = axes.twinx()
    groups = dict(list(runs.groupby("key", sort=False)))
    for panel, name in [(axes, "map"), *((other, name) for name in right)]:
        scale = 100 if name == "map" else 1
        mean = [groups[tick][name].mean() * scale for tick in ticks]
        std = np.nan_to_num([groups[tick][name].std(ddof=1) * scale for tick in ticks])
        panel.errorbar(range(len(ticks)), mean, yerr=std, capsize=3, **_line(name))
    axes.set_xticks(range(len(ticks)), labels)
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    for panel, name in ((axes, "map"), (other, right[0])):
        color = _LINES[name].color if name != "d_min" else "black"
        panel.set_ylabel(_LINES[name].axis, color=color)
        panel.tick_params(axis="y", colors=color)


def _line(name: str) -> dict[str, Any]:
    line = _LINES[name]
    return {"color": line.color, "marker": line.marker, "linestyle": line.style, "markersize": 6, "label": line.label}


def _line_legend(figure: Figure, names: Sequence[str]) -> None:
    _legend(figure, [Line2D([], [], **_line(name)) for name in names])


def _grid(runs: pd.DataFrame) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A figure with a line of panels a bit length and a column a dataset, and the panels that have runs, with these."""
    datasets, bits = ordered_datasets(runs["dataset"]), sorted(set(runs["bits"]))
    figure = _figure(len(bits), len(datasets))
    axes = figure.subplots(len(bits), len(datasets), squeeze=False)
    panels = []
    for line, length in zip(axes, bits, strict=True):
        for panel, dataset in zip(line, datasets, strict=True):
            part = runs[(runs["dataset"] == dataset) & (runs["bits"] == length)]
            panel.set_title(_title(dataset, length), fontsize=11)
            if len(part):
                panels.append((panel, part))
            else:
                _nothing(panel)
    return figure, panels


def _figure(lines: int, columns: int) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1)
    return Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines + 0.7), dpi=DPI, layout=layout)


def _title(dataset: str, bits: int) -> str:
    return f"{_plain(dataset_title(dataset))}, {bits} bits"


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no runs", ha="center", va="center", transform=axes.transAxes, color="#555555")
    axes.set_xticks([])
    axes.set_yticks([])


def _limits(values: Floats, least: float) -> tuple[float, float]:
    margin = max(0.12 * float(np.ptp(values)), least)
    return float(values.min()) - margin, float(values.max()) + margin


def _legend(figure: Figure, handles: list[Artist]) -> None:
    columns = max(2, round(figure.get_figwidth() / 1.7))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _write(figure: Figure, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    write_whole(paths[0], partial(figure.savefig, format="png", dpi=DPI))
    write_whole(paths[1], partial(figure.savefig, format="svg", metadata={"Date": None}))
    return paths
