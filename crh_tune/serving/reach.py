"""When to train again: how far queries of known classes are from the nearest stored code, and how many are farther.

The export holds how far the queries were that it was measured with. A tenth of them are farther than its threshold.
Where many more of a service's queries are, they show what the encoder was not trained on: a number from the index
itself, without labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.errors import DataError, counted
from crh_tune.ground import first_line, write_json

REACH_FILE = "reach.json"
WITHIN = 0.9
"""The share of known queries that the threshold is to hold."""


@dataclass(frozen=True)
class Reach:
    """``counts[d]``: how many queries of known classes had their nearest stored code at Hamming distance d."""

    counts: tuple[int, ...]

    @classmethod
    def of(cls, nearest: npt.ArrayLike) -> Reach:
        """From the distance of each of N >= 1 queries to its nearest stored code: ``index.search(codes, 1)[1]``."""
        return cls(tuple(np.bincount(np.asarray(nearest, dtype=np.int64).reshape(-1)).tolist()))

    @property
    def threshold(self) -> int:
        """The smallest distance that at least nine of ten known queries do not exceed."""
        within = np.cumsum(self.counts) >= WITHIN * sum(self.counts)
        return int(within.argmax())

    @property
    def known_share(self) -> float:
        """The share of known queries that are farther than the threshold: at most a tenth."""
        return sum(self.counts[self.threshold + 1 :]) / sum(self.counts)

    def share(self, nearest: npt.ArrayLike) -> float:
        """The share of queries whose nearest stored code is farther than the threshold."""
        return float((np.asarray(nearest) > self.threshold).mean())

    def line(self, nearest: Sequence[int]) -> str:
        """What the distances of one or more queries say, in one line."""
        far = sum(each > self.threshold for each in nearest)
        return (
            f"{far} of {counted(len(nearest), 'query', 'queries')} farther than {self.threshold} bits from every "
            f"stored code; of queries of known classes {self.known_share:.0%} were: where many more are, train again"
        )

    def note(self, nearest: int) -> str:
        """What the distance of a single query says, in one line; nothing where it is as that of known queries."""
        if nearest <= self.threshold:
            return ""
        return f"no stored code within {self.threshold} bits: it may show what the encoder was not trained on"


def write_reach(folder: Path, reach: Reach) -> None:
    """Write an export's reach. Raises OSError."""
    write_json(folder / REACH_FILE, {"counts": reach.counts})


def load_reach(folder: str | Path) -> Reach | None:
    """The reach of an export; None for one by an older version.

    Raises DataError, naming the file, where it is broken.
    """
    path = Path(folder) / REACH_FILE
    if not path.exists():
        return None
    try:
        content: Any = json.loads(path.read_bytes())["counts"]
        if not content or not all(type(each) is int and each >= 0 for each in content) or not sum(content):
            raise ValueError("counts that are no numbers of queries")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path}: not what crh-tune export writes: {first_line(error)}") from None
    return Reach(tuple(content))
