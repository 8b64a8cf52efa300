"""What a search's report says in words: three paragraphs for somebody in a hurry, and one under each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crh_tune.errors import counted
from crh_tune.reporting.curves import NEAREST, Curves
from crh_tune.reporting.search_data import PAPER, Confirmed, Evidence, SearchData, setting_text
from crh_tune.reporting.search_figures import epochs_spent
from crh_tune.reporting.style import metric_word
from crh_tune.retrieval.baselines import Gain
from crh_tune.tuning.lengths import verdict


def searched(data: SearchData, evidence: Evidence | None) -> str:
    """What was searched, in a sentence."""
    settings = data.settings
    trial = settings.trial
    begun, ended = len(data.trials), sum(each.status != "running" for each in data.trials)
    size = "" if evidence is None else (
        f" ({evidence.split.classes} classes, {len(evidence.split.train):,} training samples)"
    )  # fmt: skip
    count = f"{begun} settings" if data.finished else f"{ended} of {data.planned} settings so far"
    length = f"{trial.bits} bits ({-(-trial.bits // 8)} bytes)"
    if settings.lengths:
        length = f"as few bits as reach {settings.target}"
    return (
        f"The search tried {count} of {settings.method} on {data.dataset}{size}: how best to turn each item "
        f"into a code of {length}, so that items of one class get similar codes."
    )


def code_length(data: SearchData) -> str:
    """Which code length is enough, in a sentence; empty where the smallest was not searched for."""
    return f"{verdict(data.lengths, str(data.settings.target))}." if data.lengths else ""


def found(data: SearchData, curves: Sequence[Curves], gain: Gain | None) -> str:
    """Which setting won and by how much, in a paragraph."""
    if not data.finished:
        if not data.complete:
            return "No trial has come to its end yet."
        best = data.complete[0]
        paper = data.paper_trial
        beside = ""
        if paper is not None and paper.value is not None and paper is not best and paper.status == "complete":
            beside = f", the paper's setting {paper.value:.3f}"
        return (
            f"Best so far is {setting_text(best.setting)} ({best.name}) with a {metric_word(data.metric)} of "
            f"{best.value:.3f}{beside}{data.settings.after_share}; nothing is confirmed or tested yet, so this may be "
            "luck."
        )
    won = data.confirmed_of(data.winner)
    name = f"{setting_text(won.setting)} ({won.trial})" if won else str(data.winner)
    ten = ""
    if curves and curves[0].ranks.max() >= NEAREST:
        ten = f": of the {NEAREST} nearest items {10 * curves[0].precision(NEAREST):.1f} are right on average"
    test = f"its mAP on the test set, evaluated once, is {data.test['winner']:.3f}{ten}"
    return f"The winner is {name}; {test}. {_against_paper(data, gain)}"


def _against_paper(data: SearchData, gain: Gain | None) -> str:
    won = data.confirmed_of(data.winner)
    if won is not None and won.is_paper:
        return "It is the paper's own setting: nothing that was tried is better."
    if gain is None:
        return f"The paper's setting has {data.test['paper']:.3f}."
    known = not math.isnan(gain.low)
    interval = f" (95 % interval over queries {gain.low:+.3f} to {gain.high:+.3f})" if known else ""
    sure = "is better than" if known and gain.low > 0 else "is not measurably different from"
    sure = "is worse than" if known and gain.high < 0 else sure
    return (
        f"On test queries, one model of each, it {sure} the paper's setting, {data.test['paper']:.3f}: "
        f"a difference of {gain.mean:+.3f}{interval}. {_on_fresh_seeds(data)}"
    ).rstrip()


def _on_fresh_seeds(data: SearchData) -> str:
    """What the winner gained where it was chosen; empty where that is unknown."""
    gain = data.gain
    if gain is None:
        return ""
    known = not math.isnan(gain.low)
    interval = f" (95 % interval over seeds {gain.low:+.3f} to {gain.high:+.3f})" if known else ""
    return f"In {metric_word(data.metric)}, on average over fresh seeds, the difference is {gain.mean:+.3f}{interval}."


def fails(mattered: str, worst: Sequence[str], pair: tuple[str, str] | None, classes: int) -> str:
    """What mattered and where it fails, in a paragraph."""
    if not worst:
        return mattered
    text = f"{mattered} Of {classes} classes, those it finds worst are {_listed(worst)}"
    return f"{text}, and it most often takes {pair[0]} and {pair[1]} for each other." if pair else f"{text}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def best_single(data: SearchData) -> str:
    """Why the best single trial did or did not win; empty before anything was confirmed."""
    if not data.complete or not data.confirmed:
        return ""
    best = data.complete[0]
    again = data.confirmed_of(best.name)
    name = f"{best.name} ({PAPER})" if best.start == "paper" else best.name
    value = f"{name} had the best single value{data.settings.after_share}, {best.value:.4f}"
    if again is None:
        return f"{value}; it was not confirmed yet."
    mean = f"{again.mean:.4f} on average over {counted(len(again.values), 'fresh seed')}"
    if data.winner is None:
        return f"{value}, and {mean}."
    if best.name == data.winner:
        return f"{value}, and it won: {mean}."
    won = data.confirmed_of(data.winner)
    beside = f", {_difference(won, again)} less than the winner" if won is not None else ""
    return (
        f"{value}, and did not win: it is worth {mean}{beside}. A single value is partly luck, so fresh seeds decide."
    )


def _difference(won: Confirmed, other: Confirmed) -> str:
    return f"{abs(won.mean - other.mean):.4f}"


def spent(data: SearchData) -> str:
    """How much stopping weak trials has saved."""
    used, whole = epochs_spent(data)
    if not data.rungs or not whole:
        return ""
    rungs = _listed([str(rung) for rung in data.rungs])
    stopped = sum(trial.status == "pruned" for trial in data.trials)
    return (
        f"{stopped} of {len(data.trials)} trials were stopped after epoch {rungs.replace(' and ', ' or ')}: {used:,} "
        f"of {whole:,} epochs were trained; stopping weak trials saved {100 - 100 * used / whole:.0f} %."
    )


def compared_with(curves: Sequence[Curves], gains: Sequence[Gain | None]) -> str:
    """What training brings over the ways to rank without it, in a sentence; empty where there are none."""
    told = []
    for each, gain in zip(curves, gains, strict=True):
        if gain is None or each.label == PAPER:
            continue
        interval = f"{gain.low:+.3f} to {gain.high:+.3f}"
        if gain.low > 0:
            told.append(f"{gain.mean:+.3f} mAP over {each.label} ({interval})")
        else:
            told.append(f"no measurable gain over {each.label} ({gain.mean:+.3f}, {interval})")
    return f"Training brings {_listed(told)}." if told else ""
