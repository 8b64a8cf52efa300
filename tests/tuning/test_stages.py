"""The stages of a search without Ray: what they propose, what they make of outcomes, when they are done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import optuna
import pytest
from mlflow import MlflowClient
from ray.tune.search.searcher import Searcher

from crh_tune.errors import SearchFailed
from crh_tune.settings.base import SettingsError
from crh_tune.settings.course import BudgetSettings
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.engine import Engine
from crh_tune.tuning.events import OUT_OF_TIME
from crh_tune.tuning.proposals import enqueue
from crh_tune.tuning.record import COMPLETE, FAILED, Outcome, read_outcomes, write_outcome
from crh_tune.tuning.run import Run
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.stages import ConfirmStage, FixedRuns, SearchStage, Stage, TestStage, finalists_of
from crh_tune.tuning.stopping import Stop
from crh_tune.tuning.study import how_it_ended
from crh_tune.tuning.tracking import Tracker, default_tracking_uri

SETTINGS = SearchSettings.model_validate(
    {
        "name": "small",
        "dataset": {"name": "digit_pairs"},
        "trial": {"bits": 16, "epochs": 6},
        "search": {"margin": {"uniform": [0.0, 0.5]}},
        "confirm": {"top": 2, "seeds": 2},
        "budget": {"trials": 8},
    }
)


def outcome_of(name: str, margin: float, value: float, **changes) -> Outcome:
    settings = SETTINGS.trial_settings({"margin": margin}, 0).resolve(100, False).model_dump(mode="json")
    metrics = {"epoch": 6.0, "val/map": value}
    return Outcome(name, settings, **{"start": "drawn", "status": "complete", "metrics": metrics, **changes})


def ended(run: Run, **changes) -> Outcome:
    metrics = {"epoch": 6.0, "val/map": run.settings.trial.margin, "test/map": 0.5}
    content = {"status": COMPLETE, "metrics": metrics, **changes}
    return Outcome(run.name, run.settings.model_dump(mode="json"), run.start, **content)


def new_study() -> optuna.Study:
    """Whose trials are the same each time: at least two draw more than the paper's margin."""
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))


def search_stage(
    study: optuna.Study | None = None, clock: object = None, settings: SearchSettings = SETTINGS
) -> SearchStage:
    study = study or new_study()
    enqueue(study, settings, 100, False)
    searcher = OptunaSearcher(study, settings, 100, False, settings.trials, "of-search")
    return SearchStage(settings, searcher, lambda line: None, clock)  # type: ignore[arg-type]


def the_stages(say=lambda line: None) -> tuple[SearchStage, ConfirmStage, TestStage]:
    search = search_stage()
    confirm = ConfirmStage(SETTINGS, search, 100, False, "of-search", say)
    return search, confirm, TestStage(SETTINGS, confirm, "of-test", say)


def engine_of(folder: Path, *stages: Stage, tracker: object = None) -> Engine:
    tracker = tracker or MagicMock()
    untold = {"board": None, "pictures": None, "searched": (), "describe": lambda: None}
    place = SimpleNamespace(folder=folder, tracker=tracker, key=str, search_id="small-001", stop=Stop(), **untold)
    return Engine(place, BudgetSettings(), stages, in_groups=False)  # type: ignore[arg-type]


def go(engine: Engine, folder: Path, runs: int = 100) -> list[Run]:
    """Hand out so many runs, one at a time, each of which ends well; those that were handed out."""
    handed_out: list[Run] = []
    while len(handed_out) < runs and (given := engine.suggest("x")) != Searcher.FINISHED:
        run = given["run"]
        handed_out.append(run)
        trial = SimpleNamespace(config={"run": run}, num_failures=0, max_failures=3)
        engine.events.on_trial_start(0, [], trial)
        engine.events.on_trial_result(0, [], trial, {**ended(run).metrics, "final": 1.0})
        engine.events.on_trial_complete(0, [], trial)
    return handed_out


