"""The engine: one Ray Tune experiment, and one set of trial processes, for all stages of a search."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search.searcher import Searcher

from crh_tune.data.store.cache import cache_root
from crh_tune.settings.course import BudgetSettings
from crh_tune.settings.trial import ScalingSettings
from crh_tune.tuning.cluster import concurrency, trial_resources
from crh_tune.tuning.events import Place, RunEvents
from crh_tune.tuning.memory import survive_out_of_memory
from crh_tune.tuning.ray_private import keep_processes
from crh_tune.tuning.record import Outcome
from crh_tune.tuning.run import RUNS_FOLDER, Run, Shared
from crh_tune.tuning.stages import Stage
from crh_tune.tuning.trial import run_trial
from crh_tune.tuning.worker import RESTARTS

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own handler would end the runs, and then continue the search
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a run that fails reports its error in place of metrics
}
"""What Tune reads from the environment as it starts; without these an engine does not work."""


def drive(
    place: Place,
    scaling: ScalingSettings,
    budget: BudgetSettings,
    stages: Sequence[Stage],
    scheduler: TrialScheduler | None = None,
) -> dict[str, Outcome]:
    """Take stages to their end, one after the other; returns the outcomes of all runs of the place, also earlier ones.

    Raises Interrupted, and what a stage raises.
    """
    engine = Engine(place, budget, stages, in_groups=scaling.workers_per_trial > 1)
    engine.begin()
    if engine.present is not None:
        (place.folder / RUNS_FOLDER).mkdir(exist_ok=True)
        os.environ.update(_ENVIRONMENT)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the events say what happened
        survive_out_of_memory()
        keep_processes()
        tuner = _tuner(place, scaling, concurrency(scaling, budget), engine, scheduler or FIFOScheduler())
        with place.stop.while_running():
            try:
                tuner.fit()
            finally:
                engine.events.close()
    if place.stop.failure is not None:
        raise place.stop.failure
    return engine.events.outcomes


def _tuner(
    place: Place, scaling: ScalingSettings, at_once: int, engine: Engine, scheduler: TrialScheduler
) -> tune.Tuner:
    shared = Shared(place.folder, place.aggregator, str(cache_root()))
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, shared=shared), trial_resources(scaling)),
        tune_config=tune.TuneConfig(
            search_alg=engine,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=at_once,
            reuse_actors=scaling.workers_per_trial == 1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(place.folder),
            callbacks=[engine.events],
            stop=place.stop,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
        ),
    )


class Engine(Searcher):
    """To Tune a searcher: asked for a run whenever a process is free, it asks the present stage."""

    def __init__(self, place: Place, budget: BudgetSettings, stages: Sequence[Stage], in_groups: bool) -> None:
        super().__init__()
        self._place, self._stages = place, list(stages)
        self._ready: list[Run] = []
        """Runs that were proposed and are not handed out yet, or are to be once more."""
        self.events = RunEvents(place, budget.hang_minutes, in_groups, lambda: self.present, self._ready.append)
        self._recorded = dict(self.events.outcomes)

    @property
    def present(self) -> Stage | None:
        """The stage whose runs are under way; None where all are done."""
        return self._stages[0] if self._stages else None

    def begin(self) -> None:
        """Begin with the first stage that is not done; once Tune has started it is asked for runs, and hours count.

        Raises what a stage raises.
        """
        self._stages[0].begin(self._recorded)
        self._leave_what_is_done()

    def suggest(self, trial_id: str) -> Any:
        """The next run as ``{"run": Run}``; None while the stage waits for outcomes, FINISHED when all are done."""
        try:
            run = self._ready.pop(0) if self._ready else self._next()
        except Exception as error:  # Tune would leave its processes where they are
            self._place.stop.failure = error
            return Searcher.FINISHED
        if run is None:
            return None if self._stages else Searcher.FINISHED
        return {"run": run}

    def _next(self) -> Run | None:
        while (stage := self.present) is not None:
            run = stage.propose()
            if run is not None and not stage.out_of_time:
                return run
            if run is not None:
                self.events.give_up(run)
            elif not stage.done:
                return None
            self._leave_what_is_done()
        return None

    def _leave_what_is_done(self) -> None:
        while self._stages and self._stages[0].done:
            self._stages.pop(0)
            if self._stages:
                self._stages[0].begin(self._recorded)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's own call, before anything is on disk: the stages are told by the events, after it is."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its searcher down to restore it; a resumed search makes its stages anew."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the outcomes are on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the outcomes are on disk."""


def _trial_name(trial: Trial) -> str:
    return str(trial.config["run"].name)
