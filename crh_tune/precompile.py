"""Compile the inner loops once, right after installation, so that the processes of a search find them ready.

    python -m crh_tune.precompile

Takes about half a minute of one core. Without it the first process that needs a loop compiles it.
"""

from __future__ import annotations

import numpy as np
import torch

from crh_tune.hashing.assignment import class_statistic, reassign
from crh_tune.hashing.codebook import WholeSpace, sample_codebook
from crh_tune.retrieval.asymmetric import asymmetric_average_precisions
from crh_tune.retrieval.average_precision import LabelledCodes, RankingProtocol, average_precisions
from crh_tune.retrieval.index import Index
from crh_tune.retrieval.packing import pack_codes

BITS = 16


def main() -> None:
    generator = np.random.default_rng(0)
    codes, outputs = generator.random((40, BITS)) < 0.5, generator.normal(size=(40, BITS)).astype(np.float32)
    classes = np.arange(40) % 4
    for labels in (classes, np.eye(4, dtype=np.uint8)[classes]):
        both = LabelledCodes(pack_codes(codes), labels, BITS)
        average_precisions(both, both, RankingProtocol(), 1)
        asymmetric_average_precisions(outputs, labels, both, RankingProtocol(), 1)
        statistic = class_statistic(torch.from_numpy(codes), torch.from_numpy(labels), 4)
        for book in (sample_codebook(BITS, 8, BITS, 0), WholeSpace(BITS)):
            reassign(statistic, book, book.initial_table(4, 0), rule="greedy", seed=0, round_number=1)
    index = Index(pack_codes(codes), classes, np.arange(40))
    index.search(pack_codes(codes), 3)
    index.search(outputs, 3)


if __name__ == "__main__":
    main()
