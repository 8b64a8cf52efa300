"""Two workers do what one does: gradients, batch normalisation, gathered arrays, assignments and metrics."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from crh_tune.training.aggregator import solve_locally
from crh_tune.training.batches import load_batches
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers
from tests.training.conftest import settings_for, split_of


def gradients(run: TrainingRun, batch: np.ndarray) -> dict[str, torch.Tensor]:
    run.take_first_centers()
    run.wrapped.train()
    loaded = load_batches(run.split.train, run._parts(batch), run.split.classes, run.workers.device)
    run._train_step(batch, loaded, torch.from_numpy(run.centers).float())
    return {
        name: parameter.grad.clone() for name, parameter in run.model.named_parameters() if parameter.grad is not None
    }


def make_run(dataset: str, workers: Workers, method: str = "crh") -> TrainingRun:
    split = split_of(dataset)
    return TrainingRun(settings_for(split, method, dataset, learning_rate=1e-9), split, workers, solve_locally)


def compare_gradients(rank: int, size: int, expected: dict[tuple[str, int], dict[str, torch.Tensor]]) -> None:
    for (dataset, count), reference in expected.items():
        mine = gradients(make_run(dataset, Workers(rank, size)), np.arange(count))
        assert set(mine) == set(reference)
        for name, value in reference.items():
            error = (mine[name] - value).abs().max() / value.abs().max().clamp(min=1e-12)
            assert error < 2e-4, f"{dataset} {count} {name}: {error}"


def test_a_two_worker_step_has_the_gradient_of_the_one_worker_step(in_group):
    """Also where the global batch is odd, and in three workers where one has nothing."""
    expected = {
        (dataset, count): gradients(make_run(dataset, Workers()), np.arange(count))
        for dataset in ("digits", "digit_sets")
        for count in (64, 65, 2)
    }
    in_group(2, compare_gradients, expected)
    in_group(3, compare_gradients, expected)


def compare_batch_norm(rank: int, size: int, state: dict, inputs: torch.Tensor, expected: dict) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3)).double()
    network.load_state_dict(state)
    workers = Workers(rank, size)
    workers.synchronised(network)
    mine = inputs[rank::size].clone().requires_grad_()
    outputs = network(mine)
    torch.testing.assert_close(outputs, expected["outputs"][rank::size])
    (outputs**3).sum().backward()
    torch.testing.assert_close(mine.grad, expected["inputs"][rank::size])
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, expected["buffers"][name], msg=name)


def test_synchronised_batch_norm_is_torchs_batch_norm_of_the_global_batch(in_group):
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3)).double()
    state = copy.deepcopy(network.state_dict())
    inputs = torch.randn(5, 3, 4, 4, dtype=torch.double) * 3 + 1
    leaf = inputs.clone().requires_grad_()
    outputs = network(leaf)
    (outputs**3).sum().backward()
    expected = {"outputs": outputs.detach(), "inputs": leaf.grad, "buffers": dict(network.named_buffers())}
    in_group(2, compare_batch_norm, state, inputs, expected)


def check_collectives(rank: int, size: int) -> None:
    workers = Workers(rank, size)
    rows = np.arange(11)
    assert np.array_equal(workers.gather(workers.share(rows)), rows)
    assert np.array_equal(workers.gather(workers.share(np.arange(1))), [0])  # the others have nothing
    assert workers.all_true(True)
    assert not workers.all_true(rank != 1)
    assert workers.sum(torch.tensor([1.0, float(rank)])).tolist() == [size, sum(range(size))]


def test_gathering_restores_the_order_and_agreement_needs_everyone(in_group):
    in_group(3, check_collectives)


def compare_training(rank: int, size: int, table: np.ndarray, value: float) -> None:
    run = make_run("digits", Workers(rank, size))

    def solve(round_, statistic):
        shards = torch.from_numpy(statistic.copy())
        torch.distributed.all_reduce(shards)
        return solve_locally(round_, shards.numpy())

    run.solve = solve
    metrics = run.train(lambda metrics, save: None)
    assert np.array_equal(run.table, table)
    assert abs(metrics["val/map"] - value) < 1e-12


def test_the_assignment_and_the_map_of_the_same_network_do_not_depend_on_the_number_of_workers(in_group):
    """With a learning rate of 1e-9 the network stays as it is, so that only sharding differs."""
    run = make_run("digits", Workers())
    metrics = run.train(lambda metrics, save: None)
    in_group(2, compare_training, run.table, metrics["val/map"])
