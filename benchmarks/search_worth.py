"""What the winners of finished searches are worth: whole runs with seeds that no search had.

On the validation queries, which the search saw, and on the test queries, which it did not.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import torch

from benchmarks.search_live import with_worth_seeds
from benchmarks.search_table import split_of
from crh_tune.data.splits import Samples, Split, final_split
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.evaluation import encode_share, gather_codes, outputs_share, ranking_map
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import open_data
from crh_tune.training.workers import Workers
from crh_tune.tuning.record import read_settings
from crh_tune.tuning.results import Candidate, read_result


def report(folders: list[Path]) -> None:
    """A row a search and their mean: of the winner and the paper's setting what the search says and the two worths."""
    torch.set_num_threads(1)
    known: dict[str, tuple[float, float]] = {}
    names = ["winner says", "is worth", "on test queries", "the paper's setting says", "is worth", "on test queries"]
    print(f"| search | {' | '.join(names)} | gain said | worth | on test queries |\n|{'---|' * 10}")
    rows = []
    for folder in folders:
        settings, result = read_settings(folder), read_result(folder)
        split, unseen = split_of(settings), final_split(open_data(settings.dataset, settings.trial)).queries
        best, paper = ([each.mean, *_worths(each, split, unseen, known)] for each in (result.best, result.paper))
        rows.append([*best, *paper, *(ours - theirs for ours, theirs in zip(best, paper, strict=True))])
        print(f"| {folder} | {' | '.join(f'{value:.4f}' for value in rows[-1])} |", flush=True)
    means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    print(f"| mean | {' | '.join(f'{value:.4f}' for value in means)} |")


def _worths(
    candidate: Candidate, split: Split, unseen: Samples, known: dict[str, tuple[float, float]]
) -> tuple[float, float]:
    """The mean mAP on the search's validation queries and on unseen ones, ranked against its training samples."""
    key = json.dumps(candidate.settings)
    if key not in known:
        settings = TrialSettings.model_validate(candidate.settings)
        both = [_run(seeded, split, unseen) for seeded in with_worth_seeds(settings)]
        known[key] = statistics.fmean(own for own, _ in both), statistics.fmean(other for _, other in both)
    return known[key]


def _run(settings: TrialSettings, split: Split, unseen: Samples) -> tuple[float, float]:
    workers = Workers()
    run = TrainingRun(settings, split, workers, solve_locally)
    own = run.train(lambda metrics, save: None)["val/map"]
    database = gather_codes(encode_share(run.network, split.train, workers), split.ranked, workers)
    queries = gather_codes(outputs_share(run.network, unseen, workers) >= 0, unseen, workers)
    return own, ranking_map(queries, database, settings.evaluation.protocol, workers)
