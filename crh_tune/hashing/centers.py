"""Where a trial's codebook, and with it the first centres, come from: rebuilt anywhere from a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from crh_tune.hashing.codebook import AnyCodebook, Codebook, Codes, Table, WholeSpace, sample_codebook
from crh_tune.hashing.hadamard import bernoulli_centers, csq_centers
from crh_tune.hashing.mds import mds_centers
from crh_tune.hashing.methods import Centers


@dataclass(frozen=True)
class CodebookSpec:
    """All that a codebook depends on: K, M ("full" for all 2^K words), d, the seed, and what draws it.

    ``words`` holds the centres themselves (C x K bytes, -1 and +1 as int8) where they were learned from data, as SHC's.
    """

    bits: int
    size: int | Literal["full"]
    head_dim: int
    seed: int
    centers: Centers = "codebook"
    words: bytes = b""


@lru_cache(maxsize=64)
def build_codebook(spec: CodebookSpec) -> AnyCodebook:
    """The codebook of a spec: the same in the driver, the aggregator and every worker."""
    if spec.size == "full":
        return WholeSpace(spec.bits)
    if spec.words:
        return _one_head(np.frombuffer(spec.words, dtype=np.int8).reshape(spec.size, spec.bits))
    if spec.centers == "bernoulli":
        return _one_head(bernoulli_centers(spec.bits, spec.size, spec.seed))
    if spec.centers == "hadamard":
        return _one_head(csq_centers(spec.bits, spec.size, spec.seed))
    if spec.centers == "mds":
        return _one_head(mds_centers(spec.bits, spec.size, spec.seed))
    return sample_codebook(spec.bits, spec.size, spec.head_dim, spec.seed)


def first_table(spec: CodebookSpec, codebook: AnyCodebook, classes: int) -> Table:
    """The first assignment, H x C: drawn from a codebook; each class its own where the centres are the codebook."""
    if spec.centers == "codebook":
        return codebook.initial_table(classes, spec.seed)
    return np.arange(classes, dtype=np.int64)[None, :]


def _one_head(centers: Codes) -> Codebook:
    return Codebook(centers[None])
