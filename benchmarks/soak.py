"""Kills random processes of a search until it has survived them all, then looks for what was lost or done twice.

    .venv/bin/python benchmarks/soak.py [--kills 100] [--racing 30] [--trials 30] [--seed 0]

Some results after the search has recovered from the last, a random process of it gets a SIGKILL: the driver (which is
then resumed), a trial's process or the aggregator. At the end every trial is trained again, undisturbed and without
Ray, and must have ended with the same metrics to the last bit; MLflow must have one run a trial, and one value a
metric and step. The last ``--racing`` kills wait for the confirmation, a race, which must have had the runs that follow
from its outcomes, no more and no fewer.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import yaml
from mlflow import MlflowClient

from crh_tune.settings.search import SearchSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import Metrics, Save, TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning.record import COMPLETE, FAILED, Outcome, read_outcomes, read_settings
from crh_tune.tuning.stages import ConfirmStage
from crh_tune.tuning.stopping import INTERRUPTED_CODE

SPACE = {
    "name": "soak",
    "dataset": {"name": "digit_pairs", "images_per_class": 5},
    "trial": {"bits": 16, "epochs": 220, "batch_size": 128, "learning_rate": 2.0e-3, "evaluate_every": 1},
    "search": {
        "codebook_ratio": {"choice": [1, 2, 4]},
        "quantization_weight": {"log_uniform": [0.001, 1.0]},
        "margin": {"uniform": [0.0, 0.5]},
        "update_interval": {"int": [1, 10]},
    },
    "scheduler": {"asha": {"grace_epochs": 110, "reduction": 2}},
    "confirm": {"top": 1, "seeds": 1},
}
RACING = ("racing", 0)
"""In a plan: what comes after it waits for the confirmation."""
PATIENCE = 300.0
"""How many seconds what has to come may take: a busy machine takes its time."""
VICTIMS = {"trial": "ray::ImplicitFunc", "aggregator": "ray::Aggregator"}


class Driver:
    """A ``crh-tune`` command as a process of its own, with its output in a file."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        self.output, self.begun = output, time.monotonic()
        self.below: dict[int, str] = {}
        with output.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "crh_tune", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # as a terminal would: its own group of processes
            )

    @property
    def lines(self) -> list[str]:
        return self.output.read_text(encoding="utf-8").splitlines()

    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.below = processes_below(self.process.pid)
        self.process.kill()
        self.process.wait()

    def wait_for_those_below(self) -> None:
        """Wait until the processes that a killed driver left behind have ended, and write nothing any more."""
        deadline = time.monotonic() + PATIENCE
        while left := [title for number, title in self.below.items() if Path(f"/proc/{number}").exists()]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"still there {PATIENCE:g} s after their driver was killed: {', '.join(left)}")
            time.sleep(0.02)

    def victims(self, kind: str) -> list[int]:
        titles = processes_below(self.process.pid)
        return [number for number, title in titles.items() if title.startswith(VICTIMS[kind])]