def test_one_engine_takes_all_stages_to_their_end_and_a_resumed_one_proposes_the_rest(tmp_path: Path):
    """Killed after any number of runs, it proposes what an undisturbed one would, and nothing twice."""
    (tmp_path / "whole").mkdir()
    search, confirm, test = the_stages()
    engine = engine_of(tmp_path / "whole", search, confirm, test)
    engine.begin()
    whole = go(engine, tmp_path / "whole")
    assert [run.stage for run in whole] == ["search"] * 8 + ["confirm"] * 5 + ["test"] * 2  # a finalist drops out
    assert len({run.name for run in whole}) == 15
    assert {(run.split, run.fingerprint) for run in whole} == {("search", "of-search"), ("final", "of-test")}
    assert all(stage.done for stage in (search, confirm, test))
    assert search.outcomes[test.best.trial].metrics["val/map"] == max(run.settings.trial.margin for run in whole[:8])
    for killed_after in (0, 3, 8, 10, 11, 13, 14, 15):
        folder = tmp_path / str(killed_after)
        folder.mkdir()
        study = new_study()
        stages = the_stages()
        begun = search_stage(study)
        for run in whole[:killed_after]:  # the study and the outcomes as they were left
            if run.stage == "search":
                assert begun.propose()
            write_outcome(folder, read_outcomes(tmp_path / "whole")[run.name])
        searcher = search_stage(study)
        confirm = ConfirmStage(SETTINGS, searcher, 100, False, "of-search", lambda line: None)
        resumed = engine_of(folder, searcher, confirm, TestStage(SETTINGS, confirm, "of-test", lambda line: None))
        resumed.begin()
        rest = go(resumed, folder)
        assert [run.stage for run in rest] == [run.stage for run in whole[killed_after:]]
        if killed_after >= 8:
            assert rest == whole[killed_after:]
        assert not stages[0].done


def test_a_stage_waits_for_its_last_runs_before_the_next_begins(tmp_path: Path):
    settings = SETTINGS.trial_settings({}, 0)
    first, second = (FixedRuns([Run(name, settings, "search", "s")], print) for name in ("first", "second"))
    engine = engine_of(tmp_path, first, second)
    engine.begin()
    given = engine.suggest("x")
    assert engine.suggest("y") is None
    trial = SimpleNamespace(config=given)
    engine.events.on_trial_start(0, [], trial)
    engine.events.on_trial_complete(0, [], trial)
    assert engine.suggest("y")["run"].name == "second"


def test_a_process_that_dies_before_its_run_starts_has_the_run_proposed_again_three_times(tmp_path: Path):
    stage = FixedRuns([Run("run", SETTINGS.trial_settings({}, 0), "search", "s")], lambda line: None)
    engine = engine_of(tmp_path, stage)
    engine.begin()
    for _ in range(4):
        trial = SimpleNamespace(config=engine.suggest("x"), num_failures=1, error_file=None)
        assert not stage.done
        engine.events.on_trial_error(0, [], trial)
    assert engine.suggest("x") == Searcher.FINISHED
    [outcome] = read_outcomes(tmp_path).values()
    assert (outcome.status, outcome.error) == (FAILED, "its process died 1 times, the last time: without a word")


def test_finalists_are_different_settings_that_have_the_metric():
    outcomes = {
        "trial-0000": outcome_of("trial-0000", 0.2, 0.5, start="paper"),
        "trial-0001": outcome_of("trial-0001", 0.3, 0.7),
        "trial-0002": outcome_of("trial-0002", 0.3, 0.7),
        "trial-0003": outcome_of("trial-0003", 0.4, 0.6),
        "trial-0004": outcome_of("trial-0004", 0.1, 0.9, metrics={"epoch": 6.0}),
        "trial-0005": outcome_of("trial-0005", 0.1, 0.9, status="pruned"),
    }
    finalists, paper = finalists_of(SETTINGS, outcomes, 100, False)
    assert [outcome.name for outcome in finalists] == ["trial-0001", "trial-0003"]
    assert paper.name == "trial-0000"


def test_trials_that_differ_in_the_seed_alone_are_one_finalist():
    """All finalists are confirmed with the same fresh seeds: two of one setting would be the same runs."""
    tried = [("paper", 0.2, 0.4), ("seed", 0.2, 0.8), ("drawn", 0.3, 0.7), ("seed", 0.3, 0.6), ("drawn", 0.4, 0.5)]
    outcomes = {f"trial-{n}": outcome_of(f"trial-{n}", *of, start=start) for n, (start, *of) in enumerate(tried)}
    for name in ("trial-1", "trial-3"):
        outcomes[name].settings["trial"]["seed"] = 7
    search, confirm, _ = the_stages(lambda line: None)
    search.begin(outcomes)
    assert [each.name for each in finalists_of(SETTINGS, outcomes, 100, False)[0]] == ["trial-1", "trial-2"]
    confirm.begin({})
    assert {run.name.rpartition("-")[0] for run in iter(confirm.propose, None)} == {
        "confirm-trial-0",
        "confirm-trial-2",
    }


