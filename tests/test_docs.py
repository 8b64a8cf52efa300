"""The documentation: its links lead somewhere, its commands are commands, and every page can be reached."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

import crh_tune
from crh_tune.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"```sh\n(.*?)```", re.DOTALL)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def parse(arguments: list[str]) -> None:
    """Parse the arguments of a command without running it. Raises TyperException for a mistake."""
    command = typer.main.get_command(app)
    context = command.make_context("crh-tune", list(arguments))
    while isinstance(command, typer.core.TyperGroup):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_to_a_file_leads_to_it(page: Path):
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_of_a_page_is_one(page: Path):
    for line in "\n".join(FENCE.findall(page.read_text())).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].endswith("crh-tune"):
            parse(words[1:])


def test_a_command_that_is_none_would_be_found():
    with pytest.raises(typer.TyperException, match="No such option"):
        parse(["search", "--trils", "4"])
    with pytest.raises(typer.TyperException, match="No such command"):
        parse(["data", "chek", "x"])


def test_the_index_of_the_documentation_names_every_page():
    named = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= named


def test_the_version_is_the_same_wherever_it_is_written():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == crh_tune.__version__
    assert f"## [{crh_tune.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    for name in ("Dockerfile", "kuberay.yaml"):
        assert set(re.findall(r"crh-tune:([\d.]+)", (ROOT / "clusters" / name).read_text())) == {crh_tune.__version__}
