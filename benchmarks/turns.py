"""Timing in turns and the table it goes into. Ratios of one run hold on a busy machine; seconds alone do not.

On a very busy one ``OMP_NUM_THREADS=1 python -m benchmarks... --cpu`` counts the processor time of one thread a side.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDS = 5
CPU = "--cpu"
COLUMNS = ("work", "ours", "reference", "ratio", "target", "verdict", "limit it is compared with")


def seconds(work: Callable[[], Any]) -> float:
    clock = time.process_time if CPU in sys.argv else time.perf_counter
    start = clock()
    work()
    return clock() - start


def in_turns(*works: Callable[[], Any], rounds: int = ROUNDS) -> list[float]:
    """Median seconds of each work; the first call of each, which compiles and warms up, does not count."""
    for work in works:
        work()
    taken = [[seconds(work) for work in works] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


@dataclass(frozen=True)
class Line:
    """One line of the table: ours and the reference in seconds; the target is a ratio or, without one, a limit."""

    work: str
    ours: float
    reference: str
    theirs: float | None
    least_ratio: float | None = None
    most_seconds: float | None = None
    limit: str = ""
    also: str = ""
    """What else is asked for, as a bound of memory, and with ``also_met`` whether it holds."""
    also_met: bool = True

    def __str__(self) -> str:
        ratio = None if self.theirs is None else self.theirs / self.ours
        met, targets = self.also_met, [self.also] * bool(self.also)
        if self.least_ratio is not None and ratio is not None:
            met &= ratio >= self.least_ratio
            targets.append(f">= {self.least_ratio:g} x")
        if self.most_seconds is not None:
            met &= self.ours <= self.most_seconds
            targets.append(f"<= {span(self.most_seconds)}")
        theirs = self.reference if self.theirs is None else f"{self.reference}: {span(self.theirs)}"
        shown = "" if ratio is None else f"{ratio:.3g} x"
        verdict = "no target" if not targets else "met" if met else "missed"
        cells = (self.work, span(self.ours), theirs, shown, " and ".join(targets), verdict, self.limit)
        return "| " + " | ".join(cells) + " |"


def span(duration: float) -> str:
    if duration < 1e-3:
        return f"{duration * 1e6:.3g} us"
    return f"{duration * 1e3:.3g} ms" if duration < 1 else f"{duration:.3g} s"


def machine() -> str:
    """Processor, cores, load and date."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{name}, {os.cpu_count()} cores, load {load}; {datetime.datetime.now().date()}"


def announce(what: str, command: str) -> None:
    """A heading with the machine, the date and the command, and the head of the table."""
    if CPU in sys.argv:
        command = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} {command} {CPU}"
    print(f"## {what}\n\n{machine()}; `{command}`\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
