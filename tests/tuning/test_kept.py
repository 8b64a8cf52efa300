"""A search of version 0.1: a finished one opens and is exported, an unfinished one is refused where it has to be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from crh_tune.cli import main
from crh_tune.export import load_index
from crh_tune.settings.base import SettingsError
from crh_tune.tuning.record import read_outcomes, read_settings
from crh_tune.tuning.results import read_result
from crh_tune.tuning.searcher import SETTINGS, OptunaSearcher

KEPT = Path(__file__).parent / "kept"
"""Storage of version 0.1 with one small search; of its checkpoints, that of the winner's last run."""


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(KEPT, tmp_path / "runs")
    return tmp_path / "runs"


def test_a_finished_search_of_version_0_1_says_its_result_and_is_exported(ray_session, storage: Path, capsys):
    assert main(["search", "--resume", "kept-001", "--storage", str(storage)]) == 0
    said = capsys.readouterr().out
    summary = json.loads((KEPT / "kept-001" / "summary.json").read_text())
    assert f"test mAP         {summary['best_test']['metrics']['test/map']:.4f}" in said
    assert said.splitlines()[-1] == "finished"
    assert main(["export", "kept-001", "--storage", str(storage), "--to", str(storage / "export")]) == 0
    assert len(load_index(storage / "export").words) == 1347


def test_its_records_are_read_with_every_value_they_have():
    folder = KEPT / "kept-001"
    summary = json.loads((folder / "summary.json").read_text())
    result, outcomes = read_result(folder), read_outcomes(folder)
    for name in ("best", "paper"):
        assert vars(getattr(result, name)) == summary[name]
    for name in ("best_test", "paper_test"):
        assert vars(getattr(result, name)) == {"fingerprint": "", **summary[name]}  # which came later
    assert outcomes["final-best"] == result.best_test
    assert set(outcomes) == {path.stem for path in (folder / "outcomes").glob("*.json")}


def test_a_trial_whose_settings_this_version_does_not_know_is_refused_in_one_line():
    settings = read_settings(KEPT / "kept-001")
    study = optuna.create_study(direction="maximize")
    content = json.loads((KEPT / "kept-001" / "outcomes" / "trial-0000.json").read_text())["settings"]
    study.ask().set_user_attr(SETTINGS, {**content, "trial": {**content["trial"], "of_old": 1}})
    with pytest.raises(SettingsError, match=r"^trial-0000 was begun by another version: begin a new search: .*of_old"):
        OptunaSearcher(study, settings, 10, False, 2).propose()


def test_an_export_needs_neither_ray_nor_mlflow():
    code = "import sys, crh_tune.export.of_search; print(*sorted({'ray', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_finished_search_whose_settings_lack_what_came_later_is_reported_and_exported(storage: Path, capsys):
    for path in (storage / "kept-001" / "outcomes").glob("*.json"):
        content = json.loads(path.read_text())
        del content["settings"]["trial"]["betas"]
        path.write_text(json.dumps(content))
    summary = json.loads((storage / "kept-001" / "summary.json").read_text())
    for part in ("best", "paper", "best_test", "paper_test"):
        del summary[part]["settings"]["trial"]["betas"]
    (storage / "kept-001" / "summary.json").write_text(json.dumps(summary))
    assert main(["report", "kept-001", "--storage", str(storage)]) == 0
    assert "precision" in (storage / "reports" / "kept-001" / "report.html").read_text()
    assert main(["export", "kept-001", "--storage", str(storage), "--to", str(storage / "export")]) == 0
    assert len(load_index(storage / "export").words) == 1347
