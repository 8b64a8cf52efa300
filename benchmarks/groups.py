"""Has ASHA stop worker groups, one after the other, then looks for what is left of them.

    .venv/bin/python -m benchmarks.groups [--trials 50] [--cpus 2]

The first trial learns, all others learn nothing and are stopped at ASHA's first rung, in the middle of training. Then
there must be no placement group, actor, process, shared memory or reserved resource of them left, and the search's own
process must have no more threads and open files than after the first few.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import optuna
import ray
from ray._private.state import actors as known_actors

from benchmarks.soak import processes_below
from crh_tune.settings.search import SearchSettings
from crh_tune.training.opening import open_split
from crh_tune.tuning import tracking
from crh_tune.tuning.engine import drive
from crh_tune.tuning.events import Place
from crh_tune.tuning.proposals import enqueue
from crh_tune.tuning.record import COMPLETE, PRUNED, Outcome
from crh_tune.tuning.schedulers import scheduler_of
from crh_tune.tuning.searcher import OptunaSearcher
from crh_tune.tuning.stages import SearchStage
from crh_tune.tuning.worker import start_aggregator

NAME = "groups"
SHM = "/dev/shm/"
KEPT = ("Aggregator", "_AutoscalingCoordinatorActor")
"""Actors that are there once, however many trials there are: the search's own, and one that Ray Train starts."""
PATIENCE = 120.0
"""Seconds that what is left has to go."""


def space(trials: int) -> dict[str, Any]:
    """One trial that learns, and others whose learning rates are next to nothing."""
    return {
        "name": NAME,
        "dataset": {"name": "digits"},
        "trial": {"bits": 16, "epochs": 30, "batch_size": 128},
        "search": {"learning_rate": {"grid": [2.0e-3] + [1.0e-9 * n for n in range(1, trials)]}},
        "start_from": [],
        "scheduler": {"asha": {"grace_epochs": 10, "reduction": 1000}},  # only the best of a rung goes on
        "scaling": {"workers_per_trial": 2},
        "budget": {"trials": trials},
    }


@dataclass
class Left:
    """What there is of a search's groups, beside the aggregator and Ray itself."""

    groups: list[str]
    actors: list[str]
    processes: list[str]
    shared: list[str]
    reserved: dict[str, float]

    @property
    def nothing(self) -> bool:
        return not (self.groups or self.actors or self.processes or self.shared or self.reserved)


@dataclass
class Report:
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)
    """How many trials Optuna knows in each state."""
    left: Left | None = None
    """What was left at the end."""
    own: list[tuple[int, int]] = field(default_factory=list)
    """How many threads and open files this process had after each trial."""
    seconds: float = 0.0

    @property
    def stopped(self) -> int:
        return sum(outcome.status == PRUNED for outcome in self.outcomes.values())

    @property
    def wrong(self) -> list[str]:
        """What a search that leaves nothing would not have."""
        expected = {"COMPLETE": 1, "PRUNED": len(self.outcomes) - 1}
        ended = Counter(outcome.status for outcome in self.outcomes.values())
        wrong = [f"trials ended {dict(ended)}"] * (ended != {COMPLETE: 1, PRUNED: len(self.outcomes) - 1})
        wrong += [f"Optuna has {dict(self.told)}"] * (self.told != expected)
        return wrong + [f"left: {self.left}"] * (self.left is None or not self.left.nothing)

    def __str__(self) -> str:
        last, early, late = self.left, self.own[min(4, len(self.own) - 1)], self.own[-1]
        assert last is not None
        lines = [
            f"{len(self.outcomes)} trials in {self.seconds:.0f} s, {self.stopped} stopped by ASHA",
            f"placement groups left: {len(last.groups)}, actors: {len(last.actors)}, "
            f"processes: {len(last.processes)}, shared memory: {len(last.shared)}, "
            f"reserved: {last.reserved or 'nothing'}",
            f"threads of this process: {early[0]} after the first trials, {late[0]} after the last; "
            f"open files: {early[1]}, {late[1]}",
        ]
        return "\n".join([*lines, *self.wrong])


def what_is_left(shared_before: set[str]) -> Left:
    groups = [f"{name}: {group['state']}" for name, group in ray.util.placement_group_table().items()]
    alive = [actor for actor in known_actors().values() if actor["State"] != "DEAD"]
    titles = processes_below(os.getpid()).values()
    expected = tuple(f"ray::{name}" for name in ("IDLE", "DashboardAgent", "RuntimeEnvAgent", *KEPT))
    has, free = ray.cluster_resources(), ray.available_resources()
    return Left(
        groups=[group for group in groups if not group.endswith(": REMOVED")],
        actors=[actor["ActorClassName"] for actor in alive if actor["ActorClassName"] not in KEPT],
        processes=[title for title in titles if title.startswith("ray::") and not title.startswith(expected)],
        shared=sorted(orphaned_memory() - shared_before),
        reserved={kind: has[kind] - free.get(kind, 0) for kind in ("CPU", "GPU", "memory") if _taken(has, free, kind)},
    )


def orphaned_memory() -> set[str]:
    """What lies in shared memory that no process uses: other programs of this machine have some of theirs there."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has just ended, or is somebody else's
            used |= {line.rsplit(SHM, 1)[1].split(" ")[0] for line in maps.read_text().splitlines() if SHM in line}
    return {entry.name for entry in Path(SHM).iterdir()} - used


def _taken(has: dict[str, float], free: dict[str, float], kind: str) -> bool:
    return kind in has and has[kind] - free.get(kind, 0) > 0


def stop_groups(storage: Path, trials: int, say: Callable[[str], None]) -> Report:
    """A search's trials in worker groups, all but the first stopped by ASHA; Ray is up already."""
    begun = time.monotonic()
    settings = SearchSettings.model_validate(space(trials))
    content = settings.trial_settings(settings.cells()[0], 0).resolve(10, False)
    split = open_split(content, "search").fingerprint
    tracker = tracking.Tracker(tracking.default_tracking_uri(storage), NAME, storage, storage)
    tracker.start_run(NAME, NAME)
    aggregator = f"aggregator-{NAME}-{time.time_ns()}"
    place = Place(NAME, storage, aggregator, tracker)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=NAME, storage=f"sqlite:///{storage / 'optuna.db'}", direction="maximize")
    enqueue(study, settings, 10, False)
    shared = orphaned_memory()
    report = Report()

    def after(line: str) -> None:
        report.own.append((threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))))
        say(line)

    actor = start_aggregator(aggregator)
    stage = SearchStage(settings, OptunaSearcher(study, settings, 10, False, trials, split), after, None)
    report.outcomes = drive(place, settings.scaling, settings.budget, [stage], scheduler_of(settings, study))
    deadline = time.monotonic() + PATIENCE
    while not (left := what_is_left(shared)).nothing and time.monotonic() < deadline:
        time.sleep(0.2)
    report.left = left
    ray.kill(actor)
    tracker.close(PATIENCE)
    report.told = Counter(trial.state.name for trial in study.get_trials(deepcopy=False))
    report.seconds = time.monotonic() - begun
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=arguments.cpus, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory(prefix="crh-groups-") as folder:
        report = stop_groups(Path(folder), arguments.trials, lambda line: print(line, flush=True))
    print(report, flush=True)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
