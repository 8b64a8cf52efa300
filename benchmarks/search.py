"""What strategies of search spend, and what they hand over is worth: trained, replayed, made up.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.search --fill crh_runs/search_table.json    # trains, resumes
    .venv/bin/python -m benchmarks.search --replay crh_runs/search_table.json
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.search --live crh_runs/searches.jsonl       # trains, resumes
    .venv/bin/python -m benchmarks.search --simulate
    .venv/bin/python -m benchmarks.search --worth crh_runs/digit-pairs-001 crh_runs/digit-pairs-002

The search is the built-in one; with ``--photos DIR`` it is that of photos, at 16 bits, in files of its own.

``--fill`` trains random settings (the first is the paper's), five seeds each, and keeps val/map after every epoch.
``--replay`` needs that table and no training: many searches of each strategy that draws settings at random.
``--live`` runs whole searches of the product, for strategies that a table cannot answer, and prints a row each.
``--simulate`` races made-up settings whose worth and noise have the spread that was measured.
``--worth`` trains the winners of finished searches with seeds of their own.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np

from benchmarks import search_live, search_replay, search_worth
from benchmarks.search_table import fill, read_table, shipped
from crh_tune.tuning import race

NOISE = 0.016
"""The standard deviation of val/map from seed to seed."""
SPREAD = 0.0126
"""That of what settings are worth: a number with one seed's noise then has a Spearman correlation of .60 with it."""
JUDGE_LAST, JUDGE_CURVE = 0.016, 0.0081
"""The noise of what a trial is judged by, where its correlation with worth is .60, or .83."""


def simulated(
    judge: float, top: int, seeds: int, racing: bool, chance: np.random.Generator
) -> tuple[float, int, float]:
    """One search of 24 trials with made-up worths, of mean 0, and its confirmation.

    ``judge`` is the noise of what finalists are chosen by. Returns the worth of the winner, the runs of the
    confirmation, and by how much the winner's mean is too good.
    """
    worths = chance.normal(0, SPREAD, 24)
    order = np.argsort(-(worths + chance.normal(0, judge, 24)))[:top]
    worth = {**{str(index): float(worths[index]) for index in order}, "paper": -SPREAD}
    values: dict[str, list[float]] = {name: [] for name in worth}
    left, runs = list(worth), 0
    for seed in range(1, seeds + 1):
        runs += len(left)
        for name in left:
            values[name].append(worth[name] + float(chance.normal(0, NOISE)))
        if racing:
            stay = race.stay({name: values[name] for name in left}, "paper", race.places(top, seed, seeds), 1)
            left = [*stay, "paper"]
            if not stay or (len(stay) == 1 and race.clear(race.gain(values, stay[0], "paper"), 1)):
                break
    best = max(left, key=lambda name: statistics.fmean(values[name]))
    return worth[best], runs, statistics.fmean(values[best]) - worth[best]


def simulate(searches: int = 1500) -> None:
    """Print what ways to confirm are worth, over the mean of all settings, each on the same made-up searches."""
    print("| finalists by | confirmation | worth | runs | too good by |\n|---|---|---|---|---|")
    for judged, noise in (("the last number", JUDGE_LAST), ("the mean of the curve", JUDGE_CURVE)):
        for top, seeds, racing in (
            (3, 3, False),
            (3, 3, True),
            (2, 2, False),
            (2, 2, True),
            (4, 4, True),
            (6, 4, True),
        ):
            chance = np.random.default_rng(0)
            found = np.array([simulated(noise, top, seeds, racing, chance) for _ in range(searches)])
            half = 1.96 * found[:, 0].std() / len(found) ** 0.5
            worth, runs, too_good = found.mean(axis=0)
            how = f"{'race of' if racing else 'all of'} {top}, {seeds} seeds"
            print(f"| {judged} | {how} | {worth:+.4f} ± {half:.4f} | {runs:.1f} | {too_good:+.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fill", type=Path, metavar="FILE")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--live", type=Path, metavar="FILE")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="class folders: fill and live search these photos")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--worth", type=Path, nargs="+", metavar="SEARCH", help="folders of finished searches")
    parser.add_argument("--settings", type=int, default=60, help="of the table")
    parser.add_argument("--searches", type=int, help="of each strategy: 200 replayed, 10 live")
    parser.add_argument("--strategies", nargs="+", choices=search_live.STRATEGIES, default=[*search_live.STRATEGIES])
    parser.add_argument("--minutes", type=float, default=15, help="of one core, for --fill and --live")
    arguments = parser.parse_args()
    if arguments.fill:
        fill(arguments.fill, shipped(arguments.photos), arguments.settings, arguments.minutes)
    if arguments.replay:
        search_replay.report(read_table(arguments.replay), arguments.searches or 200)
    if arguments.live:
        space = shipped(arguments.photos)
        search_live.live(arguments.live, space, arguments.strategies, arguments.searches or 10, arguments.minutes)
        search_live.report(arguments.live)
    if arguments.worth:
        search_worth.report(arguments.worth)
    if arguments.simulate:
        simulate()


if __name__ == "__main__":
    main()
