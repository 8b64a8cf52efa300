"""Reports: whole in one file, free of scripts, and true to hostile text."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pandas as pd
import pytest

from crh_tune.reporting.report import Section, write_report
from crh_tune.reporting.tables import study_table
from tests.reporting.conftest import a_run
from tests.whole_files import names_taken

HOSTILE = '</title><script>alert("x")</script> & <img src=http://x/y onerror=z>'


class Page(HTMLParser):
    """Tags with attributes, and the text without the style sheet."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture
def figure(tmp_path):
    path = tmp_path / "plots" / "figure2 a.png"
    path.parent.mkdir()
    path.write_bytes(b"\x89PNG bytes")
    return path


def test_the_page_holds_tables_and_pictures_and_no_script(tmp_path, figure, ablation):
    table = study_table("table2", ablation, ["CRH", "CRH-M"], ["stanford_cars"], [16], "map")
    sections = [Section("Results", ["First.", "Second > third."], table, [figure, figure.with_suffix(".svg")])]
    with names_taken() as taken:
        markdown, page = write_report("table2", "Ablation", sections, tmp_path / "report")
    assert taken == {markdown, page}  # each once it was whole
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    assert found.open == []
    assert "script" not in {tag for tag, _ in found.tags}
    (image,) = [attributes for tag, attributes in found.tags if tag == "img"]
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == figure.read_bytes()
    assert "http" not in text
    assert "82.00 ± 1.00" in found.text
    assert "Second > third." in found.text
    lines = markdown.read_text(encoding="utf-8").splitlines()
    assert lines[:5] == ["# Ablation", "", "Study: table2", "", "## Results"]
    assert "| CRH | **82.00 ± 1.00** (pub. 87.31) |" in lines
    assert "![figure2 a](../plots/figure2%20a.png)" in lines
    assert "[figure2 a as SVG](../plots/figure2%20a.svg)" in lines


def test_hostile_text_stays_text(tmp_path):
    table = study_table("none", pd.DataFrame([a_run(HOSTILE, 0.5, dataset=HOSTILE)]), [HOSTILE], [HOSTILE], [16], "map")
    path = tmp_path / '"><script>.png'
    path.write_bytes(b"x")
    markdown, page = write_report(HOSTILE, HOSTILE, [Section(HOSTILE, [HOSTILE], table, [path])], tmp_path)
    found = Page(page.read_text(encoding="utf-8"))
    assert found.open == []
    assert "script" not in {tag for tag, _ in found.tags}
    assert all("onerror" not in attributes for _, attributes in found.tags)
    assert found.text.count(HOSTILE) == 7  # title, heading, study, section, line, row, dataset
    assert "<" not in markdown.read_text(encoding="utf-8")


def test_markdown_lines_do_not_become_headings_or_lists(tmp_path):
    markdown, _ = write_report("s", "t", [Section("x", ["# no heading", "- no item", "a\nb"])], tmp_path)
    assert markdown.read_text(encoding="utf-8").splitlines()[6:] == ["\\# no heading", "", "\\- no item", "", "a b"]


def test_other_figures_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="neither PNG nor SVG"):
        write_report("s", "t", [Section("x", figures=[tmp_path / "a.pdf"])], tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        write_report("s", "t", [Section("x", figures=[tmp_path / "none.png"])], tmp_path / "out")
    assert not (tmp_path / "out").exists()
