"""A search's page: what it says, that it needs nothing beside it, and that no name of a class is read as markup."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crh_tune.reporting.search_data import read_evidence, read_search
from crh_tune.reporting.search_report import report_search
from crh_tune.reporting.search_tables import leaderboard
from crh_tune.reporting.summary_text import best_single
from crh_tune.tuning.record import Outcome
from tests.reporting.made_search import SCRIPT, TRIALS, keep, make_search
from tests.whole_files import names_taken

FIGURES = (
    "importance", "parallel_coordinates", "contour", "history", "learning_curves", "rungs", "epochs", "retrieval",
    "classes", "centres", "codes",
)  # fmt: skip


@pytest.fixture(scope="module")
def written(searches: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[Path]]:
    """The page of a search that is finished, and the files that took their names once they were whole."""
    with names_taken() as taken:
        page = report_search(searches / "made-001", tmp_path_factory.mktemp("report"), lambda line: None)
    return page, taken


@pytest.fixture(scope="module")
def finished(written: tuple[Path, set[Path]]) -> Path:
    return written[0]


def test_every_file_of_a_report_takes_its_name_once_it_is_whole(written):
    page, taken = written
    files = {path for path in page.parent.rglob("*") if path.is_file()}
    assert {path.suffix for path in files} == {".html", ".png", ".svg", ".csv", ".tex"}
    assert files <= taken


def outside_scripts(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_a_search_is_read_as_it_was_left(searches):
    data = read_search(searches / "made-001")
    assert data.finished
    assert (data.winner, data.planned, len(data.trials), data.rungs) == ("trial-0001", TRIALS, TRIALS, [1, 2])
    assert [each.trial for each in data.confirmed] == ["trial-0001", "trial-0003", "trial-0000"]
    assert data.confirmed[0].mean == pytest.approx(0.8)
    assert data.confirmed_paper is data.confirmed[2]
    assert data.confirmed[0].curves[0] == pytest.approx({1: 0.49, 2: 0.59, 3: 0.69, 4: 0.79})
    assert data.trials[2].status == "pruned"
    assert data.trials[2].epoch == 2
    assert data.complete[0].name == "trial-0000"
    evidence = read_evidence(data)
    assert [model.label for model in evidence.models] == ["winner", "the paper's setting"]
    assert len(evidence.models[0].queries) == len(evidence.split.queries) == 32
    moved = evidence.models[0].first_centers
    assert moved is not None
    assert moved.shape == (4, 8)


def test_the_page_says_what_won_and_by_how_much(finished, searches):
    page = outside_scripts(finished.read_text())
    data = read_search(searches / "made-001")
    assert page.count('<div class="summary">') == 1
    assert "The search tried 14 settings of crh on features features.npz (4 classes, 128 training samples)" in page
    assert "(trial-0001); its mAP on the test set, evaluated once, is " in page
    assert f"{data.test['winner']:.4f}" in page
    assert "0.8000 ± 0.0141 (2)" in page
    assert "trial-0000 (the paper&#39;s setting) had the best single value, 0.9000, and did not win" in page
    assert "it is worth 0.7000 on average over 2 fresh seeds" in page
    assert "6 of 14 trials were stopped after epoch 1 or 2: 44 of 56 epochs were trained; " in page
    assert "stopping weak trials saved 21 %" in page
    assert "Dashed: what needs no training." in page
    assert "over PCA + ITQ" in page


def test_the_page_tells_the_gain_over_queries_from_that_over_seeds(finished):
    page = outside_scripts(finished.read_text())
    assert re.search(r"On test queries, one model of each, it .* \(95 % interval over queries ", page)
    fresh = "on average over fresh seeds, the difference is +0.100 (95 % interval over seeds +0.050 to +0.150)"
    assert f"In validation mAP, {fresh}" in page


def test_the_page_needs_nothing_beside_it_and_is_small(finished):
    page = outside_scripts(finished.read_text())
    assert finished.stat().st_size < 10_000_000
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "@import" not in page


def test_names_are_text_wherever_they_stand(finished):
    page = finished.read_text()
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "b &amp; c" in page


def test_figures_and_tables_lie_beside_the_page(finished):
    for name in FIGURES:
        assert (finished.parent / "figures" / f"{name}.png").stat().st_size > 3000
        assert (finished.parent / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    board = pd.read_csv(finished.parent / "tables" / "leaderboard.csv", keep_default_na=False)
    assert board["trial"].tolist()[:3] == ["trial-0001", "trial-0003", "trial-0000"]
    classes = pd.read_csv(finished.parent / "tables" / "classes_worst.csv")
    assert SCRIPT in set(classes["class"])
    assert r"\$x\textasciicircum 2\$" in (finished.parent / "tables" / "classes_worst.tex").read_text()


def test_the_numbers_are_those_of_the_final_run(finished, searches):
    table = pd.read_csv(finished.parent / "tables" / "retrieval.csv")
    data = read_search(searches / "made-001")
    assert table["mAP"][:2].tolist() == pytest.approx([data.test["winner"], data.test["paper"]], abs=1e-4)


def test_a_half_finished_search_has_a_page_with_pictures(searches, tmp_path):
    page = report_search(searches / "photos-001", tmp_path, lambda line: None).read_text()
    shown = outside_scripts(page)
    assert SCRIPT not in page
    assert "not finished: 14 of 14 trials have ended" in shown
    assert "nothing is confirmed or tested yet" in shown
    assert "--resume photos-001" in shown
    assert "Precision and recall" in shown
    assert "needs no training" not in shown  # photos that no network has seen have no baselines
    rows = shown.split('<div class="row">')[1:]
    assert rows
    assert all(row.count("data:image/jpeg;base64,") == 11 for row in rows)
    assert set(re.findall(r'<figure class="(\w+)"', shown)) == {"query", "right", "wrong"}


def test_frames_are_green_exactly_where_classes_are_equal(searches, tmp_path):
    shown = outside_scripts(report_search(searches / "photos-001", tmp_path, lambda line: None).read_text())
    rows = shown.split('<div class="row">')[1:]
    assert rows
    for row in rows:
        query, *found = re.findall(r'<figure class="(\w+)" title="([^"]*)"', row)
        assert query[0] == "query"
        assert [kind for kind, _ in found] == ["right" if title == query[1] else "wrong" for _, title in found]


def test_a_page_without_the_data_says_so_and_shows_the_search(searches, tmp_path):
    storage = tmp_path / "storage"
    shutil.copytree(searches / "made-001", storage / "made-001")
    for folder in (storage / "made-001" / "runs").iterdir():
        shutil.rmtree(folder)
    said: list[str] = []
    page = report_search(storage / "made-001", tmp_path / "out", said.append).read_text()
    assert said[1:] == ["Codes, classes and pictures are not shown: the checkpoint of final-best is gone"]
    assert said[1] in page
    assert "Leaderboard" in page
    assert "Where it fails" not in outside_scripts(page)


def test_a_search_that_has_just_begun_has_a_page(searches, tmp_path):
    folder = tmp_path / "new-001"
    folder.mkdir()
    shutil.copy(searches / "made-001" / "search.json", folder)
    page = outside_scripts(report_search(folder, tmp_path / "out", lambda line: None).read_text())
    assert "No trial has come to its end yet" in page
    assert "0 of 14 settings so far" in page


def test_an_outbox_cut_off_in_the_middle_is_read_up_to_there(searches, tmp_path):
    shutil.copytree(searches / "made-001", tmp_path / "made-001")
    outbox = tmp_path / "made-001" / "mlflow_outbox.jsonl"
    outbox.write_bytes(outbox.read_bytes()[:-20])
    assert np.isclose(read_search(tmp_path / "made-001").confirmed[0].curves[0][4], 0.79)


def test_a_best_trial_that_won_is_said_to_have_won(searches):
    data = read_search(searches / "made-001")
    object.__setattr__(data, "winner", "trial-0000")
    assert "and it won" in best_single(data)


def test_one_that_dropped_out_of_the_race_stands_below_those_that_stayed(searches, tmp_path):
    folder = tmp_path / "made-001"
    shutil.copytree(searches / "made-001", folder)
    settings = json.loads((folder / "outcomes" / "trial-0005.json").read_text())["settings"]
    keep(folder, Outcome("confirm-trial-0005-seed1", settings, "fixed", "complete", {"val/map": 0.99}))
    assert [each.trial for each in read_search(folder).confirmed] == [
        "trial-0001", "trial-0003", "trial-0000", "trial-0005",
    ]  # fmt: skip
    roles = leaderboard(read_search(folder), [])[""].tolist()
    assert roles == ["winner", "finalist", "the paper's setting", "dropped out"]
    (folder / "summary.json").unlink()  # before there is a winner, all may still be in the race
    assert read_search(folder).confirmed[0].trial == "trial-0005"


def test_what_is_measured_on_unseen_classes_stands_on_the_page(searches, tmp_path):
    folder = tmp_path / "made-001"
    shutil.copytree(searches / "made-001", folder)
    for seed, value in ((1, 0.2), (2, 0.3)):
        path = folder / "outcomes" / f"confirm-trial-0001-seed{seed}.json"
        content = json.loads(path.read_text())
        content["metrics"] |= {"val/map_unseen": value, "val/map_mixed": 0.4}
        path.write_text(json.dumps(content))
    path = folder / "outcomes" / "final-best.json"
    content = json.loads(path.read_text())
    content["metrics"] |= {"test/map_unseen": 0.125}
    path.write_text(json.dumps(content))
    page = outside_scripts(report_search(folder, tmp_path / "out", lambda line: None).read_text())
    assert "On classes that training has not seen" in page
    table = pd.read_csv(tmp_path / "out" / "tables" / "unseen.csv", index_col=0)
    [won] = table.to_dict("records")
    heads = ("validation: classes held out", "validation: all classes together", "test: classes held out")
    assert [won[head] for head in heads] == [0.25, 0.4, 0.125]


def test_a_report_takes_less_than_20_seconds(finished, searches, tmp_path):
    begun = time.process_time()
    report_search(searches / "again-001", tmp_path, lambda line: None)
    assert time.process_time() - begun < 20


def test_samples_of_several_labels_have_a_page(tmp_path, monkeypatch):
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))
    folder = make_search(tmp_path / "storage", {"name": "digit_sets", "images": 120, "queries": 24}, "sets")
    page = outside_scripts(report_search(folder, tmp_path / "out", lambda line: None).read_text())
    assert "Classes taken for each other" in page
    assert '<div class="row">' in page
