"""What a search in the index costs against faiss's exact one. Prints a Markdown table.

    .venv/bin/python -m benchmarks.index            (pip install 'crh-tune[faiss]')

Codes of 64 bits, k = 10. ``faiss`` is IndexBinaryFlat on all cores, in turns with ours on the same queries. Simulated
multiplicities: as many distinct codes as were measured on trained codes (10 % of 16,000 photos of 100 classes, 3 % of
6,500 of 196), their sizes drawn from a heavy-tailed distribution.
"""

from __future__ import annotations

import resource

import faiss
import numpy as np

from benchmarks.turns import Line, announce, in_turns, seconds
from crh_tune.retrieval.index import Index

K = 10


def both(words: np.ndarray) -> tuple[Index, faiss.IndexBinaryFlat]:
    theirs = faiss.IndexBinaryFlat(64)
    theirs.add(words.view(np.uint8))
    return Index(words, np.zeros(len(words), dtype=np.uint8), np.arange(len(words))), theirs


def check(ours: Index, theirs: faiss.IndexBinaryFlat, queries: np.ndarray) -> None:
    found = ours.search(queries, K)[1]
    if not np.array_equal(found, theirs.search(queries.view(np.uint8), K)[0]):
        raise SystemExit("distances differ from faiss's")


def compare(name: str, words: np.ndarray, queries: np.ndarray, batch: float, single: float | None) -> None:
    ours, theirs = both(words)
    check(ours, theirs, queries)
    outputs = np.random.default_rng(5).normal(size=(len(queries), 64)).astype(np.float32)
    ones = iter(range(10**6))

    def one() -> np.ndarray:
        place = next(ones) % len(queries)
        return queries[place : place + 1]

    times = in_turns(
        lambda: ours.search(queries, K), lambda: theirs.search(queries.view(np.uint8), K),
        lambda: ours.search(one(), K), lambda: theirs.search(one().view(np.uint8), K),
        lambda: ours.search(outputs, K), rounds=9,
    )  # fmt: skip
    share = f"{ours.distinct:,} distinct codes ({ours.distinct / len(words):.1%})"
    print(Line(f"{name}, 100 queries", times[0], "faiss", times[1], batch, limit=share), flush=True)
    print(Line(f"{name}, one query", times[2], "faiss", times[3], single, limit=share), flush=True)
    line = Line(f"{name}, 100 queries by outputs", times[4], "faiss, by distance", times[1], single, limit=share)
    print(line, flush=True)


def simulated(generator: np.random.Generator, size: int, share: float) -> np.ndarray:
    codes = generator.integers(0, 2**64, int(size * share), dtype=np.uint64)
    weights = generator.pareto(1.0, len(codes)) + 1
    rest = generator.choice(len(codes), size - len(codes), p=weights / weights.sum())
    return generator.permutation(np.concatenate([codes, codes[rest]]))[:, None]


def ten_million(generator: np.random.Generator) -> None:
    words = generator.integers(0, 2**64, (10_000_000, 1), dtype=np.uint64)
    index = Index(words, np.zeros(len(words), np.uint8), np.arange(len(words), dtype=np.uint32))
    held = (index._codes.nbytes + index._rows.nbytes + index._ends.nbytes) / 1e6
    queries = words[:100].copy()
    index.search(queries, K)
    taken = seconds(lambda: index.search(queries, K))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    limit = f"{held:.0f} MB besides ids and labels; the process {peak:.0f} MB while building"
    name = "10,000,000 random codes, 100 queries"
    print(Line(name, taken, "none", None, limit=limit, also="<= 200 MB", also_met=held <= 200), flush=True)


def main() -> None:
    announce("Index", "python -m benchmarks.index")
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**64, (1_000_000, 1), dtype=np.uint64)
    queries = generator.integers(0, 2**64, (100, 1), dtype=np.uint64)
    compare("1,000,000 random codes", words, queries, 2.0, 1.0)
    for share in (0.10, 0.03):
        words = simulated(generator, 1_000_000, share)
        queries = words[generator.integers(0, len(words), 100)] ^ np.uint64(1 << 7)
        compare(f"1,000,000 codes, {share:.0%} distinct", words, queries, 10.0, None)
    ten_million(generator)


if __name__ == "__main__":
    main()
