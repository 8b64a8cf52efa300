"""What is said of a run, and of a search that has ended."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from crh_tune.last_lines import last_lines
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning import study
from crh_tune.tuning.progress import Progress, describe
from crh_tune.tuning.race import Gain
from crh_tune.tuning.record import Outcome
from crh_tune.tuning.results import Candidate, SearchResult, bound_lines, gain_lines

SEARCH = {
    "method": {"choice": ["crh", "mds"]},
    "margin": {"uniform": [0.0, 0.5]},
    "codebook_ratio": {"choice": [1, 2]},
    "learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "centers": {"choice": ["codebook", "mds"]},
}
OF_CRH = "M=200 d=8 lambda=0.1 margin=0.2 interval=5"


def space(**changes) -> SearchSettings:
    content = {"name": "m", "dataset": {"name": "digit_pairs"}, "trial": {"bits": 16}, "search": SEARCH}
    return SearchSettings.model_validate({**content, **changes})


def resolved(**values) -> dict:
    return space().trial_settings(values, 0).resolve(100, False).model_dump(mode="json")


def test_every_searched_setting_is_said_once():
    assert describe(resolved()) == OF_CRH
    content = resolved(method="crh", codebook_ratio=2, learning_rate=0.0012345, centers="codebook")
    assert describe(content, SEARCH) == f"{OF_CRH} method=crh learning_rate=0.00123 centers=codebook"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("mds", "lambda=0.0001"),
        ("mds_u", "lambda=0.0001 interval=5"),
        ("orthohash", "margin=0.2"),
        ("crh_u", "M=200 d=16 lambda=0.1 margin=0.2"),
        ("hashnet", ""),
    ],
)
def test_only_what_the_method_uses_is_said(method, said):
    searched = ["bits", "codebook_size", "margin", "update_interval", "scale", "center_seed"]
    line = describe(resolved(method=method), ["method", *searched])
    others = {"scale": "margin=" in said, "center_seed": method != "hashnet"}
    assert [name for name in others if f"{name}=" in line] == [name for name, there in others.items() if there]
    assert line.startswith(f"{said} method={method} bits=16".strip())


def test_a_line_of_progress_says_what_was_searched():
    said: list[str] = []
    progress = Progress(said.append, 2, "val/map", "max", searched=SEARCH)
    progress(Outcome("trial-0000", resolved(method="mds"), status="complete", metrics={"val/map": 0.5}))
    assert " method=mds learning_rate=0.002 centers=mds  best 0.5000 (trial-0000)" in said[0]


@pytest.mark.parametrize(("metric", "label"), [("val/map", "validation mAP"), ("centers/pcc", "centers/pcc")])
def test_the_last_lines_name_what_was_searched_and_what_it_was_judged_by(metric, label, tmp_path: Path):
    maps = {"map": 0.5, "map_16": 0.3, "map_8": 0.25, "map_asymmetric": 0.6}
    tested = Outcome("final", resolved(), metrics={f"test/{name}": value for name, value in maps.items()})
    best = Candidate("trial-0001", resolved(method="mds"), [0.3, 0.5])
    result = SearchResult("m-001", tmp_path, "sqlite:///there.db", best, best, tested, tested, "finished")
    lines = last_lines(space(objective={"metric": metric}), result, tmp_path / "export")
    place = lines.index("test mAP         0.5000, the paper's setting 0.5000")
    assert lines[place + 1 : place + 3] == ["at 8 bits        0.2500", "at 16 bits       0.3000"]
    assert not any(line.startswith("at a") for line in lines)
    assert " method=mds learning_rate=0.002 centers=mds  (trial-0001)" in lines[1]
    assert lines[2].startswith(f"{label:<17}0.4000 ± ")


@pytest.mark.parametrize(
    ("values", "gain", "said"),
    [
        (
            [0.8, 0.81],
            Gain(0.1, 0.05, 0.15),
            ["search gains     +0.1000 val/map over the paper's setting (95 % interval +"],
        ),
        (
            [0.8, 0.81],
            Gain(0.1, -0.05, 0.15),
            ["search gains     ", "no gain          with these seeds it is not meas"],
        ),
        (
            [0.8],
            Gain(0.1, math.nan, math.nan),
            ["search gains     +0.1000 val/map over", "no gain          with these "],
        ),
        (
            None,
            Gain(0.0, 0.0, 0.0),
            ["no gain          nothing that was tried is better than the paper's setting, which"],
        ),
        ([0.8], None, []),
    ],
)
def test_the_last_lines_say_what_the_search_gains_and_where_that_may_be_chance(values, gain, said, tmp_path: Path):
    tested = Outcome("final", resolved(), metrics={"test/map": 0.5})
    paper = Candidate("trial-0000", resolved(), [0.7])
    best = paper if values is None else Candidate("trial-0001", resolved(), values)
    result = SearchResult("m-001", tmp_path, "", best, paper, tested, tested, "finished", gain=gain)
    lines = gain_lines(result, "val/map", "max")
    assert [line.startswith(start) for line, start in zip(lines, said, strict=True)] == [True] * len(said)


@pytest.mark.parametrize(
    ("searched", "trial", "advice"),
    [
        ({"quantization_weight": {"log_uniform": [0.01, 1.0]}}, {"quantization_weight": 0.85}, True),
        ({"quantization_weight": {"log_uniform": [0.01, 1.0]}}, {"quantization_weight": 0.75}, False),
        ({"quantization_weight": {"log_uniform": [0.01, 1.0]}}, {"quantization_weight": 0.0}, False),
        ({"margin": {"uniform": [0.0, 0.5]}}, {"margin": 0.49}, True),
        ({"margin": {"uniform": [0.0, 0.5]}}, {"margin": 0.01}, False),  # there is nothing below 0
        ({"update_interval": {"int": [1, 10]}}, {"update_interval": 10}, True),
        ({"update_interval": {"int": [1, 10]}}, {"update_interval": 1}, False),
        ({"codebook_ratio": {"choice": [1, 2]}}, {"codebook_size": 200}, False),
    ],
)
def test_a_winner_at_the_end_of_a_range_brings_advice_where_there_is_something_beyond(searched, trial, advice):
    settings = SearchSettings.model_validate({**space().model_dump(), "search": searched})
    content = {**resolved(), "trial": {**resolved()["trial"], **trial}}
    lines = bound_lines(settings, Candidate("trial-0001", content, [0.5]))
    assert len(lines) == advice
    assert all(f"{name} " in line for name in searched for line in lines)


def test_the_first_line_counts_trials_and_settings(monkeypatch, tmp_path: Path):
    said: list[str] = []
    monkeypatch.setattr(study, "concurrency", lambda scaling, budget: 2)
    monkeypatch.setattr(study, "_run", lambda *arguments: None)
    monkeypatch.setattr(study.tracking, "connect", lambda *arguments: None)
    monkeypatch.setattr(study.tracking, "Tracker", lambda *arguments: None)
    grid = space(search={"margin": {"grid": [0.1, 0.2]}, "update_interval": {"grid": [1, 5, 10]}})
    choices = space(search={"margin": {"choice": [0.1, 0.2]}, "update_interval": {"int": [1, 10]}})
    fewer = space(search=choices.model_dump(mode="json")["search"], budget={"trials": 7})
    for settings in (grid, choices, fewer):
        study.run_search(settings, study.prepare(settings, said.append), tmp_path, said.append)
    assert [line.split("global), ")[1] for line in said if line.startswith("search ")] == [
        "6 trials, 2 at a time",
        "20 trials, one for each setting there is, 2 at a time",
        "7 trials of 20 settings, 2 at a time",
    ]
