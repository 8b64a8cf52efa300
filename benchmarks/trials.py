"""What a trial costs besides training, and what is left over of many. Prints a Markdown table.

    .venv/bin/python -m benchmarks.trials [--many 200]

Trials run through the search's own engine, with its aggregator, MLflow outbox and checkpoints. Beside them the same
trainings run in a bare script, before and after. Times are wall-clock: several processes take part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crh_tune.command import prepare_process

prepare_process()

import ray

from benchmarks.groups import Left, orphaned_memory, what_is_left
from benchmarks.soak import processes_below
from benchmarks.turns import Line, announce
from crh_tune.compiled import usable_threads
from crh_tune.settings.search import SearchSettings, read_search
from crh_tune.settings.trial import TrialSettings
from crh_tune.spaces import find_space
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning import tracking
from crh_tune.tuning.engine import drive
from crh_tune.tuning.events import Place
from crh_tune.tuning.record import COMPLETE, Outcome
from crh_tune.tuning.run import RUNS_FOLDER, Run
from crh_tune.tuning.stages import FixedRuns
from crh_tune.tuning.worker import start_aggregator

SPACE = read_search(find_space("digit_pairs"))
CLASSES = 100
TINY = {"epochs": 2, "evaluate_every": 2}
EDGE = 20
"""How many trials at either end of many their rates are compared over."""


def settings_of(seed: int, workers: int = 1, **trial: int) -> TrialSettings:
    """The paper's setting of the built-in search, with a seed of its own."""
    settings = SPACE.trial_settings({}, seed)
    scaling = settings.scaling.model_copy(update={"workers_per_trial": workers})
    changed = settings.model_copy(update={"trial": settings.trial.model_copy(update=trial), "scaling": scaling})
    return changed.resolve(CLASSES, False)


@dataclass
class Resources:
    """What this process and the trials' use: threads and open files of this one, MB of either."""

    threads: int
    files: int
    megabytes: float
    trials_megabytes: float

    @classmethod
    def now(cls) -> Resources:
        trials = [pid for pid, title in processes_below(os.getpid()).items() if title.startswith("ray::ImplicitFunc")]
        files = len(list(Path("/proc/self/fd").iterdir()))
        return cls(threading.active_count(), files, resident(os.getpid()), sum(map(resident, trials)))


