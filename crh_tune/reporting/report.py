"""The report of a study: report.md, and report.html in one file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from crh_tune.ground import write_text
from crh_tune.reporting.tables import escape_markdown, table_caption, to_html, to_markdown

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #ccc; padding: .3rem .6rem; text-align: right; white-space: nowrap; }
thead th { text-align: center; background: #f3f3f3; }
tbody th { text-align: left; }
small, figcaption, .caption { color: #666; }
figure { margin: 1rem 0; }
img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Section:
    """A part of a report: ``text``, a paragraph a line; a table of ``study_table``; PNG and SVG files."""

    title: str
    text: Sequence[str] = ()
    table: pd.DataFrame | None = None
    figures: Sequence[Path] = ()


def write_report(study: str, title: str, sections: list[Section], folder: Path) -> tuple[Path, Path]:
    """Write report.md and report.html into ``folder`` (made where missing) and return their paths.

    The Markdown file links the figures relative to ``folder``; the HTML file carries the PNGs and leaves SVGs out. All
    text is shown as it is, never read as markup. Raises ValueError for a figure that is neither PNG nor SVG,
    OSError for one that cannot be read.
    """
    for figure in (figure for section in sections for figure in section.figures):
        if figure.suffix not in (".png", ".svg"):
            raise ValueError(f"{figure} is neither PNG nor SVG")
    texts = {
        folder / "report.md": "\n\n".join(_markdown(study, title, sections, folder)) + "\n",
        folder / "report.html": "\n".join(_html(study, title, sections)) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_text(path, text)
    return folder / "report.md", folder / "report.html"


def _markdown(study: str, title: str, sections: list[Section], folder: Path) -> Iterator[str]:
    yield f"# {escape_markdown(title)}"
    yield f"Study: {escape_markdown(study)}"
    for section in sections:
        yield f"## {escape_markdown(section.title)}"
        yield from map(escape_markdown, section.text)
        if section.table is not None:
            yield to_markdown(section.table).rstrip("\n")
            yield table_caption(section.table)
        for figure in section.figures:
            link = quote(Path(os.path.relpath(figure, folder)).as_posix())
            name = escape_markdown(figure.stem)
            yield f"![{name}]({link})" if figure.suffix == ".png" else f"[{name} as SVG]({link})"


def _html(study: str, title: str, sections: list[Section]) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    yield f'<h1>{html.escape(title)}</h1>\n<p class="caption">Study: {html.escape(study)}</p>'
    for section in sections:
        yield f"<h2>{html.escape(section.title)}</h2>"
        yield from (f"<p>{html.escape(line)}</p>" for line in section.text)
        if section.table is not None:
            yield to_html(section.table)
            yield f'<p class="caption">{html.escape(table_caption(section.table))}</p>'
        for figure in section.figures:
            if figure.suffix == ".png":
                data, name = base64.b64encode(figure.read_bytes()).decode("ascii"), html.escape(figure.stem)
                image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
                yield f"<figure>{image}<figcaption>{name}</figcaption></figure>"
    yield "</body>\n</html>"
