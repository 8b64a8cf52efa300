"""What is imported for help, for mistakes and for small commands: none of the libraries that take seconds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import crh_tune

SLOW = {
    "joblib",
    "matplotlib",
    "mlflow",
    "numba",
    "onnx",
    "onnxruntime",
    "optuna",
    "pandas",
    "ray",
    "scipy",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
}
RUN = """
import json, sys
{line}
names = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps([code, sorted(names)]))
"""
COMMAND = "from crh_tune.cli import main; code = main(sys.argv[1:])"


def loaded(line: str, *arguments: str, cwd: Path) -> tuple[Any, set[str], str]:
    """The ``code`` of a line of Python, the packages that it has imported, and what it said on standard error."""
    command = [sys.executable, "-c", RUN.format(line=line), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, set(names), done.stderr


CASES = [
    (["--help"], 0, ""),
    (["--version"], 0, ""),
    (["search", "--help"], 0, ""),
    (["data", "check", "--help"], 0, ""),
    ([], 2, "crh-tune: Missing command."),
    (["serach"], 2, "crh-tune: No such command 'serach'. Did you mean 'search'?"),
    (["search", "--trils", "4"], 2, "crh-tune search: No such option: --trils. Did you mean '--trials'?"),
    (["search", "--trials", "four"], 2, "crh-tune search: Invalid value for '--trials'"),
    (["search", "digit_pairz"], 2, "unknown search space 'digit_pairz': did you mean 'digit_pairs'?"),
    (["search", "missing.yaml"], 2, "missing.yaml: No such file or directory"),
    (["search", "a", "--space", "b"], 2, "given twice"),
    (["train", "missing.yaml"], 2, "missing.yaml: No such file or directory"),
    (["report", "missing.yaml"], 2, "missing.yaml: No such file or directory"),
    (["export", "nothing-001"], 2, "no such search"),
]


def test_help_and_mistakes_import_nothing_slow(tmp_path: Path):
    line = (
        "import contextlib, io; from crh_tune.cli import main; code = []\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):\n"
        "        ended = main(arguments)\n"
        "    names = sorted({name.partition('.')[0] for name in sys.modules})\n"
        "    code.append((ended, said.getvalue().splitlines(), names))"
    )
    found, _, _ = loaded(line, json.dumps([arguments for arguments, _, _ in CASES]), cwd=tmp_path)
    for (arguments, code, said), (ended, lines, names) in zip(CASES, found, strict=True):
        assert ended == code, arguments
        assert [said in line for line in lines] == ([True] if said else []), (arguments, lines)
        assert set(names) & (SLOW | {"numpy"}) == set(), arguments


def test_looking_at_photos_imports_nothing_slow(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 12, 3), dtype=np.uint8)
    for row, image in enumerate(pixels):
        path = tmp_path / "photos" / ("train" if row < 4 else "test") / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    code, names, _ = loaded(COMMAND, "data", "check", "photos", cwd=tmp_path)
    assert code == 0
    assert names & SLOW == set()


def test_the_package_alone_imports_nothing_slow_and_gives_everything_it_names(tmp_path: Path):
    _, names, _ = loaded("import crh_tune; dir(crh_tune); code = 0", cwd=tmp_path)
    assert names & (SLOW | {"numpy", "pydantic", "typer"}) == set()
    for name in crh_tune.__all__:
        assert getattr(crh_tune, name).__doc__, name
        assert name in dir(crh_tune)
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = crh_tune.serach


def test_importing_changes_neither_the_environment_nor_the_warnings(tmp_path: Path):
    line = (
        "import os, warnings; before = dict(os.environ), list(warnings.filters)\n"
        "import crh_tune.cli, crh_tune.search\n"
        "code = int(before != (dict(os.environ), list(warnings.filters)))"
    )
    assert loaded(line, cwd=tmp_path)[0] == 0


def test_the_script_of_ray_submit_runs_as_a_copy_in_another_folder(tmp_path: Path):
    script = Path(shutil.copy(Path(crh_tune.__file__).parent / "search.py", tmp_path))
    done = subprocess.run(
        [sys.executable, str(script), "digit_pairz"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "did you mean 'digit_pairs'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1
