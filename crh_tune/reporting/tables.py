"""From measured runs to a table as the paper prints it, with the published numbers beside."""

from __future__ import annotations

import html
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from crh_tune.reporting.labels import dataset_title
from crh_tune.reporting.published import PUBLISHED_VALUES, Value, published

Cell = Any  # one row of a study table
_DECIMALS: dict[str, int] = {"map": 2, "pcc": 3}
_EXPECTED = (
    ("CRH", "CRH-M", "CRH-U"),
    ("CSQ_U", "CSQ"),
    ("MDS_U", "MDS"),
    ("OrthoHash_U", "OrthoHash"),
    ("Learned", "Learned-M", "Init"),
    ("Learned-M", "Random"),
    ("Init", "Init-H"),
)
"""Rows that the paper's text says are better than those after them."""

_TIE: dict[str, float] = {"map": 0.0, "pcc": 0.05}
"""Published means no further apart than this have no order: PCCs of random centres have a std of up to 0.018."""


def study_table(
    study: str, runs: pd.DataFrame, rows: list[str], datasets: list[str], bits: list[int], value: Value
) -> pd.DataFrame:
    """The cells of a study, one row each, in the order rows x datasets x bits.

    ``runs`` has one row a finished run: row, dataset, bits, map (0 to 1) and pcc, NaN where missing; all runs of a cell
    count as its seeds. Where it has pcc_std, a single run's PCC takes its std from there (random centres, many draws).

    A code length that a dataset has no number of is left out where it has numbers of another.

    Columns: row, dataset, bits, value ("map" or "pcc"), mean, std, n, published_mean, published_std. mAP is in %, std
    is the sample standard deviation, n the number of runs with a value; NaN where there is no such number.

    Raises ValueError for missing columns, an empty or repeating list, or an mAP outside 0 to 1.
    """
    for name, names in (("rows", rows), ("datasets", datasets), ("bits", bits)):
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{name} is empty or repeats itself: {names}")
    if missing := {"row", "dataset", "bits", value} - set(runs.columns):
        raise ValueError(f"runs lacks the columns {sorted(missing)}")
    if value == "map" and not runs["map"].dropna().between(0, 1).all():
        raise ValueError("runs has an mAP outside 0 to 1")
    measured = dict(list(runs.dropna(subset=[value]).groupby(["row", "dataset", "bits"])))
    printed = published(study) if PUBLISHED_VALUES.get(study) == value else published("")
    beside = {(cell.row, cell.dataset, cell.bits): (cell.mean, cell.std) for cell in printed.itertuples()}
    cells = []
    for key in itertools.product(rows, datasets, bits):
        statistics = _statistics(measured[key], value) if key in measured else (math.nan, math.nan, 0)
        cells.append((*key, value, *statistics, *beside.get(key, (math.nan, math.nan))))
    columns = ["row", "dataset", "bits", "value", "mean", "std", "n", "published_mean", "published_std"]
    table = pd.DataFrame(cells, columns=columns)
    known = (table["n"] > 0) | table["published_mean"].notna()
    column, dataset = (
        known.groupby([table[name] for name in names]).transform("any") for names in (["dataset", "bits"], ["dataset"])
    )
    return table[column | ~dataset].reset_index(drop=True)


def _statistics(runs: pd.DataFrame, value: Value) -> tuple[float, float, int]:
    numbers = runs[value] * (100 if value == "map" else 1)
    std = float(numbers.std(ddof=1))
    if value == "pcc" and len(runs) == 1 and "pcc_std" in runs:
        std = float(runs["pcc_std"].iloc[0])
    return float(numbers.mean()), std, len(runs)


def to_markdown(table: pd.DataFrame) -> str:
    """A study table in Markdown: methods down, datasets x bits across.

    A cell is "**mean ± std** (pub. mean ± std)", bold where the printed mean is the best of its column; empty where
    nothing was measured.
    """
    columns = _columns(table)
    lines = [
        ["Method", *(f"{escape_markdown(dataset_title(dataset))} {bits} bits" for dataset, bits in columns)],
        ["---", *("---:" for _ in columns)],
    ]
    for row, cells in _by_row(table).items():
        lines.append([escape_markdown(row), *_row(table, cells, lambda text: f"**{text}**", "{}")])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def printed_table(table: pd.DataFrame) -> pd.DataFrame:
    """A study table as it is printed, for CSV and LaTeX: methods down, datasets x bits across, the cells as text."""
    names = ["Method", *(f"{dataset_title(dataset)} {bits} bits" for dataset, bits in _columns(table))]
    rows = [[row, *_row(table, cells, lambda text: text, "{}")] for row, cells in _by_row(table).items()]
    return pd.DataFrame(rows, columns=names)


def to_html(table: pd.DataFrame) -> str:
    """A study table as an HTML ``<table>``: the cells of ``to_markdown``, datasets spanning their bit lengths."""
    columns = _columns(table)
    lengths_of = Counter(dataset for dataset, _ in columns)
    spans = "".join(f'<th colspan="{n}">{html.escape(dataset_title(name))}</th>' for name, n in lengths_of.items())
    lengths = "".join(f"<th>{length} bits</th>" for _, length in columns)
    head = f'<thead><tr><th rowspan="2">Method</th>{spans}</tr>\n<tr>{lengths}</tr></thead>'
    body = []
    for row, cells in _by_row(table).items():
        printed = _row(table, cells, lambda text: f"<b>{text}</b>", "<small>{}</small>")
        body.append(f"<tr><th>{html.escape(row)}</th>{''.join(f'<td>{cell}</td>' for cell in printed)}</tr>\n")
    return f"<table>\n{head}\n<tbody>\n{''.join(body)}</tbody>\n</table>\n"


