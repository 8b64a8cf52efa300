"""The figures of what a search's winner can do: retrieval, classes, centres, codes. None where data is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.cluster.hierarchy
import scipy.spatial.distance
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crh_tune.hashing.codebook import Codes
from crh_tune.reporting.curves import CodeStatistics, Curves, center_similarity
from crh_tune.reporting.search_data import BEST_SO_FAR, PAPER, WINNER, Model, SearchData
from crh_tune.reporting.search_figures import SQUARE, WIDE, new_figure, plain
from crh_tune.reporting.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from crh_tune.retrieval.alignment import semantic_alignment

Floats = npt.NDArray[np.float64]
_COLORS = {WINNER: GREEN, BEST_SO_FAR: GREEN, PAPER: RED}
_OTHERS = (BLUE, SKY, PURPLE, ORANGE)
_MOST_CLASSES = 1000


def curve_color(curves: Sequence[Curves], place: int) -> str:
    """The colour of one way to rank, the same in every figure."""
    others = [each.label for each in curves if each.label not in _COLORS]
    label = curves[place].label
    return _COLORS.get(label) or _OTHERS[others.index(label) % len(_OTHERS)]


def retrieval(curves: Sequence[Curves]) -> Figure | None:
    """Precision by recall, and precision and recall among the first k."""
    if not curves:
        return None
    figure = new_figure((11.0, 3.9))
    by_recall, precision, recall = figure.subplots(1, 3)
    for place, each in enumerate(curves):
        style = {"color": curve_color(curves, place), "linestyle": "-" if each.label in _COLORS else "--"}
        by_recall.plot(each.recall_at, each.precision_at, label=plain(each.label), **style)
        precision.plot(each.ranks, each.precision_at, **style)
        recall.plot(each.ranks, each.recall_at, **style)
    for axes, x, y in (
        (by_recall, "recall", "precision"),
        (precision, "first k items", "precision@k"),
        (recall, "first k items", "recall@k"),
    ):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_ylim(0, 1.02)
        axes.grid(color="#EEEEEE")
    precision.set_xscale("log")
    recall.set_xscale("log")
    figure.legend(loc="outside lower center", ncols=len(curves), frameon=False, fontsize=9)
    return figure


def classes(label: str, values: Floats, other: Floats | None) -> Figure | None:
    """mAP of every class, worst first, beside that of the paper's setting."""
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return None
    order = known[np.argsort(values[known], kind="stable")]
    figure = new_figure((8.4, 3.2))
    axes = figure.subplots()
    axes.bar(
        np.arange(len(order)), values[order], width=1.0 if len(order) > 40 else 0.8, color="#8CCFB7", label=plain(label)
    )
    if other is not None:
        axes.plot(np.arange(len(order)), other[order], ".", color=RED, markersize=4, label=PAPER)
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    axes.set_xlabel("classes, the worst first")
    axes.set_ylabel("mAP of the class's queries")
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_ylim(0, 1.03)
    return figure


def cluster_order(similarity: Floats) -> npt.NDArray[np.int64]:
    """Classes so that alike ones stand side by side: the leaves of average linkage."""
    if len(similarity) < 3:
        return np.arange(len(similarity))
    distances = np.maximum(similarity.max() - similarity, 0)
    condensed = scipy.spatial.distance.squareform((distances + distances.T) / 2, checks=False)
    return np.asarray(scipy.cluster.hierarchy.leaves_list(scipy.cluster.hierarchy.linkage(condensed, "average")))


def center_maps(centers: Codes | None, reference: Floats | None) -> Figure | None:
    """How alike the classes are by the reference, and how alike their centres are, in the same order."""
    if centers is None or reference is None or not len(centers) == len(reference) <= _MOST_CLASSES:
        return None
    order = cluster_order(reference)
    similarity = center_similarity(centers)
    pcc = semantic_alignment(centers, reference)
    figure = new_figure((9.0, 4.4))
    for axes, matrix, title in zip(
        figure.subplots(1, 2),
        (reference, similarity),
        ("classes, by the reference", f"their centres (PCC {pcc:.2f})"),
        strict=True,
    ):
        off = matrix[~np.eye(len(matrix), dtype=bool)]
        low, high = np.quantile(off, (0.01, 0.99))
        shown = axes.imshow(
            matrix[np.ix_(order, order)], cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest"
        )
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        figure.colorbar(shown, ax=axes, shrink=0.8)
    return figure


def center_moves(data: SearchData, model: Model) -> Figure | None:
    """How far each class's centre is from where it began, and the share of classes that each round moved."""
    if model.centers is None or model.first_centers is None:
        return None
    moved = (model.centers != model.first_centers).sum(axis=1)
    if not moved.any():
        return None
    series = data.series.get(model.run, {})
    share, pcc = series.get("centers/reassigned", {}), series.get("centers/pcc", {})
    figure = new_figure(WIDE if share or pcc else SQUARE)
    panels = figure.subplots(1, 2 if share or pcc else 1, squeeze=False)[0]
    panels[0].hist(moved, bins=np.arange(model.centers.shape[1] + 2) - 0.5, color=BLUE)
    panels[0].axvline(model.centers.shape[1] / 2, color=GREY, linestyle=":", label="K / 2: as far as chance")
    panels[0].legend(frameon=False, fontsize=8)
    for axis in (panels[0].xaxis, panels[0].yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_xlabel("bits between the first and the last centre")
    panels[0].set_ylabel("classes")
    if share or pcc:
        panels[1].plot(
            list(share), list(share.values()), "o-", color=BLUE, markersize=4, label="share of classes moved"
        )
        panels[1].plot(list(pcc), list(pcc.values()), "s-", color=RED, markersize=4, label="PCC with the reference")
        panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[1].set_xlabel("epoch")
        panels[1].set_ylabel("share of classes, or PCC")
        panels[1].set_ylim(min(0.0, *pcc.values()) if pcc else 0.0, 1.02)
        panels[1].legend(frameon=False, fontsize=8)
    return figure


def codes(statistics: CodeStatistics) -> Figure | None:
    """The share of ones of each bit, and how bits go together."""
    if not statistics.items:
        return None
    figure = new_figure((9.0, 3.6))
    balance, together = figure.subplots(1, 2)
    balance.bar(np.arange(len(statistics.ones)), statistics.ones, color=BLUE)
    balance.axhline(0.5, color=GREY, linestyle=":")
    balance.set_ylim(0, 1)
    balance.set_xlabel("bit")
    balance.set_ylabel("share of ones")
    for axis in (balance.xaxis, together.xaxis, together.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    shown = together.imshow(np.abs(statistics.correlation), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    together.set_xlabel("bit")
    together.set_ylabel("bit")
    figure.colorbar(shown, ax=together, label="absolute correlation")
    return figure
