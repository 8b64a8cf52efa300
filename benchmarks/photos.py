"""Five methods from nothing on CIFAR-100 at 32 x 32, K = 32: test mAP@all, and how well centres know superclasses.

    .venv/bin/python -m benchmarks.photos --data DIR [--superclasses FILE] [--backbone resnet18] [--epochs 100]

DIR holds the Python batches, which know the superclasses, or class folders; then FILE is a CSV ``class,superclass``.
Runs on a GPU where there is one. All methods have the same network, epochs and seeds, and their own defaults else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Split, final_split
from crh_tune.hashing.methods import METHODS
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

COMPARED = ("crh", "crh_m", "crh_u", "orthohash", "csq")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--superclasses", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    split = final_split(open_dataset("cifar100", {"path": arguments.data, "reference": arguments.superclasses}))
    shape = {"backbone": arguments.backbone, "epochs": arguments.epochs, "evaluate_every": arguments.epochs}
    print("| method | mAP@all of each seed | mean | PCC of each seed | s a run |\n|---|---|---|---|---|")
    for method in COMPARED:
        start = time.perf_counter()
        found = [train(split, method, {**shape, "seed": seed}) for seed in range(arguments.seeds)]
        seconds = (time.perf_counter() - start) / arguments.seeds
        maps = [metrics["test/map"] for metrics in found]
        pcc = " ".join(f"{metrics['centers/pcc']:.3f}" for metrics in found)
        each = " ".join(f"{value:.3f}" for value in maps)
        mean = statistics.mean(maps)
        print(f"| {METHODS[method].title} | {each} | {mean:.3f} | {pcc} | {seconds:.0f} |", flush=True)
    return 0


def train(split: Split, method: str, shape: dict[str, Any]) -> dict[str, float]:
    on_gpu = torch.cuda.is_available()
    trial = {"bits": 32, "batch_size": 128, "crop": 32, "padding": 4, "flip": True, "channels_last": True, **shape}
    trial |= {"precision": "bf16"} if on_gpu else {}
    content: dict[str, Any] = {"dataset": {"name": "cifar100"}, "method": method, "trial": trial}
    content |= {"scaling": {"cpus_per_worker": os.cpu_count()}}
    settings = TrialSettings.model_validate(content).resolve(split.classes, False)
    workers = Workers(device=torch.device("cuda" if on_gpu else "cpu"))
    return TrainingRun(settings, split, workers, solve_locally).train(lambda metrics, save: None)


if __name__ == "__main__":
    sys.exit(main())
