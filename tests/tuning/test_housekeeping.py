"""What lies in a storage folder, and what is left of a search whose checkpoints were freed."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from crh_tune.export.of_search import export_search
from crh_tune.reporting.search_data import read_evidence, read_search
from crh_tune.settings.base import SettingsError
from crh_tune.tuning.housekeeping import clean, list_lines, list_searches, size_of
from crh_tune.tuning.record import held
from tests.reporting.conftest import searches

__all__ = ["searches"]


def test_searches_are_listed_with_state_best_and_size(searches):
    found = {each.name: each for each in list_searches(searches)}
    assert list(found) == ["again-001", "made-001", "photos-001"]
    assert found["made-001"].state == "finished"
    assert found["made-001"].best.startswith("val/map 0.8000, test/map ")
    assert found["photos-001"].state == "stopped, 14 of 14 trials"
    assert found["photos-001"].best == "val/map 0.9000 (trial-0000)"
    assert found["made-001"].size == sum(p.stat().st_size for p in (searches / "made-001").rglob("*") if p.is_file())
    with held(searches / "photos-001"):
        assert list_searches(searches)[2].state == "running, 14 of 14 trials"


def test_a_search_that_cannot_be_read_is_listed_with_the_reason(searches, tmp_path):
    (tmp_path / "broken-001").mkdir()
    (tmp_path / "broken-001" / "search.json").write_text("{")
    shutil.copytree(searches / "made-001", tmp_path / "made-001")
    (tmp_path / "made-001" / "summary.json").write_text("{")
    states = [each.state for each in list_searches(tmp_path)]
    assert all(state.startswith("not readable: ") for state in states)
    assert list_lines(tmp_path / "nothing") == [f"no search in {tmp_path / 'nothing'}"]


def test_a_folder_that_goes_while_sizes_are_taken_counts_as_nothing(tmp_path, monkeypatch):
    """A search beside it removes a checkpoint after every epoch."""
    for name in ("checkpoint_1", "checkpoint_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.pt").write_text("12345")
    (tmp_path / "link").symlink_to(tmp_path / "checkpoint_2" / "checkpoint.pt")
    listed = os.scandir

    def late(path):
        if str(path).endswith("checkpoint_1"):
            (tmp_path / "checkpoint_1").rename(tmp_path.parent / "gone")
        return listed(path)

    assert size_of(tmp_path) == 10
    monkeypatch.setattr(os, "scandir", late)
    assert size_of(tmp_path) == 5


def test_whoever_looks_whether_a_folder_is_held_stops_nobody_from_holding_it(tmp_path, monkeypatch):
    with held(tmp_path), pytest.raises(SettingsError, match="is being run by another process"), held(tmp_path):
        pytest.fail("held twice")
    with (tmp_path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("crh_tune.tuning.record.time.sleep", lambda seconds: looking.close())
        with held(tmp_path):
            assert looking.closed


def test_a_cleaned_search_is_smaller_and_exports_the_same(searches, tmp_path):
    shutil.copytree(searches / "made-001", tmp_path / "made-001")
    (tmp_path / "made-001" / "tune").mkdir()
    (tmp_path / "made-001" / "tune" / "state.json").write_text("{}")
    export_search(tmp_path / "made-001", tmp_path / "before")
    before = size_of(tmp_path / "made-001")
    said = clean(tmp_path, "made-001")
    assert size_of(tmp_path / "made-001") < before / 2
    assert said[0].startswith("freed ")
    assert "final-best, final-paper" in said[1]
    runs = tmp_path / "made-001" / "runs"
    assert sorted(str(path.relative_to(runs)) for path in runs.glob("*/*")) == [
        "final-best/checkpoint_000004",
        "final-paper/checkpoint_000004",
    ]
    export_search(tmp_path / "made-001", tmp_path / "after")
    for name in ("encoder.pt", "index.npz", "centers.npy"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    assert clean(tmp_path, "made-001")[0].startswith("freed        0.0 MB")


def test_the_winner_of_trials_that_were_added_is_kept_and_shown(searches, tmp_path):
    """Its test has a name of its own, beside that of the winner before it."""
    folder = tmp_path / "made-001"
    shutil.copytree(searches / "made-001", folder)
    before = read_evidence(read_search(folder)).models
    for part in ("runs/{}", "outcomes/{}.json"):
        (folder / part.format("final-best")).rename(folder / part.format("final-best-2"))
    for path in (folder / "summary.json", folder / "outcomes" / "final-best-2.json"):
        path.write_text(path.read_text().replace('"final-best"', '"final-best-2"'))
    clean(tmp_path, "made-001")
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["final-best-2", "final-paper"]
    after = read_evidence(read_search(folder)).models
    assert [model.label for model in after] == [model.label for model in before]


def test_only_a_search_that_has_ended_and_rests_is_cleaned(searches, tmp_path):
    with pytest.raises(SettingsError, match="photos-001 has not ended, and needs its checkpoints"):
        clean(searches, "photos-001")
    shutil.copytree(searches / "made-001", tmp_path / "made-001")
    with held(tmp_path / "made-001"), pytest.raises(SettingsError, match="being run by another process"):
        clean(tmp_path, "made-001")
    assert size_of(tmp_path / "made-001") == size_of(searches / "made-001")
    with pytest.raises(SettingsError, match="no search"):
        clean(Path(tmp_path), "..")
