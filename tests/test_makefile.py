"""How ``make test`` ends: one summary of its two halves, that names what failed in either."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTEST = """#!/bin/sh
case "$*" in
*--ignore=*) half={without} ;;
*) half={with_ray} ;;
esac
[ $half = passes ] && echo "7 passed in 0.1s" && exit 0
echo "FAILED tests/test_one.py::test_that_$half - assert 1 == 2"
echo "1 failed, 6 passed in 0.1s"
exit 1
"""


@pytest.mark.parametrize(
    ("with_ray", "without"), [("passes", "passes"), ("fails", "passes"), ("passes", "fails"), ("fails", "breaks")]
)
def test_the_summary_is_last_and_names_what_failed_in_either_half(tmp_path: Path, with_ray: str, without: str):
    python = tmp_path / "python"
    python.write_text(PYTEST.format(with_ray=with_ray, without=without))
    python.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", "ready"):
        (tmp_path / name).touch()
    command = ["make", "-f", str(ROOT / "Makefile"), f"BIN={tmp_path}", "READY=ready", "test"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=alone)
    halves = [half for half in (with_ray, without) if half != "passes"]
    results = ["7 passed in 0.1s" if half == "passes" else "1 failed, 6 passed in 0.1s" for half in (with_ray, without)]
    last = "some tests failed: named above; .tests_with_ray.log and .tests_without_ray.log say why"
    assert done.stdout.splitlines()[-3 - len(halves) :] == [
        *(f"FAILED tests/test_one.py::test_that_{half} - assert 1 == 2" for half in halves),
        f"tests with Ray     {results[0]}",
        f"tests without Ray  {results[1]}",
        last if halves else "all tests passed",
    ]
    assert (done.returncode != 0) == bool(halves)
