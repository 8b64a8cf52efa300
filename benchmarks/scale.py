"""What a search of a thousand trials on 64 nodes would run into. Prints a Markdown table.

    .venv/bin/python -m benchmarks.scale [--trials 1000] [--nodes 64]

The trials are made up: nothing trains, and each reports eight times, at once. What they go through is a search's own:
its stage and engine, Optuna's storage, the MLflow outbox and its database, the record on disk, and the aggregator,
asked by one thread a node. What a trial takes of the driver says how short the trials of so many nodes may be.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray

from benchmarks.turns import machine
from crh_tune.command import prepare_process
from crh_tune.hashing.centers import CodebookSpec
from crh_tune.hashing.codebook import sample_codebook
from crh_tune.settings.search import SearchSettings, read_search
from crh_tune.spaces import find_space
from crh_tune.training.aggregator import Round
from crh_tune.training.workers import Workers
from crh_tune.tuning import tracking
from crh_tune.tuning.board import Board
from crh_tune.tuning.engine import Engine
from crh_tune.tuning.events import Place
from crh_tune.tuning.proposals import enqueue
from crh_tune.tuning.run import RUNS_FOLDER
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.stages import SearchStage
from crh_tune.tuning.study import sampler_of
from crh_tune.tuning.worker import ask_aggregator, start_aggregator

CLASSES, BITS, REPORTS = 100, 16, 8
PROPOSING, TOLD, OUTBOX, EVENTS, ROUNDS = PARTS = (
    "Optuna proposes",
    "Optuna is told",
    "MLflow's outbox",
    "record, leaderboard, events",
    "aggregator",
)


class Clock:
    """Seconds of each part, without those of the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        self._stop()
        self._open.append(part)
        yield
        self._stop()
        self._open.pop()

    def _stop(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, owner: Any, name: str, part: str) -> None:
        method = getattr(owner, name)

        @wraps(method)
        def timed(*args: Any, **options: Any) -> Any:
            with self.of(part):
                return method(*args, **options)

        setattr(owner, name, timed)


@dataclass
class Fake:
    """A made-up trial in the place of Tune's, and what it reports."""

    config: dict[str, Any]
    worth: float
    reports: int = 0
    num_failures: int = 0
    max_failures: int = 0
    status: str = "RUNNING"

    def result(self) -> dict[str, float]:
        self.reports += 1
        names = ("loss/total", "loss/cross_entropy", "loss/quantization", "centers/reassigned", "centers/pcc")
        names += ("centers/d_min", "centers/d_avg", "seconds/training", "seconds/encoding", "seconds/evaluation")
        value = self.worth * (1 - 0.5**self.reports) + random.gauss(0, 0.01)
        made = dict.fromkeys(names, random.random())
        return {**made, "val/map": value, "epoch": 5.0 * self.reports, "final": float(self.reports == REPORTS)}


