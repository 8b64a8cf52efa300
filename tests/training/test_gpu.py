"""The same training on a GPU; skipped by name where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crh_tune.hashing.network import FeatureNetwork
from crh_tune.training import frozen
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers
from tests.training.conftest import settings_for, split_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda finds none")


@needs_gpu
def test_a_gpu_learns_as_a_cpu_does_and_reassigns_the_same_codes_alike():
    split = split_of()
    runs = [
        TrainingRun(settings_for(split, epochs=8), split, Workers(device=torch.device(device)), solve_locally)
        for device in ("cpu", "cuda")
    ]
    values = [run.train(lambda metrics, save: None)["val/map"] for run in runs]
    assert abs(values[0] - values[1]) < 0.05
    still = [settings_for(split, epochs=2, learning_rate=1e-12) for _ in runs]
    tables = []
    for device, settings in zip(("cpu", "cuda"), still, strict=True):
        run = TrainingRun(settings, split, Workers(device=torch.device(device)), solve_locally)
        run.train(lambda metrics, save: None)
        tables.append(run.table)
    assert np.mean(tables[0] == tables[1]) > 0.9  # a code on the edge may fall on either side


@needs_gpu
def test_a_gpu_computes_the_features_of_a_frozen_backbone_in_float32():
    """As the exported encoder does, or codes would differ from those that were searched with."""
    torch.manual_seed(0)
    network = FeatureNetwork("resnet18", (3, 64, 64), torch.full((3,), 127.0), torch.full((3,), 64.0))
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    on_cpu = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    on_gpu = frozen._by_torch(network.cuda(), torch.device("cuda"))(images)
    assert np.abs(on_gpu - on_cpu).max() <= 1e-4 * np.abs(on_cpu).max()