def test_a_finalist_of_another_version_is_told_in_one_line():
    search, confirm, _ = the_stages(lambda line: None)
    old = outcome_of("trial-1", 0.3, 0.6)
    old.settings["trial"]["gone"] = 1
    search.begin({"trial-0": outcome_of("trial-0", 0.2, 0.5, start="paper"), "trial-1": old})
    with pytest.raises(SettingsError, match=r"^trial-1 was run by another version: begin a new search: trial\.gone"):
        confirm.begin({})


def test_a_finalist_that_cannot_be_confirmed_is_left_out_and_the_papers_setting_is_needed():
    said: list[str] = []
    search, confirm, test = the_stages(said.append)
    tried = [("paper", 0.2, 0.5), ("drawn", 0.3, 0.6), ("drawn", 0.4, 0.7)]
    search.begin({f"trial-{n}": outcome_of(f"trial-{n}", *of, start=start) for n, (start, *of) in enumerate(tried)})
    confirm.begin({})
    for run in iter(confirm.propose, None):
        failing = {"status": FAILED, "error": "it died"} if run.name.startswith("confirm-trial-2") else {}
        confirm.told(ended(run, **failing))
    assert confirm.done
    assert [candidate.trial for candidate in confirm.candidates()] == ["trial-1", "trial-0"]
    assert "trial-2 is left out, it could not be confirmed: it died" in said
    for seed in (1, 2):
        confirm.told(outcome_of(f"confirm-trial-0-seed{seed}", 0.2, 0.5, status=FAILED, error="it died"))
    with pytest.raises(SearchFailed, match="the paper's setting could not be confirmed: it died"):
        test.begin({})


def test_trials_that_are_added_run_alone_and_only_what_is_new_is_confirmed_and_tested(tmp_path: Path):
    """The winner of more trials is tested under a name of its own; the earlier one and the paper's are not again."""
    study = new_study()
    ran: list[list[Run]] = []
    tests: list[TestStage] = []
    for trials in (8, 8, 30):
        settings = SETTINGS.model_copy(update={"budget": BudgetSettings(trials=trials)})
        enqueue(study, settings, 100, False)
        search = SearchStage(settings, OptunaSearcher(study, settings, 100, False, trials, "s"), print, None)
        confirm = ConfirmStage(settings, search, 100, False, "s", lambda line: None)
        tests.append(TestStage(settings, confirm, "t", lambda line: None))
        engine = engine_of(tmp_path, search, confirm, tests[-1])
        engine.begin()
        ran.append(go(engine, tmp_path))
    first, again, more = ran
    assert again == []
    assert [run.stage for run in more].count("search") == 22
    assert tests[2].best.settings["trial"]["margin"] > tests[0].best.settings["trial"]["margin"]
    assert [run.name for run in more if run.stage == "test"] == ["final-best-2"]
    assert not {run.name for run in first} & {run.name for run in more}
    assert [outcome.name for outcome in tests[2].tested()] == ["final-best-2", "final-paper"]
    assert tests[1].tested() == tests[0].tested()