def resident(pid: int) -> float:
    """Private memory of a process in MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


class Timed(FixedRuns):
    """Runs with the time at which each was handed out and had ended, and what was in use after each."""

    def __init__(self, runs: Sequence[Run], looking: bool = False) -> None:
        super().__init__(runs, lambda line: None)
        self._looking = looking
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.used: list[Resources] = []

    def propose(self) -> Run | None:
        run = super().propose()
        if run is not None:
            self.begun.append(time.monotonic())
        return run

    def told(self, outcome: Outcome) -> None:
        assert outcome.status == COMPLETE, outcome.error
        self.ended.append(time.monotonic())
        if self._looking:
            self.used.append(Resources.now())
        super().told(outcome)

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        return self.ended[-1] - self.begun[0]

    @property
    def each(self) -> list[float]:
        """Seconds from one end to the next, of trials one at a time."""
        return [end - before for before, end in zip(self.ended, self.ended[1:], strict=False)]


def runs_of(name: str, count: int, workers: int = 1, **trial: int) -> list[Run]:
    made = [settings_of(seed, workers, **trial) for seed in range(count)]
    split = open_split(made[0], "search").fingerprint
    return [Run(f"{name}-{place:03d}", settings, "search", split) for place, settings in enumerate(made)]


def go_through(folder: Path, stages: Sequence[Timed], at_once: int, workers: int = 1) -> None:
    """Take stages through the engine as a search does; Ray is up."""
    content = {**SPACE.model_dump(mode="json"), "scaling": {"workers_per_trial": workers}}
    content["budget"] = {"trials": 1, "concurrent": at_once}
    settings = SearchSettings.model_validate(content)
    tracker = tracking.Tracker(tracking.default_tracking_uri(folder), "trials", folder, folder)
    tracker.start_run("trials", "trials")
    name = f"aggregator-{time.time_ns()}"
    aggregator = start_aggregator(name)
    drive(Place("trials", folder, name, tracker), settings.scaling, settings.budget, stages)
    ray.kill(aggregator)
    assert tracker.close(120) == 0


def bare(count: int, **trial: int) -> list[float]:
    """Seconds of each training in a script of its own, the first left out: it loads what the others have."""
    command = [sys.executable, "-m", "benchmarks.trials", "--bare", json.dumps([count + 1, trial])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found[1:]


def train_bare(count: int, trial: dict[str, int]) -> list[float]:
    taken = []
    for seed in range(count):
        begun = time.perf_counter()
        settings = settings_of(seed, **trial)
        TrainingRun(settings, open_split(settings, "search"), Workers(), solve_locally).train(lambda *_: None)
        taken.append(time.perf_counter() - begun)
    return taken


def training_seconds(outcome: Outcome) -> float:
    """What a trial has counted as training, encoding, reassignment and evaluation."""
    return sum(value for name, value in outcome.metrics.items() if name.startswith("seconds/"))


def overhead(count: int) -> None:
    """Trials of the built-in search, one at a time, beside their trainings alone."""
    before = bare(count)
    stage = Timed(runs_of("one", count + 1))
    with tempfile.TemporaryDirectory(prefix="crh-trials-") as name:
        go_through(Path(name), [stage], 1)
    alone, trial = statistics.median([*before, *bare(count)]), statistics.median(stage.each)
    phases = statistics.median(map(training_seconds, list(stage.outcomes.values())[1:]))
    told = f"a trial {trial:.2f} s, {phases:.2f} s of them in its phases; bare {alone:.2f} s"
    line = Line(
        "a trial less its training, from a process's second on", trial - alone, "", None, most_seconds=0.5, limit=told
    )
    print(line, flush=True)


def concurrency(count: int) -> None:
    """The same trials one at a time and two at a time, each in processes that have run one before."""
    taken = {}
    for at_once in (1, 2):
        warm, stage = Timed(runs_of("warm", at_once, **TINY)), Timed(runs_of("run", count, epochs=24))
        with tempfile.TemporaryDirectory(prefix="crh-trials-") as name:
            go_through(Path(name), [warm, stage], at_once)
        taken[at_once] = stage.seconds
    line = Line(
        f"{count} one-worker trials, 2 at a time", taken[2], "one at a time", taken[1], least_ratio=1 / 0.55,
        limit=f"{taken[2] / taken[1]:.3f} of one at a time (wanted 0.55)",
    )  # fmt: skip
    print(line, flush=True)


def many(count: int) -> None:
    """Tiny trials two at a time: the rate of the last against that of the first, and what is left."""
    shared = orphaned_memory()
    warm, stage = Timed(runs_of("warm", 2, **TINY)), Timed(runs_of("tiny", count, **TINY), looking=True)
    with tempfile.TemporaryDirectory(prefix="crh-trials-") as name:
        folder = Path(name)
        go_through(folder, [warm, stage], 2)
        left = wait_until_nothing(shared)
        checkpoints = len(list((folder / RUNS_FOLDER).glob("tiny-*/checkpoint_*")))
    first = (stage.ended[EDGE] - stage.ended[0]) / EDGE
    last = (stage.ended[-1] - stage.ended[-1 - EDGE]) / EDGE
    early, late = stage.used[EDGE], stage.used[-1]
    grown = (
        f"MB of the search {early.megabytes:.0f} to {late.megabytes:.0f}, of its trials {early.trials_megabytes:.0f} "
    )
    grown += f"to {late.trials_megabytes:.0f}; open files {early.files} to {late.files}; {checkpoints} checkpoints kept"
    nothing = left.nothing and late.files - early.files <= 2 and late.threads <= early.threads
    line = Line(
        f"{count} tiny trials: one of the last {EDGE}", last, f"of the first {EDGE}", first, least_ratio=0.9,
        limit=grown, also="nothing left over", also_met=nothing,
    )  # fmt: skip
    print(line, flush=True)


def wait_until_nothing(shared: set[str], patience: float = 20.0) -> Left:
    deadline = time.monotonic() + patience
    while not (left := what_is_left(shared)).nothing and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


@dataclass
class Watch:
    """When each process of a title was there first, looked for from a thread."""

    seen: dict[str, list[float]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    TITLES = ("ray::ImplicitFunc", "ray::TrainController", "ray::RayTrainWorker")

    def look(self) -> None:
        known: set[tuple[str, int]] = set()
        while not self.over.wait(0.02):
            now, there = time.monotonic(), processes_below(os.getpid())
            for pid, title in there.items():
                kind = next((each for each in self.TITLES if title.startswith(each)), None)
                if kind is not None and (kind, pid) not in known:
                    known.add((kind, pid))
                    self.seen.setdefault(kind, []).append(now)

    def first_after(self, kind: str, begin: float) -> float:
        return next((when for when in self.seen.get(kind, []) if when >= begin), float("nan"))


def groups(count: int) -> None:
    """Trials in groups of two workers, one after the other: what each takes besides its training, and where."""
    stage = Timed(runs_of("group", count + 1, workers=2, epochs=10))
    with tempfile.TemporaryDirectory(prefix="crh-trials-") as name:
        folder, watch = Path(name), Watch()
        watcher = threading.Thread(target=watch.look, daemon=True)
        watcher.start()
        go_through(folder, [stage], 1, workers=2)
        watch.over.set()
        watcher.join()
        spans = zip(list(stage.outcomes.values())[1:], stage.ended[:-1], stage.ended[1:], strict=True)
        account = [group_account(folder, watch, *span) for span in spans]
    parts = {name: statistics.median([each[name] for each in account]) for name in account[0]}
    training = parts.pop("training")
    told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
    line = Line(
        "a trial in a group of 2 less its training", sum(parts.values()), "", None, most_seconds=9.0,
        limit=f"{told}; training {training:.1f} s",
    )  # fmt: skip
    print(line, flush=True)


def group_account(folder: Path, watch: Watch, outcome: Outcome, begin: float, end: float) -> dict[str, float]:
    """Seconds of each part of a group's trial, from the end of the one before to its own."""
    offset = time.monotonic() - time.time()
    kept = sorted((folder / RUNS_FOLDER / outcome.name).glob("checkpoint_*"))
    last = kept[-1].stat().st_mtime + offset
    training = training_seconds(outcome)
    trial, controller, worker = (watch.first_after(kind, begin) for kind in watch.TITLES)
    return {
        "trial's process": trial - begin,
        "controller": controller - trial,
        "workers' processes": worker - controller,
        "their imports, torch's group, data": last - training - worker,
        "training": training,
        "ending": end - last,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--many", type=int, default=200, help="how many tiny trials")
    parser.add_argument("--only", choices=["overhead", "concurrency", "many", "groups"])
    parser.add_argument("--bare", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(train_bare(*arguments.bare)))
        return
    only = f" --only {arguments.only}" if arguments.only else ""
    announce("Trials", f"python -m benchmarks.trials --many {arguments.many}{only}")
    ray.init(address="local", num_cpus=max(2, usable_threads()), log_to_driver=False, logging_level="ERROR")
    parts = {
        "overhead": lambda: overhead(3),
        "concurrency": lambda: concurrency(8),
        "many": lambda: many(arguments.many),
        "groups": lambda: groups(2),
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            part()


if __name__ == "__main__":
    main()
