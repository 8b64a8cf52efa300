"""Training on a GPU against what it is to be measured by. Prints a Markdown table.

    .venv/bin/python -m benchmarks.gpu

ResNet-34 at 224 px in batches of 128, on photos made for it (JPEG, 400 x 300). Images a second of the real data path
(decoded once, bf16, channels_last) against (a) the same step on a batch that is on the GPU already, and (b) the same
network in float32, fed by PIL through a DataLoader, as public hashing repositories do it. The three take turns. Exit
code 1 where the real data path reaches less than 90 % of (a).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Split, final_split
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.batches import epoch_batches, load_batches
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

BATCH = 128
CLASSES = 64
ENOUGH = 0.9
MIXED = {"precision": "bf16", "channels_last": True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory(prefix="crh-gpu-") as folder:
        os.environ["CRH_TUNE_CACHE"] = f"{folder}/cache"
        make_photos(Path(folder) / "photos", arguments.images)
        split = final_split(open_dataset("folder", {"path": f"{folder}/photos"}))
        mixed, plain = training_run(split, device, MIXED), training_run(split, device, {})
        loader = pil_loader(Path(folder) / "photos")
        rates = in_turns(
            {
                "real data path, bf16, channels_last": lambda: real_epoch(mixed),
                "a batch that is on the GPU already, bf16, channels_last": lambda: fixed_epoch(mixed),
                "PIL through a DataLoader, float32": lambda: fed_epoch(plain, loader),
            },
            len(split.train),
            arguments.rounds,
        )
    real, fixed, pil = rates.values()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {len(split.train)} images\n\n| fed by | images/s |\n|---|---|")
    for what, rate in rates.items():
        print(f"| {what} | {rate:.0f} |")
    print(f"\nof the batch that is on the GPU: {real / fixed:.3f} (wanted {ENOUGH}); times PIL: {real / pil:.2f}")
    return 0 if real >= ENOUGH * fixed else 1


def make_photos(root: Path, count: int) -> None:
    """JPEG files of 400 x 300 pixels in class folders, with detail at all scales as photos have."""
    for part, images in (("train", count), ("test", CLASSES)):
        with ProcessPoolExecutor() as pool:
            list(pool.map(_make_photo, *zip(*((root / part, row) for row in range(images)), strict=True), chunksize=64))


def _make_photo(folder: Path, row: int) -> None:
    draw = np.random.default_rng([row, folder.name == "test"])
    pixels = np.zeros((300, 400, 3))
    for scale in (2, 8, 32, 128):
        noise = draw.integers(0, 256, (300 // scale + 1, 400 // scale + 1, 3)).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)) * scale**0.5
    place = folder / f"class{row % CLASSES:03}"
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8)).save(place / f"{row}.jpg", quality=90)


def training_run(split: Split, device: torch.device, options: dict[str, Any]) -> TrainingRun:
    trial = {"epochs": 1000, "batch_size": BATCH, "backbone": "resnet34", "crop": 224, "flip": True, **options}
    content = {"dataset": {"name": "folder"}, "trial": trial, "scaling": {"cpus_per_worker": os.cpu_count()}}
    settings = TrialSettings.model_validate(content).resolve(split.classes, False)
    run = TrainingRun(settings, split, Workers(device=device), solve_locally)
    run.take_first_centers()
    return run


def real_epoch(run: TrainingRun) -> None:
    run.epoch += 1
    run._train_epoch()


def fixed_epoch(run: TrainingRun) -> None:
    """An epoch's steps, all of them on the first batch."""
    batches = epoch_batches(len(run.split.train), run.settings.global_batch, 0, 1)
    device, augmentation = run.workers.device, run.trial.augmentation
    batch = next(load_batches(run.split.train, batches[:1], run.split.classes, device, augmentation, 0, 1))
    _steps(run, [batches[0]] * len(batches), itertools.repeat(batch))


def fed_epoch(run: TrainingRun, loader: DataLoader[Any]) -> None:
    """An epoch's steps on what a DataLoader gives."""
    batches = epoch_batches(len(run.split.train), run.settings.global_batch, 0, 1)

    def moved() -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in loader:
            hot = nn.functional.one_hot(labels.to(run.workers.device, non_blocking=True), run.split.classes)
            yield inputs.to(run.workers.device, non_blocking=True), hot.float()

    _steps(run, batches, moved())


def _steps(run: TrainingRun, batches: list[Any], loaded: Iterator[tuple[Tensor, Tensor]]) -> None:
    centers = torch.from_numpy(run.centers).to(run.workers.device, torch.float32)
    run.wrapped.train()
    for batch in batches:
        terms = run._train_step(batch, loaded, centers)
    torch.stack(list(terms.values())).tolist()  # waits for the device


def pil_loader(photos: Path) -> DataLoader[Any]:
    """Resized, cropped and flipped by PIL in one process a core; normalised by the network, as everything here is."""
    steps = [
        transforms.Resize((256, 256)),
        transforms.RandomCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ]
    folder = ImageFolder(str(photos / "train"), transforms.Compose(steps))
    return DataLoader(folder, BATCH, True, num_workers=os.cpu_count() or 1, pin_memory=torch.cuda.is_available())


def in_turns(epochs: dict[str, Callable[[], None]], images: int, rounds: int) -> dict[str, float]:
    """Images a second of each, the median of some rounds; one turn of each goes before, unmeasured."""
    seconds: dict[str, list[float]] = {what: [] for what in epochs}
    for turn in range(rounds + 1):
        for what, epoch in epochs.items():
            start = time.perf_counter()
            epoch()
            if turn:
                seconds[what].append(time.perf_counter() - start)
    return {what: images / statistics.median(taken) for what, taken in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
