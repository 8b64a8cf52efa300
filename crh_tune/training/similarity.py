"""SHC's first stage (Chen et al., TOIS 2025): a classifier with the trial's backbone says which classes look alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from crh_tune.data.splits import Split
from crh_tune.hashing.network import HashNetwork
from crh_tune.hashing.objectives.base import soft_cross_entropy
from crh_tune.hashing.shc import accumulate_similarity
from crh_tune.settings.trial import TrainingSettings
from crh_tune.training.batches import channel_statistics, epoch_batches, load_batch
from crh_tune.training.workers import Workers

_ASK_BATCH = 512


def classifier_scores(trial: TrainingSettings, split: Split, workers: Workers) -> npt.NDArray[np.float64]:
    """Train a classifier for half the trial's epochs; C x C: how much of other classes it sees in each class's samples.

    Cross entropy on the logits, targets y / ||y||_1; Adam at the trial's learning rate, cosine to zero.
    """
    torch.manual_seed(trial.seed)
    mean, std = channel_statistics(split.train)
    classifier = HashNetwork(trial.backbone, split.train.inputs.shape[1:], split.classes, mean, std).to(workers.device)
    workers.synchronised(classifier)
    wrapped = workers.wrap(classifier)
    assert trial.learning_rate is not None
    epochs = max(1, trial.epochs // 2)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=trial.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(1, epochs + 1):
        for batch in epoch_batches(len(split.train), trial.batch_size, trial.seed, epoch):
            inputs, targets = load_batch(split.train, workers.share(batch), split.classes, workers.device)
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
    for start in range(0, len(rows), _ASK_BATCH):
        part = rows[start : start + _ASK_BATCH]
        inputs, _ = load_batch(split.train, part, split.classes, workers.device)
        labels = torch.from_numpy(split.train.labels[part])
        scores += torch.as_tensor(accumulate_similarity(classifier(inputs).double().cpu(), labels))
    return workers.sum(scores.to(workers.device)).cpu().numpy()
