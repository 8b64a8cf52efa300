"""The data path on a folder of photos, against what it is to be measured by. Prints a Markdown table.

    .venv/bin/python benchmarks/data.py --data DIR      # DIR: train/<class>/ and test/<class>/ of images

Ratios, each against a reference in the same run, the two taking turns. Exit code 1 where a promise does not hold.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from crh_tune.data.augment import Augmentation
from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Samples, Split, final_split
from crh_tune.data.store.stored import CachedImages, channel_moments
from crh_tune.hashing.network import standardised
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.batches import epoch_batches, load_batches
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

BATCH = 128
ROUNDS = 3
CPU = torch.device("cpu")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crh-bench-") as cache:
        os.environ["CRH_TUNE_CACHE"] = cache
        rows = [cache_building(arguments.data, size) for size in (32, 64, 256)]
        rows += [data_path(arguments.data), training(arguments.data), memory(arguments.data)]
        rows += [trials_memory(arguments.data)]
    rows += reassignment_codes()
    print("| what | measured | promised | |\n|---|---|---|---|")
    for what, measured, promised, held in rows:
        print(f"| {what} | {measured} | {promised} | {'yes' if held else 'NO'} |")
    return 0 if all(held for *_, held in rows) else 1


Row = tuple[str, str, str, bool]


def cache_building(data: Path, size: int) -> Row:
    start = time.perf_counter()
    split = photos(data, size)
    images = len(split.train) + len(split.queries)
    rate = images / (time.perf_counter() - start)
    what = f"cache of {images} images at {size} px, {images * size * size * 3 / 2**20:.0f} MiB, from scratch"
    if size > 64:  # bound by writing to the disk
        return what, f"{rate:.0f} images/s", "", True
    return what, f"{rate:.0f} images/s", ">= 1500", rate >= 1500


def photos(data: Path, size: int) -> Split:
    return final_split(open_dataset("folder", {"path": str(data), "size": size}))


def data_path(data: Path) -> Row:
    """An epoch of reading, cropping, flipping and standardising batches of 128 at 32 px."""
    split = photos(data, 32)
    mean, std = (torch.from_numpy(part).float().reshape(1, 3, 1, 1) for part in channel_moments(split.train.inputs))
    augmentation = Augmentation(32, 4, True)

    def ours() -> int:
        batches = epoch_batches(len(split.train), BATCH, 0, 1)
        loaded = load_batches(split.train, batches, split.classes, CPU, augmentation, 0, 1)
        return sum(len(standardised(inputs, mean, std)) for inputs, _ in loaded)

    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((mean / 255).flatten().tolist(), (std / 255).flatten().tolist()),
    ]
    folder = ImageFolder(str(data / "train"), transforms.Compose(steps))
    loader = DataLoader(folder, BATCH, shuffle=True, num_workers=2)

    def theirs() -> int:
        return sum(len(inputs) for inputs, _ in loader)

    ratio, times = compared(theirs, ours)
    what = f"data path at 32 px, {len(split.train) / times[1]:.0f} images/s, times ImageFolder + DataLoader(2 workers)"
    return what, f"{ratio:.1f}", ">= 4", ratio >= 4


def training(data: Path) -> Row:
    """ResNet-18 at 64 px: the real data path against the same loop with its images in memory."""
    split = photos(data, 64)
    few = split.train[np.random.default_rng(0).permutation(len(split.train))[:512]]
    in_memory = Samples(few.inputs[np.arange(len(few))].copy(), few.labels)
    trial = {"bits": 32, "epochs": 100, "backbone": "resnet18", "crop": 64, "padding": 4, "flip": True}
    content = {"dataset": {"name": "folder"}, "trial": trial, "scaling": {"cpus_per_worker": 2}}
    settings = TrialSettings.model_validate(content).resolve(split.classes, False)
    runs = []
    for samples in (in_memory, few):
        run = TrainingRun(settings, replace(split, train=samples), Workers(), solve_locally)
        run.take_first_centers()
        runs.append(run)

    def epoch(run: TrainingRun) -> int:
        run.epoch += 1
        run._train_epoch()
        return len(run.split.train)

    ratio, times = compared(lambda: epoch(runs[0]), lambda: epoch(runs[1]))
    what = f"training ResNet-18 at 64 px, {len(few) / times[1]:.0f} images/s, times the same loop fed from memory"
    return what, f"{ratio:.3f}", ">= 0.95", ratio >= 0.95


def memory(data: Path) -> Row:
    """Private memory that an epoch takes, with all images and with a tenth of them."""
    split = photos(data, 64)
    taken = []
    for share in (10, 1):
        samples = split.train[np.arange(0, len(split.train), share)]
        assert isinstance(samples.inputs, CachedImages)
        read_all(samples)  # what the first use of everything takes
        before = private_bytes()
        taken.append(read_all(samples) - before)
    growth = (taken[1] - taken[0]) / 2**20
    return "private memory of an epoch, ten times the images", f"{growth:+.1f} MiB", "<= 16 MiB", growth <= 16


def trials_memory(data: Path) -> Row:
    """Private memory after ten more trials in one process; medians of five, for the allocator gives back late."""
    split = photos(data, 32)
    few = replace(split, train=split.train[np.arange(0, len(split.train), 20)], queries=split.queries[np.arange(200)])
    content = {"dataset": {"name": "folder"}, "trial": {"epochs": 1, "crop": 32, "padding": 4, "channels_last": True}}
    settings = TrialSettings.model_validate(content).resolve(split.classes, False)
    taken = []
    for _ in range(17):
        TrainingRun(settings, few, Workers(), solve_locally).train(lambda metrics, save: None)
        gc.collect()
        taken.append(private_bytes())
    growth = (statistics.median(taken[-5:]) - statistics.median(taken[2:7])) / 2**20
    return "private memory after ten more trials in one process", f"{growth:+.1f} MiB", "<= 16 MiB", growth <= 16


def read_all(samples: Samples) -> int:
    """Read an epoch; the most private memory meanwhile, in bytes."""
    batches = epoch_batches(len(samples), BATCH, 0, 1)
    return max(private_bytes() for _ in load_batches(samples, batches, 100, CPU, Augmentation(56, 0, True), 0, 1))


def private_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def reassignment_codes() -> list[Row]:
    """Codes of a pass of their own (the paper) against those that training saw: digit pairs, CRH, three seeds."""
    split = final_split(open_dataset("digit_pairs", {"images_per_class": 12}))
    values: dict[str, list[float]] = {"pass": [], "epoch": []}
    seconds: dict[str, list[float]] = {"pass": [], "epoch": []}
    for seed in (0, 1, 2):
        for kind, found in values.items():
            trial = {"bits": 16, "epochs": 40, "evaluate_every": 40, "seed": seed, "reassignment_codes": kind}
            content = {"dataset": {"name": "digit_pairs", "images_per_class": 12}, "trial": trial}
            settings = TrialSettings.model_validate(content).resolve(split.classes, False)
            start = time.perf_counter()
            metrics = TrainingRun(settings, split, Workers(), solve_locally).train(lambda metrics, save: None)
            seconds[kind].append(time.perf_counter() - start)
            found.append(metrics["test/map"])
    said = {kind: " ".join(f"{value:.3f}" for value in values[kind]) for kind in values}
    ratio = statistics.median(seconds["epoch"]) / statistics.median(seconds["pass"])
    return [
        ("mAP with reassignment codes of a pass of their own, seeds 0 1 2", said["pass"], "", True),
        ("mAP with reassignment codes that training saw", said["epoch"], "", True),
        ("time of the latter over the former", f"{ratio:.2f}", "", True),
    ]


def compared(reference: Callable[[], int], measured: Callable[[], int]) -> tuple[float, tuple[float, float]]:
    """How many times as fast, and the median seconds of both; one turn of each goes before, unmeasured."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for each, kept in zip((reference, measured), times, strict=True):
            start = time.perf_counter()
            each()
            if turn:
                kept.append(time.perf_counter() - start)
    medians = statistics.median(times[0]), statistics.median(times[1])
    return medians[0] / medians[1], medians


if __name__ == "__main__":
    sys.exit(main())