class Simulation:
    """A search's driver with made-up trials under it, ``nodes`` at a time."""

    def __init__(self, trials: int, nodes: int, folder: Path) -> None:
        content = read_search(find_space("digit_pairs")).model_dump(mode="json")
        settings = SearchSettings.model_validate({**content, "scheduler": "asha", "budget": {"trials": trials}})
        self.trials, self.nodes, self.clock = trials, nodes, Clock()
        self.running: dict[int, Fake] = {}
        self.ended = self.number = 0
        study = optuna.create_study(
            study_name="scale",
            storage=f"sqlite:///{folder / 'optuna.db'}",
            direction="maximize",
            sampler=sampler_of(settings, 0),
        )
        enqueue(study, settings, CLASSES, False)
        searcher = OptunaSearcher(study, settings, CLASSES, False, trials, "")
        self.tracker = tracking.Tracker(tracking.default_tracking_uri(folder), "scale", folder, folder)
        self.tracker.start_run("scale", "scale")
        name = f"aggregator-{time.time_ns()}"
        self.aggregator = start_aggregator(name)
        self.solve = [ask_aggregator(name, Workers(), f"node-{node}", "a") for node in range(nodes)]
        board = Board(settings, folder, trials, CLASSES, nodes)
        place = Place("scale", folder, name, self.tracker, searched=settings.search, board=board)
        stage = SearchStage(settings, searcher, lambda line: None, None)
        (folder / RUNS_FOLDER).mkdir()
        self.engine = Engine(place, settings.budget, [stage], in_groups=False)
        self.engine.begin()
        self.clock.around(searcher, "propose", PROPOSING)
        self.clock.around(searcher, "report", TOLD)
        self.clock.around(searcher, "tell", TOLD)
        self.clock.around(self.tracker, "_append", OUTBOX)

    def drive(self) -> Iterator[int]:
        """Drive the trials to their end; yields how many have ended each time some have."""
        with ThreadPoolExecutor(self.nodes) as threads:
            while self.ended < self.trials:
                with self.clock.of(EVENTS):
                    self._start()
                with self.clock.of(ROUNDS):
                    self.number += 1
                    list(threads.map(self._ask, list(self.running)))
                before = self.ended
                with self.clock.of(EVENTS):
                    self._report()
                if self.ended != before:
                    yield self.ended

    def _start(self) -> None:
        for node in set(range(self.nodes)) - set(self.running):
            proposed = self.engine.suggest(f"{node}-{self.number}")
            if isinstance(proposed, dict):
                self.running[node] = Fake(proposed, random.gauss(0.8, 0.05))
                self.engine.events.on_trial_start(0, [], self.running[node])

    def _ask(self, node: int) -> None:
        book = CodebookSpec(BITS, 2 * CLASSES, 8, 0, "bernoulli")
        table = sample_codebook(BITS, 2 * CLASSES, 8, 0).initial_table(CLASSES, 0)
        statistic = np.random.default_rng(node).integers(-9, 10, (CLASSES, BITS + 1))
        self.solve[node](Round(book, table, "greedy", 0, self.number), statistic)

    def _report(self) -> None:
        for node, trial in list(self.running.items()):
            self.engine.events.on_trial_result(0, [], trial, trial.result())
            if trial.reports == REPORTS:
                self.engine.events.on_trial_complete(0, [], self.running.pop(node))
                self.ended += 1


def show(simulation: Simulation) -> None:
    """Drive it, with a line of the table for every tenth of the trials."""
    columns = [*(f"{part}, ms a trial" for part in PARTS), "trials a second", "MLflow is behind by"]
    print(f"| trials | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|", flush=True)
    due, shown, at, before = simulation.trials // 10, 0, time.perf_counter(), dict.fromkeys(PARTS, 0.0)
    for ended in simulation.drive():
        if ended - shown < due:
            continue
        now, used = time.perf_counter(), {part: simulation.clock.seconds[part] for part in PARTS}
        each = [f"{1e3 * (used[part] - before[part]) / (ended - shown):.1f}" for part in PARTS]
        rate, behind = f"{(ended - shown) / (now - at):.1f}", f"{simulation.tracker.unsent()} entries"
        print(f"| {' | '.join([str(ended), *each, rate, behind])} |", flush=True)
        shown, at, before = ended, now, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=64)
    arguments = parser.parse_args()
    prepare_process()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    command = f"python -m benchmarks.scale --trials {arguments.trials} --nodes {arguments.nodes}"
    print(f"## Trials and nodes\n\n{machine()}; `{command}`\n")
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory(prefix="crh-scale-") as name:
        simulation = Simulation(arguments.trials, arguments.nodes, Path(name))
        show(simulation)
        ray.kill(simulation.aggregator)
        behind, since = simulation.tracker.unsent(), time.perf_counter()
        left = simulation.tracker.drain(60)
        took = time.perf_counter() - since
        print(f"\nAfterwards MLflow takes {(behind - left) / took:.0f} entries a second; {left} are left.")
        sizes = {path.name: path.stat().st_size / 1e6 for path in Path(name).iterdir() if path.is_file()}
        print("On disk: " + ", ".join(f"{file} {size:.1f} MB" for file, size in sorted(sizes.items())))


if __name__ == "__main__":
    main()
