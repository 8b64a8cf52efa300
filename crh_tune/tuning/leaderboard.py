"""The description of a search's run in MLflow: a leaderboard in Markdown, written anew whenever a run has ended."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from crh_tune.errors import counted
from crh_tune.tuning.board import PAPER, Board, Confirmed, counts, left_line, ranked
from crh_tune.tuning.front import front_of
from crh_tune.tuning.lengths import lengths_of, verdict
from crh_tune.tuning.pages import setting_name
from crh_tune.tuning.record import STUDY_FILE, Outcome
from crh_tune.tuning.results import gains

_ROWS = 12
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~])")


def escaped(text: str) -> str:
    """Text that Markdown and HTML take as text: names of files and classes may hold anything."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)


def leaderboard(board: Board, ui: str) -> str:
    """A search in Markdown: the winner and why, the settings beside each other, the budget, what to type.

    ``ui`` is the command that opens MLflow's pages.
    """
    parts = [
        f"**{headline(board)}**",
        _code_length(board),
        _gain(board),
        _best_single(board),
        _registered(board),
        _table(board),
        _front(board),
        f"Budget: {escaped(counts(board))}. {escaped(left_line(board))}",
        _commands(board, ui),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part.strip())


def headline(board: Board) -> str:
    """How a search stands in a sentence, in Markdown."""
    bits = " or ".join(map(str, board.settings.lengths or [board.settings.trial.bits]))
    data = f"{board.settings.method} on {board.settings.dataset.name}, {bits} bits"
    confirmed = {each.trial: each for each in board.confirmed}
    if board.winner is not None and board.winner in confirmed:
        won = confirmed[board.winner]
        paper = next((each for each in board.confirmed if each.is_paper), None)
        beside = "the paper's own setting" if won.is_paper else _beside(paper)
        test = f"; test mAP {board.tested['winner']:.4f}" if "winner" in board.tested else ""
        test += f", the paper's setting {board.tested['paper']:.4f}" if test and "paper" in board.tested else ""
        said = f"★ {won.trial} won: {_setting(board, won)}, {_mean(won)} {board.metric}, {beside}{test}"
    elif board.confirmed:
        said = f"Confirming with fresh seeds; {board.confirmed[0].trial} leads with {_mean(board.confirmed[0])}"
    elif board.complete:
        best = board.complete[0]
        said = f"Searching; best so far {best.name} with {best.metrics[board.metric]:.4f}, a single value"
        said += board.settings.after_share
    else:
        said = "Searching; no trial has come to its end yet"
    return f"{escaped(said)}. {escaped(data)}."


def _beside(paper: Confirmed | None) -> str:
    return "the paper's setting is not confirmed" if paper is None else f"the paper's setting {_mean(paper)}"


def _mean(each: Confirmed) -> str:
    return f"{each.mean:.4f} ± {each.std:.4f}" if len(each.values) > 1 else f"{each.mean:.4f}"


def _front(board: Board) -> str:
    """The trials on the front of two objectives, a line each; empty with one objective, and before there are any."""
    points = front_of(board.settings, board.trials)
    lines = [
        f"- {escaped(point.told(board.settings))}: {escaped(point.trial)}, "
        f"{escaped(setting_name(point.settings, board.settings.search, board.classes))}"
        for point in points
    ]
    return "\n".join(["Front, of single runs:", "", *lines]) if lines else ""


def _code_length(board: Board) -> str:
    """Which code length is enough so far; empty where that is not asked, or no trial has ended."""
    lengths = lengths_of(board.settings, {outcome.name: outcome for outcome in board.trials})
    if not any(each.trials for each in lengths):
        return ""
    so_far = "" if board.result is not None else "So far: "
    return escaped(f"{so_far}{verdict(lengths, str(board.settings.target))}.")


