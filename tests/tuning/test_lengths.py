"""The smallest code length that reaches a target: which lengths are tried, in which order, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from crh_tune.last_lines import length_lines, target_lines
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.board import Board
from crh_tune.tuning.leaderboard import leaderboard
from crh_tune.tuning.lengths import Length, check_lengths, lengths_of, next_length, studies_of
from crh_tune.tuning.proposals import planned
from crh_tune.tuning.record import COMPLETE, FINISHED, PRUNED, SUMMARY_FILE, Outcome, with_more, write_record
from crh_tune.tuning.results import Candidate, SearchResult
from crh_tune.tuning.run import Run
from crh_tune.tuning.schedulers import Asha, ByLength, scheduler_of
from crh_tune.tuning.searcher import begun_trials
from crh_tune.tuning.stages import ConfirmStage, SearchStage, finalists_of
from crh_tune.tuning.study import how_it_ended, searcher_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
BASE = {
    "name": "small",
    "dataset": {"name": "digit_pairs"},
    "trial": {"epochs": 18},
    "search": {"bits": {"smallest": [64, 16, 24, 48, 32]}, "margin": {"uniform": [0.0, 0.5]}},
    "target": "val/map >= 0.8",
    "scheduler": {"asha": {"grace_epochs": 2, "reduction": 3}},
    "confirm": {"top": 2, "seeds": 2},
    "budget": {"trials": 12},
}
REACHING: dict[int, int | None] = {16: None, 24: None, 32: 2, 48: 0, 64: 0}
"""Which trial of each length is the first to have the target."""


def space(**changes: Any) -> SearchSettings:
    return SearchSettings.model_validate({**BASE, **changes})


def stage_of(folder: Path, settings: SearchSettings, said: list[str] | None = None) -> SearchStage:
    """The search stage of a search in this folder, new or as it was left."""
    say = (said if said is not None else []).append
    first = SimpleNamespace(classes=100, multi_label=False, fingerprint="split")
    place = SimpleNamespace(folder=folder, search_id=folder.name)
    return SearchStage(settings, searcher_of(settings, place, first, say), say, None)  # type: ignore[arg-type]


def ended(run: Run, reaching: dict[int, int | None], **changes: Any) -> Outcome:
    """A trial's end: with more bits it has more, and the target where it is as late as the first that has it."""
    bits, number, first = run.settings.trial.bits, int(run.name[-4:]), reaching[run.settings.trial.bits]
    value = 0.8 + bits / 1000 if first is not None and number >= first else bits / 100 + number / 1000
    content = {"status": COMPLETE, "metrics": {"epoch": 18.0, "val/map": value}, **changes}
    return Outcome(run.name, run.settings.model_dump(mode="json"), run.start, **content)


def go(stage: SearchStage, reaching: dict[int, int | None], most: int = 100) -> list[Outcome]:
    """So many trials, one after the other."""
    outcomes = []
    while len(outcomes) < most and (run := stage.propose()) is not None:
        outcomes.append(ended(run, reaching))
        stage.told(outcomes[-1])
    return outcomes


@pytest.mark.parametrize("lengths", [list(range(8, 8 * count + 8, 8)) for count in range(1, 11)])
def test_bisection_finds_the_smallest_that_is_enough_and_each_try_halves_what_is_left(lengths):
    for smallest in (*lengths, None):
        enough: dict[int, bool] = {}
        while (bits := next_length(lengths, enough)) is not None:
            assert bits not in enough
            enough[bits] = smallest is not None and bits >= smallest
        assert min((bits for bits, reached in enough.items() if reached), default=None) == smallest
        assert len(enough) <= len(lengths).bit_length()


def test_every_length_has_a_study_with_its_share_of_the_trials_and_any_other_search_has_one():
    studies = studies_of(space())
    lengths = [(suffix, each.trial.bits, each.trials) for suffix, each in studies.items()]
    assert lengths == [(f"-{bits}bits", bits, 4) for bits in (16, 24, 32, 48, 64)]
    other = studies["-32bits"]
    assert studies_of(other) == {"": other}


