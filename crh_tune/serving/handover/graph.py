"""A graph index (HNSW) of the codes, where one is asked for: what it misses is measured before it is handed over.

Many items have the same code, and a graph's links are spent on those: it can miss neighbours at distance 0. It is
measured with faiss, which has one of the same parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.errors import DataError
from crh_tune.serving.index import Index

LINKS, BUILD, SEARCH = 16, 200, 128
"""HNSW's M, ef_construction and ef_search."""
NEAREST = 10
_QUERIES = 1000


@dataclass(frozen=True)
class Graph:
    """faiss's graph of an index's codes, and its recall@10 against the index: ``recalls`` of Q of its own codes.

    ``gaps``, Q x 2: how far the tenth item found is, and how far the tenth of the exact search.
    """

    faiss: Any
    recalls: npt.NDArray[np.float64]
    gaps: npt.NDArray[np.int64]

    def lines(self) -> list[str]:
        """What was measured, in sentences."""
        missing, worst = int((self.recalls < 1).sum()), int(np.argmax(self.gaps[:, 0] - self.gaps[:, 1]))
        found, exact = self.gaps[worst].tolist()
        lines = [
            f"recall@{NEAREST} of a graph (HNSW: M {LINKS}, ef_construction {BUILD}, ef_search {SEARCH}), against the "
            f"exact index on {len(self.recalls):,} of its own codes: {self.recalls.mean():.4f} on average, "
            f"{self.recalls.min():.2f} for the worst query; {missing:,} queries missed something"
        ]
        if found > exact:
            lines.append(f"worst: an item at distance {found} among the ten, where all ten lie within {exact}")
        return lines


def measure(index: Index, codes: npt.NDArray[np.uint8]) -> Graph:
    """Build a graph of N x B bytes of codes with faiss and search it for some of them, drawn by a seed.

    An item counts as found where it is as near as the tenth of the exact search. Raises DataError without faiss.
    """
    try:
        import faiss  # noqa: PLC0415
    except ImportError:
        raise DataError("--graph: faiss measures what a graph misses: pip install 'crh-tune[faiss]'") from None
    graph = faiss.IndexBinaryHNSW(8 * codes.shape[1], LINKS)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = BUILD, SEARCH
    graph.add(codes)
    rows = np.sort(np.random.default_rng(0).permutation(len(index))[:_QUERIES])
    count = min(NEAREST, len(index))
    exact = index.search(index.codes_of(rows), count)[1]
    found, ids = graph.search(codes[rows], count)
    distances = np.where(ids < 0, 8 * codes.shape[1], found).astype(np.int64)  # -1: fewer were found
    recalls = ((ids >= 0) & (distances <= exact[:, -1:])).mean(axis=1)
    return Graph(graph, recalls, np.stack([distances.max(axis=1), exact[:, -1]], axis=1))


def in_words(graph: Graph | None, store: str) -> dict[str, Any]:
    """What a store's scripts and README say of its graph, or that there is none."""
    if graph is None:
        return {"kind": "IndexBinaryFlat`: exact, no graph", "hnsw": "m=0", "how": "exact=True"}
    asked = "`graph_load.sql` makes it (after `load.sql`; pgvector 0.7 or newer), `graph_query.sql` searches it."
    return {
        "links": LINKS, "build": BUILD, "search": SEARCH, "kind": "IndexBinaryHNSW`: a graph, not exact",
        "hnsw": f"m={LINKS}, ef_construct={BUILD}", "how": f"hnsw_ef={SEARCH}",
        "measured": "\n".join(f"- {line}" for line in graph.lines()),
        "estimate": "" if store == "faiss" else f" An estimate: {store}'s own graph was not run.",
        "files": f"\n\n{asked}" if store == "pgvector" else "",
    }  # fmt: skip