def processes_below(root: int) -> dict[int, str]:
    """The title of every process below one, by its number."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
    below = {root}
    for _ in range(5):
        below |= {number for number, parent in parents.items() if parent in below}
    return {number: titles[number] for number in below - {root} if number in titles}


@dataclass
class Report:
    kills: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    """Seconds from the start of each resumed driver until its first new result."""
    outputs: list[list[str]] = field(default_factory=list)
    """What each driver said."""
    seconds: float = 0.0

    def __str__(self) -> str:
        killed = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.kills.items()))
        lines = [f"{self.kills.total()} kills ({killed}) in {self.seconds:.0f} s"]
        if self.recovery:
            mean, most = sum(self.recovery) / len(self.recovery), max(self.recovery)
            lines += [f"a resumed search had new results after {mean:.1f} s (at most {most:.1f} s)"]
        return "\n".join([*lines, *self.lost, *self.duplicated, self.verdict])

    @property
    def verdict(self) -> str:
        return f"lost: {len(self.lost)}, duplicated: {len(self.duplicated)}"


def soak(
    plan: Sequence[tuple[str, int]],
    space: dict[str, Any],
    storage: Path,
    before_resuming: Callable[[Path], None] | None = None,
    map_: Callable[..., Iterable[list[str]]] = map,
) -> Report:
    """Run a search to its end while what ``plan`` names is killed, and check what is left of it.

    Each thing of the plan is killed so many results after the search has recovered from the last: by results and not by
    seconds, so that the same search has the same kills on a slow machine. RACING in a plan waits for the confirmation.
    ``map_`` maps the check over the runs.
    """
    report, left, begun = Report(), list(plan), time.monotonic()
    storage.mkdir(parents=True, exist_ok=True)
    (storage / "space.yaml").write_text(yaml.safe_dump(space))
    outputs = (storage / f"output-{number}.txt" for number in itertools.count())
    common = ["--storage", str(storage)]
    folder = storage / f"{space['name']}-001"
    driver = Driver(["search", str(storage / "space.yaml"), *common], next(outputs))
    while True:
        if _wait_for_results(driver, folder) and report.outputs:
            report.recovery.append(time.monotonic() - driver.begun)
        while left and driver.running():
            _kill(left, driver, report, folder)
        code = driver.process.wait()
        report.outputs.append(driver.lines)
        if code not in (-signal.SIGKILL, INTERRUPTED_CODE):
            break
        if before_resuming is not None:
            driver.wait_for_those_below()
            before_resuming(folder)
        driver = Driver(["search", "--resume", folder.name, *common], next(outputs))
    if code != 0:
        report.lost.append(f"the search ended with {code}: {driver.lines[-1:]}")
    report.seconds = time.monotonic() - begun
    _check(report, storage, folder.name, space["budget"]["trials"], map_)
    return report


def _wait_for_results(driver: Driver, folder: Path, results: int = 1, runs: int = 1) -> bool:
    """Wait for so many new results, of so many runs; false where the driver ends before.

    So every driver gets that far; and a trial's process, which needs seconds to start, is not killed while it does
    until the search takes the trial for one that always dies. Raises RuntimeError where nothing comes any more.
    """
    before = _results(folder)
    seen, since = 0, time.monotonic()
    while driver.running():
        new = _results(folder) - before
        if len(new) >= runs and new.total() >= results:
            return True
        if new.total() > seen:
            seen, since = new.total(), time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise RuntimeError(f"no new result for {PATIENCE:g} s: {driver.lines[-5:]}")
        time.sleep(0.02)
    return False


def _results(folder: Path) -> Counter[str]:
    """How many results each run has had."""
    outbox = folder / "mlflow_outbox.jsonl"
    lines = outbox.read_text(encoding="utf-8").splitlines() if outbox.exists() else []
    return Counter(line.split('"', 4)[3] for line in lines if line.startswith('["metrics", "'))


def _kill(left: list[tuple[str, int]], driver: Driver, report: Report, folder: Path) -> None:
    """Do the next thing of the plan once its results are there, if there is such a process, and let it recover."""
    kind, results = left[0]
    if (kind, results) == RACING:
        while driver.running() and not any(folder.glob("runs/confirm-*")):
            time.sleep(0.1)
        left.pop(0)
        return
    _wait_for_results(driver, folder, results)
    running = len(driver.victims("trial"))
    if kind in VICTIMS:
        victims = driver.victims(kind)
        if not victims or not driver.running():
            return
        os.kill(random.choice(victims), signal.SIGKILL)
    elif kind == "driver":
        driver.kill()
    else:  # an interruption, as a terminal sends it: to all processes of the group
        os.killpg(driver.process.pid, signal.SIGINT)
        driver.process.wait()
    left.pop(0)
    report.kills[kind] += 1
    _wait_for_results(driver, folder, runs=running)


def _check(report: Report, storage: Path, name: str, trials: int, map_: Callable[..., Iterable[list[str]]]) -> None:
    outcomes = {key: each for key, each in read_outcomes(storage / name).items() if each.start != "fixed"}
    expected = {f"trial-{number:04d}" for number in range(trials)}
    report.lost += [f"{missing} has no outcome" for missing in sorted(expected - set(outcomes))]
    report.duplicated += [f"{more} is one too many" for more in sorted(set(outcomes) - expected)]
    race = {key: each for key, each in read_outcomes(storage / name).items() if key.startswith("confirm-")}
    report.lost += itertools.chain.from_iterable(map_(differences, [*outcomes.values(), *race.values()]))
    _check_race(report, read_settings(storage / name), outcomes, race)
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{storage / name / 'optuna.db'}")
    for trial in study.trials:
        ended = outcomes.get(f"trial-{trial.number:04d}")
        if ended is None or trial.state.name.lower() != ended.status:
            report.lost.append(f"Optuna knows trial {trial.number} as {trial.state.name}")
    _check_mlflow(report, storage, name)


def _check_race(report: Report, settings: SearchSettings, trials: dict[str, Outcome], race: dict[str, Outcome]) -> None:
    """The race has the runs that one without kills has, told the same outcomes."""
    classes = open_split(TrialSettings.model_validate(next(iter(trials.values())).settings), "search").classes
    stage = ConfirmStage(settings, SimpleNamespace(outcomes=trials), classes, False, "", lambda line: None)  # type: ignore
    stage.begin({})
    expected = []
    for run in iter(stage.propose, None):
        expected.append(run.name)
        if run.name in race:
            stage.told(race[run.name])
    report.lost += [f"{missing} has no outcome" for missing in sorted(set(expected) - set(race))]
    report.duplicated += [f"{more} is one too many" for more in sorted(set(race) - set(expected))]


def differences(outcome: Outcome) -> list[str]:
    """How a run's last metrics differ from those of the same settings trained undisturbed, up to the same epoch."""
    if outcome.status == FAILED:
        return [f"{outcome.name} failed: {outcome.error}"]
    settings = TrialSettings.model_validate(outcome.settings)
    expected = undisturbed(settings, int(outcome.metrics["epoch"]))
    names = {name for name in expected if not name.startswith(("seconds/", "final"))}
    wrong = [name for name in sorted(names) if outcome.metrics.get(name) != expected[name]]
    unfinished = outcome.status == COMPLETE and outcome.metrics["epoch"] != settings.trial.epochs
    return [f"{outcome.name}: {', '.join(wrong)} differ"] * bool(wrong) + [f"{outcome.name} is short"] * unfinished


