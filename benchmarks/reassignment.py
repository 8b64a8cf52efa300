"""What a round of reassignment costs. Prints a Markdown table.

    .venv/bin/python -m benchmarks.reassignment [--largest]

References, written from the paper's equations: Eq. 7 summed sample by sample (N x M distances of every head), on a
part of the samples where N x M is large and scaled; scipy's Hungarian algorithm on the same costs; flips of a pattern
listed and sorted by cost, class by class; all distances of centres in one matrix. ``--largest`` adds 100,000 classes.
"""

from __future__ import annotations

import argparse
import itertools
import tracemalloc

import numpy as np
import scipy.optimize
import torch

from benchmarks.turns import CPU, Line, announce, in_turns, seconds
from crh_tune.hashing.assignment import assignment_cost, class_statistic, reassign
from crh_tune.hashing.codebook import Codebook, WholeSpace, center_distances, sample_codebook


def eq7_by_sample(codes: np.ndarray, labels: np.ndarray, classes: int, book: Codebook) -> list[np.ndarray]:
    """C x M summed squared distances of every head, from the distances of each sample to each word."""
    dim, costs = book.words.shape[2], []
    for head, words in enumerate(book.words):
        part = np.where(codes[:, head * dim : (head + 1) * dim], np.float32(1), np.float32(-1))
        cost = np.zeros((classes, book.size), dtype=np.float32)
        for start in range(0, len(part), 4096):
            rows = slice(start, start + 4096)
            np.add.at(cost, labels[rows], 2.0 * dim - 2.0 * part[rows] @ words.T.astype(np.float32))
        costs.append(cost)
    return costs


def flips_in_order(cost: np.ndarray):
    for count in range(len(cost) + 1):
        masks = itertools.combinations(range(len(cost)), count)
        yield from sorted(masks, key=lambda bits: sum(int(cost[bit]) for bit in bits))


def flips_by_sorting(sums: np.ndarray) -> None:
    taken: set[tuple[int, ...]] = set()
    for row in np.abs(sums):
        taken.add(next(bits for bits in flips_in_order(row) if bits not in taken))


def all_distances(centers: np.ndarray) -> tuple[int, float]:
    upper, signs = np.triu_indices(len(centers), k=1), centers.astype(np.float32)
    distances = ((centers.shape[1] - signs @ signs.T) / 2)[upper]
    return int(distances.min()), float(distances.mean(dtype=np.float64))


def drawn(samples: int, classes: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes around class centres, a fifth of the bits flipped, and their classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, samples)
    centers = generator.random((classes, bits)) < 0.5
    return centers[labels] ^ (generator.random((samples, bits)) < 0.2), labels


def rounds_of(name: str, samples: int, classes: int, bits: int, dim: int, part: int, target: float) -> None:
    codes, labels = drawn(samples, classes, bits)
    book = sample_codebook(bits, 2 * classes, dim, 0)
    table = book.initial_table(classes, 0)
    tensors = torch.from_numpy(codes), torch.from_numpy(labels)

    def ours() -> np.ndarray:
        statistic = class_statistic(*tensors, classes)
        return reassign(statistic, book, table, rule="greedy", seed=0, round_number=1)

    statistic = class_statistic(*tensors, classes)
    sums, step = in_turns(lambda: class_statistic(*tensors, classes), ours, rounds=9)
    eq7 = seconds(lambda: eq7_by_sample(codes[: samples // part], labels[: samples // part], classes, book)) * part
    limit = f"the statistic alone {sums * 1e3:.3g} ms"
    print(Line(name, step, "Eq. 7 by sample", eq7, most_seconds=target, limit=limit), flush=True)
    seen = statistic[:, -1] > 0
    columns = np.r_[0:dim, bits]
    hungarian = seconds(
        lambda: scipy.optimize.linear_sum_assignment(assignment_cost(statistic[seen][:, columns], book.words[0]))
    )
    print(Line(name, step, "Hungarian, one head", hungarian, most_seconds=target, limit=limit), flush=True)


def largest() -> None:
    classes, bits = 100_000, 32
    codes, labels = drawn(200_000, classes, bits)
    book = sample_codebook(bits, 2 * classes, bits, 0)
    table = book.initial_table(classes, 0)
    statistic = class_statistic(torch.from_numpy(codes), torch.from_numpy(labels), classes)
    tracemalloc.start()
    taken = seconds(lambda: reassign(statistic, book, table, rule="greedy", seed=0, round_number=1))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    name = "greedy, C 100,000, M 200,000, d 32"
    print(
        Line(
            name,
            taken,
            "none",
            None,
            most_seconds=120,
            limit=f"{held / 1e6:.0f} MB at most",
            also="<= 2 GB",
            also_met=held <= 2e9,
        )
    )


def whole_space(classes: int, compared: bool) -> None:
    sums = np.tile(np.random.default_rng(0).integers(1, 1000, 64), (classes, 1))
    statistic, space = np.column_stack([sums, np.full(classes, 1000)]), WholeSpace(64)
    table = space.initial_table(classes, 0)
    taken = in_turns(lambda: reassign(statistic, space, table, rule="greedy", seed=0, round_number=1))[0]
    theirs = seconds(lambda: flips_by_sorting(sums)) if compared else None
    name, reference = f"whole space, all codes alike, C {classes:,}", "flips sorted" if compared else "none"
    print(Line(name, taken, reference, theirs, most_seconds=0.05, limit="2,081 patterns within two flips"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", action="store_true", help="100,000 classes too")
    parser.add_argument(CPU, action="store_true", help="count processor time")
    arguments = parser.parse_args()
    announce("Reassignment", "python -m benchmarks.reassignment" + " --largest" * arguments.largest)
    rounds_of("statistic + greedy, NABirds (C 555, M 1,110, d 16)", 23_929, 555, 64, 16, 1, 0.008)
    rounds_of("statistic + greedy, C 10,000, M 20,000 (N 100,000, K 16, d 16)", 100_000, 10_000, 16, 16, 20, 0.25)
    whole_space(1000, compared=True)
    whole_space(2150, compared=False)
    centers = np.where(np.random.default_rng(0).random((4000, 64)) < 0.5, -1, 1).astype(np.int8)
    taken, theirs = in_turns(lambda: center_distances(centers), lambda: all_distances(centers))
    print(
        Line(
            "d_min, d_avg at C 4,000, K 64", taken, "one C x C matrix", theirs, most_seconds=0.1, limit="blocks of 256"
        )
    )
    if arguments.largest:
        largest()


if __name__ == "__main__":
    main()
