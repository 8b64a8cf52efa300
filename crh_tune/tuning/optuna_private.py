"""All that is used of Optuna's private interfaces, and why. They may change in any release: pyproject.toml caps it.

* ``taken_up``: a study only hands out new trials; one that was begun in another process is made from its number inside
  the storage.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, Trial


def taken_up(study: optuna.Study, begun: FrozenTrial) -> Trial:
    """A running trial of the study, begun in this process or another, to be continued."""
    return Trial(study, begun._trial_id)
