"""What is imported for help, for mistakes and for small commands: none of the libraries that take seconds."""

from __future__ import annotations

import json
import os
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
    (["report", "missing.yaml"], 2, "missing.yaml: No such file or directory"),
    (["export", "nothing-001"], 2, "no such search"),
]


TOLD = """
import contextlib, io
from crh_tune.cli import main
code = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        ended = main(arguments)
    names = sorted({name.partition(".")[0] for name in sys.modules})
    code.append((ended, said.getvalue().splitlines(), names))
"""


def test_help_and_mistakes_import_nothing_slow(tmp_path: Path):
    found, _, _ = loaded(TOLD, json.dumps([arguments for arguments, _, _ in CASES]), cwd=tmp_path)
    for (arguments, code, said), (ended, lines, names) in zip(CASES, found, strict=True):
        assert ended == code, arguments
        assert [said in line for line in lines] == ([True] if said else []), (arguments, lines)
        assert set(names) & (SLOW | {"numpy"}) == set(), arguments


SPACE = """
name: mine
dataset: {name: digit_pairs}
trial: {bits: 16, backbone: small_cnn}
search: {margin: {uniform: [0, 0.5]}}
"""
TRAIN = """
dataset: {name: folder, path: photos}
method: csq
trial: {backbone: resnet34, weights: IMAGENET1K_V1}
"""
STUDY = """
name: mine
title: Mine
kind: map
datasets: {}
others: {}
cells: [{row: CRH}]
"""
WRONG = [
    ("search", SPACE, "name: mine", "name: [mine", "not readable as YAML"),
    ("search", SPACE, "name: mine", "name: a\nbudgets: {}", "budgets: unknown key: one of budget,"),
    (
        "search",
        SPACE,
        "name: mine",
        "name: mine\nbudget: {trials: many}",
        "budget.trials: input should be a valid integer",
    ),
    ("search", SPACE, "name: digit_pairs", "name: digit_pairz", "dataset: unknown dataset 'digit_pairz': did you mean"),
    ("search", SPACE, "search:", "method: crhh\nsearch:", "method: unknown method 'crhh': did you mean 'crh'"),
    ("search", SPACE, "bits: 16", "bits: 1", "trial.bits: input should be greater than or equal to 2, got 1"),
    ("search", SPACE, "bits: 16", "bit: 16", "trial.bit: unknown key: one of bits,"),
    ("search", SPACE, "bits: 16", "scale: -1.0", "trial.scale: input should be greater than 0, got -1.0"),
    ("search", SPACE, "0.5", "2.5", "search.margin: input should be less than or equal to 2, got 2.5"),
    ("search", SPACE, "margin:", "marge:", "search.marge: unknown setting 'marge': did you mean 'margin'"),
    ("search", SPACE, "small_cnn", "resnet35", "trial.backbone: unknown backbone 'resnet35'"),
    ("train", TRAIN, "V1", "V9", "trial.weights: unknown weights 'IMAGENET1K_V9' of resnet34: IMAGENET1K_V1, DEFAULT"),
    ("train", TRAIN, "V1}", "V1, scale: 3}", "trial.scale: method csq does not use it"),
    ("train", TRAIN, "photos}", "nowhere}", "nowhere: does not exist: path must be the folder that holds the dataset"),
    (
        "search",
        SPACE.replace("digit_pairs", "features"),
        "name: features",
        "name: features, path: nowhere.npz",
        "nowhere.npz: does not exist: path must be an .npz file, or a folder of .npy files",
    ),
    ("report", STUDY, "row: CRH", "margin: 0.1", "cells: 0.row: is required"),
    ("search", STUDY, "kind: map", "kind: maps", "kind: input should be 'map', 'pcc'"),
]


def test_mistakes_in_a_file_are_told_without_importing_anything_slow(tmp_path: Path):
    commands = []
    for number, (command, text, right, wrong, _) in enumerate(WRONG):
        assert text.count(right) == 1, right
        (tmp_path / f"{number}.yaml").write_text(text.replace(right, wrong))
        commands.append([command, f"{number}.yaml"])
    commands.append(["train", "missing.yaml"])
    told = [*WRONG, ("train", "", "", "", "missing.yaml: No such file or directory")]
    found, _, _ = loaded(TOLD, json.dumps(commands), cwd=tmp_path)
    for (ended, lines, names), (*case, said) in zip(found, told, strict=True):
        assert (ended, [said in line for line in lines]) == (2, [True]), (case, lines)
        assert set(names) & SLOW == set(), case


def test_the_shipped_spaces_and_studies_are_read_without_importing_anything_slow(tmp_path: Path):
    line = (
        "from crh_tune.settings.search import read_search; from crh_tune.settings.study import read_study\n"
        "from crh_tune.spaces import find_space, is_study, space_names\n"
        "paths = [find_space(name) for name in space_names()]\n"
        "code = len([read_study(path) if is_study(path) else read_search(path) for path in paths])"
    )
    count, names, _ = loaded(line, cwd=tmp_path)
    assert count > 10
    assert names & SLOW == set()


def test_looking_at_photos_imports_nothing_slow(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 12, 3), dtype=np.uint8)
    for row, image in enumerate(pixels):
        path = tmp_path / "photos" / ("train" if row < 4 else "test") / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    code, names, _ = loaded(COMMAND, "data", "check", "photos", cwd=tmp_path)
    assert code == 0
    assert names & SLOW == set()


