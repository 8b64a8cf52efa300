"""What the built-in search takes: from Enter to its first epoch, and in all beside its trainings alone.

    .venv/bin/python -m benchmarks.start [--whole]

The command of ``make search`` runs as a process of its own, in a new folder. ``--whole`` lets it run to its end, then
trains every run of it again, up to the same epoch, in two bare processes: the training alone on two cores. Times are
wall-clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak import processes_below
from benchmarks.turns import Line, announce
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import Metrics, Save, TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning.record import OUTBOX_FILE, Outcome, read_outcomes

CORES = 2
TIMES = 3
MARKS = {
    "search": "the driver's imports, the data and Ray",
    "confirming": "trials",
    "retraining": "confirmation",
    "no ranking": "test",
    "encoding": "what needs no training",
    "finished": "export and the end",
}
"""What the first lines of a search's parts begin with, and what has been done when they are said."""


@dataclass
class Search:
    """The command, and when it said what."""

    folder: Path
    process: subprocess.Popen[str]
    begun: float = field(default_factory=time.monotonic)

    @property
    def outbox(self) -> Path:
        return self.folder / "digit-pairs-001" / OUTBOX_FILE


@contextmanager
def search() -> Iterator[Search]:
    with tempfile.TemporaryDirectory(prefix="crh-start-") as name:
        command = [sys.executable, "-u", "-m", "crh_tune", "search", "--storage", name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        yield Search(Path(name), process)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.communicate()


def start() -> dict[str, float]:
    """Seconds of each part up to the first evaluation that has reached the driver."""
    with search() as run:
        assert run.process.stdout is not None
        run.process.stdout.readline()
        said, trial = time.monotonic(), 0.0
        while '["metrics"' not in (run.outbox.read_text() if run.outbox.exists() else ""):
            assert run.process.poll() is None
            titles = processes_below(run.process.pid).values()
            if not trial and any(title.startswith("ray::ImplicitFunc") for title in titles):
                trial = time.monotonic()
            time.sleep(0.02)
        first = time.monotonic()
    return {
        "the driver's imports, the data and Ray": said - run.begun,
        "Tune and a trial's imports": trial - said,
        "its data and five epochs": first - trial,
    }


def from_enter() -> None:
    found = [start() for _ in range(TIMES)]
    parts = {name: statistics.median([each[name] for each in found]) for name in found[0]}
    told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
    whole = statistics.median([sum(each.values()) for each in found])
    line = Line("from Enter to the first epoch of make search", whole, "", None, most_seconds=5.0, limit=told)
    print(line, flush=True)


def trained(outcome: Outcome) -> float:
    """Seconds of a run's training alone, up to the epoch that it got to."""
    begun, last = time.perf_counter(), int(outcome.metrics["epoch"])
    settings = TrialSettings.model_validate(outcome.settings)
    split = open_split(settings, "final" if outcome.name.startswith("final-") else "search")

    def report(metrics: Metrics, save: Save | None) -> None:
        if metrics["epoch"] == last:
            raise StopIteration

    with suppress(StopIteration):
        TrainingRun(settings, split, Workers(), solve_locally).train(report)
    return time.perf_counter() - begun


def whole() -> None:
    """The search to its end, and its trainings alone."""
    at: dict[str, float] = {}
    with search() as run:
        assert run.process.stdout is not None
        for line in run.process.stdout:
            at.update({mark: time.monotonic() for mark in MARKS if line.startswith(mark) and mark not in at})
        assert run.process.wait() == 0
        end = time.monotonic()
        outcomes = list(read_outcomes(run.outbox.parent).values())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CORES, mp_context=context) as pool:
        list(pool.map(trained, outcomes[:CORES]))  # imports, and opens the data
        begun = time.monotonic()
        longest = sorted(outcomes, key=lambda outcome: -outcome.metrics["epoch"])
        of_cores = sum(pool.map(trained, longest))
        alone = time.monotonic() - begun
    times = [run.begun, *at.values(), end]
    parts = [f"{MARKS[mark]} {now - before:.0f} s" for mark, before, now in zip(at, times, times[1:], strict=False)]
    epochs = sum(int(outcome.metrics["epoch"]) for outcome in outcomes)
    told = f"{', '.join(parts)}; {len(outcomes)} runs, {epochs} epochs, {of_cores:.0f} s of cores"
    line = Line(
        "make search after installation", end - run.begun, f"its training alone, {CORES} cores", alone,
        least_ratio=1 / 1.5, limit=told,
    )  # fmt: skip
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="to its end, too: some minutes")
    arguments = parser.parse_args()
    announce("Start", "python -m benchmarks.start" + " --whole" * arguments.whole)
    from_enter()
    if arguments.whole:
        whole()


if __name__ == "__main__":
    main()
