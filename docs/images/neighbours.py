"""Draws neighbours.png: test pairs of handwritten digits, and the ten training pairs whose codes are nearest.

    .venv/bin/python docs/images/neighbours.py

It trains the paper's setting on digit pairs (100 classes, 12 training pairs each, 16 bits), ten seconds, and shows test
pairs at even steps of average precision, from the worst twelfth to the best, so that they stand for all.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import crh_tune
from crh_tune.data.datasets import open_dataset

OPTIONS = {"images_per_class": 12}
SETTINGS = {
    "dataset": {"name": "digit_pairs", **OPTIONS},
    "trial": {"bits": 16, "epochs": 40, "batch_size": 128, "learning_rate": 2e-3, "seed": 0},
}
RIGHT, WRONG = "#2a7f3f", "#c23b22"
ROWS, COLUMNS, BITS = 6, 10, 16


def main() -> None:
    dataset = open_dataset("digit_pairs", OPTIONS)
    with tempfile.TemporaryDirectory() as folder:
        trained = crh_tune.train(SETTINGS, to=folder)
        encoder, index = crh_tune.load_encoder(folder), crh_tune.load_index(folder)
    queries = crh_tune.LabelledCodes(encoder.encode(dataset.queries.inputs), dataset.queries.labels, BITS)
    ranked = crh_tune.LabelledCodes(index.words, index.labels, BITS)
    values = crh_tune.average_precisions(queries, ranked, crh_tune.RankingProtocol())
    steps = (np.arange(ROWS) + 0.5) / ROWS * len(values)
    chosen = np.argsort(values, kind="stable")[steps.astype(int)]
    rows, distances = index.search(queries.words[chosen], COLUMNS)
    figure, axes = plt.subplots(ROWS, COLUMNS + 1, figsize=(11, 0.86 * ROWS + 0.5))
    for line, query in enumerate(chosen):
        label = dataset.queries.labels[query]
        _show(axes[line, 0], dataset.queries.inputs[query], "black", f"query: AP {values[query]:.2f}")
        for place, (row, bits) in enumerate(zip(rows[line], distances[line], strict=True), start=1):
            colour = RIGHT if index.labels[row] == label else WRONG
            _show(
                axes[line, place],
                dataset.train.inputs[int(index.items[row])],
                colour,
                f"{bits} bit{'' if bits == 1 else 's'}",
            )
    figure.suptitle(
        f"The ten nearest of {len(index.labels)} training pairs by Hamming distance, 16 bits each "
        f"(green: the same class; mAP of all {len(values)} queries {trained.metrics['test/map']:.3f})",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("neighbours.png"), dpi=90)


def _show(axes: plt.Axes, image: np.ndarray, colour: str, title: str) -> None:
    axes.imshow(255 - image[0], cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=7, pad=2)
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2.5)


if __name__ == "__main__":
    main()
