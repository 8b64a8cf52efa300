"""SHC's first stage (Chen et al., TOIS 2025): a classifier with the trial's backbone says which classes look alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from crh_tune.data.splits import Split
from crh_tune.hashing.objectives.base import soft_cross_entropy
from crh_tune.hashing.shc import accumulate_similarity
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.batches import batch_parts, epoch_batches, load_batches, mixed_seed
from crh_tune.training.models import build_network
from crh_tune.training.optimizers import Adam
from crh_tune.training.workers import Workers

State = dict[str, Any]
"""What the classifier's training resumes from: its ``epoch``, and the state of model, optimizer and schedule."""
Reached = Callable[[int, Callable[[], State]], None]
"""Called by every worker after each epoch of the classifier with its number and what gives its state beside it."""
_ASK_BATCH = 256


def classifier_scores(
    settings: TrialSettings, split: Split, workers: Workers, begun: State | None, reached: Reached
) -> npt.NDArray[np.float64]:
    """Train a classifier for half the trial's epochs; C x C: how much of other classes it sees in each class's samples.

    Cross entropy on the logits, targets y / ||y||_1; Adam at the trial's learning rate, cosine to zero; batches in
    ``accumulate`` parts. From ``begun`` it resumes as if it had never stopped.
    """
    trial = settings.trial
    torch.manual_seed(trial.seed)
    classifier = build_network(trial, split, split.classes).to(workers.device)
    workers.synchronised(classifier)
    wrapped = workers.wrap(classifier)
    assert trial.learning_rate is not None
    epochs = max(1, trial.epochs // 2)
    optimizer = Adam(classifier.parameters(), lr=trial.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    parts: dict[str, Any] = {"model": classifier, "optimizer": optimizer, "schedule": schedule}
    if begun is not None:
        for name, part in parts.items():
            part.load_state_dict(begun[name])
    for epoch in range(begun["epoch"] + 1 if begun else 1, epochs + 1):
        torch.manual_seed(mixed_seed(trial.seed, epoch, workers.rank))
        _train_epoch(wrapped, optimizer, epoch, settings, split, workers)
        schedule.step()
        reached(epoch, lambda: {name: part.state_dict() for name, part in parts.items()})
    return _ask(classifier.eval(), split, workers)


def _train_epoch(
    classifier: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    settings: TrialSettings,
    split: Split,
    workers: Workers,
) -> None:
    trial = settings.trial
    batches = epoch_batches(len(split.train), settings.global_batch, trial.seed, epoch)
    parts = [batch_parts(batch, workers, trial.accumulate) for batch in batches]
    rows = [part for of_batch in parts for part in of_batch]
    loaded = load_batches(split.train, rows, split.classes, workers.device, trial.augmentation, trial.seed, epoch)
    for batch, of_batch in zip(batches, parts, strict=True):
        optimizer.zero_grad(set_to_none=True)
        for place in range(len(of_batch)):
            inputs, targets = next(loaded)
            with workers.averaging(classifier, last=place == len(of_batch) - 1):
                loss = soft_cross_entropy(classifier(inputs), targets).sum() * (workers.size / len(batch))
                loss.backward()
        optimizer.step()


@torch.inference_mode()
def _ask(classifier: nn.Module, split: Split, workers: Workers) -> npt.NDArray[np.float64]:
    scores = torch.zeros(split.classes, split.classes, dtype=torch.float64)
    rows = workers.share(np.arange(len(split.train)))
    parts = [rows[start : start + _ASK_BATCH] for start in range(0, len(rows), _ASK_BATCH)]
    loaded = load_batches(split.train, parts, split.classes, workers.device)
    for part, (inputs, _) in zip(parts, loaded, strict=True):
        labels = torch.from_numpy(split.train.labels[part])
        scores += torch.as_tensor(accumulate_similarity(classifier(inputs).double().cpu(), labels))
    return workers.sum(scores.to(workers.device)).cpu().numpy()
