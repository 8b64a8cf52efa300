"""Optimizers and the learning rate by epoch.

torch's optimizers import its compiler in order to keep it out of their methods: two seconds and 80 MB of every process
that trains, for nothing where nothing is compiled. Ours are the same methods without that.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from crh_tune.settings.training import TrainingSettings

Parameters = list[nn.Parameter]


def _uncompiled(kind: type[torch.optim.Optimizer]) -> Any:
    """The optimizer with its methods as they are written, below what torch has wrapped around them."""
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    plain: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


Adam: type[torch.optim.Adam] = _uncompiled(torch.optim.Adam)
RMSprop: type[torch.optim.RMSprop] = _uncompiled(torch.optim.RMSprop)


def build_optimizer(backbone: Parameters, rest: Parameters, trial: TrainingSettings) -> torch.optim.Optimizer:
    """Adam with the trial's betas, or RMSprop; the backbone at ``backbone_ratio`` times the learning rate."""
    assert trial.learning_rate is not None
    assert trial.backbone_ratio is not None
    groups: list[dict[str, Any]] = [
        {"params": backbone, "lr": trial.learning_rate * trial.backbone_ratio},
        {"params": rest},
    ]
    options: dict[str, Any] = {"lr": trial.learning_rate, "weight_decay": trial.weight_decay}
    if trial.optimizer == "rmsprop":
        return RMSprop(groups, **options)
    assert trial.betas is not None
    return Adam(groups, betas=trial.betas, **options)


def build_schedule(optimizer: torch.optim.Optimizer, trial: TrainingSettings) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate by epoch: see ``crh_tune.hashing.methods.Schedule``."""
    if trial.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.epochs)
    if trial.schedule == "every_10_epochs":
        return torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.7)
    if trial.schedule == "at_80_percent":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(1, round(0.8 * trial.epochs))], gamma=0.1)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