def test_a_length_is_left_once_a_trial_has_the_target_or_all_its_share_has_missed_it(tmp_path: Path):
    said: list[str] = []
    settings = space()
    stage = stage_of(tmp_path, settings, said)
    stage.begin({})
    outcomes = go(stage, REACHING)
    names = [outcome.name for outcome in outcomes]
    assert names == [
        *(f"trial-32bits-{number:04d}" for number in range(3)),
        *(f"trial-24bits-{number:04d}" for number in range(4)),
    ]
    assert stage.done
    assert [each.settings["trial"]["bits"] for each in outcomes] == [32] * 3 + [24] * 4
    assert {outcomes[0].start, outcomes[3].start} == {"paper"}
    assert [line for line in said if line.startswith("code length")] == [
        "code length 32 of 16, 24, 32, 48, 64: up to 4 trials",
        "code length 24 of 16, 24, 32, 48, 64: up to 4 trials",
    ]
    assert how_it_ended(settings, outcomes, stage._searcher.total) == FINISHED
    assert [name for name, _ in begun_trials(tmp_path, settings)] == names


@pytest.mark.parametrize(
    ("reaching", "expected"),
    [
        ({16: None, 24: None, 32: 1, 48: 0, 64: 0}, "32 32 24 24"),
        ({16: 0, 24: 0, 32: None, 48: 1, 64: 0}, "32 32 64 48 48"),
    ],
)
def test_a_search_killed_anywhere_goes_on_with_the_trials_it_would_have_had(
    tmp_path: Path, reaching: dict[int, int | None], expected: str
):
    settings = space(budget={"trials": 6})
    whole = [each.name for each in go(begun(tmp_path / "whole", settings), reaching)]
    assert " ".join(name[6:8] for name in whole) == expected
    for killed_after in range(len(whole) + 1):
        folder = tmp_path / str(killed_after)
        stage = begun(folder, settings)
        known = go(stage, reaching, killed_after)
        under_way = stage.propose()
        resumed = stage_of(folder, settings)
        resumed.begin({each.name: each for each in known})
        rest = go(resumed, reaching)
        assert [each.name for each in (*known, *rest)] == whole
        assert under_way is None or rest[0].settings == under_way.settings.model_dump(mode="json")
        assert resumed.done
        assert resumed._searcher.total == len(whole)


def begun(folder: Path, settings: SearchSettings | None = None) -> SearchStage:
    folder.mkdir(exist_ok=True)
    stage = stage_of(folder, settings or space())
    stage.begin({})
    return stage