def _gain(board: Board) -> str:
    """What the winner has over the paper's setting, and whether that can be told from chance; empty before the end."""
    if board.result is None:
        return ""
    said = [text for _, text in gains(board.result, board.metric, board.settings.objective.mode)]
    return escaped(f"Gain: {'; '.join(said)}.") if said else ""


def _best_single(board: Board) -> str:
    """Why the best single trial did or did not win; empty before the confirmation is over."""
    confirmed = {each.trial: each for each in board.confirmed}
    if board.winner is None or not board.complete or board.winner not in confirmed:
        return ""
    best, won = board.complete[0], confirmed[board.winner]
    name = f"{best.name} (the paper's setting)" if _is_paper(best) else best.name
    value = f"{name} had the best single value{board.settings.after_share}, {best.metrics[board.metric]:.4f}"
    again = confirmed.get(best.name)
    if again is None:
        return escaped(f"{value}, but none on fresh seeds.")
    mean = f"{_mean(again)} on average over {counted(len(again.values), 'fresh seed')}"
    if best.name == board.winner:
        return escaped(f"{value}, and it won: {mean}.")
    less = abs(won.mean - again.mean)
    return escaped(
        f"{value}, and did not win: it is worth {mean}, {less:.4f} short of the winner. "
        "A single value is partly luck, so fresh seeds decide."
    )


def _registered(board: Board) -> str:
    """Where the winner's model is; empty before there is one."""
    if board.result is None:
        return ""
    name = board.settings.name
    return escaped(f"Its model is registered as {name}, with the alias champion until a later search of {name} ends.")


def _table(board: Board) -> str:
    """The leaderboard itself, the paper's setting and the baselines in it; empty before there is anything."""
    rows = [
        _row(board, each, values)
        for place, (each, values) in enumerate(ranked(board))
        if place < _ROWS or _is_paper(each)
    ]
    for name, validation, test in board.baselines:
        cells = ["", name, "needs no training", f"{validation:.4f}", "", "" if test is None else f"{test:.4f}"]
        rows.append(f"| {' | '.join(map(escaped, cells))} |")
    if not rows:
        return ""
    metric = escaped(board.metric)
    one = f"one run{board.settings.after_share}"
    head = f"| | run | setting | {metric}, {one} | {metric}, fresh seeds | test mAP |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows])


def _is_paper(each: Outcome | Confirmed) -> bool:
    return each.is_paper if isinstance(each, Confirmed) else each.start == PAPER


def _row(board: Board, each: Outcome | Confirmed, values: Mapping[str, float]) -> str:
    name = each.trial if isinstance(each, Confirmed) else each.name
    mark = "★" if name == board.winner else ""
    name += ", the paper's setting" if _is_paper(each) and not name.startswith(PAPER) else ""
    seeds = f"{_mean(each)} ({len(each.values)})" if isinstance(each, Confirmed) else ""
    numbers = [f"{values[key]:.4f}" if key in values else "" for key in ("single", "test")]
    return (
        f"| {mark} | {escaped(name)} | {_setting(board, each, escape=True)} | {numbers[0]} | {seeds} | {numbers[1]} |"
    )


def _setting(board: Board, each: Outcome | Confirmed, escape: bool = False) -> str:
    text = setting_name(each.settings, board.settings.search, board.classes)
    return escaped(text) if escape else text


def _commands(board: Board, ui: str) -> str:
    """How to resume, export and open, to be copied."""
    storage = f"--storage {shlex.quote(str(board.folder.parent))}"
    again = f"{storage}   # resume it" if board.result is None else f"--trials 20 {storage}   # search on"
    study = shlex.quote(str(board.folder / STUDY_FILE))
    lines = [
        f"crh-tune search --resume {board.name} {again}",
        f"crh-tune export {board.name} {storage}   # the winner's model, or the best so far",
        f"{ui}   # these pages",
        f"optuna-dashboard sqlite:///{study}   # Optuna's own pages",
    ]
    return "\n".join(f"    {' '.join(line.split())}" for line in lines)