def test_no_trial_starts_once_one_has_the_target_and_those_under_way_go_on():
    settings = SearchSettings.model_validate({**SETTINGS.model_dump(), "target": "val/map >= 0.3"})
    stage = search_stage(settings=settings)
    stage.begin({})
    first, second, third = (stage.propose() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    value = {"epoch": 6.0, "val/map": 0.31}
    stage.told(ended(first, metrics={"epoch": 6.0, "val/map": 0.29}))
    stage.told(ended(second, metrics=value, status="pruned"))  # it was not trained to its end
    fourth = stage.propose()
    assert fourth is not None
    stage.told(ended(third, metrics=value))
    assert stage.propose() is None
    assert not stage.done
    stage.told(ended(fourth, metrics=value))
    assert stage.done
    said = "stopped by target: trial-0002 has val/map >= 0.3 after 4 of 8 trials"
    assert how_it_ended(settings, list(stage.outcomes.values()), 8) == said


def test_no_trial_starts_after_the_budget_of_epochs_and_those_under_way_go_on():
    settings = SETTINGS.model_copy(update={"budget": BudgetSettings(trials=8, epochs=13)})
    study = new_study()
    enqueue(study, settings, 100, False)
    stage = SearchStage(settings, OptunaSearcher(study, settings, 100, False, 8, "s"), lambda line: None, None)
    stage.begin({})
    runs = [stage.propose(), stage.propose()]
    assert runs[0] is not None
    assert runs[1] is not None
    stage.told(ended(runs[0]))
    third = stage.propose()  # 6 epochs so far
    assert third is not None
    stage.reported(ended(runs[1]))
    stage.reported(ended(third, metrics={"epoch": 2.0, "val/map": 0.5}))
    assert stage.propose() is None  # 14
    assert not stage.done
    stage.told(ended(runs[1]))
    stage.told(ended(third))
    assert stage.done
    assert how_it_ended(settings, list(stage.outcomes.values()), 8) == (
        "stopped by budget: 13 epochs were trained after 3 of 8 trials"
    )


def race_of(values: dict[str, list[float]], seeds: int, known: dict[str, Outcome] | None = None):
    """A race of trials, ``paper`` among them, whose n-th fresh seed has these values; the stage, and what it ran."""
    content = {"confirm": {"top": len(values) - 1, "seeds": seeds}}
    settings = SearchSettings.model_validate({**SETTINGS.model_dump(), **content})
    starts = {name: "paper" if name == "paper" else "drawn" for name in values}
    tried = {
        name: outcome_of(name, 0.2 + 0.01 * n, 0.5 + 0.01 * n, start=starts[name]) for n, name in enumerate(values)
    }
    confirm = ConfirmStage(settings, SimpleNamespace(outcomes=tried), 100, False, "of-search", lambda line: None)  # type: ignore[arg-type]
    confirm.begin(known or {})
    ran: list[Outcome] = []
    while (run := confirm.propose()) is not None:
        name, seed = run.name.removeprefix("confirm-").split("-seed")
        assert (run.settings.trial.seed, run.start) == (int(seed), "fixed")
        ran.append(ended(run, metrics={"epoch": 6.0, "val/map": values[name][int(seed) - 1]}))
        confirm.told(ran[-1])
    assert confirm.done
    return confirm, ran


def names_of(ran: list[Outcome]) -> list[str]:
    return [outcome.name.removeprefix("confirm-").replace("-seed", " ") for outcome in ran]


def test_equally_many_finalists_drop_out_after_each_seed_and_the_last_one_races_the_paper_to_the_end():
    values = {"paper": [0.5, 0.6, 0.5], "a": [0.51, 0.6, 0.6], "b": [0.55, 0.5, 0.99], "c": [0.4, 0.99, 0.99]}
    confirm, ran = race_of(values, seeds=3)
    assert sorted(names_of(ran)[:4]) == ["a 1", "b 1", "c 1", "paper 1"]
    assert sorted(names_of(ran)[4:7]) == ["a 2", "b 2", "paper 2"]
    assert sorted(names_of(ran)[7:]) == ["a 3", "paper 3"]
    assert [(each.trial, each.values) for each in confirm.candidates()] == [
        ("a", values["a"]),
        ("paper", values["paper"]),
    ]


def test_a_race_ends_when_its_winner_is_clear_and_when_no_finalist_is_left():
    confirm, ran = race_of({"paper": [0.5, 0.502, 0.5, 0.5], "a": [0.7, 0.703, 0.9, 0.9]}, seeds=4)
    assert names_of(ran) == ["a 1", "paper 1", "a 2", "paper 2"]
    best = confirm.candidates()[0]
    assert best.trial == "a"
    assert confirm.gain(best).low > 0.15
    confirm, ran = race_of({"paper": [0.7, 0.702, 0.5], "a": [0.5, 0.503, 0.9]}, seeds=3)
    assert names_of(ran) == ["a 1", "paper 1", "a 2", "paper 2"]
    assert [each.trial for each in confirm.candidates()] == ["paper"]


def test_a_race_that_is_resumed_after_any_of_its_runs_is_the_same_race():
    values = {name: [0.5 + (7 * n + 3 * m) % 5 / 50 for m in range(4)] for n, name in enumerate(("paper", *"abcde"))}
    confirm, whole = race_of(values, seeds=4)
    for killed_after in range(len(whole) + 1):
        known = {outcome.name: outcome for outcome in whole[:killed_after]}
        resumed, rest = race_of(values, 4, known)
        assert names_of(rest) == names_of(whole[killed_after:])
        assert resumed.candidates() == confirm.candidates()
        assert resumed.outcomes == confirm.outcomes


def test_a_search_whose_first_trials_all_fail_ends_and_one_that_has_one_good_trial_does_not(tmp_path: Path):
    stage = search_stage()
    stage.begin({})
    for _ in range(4):
        run = stage.propose()
        assert run is not None
        stage.told(ended(run, status=FAILED, error="it died"))
    run = stage.propose()
    assert run is not None
    with pytest.raises(SearchFailed, match=r"^all of 5 trials failed, the last one: it died$"):
        stage.told(ended(run, status=FAILED, error="it died"))
    stage.outcomes["trial-0000"].status = COMPLETE
    stage.told(ended(run, status=FAILED, error="it died"))


def test_the_hours_do_not_count_while_tune_starts(tmp_path: Path):
    asked = []
    clock = SimpleNamespace(over=lambda: bool(asked.append("asked")))
    engine = engine_of(tmp_path, search_stage(clock=clock))
    engine.begin()
    assert not asked
    assert engine.suggest("a-trial")["run"].name == "trial-0000"
    assert asked


def test_hours_that_were_over_at_a_crash_end_the_trials_it_left_everywhere(tmp_path: Path):
    """A process that ran three trials was killed after one; the one that resumes finds no time left for the others.

    Then the next stage begins.
    """
    study = new_study()
    begun = search_stage(study)
    runs = [begun.propose() for _ in range(3)]
    study.ask()  # killed before it had drawn anything
    assert runs[0] is not None
    write_outcome(tmp_path, ended(runs[0]))
    search = search_stage(study, clock=SimpleNamespace(over=lambda: True))
    confirm = ConfirmStage(SETTINGS, search, 100, False, "of-search", lambda line: None)
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "small", tmp_path, tmp_path)
    for name in ("small-001", "trial-0000", "trial-0001"):
        tracker.start_run(name, name)
    engine = engine_of(tmp_path, search, confirm, tracker=tracker)
    engine.begin()
    assert engine.suggest("x")["run"].name == "confirm-trial-0000-seed1"
    assert tracker.drain(120) == 0
    client = MlflowClient(uri)
    logged = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert {run.data.tags["crh_tune.run"]: run.info.status for run in logged} == {
        "small-001": "RUNNING",
        "trial-0000": "FINISHED",
        "trial-0001": "FAILED",
        "trial-0002": "FAILED",
    }
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "FAIL", "FAIL"]
    errors = {name: (outcome.status, outcome.error) for name, outcome in read_outcomes(tmp_path).items()}
    assert errors == {
        "trial-0000": (COMPLETE, ""),
        "trial-0001": (FAILED, OUT_OF_TIME),
        "trial-0002": (FAILED, OUT_OF_TIME),
    }


def test_a_failure_of_a_stage_ends_the_search_in_order(tmp_path: Path):
    """The search stage has ended, and no trial of it is good enough for the next to begin."""
    search, confirm, _ = the_stages()
    engine = engine_of(tmp_path, search, confirm)
    engine.begin()
    for _ in range(4):
        trial = SimpleNamespace(config=engine.suggest("x"), num_failures=0, max_failures=3)
        engine.events.on_trial_start(0, [], trial)
        engine.events.on_trial_result(0, [], trial, {"error": "loss is nan"})
        engine.events.on_trial_complete(0, [], trial)
    stop = engine._place.stop
    assert not stop.stop_all()
    search._searcher._left = 0
    assert engine.suggest("x") == Searcher.FINISHED
    assert str(stop.failure) == "none of 4 trials came to its end: loss is nan"
    assert stop.stop_all()
