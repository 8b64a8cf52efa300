"""A search as it stands: its leaderboard in MLflow, its view in a terminal, its plain lines."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from crh_tune.settings.course import SchedulerSettings, ShortSettings
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning import progress, race
from crh_tune.tuning.board import Board
from crh_tune.tuning.leaderboard import escaped, leaderboard
from crh_tune.tuning.live import LiveView, drawn
from crh_tune.tuning.pages import ended_name, setting_name
from crh_tune.tuning.progress import Lines
from crh_tune.tuning.record import Outcome
from crh_tune.tuning.results import Candidate, SearchResult

SETTINGS = SearchSettings.model_validate(
    {
        "name": "m",
        "dataset": {"name": "digit_pairs"},
        "trial": {"bits": 16, "epochs": 40},
        "search": {"margin": {"uniform": [0.0, 0.5]}, "codebook_ratio": {"choice": [1, 2]}},
        "scheduler": {"asha": {"grace_epochs": 5, "reduction": 3}},
        "confirm": {"top": 2, "seeds": 2},
        "budget": {"trials": 4},
    }
)
FRESH = {"trial-0000": [0.70, 0.72], "trial-0001": [0.74, 0.70], "trial-0002": [0.81, 0.77]}


def outcome(name: str, value: float, seed: int = 0, status: str = "complete", epoch: int = 40, **more: Any) -> Outcome:
    margin = 0.2 if "0000" in name else 0.111 if "0001" in name else 0.333
    resolved = SETTINGS.trial_settings({"margin": margin}, seed).resolve(100, False).model_dump(mode="json")
    start = "fixed" if not name.startswith("trial") else "paper" if name == "trial-0000" else "drawn"
    metrics = {"epoch": float(epoch), more.pop("metric", "val/map"): value}
    return Outcome(name, resolved, start, status, metrics, **more)


def board_of(*outcomes: Outcome) -> Board:
    board = Board(SETTINGS, Path("/runs/m-001"), 4, 100, 2)
    for each in outcomes:
        board.end(each)
    return board


def searched() -> list[Outcome]:
    return [
        outcome("trial-0000", 0.75),
        outcome("trial-0001", 0.85),
        outcome("trial-0002", 0.80),
        outcome("trial-0003", 0.40, status="pruned", epoch=5),
    ]


def confirmed() -> list[Outcome]:
    return [
        outcome(f"confirm-{name}-seed{seed}", value, seed)
        for name, values in FRESH.items()
        for seed, value in enumerate(values, 1)
    ]


def after_test() -> list[Outcome]:
    return [outcome("final-best", 0.83, metric="test/map"), outcome("final-paper", 0.76, metric="test/map")]


def rows(text: str) -> list[list[str]]:
    """The cells of the table that a Markdown renderer makes of it, without its head."""
    found: list[list[str]] = []
    tokens = MarkdownIt("js-default").parse(text)
    for number, token in enumerate(tokens):
        if token.type == "tr_open":
            found.append([])
        elif token.type in ("td_open", "th_open"):
            found[-1].append("".join(part.content for part in tokens[number + 1].children or ()))
    return found[1:]


def test_the_winner_is_the_best_mean_and_the_leaderboard_says_why_the_best_single_trial_is_not():
    board = board_of(*searched(), *confirmed(), *after_test())
    text = leaderboard(board, "mlflow ui")
    assert board.winner == "trial-0002"
    first, second, third = rows(text)
    mean, std = statistics.fmean(FRESH["trial-0002"]), statistics.stdev(FRESH["trial-0002"])
    assert (first[0], first[1], first[3]) == ("★", "trial-0002", "0.8000")
    assert first[4] == f"{mean:.4f} ± {std:.4f} (2)"
    assert first[5] == "0.8300"
    assert (second[1], second[3]) == ("trial-0001", "0.8500")
    assert (third[1], third[5]) == ("trial-0000, the paper's setting", "0.7600")
    assert "trial-0001 had the best single value, 0.8500, and did not win: it is worth 0.7200 ± 0.0283" in text
    assert "on average over 2 fresh seeds" in text
    assert "0.0700 short of the winner" in text
    assert "4 of 4 trials" in text
    assert "1 stopped early" in text


def test_a_best_single_trial_that_has_the_papers_setting_is_called_so():
    board = board_of(outcome("trial-0000", 0.95), *searched()[1:], *confirmed(), *after_test())
    said = leaderboard(board, "mlflow ui").replace("\\", "")
    assert "trial-0000 (the paper's setting) had the best single value, 0.9500, and did not win" in said


def test_the_leaderboard_does_not_depend_on_when_the_search_was_interrupted():
    everything = [*searched(), *confirmed(), *after_test()]
    whole = leaderboard(board_of(*everything), "mlflow ui")
    assert leaderboard(board_of(*reversed(everything), *everything[:3]), "mlflow ui") == whole


def test_a_value_of_short_trials_stands_with_its_epochs():
    short = SETTINGS.model_copy(update={"scheduler": SchedulerSettings(short=ShortSettings(epochs=10))})
    board = Board(short, Path("/runs/m-001"), 4, 100, 2)
    board.end(outcome("trial-0000", 0.6, epoch=10))
    assert "best so far trial-0000 with 0.6000, a single value after 10 of 40 epochs" in leaderboard(board, "mlflow ui")


def test_before_the_confirmation_no_one_has_won_and_the_papers_setting_is_there_however_weak():
    many = [outcome(f"trial-{number:04d}", 0.5 + number / 100) for number in range(1, 20)]
    text = leaderboard(board_of(outcome("trial-0000", 0.1), *many), "mlflow ui")
    assert "★" not in text
    assert "best so far trial-0019 with 0.6900, a single value" in text
    assert rows(text)[-1][1] == "trial-0000, the paper's setting"
    assert len(rows(text)) == 13
    assert "no trial has come to its end" in leaderboard(board_of(), "mlflow ui")


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a|b", "*a* _b_ `c`", "[x](javascript:y)", "# a", "a\nb", "&lt;b&gt;", "\\|"]
)
def test_names_are_text_in_markdown(name: str):
    html = MarkdownIt("js-default", {"html": True}).render(f"| a | b |\n|---|---|\n| {escaped(name)} | 1 |")
    [cell] = rows(f"| a |\n|---|\n| {escaped(name)} |")
    assert "<script" not in html
    assert "<a " not in html
    assert "<em>" not in html
    assert cell[0] == " ".join(name.split())


def test_a_run_is_named_by_what_it_reached_and_its_setting():
    searched = SETTINGS.search
    stopped = outcome("trial-0003", 0.4, status="pruned", epoch=5)
    setting = "M=2C d=8 λ=0.1 m=0.333 u=5"
    assert setting_name(stopped.settings, searched, 100) == setting
    assert ended_name(stopped, "search", "val/map", searched, 100) == f"✂ 0.400 @5 · {setting}"
    whole = outcome("trial-0003", 0.4)
    assert ended_name(whole, "search", "val/map", searched, 100) == f"0.400 · {setting}"
    assert ended_name(whole, "search", "val/map", searched, 100, won=True) == f"★ 0.400 · {setting}"
    failed = outcome("trial-0003", 0.4, status="failed")
    assert ended_name(failed, "search", "val/map", searched, 100) == f"failed · {setting}"
    again = outcome("confirm-trial-0003-seed2", 0.5, 2)
    assert ended_name(again, "confirm", "val/map", searched, 100) == f"0.500 · confirm 2 · {setting}"


def test_the_time_left_lies_between_runs_that_are_stopped_and_runs_that_are_not(monkeypatch: pytest.MonkeyPatch):
    board = board_of(*searched()[:2])
    assert board.seconds_left() is None
    now = [100.0]
    monkeypatch.setattr("crh_tune.tuning.board.time.monotonic", lambda: now[0])
    under_way = outcome("trial-0002", 0.5, epoch=5)
    board.start(under_way)
    now[0] += 10
    board.report(under_way)  # two seconds an epoch
    board.end(outcome("trial-0003", 0.4, status="pruned", epoch=4))
    fixed = (2 + 1) + (1 + 1) + 2  # one of two finalists drops out after the first seed; then the tests
    low, high = board.seconds_left() or (0.0, 0.0)
    assert high == pytest.approx(2 * ((1 + fixed) * 40 - 5) / 2)
    assert low == pytest.approx(2 * (1 * (40 + 40 + 4) / 3 + fixed * 40 - 5) / 2)


@pytest.mark.parametrize(
    ("budget", "trials"), [({}, 97 * 40 - 5), ({"hours": 0.01}, 36 - 30), ({"epochs": 100}, 100 - 80 - 5)]
)
def test_the_time_left_is_within_the_budget_and_takes_a_long_or_a_short_race(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, Any], trials: float
):
    """A second an epoch, one run at a time: 2 of 99 trials have ended with 40 epochs each, one is at epoch 5."""
    content = SETTINGS.model_dump(mode="json") | {
        "confirm": {"top": 3, "seeds": 3}, "budget": {"trials": 99, **budget}
    }  # fmt: skip
    settings = SearchSettings.model_validate(content)
    (tmp_path / "seconds_used").write_text("30")
    board = Board(settings, tmp_path, 99, 100, 1)
    now = [100.0]
    monkeypatch.setattr("crh_tune.tuning.board.time.monotonic", lambda: now[0])
    for each in searched()[:2]:
        board.end(each)
    under_way = outcome("trial-0002", 0.5, epoch=5)
    board.start(under_way)
    now[0] += 5
    board.report(under_way)
    low, high = board.seconds_left() or (0.0, 0.0)
    assert high == pytest.approx(trials + (4 + 3 + 2 + 2) * 40)
    assert low == pytest.approx(trials + (4 + 2 + 2) * 40)
    for each in confirmed():
        board.end(each)
    board.running.clear()
    board.start(outcome("final-best", 0.0, metric="test/map", epoch=10))
    assert board.seconds_left() == pytest.approx((2 * 40 - 10, 2 * 40 - 10))


def test_one_that_dropped_out_of_the_race_does_not_win_by_a_lucky_seed():
    lucky = outcome("confirm-trial-0003-seed1", 0.99, 1)
    board = board_of(*searched(), *confirmed(), lucky, *after_test()[:1])
    assert board.winner == "trial-0002"
    assert [row[1].partition(",")[0] for row in rows(leaderboard(board, "mlflow ui"))] == [
        "trial-0002", "trial-0001", "trial-0000", "trial-0003",
    ]  # fmt: skip


def test_the_commands_are_one_block_of_code_with_a_line_each():
    text = leaderboard(board_of(*searched()), "mlflow ui")
    [block] = [token for token in MarkdownIt("js-default").parse(text) if token.type == "code_block"]
    commands = [line.partition("#")[0].split() for line in block.content.splitlines()]
    assert [words[0] for words in commands] == ["crh-tune", "crh-tune", "mlflow", "optuna-dashboard"]
    assert commands[0] == ["crh-tune", "search", "--resume", "m-001", "--storage", "/runs"]


def test_a_search_that_has_ended_says_what_it_gains_and_how_to_search_on():
    board = board_of(*searched(), *confirmed(), outcome("confirm-trial-0003-seed1", 0.5, 1))
    best, paper = (Candidate(name, {}, FRESH[name]) for name in ("trial-0002", "trial-0000"))
    tested, gain = after_test(), race.Gain(0.08, -0.01, 0.17)
    board.result = SearchResult("m-001", board.folder, "", best, paper, *tested, "finished", gain=gain)
    text = leaderboard(board, "mlflow ui")
    unescaped = text.replace("\\", "")
    assert "Gain: +0.0800 val/map over the paper's setting (95 % interval -0.0100 to +0.1700); with these" in unescaped
    assert "it is not measurably better" in text
    assert "--resume m-001 --trials 20 --storage /runs" in text
    assert rows(text)[-1][4] == "0.5000 (1)"


def test_a_terminal_shows_what_runs_and_what_is_best():
    board = board_of(*searched()[:2])
    board.start(outcome("trial-0002", 0.6, epoch=15))
    console = Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None)
    console.print(drawn(board))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("m-001", "2 of 4 trials", "+0.1000 against the paper's setting so far", "15 / 40", "0.6000", "2 / 2"):
        assert part in said
    assert said.index("trial-0001") < said.index("trial-0000, the paper's")


def test_a_live_view_keeps_every_line_whole_and_leaves_no_table_behind():
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    board = board_of(*searched())
    line = "[bold] a path " + "x" * 100
    with LiveView(console) as view:
        view.watch(board)
        view(line)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert line in said
    assert "best so far" not in said[said.rindex(line) + len(line) :].split("\x1b[2K")[-1]


def test_lines_tell_of_each_rung_once_and_break_a_long_silence(monkeypatch: pytest.MonkeyPatch):
    now, said = [0.0], []
    monkeypatch.setattr(progress, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    lines, board = Lines(said.append), board_of()
    for epoch in (1, 5, 6, 15):
        board.start(outcome("trial-0001", 0.5, epoch=epoch))
        lines(board)
    assert [line.strip() for line in said] == [
        "trial-0001 at epoch 5 of 40 with val/map 0.5000, rung 1 of 2",
        "trial-0001 at epoch 15 of 40 with val/map 0.5000, rung 2 of 2",
    ]
    now[0] += 59
    lines(board)
    assert len(said) == 2
    now[0] += 2
    lines(board)
    assert said[2].strip().startswith("under way: trial-0001 at epoch 15 of 40 with val/map 0.5000")
