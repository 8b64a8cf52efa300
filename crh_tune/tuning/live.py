"""The live view of a search in a terminal: a table below the lines of progress, drawn anew as the search goes on."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crh_tune.errors import unless_hung_up
from crh_tune.tuning.board import Board, Confirmed, counts, left_line, ranked, stage_of
from crh_tune.tuning.pages import setting_name
from crh_tune.tuning.record import Outcome
from crh_tune.tuning.run import SEARCH

_BEST = 5
_SECONDS = 0.5
"""How often it is drawn at most."""


class LiveView:
    """What a search says, line by line, and below it how it stands. Use it as a context: the table goes at its end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __call__(self, line: str) -> None:
        """A line of progress, above the table."""
        with unless_hung_up():
            self._console.print(Text(line), soft_wrap=True)

    def watch(self, board: Board) -> None:
        """Draw how the search stands."""
        if time.monotonic() - self._drawn < _SECONDS and board.running:
            return
        self._drawn = time.monotonic()
        with unless_hung_up():
            self._live.update(drawn(board), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with unless_hung_up():
            self._live.update(Text(""), refresh=True)
            self._live.stop()


def drawn(board: Board) -> Group:
    """How a search stands, to be printed: what is under way, the best so far, the budget and the time left."""
    head = " · ".join(filter(None, [board.name, board.stage, counts(board), left_line(board), _lead(board)]))
    tables = [table for table in (_running(board), _best(board)) if table.row_count]
    return Group(Text(head, style="bold"), *tables)


def _lead(board: Board) -> str:
    """How far the best trial is from the paper's setting; empty before both have ended."""
    paper, confirmed = board.paper_trial, board.confirmed
    again = next((each for each in confirmed if each.is_paper), None)
    if again is not None and confirmed[0] is not again:
        return f"{confirmed[0].mean - again.mean:+.4f} against the paper's setting on fresh seeds"
    if again is None and paper is not None and board.metric in paper.metrics and board.complete:
        best = board.complete[0]
        if best is not paper and paper.status == "complete":
            return f"{best.metrics[board.metric] - paper.metrics[board.metric]:+.4f} against the paper's setting so far"
    return ""


def _running(board: Board) -> Table:
    table = _table("under way", "epoch", board.metric, "rung", "setting")
    for outcome in list(board.running.values()):
        epoch, value = outcome.metrics.get("epoch", 0), outcome.metrics.get(board.metric)
        searching = stage_of(outcome) == SEARCH and board.rungs
        table.add_row(
            Text(outcome.name),
            f"{epoch:.0f} / {outcome.settings['trial']['epochs']}",
            "" if value is None else f"{value:.4f}",
            f"{board.rung_of(outcome)} / {len(board.rungs)}" if searching else "",
            _setting(board, outcome),
        )
    return table


def _best(board: Board) -> Table:
    table = _table("best so far", board.settings.share_of_epochs or "one run", "fresh seeds", "test", "setting")
    for place, (each, values) in enumerate(ranked(board)):
        paper = each.is_paper if isinstance(each, Confirmed) else each.start == "paper"
        if place >= _BEST and not paper:
            continue
        name = each.trial if isinstance(each, Confirmed) else each.name
        seeds = f"{values['mean']:.4f} ± {values['std']:.4f}" if "mean" in values else ""
        numbers = [f"{values[key]:.4f}" if key in values else "" for key in ("single", "test")]
        named = Text(f"{name}, the paper's" if paper else name)
        table.add_row(named, numbers[0], seeds, numbers[1], _setting(board, each))
    for name, validation, test in board.baselines:
        named = Text(f"{name}, untrained")
        table.add_row(named, f"{validation:.4f}", "", "" if test is None else f"{test:.4f}", "")
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(Text(head), no_wrap=True, overflow="ellipsis")
    return table


def _setting(board: Board, each: Outcome | Confirmed) -> Text:
    return Text(setting_name(each.settings, board.settings.search, board.classes))
