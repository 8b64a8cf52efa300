"""The function that Ray Tune runs for a trial: in the trial's own process, or as a Ray Train worker group.

Every new process of a trial imports this module, and no more than a trial needs: MLflow, Optuna and what compares
results are left to the driver, Ray Train to worker groups.
"""

from __future__ import annotations

import uuid
from typing import Any

from ray import tune

from crh_tune.training.workers import Workers
from crh_tune.tuning.cluster import device_of
from crh_tune.tuning.run import Run, Shared
from crh_tune.tuning.worker import ERROR, reason_of, train_run


def run_trial(config: dict[str, Any], shared: Shared) -> None:
    """Train the run ``config["run"]``, keep its checkpoints, and report each evaluation to Tune.

    An error is reported as the run's last result: it would come again, so Tune is not to try again. Only the death of a
    process ends the function without a report.
    """
    run: Run = config["run"]
    try:
        shared.folder_of(run).mkdir(exist_ok=True)
        if run.settings.scaling.workers_per_trial > 1:
            from crh_tune.tuning.groups import follow_group  # noqa: PLC0415  # Ray Train, seconds to import

            follow_group(run, shared, tune.report)
        else:
            train_run(run, shared, Workers(device=device_of(run.settings.scaling)), tune.report, uuid.uuid4().hex)
    except Exception as error:
        tune.report({ERROR: reason_of(error)})
