"""CRH against its ablations on digit pairs: 3 seeds, K = 16, 12 training pairs a class. Prints a Markdown table.

    .venv/bin/python benchmarks/ablation.py

It trains on all training pairs, evaluates on the test queries once a run, and says whether every CRH run is above
every CRH-M run and every CRH-M run above every CRH-U run; its exit code is 1 where that, or the distance, does not
hold.
"""

from __future__ import annotations

import statistics
import sys

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import final_split
from crh_tune.hashing.codebook import shared_centers
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

METHODS = {"CRH-U": "crh_u", "CRH-M": "crh_m", "CRH": "crh"}
SEEDS = (0, 1, 2)
TRIAL = {"bits": 16, "epochs": 40, "batch_size": 128, "learning_rate": 2e-3, "evaluate_every": 40}


def main() -> int:
    split = final_split(open_dataset("digit_pairs", {"images_per_class": 12}))
    maps: dict[str, list[float]] = {}
    pccs: dict[str, list[float]] = {}
    shared = 0
    for title, method in METHODS.items():
        maps[title], pccs[title] = [], []
        for seed in SEEDS:
            content = {"dataset": {"name": "digit_pairs"}, "method": method, "trial": {**TRIAL, "seed": seed}}
            settings = TrialSettings.model_validate(content).resolve(split.classes, split.multi_label)
            run = TrainingRun(settings, split, Workers(), solve_locally)
            metrics = run.train(lambda metrics, save: None)
            maps[title].append(metrics["test/map"])
            pccs[title].append(metrics["centers/pcc"])
            shared += len(shared_centers(run.centers))
    print("| | mAP@all, seeds 0 1 2 | mean | PCC, seeds 0 1 2 |\n|---|---|---|---|")
    for title in METHODS:
        values = " ".join(f"{value:.3f}" for value in maps[title])
        alignment = " ".join(f"{value:.2f}" for value in pccs[title])
        print(f"| {title} | {values} | {statistics.fmean(maps[title]):.3f} | {alignment} |")
    checks = {
        "every CRH run above every CRH-M run": min(maps["CRH"]) > max(maps["CRH-M"]),
        "every CRH-M run above every CRH-U run": min(maps["CRH-M"]) > max(maps["CRH-U"]),
        "CRH at least .20 above CRH-U in the mean": statistics.fmean(maps["CRH"])
        >= 0.2 + statistics.fmean(maps["CRH-U"]),
        "PCC of CRH at least .35": min(pccs["CRH"]) >= 0.35,
        "PCC of CRH-U within .05 of 0": max(map(abs, pccs["CRH-U"])) <= 0.05,
        "no two classes share a centre": shared == 0,
    }
    print()
    for check, holds in checks.items():
        print(f"{'holds' if holds else 'FAILS'}: {check}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
