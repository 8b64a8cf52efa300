"""The commands that look back at searches: what they print, what they leave, and one clear line for a mistake."""

from __future__ import annotations

import shutil

import pytest

from crh_tune.cli import main
from tests.reporting.conftest import searches

__all__ = ["searches"]


def test_a_search_is_listed_reported_compared_and_cleaned(searches, tmp_path, capsys):
    storage = tmp_path / "storage"
    shutil.copytree(searches, storage)

    def said(*arguments: str) -> list[str]:
        assert main([*arguments, "--storage", str(storage)]) == 0
        return capsys.readouterr().out.splitlines()

    listed = said("list")
    assert [line.split()[0] for line in listed] == ["search", "again-001", "made-001", "photos-001"]
    assert said("compare", "made-001", "again-001")[-1].startswith("made-001 over again-001: +0.0000")
    assert said("clean", "made-001")[0].startswith("freed ")
    page = storage / "reports" / "made-001" / "report.html"
    assert said("report", "made-001")[-2] == f"report   {page}"
    assert "Where it fails" in page.read_text()  # what was cleaned away is not needed
    assert [line.split()[0] for line in said("list")] == ["search", "again-001", "made-001", "photos-001"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["report", "nothing"],
            "no search 'nothing' in {} (there is again-001, made-001, photos-001), and unknown ",
        ),
        (
            ["report", "digit_pairs"],
            "digit_pairs is a search space: name a search that was run with it (there is ",
        ),
        (["report", "../x"], "no search '../x' in "),
        (["compare", "made-001"], "name two searches or more, each once"),
        (["compare", "made-001", "other"], "no search 'other' in "),
        (["clean", "photos-001"], "photos-001 has not ended, and needs its checkpoints to resume"),
        (["clean", "other"], "no search 'other' in "),
    ],
)
def test_a_mistake_is_one_line(searches, arguments, expected, capsys):
    assert main([*arguments, "--storage", str(searches)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert expected.format(searches) in lines[0]
