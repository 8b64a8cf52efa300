"""Searches side by side: an interval where they share test queries, a reason where they do not."""

from __future__ import annotations

import json
import shutil

import pytest

from crh_tune.reporting.compare import compare_lines
from crh_tune.reporting.search_data import read_evidence, read_search
from crh_tune.retrieval.average_precision import RankingProtocol, average_precisions
from crh_tune.settings.base import SettingsError


def test_two_searches_on_the_same_queries_have_a_paired_interval(searches, tmp_path):
    shutil.copytree(searches / "made-001", tmp_path / "made-001")
    shutil.copytree(searches / "again-001", tmp_path / "again-001")
    for part in ("outcomes/final-best.json",):  # another winner: the paper's setting
        content = json.loads((tmp_path / "again-001" / part.replace("best", "paper")).read_text())
        (tmp_path / "again-001" / part).write_text(json.dumps({**content, "name": "final-best"}))
    shutil.rmtree(tmp_path / "again-001" / "runs" / "final-best")
    shutil.copytree(tmp_path / "again-001" / "runs" / "final-paper", tmp_path / "again-001" / "runs" / "final-best")
    lines = compare_lines(tmp_path, ["made-001", "again-001"])
    values = []
    for name in ("made-001", "again-001"):
        model = read_evidence(read_search(tmp_path / name)).models[0]
        values.append(average_precisions(model.queries, model.database, RankingProtocol()))
    difference = float((values[0] - values[1]).mean())
    assert difference != 0
    assert lines[-1].startswith(f"made-001 over again-001: {difference:+.4f} (")
    assert "on 32 shared queries, 95 % interval" in lines[-1]
    assert [line.split()[0] for line in lines[:3]] == ["search", "made-001", "again-001"]


def test_what_cannot_be_compared_says_why(searches):
    assert compare_lines(searches, ["made-001", "photos-001"])[-1] == (
        "made-001 over photos-001: not compared: photos-001: it has not tested its winner yet"
    )
    for names in (["made-001"], ["made-001", "made-001"]):
        with pytest.raises(SettingsError, match="name two searches or more, each once"):
            compare_lines(searches, names)
    with pytest.raises(SettingsError, match="no search 'other'"):
        compare_lines(searches, ["made-001", "other"])
