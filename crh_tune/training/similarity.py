"""SHC's first stage (Chen et al., TOIS 2025): a classifier with the trial's backbone says which classes look alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from crh_tune.data.splits import Split
from crh_tune.hashing.objectives.base import soft_cross_entropy
from crh_tune.hashing.shc import accumulate_similarity
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.batches import epoch_batches, load_batches
from crh_tune.training.models import build_network
from crh_tune.training.workers import Workers

_ASK_BATCH = 256


def classifier_scores(settings: TrialSettings, split: Split, workers: Workers) -> npt.NDArray[np.float64]:
    """Train a classifier for half the trial's epochs; C x C: how much of other classes it sees in each class's samples.

    Cross entropy on the logits, targets y / ||y||_1; Adam at the trial's learning rate, cosine to zero.
    """
    trial = settings.trial
    torch.manual_seed(trial.seed)
    classifier = build_network(trial, split, split.classes).to(workers.device)
    workers.synchronised(classifier)
    wrapped = workers.wrap(classifier)
    assert trial.learning_rate is not None
    epochs = max(1, trial.epochs // 2)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=trial.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(1, epochs + 1):
        batches = epoch_batches(len(split.train), settings.global_batch, trial.seed, epoch)
        shares = [workers.share(batch) for batch in batches]
        loaded = load_batches(split.train, shares, split.classes, workers.device, trial.augmentation, trial.seed, epoch)
        for batch, (inputs, targets) in zip(batches, loaded, strict=True):
            loss = soft_cross_entropy(wrapped(inputs), targets).sum() * (workers.size / len(batch))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        schedule.step()
    return _ask(classifier.eval(), split, workers)


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