def table_caption(table: pd.DataFrame) -> str:
    """One sentence: the unit of a study table, how many runs are in its cells and what stands in the brackets."""
    unit = "mAP in %" if table["value"].iloc[0] == "map" else "PCC"
    counts = table.loc[table["n"] > 0, "n"]
    if counts.empty:
        return f"{unit}; nothing measured yet."
    over = str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    runs = "1 run" if over == "1" else f"{over} runs"
    pub = " (pub.) is the number that the paper prints;" if table["published_mean"].notna().any() else ""
    return f"{unit}: mean ± sample standard deviation over {runs} a cell;{pub} the best measured mean is bold."


def order_notes(table: pd.DataFrame) -> list[str]:
    """For each column, in a sentence, which orders of two rows show in the measured means and which do not.

    Two measured rows are compared in their published order, published means that are as good as equal left out; where
    either is unpublished, in the order that the paper's text claims (CRH > CRH-M > CRH-U, X_U > X, ...).
    """
    return [_order_note(table, dataset, bits) for dataset, bits in _columns(table)]


def _order_note(table: pd.DataFrame, dataset: str, bits: int) -> str:
    column = table[(table["dataset"] == dataset) & (table["bits"] == bits) & (table["n"] > 0)]
    cells = list(column.itertuples())
    pairs = [pair for pair in itertools.permutations(cells, 2) if _is_above(*pair)]
    misses = [pair for pair in pairs if not pair[0].mean > pair[1].mean]
    where = f"{dataset_title(dataset)}, {bits} bits"
    if not pairs:
        return f"{where}: no two measured rows have a published or expected order."
    if not misses:
        shown = f"the order of all {len(pairs)} pairs of rows shows" if len(pairs) > 1 else "the order shows"
        return f"{where}: {shown} in the measured means ({_chain(pairs)})."
    listed = "; ".join(_miss(*pair) for pair in misses)
    held = len(pairs) - len(misses)
    return f"{where}: {held} of {len(pairs)} orders of two rows show in the measured means; not: {listed}."


def _is_above(better: Cell, worse: Cell) -> bool:
    gap = better.published_mean - worse.published_mean
    if not math.isnan(gap):
        return bool(gap > _TIE[better.value])
    ranks = (row for row in _EXPECTED if better.row in row and worse.row in row)
    return any(row.index(better.row) < row.index(worse.row) for row in ranks)


def _chain(pairs: Sequence[tuple[Cell, Cell]]) -> str:
    """The pairs without those that follow from two others: A > B, B > C for A > B > C."""
    named = [(better.row, worse.row) for better, worse in pairs]
    direct = [
        (better, worse)
        for better, worse in named
        if not any((better, between) in named and (between, worse) in named for between, _ in named)
    ]
    chains: list[list[str]] = []
    for better, worse in sorted(direct, key=lambda pair: -sum(better == pair[0] for better, _ in named)):
        grown = next((chain for chain in chains if chain[-1] == better), None)
        if grown is None:
            chains.append([better, worse])
        else:
            grown.append(worse)
    return ", ".join(" > ".join(chain) for chain in chains)


def _miss(better: Cell, worse: Cell) -> str:
    text = f"{better.row} ({_number(better.value, better.mean)}) > {worse.row} ({_number(worse.value, worse.mean)})"
    if math.isnan(better.published_mean - worse.published_mean):
        return text
    printed = (_number(cell.value, cell.published_mean) for cell in (better, worse))
    return f"{text}, published {' > '.join(printed)}"


def escape_markdown(text: str) -> str:
    """The text on one line, so that Markdown shows it as it is: no markup, no HTML, no table cell of its own."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    line = re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", line)
    return re.sub(r"^([#>+-])", r"\\\1", line)


def _columns(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(dict.fromkeys(zip(table["dataset"], table["bits"], strict=True)))


def _by_row(table: pd.DataFrame) -> dict[str, list[Cell]]:
    return {row: list(cells.itertuples()) for row, cells in table.groupby("row", sort=False)}


def _row(table: pd.DataFrame, cells: list[Cell], bold: Callable[[str], str], beside: str) -> list[str]:
    return [_cell(cell, _best(table, cell), bold, beside) for cell in cells]


def _best(table: pd.DataFrame, cell: Cell) -> str:
    """The best mean of the cell's column as printed, so that what looks equal is equally bold."""
    column = table[(table["dataset"] == cell.dataset) & (table["bits"] == cell.bits)]
    return _number(cell.value, float(column["mean"].max()))


def _cell(cell: Cell, best: str, bold: Callable[[str], str], beside: str) -> str:
    if not cell.n:
        return ""
    text = _spread(cell.value, cell.mean, cell.std)
    text = bold(text) if _number(cell.value, cell.mean) == best else text
    if math.isnan(cell.published_mean):
        return text
    printed = _spread(cell.value, cell.published_mean, cell.published_std)
    return f"{text} {beside.format(f'(pub. {printed})')}"


def _spread(value: str, mean: float, std: float) -> str:
    return _number(value, mean) if math.isnan(std) else f"{_number(value, mean)} ± {_number(value, std)}"


def _number(value: str, number: float) -> str:
    return f"{number:.{_DECIMALS[value]}f}"
