"""The report of a search: one HTML page that needs nothing beside it, and its figures and tables as files."""

from __future__ import annotations

import base64
import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jinja2
import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
import plotly.offline
from markupsafe import Markup
from matplotlib.figure import Figure

from crh_tune.errors import DataError, counted
from crh_tune.ground import write_text, write_whole
from crh_tune.reporting import evidence_figures, interactive, search_figures, search_tables, summary_text
from crh_tune.reporting.curves import (
    Curves,
    all_curves,
    class_precisions,
    code_statistics,
    confused_pairs,
    nearest_items,
)
from crh_tune.reporting.gallery import Gallery, gallery
from crh_tune.reporting.importance import Importance, importances, verdict
from crh_tune.reporting.search_data import PAPER, Evidence, SearchData, picture_folder, read_evidence, read_search
from crh_tune.reporting.style import metric_word
from crh_tune.retrieval.average_precision import Floats
from crh_tune.retrieval.baselines import Gain, bootstrap_gain
from crh_tune.settings.base import SettingsError

Say = Callable[[str], None]
REPORTS = "reports"
"""The folder of a storage that reports are written into."""
PAGE, FIGURES, TABLES = "report.html", "figures", "tables"
_TEMPLATE = "search_report.html"


@dataclass
class Card:
    """A figure or table of the page with what it tells: static figure as SVG, interactive one as plotly's JSON."""

    name: str
    title: str
    text: str
    svg: str = ""
    plotly: str = ""
    table: Markup = field(default_factory=Markup)
    beside: bool = False


@dataclass
class Section:
    """A heading of the page with its cards; without any it is left out."""

    name: str
    title: str
    cards: list[Card]
    text: Sequence[str] = ()


class Output:
    """Where figures and tables go: each into the page, and into a file beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)

    def figure(
        self, name: str, title: str, text: str, still: Figure | None, moving: go.Figure | None = None
    ) -> list[Card]:
        """A card with a figure, which is written as PNG and SVG too; none without a figure."""
        if still is None:
            return []
        stream = io.BytesIO()
        still.savefig(stream, format="svg", metadata={"Date": None})
        write_whole(self.folder / FIGURES / f"{name}.svg", lambda aside: aside.write_bytes(stream.getvalue()))
        write_whole(self.folder / FIGURES / f"{name}.png", partial(still.savefig, format="png"))
        if moving is not None:
            return [Card(name, title, text, plotly=_script_safe(str(moving.to_json())))]
        encoded = base64.b64encode(stream.getvalue()).decode("ascii")
        return [Card(name, title, text, svg=f"data:image/svg+xml;base64,{encoded}")]

    def table(self, name: str, title: str, text: str, table: pd.DataFrame, beside: bool = False) -> list[Card]:
        """A card with a table, which is written as CSV and LaTeX too; none for an empty table."""
        if table.empty:
            return []
        search_tables.write_table(table, self.folder / TABLES, name)
        return [Card(name, title, text, table=_html_table(table), beside=beside)]


@dataclass(frozen=True)
class Findings:
    """What was measured on a search's runs for its report."""

    evidence: Evidence
    curves: Sequence[Curves]
    gains: Sequence[Gain | None]
    gallery: Gallery | None

    @property
    def class_values(self) -> list[Floats]:
        """mAP by class of each run that is shown."""
        models, classes = self.evidence.models, self.evidence.split.classes
        pairs = zip(models, self.curves, strict=False)
        return [class_precisions(curves.precisions, model.queries.labels, classes) for model, curves in pairs]


def search_lines(folder: Path, storage: Path, say: Say) -> list[str]:
    """Write the report of a search's folder into the storage; the lines to print. Raises SettingsError."""
    page = report_search(folder.resolve(), storage / REPORTS / folder.name, say)
    return [f"report   {page}", f"beside   {FIGURES}/ (PNG, SVG) and {TABLES}/ (CSV, LaTeX)"]


