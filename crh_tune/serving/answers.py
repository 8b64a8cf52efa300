"""An encoder and an index together: what a query's neighbours are, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from crh_tune.errors import DataError
from crh_tune.retrieval.index import Index
from crh_tune.retrieval.packing import Packed, hamming_distances
from crh_tune.serving.encoder import BATCH, Array, Encoder, load_encoder
from crh_tune.serving.index import About, open_index
from crh_tune.serving.photos import Found
from crh_tune.serving.reach import Reach, load_reach

COUNT = 10
By = Literal["bits", "outputs"]
"""How neighbours are ranked: by Hamming distance of codes, or by u . b of the query's real outputs and stored bits."""
WAYS: tuple[By, ...] = get_args(By)


@dataclass(frozen=True)
class Answers:
    """An encoder, an index of its codes, what the index says of itself, and how far known queries are."""

    encoder: Encoder
    index: Index
    about: About
    reach: Reach | None = None

    def near_inputs(self, inputs: Array, count: int = COUNT, by: By = "bits") -> list[tuple[list[Found], int]]:
        """The nearest items of N inputs, nearest first, and how many bits away the nearest code of all is.

        Raises ValueError for inputs of another shape or type.
        """
        outputs, words = self.encoder.both(inputs)
        found = self.near(words, outputs if by == "outputs" else None, count)
        return list(zip(found, self.index.search(words, 1)[1][:, 0].tolist(), strict=True))

    def near_files(
        self, paths: Sequence[str | Path], count: int = COUNT, by: By = "bits"
    ) -> list[tuple[list[Found], int]]:
        """The same of N image files. Raises ValueError, naming the file, where one is no image."""
        self.encoder.want_images()
        parts = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
        inputs = (np.stack([self.encoder.read(path) for path in part]) for part in parts)
        return [near for part in inputs for near in self.near_inputs(part, count, by)]

    def near_row(self, row: int, count: int = COUNT) -> list[Found]:
        """The nearest items of an item of the index, by its stored bits."""
        return self.near(self.index.codes_of(np.array([row])), None, count)[0]

    def near(self, words: Packed, outputs: Array | None = None, count: int = COUNT) -> list[list[Found]]:
        """The nearest items of N packed codes, nearest first, equal ones in the index's order.

        By Hamming distance, or where real outputs (N x K) are given by their score u . b.
        """
        rows, values = self.index.search(words if outputs is None else outputs, count)
        items, labels, label = self.index.items, self.index.labels, self.about.label
        found = []
        for own, near, costs in zip(words, rows, values, strict=True):
            far = costs if outputs is None else hamming_distances(own[None], self.index.codes_of(near))[0]
            scores = [None] * len(near) if outputs is None else costs.tolist()
            found.append([
                Found(int(row), int(distance), label(labels[row]), str(items[row]), score)
                for row, distance, score in zip(near, far, scores, strict=True)
            ])  # fmt: skip
        return found


def open_answers(export: Path, index: Path | None = None) -> Answers:
    """An export's encoder with an index of its codes: the export's own, or another folder.

    Raises DataError where one of them is missing or broken, or they do not belong together.
    """
    whole, (found, about) = load_encoder(export), open_index(index or export)
    want_own(whole, about.encoder or whole.name, index or export)
    try:
        encoder = whole.of_bits(about.bits or whole.bits)
    except ValueError as error:
        raise DataError(f"{index or export}: {error}") from None
    if (found.empty.dtype, found.empty.shape) != (encoder.empty.dtype, encoder.empty.shape):
        raise DataError(f"{index or export}: codes of another length than this export's {encoder.bits} bits")
    names = about.class_names or encoder.class_names
    reach = load_reach(export) if encoder.bits == whole.bits else None  # which was measured with whole codes
    return Answers(encoder, found, replace(about, class_names=names), reach)


def want_own(encoder: Encoder, name: str, path: Path) -> None:
    """Raises DataError where codes are those of an encoder of another name."""
    if name != encoder.name:
        raise DataError(f"{path}: codes of another encoder than this export's: encode the photos with it")
