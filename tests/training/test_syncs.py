"""A step waits for the device nowhere: no tensor is turned into a number of Python's before the epoch is over."""

from __future__ import annotations

import pytest

from crh_tune.hashing.methods import METHODS
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers
from tests.operations import Operations
from tests.training.conftest import settings_for, split_of

WAITS = "_local_scalar_dense"  # what item(), int() and bool() of a tensor end in


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].centers != "shc"])
def test_no_step_of_any_method_waits_for_the_device(method: str, monkeypatch: pytest.MonkeyPatch):
    split = split_of()
    run = TrainingRun(settings_for(split, method, batch_size=256), split, Workers(), solve_locally)
    run.take_first_centers()
    monkeypatch.setattr(run.optimizer, "step", lambda: None)  # torch's own: on a CPU it counts its steps in Python
    run.epoch = 1
    with Operations() as operations:
        run._train_epoch()
    assert operations.seen["mm"] + operations.seen["addmm"] >= 5
    assert operations.seen[WAITS] == 0
