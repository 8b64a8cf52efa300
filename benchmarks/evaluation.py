"""What scoring a ranking costs against what public code does. Prints a Markdown table.

    .venv/bin/python -m benchmarks.evaluation

References, written from their descriptions: ``torch`` ranks 50 queries at a time with a float matrix product and topk,
and takes precisions from cumulative sums; ``loop`` is the NumPy loop of public hashing repositories, one argsort a
query. Both are timed on 20 or 100 queries a round, in turns with ours on all of
them (500 for the asymmetric one), and scaled. The limit is the same
number of popcounts with nothing done with them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.turns import Line, announce, in_turns, span
from crh_tune.compiled import in_parts
from crh_tune.retrieval import kernels
from crh_tune.retrieval.asymmetric import asymmetric_average_precisions
from crh_tune.retrieval.average_precision import LabelledCodes, RankingProtocol, average_precisions
from crh_tune.retrieval.packing import pack_codes

BITS = 64


class Case:
    """Codes around class centres, a fifth of the bits flipped, and labels: one of C, or several."""

    def __init__(self, queries: int, database: int, classes: int, several: bool) -> None:
        generator = np.random.default_rng(0)
        count = queries + database
        if several:
            self.labels = (generator.random((count, classes)) < 0.036).astype(np.uint8)
            self.labels[np.arange(count), generator.integers(0, classes, count)] = 1
            leading = self.labels.argmax(axis=1)
        else:
            self.labels = leading = generator.integers(0, classes, count)
        centers = generator.random((classes, BITS)) < 0.5
        self.codes = centers[leading] ^ (generator.random((count, BITS)) < 0.2)
        self.outputs = np.where(self.codes[:queries], 1, -1) * generator.gamma(2.0, 0.5, (queries, BITS))
        self.outputs = self.outputs.astype(np.float32)
        self.split, self.classes = queries, classes
        packed = pack_codes(self.codes)
        self.queries = LabelledCodes(packed[:queries], self.labels[:queries], BITS)
        self.database = LabelledCodes(packed[queries:], self.labels[queries:], BITS)
        self.signs = torch.from_numpy(np.where(self.codes, np.float32(1), np.float32(-1)))
        self.targets = torch.from_numpy(self.labels.astype(np.float32) if several else self.labels)

    def scaled(self, count: int) -> float:
        return self.split / count

    def torch_map(self, count: int, cutoff: int | None, real: bool = False) -> torch.Tensor:
        """AP of the first queries by matrix product and topk, or, of real outputs, a full sort."""
        stored, labels = self.signs[self.split :], self.targets[self.split :]
        ranks = torch.arange(1, (cutoff or len(stored)) + 1)
        asked = torch.from_numpy(self.outputs) if real else self.signs[: self.split]
        values = []
        for start in range(0, count, 50):
            own = self.targets[start : min(start + 50, count)]
            relevant = own @ labels.T > 0 if own.ndim == 2 else own[:, None] == labels
            scores = asked[start : min(start + 50, count)] @ stored.T
            order = scores.sort(dim=1, descending=True)[1] if real else scores.topk(len(ranks), dim=1)[1]
            hits = relevant.gather(1, order[:, : len(ranks)]).float()
            precision = hits.cumsum(dim=1) / ranks
            values.append((precision * hits).sum(dim=1) / hits.sum(dim=1).clamp(min=1))
        return torch.cat(values)

    def loop_map(self, count: int, cutoff: int | None) -> float:
        """The public repositories' loop: relevance, Hamming distances and an argsort of one query at a time."""
        signs, labels = self.signs.numpy(), self.targets.numpy()
        stored, own, total = signs[self.split :], labels[self.split :], 0.0
        for query in range(count):
            relevant = labels[query] @ own.T > 0 if own.ndim == 2 else labels[query] == own
            distances = 0.5 * (BITS - signs[query] @ stored.T)
            hits = relevant.astype(np.float32)[np.argsort(distances)][:cutoff]
            places = np.flatnonzero(hits) + 1
            if len(places):
                total += float(np.mean(np.arange(1, len(places) + 1) / places))
        return total / count

    def popcounts(self) -> None:
        words, queries = np.ascontiguousarray(self.database.words.T), self.queries.words

        def part(start: int, stop: int) -> None:
            row = np.empty(kernels.BLOCK, dtype=np.uint8)
            for query in queries[start:stop]:
                for first in range(0, len(self.database), kernels.BLOCK):
                    kernels.distances_into(query, words, first, min(first + kernels.BLOCK, len(self.database)), row)

        in_parts(part, len(queries), None)

    def ours(self, cutoff: int | None, ties: str) -> Callable[[], object]:
        protocol = RankingProtocol(cutoff, ties)  # type: ignore[arg-type]
        return lambda: average_precisions(self.queries, self.database, protocol)

    def check(self, cutoff: int | None) -> None:
        """That ours and torch's, whose order inside ties is its own, measure the same thing."""
        own = average_precisions(self.queries[:200], self.database, RankingProtocol(cutoff))
        theirs = float(self.torch_map(200, cutoff).mean())
        if abs(theirs - np.nan_to_num(own).mean()) > 0.01:
            raise SystemExit(f"mAP differs: ours {np.nan_to_num(own).mean():.4f}, torch {theirs:.4f}")


def compare(case: Case, name: str, cutoff: int | None, least: dict[tuple[str, str], float]) -> None:
    case.check(cutoff)
    expected, stable, torch_time, loop_time, popcounts = in_turns(
        case.ours(cutoff, "expected"), case.ours(cutoff, "stable"), lambda: case.torch_map(100, cutoff),
        lambda: case.loop_map(20, cutoff), case.popcounts, rounds=3,
    )  # fmt: skip
    limit = f"popcounts alone {span(popcounts)}"
    for ties, taken in (("expected", expected), ("stable", stable)):
        for reference, theirs in (("torch", torch_time * case.scaled(100)), ("loop", loop_time * case.scaled(20))):
            target = least.get((ties, reference))
            print(Line(f"{name}, {ties} ties", taken, reference, theirs, target, limit=limit), flush=True)


def main() -> None:
    announce("Evaluation", "python -m benchmarks.evaluation")
    coco = Case(5000, 107_218, 80, several=True)
    least = {("expected", "torch"): 10.0, ("expected", "loop"): 50.0, ("stable", "torch"): 5.0}
    compare(coco, "mAP@5,000, COCO (5,000 x 107,218, K 64, 80 labels)", 5000, least)

    def asymmetric() -> object:
        labels = coco.queries.labels[:500]
        return asymmetric_average_precisions(coco.outputs[:500], labels, coco.database, RankingProtocol(5000))

    taken, theirs = in_turns(asymmetric, lambda: coco.torch_map(100, 5000, real=True), rounds=3)
    taken *= coco.scaled(500)
    name, scaled = "asymmetric mAP@5,000, COCO", theirs * coco.scaled(100)
    print(Line(name, taken, "torch product + full sort", scaled, 5.0, limit="8 table look-ups a pair"), flush=True)
    nabirds = Case(24_633, 23_929, 555, several=False)
    least = {("expected", "torch"): 60.0, ("stable", "torch"): 20.0}
    compare(nabirds, "mAP@all, NABirds (24,633 x 23,929, 555 classes)", None, least)


if __name__ == "__main__":
    main()
