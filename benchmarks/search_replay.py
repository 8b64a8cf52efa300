"""Searches replayed on a table of trained settings: what each strategy spends, finds and says, race included.

A replay draws settings from the table without putting them back, the paper's first as in the product, and gives the
search one of the seeds (or each trial one of three), the race three others. What the winner is worth is its mean over
the seeds that neither the race nor its own trial had. So no number counts that was chosen for being high.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from benchmarks.search_table import Table, variances
from crh_tune.tuning import race

GROUPS = 10
"""The interval of a mean is the jackknife's over so many groups of the table's settings, each left out once."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Strategy:
    """A search of random settings and its confirmation.

    Attributes:
        settings: how many trials, the paper's setting among them.
        rungs: after which epochs trials are compared; none: all run to their end.
        reduction: at a rung, a trial goes on that is among the best 1 / reduction of those that came before it.
        keep: instead, the first rung waits for all trials, and so many of them go on.
        finish: whether trials run on after the last rung; if not, what they show there names the finalists.
        at_rungs, finalists_by: what trials are judged by: a key of JUDGES.
        model: finalists are those with the best mean of a Gaussian process over the settings.
        fill: where fewer trials ended than ``top``, the best of those that were stopped last race too.
        top, seeds: of the race.
        each: every trial has a seed of its own.
    """

    name: str
    settings: int = 24
    rungs: Sequence[int] = ()
    reduction: float = 3
    keep: int = 0
    finish: bool = True
    at_rungs: str = "last"
    finalists_by: str = "last"
    model: bool = False
    fill: bool = False
    top: int = 3
    seeds: int = 3
    each: bool = False


def _every_fifth(curve: Floats) -> Floats:
    """What the product evaluates of a curve; the first epochs whole where it is shorter."""
    return curve[4::5] if len(curve) >= 5 else curve


JUDGES = {
    "last": lambda curve: float(curve[-1]),
    "mean of the last 3": lambda curve: float(_every_fifth(curve)[-3:].mean()),
    "mean of the curve": lambda curve: float(_every_fifth(curve).mean()),
    "best": lambda curve: float(_every_fifth(curve).max()),
}
"""What a trial is judged by, from val/map after every epoch it had, of which every fifth is seen."""

HALVING = Strategy("successive halving at 5 and 15", rungs=(5, 15))
CURVE = "mean of the curve"
STRATEGIES = [
    HALVING,
    *(replace(HALVING, finalists_by=judge) for judge in ("mean of the last 3", CURVE)),
    replace(HALVING, at_rungs=CURVE, finalists_by=CURVE),
    replace(HALVING, name="successive halving at 5", rungs=(5,)),
    replace(HALVING, each=True),
    replace(HALVING, name="successive halving at 10 and 30", rungs=(10, 30)),
    replace(HALVING, name="successive halving at 10", rungs=(10,)),
    replace(HALVING, name="successive halving at 10", rungs=(10,), finalists_by=CURVE),
    replace(HALVING, name="successive halving at 15", rungs=(15,)),
    replace(HALVING, name="successive halving at 15", rungs=(15,), finalists_by=CURVE),
    replace(HALVING, name="successive halving at 5 and 15, half of them stay", reduction=2),
    replace(HALVING, name="successive halving at 5 and 15", settings=36),
    replace(HALVING, name="successive halving at 5 and 15, stopped ones fill the race", fill=True),
    replace(HALVING, name="successive halving at 5 and 15, stopped ones fill the race", settings=36, fill=True),
    Strategy("all to the end"),
    *(Strategy("all to the end", finalists_by=judge) for judge in ("mean of the last 3", CURVE, "best")),
    Strategy("all to the end", finalists_by=CURVE, model=True),
    Strategy("all to the end", each=True),
    Strategy("all to the end", top=6),
    Strategy("all to the end", settings=36),
    Strategy("1 epoch, the best 6 to the end", settings=36, rungs=(1,), keep=6),
    Strategy("5 epochs, the best 6 to the end", settings=36, rungs=(5,), keep=6),
    Strategy("10 epochs, the best 6 to the end", rungs=(10,), keep=6),
    *(Strategy(f"{epochs} epochs, the best race", rungs=(epochs,), finish=False) for epochs in (5, 10, 15)),
    Strategy("10 epochs, the best race", rungs=(10,), finish=False, finalists_by=CURVE),
    Strategy("10 epochs, the best race", rungs=(10,), finish=False, finalists_by=CURVE, model=True),
    *(Strategy(f"{epochs} epochs, the best race", 36, (epochs,), finish=False) for epochs in (5, 10)),
    Strategy("10 epochs, the best race", rungs=(10,), finish=False, top=6),
    Strategy("halving at 5, the best at 15 race", rungs=(5, 15), finish=False),
    Strategy("halving at 5, the best at 15 race", settings=36, rungs=(5, 15), finish=False),
    Strategy("halving at 5, the best at 15 race", settings=36, rungs=(5, 15), finish=False, top=6),
]


