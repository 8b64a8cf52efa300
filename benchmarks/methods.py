"""Every method on the digits at 32 bits with its own defaults, 40 epochs: test mAP@all. Prints a Markdown table.

    .venv/bin/python benchmarks/methods.py

Its exit code is 1 where a method does not reach 0.90.
"""

from __future__ import annotations

import sys
import time

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import final_split
from crh_tune.hashing.methods import METHODS
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

ENOUGH = 0.9


def main() -> int:
    split = final_split(open_dataset("digits", {}))
    worst = 1.0
    print("| method | mAP@all | seconds |\n|---|---|---|")
    for name, method in METHODS.items():
        trial = {"bits": 32, "epochs": 40, "evaluate_every": 40}
        content = {"dataset": {"name": "digits"}, "method": name, "trial": trial}
        settings = TrialSettings.model_validate(content).resolve(split.classes, split.multi_label)
        start = time.perf_counter()
        metrics = TrainingRun(settings, split, Workers(), solve_locally).train(lambda metrics, save: None)
        worst = min(worst, metrics["test/map"])
        print(f"| {method.title} | {metrics['test/map']:.3f} | {time.perf_counter() - start:.1f} |", flush=True)
    return 0 if worst >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
