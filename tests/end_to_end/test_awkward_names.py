"""Names as people give them, and as nobody should: they work, or one line says which is meant and what is wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import optuna
import pytest
from mlflow import MlflowClient
from PIL import Image
from pydantic import ValidationError

from crh_tune.cli import main
from crh_tune.data.datasets import open_dataset
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.study import StudySettings
from crh_tune.settings.trial import TrialSettings, read_trial, write_trial
from crh_tune.tuning.record import find_folder, make_storage, new_folder, read_settings
from crh_tune.tuning.tracking import Tracker, default_tracking_uri

NOT_UTF8 = os.fsdecode(b"\xff")
AWKWARD = {
    "a space": "a b",
    "spaces at its ends": " a ",
    "a slash": "a/b",
    "above": "../a",
    "quotes": "'a' \"b\" `c`",
    "a backslash": "a\\b",
    "an emoji": "🦊 ünï",
    "a line break": "a\nb\rc",
    "escape codes": "\x1b[31m",
    "no UTF-8": NOT_UTF8,
    "patterns": "%s {a} $HOME *[a]?",
    "a comma and a colon": "a,b:c",
    "an option": "-x",
    "300 characters": "a" * 300,
}
awkward = pytest.mark.parametrize("name", AWKWARD.values(), ids=AWKWARD)
GOOD = ("a" * 64, "v1.0_final-2", "0", "x..")


def space(name: object, path: Path | None = None) -> SearchSettings:
    dataset = {"name": "folder", "path": str(path)} if path else {"name": "digits"}
    content = {"name": name, "dataset": dataset, "search": {"margin": {"uniform": [0, 0.5]}}}
    return SearchSettings.model_validate(content)


@pytest.mark.parametrize("name", [*AWKWARD.values(), "", ".", "..", ".a", "_a", "a" * 65, "é", "a\n", "a\0", 7, None])
def test_other_names_of_searches_and_studies_are_refused(name):
    with pytest.raises(ValidationError, match="name"):
        space(name)
    with pytest.raises(ValidationError, match="name"):
        StudySettings.model_validate({"name": name, "title": "", "kind": "map", "datasets": {}, "others": {}})


def test_a_search_of_any_allowed_name_is_kept_told_and_found_in_a_folder_of_any_name(tmp_path: Path):
    storage = tmp_path / "my 'runs' \"#1\" 🦊; 50% & $HOME *[a]\\b"
    make_storage(storage)
    uri = default_tracking_uri(storage)
    for name in GOOD:
        settings = space(name)
        folders = [new_folder(storage, settings) for _ in range(2)]
        assert [folder.name for folder in folders] == [f"{name}-001", f"{name}-002"]
        found = find_folder(storage, f"{name}-002")
        assert (found, read_settings(found)) == (folders[1], settings)
        (found / "a file.txt").write_text("here")
        for _ in range(2):
            tracker = Tracker(uri, name, storage, found)
            tracker.start_run(found.name, found.name)
            tracker.start_run(f"{found.name}/trial-0000", "trial-0000", found.name)
            tracker.artifact(found.name, found / "a file.txt")
            assert tracker.drain(60) == 0
        client = MlflowClient(uri)
        runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        assert {run.data.tags["crh_tune.run"] for run in runs} == {found.name, "trial-0000"}
        assert len(runs) == 2
        [parent] = [run for run in runs if run.data.tags["crh_tune.run"] == found.name]
        assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["a file.txt"]
        optuna.create_study(study_name=found.name, storage=f"sqlite:///{found / 'optuna.db'}")
        assert (found / "optuna.db").is_file()
    assert {"mlflow.db", "mlflow_artifacts"} <= {path.name for path in storage.iterdir()}


@pytest.mark.parametrize("name", ["what?", "100%20", "a{b", "{}", "a" * 300, NOT_UTF8, "file", "file/below"])
def test_a_storage_folder_that_cannot_be_used_is_refused(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"^--storage: ") as caught:
        make_storage(tmp_path / name)
    assert str(tmp_path) in str(caught.value)


@awkward
@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "--resume=NAME", "--storage=."],
        ["search", "--storage=.", "--", "NAME"],
        ["search", "--storage=.", "--", "NAME.yaml"],
        ["search", "--dataset=NAME", "--storage=."],
        ["search", "--data=NAME", "--storage=.", "photos"],
        ["search", "--data=NAME", "--storage=.", "features"],
        ["sync", "--storage=.", "--", "NAME"],
        ["export", "--storage=.", "--", "NAME"],
        ["report", "--storage=.", "--", "NAME"],
        ["train", "--", "NAME"],
        ["data", "check", "--", "NAME"],
        ["data", "check", "--dataset=NAME", "."],
    ],
    ids=lambda arguments: " ".join(arguments).replace("/", "_"),
)
def test_a_name_of_nothing_that_is_there_is_one_line(name, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("NAME", name) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"crh-tune {arguments[0]}: ")


def test_the_name_of_a_search_is_no_path(tmp_path: Path):
    folder = new_folder(tmp_path, space("there"))
    (tmp_path / "below").mkdir()
    for name in ("below/../there-001", f"../{tmp_path.name}/there-001", str(tmp_path / "below" / "there-001"), "."):
        with pytest.raises(SettingsError, match="there is there-001"):
            find_folder(tmp_path, name)
    assert find_folder(tmp_path, "there-001/") == folder


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8, 3), shade, dtype=np.uint8)
    pixels[0] += 9  # an image of a single value would be named
    Image.fromarray(pixels).save(path, "PNG")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))


@awkward
@pytest.mark.parametrize("where", ["root", "class", "file"])
def test_photos_of_any_name_are_checked_and_opened_or_named(name, where, tmp_path, capsys):
    """A slash makes a folder more; what a file system cannot hold needs no test."""
    name = name.removeprefix("../")[:200]
    root = tmp_path / (name if where == "root" else "photos")
    classes = ("other", name if where == "class" else "class")
    for shade, (part, label) in enumerate((part, label) for part in ("train", "test") for label in classes):
        for number in range(2):
            deeper = "/" in name and number == 1  # a class of folders only would be taken for a folder too many
            own = name if where == "file" and not deeper else ""
            picture(root / part / label / f"{own}{number}.png", 60 * shade + number)
    code = main(["data", "check", "--", str(root)])
    out, err = capsys.readouterr()
    problems = [line for line in out.splitlines() if line.startswith("  ")]
    lines = [line.split()[0] for line in out.splitlines() if line not in problems]
    noted = ["note"] * (where == "class" and "/" in name)  # of a class of folders
    assert lines == ["dataset", "classes", "train", "queries", "sizes", *noted, "duplicates", "reference", "problems"]
    if NOT_UTF8 in name:
        assert code == 2
        assert len(problems) == (4 if where == "class" else 8)
        assert all("\\udcff" in line and line.endswith("has a name that is not UTF-8: rename it") for line in problems)
        assert "problems: mend the files that are named above" in err.splitlines()[-1]
        return
    assert (code, problems) == (0, [])
    dataset = open_dataset("folder", {"path": str(root), "size": 8})
    assert (len(dataset.train), len(dataset.queries)) == (4, 4)
    expected = name.split("/")[0] if where == "class" else "class"
    assert dataset.class_names == tuple(sorted(("other", expected)))


@awkward
def test_the_path_of_data_is_kept_as_it_is_in_a_searchs_folder_and_in_an_export(name, tmp_path):
    path = tmp_path / name
    settings = space("kept", path)
    assert read_settings(new_folder(tmp_path, settings)) == settings
    trial = TrialSettings(dataset=settings.dataset)
    write_trial(trial, tmp_path / "settings.yaml")
    read = read_trial(tmp_path / "settings.yaml")
    assert read == trial
    assert read.dataset.options["path"] == str(path)


@awkward
def test_lists_of_photos_of_any_name_are_opened(name, tmp_path):
    """Blanks at the ends of a line and line breaks belong to the list; a backslash is a slash, a comma parts labels."""
    name = " ".join(name.split()).removeprefix("../").replace("\\", "/")[:200]
    if NOT_UTF8 in name:
        (tmp_path / "train.txt").write_bytes(b"\xff.png a\n")
        (tmp_path / "test.txt").write_text("b.png a\n")
        with pytest.raises(ValueError, match=r"train\.txt:1: is not UTF-8 text: save the file as UTF-8"):
            open_dataset("lists", {"path": str(tmp_path)})
        return
    rows = {part: [f"{name}{part}{number}.png" for number in range(2)] for part in ("train", "test")}
    for part, paths in rows.items():
        for shade, path in enumerate(paths):
            picture(tmp_path / path, 50 * shade + len(part))
        (tmp_path / f"{part}.txt").write_text(f"{paths[0]}\tclass {name}\n{paths[1]}\tother\n")
    dataset = open_dataset("lists", {"path": str(tmp_path), "size": 8})
    labels = {label.strip() for label in re.split("[,;|]", f"class {name}")}
    assert dataset.class_names == tuple(sorted({*labels, "other"}))
    assert (len(dataset.train), len(dataset.queries)) == (2, 2)


def test_a_path_that_is_no_utf8_does_not_hold_up_what_mlflow_is_told(tmp_path: Path):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "paths", tmp_path, tmp_path)
    tracker.start_run("a", "a")
    tracker.params("a", {"dataset.path": f"/data/{NOT_UTF8}/🦊.npz"})
    tracker.tags("a", {"crh_tune.error": f"no such file: {NOT_UTF8}"})
    tracker.artifact("a", tmp_path / NOT_UTF8)
    tracker.end_run("a", "FAILED")
    assert tracker.drain(60) == 0
    client = MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("paths").experiment_id])
    assert run.data.params == {"dataset.path": "/data/?/🦊.npz"}
    assert run.data.tags["crh_tune.error"] == "no such file: ?"
    assert run.info.status == "FAILED"
