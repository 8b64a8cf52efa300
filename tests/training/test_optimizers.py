"""Optimizers without torch's compiler around their methods, step by step beside torch's own."""

from __future__ import annotations

import copy

import pytest
import torch

from crh_tune.training.optimizers import Adam, RMSprop


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(Adam, torch.optim.Adam, {"betas": (0.8, 0.99)}), (RMSprop, torch.optim.RMSprop, {})],
)
def test_an_optimizer_does_what_torchs_does_to_the_last_bit(ours, theirs, options):
    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    second = copy.deepcopy(first)
    inputs = torch.randn(20, 5, 4)
    pairs = [(first, ours), (second, theirs)]
    made = []
    for network, kind in pairs:
        groups = [{"params": network[0].parameters(), "lr": 1e-3}, {"params": network[1].parameters()}]
        optimizer = kind(groups, lr=0.1, weight_decay=1e-2, **options)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        for place, batch in enumerate(inputs):
            optimizer.zero_grad(set_to_none=True)
            network(batch).square().sum().backward()
            optimizer.step()
            schedule.step()
            if place == 9:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer.zero_grad()
                optimizer.load_state_dict(state)
        made.append(optimizer)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    ours_state, theirs_state = (optimizer.state_dict() for optimizer in made)
    assert ours_state["param_groups"] == theirs_state["param_groups"]
    for index, state in theirs_state["state"].items():
        assert all(torch.equal(ours_state["state"][index][name], value) for name, value in state.items())
