"""Where a trial's codebook, and with it the first centres, come from: rebuilt anywhere from a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from crh_tune.hashing.codebook import AnyCodebook, WholeSpace, sample_codebook


@dataclass(frozen=True)
class CodebookSpec:
    """All that a codebook depends on: K, M ("full" for all 2^K words), d and the seed it is drawn with."""

    bits: int
    size: int | Literal["full"]
    head_dim: int
    seed: int


@lru_cache(maxsize=64)
def build_codebook(spec: CodebookSpec) -> AnyCodebook:
    """The codebook of a spec: the same in the driver, the aggregator and every worker."""
    if spec.size == "full":
        return WholeSpace(spec.bits)
    return sample_codebook(spec.bits, spec.size, spec.head_dim, spec.seed)
