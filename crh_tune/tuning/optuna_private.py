"""All that is used of Optuna's private interfaces, and why. They may change in any release: pyproject.toml caps it.

* ``taken_up``: a study only hands out new trials; one that was begun in another process is made from its number inside
  the storage.
* ``has_reported``: the public way to a trial's intermediate values reads all trials of the study.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, Trial


def taken_up(study: optuna.Study, begun: FrozenTrial) -> Trial:
    """A running trial of the study, begun in this process or another, to be continued."""
    return Trial(study, begun._trial_id)


def has_reported(study: optuna.Study, trial: Trial, epoch: int) -> bool:
    """Whether a trial has an intermediate value at this epoch."""
    return epoch in study._storage.get_trial(trial._trial_id).intermediate_values