@dataclass(frozen=True)
class Found:
    """What one replay found: the worth of its winner and of the paper's setting, epochs, what the race said of it."""

    worth: float
    paper: float
    search_epochs: int
    race_epochs: int
    said: float


def replay(table: Table, strategy: Strategy, chance: np.random.Generator, without: Sequence[int] = ()) -> Found:
    """One search on settings of the table, ``without`` some of them."""
    there = np.setdiff1d(np.arange(1, len(table.final)), without)
    drawn = np.concatenate([[0], chance.permutation(there)[: strategy.settings - 1]])
    seeds = chance.permutation(table.final.shape[1])
    fresh, pool = seeds[: strategy.seeds], seeds[strategy.seeds :]
    own = chance.choice(pool, len(drawn)) if strategy.each else np.full(len(drawn), pool[0])
    finalists, epochs = search(table.curves[drawn, own], table.features[drawn], strategy)
    best, runs, said = confirm(table.final[drawn][:, fresh], finalists)
    worth, paper = (table.final[drawn[each], pool[pool != own[each]]].mean() for each in (best, 0))
    return Found(float(worth), float(paper), epochs, runs * table.epochs, said)


def search(curves: Floats, features: Floats, strategy: Strategy) -> tuple[list[int], int]:
    """The finalists among trials with these curves, the paper's trial first and not among them; the epochs spent."""
    judge, last = JUDGES[strategy.at_rungs], curves.shape[1]
    if strategy.rungs and not strategy.finish:
        last = strategy.rungs[-1]
    if strategy.keep:
        first = [judge(curve[: strategy.rungs[0]]) for curve in curves]
        kept = {int(each) for each in np.argsort(first)[::-1][: strategy.keep]}
        reached = [last if number in kept else strategy.rungs[0] for number in range(len(curves))]
    else:
        reached = halved(curves, strategy, last)
    ended = [number for number, epoch in enumerate(reached) if epoch == last]
    values = [JUDGES[strategy.finalists_by](curves[number, :last]) for number in ended]
    if strategy.model:
        values = list(smoothed(features[ended], np.array(values)))
    ranked = [ended[each] for each in np.argsort(values)[::-1] if ended[each] != 0]
    if strategy.fill:
        stopped = [number for number in range(1, len(curves)) if reached[number] < last]
        ranked += sorted(stopped, key=lambda each: (reached[each], curves[each, reached[each] - 1]), reverse=True)
    return ranked[: strategy.top], sum(reached)


def halved(curves: Floats, strategy: Strategy, last: int) -> list[int]:
    """How many epochs each trial gets, one after the other, as Ray Tune's ASHA decides."""
    recorded: list[list[float]] = [[] for _ in strategy.rungs]
    reached = []
    for curve in curves:
        reached.append(last)
        for rung, epoch in enumerate(strategy.rungs):
            if epoch >= last:
                break
            value, before = JUDGES[strategy.at_rungs](curve[:epoch]), recorded[rung]
            weak = bool(before) and value < np.percentile(before, 100 * (1 - 1 / strategy.reduction))
            before.append(value)
            if weak:
                reached[-1] = epoch
                break
    return reached


def smoothed(features: Floats, values: Floats) -> Floats:
    """The mean of a Gaussian process at these settings, given their values: lengths 2, noise half the variance."""
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    kernel = ConstantKernel(1.0) * RBF(2.0) + WhiteKernel(0.5)
    model = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True).fit(scaled, values)
    return np.asarray(model.predict(scaled))


