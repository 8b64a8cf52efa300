"""CONTRIBUTING's recipes, tried as a contributor would: in a copy of the package, one new file and one new row each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import crh_tune

OBJECTIVE = '''"""Nearest Centre: |tanh(u) - c|^2 to the centre of a sample's class, times a pull."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from crh_tune.hashing.objectives.base import Objective, Options, Symbol, sample_centers, tie_breaker

if TYPE_CHECKING:
    from torch import Tensor


class NearestCenterOptions(Options):
    pull: Annotated[float, Field(gt=0), Symbol("p")] = 2.0
    """How strongly outputs are drawn to their centre."""


class NearestCenter(Objective):
    """p mean_k (tanh(u_k) - c_k)^2."""

    options_type = NearestCenterOptions
    options: NearestCenterOptions

    def forward(self, outputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        wanted = sample_centers(targets, centers, tie_breaker(self.options.bits).to(outputs.device))
        return {"pull": self.options.pull * (outputs.tanh() - wanted).square().mean(dim=1)}
'''
DATASET = '''"""Stripes: images of 8 x 8 with one bright column, which is the class."""

from __future__ import annotations

import numpy as np

from crh_tune.data.options import Options
from crh_tune.data.splits import Dataset, Samples


class StripesOptions(Options):
    each: int = 20
    """How many images a class."""


def stripes(options: StripesOptions) -> Dataset:
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(8), options.each)
    images = generator.integers(0, 60, (len(labels), 1, 8, 8), dtype=np.uint8)
    images[np.arange(len(labels)), 0, :, labels] += 180
    train, asked = np.arange(len(labels)) % 5 < 4, np.arange(len(labels)) % 5 == 4
    names = tuple(f"column {label}" for label in range(8))
    return Dataset("stripes", names, Samples(images[train], labels[train]), Samples(images[asked], labels[asked]))
'''
BACKBONE = '''"""Flat: the pixels themselves, and one layer."""

from __future__ import annotations

import math

from torch import nn

from crh_tune.hashing.backbones import Shape


class Flat(nn.Sequential):
    """One layer on the pixels."""

    features = 32

    def __init__(self, shape: Shape) -> None:
        super().__init__(nn.Flatten(), nn.Linear(math.prod(shape), self.features), nn.ReLU())
'''
TRIED = """
import sys
from crh_tune.settings.reference import reference
from crh_tune.settings.trial import TrialSettings

settings = TrialSettings.model_validate({
    "dataset": {"name": "stripes", "each": 30}, "method": "nearest",
    "trial": {"bits": 8, "epochs": 15, "pull": 3.0, "backbone": "flat", "learning_rate": 0.01},
})
assert "torch" not in sys.modules, "settings are read without torch"
import torch
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers

split = open_split(settings, "final")
settings = settings.resolve(split.classes, split.multi_label)
metrics = TrainingRun(settings, split, Workers(device=torch.device("cpu")), solve_locally).train(lambda *told: None)
assert metrics["test/map"] > 0.9, metrics
assert settings.trial.pull == 3.0 and "`pull`" in reference() and "nearest" in reference()
print("extended")
"""


def add(file: Path, before: str, row: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{file.name} has no single {before!r}"
    file.write_text(text.replace(before, row + before), encoding="utf-8")


def test_an_objective_a_dataset_and_a_backbone_are_a_file_and_a_row_each(tmp_path: Path):
    package = tmp_path / "crh_tune"
    shutil.copytree(Path(crh_tune.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "hashing" / "objectives" / "nearest_center.py").write_text(OBJECTIVE)
    row = '    "nearest": Method("Nearest", "a test", "nearest_center", "bernoulli"),\n'
    add(package / "hashing" / "methods.py", '    "hashnet": Method(', row)
    (package / "data" / "readers" / "stripes.py").write_text(DATASET)
    datasets = package / "data" / "datasets.py"
    add(datasets, "from crh_tune.data.splits import", "from crh_tune.data.readers import stripes\n")
    add(datasets, '    "digits": Source(', '    "stripes": Source(stripes.StripesOptions, build=stripes.stripes),\n')
    (package / "hashing" / "backbones" / "flat.py").write_text(BACKBONE)
    add(package / "hashing" / "backbones" / "__init__.py", '    "small_cnn": ', '    "flat": "flat.Flat",\n')
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRIED], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("extended"), done.stderr[-2000:]