class _Enough(Exception):
    pass


def undisturbed(settings: TrialSettings, epoch: int) -> Metrics:
    """The metrics of a trial after an epoch, trained without Ray."""
    kept: Metrics = {}

    def report(metrics: Metrics, save: Save | None) -> None:
        kept.update(metrics)
        if metrics["epoch"] == epoch:
            raise _Enough

    with suppress(_Enough):
        TrainingRun(settings, open_split(settings, "search"), Workers(), solve_locally).train(report)
    return kept


def _check_mlflow(report: Report, storage: Path, name: str) -> None:
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    keys = Counter(run.data.tags.get("crh_tune.key", "?") for run in runs)
    wanted = {f"{name}/{outcome}" for outcome in read_outcomes(storage / name)} | {name}
    report.lost += [f"MLflow has no run {key}" for key in sorted(wanted - set(keys))]
    report.duplicated += [f"MLflow has {count} runs {key}" for key, count in keys.items() if count > 1]
    report.duplicated += [f"MLflow has a run {key} of nothing" for key in sorted(set(keys) - wanted)]
    for run in runs:
        if run.info.status != "FINISHED":
            report.lost.append(f"MLflow's run {run.info.run_name} is {run.info.status}")
        for metric in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            if steps != sorted(set(steps)):
                report.duplicated.append(f"MLflow's run {run.info.run_name} has {metric} at {steps}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--racing", type=int, default=30, help="how many of the kills meet the race of the finalists")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory(prefix="crh-soak-") as folder, pool:
        space = {**SPACE, "confirm": {"top": 3, "seeds": 3}, "budget": {"trials": arguments.trials}}
        random.seed(arguments.seed)
        kinds = random.choices(["driver", "trial", "aggregator"], weights=[1, 2, 1], k=arguments.kills)
        plan = [(kind, random.randint(1, 15)) for kind in kinds]
        plan.insert(max(0, arguments.kills - arguments.racing), RACING)
        report = soak(plan, space, Path(folder), map_=pool.map)
        print(report, flush=True)
    if report.kills.total() < arguments.kills:
        print(f"the search ended before the last {arguments.kills - report.kills.total()} kills")
    return 1 if report.lost or report.duplicated or report.kills.total() < arguments.kills else 0


if __name__ == "__main__":
    sys.exit(main())
