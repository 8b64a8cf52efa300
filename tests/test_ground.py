"""A file is whole or as it was, whatever happens while it is written; an error is told in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from crh_tune.ground import first_line, write_json, write_whole


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, flushed = tmp_path / "kept.txt", []
    target.write_text("old")

    def fsync(number: int) -> None:
        flushed.append((os.fstat(number).st_size, target.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(target, lambda aside: aside.write_text("newer"))
    assert flushed == [(5, "old")]
    assert target.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path, error: BaseException):
    target = tmp_path / "kept.txt"
    target.write_text("old")

    def write(aside: Path) -> None:
        aside.write_text("ne")
        raise error

    with pytest.raises(type(error)):
        write_whole(target, write)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_comes_back(tmp_path: Path, indent: int | None):
    content = {"a": [1, 2.5, None], "é": "ü"}
    write_json(tmp_path / "a.json", content, indent)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("one\ntwo", "one"),
        ("", "ValueError"),
        ("\n  \nafter blank lines\r\nmore", "after blank lines"),
        ("  ", "ValueError"),
    ],
)
def test_the_first_line_of_an_error(said: str, line: str):
    assert first_line(ValueError(said)) == line