def report_search(folder: Path, target: Path, say: Say) -> Path:
    """Write the report of a search's folder into ``target``; returns the page. Raises SettingsError.

    Where the runs or their data can no longer be read, the page says so and shows the search alone.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = read_search(folder)
    say(f"{data.name}: {counted(len(data.trials), 'trial')}; encoding and ranking for the report")
    findings, why = None, ""
    try:
        findings = measure(data)
    except (SettingsError, DataError, LookupError, OSError) as error:
        why = f"Codes, classes and pictures are not shown: {error}"
        say(why)
    target.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that matplotlib's font has not got
        page = _page(data, findings, why, Output(target))
    path = target / PAGE
    write_text(path, page)
    return path


def measure(data: SearchData) -> Findings:
    """Rank the queries with what was found and with the baselines. Raises what ``read_evidence`` raises."""
    evidence = read_evidence(data)
    curves = all_curves(data, evidence)
    keep, seed = data.settings.evaluation.no_relevant, data.settings.seed
    gains = [
        None if each is curves[0] else bootstrap_gain(curves[0].precisions, each.precisions, seed, no_relevant=keep)
        for each in curves
    ]
    folder = picture_folder(data, evidence.split)
    return Findings(evidence, curves, gains, gallery(evidence.split, evidence.models[0], curves[0].precisions, folder))


def _page(data: SearchData, findings: Findings | None, why: str, output: Output) -> str:
    found = importances(data)
    mattered = verdict(found, sum(trial.value is not None for trial in data.trials))
    curves = findings.curves if findings else []
    failing, weakest, pair = _failures(findings, output) if findings else ([], [], None)
    gain = next((g for c, g in zip(curves, findings.gains if findings else (), strict=True) if c.label == PAPER), None)
    sections = [
        Section("leaderboard", "Leaderboard", _leaderboard(data, curves, output), [summary_text.best_single(data)]),
        Section("mattered", "What mattered", _mattered(data, found, output), [mattered]),
        Section("search", "How the search went", _went(data, output), [summary_text.spent(data)]),
        Section("retrieval", "Retrieval quality",
                [*(_retrieval(findings, output) if findings else []), *_unseen(data, output)],
                [summary_text.compared_with(findings.curves, findings.gains)] if findings else []),
        Section("fails", "Where it fails", failing),
        Section("codes", "Codes and centres", _codes(data, findings, output) if findings else []),
    ]  # fmt: skip
    classes = findings.evidence.split.classes if findings else 0
    sentences = [
        summary_text.searched(data, findings.evidence if findings else None),
        summary_text.code_length(data),
        summary_text.found(data, curves, gain if data.finished else None),
        summary_text.fails(mattered, weakest, pair, classes),
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    needs_plotly = any(card.plotly for section in sections for card in section.cards)
    return environment.get_template(_TEMPLATE).render(
        data=data,
        sentences=list(filter(None, sentences)),
        why=why,
        sections=[section for section in sections if section.cards],
        gallery=findings.gallery if findings else None,
        kind=findings.evidence.kind if findings else "",
        plotly=Markup(plotly.offline.get_plotlyjs()) if needs_plotly else "",
        storage=data.folder.parent,
    )


def _leaderboard(data: SearchData, curves: Sequence[Curves], output: Output) -> list[Card]:
    asked = "The test set was evaluated once, after the decision." if data.finished else "Nothing is tested yet."
    text = (
        f"Judged by {metric_word(data.metric)} on held-out queries: the mean over fresh seeds (their number is in "
        f"brackets) decides, the value of a single trial is partly luck. {asked}"
    )
    return [
        *output.table("leaderboard", "", text, search_tables.leaderboard(data, curves)),
        *output.table(
            "front", "The front of both objectives",
            "No other trial is better in one and as good in the other. Each value is that of one run, so partly luck; "
            "finalists are the best in the first objective.",
            search_tables.front(data)),
    ]  # fmt: skip


def _mattered(data: SearchData, found: Sequence[Importance], output: Output) -> list[Card]:
    return [
        *output.figure(
            "importance", "Importance of each setting",
            "How much a setting decides whether a trial is among the good ones (PED-ANOVA over all trials; one that "
            "was stopped counts with what it would have come to). The black line is how much the share varies (middle "
            "80 %) when a fifth of the trials is left out. A bar that does not reach the orange mark may be chance.",
            search_figures.importance(found)),
        *output.figure(
            "parallel_coordinates", "All trials at once",
            "One line per trial, from its settings to its value (estimated where the trial was stopped); yellow is "
            "high. Drag along an axis to see only the trials that pass there.",
            search_figures.parallel_coordinates(data), interactive.parallel_coordinates(data)),
        *output.figure(
            "contour", "The two most important settings",
            "One point per trial, in the colour of its value (estimated where the trial was stopped); the star is the "
            "best one. The colour between trials is a guess, and blank is far from any trial.",
            search_figures.contour(data, found), interactive.contour(data, found)),
    ]  # fmt: skip


def _went(data: SearchData, output: Output) -> list[Card]:
    gap = "the gap between a point and its diamond is how far that one run was from the mean."
    if data.settings.share_of_epochs:
        gap = f"they stand higher, since those are whole runs, and the trials had {data.settings.share_of_epochs}."
    return [
        *output.figure(
            "history", "Trials and the best so far",
            "One point per trial, hollow where it was stopped early (its last value). Diamonds are means of settings "
            f"that ran again with fresh seeds: {gap}",
            search_figures.history(data), interactive.history(data)),
        *output.figure(
            "learning_curves", "Learning curves",
            "One thin line per trial, pale orange where it was stopped; thick lines are means over fresh seeds, in the "
            "band from the lowest to the highest seed. Dotted: where weak trials are stopped.",
            search_figures.learning_curves(data), interactive.learning_curves(data)),
        *output.figure(
            "rungs", "When each trial was stopped",
            "One bar per trial, as long as it was trained.", search_figures.rungs(data)),
        *output.figure(
            "epochs", "Epochs spent",
            "Epochs trained so far, trial by trial, and what they would have been without stopping.",
            search_figures.epochs(data)),
    ]  # fmt: skip


def _retrieval(findings: Findings, output: Output) -> list[Card]:
    kind = findings.evidence.kind
    untrained = len(findings.curves) > len(findings.evidence.models)
    rosy = "" if kind == "test" else " The best trial was picked by these queries, so its numbers are rosy."
    return [
        *output.table(
            "retrieval", f"On {kind} queries",
            "precision@k: how many of the first k are right; P@radius 2: how many of those within two bits, 0 for a "
            f"query that finds none there. Gains are paired over queries, with their 95 % interval.{rosy}",
            search_tables.retrieval_table(findings.curves, findings.gains)),
        *output.figure(
            "retrieval", "Precision and recall", "Dashed: what needs no training." if untrained else "",
            evidence_figures.retrieval(findings.curves)),
    ]  # fmt: skip


def _unseen(data: SearchData, output: Output) -> list[Card]:
    return output.table(
        "unseen", "On classes that training has not seen",
        "Classes held out whole, mAP: searched among themselves, and all classes in one database. Validation is the "
        "mean over fresh seeds. What needs no training (PCA + ITQ) stands beside it where it was measured.",
        search_tables.unseen_table(data))  # fmt: skip


def _failures(findings: Findings, output: Output) -> tuple[list[Card], list[str], tuple[str, str] | None]:
    """The cards on failures, the names of the worst classes, and the pair most often confused."""
    evidence = findings.evidence
    model, names, values = evidence.models[0], evidence.split.class_names, findings.class_values
    other = values[1] if len(values) > 1 else None
    worst, best = search_tables.class_table(names, values[0], other)
    pairs = confused_pairs(model, nearest_items(model)[0], evidence.reference, len(names))
    cards = [
        *output.figure(
            "classes", "mAP by class", "Where dots lie above the bars, the paper's setting is better on that class.",
            evidence_figures.classes(model.label, values[0], other)),
        *output.table("classes_worst", "The ten worst classes", "", worst, beside=True),
        *output.table("classes_best", "The ten best classes", "", best, beside=True),
        *output.table(
            "confused_pairs", "Classes taken for each other",
            "Of the ten nearest items of queries of either class, how many are of the other. Centres that lie close "
            "together (chance is half the bits), or classes that are alike by the reference (1 at most), "
            "explain it; where neither holds, look at the labels.",
            search_tables.confusion_table(pairs, names, model.queries.bits)),
    ]  # fmt: skip
    known = np.flatnonzero(~np.isnan(values[0]))
    weakest = [names[place] for place in known[np.argsort(values[0][known], kind="stable")][:3]]
    pair = (names[pairs[0].first], names[pairs[0].second]) if pairs else None
    return cards, weakest, pair


def _codes(data: SearchData, findings: Findings, output: Output) -> list[Card]:
    model, reference = findings.evidence.models[0], findings.evidence.reference
    statistics = code_statistics(model.database)
    return [
        *output.figure(
            "centres", "Classes and their centres",
            "Both maps show the same classes in the same order, alike ones side by side. The more the right map looks "
            "like the left one (PCC), the more the codes know which classes are related.",
            evidence_figures.center_maps(model.centers, reference)),
        *output.figure(
            "centre_moves", "How centres moved",
            "How far each class's centre is from where it was drawn, and which share of them was moved in each round.",
            evidence_figures.center_moves(data, model)),
        *output.table(
            "codes", "Codes of the database",
            "Few distinct codes mean that items of a class collapse to one code: good for finding the class, useless "
            "for an order within it.", search_tables.code_table(statistics)),
        *output.figure(
            "codes", "Balance and correlation of bits",
            "A bit that is half ones says most; two bits that go together say the same twice.",
            evidence_figures.codes(statistics)),
    ]  # fmt: skip


def _html_table(table: pd.DataFrame) -> Markup:
    """A table as HTML, all text escaped; rows of the winner are marked."""
    head = Markup().join(Markup("<th>{}</th>").format(name) for name in table.columns)
    rows = []
    for row in table.itertuples(index=False):
        style = Markup(' class="won"') if str(row[0]).startswith("winner") else Markup()
        cells = Markup().join(Markup("<td>{}</td>").format(cell) for cell in row)
        rows.append(Markup("<tr{}>{}</tr>").format(style, cells))
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, Markup().join(rows))


def _script_safe(text: str) -> str:
    """JSON that can stand in a script: no text in it can end the script."""
    json.loads(text)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