TRIAL = """
import pathlib
import crh_tune.tuning.trial
from crh_tune.settings.search import search_settings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers

content = {"name": "a", "dataset": {"name": "digit_pairs"}, "trial": {"bits": 16, "epochs": 2, "backbone": "small_cnn"}}
settings = search_settings({**content, "search": {"margin": {"uniform": [0, 0.5]}}}, "a")
settings = settings.trial_settings({"margin": 0.1}, 0).resolve(100, False)
run = TrainingRun(settings, open_split(settings, "search"), Workers(), solve_locally)
run.train(lambda metrics, save: save(pathlib.Path(sys.argv[1])))
run.restore(pathlib.Path(sys.argv[1]))
code = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
"""


def test_the_process_of_a_trial_imports_what_a_trial_needs(tmp_path: Path):
    """From the module that Ray has it import to a checkpoint that is read again.

    pandas comes with Ray Tune, and a little of SciPy with numba.
    """
    parts = ["torch._dynamo", "torch._inductor", "ray.train.torch", "scipy.stats", "scipy.optimize"]
    found, names, _ = loaded(TRIAL, str(tmp_path / "checkpoint"), json.dumps(parts), cwd=tmp_path)
    assert found == []
    assert names & (SLOW | {"sympy", "triton"}) == {"numba", "pandas", "ray", "scipy", "torch"}


def test_the_process_of_the_aggregator_imports_no_torch(tmp_path: Path):
    line = (
        "from crh_tune.training.aggregator import *; from crh_tune.hashing.codebook import sample_codebook\n"
        "table = sample_codebook(16, 8, 8, 0).initial_table(4, 0)\n"
        "round_ = Round(CodebookSpec(16, 8, 8, 0, 'bernoulli'), table, 'greedy', 0, 1)\n"
        "code = solve_locally(round_, np.ones((4, 17), dtype=np.int64)).shape"
    )
    shape, names, _ = loaded(line, cwd=tmp_path)
    assert shape == [2, 4]
    assert names & SLOW == {"numba", "scipy"}


def test_the_package_alone_imports_nothing_slow_and_gives_everything_it_names(tmp_path: Path):
    _, names, _ = loaded("import crh_tune; dir(crh_tune); code = 0", cwd=tmp_path)
    assert names & (SLOW | {"numpy", "pydantic", "typer"}) == set()
    for name in crh_tune.__all__:
        assert getattr(crh_tune, name).__doc__, name
        assert name in dir(crh_tune)
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = crh_tune.serach


IMPORT_ALL = """
import importlib, logging, os, pkgutil, signal, warnings
import crh_tune

NAMES = [found.name for found in pkgutil.walk_packages(crh_tune.__path__, "crh_tune.") if "__main__" not in found.name]
HANDLED = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})

def state():
    loggers = [logging.getLogger(name) for name in (None, *sorted(logging.Logger.manager.loggerDict))]
    return {
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "logging": [(each.name, each.level, list(each.handlers)) for each in loggers if each.level or each.handlers],
        "signals": [signal.getsignal(number) for number in HANDLED],
        "path": list(sys.path),
        "hooks": (sys.excepthook, sys.unraisablehook),
    }

before = state()
for name in NAMES:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "crh_tune"]:
    del sys.modules[name]
os.environ.clear()
os.environ.update(before["environment"])
warnings.filters[:] = before["warnings"]
for name in (None, *logging.Logger.manager.loggerDict):
    logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger(name).handlers.clear()
for number, handler in zip(HANDLED, before["signals"]):
    if handler is not None:
        signal.signal(number, handler)
code = []
for name in NAMES:
    before = state()
    importlib.import_module(name)
    after = state()
    code += [(name, part) for part in before if before[part] != after[part]]
code.append(len(NAMES))
"""


def test_importing_any_module_changes_nothing_that_the_whole_process_shares(tmp_path: Path):
    """All are imported twice: the first time brings other packages and what those change, which is then undone."""
    *changed, count = loaded(IMPORT_ALL, cwd=tmp_path)[0]
    assert changed == []
    assert count > 150


COMPLETE = """
eval "$(_CRH_TUNE_COMPLETE=source_bash crh-tune)"
press_tab() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _crh_tune_completion crh-tune; echo "${COMPREPLY[*]}"; }
press_tab crh-tune dat
press_tab crh-tune search --tri
press_tab crh-tune search digit
press_tab crh-tune search --storage mine --resume p
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="it is bash that completes")
def test_bash_completes_commands_options_search_spaces_and_searches(tmp_path: Path):
    (tmp_path / "mine" / "photos-001").mkdir(parents=True)
    (tmp_path / "mine" / "photos-001" / "search.json").touch()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", COMPLETE],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["data", "--trials", "digit_pairs", "photos-001"]


def test_the_script_of_ray_submit_runs_as_a_copy_in_another_folder(tmp_path: Path):
    script = Path(shutil.copy(Path(crh_tune.__file__).parent / "search.py", tmp_path))
    done = subprocess.run(
        [sys.executable, str(script), "digit_pairz"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "did you mean 'digit_pairs'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1