def confirm(final: Floats, finalists: Sequence[int]) -> tuple[int, int, float]:
    """The race of finalists and the paper's setting (0) over the seeds of ``final``: winner, runs, and its mean."""
    left, runs, seeds = list(map(str, finalists)), 0, final.shape[1]
    values: dict[str, list[float]] = {name: [] for name in ("0", *left)}
    for seed in range(seeds):
        racing = [*left, "0"]
        runs += len(racing)
        for name in racing:
            values[name].append(float(final[int(name), seed]))
        places = race.places(len(finalists), seed + 1, seeds)
        left = race.stay({name: values[name] for name in racing}, "0", places, 1)
        if not left or (len(left) == 1 and race.clear(race.gain(values, left[0], "0"), 1)):
            break
    best = max([*left, "0"], key=lambda name: statistics.fmean(values[name]))
    return int(best), runs, statistics.fmean(values[best])


def report(table: Table, searches: int) -> None:
    """Print what the table says of noise and of what trials show, and a row a strategy."""
    worth, common, noise = variances(table.final)
    print(
        f"{len(table.final)} settings, {table.final.shape[1]} seeds; standard deviation of worths {worth:.4f}, of what"
    )
    print(f"a seed does to all settings {common:.4f}, of the rest {noise:.4f}\n")
    correlations(table)
    fitting = [each for each in STRATEGIES if all(rung < table.epochs for rung in each.rungs)]
    rivals = [each for each in fitting if each.settings <= 0.8 * len(table.final)]
    means = {strategy: of_strategy(table, strategy, searches) for strategy in rivals}
    print("\n| search | finalists by | race | epochs | of the race | worth | over the first row | says too much by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for strategy, (found, left_out) in means.items():
        base, base_left_out = means[rivals[0]]
        gain, half = found[0] - base[0], jackknife([a[0] - b[0] for a, b in zip(left_out, base_left_out, strict=True)])
        by = strategy.finalists_by + ", smoothed" * strategy.model
        own = jackknife([mean[0] for mean in left_out])
        each = ", a seed each" * strategy.each
        at = f", rungs by {strategy.at_rungs}" if strategy.rungs and strategy.at_rungs != "last" else ""
        print(
            f"| {strategy.name}{at}{each} | {strategy.settings} | {by} | {strategy.top} x {strategy.seeds} "
            f"| {found[2] + found[3]:.0f} | {found[3]:.0f} | {found[0]:.4f} ± {own:.4f} "
            f"| {gain:+.4f} ± {half:.4f} | {found[4] - found[0]:+.4f} |",
            flush=True,
        )
    print(f"| the paper's setting | | | | | | {means[rivals[0]][0][1]:.4f} | | |")


def of_strategy(table: Table, strategy: Strategy, searches: int) -> tuple[Floats, list[Floats]]:
    """The mean over so many replays, and those with each group of settings left out."""
    groups = np.array_split(np.random.default_rng(0).permutation(np.arange(1, len(table.final))), GROUPS)
    return _mean(table, strategy, searches, ()), [_mean(table, strategy, searches, group) for group in groups]


def _mean(table: Table, strategy: Strategy, searches: int, without: Sequence[int]) -> Floats:
    found = [replay(table, strategy, np.random.default_rng(number), without) for number in range(searches)]
    return np.array([[f.worth, f.paper, f.search_epochs, f.race_epochs, f.said] for f in found]).mean(axis=0)


def jackknife(left_out: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, from the means with each group left out."""
    groups = len(left_out)
    return 1.96 * float(np.sqrt((groups - 1) / groups * ((np.array(left_out) - np.mean(left_out)) ** 2).sum()))


def correlations(table: Table) -> None:
    """Print the rank correlation of what one seed shows after some epochs with the mean end of the other seeds."""
    print("| epochs | last | mean of the curve |\n|---|---|---|")
    for epochs in [*(each for each in (1, 2, 5, 10, 15, 20, 30) if each < table.epochs), table.epochs]:
        row = []
        for judge in ("last", "mean of the curve"):
            shown = np.array([[JUDGES[judge](curve[:epochs]) for curve in seeds] for seeds in table.curves])
            others = [np.delete(table.final, seed, axis=1).mean(axis=1) for seed in range(shown.shape[1])]
            row.append(np.mean([spearmanr(shown[:, seed], mean)[0] for seed, mean in enumerate(others)]))
        print(f"| {epochs} | {row[0]:.2f} | {row[1]:.2f} |", flush=True)
