"""A table of settings of a search, trained whole with several seeds, and its simple statistics."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

from crh_tune.data.splits import Split, search_split
from crh_tune.ground import write_json
from crh_tune.settings.search import SearchSettings, read_search
from crh_tune.spaces import find_space
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import open_data
from crh_tune.training.workers import Workers
from crh_tune.tuning.proposals import paper_values, propose

SEEDS = (1, 2, 3, 4, 5)


def shipped(photos: Path | None) -> SearchSettings:
    """What ``make search`` searches; with photos what ``crh-tune search photos`` does, at 16 bits."""
    if photos is None:
        return read_search(find_space("digit_pairs"))
    space = read_search(find_space("photos"), data=photos)
    return space.model_copy(update={"trial": space.trial.model_copy(update={"bits": 16})})


def split_of(space: SearchSettings) -> Split:
    """What every trial sees."""
    return search_split(open_data(space.dataset, space.trial), **space.validation.model_dump())


def fill(path: Path, shipped: SearchSettings, settings: int, minutes: float) -> None:
    """Train what the table does not have yet, for at most so many minutes of a core; evaluated after every epoch."""
    table: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    space = shipped.model_copy(update={"trial": shipped.trial.model_copy(update={"evaluate_every": 1})})
    split, epochs = split_of(space), space.trial.epochs
    torch.set_num_threads(1)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    begun = time.process_time()
    for number in range(settings):
        paper = number == 0
        values = paper_values(space, split.classes, False) if paper else propose(study.ask(), space, split.classes)
        if number == len(table):
            table.append({"values": values, "curves": {}})
        for seed in map(str, SEEDS):
            if seed in table[number]["curves"]:
                continue
            if time.process_time() - begun > 60 * minutes:
                return
            curve: dict[int, float] = {}
            resolved = space.trial_settings(values, int(seed)).resolve(split.classes, False)
            TrainingRun(resolved, split, Workers(), solve_locally).train(
                lambda metrics, save, into=curve: into.update({int(metrics["epoch"]): metrics["val/map"]})
            )
            table[number]["curves"][seed] = curve
            write_json(path, table)
            print(number, seed, f"{curve[epochs]:.4f}", f"{time.process_time() - begun:.0f} s", flush=True)


@dataclass(frozen=True)
class Table:
    """Curves of settings that have all seeds, the paper's first.

    Attributes:
        curves: val/map by setting, seed and epoch: ``curves[i, s, e]`` is after epoch e + 1.
        features: what a model sees of each setting: the logarithms of M / C, d and lambda, the margin, the interval
            where it is searched.
    """

    curves: NDArray[np.float64]
    features: NDArray[np.float64]

    @property
    def epochs(self) -> int:
        """Those of a whole run."""
        return self.curves.shape[2]

    @property
    def final(self) -> NDArray[np.float64]:
        """What whole runs end with, by setting and seed."""
        return self.curves[:, :, -1]


def read_table(path: Path) -> Table:
    """The settings of a table that have all seeds."""
    whole = [row for row in json.loads(path.read_text()) if all(str(seed) in row["curves"] for seed in SEEDS)]
    epochs = range(1, len(whole[0]["curves"][str(SEEDS[0])]) + 1)
    curves = [[[row["curves"][str(seed)][str(epoch)] for epoch in epochs] for seed in SEEDS] for row in whole]
    features = [_features(row["values"]) for row in whole]
    return Table(np.array(curves), np.array(features))


def _features(values: dict[str, Any]) -> list[float]:
    logs = [np.log2(max(float(values[name]), 1e-2)) for name in ("codebook_ratio", "head_dim", "quantization_weight")]
    return [*logs, float(values["margin"]), float(values.get("update_interval", 1))]


def variances(final: NDArray[np.float64]) -> tuple[float, float, float]:
    """The spread of worths, of what a seed adds to all settings, and of the rest: standard deviations.

    From the mean squares of the two-way table ``final``, settings by seeds.
    """
    settings, seeds = final.shape
    of_setting, of_seed = final.mean(axis=1), final.mean(axis=0)
    rest = final - of_setting[:, None] - of_seed[None, :] + final.mean()
    noise = (rest**2).sum() / ((settings - 1) * (seeds - 1))
    worth = max(0.0, of_setting.var(ddof=1) - noise / seeds)
    common = max(0.0, of_seed.var(ddof=1) - noise / settings)
    return float(worth**0.5), float(common**0.5), float(noise**0.5)
