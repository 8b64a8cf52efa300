"""The tables of a search's report, each a DataFrame that becomes HTML, CSV and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from crh_tune.ground import write_text
from crh_tune.reporting.curves import NEAREST, CodeStatistics, Confusion, Curves
from crh_tune.reporting.search_data import PAPER, UNSEEN, Confirmed, SearchData, Value
from crh_tune.retrieval.average_precision import Floats
from crh_tune.retrieval.baselines import Gain
from crh_tune.settings.used import short

LISTED = 10


def leaderboard(data: SearchData, curves: Sequence[Curves]) -> pd.DataFrame:
    """Winner, finalists, the paper's setting, the best single trial where it is none of them, and the baselines.

    Before anything is confirmed, the ten best trials. A number that is not there is empty.
    """
    single, fresh = f"single trial{data.settings.after_share}", "fresh seeds"
    by_name = {trial.name: trial for trial in data.trials}
    rows = []
    for each in data.confirmed:
        trial = by_name.get(each.trial)
        test = data.test.get("winner") if each.trial == data.winner else None
        test = data.test.get("paper") if test is None and each.is_paper else test
        rows.append(
            {
                "": _role(data, each), "trial": each.trial, **_cells(data, each.setting),
                single: _fixed(trial.value if trial and trial.status == "complete" else None),
                fresh: f"{spread(each)} ({len(each.values)})", "test mAP": _fixed(test),
            }
        )  # fmt: skip
    if not data.confirmed:
        for place, trial in enumerate(data.complete[:LISTED]):
            role = "best so far" if place == 0 else PAPER if trial.start == "paper" else ""
            rows.append({"": role, "trial": trial.name, **_cells(data, trial.setting), single: _fixed(trial.value)})
    for baseline in data.baselines:
        rows.append(
            {
                "": "without training", "trial": baseline.name,
                fresh: _fixed(baseline.validation), "test mAP": _fixed(baseline.test),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows).fillna("")
    at_ten = {each.label: f"{each.precision(_ten(each)):.3f}" for each in curves}
    if data.finished and at_ten and len(table):
        named = ["winner" if row == "winner" else PAPER if row == PAPER else trial
                 for row, trial in zip(table[""], table["trial"], strict=True)]  # fmt: skip
        table[f"precision@{_ten(curves[0])}"] = [at_ten.get(name, "") for name in named]
    return table


def front(data: SearchData) -> pd.DataFrame:
    """The trials on the front of two objectives, best in the first one first; empty with one objective."""
    also, settings = str(data.settings.objective.also), {trial.name: trial.setting for trial in data.trials}
    rows = [
        {
            "trial": point.trial, data.metric: _fixed(point.value), also: short(point.also),
            **_cells(data, settings[point.trial]),
        }
        for point in data.front
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _ten(curves: Curves) -> int:
    return min(NEAREST, int(curves.ranks.max()))


def _role(data: SearchData, each: Confirmed) -> str:
    if each.trial == data.winner:
        return "winner" if not each.is_paper else "winner, the paper's setting"
    won = data.confirmed_of(data.winner)
    dropped = won is not None and len(each.values) < len(won.values)
    return PAPER if each.is_paper else "dropped out" if dropped else "finalist"


def _cells(data: SearchData, setting: Mapping[str, Value]) -> dict[str, str]:
    return {name: short(setting.get(name, "")) for name in data.symbols}


def spread(each: Confirmed) -> str:
    """Mean ± standard deviation over fresh seeds."""
    return f"{each.mean:.4f}" if math.isnan(each.std) else f"{each.mean:.4f} ± {each.std:.4f}"


def _fixed(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def retrieval_table(curves: Sequence[Curves], gains: Sequence[Gain | None]) -> pd.DataFrame:
    """mAP, precision and recall of each way to rank, and the first one's gain over it with its 95 % interval."""
    rows = []
    for each, gain in zip(curves, gains, strict=True):
        ten = _ten(each)
        rows.append(
            {
                "": each.label, "mAP": f"{each.map:.4f}", f"precision@{ten}": f"{each.precision(ten):.4f}",
                f"recall@{ten}": f"{each.recall_at[int(np.flatnonzero(each.ranks == ten)[0])]:.4f}",
                "P@radius 2": "" if each.within_radius is None else f"{each.within_radius:.4f}",
                f"gain of the {curves[0].label} in mAP": gain_text(gain),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def unseen_table(data: SearchData) -> pd.DataFrame:
    """mAP on classes that training has not seen, of what the page shows; empty where none were held out."""
    words = {
        "map_unseen": "classes held out", "map_mixed": "all classes together", "map_harmonic": "harmonic mean",
        "map_unseen_itq": "held out, PCA + ITQ",
    }  # fmt: skip
    columns = [
        (f"{stage}/{metric}", f"{kind}: {words[metric]}")
        for stage, kind in (("val", "validation"), ("test", "test"))
        for metric in UNSEEN
    ]
    told = [(name, head) for name, head in columns if any(name in values for values in data.unseen.values())]
    rows = [
        {"": label, **{head: _fixed(values.get(name)) for name, head in told}} for label, values in data.unseen.items()
    ]
    return pd.DataFrame(rows)


def gain_text(gain: Gain | None) -> str:
    """A difference with its 95 % interval; empty without one."""
    if gain is None:
        return ""
    if math.isnan(gain.low):
        return f"{gain.mean:+.4f}"
    return f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"


def class_table(names: Sequence[str], values: Floats, other: Floats | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ten worst and the ten best classes: the winner's mAP and that of the paper's setting."""
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]

    def rows(places: Sequence[int]) -> pd.DataFrame:
        columns = {"class": [names[place] for place in places], "mAP": [f"{values[place]:.3f}" for place in places]}
        if other is not None:
            columns[f"mAP, {PAPER}"] = [f"{other[place]:.3f}" for place in places]
        return pd.DataFrame(columns)

    return rows(order[:LISTED].tolist()), rows(order[::-1][:LISTED].tolist())


def confusion_table(pairs: Sequence[Confusion], names: Sequence[str], bits: int) -> pd.DataFrame:
    """The most confused pairs of classes."""
    rows = []
    for pair in pairs:
        row = {"class": names[pair.first], "taken for": names[pair.second], "wrong items": f"{100 * pair.share:.0f} %"}
        if pair.distance is not None:
            row["distance of centres"] = f"{pair.distance} of {bits} bits"
        if pair.alike is not None:
            row["alike by the reference"] = f"{pair.alike:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def code_table(statistics: CodeStatistics) -> pd.DataFrame:
    """What the codes of the database are like, in numbers."""
    bits = len(statistics.ones)
    off = np.abs(statistics.correlation[~np.eye(bits, dtype=bool)])
    constant = int(((statistics.ones == 0) | (statistics.ones == 1)).sum())
    rows = [
        ("items of the database", f"{statistics.items:,}"),
        ("distinct codes", f"{statistics.distinct:,} ({100 * statistics.distinct / max(statistics.items, 1):.0f} %)"),
        ("share of ones of a bit, lowest to highest", f"{statistics.ones.min():.2f} to {statistics.ones.max():.2f}"),
        ("bits that never change", str(constant)),
        ("correlation of two bits, mean and largest", f"{off.mean():.2f} and {off.max():.2f}" if len(off) else "none"),
    ]
    return pd.DataFrame(rows, columns=["", "value"])


def write_table(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write a table as CSV and as LaTeX (booktabs) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.csv", table.to_csv(index=False))
    write_text(folder / f"{name}.tex", table.to_latex(index=False, escape=True))
