"""A batch that several workers share: gathered with its gradient, and each objective's losses as in one worker."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crh_tune.hashing.objectives import OBJECTIVES, Objective
from crh_tune.training.workers import Workers

BITS, CLASSES, COUNT = 8, 3, 5
SPLITS = {2: [(3, 2), (1, 4), (0, 5), (5, 0)], 3: [(2, 2, 1), (1, 1, 3), (2, 0, 3), (0, 0, 5)]}
"""Sizes of the shares by the number of workers; the first of each is how ``Workers.share`` deals 5 samples."""


def my_rows(rank: int, sizes: tuple[int, ...]) -> slice:
    first = sum(sizes[:rank])
    return slice(first, first + sizes[rank])


def check_gathering(rank: int, size: int) -> None:
    workers = Workers(rank, size)
    generator = torch.Generator().manual_seed(0)
    for sizes in [*SPLITS[size], (1,) * size, (0,) * size]:
        rows = my_rows(rank, sizes)
        for shape, dtype in [
            ((), torch.float32),
            ((3,), torch.float32),
            ((3,), torch.float64),
            ((2, 3), torch.float64),
        ]:
            whole = torch.randn(sum(sizes), *shape, generator=generator).to(dtype)
            weights = torch.randn(size, *whole.shape, generator=generator).to(dtype)
            share = whole[rows].clone().requires_grad_()
            gathered = workers.gather_batch(share)
            assert gathered.dtype == dtype
            assert torch.equal(gathered, whole), (sizes, shape)
            (weights[rank] * gathered**2).sum().backward()  # every worker's loss is another one
            expected = (weights.sum(dim=0) * 2 * whole)[rows]
            assert torch.allclose(share.grad, expected, atol=1e-5), (sizes, shape, share.grad, expected)
            assert torch.equal(workers.gather_batch(whole[rows]), whole)  # as targets, without a gradient


def make_objective(name: str, state: dict[str, Tensor], epoch: int) -> Objective:
    objective = OBJECTIVES[name](OBJECTIVES[name].options_type(bits=BITS, classes=CLASSES)).double()
    objective.load_state_dict(state)
    objective.epoch = epoch
    return objective


def some_state(name: str, seed: int) -> dict[str, Tensor]:
    """Like after some training: a full bank, a classifier, and 2 steps before and after HashNet's beta changes."""
    generator = torch.Generator().manual_seed(seed)
    state = OBJECTIVES[name](OBJECTIVES[name].options_type(bits=BITS, classes=CLASSES)).double().state_dict()
    for key, value in state.items():
        if key in ("bank", "classifier.weight"):
            state[key] = torch.randn(value.shape, generator=generator, dtype=torch.double)
        if key == "steps":
            state[key] = torch.tensor(599)
    return state


def some_batch(multi: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    outputs = generator.normal(size=(COUNT, BITS))
    targets = np.eye(CLASSES)[[0, 1, 0, 2, 1]]
    if multi:
        targets[[0, 3]] = [[1, 0, 1], [0, 0, 0]]
    centers = np.where(generator.random((CLASSES, BITS)) < 0.5, -1.0, 1.0)
    return torch.from_numpy(outputs), torch.from_numpy(targets), torch.from_numpy(centers)


Step = dict[str, Any]


def step(objective: Objective, batch: tuple[Tensor, Tensor, Tensor], rows: slice, size: int) -> Step:
    """One training step's losses, gradients and state, of the rows that are this worker's."""
    outputs, targets, centers = batch
    leaf = outputs[rows].clone().requires_grad_()
    objective.zero_grad()
    terms = objective(leaf, targets[rows], centers)
    (torch.stack(list(terms.values())).sum() * (size / len(outputs))).backward()
    return {
        "terms": {name: term.detach() for name, term in terms.items()},
        "outputs": leaf.grad,
        "parameters": {name: parameter.grad for name, parameter in objective.named_parameters()},
        "buffers": {name: buffer.clone() for name, buffer in objective.named_buffers()},
    }


def steps(objective: Objective, multi: bool, rows: slice, size: int) -> list[Step]:
    """Two steps, so that the second has the state that the first left."""
    return [step(objective, some_batch(multi, seed), rows, size) for seed in (0, 1)]


def differences(mine: Step, alone: Step, rows: slice, workers: Workers) -> Iterator[str]:
    """What is not as in one worker. Collective: all workers look at everything, whatever they find."""

    def compare(what: str, value: Tensor, expected: Tensor) -> Iterator[str]:
        try:
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-12)
        except AssertionError as error:
            yield f"{what}: {error}"

    if list(mine["terms"]) != list(alone["terms"]):
        yield f"terms {list(mine['terms'])}"
    for name, expected in alone["terms"].items():
        yield from compare(f"rows of {name}", mine["terms"][name], expected[rows])
    total = workers.sum(torch.stack(list(mine["terms"].values())).sum(dim=1))
    yield from compare("sums of terms", total, torch.stack(list(alone["terms"].values())).sum(dim=1))
    yield from compare("gradient of the outputs", mine["outputs"] / workers.size, alone["outputs"][rows])
    for name, expected in alone["parameters"].items():
        average = workers.sum(mine["parameters"][name]) / workers.size
        yield from compare(f"gradient of {name}", average, expected)
    for name, expected in alone["buffers"].items():
        yield from compare(name, mine["buffers"][name], expected)


