"""What happens to the runs of a search: their ends are kept on disk, and told to MLflow and to their stage."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from crh_tune.errors import SearchFailed
from crh_tune.settings.trial import write_trial
from crh_tune.training.checkpoints import CENTERS_FILE, latest
from crh_tune.training.loop import PREPARED
from crh_tune.tuning.board import Board, stage_of, trial_of
from crh_tune.tuning.cluster import free_groups
from crh_tune.tuning.leaderboard import escaped, headline, leaderboard
from crh_tune.tuning.pages import OUTCOME_TAG, ended_name, origin, run_params, run_tags, splits_seen
from crh_tune.tuning.pictures import Pictures
from crh_tune.tuning.record import COMPLETE, FAILED, PRUNED, Outcome, read_outcomes, write_outcome
from crh_tune.tuning.run import RUNS_FOLDER, Run
from crh_tune.tuning.stages import Stage
from crh_tune.tuning.stopping import Stop
from crh_tune.tuning.tracking import NOTE_TAG, Tracker
from crh_tune.tuning.worker import ERROR, RESTARTS

SETTINGS_FOLDER = "settings"
OUT_OF_TIME = "stopped by budget.hours"
"""The error of a run that was stopped when the search's hours were over."""
_FREE_SECONDS, _GONE_SECONDS = 1.0, 10.0
"""How often worker groups that have lost their controller are looked for; how long the last ones have to lose it."""


@dataclass(frozen=True)
class Place:
    """Where the runs of a search live: its id, folder, aggregator and the tracker.

    ``searched`` names what its runs differ in. ``board`` is how a search stands, shown to ``watch`` whenever that
    changes; ``ui`` is the command that opens MLflow's pages; ``pictures`` are drawn while it runs.
    """

    search_id: str
    folder: Path
    aggregator: str
    tracker: Tracker
    stop: Stop = field(default_factory=Stop)
    searched: Collection[str] = ()
    board: Board | None = None
    watch: Callable[[Board], None] = lambda board: None
    ui: str = ""
    pictures: Pictures | None = None

    def describe(self) -> None:
        """Write the leaderboard into the description of the search's own run, and show how it stands."""
        if self.board is not None:
            self.tracker.tags(self.search_id, {NOTE_TAG: leaderboard(self.board, self.ui)})
            self.tracker.describe_experiment(self.search_id, f"{escaped(self.search_id)}: {headline(self.board)}")
            self.watch(self.board)

    def key(self, name: str) -> str:
        """The MLflow key of a run of this search."""
        return f"{self.search_id}/{name}"


