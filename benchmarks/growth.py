"""Which part of training, evaluation, data and index breaks first with classes and photos. Prints a Markdown table.

    .venv/bin/python -m benchmarks.growth

Each part is measured at three sizes, up to some thousand classes or a million photos, and continued from the last two
as a power of the size: where it would take an hour or 16 GB is an estimate, and said to be one.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.reassignment import drawn
from benchmarks.turns import machine
from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Samples, Split
from crh_tune.hashing.assignment import class_statistic, reassign
from crh_tune.hashing.codebook import sample_codebook
from crh_tune.retrieval.average_precision import LabelledCodes, RankingProtocol, average_precisions
from crh_tune.retrieval.index import Index
from crh_tune.training.evaluation import center_metrics, reference_similarity


@dataclass
class Growth:
    """A part that grows: what it is, of how many of what it was measured, and at how many it is wanted."""

    part: str
    of: str
    sizes: tuple[int, ...]
    wanted: int
    make: Callable[[int], Callable[[], Any]]


LIMITS = (3600.0, 16e9)
"""An hour, and 16 GB."""


def grow(each: Growth) -> None:
    """Measure a part at its sizes; print its growth, where that leads, and where it takes an hour or 16 GB."""
    seconds, held = [], []
    for size in each.sizes:
        work = each.make(size)
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
        work = each.make(size)
        tracemalloc.start()
        kept = work()
        held.append(float(tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        del kept
    cells, reached = [], []
    for values, limit, shown in ((seconds, LIMITS[0], "s"), (held, LIMITS[1], "GB")):
        power = max(math.log(values[-1] / values[-2]) / math.log(each.sizes[-1] / each.sizes[-2]), 0.0)
        unit = 1e9 if shown == "GB" else 1.0
        at = values[-1] * (each.wanted / each.sizes[-1]) ** power / unit
        cells.append(f"{values[-1] / unit:.3g} {shown}, power {power:.2f}, {at:.3g} {shown}")
        if power > 0.2:
            reached.append(each.sizes[-1] * (limit / values[-1]) ** (1 / power))
    breaks = f"{min(reached):,.0f}" if reached else "-"
    print(f"| {each.part} | {each.sizes[-1]:,} {each.of} | {' | '.join(cells)} | {breaks} {each.of} |", flush=True)


def features_of(classes: int) -> Split:
    chance = np.random.default_rng(0)
    labels = np.arange(4 * classes) % classes
    train = Samples(chance.normal(size=(len(labels), 64)).astype(np.float32), labels)
    return Split("search", tuple(map(str, range(classes))), train, train[:10], None, None)


def reassigning(classes: int) -> Callable[[], Any]:
    codes, labels = drawn(4 * classes, classes, 32)
    book = sample_codebook(32, 2 * classes, 32, 0)
    table = book.initial_table(classes, 0)
    statistic = class_statistic(torch.from_numpy(codes), torch.from_numpy(labels), classes)
    return lambda: reassign(statistic, book, table, rule="greedy", seed=0, round_number=1)


def ranking(photos: int) -> Callable[[], Any]:
    chance = np.random.default_rng(0)
    words = chance.integers(0, 2**63, (photos, 1), dtype=np.uint64)
    labels = chance.integers(0, 1000, photos)
    database = LabelledCodes(words, labels, 64)
    return lambda: average_precisions(database[np.arange(100)], database, RankingProtocol())


def indexing(photos: int) -> Callable[[], Any]:
    words = np.random.default_rng(0).integers(0, 2**63, (photos, 1), dtype=np.uint64)
    return lambda: Index(words, np.zeros(photos, np.int64), np.arange(photos))


def reading(folder: Path) -> Callable[[int], Callable[[], Any]]:
    """A folder of so many small photos, opened for the first time."""

    def make(photos: int) -> Callable[[], Any]:
        root = folder / f"photos-{photos}-{time.time_ns()}"
        image = folder / "one.png"
        Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(image)
        for row in range(photos):
            place = root / ("train" if row % 10 else "test") / f"{row // 10 % 100:03d}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{row}.png").write_bytes(image.read_bytes())
        return lambda: open_dataset("folder", {"path": str(root), "size": 32})

    return make


def data(folder: Path) -> None:
    print(
        "\n| part | measured at | seconds there, growth, at the size wanted | memory, the same | an hour or 16 GB at |"
    )
    print("|---" * 5 + "|")
    for each in (
        Growth("how alike classes are (C x C)", "classes", (1000, 2000, 4000), 100_000, _similarity),
        Growth("PCC, d_min, d_avg of the centres", "classes", (1000, 2000, 4000), 100_000, _centers),
        Growth("a round, M = 2C, d = 32", "classes", (5000, 10_000, 20_000), 100_000, reassigning),
        Growth(
            "codebook, M = 2C, d = 32",
            "classes",
            (5000, 10_000, 20_000),
            100_000,
            lambda c: lambda: sample_codebook(32, 2 * c, 32, 0),
        ),
        Growth("mAP of 100 queries", "photos", (250_000, 500_000, 1_000_000), 10_000_000, ranking),
        Growth("index of random codes", "photos", (250_000, 500_000, 1_000_000), 10_000_000, indexing),
        Growth("a folder of photos, opened first", "photos", (2000, 4000, 8000), 10_000_000, reading(folder)),
    ):
        grow(each)


def _similarity(classes: int) -> Callable[[], Any]:
    split = features_of(classes)
    return lambda: reference_similarity(split)


def _codebook(classes: int) -> Callable[[], Any]:
    return lambda: sample_codebook(32, 2 * classes, 32, 0)


def _centers(classes: int) -> Callable[[], Any]:
    chance = np.random.default_rng(0)
    centers = np.where(chance.random((classes, 64)) < 0.5, -1, 1).astype(np.int8)
    reference = chance.random((classes, classes))
    return lambda: center_metrics(centers, reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(f"## Classes and photos\n\n{machine()}; `python -m benchmarks.growth`\n")
    with tempfile.TemporaryDirectory(prefix="crh-growth-") as name:
        os.environ["CRH_TUNE_CACHE"] = f"{name}/cache"
        data(Path(name))


if __name__ == "__main__":
    main()