Case = tuple[str, bool, int]


def compare_objectives(rank: int, size: int, expected: dict[Case, tuple[dict[str, Tensor], list[Step]]]) -> None:
    workers = Workers(rank, size)
    wrong = []
    for (name, multi, epoch), (state, reference) in expected.items():
        for sizes in SPLITS[size]:
            rows = my_rows(rank, sizes)
            objective = make_objective(name, state, epoch)
            objective.rank, objective.gather = workers.rank, workers.gather_batch
            for number, (mine, alone) in enumerate(zip(steps(objective, multi, rows, size), reference, strict=True)):
                place = f"{name} multi={multi} epoch={epoch} shares={sizes} step={number}"
                wrong += [f"{place}: {text}" for text in differences(mine, alone, rows, workers)]
    assert not wrong, "\n".join(wrong)


def alone_objectives() -> dict[Case, tuple[dict[str, Tensor], list[Step]]]:
    """What one worker computes; only MDS depends on the epoch, it looks at pairs after the ninth."""
    expected = {}
    for name in OBJECTIVES:
        for multi in (False, True):
            for epoch in (9, 10) if name == "minimal_distance" else (1,):
                state = some_state(name, seed=3)
                alone = steps(make_objective(name, copy.deepcopy(state), epoch), multi, slice(None), 1)
                assert all(term.sum() > 0 for one in alone for term in one["terms"].values())
                assert all(one["outputs"].abs().max() > 1e-3 for one in alone)
                expected[name, multi, epoch] = state, alone
    return expected


class Model(nn.Module):
    """A linear layer under the objective, as the training loop puts a network there."""

    def __init__(self, name: str, state: dict[str, Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(6, BITS).double()
        self.objective = make_objective(name, state, epoch=10)

    def forward(self, inputs: Tensor, targets: Tensor, centers: Tensor) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective(self.network(inputs), targets, centers)
        return terms


def trained(model: Model, workers: Workers, multi: bool, count: int) -> dict[str, Tensor]:
    """The state after three steps of gradient descent on batches dealt by ``Workers.share``."""
    wrapped = workers.wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for seed in range(3):
        rows = workers.share(np.arange(count))
        inputs = torch.from_numpy(np.random.default_rng(seed).normal(size=(COUNT, 6)))[rows]
        _, targets, centers = some_batch(multi)
        terms = wrapped(inputs, targets[rows], centers)
        optimizer.zero_grad()
        (torch.stack(list(terms.values())).sum() * (workers.size / count)).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


Trained = dict[tuple[str, bool, int], tuple[dict[str, Tensor], dict[str, Tensor]]]


def compare_training(rank: int, size: int, expected: Trained) -> None:
    workers = Workers(rank, size)
    wrong = []
    for (name, multi, count), (state, reference) in expected.items():
        model = Model(name, state)
        model.objective.rank, model.objective.gather = workers.rank, workers.gather_batch
        for key, value in trained(model, workers, multi, count).items():
            if not torch.allclose(value, reference[key], rtol=1e-6, atol=1e-10):
                wrong.append(f"{name} multi={multi} count={count} {key}: {(value - reference[key]).abs().max()}")
    assert not wrong, "\n".join(wrong)


def alone_trained() -> Trained:
    """5 samples, and 2, so that a third worker has none."""
    expected: Trained = {}
    for name in OBJECTIVES:
        for multi, count in [(False, COUNT), (True, COUNT), (False, 2)]:
            state = some_state(name, seed=4)
            model = Model(name, state)
            before = model.network.weight.detach().clone()
            expected[name, multi, count] = state, trained(model, Workers(), multi, count)
            assert not torch.equal(model.network.weight, before)
    return expected


def check_everything(rank: int, size: int, objectives: Any, training: Trained) -> None:
    """All checks in one process group, because starting one takes longer than they do."""
    torch.set_num_threads(1)
    check_gathering(rank, size)
    compare_objectives(rank, size, objectives)
    compare_training(rank, size, training)


@pytest.mark.parametrize("size", [2, 3])
def test_workers_that_share_a_batch_do_what_one_worker_does_with_it(in_group, size):
    """Gathering and its gradient; every objective's losses, gradients and state; and training with DDP.

    Shares are uneven or empty, samples single- and multi-label.
    """
    in_group(size, check_everything, alone_objectives(), alone_trained())