def test_the_next_length_waits_for_the_last_trials_of_one_and_not_for_those_of_one_that_was_enough(tmp_path: Path):
    stage = begun(tmp_path)
    first, second, third = (stage.propose() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    stage.told(ended(first, REACHING | {32: 0}))
    shorter = [stage.propose() for _ in range(4)]
    assert [run.settings.trial.bits for run in shorter if run] == [24] * 4
    assert stage.propose() is None
    assert not stage.done
    stage.told(ended(second, REACHING))
    stage.told(ended(third, REACHING, status=PRUNED))
    assert not stage.done
    for run in shorter:
        assert run is not None
        assert not stage.done
        assert stage.propose() is None
        stage.told(ended(run, REACHING))
    assert stage.done
    assert stage.propose() is None


def test_finalists_and_the_papers_setting_are_of_the_smallest_length_that_is_enough(tmp_path: Path):
    settings = space()
    stage = begun(tmp_path)
    go(stage, REACHING)
    finalists, paper = finalists_of(settings, stage.outcomes, 100, False)
    assert [each.name for each in finalists] == ["trial-32bits-0002", "trial-32bits-0001"]
    assert paper.name == "trial-32bits-0000"
    confirm = ConfirmStage(settings, stage, 100, False, "split", lambda line: None)
    confirm.begin({})
    runs = list(iter(confirm.propose, None))
    assert {run.settings.trial.bits for run in runs} == {32}
    assert len(runs) == 3
    without_paper = {name: each for name, each in stage.outcomes.items() if each.start != "paper"}
    paper = finalists_of(settings, without_paper, 100, False)[1]
    assert (paper.name, paper.settings["trial"]["bits"]) == ("paper-32bits", 32)


def test_where_no_length_is_enough_the_longest_is_confirmed(tmp_path: Path):
    stage = begun(tmp_path)
    outcomes = go(stage, dict.fromkeys(REACHING))
    assert list(dict.fromkeys(each.settings["trial"]["bits"] for each in outcomes)) == [32, 64]
    assert len(outcomes) == 8
    finalists, paper = finalists_of(space(), stage.outcomes, 100, False)
    assert {each.settings["trial"]["bits"] for each in (*finalists, paper)} == {64}


def test_the_last_lines_and_the_leaderboard_say_which_length_is_enough_and_which_are_not(tmp_path: Path):
    settings = space()
    stage = begun(tmp_path)
    go(stage, REACHING)
    lengths = lengths_of(settings, stage.outcomes)
    assert lengths[:3] == (Length(16, 0, None, False), Length(24, 4, 0.243, False), Length(32, 3, 0.8 + 0.032, True))
    said = (
        "32 bits are enough for val/map >= 0.8: 24 bits have 0.2430 at best in 4 trials; 32 bits have 0.8320; "
        "not tried: 16, 48, 64"
    )
    lucky = [Candidate("trial-32bits-0002", stage.outcomes["trial-32bits-0002"].settings, [0.79])] * 2
    tested = stage.outcomes["trial-32bits-0002"]
    result = SearchResult("small-001", tmp_path, "", *lucky, tested, tested, FINISHED, lengths=lengths)
    assert length_lines(settings, result) == [f"code length      {said}"]
    assert target_lines(settings, result) == [
        "target           val/map >= 0.8: not reached with 0.7900 on average over fresh seeds: "
        "a longer code may be needed"
    ]
    board = Board(settings, tmp_path, 12, 100, 1, stage.outcomes)
    lines = leaderboard(board, "mlflow ui").replace("\\", "").replace("&gt;", ">").splitlines()
    assert f"So far: {said}." in lines
    assert [line.split(" | ")[1] for line in lines if "trial-" in line and line.startswith("|")][:2] == [
        "trial-32bits-0002", "trial-32bits-0001",
    ]  # fmt: skip
    none = lengths_of(settings, {each.name: each for each in go(begun(tmp_path / "none"), dict.fromkeys(REACHING))})
    result = SearchResult("small-001", tmp_path, "", *lucky, tested, tested, FINISHED, lengths=none)
    assert length_lines(settings, result)[0].startswith(
        "code length      no length is enough for val/map >= 0.8: 32 bits"
    )


def test_hours_that_end_a_search_leave_open_what_is_not_known_and_more_hours_go_on(tmp_path: Path):
    settings = space(budget={"trials": 12, "hours": 1.0})
    stage = stage_of(tmp_path, settings)
    stage.begin({})
    known = go(stage, REACHING, 4)
    stage._searcher.stop()
    assert stage.propose() is None
    assert stage.done
    ended_by = how_it_ended(settings, known, stage._searcher.total)
    assert ended_by == "stopped by budget: 1 hours were over after 4 of 12 trials"
    write_record(tmp_path / "search.json", settings)
    write_record(tmp_path / SUMMARY_FILE, {"ended": ended_by})
    more = with_more(tmp_path, None, 2)
    assert (more.budget.hours, more.target) == (2, settings.target)
    resumed = stage_of(tmp_path, more)
    resumed.begin({each.name: each for each in known})
    assert len(go(resumed, REACHING)) == 3
    for added, before in ((1, ended_by), (None, FINISHED)):
        write_record(tmp_path / SUMMARY_FILE, {"ended": before})
        with pytest.raises(SettingsError, match=r"shares its 12 trials out among code lengths .*: begin a new search"):
            with_more(tmp_path, added, None if added else 2)


def tune_trial(bits: int, number: int) -> SimpleNamespace:
    settings = space().trial_settings({"bits": bits}, 0)
    return SimpleNamespace(
        trial_id=f"{bits}-{number}",
        config={"run": Run(f"trial-{bits}bits-{number:04d}", settings, "search", "", "search")},
    )


def test_trials_are_stopped_by_those_of_their_own_length_as_they_were_before_a_kill():
    settings = space()
    studies = {bits: optuna.create_study(direction="maximize") for bits in settings.lengths}

    def made(bits: int) -> Asha | None:
        found = scheduler_of(settings.at_length(bits), studies[bits], f"-{bits}bits")
        assert not isinstance(found, ByLength)
        return found  # type: ignore[return-value]

    def said(scheduler: ByLength, bits: int, number: int, value: float) -> str:
        trial: Any = tune_trial(bits, number)
        scheduler.on_trial_add(None, trial)
        return scheduler.on_trial_result(None, trial, {"epoch": 2, "val/map": value})

    scheduler = ByLength(made)
    for number in range(3):
        studies[64].ask().report(0.9, 2)
        assert said(scheduler, 64, number, 0.9) == "CONTINUE"
    assert said(scheduler, 16, 0, 0.1) == "CONTINUE"
    assert said(scheduler, 64, 3, 0.8) == "STOP"
    resumed = ByLength(made)
    assert said(resumed, 16, 0, 0.1) == "CONTINUE"
    assert said(resumed, 64, 3, 0.8) == "STOP"
    assert said(resumed, 64, 2, 0.9) == "CONTINUE"
    rungs = resumed._schedulers[64]._brackets[0]._rungs  # type: ignore[attr-defined]
    assert len(dict(rungs)[2]) == 4  # one that goes on is not counted twice


def test_the_smallest_of_what_is_asked_needs_a_target_and_a_trial_a_length():
    with pytest.raises(SettingsError, match=r"^search\.bits: smallest needs .*: set target, such as val/map >= 0\.85$"):
        check_lengths(space(target=None))
    with pytest.raises(SettingsError, match=r"^budget\.trials: 2 is too few: up to 3 of the 5 code lengths"):
        check_lengths(space(budget={"trials": 2}))
    check_lengths(space(budget={"trials": 3}))
    assert planned(space(), 100, False) == "up to 3 of the code lengths 16, 24, 32, 48, 64, each with up to 4 trials"


def test_lengths_that_are_whole_floats_name_trials_as_others_do():
    settings = space(search={"bits": {"smallest": [16, 32.0]}})
    assert [(type(bits), bits) for bits in settings.lengths] == [(int, 16), (int, 32)]


def test_what_is_planned_says_how_short_the_trials_are():
    free = {"margin": {"uniform": [0.0, 0.5]}}
    assert planned(space(search=free, scheduler="short"), 100, False) == "12 trials (each 10 of 18 epochs)"
    few = {"update_interval": {"int": [1, 3]}}
    said = planned(space(search=few, scheduler={"short": {"epochs": 2}}), 100, False)
    assert said == "4 trials (each 2 of 18 epochs), one for each setting there is"
    assert planned(space(search=free, scheduler={"short": {"epochs": 40}}), 100, False) == "12 trials"


def test_a_search_over_nothing_but_the_length_tries_the_papers_setting_at_each(tmp_path: Path):
    stage = stage_of(tmp_path, space(search={"bits": {"smallest": [16, 32]}}))
    stage.begin({})
    assert stage._searcher.total == 2
    assert [each.name for each in go(stage, REACHING | {32: 0})] == ["trial-32bits-0000", "trial-16bits-0000"]
    assert stage.done


def test_a_grid_whose_winner_was_lucky_is_told_how_its_other_cells_are_tried(tmp_path: Path):
    grid = space(search={"margin": {"grid": [0.0, 0.1, 0.2]}})
    lucky, tested = [Candidate(name, {}, [0.79]) for name in ("trial-0000", "paper")], Outcome("final-best", {})
    said = "target           val/map >= 0.8: not reached with 0.7900 on average over fresh seeds: "
    for ended_so, go_on in (
        ("stopped by target: trial-0000", f"crh-tune search --resume s-001 --hours 1 --storage {tmp_path} searches on"),
        (FINISHED, "all cells of the grid were tried"),
    ):
        result = SearchResult("s-001", tmp_path / "s-001", "", *lucky, tested, tested, ended_so)
        assert target_lines(grid, result) == [said + go_on]
