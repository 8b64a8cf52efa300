"""The wheel: what is in it, and that it works from another folder, without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import crh_tune

ROOT = Path(__file__).parents[1]
SETTINGS = {"dataset": {"name": "digits"}, "trial": {"bits": 16, "epochs": 1}}
USE = """
import crh_tune, numpy, sys
encoder, index = crh_tune.load_encoder("model"), crh_tune.load_index("model")
rows, distances = index.search(encoder.encode(numpy.zeros((3, 1, 8, 8), numpy.uint8)), 5)
print(crh_tune.__file__, rows.shape, distances.shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what is in the repository."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("crh_tune", "search_spaces", "clusters"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(target)], check=True, capture_output=True, cwd=source)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, which has its dependencies from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = next(folder.glob("lib/python*/site-packages"))
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "others.pth").write_text("\n".join(others))  # no .pth file in them counts: this checkout is not there
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "bin"


def run(*command: str | Path, cwd: Path) -> str:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, env=alone)
    return done.stdout + done.stderr


def test_the_wheel_holds_every_module_and_file_that_the_package_reads(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "crh_tune").rglob("*.py")}
    wanted |= {f"crh_tune/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "search_spaces").rglob("*.yaml")}
    wanted |= {f"crh_tune/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "clusters").glob("*.yaml")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "crh_tune").rglob("published/*.csv")}
    assert wanted | {"crh_tune/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.name.startswith(f"crh_tune-{crh_tune.__version__}-")


@pytest.mark.long
def test_the_installed_wheel_trains_and_its_export_is_searched_from_another_folder(installed: Path, tmp_path: Path):
    assert run(installed / "crh-tune", "--version", cwd=tmp_path) == f"crh-tune {crh_tune.__version__}\n"
    assert "or one of cifar100, coco, digit_pairs" in run(installed / "crh-tune", "search", "nothing", cwd=tmp_path)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    trained = run(installed / "crh-tune", "train", "settings.yaml", "--to", "model", cwd=tmp_path)
    assert "exported to  model" in trained.splitlines()
    used = run(installed / "python", "-c", USE, cwd=tmp_path).split()
    assert Path(used[0]).is_relative_to(installed.parent)
    assert " ".join(used[1:]) == "(3, 5) (3, 5)"
