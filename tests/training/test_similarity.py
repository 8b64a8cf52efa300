"""SHC's first stage, a classifier: it is reported as it trains, gone on with, and takes batches in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crh_tune.hashing.network import HashNetwork
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import PREPARED, Metrics, Save, TrainingRun
from crh_tune.training.similarity import classifier_scores
from crh_tune.training.workers import Workers
from tests.training.test_methods import small


def settings_of(**trial) -> TrialSettings:
    content = {"dataset": {"name": "digits"}, "method": "shc", "trial": {"bits": 16, "epochs": 8, **trial}}
    return TrialSettings.model_validate(content).resolve(10, False)


def make(**trial) -> TrainingRun:
    return TrainingRun(settings_of(**trial), small(), Workers(), solve_locally)


def ignored(epoch: int, state: object) -> None:
    pass


class Killed(Exception):
    """Stands for the death of the process."""


def test_every_epoch_of_the_classifier_is_reported_before_those_of_the_trial():
    reports: list[Metrics] = []
    saved: list[bool] = []

    def note(metrics: Metrics, save: Save | None) -> None:
        reports.append(metrics)
        saved.append(save is not None)

    make(evaluate_every=2).train(note)
    assert reports[:4] == [{"epoch": 0.0, PREPARED: float(epoch)} for epoch in (1, 2, 3, 4)]
    assert saved[:4] == [False, True, False, True]
    assert [metrics["epoch"] for metrics in reports[4:]] == [2, 4, 6, 8]
    assert not any(PREPARED in metrics for metrics in reports[4:])


@pytest.mark.parametrize("trial", [{}, {"hash_layer": "three_layers", "reassignment": "greedy"}])
def test_a_run_that_dies_in_the_first_stage_goes_on_there_as_if_nothing_had_happened(tmp_path: Path, trial):
    whole = make(**trial)
    expected = whole.train(lambda metrics, save: None)

    def die(metrics: Metrics, save: Save | None) -> None:
        assert save is not None
        save(tmp_path)
        if metrics[PREPARED] == 3:
            raise Killed

    with pytest.raises(Killed):
        make(**trial).train(die)
    resumed, seen = make(**trial), []
    resumed.restore(tmp_path)
    metrics = resumed.train(lambda metrics, save: seen.append(metrics.get(PREPARED)))
    assert seen == [4.0, *[None] * 8]
    assert np.array_equal(resumed.centers, whole.centers)
    assert {k: v for k, v in metrics.items() if "seconds" not in k} == {
        k: v for k, v in expected.items() if "seconds" not in k
    }


def test_batches_go_through_the_classifier_in_parts(monkeypatch):
    """Batch normalisation, whose statistics depend on the parts, is kept in evaluation mode."""
    sizes: list[int] = []
    forward = HashNetwork.forward

    def counted(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            sizes.append(len(inputs))
            self.backbone.eval()
        return forward(self, inputs)

    monkeypatch.setattr(HashNetwork, "forward", counted)
    found = {}
    for accumulate in (1, 4):
        sizes.clear()
        settings = settings_of(batch_size=100, epochs=4, accumulate=accumulate)
        found[accumulate] = classifier_scores(settings, small(), Workers(), None, ignored)
        assert sizes == [100 // accumulate] * 4 * accumulate * 2
    np.testing.assert_allclose(found[4], found[1], rtol=1e-3, atol=1e-4)
