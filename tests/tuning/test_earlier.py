"""What a search takes from finished ones in its storage, and from which of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from crh_tune.data.splits import Samples, Split
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.earlier import EARLIER, known_before, tell_earlier
from crh_tune.tuning.proposals import enqueue
from crh_tune.tuning.record import (
    COMPLETE,
    OUTCOMES_FOLDER,
    PRUNED,
    SUMMARY_FILE,
    Outcome,
    new_folder,
    read_outcomes,
    same_splits,
    write_outcome,
    write_record,
)
from crh_tune.tuning.results import Candidate, SearchResult, read_result
from crh_tune.tuning.schedulers import Asha, scheduler_of
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.study import sampler_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
BASE = {
    "name": "s",
    "dataset": {"name": "digit_pairs"},
    "trial": {"bits": 16, "epochs": 8},
    "search": {
        "codebook_ratio": {"choice": [1, 2, 4]},
        "head_dim": {"feasible": True},
        "margin": {"uniform": [0.0, 0.5]},
        "quantization_weight": {"log_uniform": [0.01, 2.0]},
    },
    "scheduler": {"asha": {"grace_epochs": 2, "reduction": 2}},
    "budget": {"trials": 12},
}
LATER = {"start_from": ["paper", "earlier"]}
ONE = Samples(np.zeros((1, 2)), np.zeros(1, dtype=np.int64))
SPLIT = Split("search", tuple(map(str, range(100))), ONE, ONE, None, None)


def space(**changes: Any) -> SearchSettings:
    return SearchSettings.model_validate({**BASE, **changes})


def finished(storage: Path, number: int, fingerprint: str = SPLIT.fingerprint, **changes: Any) -> Path:
    """A search of random settings that has ended: those of more margin were better, every third was stopped."""
    settings = space(sampler="random", seed=number, **changes)
    folder = new_folder(storage, settings)
    same_splits(folder, {"search": fingerprint, "final": "whole"})
    study = optuna.create_study(direction="maximize", sampler=sampler_of(settings, number))
    enqueue(study, settings, 100, False)
    searcher = OptunaSearcher(study, settings, 100, False, settings.trials)
    for count, run in enumerate(iter(searcher.propose, None)):
        stopped = count % 3 == 2
        metrics = {"epoch": 2.0 if stopped else 8.0, "val/map": run.settings.trial.margin or 0.0}
        outcome = Outcome(run.name, run.settings.model_dump(mode="json"), run.start, metrics=metrics)
        outcome.status = PRUNED if stopped else COMPLETE
        searcher.tell(outcome)
        write_outcome(folder, outcome)
    ended = [each for each in read_outcomes(folder).values() if each.status == COMPLETE]
    won = max(ended, key=lambda each: each.metrics["val/map"])
    best, paper = (Candidate(each.name, each.settings, [0.5]) for each in (won, ended[0]))
    write_record(folder / SUMMARY_FILE, SearchResult(folder.name, folder, "", best, paper, won, won, "finished"))
    os.utime(folder / SUMMARY_FILE, (number, number))  # the order they ended in
    return folder


def margins(folder: Path, status: str = "") -> list[float]:
    outcomes = read_outcomes(folder).values()
    return sorted(each.settings["trial"]["margin"] for each in outcomes if status in ("", each.status))


def test_a_search_that_is_gone_on_with_just_now_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = finished(tmp_path, 1), finished(tmp_path, 2)

    def and_gone_on_with(folder: Path) -> SearchResult:
        result = read_result(folder)
        if folder == second:
            (second / SUMMARY_FILE).unlink()
        return result

    monkeypatch.setattr("crh_tune.tuning.earlier.read_result", and_gone_on_with)
    assert known_before(new_folder(tmp_path, space(**LATER)), space(**LATER), SPLIT, print).searches == [first.name]


def begin(storage: Path, settings: SearchSettings, folder: Path | None = None, said: list[str] | None = None):
    """A search as it begins in this storage, or as it is resumed; its folder, its study, and its searcher."""
    folder = folder or new_folder(storage, settings)
    say = (said if said is not None else []).append
    study = optuna.create_study(
        study_name="s",
        storage=f"sqlite:///{folder / 'optuna.db'}",
        direction="maximize",
        sampler=sampler_of(settings, 0),
        load_if_exists=True,
    )
    earlier = known_before(folder, settings, SPLIT, say)
    tell_earlier(study, settings, earlier.trials, 100)
    enqueue(study, settings, 100, False, earlier.starts)
    return folder, study, OptunaSearcher(study, settings, 100, False, settings.trials)


def test_winners_come_first_after_the_paper_and_trials_are_known_to_the_sampler_alone(tmp_path: Path):
    first, second = finished(tmp_path, 1), finished(tmp_path, 2)
    said: list[str] = []
    settings = space(**LATER)
    _, study, searcher = begin(tmp_path, settings, said=said)
    runs = [searcher.propose() for _ in range(3)]
    assert [run.start for run in runs if run] == ["paper", "earlier", "earlier"]
    best = [max(margins(folder, COMPLETE)) for folder in (second, first)]
    assert [run.settings.trial.margin for run in runs if run] == [0.2, *best]
    known = [trial for trial in study.get_trials() if EARLIER in trial.user_attrs]
    others = [each for folder in (first, second) for each in margins(folder) if each not in (0.2, *best)]
    assert sorted(trial.params["margin"] for trial in known) == pytest.approx(sorted(others))
    assert len(known) == 2 * 12 - 2 - 2
    assert said == [f"starts from s-002, s-001: tries 2 of their winners first, and knows {len(known)} of their trials"]
    for trial in known:
        complete = trial.state == optuna.trial.TrialState.COMPLETE
        assert trial.intermediate_values == {8 if complete else 2: trial.params["margin"]}
        assert trial.value == (trial.params["margin"] if complete else None)
    scheduler = scheduler_of(settings, study)
    assert isinstance(scheduler, Asha)
    assert not any(rung for _, rung in scheduler._brackets[0]._rungs)
    assert searcher.total == 12  # all its trials are its own
    late = [run.settings.trial.margin for run in iter(searcher.propose, None)]
    assert len(late) == 9
    assert sum(late) / 9 > 0.3  # of .25 in the mean, were they drawn by chance as without anything known


def test_what_a_search_knew_stays_when_it_is_resumed_whatever_has_ended_since(tmp_path: Path):
    finished(tmp_path, 1)
    settings = space(**LATER)
    folder, study, searcher = begin(tmp_path, settings)
    begun = [searcher.propose() for _ in range(2)]
    before = study.get_trials()
    finished(tmp_path, 3)
    _, again, resumed = begin(tmp_path, settings, folder)
    assert [trial.params for trial in again.get_trials()] == [trial.params for trial in before]
    assert [resumed.propose() for _ in range(2)] == begun


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "crh_m"},
        {"dataset": {"name": "digit_pairs", "images_per_class": 5}},
        {"evaluation": {"cutoff": 10}},
        {"fingerprint": "another"},
    ],
)
def test_a_search_of_other_data_method_or_protocol_is_not_looked_at(tmp_path: Path, changes):
    finished(tmp_path, 1, **changes)
    (finished(tmp_path, 2) / SUMMARY_FILE).unlink()  # nor one that has not ended
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / SUMMARY_FILE).write_text("{}")  # nor one of another version
    said: list[str] = []
    _, study, searcher = begin(tmp_path, space(**LATER), said=said)
    assert len(study.get_trials()) == 1
    assert said == [
        "starts from nothing earlier: no finished search in this storage has the same data, method and protocol"
    ]
    assert searcher.propose().start == "paper"


def test_an_earlier_search_whose_runs_this_version_cannot_read_is_left_out(tmp_path: Path):
    first, second = finished(tmp_path, 1), finished(tmp_path, 2)
    broken = next((second / OUTCOMES_FOLDER).glob("*.json"))
    broken.write_text('{"name": "trial-0000", "gone": 1}')
    said: list[str] = []
    begin(tmp_path, space(**LATER), said=said)
    assert len(said) == 1
    assert said[0].startswith(f"starts from {first.name}: ")


def test_trials_of_other_epochs_are_not_known_but_the_winner_is_tried(tmp_path: Path):
    """And what the space cannot draw is neither."""
    finished(tmp_path, 1, trial={"bits": 16, "epochs": 16})
    _, study, searcher = begin(tmp_path, space(**LATER))
    assert not any(EARLIER in trial.user_attrs for trial in study.get_trials())
    assert [searcher.propose().start for _ in range(2)] == ["paper", "earlier"]
    narrow = {**BASE["search"], "margin": {"uniform": [0.0, 0.1]}}
    _, _, searcher = begin(tmp_path, space(search=narrow, **LATER))
    assert [searcher.propose().start for _ in range(2)] == ["paper", "drawn"]


def test_trials_that_came_to_another_end_are_not_known_but_the_winner_is_tried(tmp_path: Path):
    """A value after 2 epochs says something else than one after 8."""
    finished(tmp_path, 1, scheduler={"short": {"epochs": 2}})
    _, study, searcher = begin(tmp_path, space(**LATER))
    assert not any(EARLIER in trial.user_attrs for trial in study.get_trials())
    assert [searcher.propose().start for _ in range(2)] == ["paper", "earlier"]


@pytest.mark.parametrize("trial", [{"bits": 8, "epochs": 8}, {"bits": 16, "open_bits": 8, "epochs": 8}])
def test_a_winner_with_more_codewords_than_shorter_codes_have_is_left_out(tmp_path: Path, trial):
    finished(tmp_path, 1, search={**BASE["search"], "codebook_ratio": {"choice": [4]}}, trial={"bits": 32, "epochs": 8})
    said: list[str] = []
    shorter = {**BASE["search"], "codebook_ratio": {"choice": [1, 2]}}
    _, _, searcher = begin(tmp_path, space(search=shorter, trial=trial, **LATER), said=said)
    assert said == ["starts from s-001: tries 0 of their winners first, and knows 0 of their trials"]
    assert [searcher.propose().start for _ in range(2)] == ["paper", "drawn"]
