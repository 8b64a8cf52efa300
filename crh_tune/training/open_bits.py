"""Bits of a code that are not trained: directions of the inputs that vary between images, but little within classes.

Trained bits know the classes they were trained on, and lose what tells others apart. These keep it: the inputs are
whitened by how they vary within classes, which new classes share; the directions along which the classes differ most
are kept, and iterative quantization (Gong and Lazebnik, CVPR 2011) turns them so that their signs say most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.data.splits import Samples
from crh_tune.retrieval.baselines import LinearCodes, pca_itq, random_rotation
from crh_tune.settings.base import SettingsError

Matrix = npt.NDArray[np.float64]
MOST_VALUES = 4096
"""How many values an input may have: a square matrix of so many rows is decomposed."""
_CHUNK = 4096
_SHRINKAGE = 0.6
"""How far the variation within classes is taken for the same in all directions: few images a class tell little."""
_BETWEEN = 0.99
"""What counts of how classes differ; the rest is how all images do, which fills up where there are fewer classes than
bits."""


class _Vectors:
    """Inputs as rows of numbers, a few at a time; images are cut to the network's shape at their centre."""

    def __init__(self, inputs: Any, shape: tuple[int, ...]) -> None:
        self._inputs, self._shape = inputs, shape
        self.shape = (len(inputs), int(np.prod(shape)))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        part = np.asarray(self._inputs[rows])
        if part.ndim == 4:
            top, left = ((part.shape[axis] - self._shape[axis - 1]) // 2 for axis in (2, 3))
            part = part[:, :, top : top + self._shape[1], left : left + self._shape[2]]
        return part.reshape(len(part), -1)


def fit_open_bits(samples: Samples, shape: tuple[int, ...], classes: int, bits: int, seed: int) -> LinearCodes:
    """Codes sign((x - mean) projection) of inputs of a shape, D values each, fitted on training samples and labels.

    What is signed has size 1 in the mean over the training samples, as trained outputs are drawn to.

    Raises SettingsError where an input has more than 4,096 values.
    """
    vectors = _Vectors(samples.inputs, shape)
    size = vectors.shape[1]
    if size > MOST_VALUES:
        raise SettingsError(
            f"trial.open_bits: inputs of {size} values are too many, {MOST_VALUES} can be had: "
            "freeze a pretrained backbone (trial.freeze), or take smaller images"
        )
    mean, within, between = _scatters(vectors, samples.labels, classes)
    spread = np.trace(within) / size
    within = (1 - _SHRINKAGE) * within + _SHRINKAGE * (spread or 1.0) * np.eye(size)
    wanted = _BETWEEN * between + (1 - _BETWEEN) * (between + within)
    kept = min(bits, size)
    import scipy.linalg  # noqa: PLC0415  # which a run without open bits does not need

    _, axes = scipy.linalg.eigh(wanted, within, subset_by_index=(size - kept, size - 1))
    axes = axes[:, ::-1]
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(kept)] < 0, -1, 1)
    turned = axes @ random_rotation(bits, seed)[:kept]
    fitted = pca_itq(vectors, bits, seed, start=LinearCodes(mean, turned))
    scale = float(np.abs(fitted.project(vectors)).mean()) or 1.0
    return LinearCodes(fitted.mean, fitted.projection / scale)


def _scatters(vectors: _Vectors, labels: npt.NDArray[Any], classes: int) -> tuple[Matrix, Matrix, Matrix]:
    """Mean (D), and how inputs vary within and between classes (D x D each, divided by N).

    A sample with several labels has the mean of their means; one without any has the mean of all.
    """
    size, count = vectors.shape[1], len(vectors)
    totals, weights = np.zeros((classes, size)), np.zeros(classes)
    for start in range(0, count, _CHUNK):
        part, share = vectors[start : start + _CHUNK], _shares(labels[start : start + _CHUNK], classes)
        totals += share.T @ part
        weights += share.sum(axis=0)
    mean = np.zeros(size)
    for start in range(0, count, _CHUNK):
        mean += vectors[start : start + _CHUNK].sum(axis=0, dtype=np.float64)
    mean /= count
    means = totals / np.maximum(weights, 1e-12)[:, None] - mean
    within, between = np.zeros((size, size)), np.zeros((size, size))
    for start in range(0, count, _CHUNK):
        own = _shares(labels[start : start + _CHUNK], classes) @ means
        apart = vectors[start : start + _CHUNK] - mean - own
        within += apart.T @ apart
        between += own.T @ own
    return mean, within / count, between / count


def _shares(labels: npt.NDArray[Any], classes: int) -> Matrix:
    """N x C: how much each sample is of each class; rows sum to 1, or to 0 without a label."""
    rows = np.eye(classes)[labels] if labels.ndim == 1 else labels.astype(np.float64)
    return np.asarray(rows / np.maximum(rows.sum(axis=1, keepdims=True), 1))
