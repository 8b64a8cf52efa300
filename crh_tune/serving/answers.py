"""An encoder and an index together: what a query's neighbours are, in words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from crh_tune.errors import DataError
from crh_tune.retrieval.index import Index
from crh_tune.retrieval.packing import Packed
from crh_tune.serving.encoder import Array, Encoder, load_encoder
from crh_tune.serving.index import About, open_index
from crh_tune.serving.photos import Found
from crh_tune.serving.reach import Reach, load_reach

COUNT = 10


@dataclass(frozen=True)
class Answers:
    """An encoder, an index of its codes, what the index says of itself, and how far known queries are."""

    encoder: Encoder
    index: Index
    about: About
    reach: Reach | None = None

    def near_inputs(self, inputs: Array, count: int = COUNT) -> list[list[Found]]:
        """The nearest items of N inputs, nearest first. Raises ValueError for inputs of another shape or type."""
        return self.near_codes(self.encoder.encode(inputs), count)

    def near_row(self, row: int, count: int = COUNT) -> list[Found]:
        """The nearest items of an item of the index."""
        return self.near_codes(self._words[row : row + 1], count)[0]

    @cached_property
    def _words(self) -> Packed:
        return self.index.words  # which the index puts together anew each time

    def near_codes(self, words: Any, count: int = COUNT) -> list[list[Found]]:
        """The nearest items of each packed code, nearest first, equal distances in the index's order."""
        rows, distances = self.index.search(words, count)
        items, label = self.index.items, self.about.label
        return [
            [
                Found(int(row), int(distance), label(self.index.labels[row]), str(items[row]))
                for row, distance in zip(each, far, strict=True)
            ]
            for each, far in zip(rows, distances, strict=True)
        ]


def open_answers(export: Path, index: Path | None = None) -> Answers:
    """An export's encoder with an index of its codes: the export's own, or another folder.

    Raises DataError where one of them is missing or broken, or they do not belong together.
    """
    encoder, (found, about) = load_encoder(export), open_index(index or export)
    want_own(encoder, about.encoder or encoder.name, index or export)
    if found.words.dtype != encoder.empty.dtype or found.words.shape[1] != encoder.empty.shape[1]:
        raise DataError(f"{index or export}: codes of another length than this export's {encoder.bits} bits")
    names = about.class_names or encoder.class_names
    return Answers(encoder, found, replace(about, class_names=names), load_reach(export))


def want_own(encoder: Encoder, name: str, path: Path) -> None:
    """Raises DataError where codes are those of an encoder of another name."""
    if name != encoder.name:
        raise DataError(f"{path}: codes of another encoder than this export's: encode the photos with it")