class RunEvents(tune.Callback):
    """Keeps how every run ends, tells MLflow and the present stage, and ends runs that hang or have no time left.

    ``outcomes`` starts with those of the runs that had ended before. A run is ended by writing its outcome; what
    follows changes nothing when it is done twice, and is done again for outcomes that were there before.
    """

    def __init__(
        self,
        place: Place,
        hang_minutes: float,
        in_groups: bool,
        present: Callable[[], Stage | None],
        put_back: Callable[[Run], None],
    ) -> None:
        self._place, self._hang_seconds = place, hang_minutes * 60
        self._present, self._put_back = present, put_back
        self._in_groups, self._freed = in_groups, 0.0
        self._alive: dict[str, float] = {}
        """When each run that has started, and not ended, was last heard of, in seconds."""
        self._reached: dict[str, tuple[int, int]] = {}
        self._lost: Counter[str] = Counter()
        """How often the process of each run died before the run had started in it."""
        self._ending: dict[str, str] = {}
        """The runs whose process was ended here, and why."""
        self.outcomes = read_outcomes(place.folder)
        for outcome in self.outcomes.values():
            self._tell_tracker(outcome)
        self._board = place.board
        if self._board is not None:
            self._board.outcomes = dict(self.outcomes)

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down to restore them; these are made anew by a resumed search."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._start(trial.config["run"])

    def _start(self, run: Run) -> None:
        key, tracker = self._place.key(run.name), self._place.tracker
        settings = run.settings.model_dump(mode="json")
        self._alive[run.name] = time.monotonic()
        self.outcomes[run.name] = Outcome(run.name, settings, run.start, fingerprint=run.fingerprint)
        tracker.start_run(key, run.name, self._place.search_id, {**run_tags(run), **trial_of(run.name)})
        tracker.params(key, run_params(run.settings, self._place.searched))
        data = run.settings.dataset
        tracker.dataset(key, data.name, run.fingerprint, origin(data), splits_seen(run))
        if self._board is not None:
            self._board.start(self.outcomes[run.name])
            self._place.watch(self._board)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        outcome = self.outcomes[trial.config["run"].name]
        self._alive[outcome.name] = time.monotonic()
        if ERROR in result:
            outcome.status, outcome.error = FAILED, str(result[ERROR])
            return
        reached = (int(result["epoch"]), int(result.get(PREPARED, 0)))
        if reached > self._reached.get(outcome.name, (0, 0)):  # it makes progress: it may be started again as often
            self._reached[outcome.name] = reached
            trial.max_failures = trial.num_failures + RESTARTS
        if PREPARED in result:
            return
        outcome.metrics = plain_metrics(result)
        outcome.status = COMPLETE if result.get("final") else PRUNED
        epoch = int(outcome.metrics["epoch"])
        finite = {name: value for name, value in outcome.metrics.items() if math.isfinite(value) and name != "epoch"}
        self._place.tracker.metrics(self._place.key(outcome.name), finite, epoch)
        if self._board is not None:
            self._board.report(outcome)
            self._place.watch(self._board)
        if self._place.pictures is not None:
            self._place.pictures.evaluated()
        if (stage := self._present()) is not None:
            stage.reported(outcome)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(self.outcomes[trial.config["run"].name])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._place.stop.interrupted:
            return  # its process was ended, to be resumed
        run = trial.config["run"]
        if run.name not in self._alive:  # its process died before, maybe as it waited for the next run
            self._lost[run.name] += 1
            if self._lost[run.name] <= RESTARTS:
                self._put_back(run)
                return
            self._start(run)
        outcome = self.outcomes[run.name]
        outcome.error = self._ending.get(run.name) or _reason(trial)
        if outcome.error != OUT_OF_TIME:
            outcome.status = FAILED
        self._end(outcome)

    def give_up(self, run: Run) -> None:
        """End a run that was begun, by a process before this one, and that no time is left for."""
        self._start(run)
        self.outcomes[run.name].error = OUT_OF_TIME
        self._end(self.outcomes[run.name])

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End the process of a run that makes no progress or has no time left, and of all once it is interrupted."""
        now, stage = time.monotonic(), self._present()
        if self._in_groups and now - self._freed > _FREE_SECONDS:
            self._freed = now
            free_groups()
        out_of_time = stage is not None and stage.out_of_time
        for trial in trials:
            name = trial.config["run"].name
            if trial.status != Trial.RUNNING or trial.temporary_state.ray_actor is None or name in self._ending:
                continue
            if now - self._alive[name] > self._hang_seconds:
                self._ending[name] = f"no progress for {self._hang_seconds / 60:g} minutes"
            elif out_of_time:
                self._ending[name] = OUT_OF_TIME
            if self._place.stop.interrupted or name in self._ending:
                trial.max_failures = 0  # not to be started again
                ray.kill(trial.temporary_state.ray_actor)

    def close(self) -> None:
        """Tell MLflow of the runs that Tune has stopped without a word, to be resumed.

        Waits until nothing of worker groups is left: their controllers die soon after Tune has ended their trials.
        """
        for name in self._alive:
            self._place.tracker.end_run(self._place.key(name), "KILLED")
        deadline = time.monotonic() + _GONE_SECONDS
        while self._in_groups and free_groups() and time.monotonic() < deadline:
            time.sleep(_FREE_SECONDS)

    def _end(self, outcome: Outcome) -> None:
        checkpoint = latest(self._place.folder / RUNS_FOLDER / outcome.name)
        outcome.checkpoint = str(checkpoint) if checkpoint else None
        outcome.status = outcome.status or FAILED
        write_outcome(self._place.folder, outcome)
        self._tell_tracker(outcome)
        self._alive.pop(outcome.name, None)
        if self._board is not None:
            self._board.end(outcome)
            self._place.describe()
        try:
            if (stage := self._present()) is not None:
                stage.told(outcome)
        except SearchFailed as error:  # to Tune it would be this run that has failed
            self._place.stop.failure = error

    def _tell_tracker(self, outcome: Outcome) -> None:
        """Tell MLflow of a run that has ended, where it does not know."""
        key, tracker = self._place.key(outcome.name), self._place.tracker
        if tracker.has_ended(key):
            return
        self._keep_artifacts(key, outcome)
        metric = self._place.board.metric if self._place.board else "test/map"
        classes = self._place.board.classes if self._place.board else 0
        tracker.rename(key, ended_name(outcome, stage_of(outcome), metric, self._place.searched, classes))
        tags = {OUTCOME_TAG: outcome.status}
        if outcome.error:
            tags["crh_tune.error"] = outcome.error
        tracker.tags(key, tags)
        tracker.end_run(key, "FAILED" if outcome.status == FAILED else "FINISHED")

    def _keep_artifacts(self, key: str, outcome: Outcome) -> None:
        folder = self._place.folder / SETTINGS_FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / f"{outcome.name}.yaml"
        write_trial(outcome.trial_settings, path)
        self._place.tracker.artifact(key, path)
        if outcome.checkpoint:
            self._place.tracker.artifact(key, Path(outcome.checkpoint) / CENTERS_FILE)


def plain_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The trial's own metrics out of a Tune result: those of a name with a slash, and the epoch."""
    return {
        name: float(value)
        for name, value in result.items()
        if ("/" in name and not name.startswith("config/") and isinstance(value, int | float)) or name == "epoch"
    }


def _reason(trial: Trial) -> str:
    """How often its process died, and the last line of what Tune has just written on this machine."""
    path = Path(trial.error_file or "")
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []
    return f"its process died {trial.num_failures} times, the last time: {lines[-1] if lines else 'without a word'}"
