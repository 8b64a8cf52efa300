"""What ways to confirm finalists spend and are worth, and a table of trained settings to judge other strategies by.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.search --fill crh_runs/search_table.json   # trains, resumes
    .venv/bin/python -m benchmarks.search --simulate

``--fill`` trains random settings (the first is the paper's), three seeds each, and keeps val/map after every fifth of
40 epochs; it goes on where it stopped.
``--simulate`` needs no training: it races made-up settings whose worth and noise have the spread that was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import search_split
from crh_tune.ground import write_json
from crh_tune.settings.search import SearchSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers
from crh_tune.tuning import race
from crh_tune.tuning.proposals import paper_values, propose

SPACE = SearchSettings.model_validate(
    {
        "name": "table",
        "dataset": {"name": "digit_pairs", "images_per_class": 12},
        "trial": {"bits": 16, "epochs": 40, "batch_size": 128, "learning_rate": 2.0e-3, "evaluate_every": 5},
        "search": {
            "codebook_ratio": {"choice": [1, 2, 4, 8]},
            "head_dim": {"feasible": True},
            "quantization_weight": {"log_uniform": [1.0e-2, 2.0]},
            "margin": {"uniform": [0.0, 0.5]},
            "update_interval": {"int": [1, 10]},
        },
    }
)
SEEDS = (1, 2, 3)
NOISE = 0.016
"""The standard deviation of val/map from seed to seed."""
SPREAD = 0.0126
"""That of what settings are worth: a number with one seed's noise then has a Spearman correlation of .60 with it."""
JUDGE_LAST, JUDGE_CURVE = 0.016, 0.0081
"""The noise of what a trial is judged by, where its correlation with worth is .60, or .83."""
Curve = dict[int, float]
"""val/map by epoch."""


def fill(path: Path, settings: int, minutes: float) -> None:
    """Train what the table does not have yet, for at most so many minutes of a core."""
    table: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    split = search_split(open_dataset("digit_pairs", {"images_per_class": 12}), **SPACE.validation.model_dump())
    torch.set_num_threads(1)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    begun = time.process_time()
    for number in range(settings):
        paper = number == 0
        values = paper_values(SPACE, split.classes, False) if paper else propose(study.ask(), SPACE, split.classes)
        if number == len(table):
            table.append({"values": values, "curves": {}})
        for seed in map(str, SEEDS):
            if seed in table[number]["curves"]:
                continue
            if time.process_time() - begun > 60 * minutes:
                return
            curve: Curve = {}
            resolved = SPACE.trial_settings(values, int(seed)).resolve(split.classes, False)
            TrainingRun(resolved, split, Workers(), solve_locally).train(
                lambda metrics, save, into=curve: into.update({int(metrics["epoch"]): metrics["val/map"]})
            )
            table[number]["curves"][seed] = curve
            write_json(path, table)
            print(number, seed, f"{curve[40]:.4f}", f"{time.process_time() - begun:.0f} s", flush=True)


def simulated(
    judge: float, top: int, seeds: int, racing: bool, chance: np.random.Generator
) -> tuple[float, int, float]:
    """One search of 24 trials with made-up worths, of mean 0, and its confirmation.

    ``judge`` is the noise of what finalists are chosen by. Returns the worth of the winner, the runs of the
    confirmation, and by how much the winner's mean is too good.
    """
    worths = chance.normal(0, SPREAD, 24)
    order = np.argsort(-(worths + chance.normal(0, judge, 24)))[:top]
    worth = {**{str(index): float(worths[index]) for index in order}, "paper": -SPREAD}
    values: dict[str, list[float]] = {name: [] for name in worth}
    left, runs = list(worth), 0
    for seed in range(1, seeds + 1):
        runs += len(left)
        for name in left:
            values[name].append(worth[name] + float(chance.normal(0, NOISE)))
        if racing:
            stay = race.stay({name: values[name] for name in left}, "paper", race.places(top, seed, seeds), 1)
            left = [*stay, "paper"]
            if not stay or (len(stay) == 1 and race.clear(race.gain(values, stay[0], "paper"), 1)):
                break
    best = max(left, key=lambda name: statistics.fmean(values[name]))
    return worth[best], runs, statistics.fmean(values[best]) - worth[best]


def simulate(searches: int = 1500) -> None:
    """Print what ways to confirm are worth, over the mean of all settings, each on the same made-up searches."""
    print("| finalists by | confirmation | worth | runs | too good by |\n|---|---|---|---|---|")
    for judged, noise in (("the last number", JUDGE_LAST), ("the mean of the curve", JUDGE_CURVE)):
        for top, seeds, racing in (
            (3, 3, False),
            (3, 3, True),
            (2, 2, False),
            (2, 2, True),
            (4, 4, True),
            (6, 4, True),
        ):
            chance = np.random.default_rng(0)
            found = np.array([simulated(noise, top, seeds, racing, chance) for _ in range(searches)])
            half = 1.96 * found[:, 0].std() / len(found) ** 0.5
            worth, runs, too_good = found.mean(axis=0)
            how = f"{'race of' if racing else 'all of'} {top}, {seeds} seeds"
            print(f"| {judged} | {how} | {worth:+.4f} ± {half:.4f} | {runs:.1f} | {too_good:+.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fill", type=Path, metavar="FILE")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--settings", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=15, help="of one core, for --fill")
    arguments = parser.parse_args()
    if arguments.fill:
        fill(arguments.fill, arguments.settings, arguments.minutes)
    if arguments.simulate:
        simulate()


if __name__ == "__main__":
    main()
