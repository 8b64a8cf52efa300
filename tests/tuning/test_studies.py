"""A study runs what is missing, reports what is there, and goes on where it stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow import MlflowClient

from crh_tune.paper import report_lines, search_study
from crh_tune.settings.base import SettingsError
from crh_tune.settings.study import StudySettings
from crh_tune.tuning.record import read_outcomes
from crh_tune.tuning.studies import _row, study_runs

STUDY = {
    "name": "table2",
    "title": "A small study",
    "kind": "map",
    "datasets": {},
    "others": {"trial": {"epochs": 2, "evaluate_every": 2}, "bits": [16], "seeds": [0]},
    "cells": [{"row": "CRH", "method": "crh"}, {"row": "CRH-U", "method": "crh_u"}],
}


def run(study: dict, storage: Path) -> list[str]:
    said: list[str] = []
    search_study(StudySettings.model_validate(study), "digits", storage, said.append)
    return said


def test_a_study_is_resumed_and_reported_from_mlflow(ray_session, tmp_path: Path):
    with pytest.raises(SettingsError, match="no complete run of table2"):
        report_lines(StudySettings.model_validate(STUDY), tmp_path)
    half = {**STUDY, "cells": STUDY["cells"][:1]}
    assert "1 run, 0 there already, 1 to do" in run(half, tmp_path)[0]
    report = "\n".join(report_lines(StudySettings.model_validate(STUDY), tmp_path))
    assert "| CRH-U |  |" in report  # missing cells stay empty
    assert "2 runs, 1 there already, 1 to do" in run(STUDY, tmp_path)[0]
    assert "2 runs, 2 there already, 0 to do" in run(STUDY, tmp_path)[0]
    runs = study_runs("table2", tmp_path)
    assert sorted(runs["row"]) == ["CRH", "CRH-U"]
    assert runs["map"].between(0.1, 1).all()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("table2").experiment_id
    assert len(client.search_runs([experiment])) == 3  # two cells and their parent
    for gone in client.search_runs([experiment]):
        client.delete_run(gone.info.run_id)
    assert "2 runs, 0 there already, 2 to do" in run(STUDY, tmp_path)[0]  # not trained again, but told again
    assert study_runs("table2", tmp_path)["map"].tolist() == runs["map"].tolist()
    lines = "\n".join(report_lines(StudySettings.model_validate(STUDY), tmp_path))
    best = runs.set_index("row")["map"].idxmax()
    assert f"| {best} | **{100 * runs['map'].max():.2f}" in lines
    assert (tmp_path / "reports" / "table2" / "report.html").is_file()
    named = {**STUDY, "datasets": {"digits": STUDY["others"]}}  # as where it is given --data, or is one of the paper's
    assert "\n".join(report_lines(StudySettings.model_validate(named), tmp_path)) == lines


def test_what_another_study_has_trained_is_not_trained_again(ray_session, tmp_path: Path, monkeypatch):
    """Its row has the same numbers, and its own run in MLflow; other settings and other data are trained."""
    run(STUDY, tmp_path)
    copied: list[Path] = []
    copy = shutil.copytree
    monkeypatch.setattr(shutil, "copytree", lambda *paths: (copied.append(paths[1]), copy(*paths))[1])
    cells = [{"row": "ours", "method": "crh"}, {"row": "margin .3", "method": "crh", "margin": 0.3}]
    said = run({**STUDY, "name": "table3", "cells": cells}, tmp_path)
    assert said[0] == "study table3-digits: 2 runs, 0 there already, 2 to do, 1 of them trained by another study"
    assert [path.parent.parent for path in copied] == [tmp_path / "table3-digits" / "runs"]
    first, second = (study_runs(name, tmp_path).set_index("row") for name in ("table2", "table3"))
    assert second.loc["ours", "map"] == first.loc["CRH", "map"]
    seconds = {name: read_outcomes(tmp_path / f"{name}-digits") for name in ("table2", "table3")}
    of_crh = [each.metrics["seconds/training"] for each in seconds["table2"].values() if each.name.startswith("crh-")]
    assert sum(each.metrics["seconds/training"] in of_crh for each in seconds["table3"].values()) == 1
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("table3").experiment_id
    assert len(client.search_runs([experiment])) == 3  # two cells and their parent


def test_a_study_reserves_what_it_says_of_the_dataset(ray_session, tmp_path: Path):
    on_a_gpu = {**STUDY["others"], "scaling": {"gpus_per_worker": 1}}
    with pytest.raises(SettingsError, match=r"scaling\.gpus_per_worker: a trial needs 1 GPU"):
        run({**STUDY, "datasets": {"digits": on_a_gpu}}, tmp_path)


def test_runs_that_version_0_1_wrote_are_read_like_those_of_today():
    data = {"crh_tune.row": "CRH"}
    metrics = {"test/map": 0.5}
    then = {"dataset.name": "digits", "trial.bits": "16", "trial.seed": "3", "trial.update_interval": "5"}
    then |= {
        "trial.early_epochs": "15",
        "trial.codebook_size": "20",
        "trial.head_dim": "8",
        "trial.reassignment": "greedy",
    }
    now = {"dataset": "digits", "bits": "16", "seed": "3", "interval": "5", "early_epochs": "15", "M": "20", "d": "8"}
    now |= {"reassignment": "greedy"}
    rows = [
        _row(SimpleNamespace(data=SimpleNamespace(params=each, metrics=metrics, tags=data))) for each in (then, now)
    ]
    said = [{name: value for name, value in row.items() if not pd.isna(value)} for row in rows]
    assert said[0] == said[1]
    assert said[0] == {
        "row": "CRH", "dataset": "digits", "bits": 16, "seed": 3, "map": 0.5, "update_interval": 5.0,
        "early_epochs": 15.0, "codebook_size": 20.0, "head_dim": 8.0, "reassignment": "greedy",
    }  # fmt: skip
