"""Searches side by side, with paired intervals where their winners answered the same test queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crh_tune.errors import DataError
from crh_tune.ground import aligned
from crh_tune.reporting.search_data import SearchData, read_evidence, read_search, setting_text
from crh_tune.reporting.search_tables import gain_text, spread
from crh_tune.reporting.style import metric_word
from crh_tune.retrieval.average_precision import Floats, average_precisions
from crh_tune.retrieval.baselines import bootstrap_gain
from crh_tune.settings.base import SettingsError
from crh_tune.tuning.record import find_folder


def compare_lines(storage: Path, names: Sequence[str]) -> list[str]:
    """A table of the searches, and of each pair whose winners can be compared the difference, as lines to print.

    Raises SettingsError for fewer than two names, a name given twice, and one that is no search.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise SettingsError("compare: name two searches or more, each once")
    searches = [read_search(find_folder(storage, name)) for name in names]
    lines = aligned([("search", "state", "best setting", "value", "test mAP", "the paper's"), *map(_row, searches)])
    return [*lines, "", *_differences(searches)]


def _row(data: SearchData) -> tuple[str, ...]:
    won = data.confirmed_of(data.winner)
    if won is not None:
        best, value = setting_text(won.setting), f"{spread(won)} {metric_word(data.metric)}"
    elif data.complete:
        best, value = setting_text(data.complete[0].setting), f"{data.complete[0].known:.4f}, one seed"
    else:
        best, value = "none yet", ""
    tested = (f"{data.test[name]:.4f}" if name in data.test else "" for name in ("winner", "paper"))
    return (data.name, data.ended, best, value, *tested)


def _differences(searches: Sequence[SearchData]) -> list[str]:
    """What can be said of each pair of searches."""
    known: dict[str, Floats | str] = {data.name: _winner_precisions(data) for data in searches}
    lines = []
    for place, one in enumerate(searches):
        for other in searches[place + 1 :]:
            lines.append(f"{one.name} over {other.name}: {_difference(one, other, known)}")
    return lines


def _difference(one: SearchData, other: SearchData, known: dict[str, Floats | str]) -> str:
    for data in (one, other):
        reason = known[data.name]
        if isinstance(reason, str):
            return f"not compared: {data.name}: {reason}"
    if one.splits.get("final") != other.splits.get("final"):
        return "not compared: they were tested on other data"
    if one.settings.evaluation != other.settings.evaluation:
        return "not compared: they score mAP in other ways (evaluation)"
    ours, theirs = known[one.name], known[other.name]
    assert not isinstance(ours, str)
    assert not isinstance(theirs, str)
    gain = bootstrap_gain(ours, theirs, 0, no_relevant=one.settings.evaluation.no_relevant)
    sure = "" if gain.low > 0 or gain.high < 0 else ", which may be chance"
    return f"{gain_text(gain)} test mAP on {len(ours)} shared queries, 95 % interval{sure}"


def _winner_precisions(data: SearchData) -> Floats | str:
    """The average precision of each test query under a search's winner, or why it cannot be had."""
    if not data.finished:
        return "it has not tested its winner yet"
    try:
        winner = read_evidence(data).models[0]
    except (SettingsError, DataError, LookupError, OSError) as error:
        return str(error)
    return average_precisions(winner.queries, winner.database, data.settings.evaluation.protocol)
