"""What a step and a round can be made of: parts of batches, batches of workers, codes of the epoch, augmentation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from crh_tune.data.splits import Samples, Split
from crh_tune.hashing.assignment import WEIGHT_UNIT
from crh_tune.hashing.centers import build_codebook
from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES
from crh_tune.settings.base import SettingsError, validated
from crh_tune.settings.trial import TrialSettings
from crh_tune.training import loop
from crh_tune.training.aggregator import Round, solve_locally
from crh_tune.training.batches import epoch_batches, load_batches
from crh_tune.training.loop import Metrics, Save, TrainingRun
from crh_tune.training.workers import Workers
from tests.training.conftest import split_of

STILL = {"learning_rate": 1e-30, "weight_decay": 0.0}
"""So slow that no weight ever changes."""
CROPS = {"crop": 6, "padding": 1, "flip": True, "batch_size": 300}


def features_split(multi: bool = False) -> Split:
    """120 training samples and 30 queries of 6 classes, 12 features each, that a linear layer can tell apart."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(6, 12))
    parts = []
    for count in (120, 30):
        labels = np.eye(6, dtype=np.uint8)[np.arange(count) % 6]
        if multi:
            labels |= (generator.random((count, 6)) < 0.2).astype(np.uint8)
        inputs = (labels @ centers + generator.normal(size=(count, 12))).astype(np.float32)
        parts.append(Samples(inputs, labels if multi else labels.argmax(axis=1)))
    return Split("search", tuple("abcdef"), parts[0], parts[1], None, None)


def settings_of(split: Split, method: str = "crh", workers: int = 1, **trial: Any) -> TrialSettings:
    small = {"bits": 16, "epochs": 3, "batch_size": 30, "learning_rate": 2e-3}
    backbone = {"backbone": "linear"} if split.train.inputs.ndim == 2 else {}
    content = {
        "dataset": {"name": "digits"},
        "method": method,
        "trial": {**small, **backbone, **trial},
        "scaling": {"workers_per_trial": workers},
    }
    return TrialSettings.model_validate(content).resolve(split.classes, split.multi_label)


def silent(metrics: Metrics, save: Save | None) -> None:
    pass


def make(split: Split, workers: Workers | None = None, solve=solve_locally, method="crh", **trial: Any) -> TrainingRun:
    workers = workers or Workers()
    return TrainingRun(settings_of(split, method, workers.size, **trial), split, workers, solve)


def together(round_: Round, statistic: np.ndarray) -> np.ndarray:
    """The solver of a group: every worker adds all shards up."""
    total = torch.from_numpy(statistic.copy())
    torch.distributed.all_reduce(total)
    return solve_locally(round_, total.numpy())


def without_seconds(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds/")}


def complaint(content: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        validated(TrialSettings, {"dataset": {"name": "digits"}, **content}, "trial.yaml")
    return str(caught.value)


# Batches in parts


def sizes_seen(run: TrainingRun) -> list[int]:
    """How many samples each call of the network in training is given, written down as it trains."""
    sizes: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            sizes.append(len(inputs[0]))

    run.network.register_forward_pre_hook(note)
    return sizes


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize(("accumulate", "parts"), [(4, [8, 8, 7, 7]), (7, [5, 5, 4, 4, 4, 4, 4]), (1000, [2] * 15)])
def test_a_batch_in_parts_gives_the_metrics_of_the_whole_batch(multi, accumulate, parts):
    split = features_split(multi)
    trial = {"learning_rate": 0.02, "epochs": 4}
    whole, other = make(split, **trial), make(split, accumulate=accumulate, **trial)
    whole_sizes, sizes = sizes_seen(whole), sizes_seen(other)
    expected, found = whole.train(silent), other.train(silent)
    assert whole_sizes == [30] * 4 * 4
    assert sizes == parts * 4 * 4
    assert set(found) == set(expected)
    for name, value in without_seconds(expected).items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert np.array_equal(other.table, whole.table)
    assert expected["val/map"] > make(split, **STILL).train(silent)["val/map"] + 0.03  # it has learnt something


def test_gradients_are_clipped_once_all_parts_have_come():
    split = features_split()
    whole, other = make(split, gradient_clip=0.01), make(split, gradient_clip=0.01, accumulate=4)
    for run in (whole, other):
        gradients(run, np.arange(30))
        norm = torch.stack([parameter.grad.norm() for parameter in run.model.parameters()]).norm()
        assert norm.item() == pytest.approx(0.01, rel=1e-3)
    for mine, own in zip(other.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, own.grad, rtol=1e-4, atol=1e-7)


def gradients(run: TrainingRun, batch: np.ndarray) -> dict[str, Tensor]:
    """The gradients that a training step on this global batch leaves."""
    run.take_first_centers()
    run.wrapped.train()
    loaded = load_batches(run.split.train, run._parts(batch), run.split.classes, run.workers.device)
    run._train_step(batch, loaded, torch.from_numpy(run.centers).float())
    return {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}


def in_parts(name: str, halves: list[slice]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An objective's losses, one a sample, and its state after a batch that came in these parts."""
    torch.manual_seed(0)
    objective = OBJECTIVES[name](OBJECTIVES[name].options_type(bits=8, classes=3)).double()
    objective.epoch = 10  # from here on MDS looks at its bank
    generator = np.random.default_rng(0)
    outputs, targets = torch.from_numpy(generator.normal(size=(8, 8))), torch.eye(3).double()[[0, 1, 2, 0, 1, 2, 0, 0]]
    centers = torch.from_numpy(np.where(generator.random((3, 8)) < 0.5, -1.0, 1.0))
    terms = [objective(outputs[rows], targets[rows], centers) for rows in halves]
    return {key: torch.cat([each[key] for each in terms]) for key in terms[0]}, copy.deepcopy(objective.state_dict())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_says_that_it_compares_samples_where_parts_of_a_batch_give_something_else(name):
    whole, halves = in_parts(name, [slice(8)]), in_parts(name, [slice(4), slice(4, 8)])
    same = all(torch.allclose(a[key], b[key]) for a, b in zip(whole, halves, strict=True) for key in a)
    assert OBJECTIVES[name].within_batch == (not same)


@pytest.mark.parametrize("method", [name for name in METHODS if OBJECTIVES[METHODS[name].objective].within_batch])
def test_objectives_that_compare_samples_refuse_parts_in_one_line(method):
    split = features_split()
    with pytest.raises(SettingsError) as caught:
        settings_of(split, method, accumulate=2)
    assert str(caught.value) == (
        f"trial: accumulate 2: objective {METHODS[method].objective} compares the samples of a whole batch, which "
        "cannot come in parts"
    )
    assert settings_of(split, method, accumulate=1).trial.accumulate == 1


# Batches of workers


@pytest.mark.parametrize(
    ("batch", "of", "workers", "size", "steps"),
    [
        (30, "global", 1, 30, 4),
        (30, "worker", 1, 30, 4),
        (30, "global", 3, 30, 4),
        (30, "worker", 3, 90, 2),
        (64, "worker", 2, 128, 1),
    ],
)
def test_a_batch_is_that_of_a_step_or_that_of_a_worker(batch, of, workers, size, steps):
    settings = settings_of(features_split(), workers=workers, batch_size=batch, batch_size_of=of)
    assert settings.global_batch == size
    batches = epoch_batches(120, settings.global_batch, 0, 1)
    assert len(batches) == steps
    assert sorted(np.concatenate(batches)) == list(range(120))


# The codes that training saw


class Watch:
    """What a run's training has seen: rounds asked for, and in every epoch the sum over codes and the centres."""

    def __init__(self, split: Split, **trial: Any) -> None:
        self.rounds: list[int] = []
        self.statistics: list[np.ndarray] = []
        self.tables: list[np.ndarray] = []
        self.sums: dict[int, np.ndarray] = {}
        self.centers: dict[int, np.ndarray] = {}
        self.encoding: list[float] = []
        self.run = make(split, solve=self.solve, **trial)
        self.run.network.register_forward_hook(self.keep)
        self.run.model.register_forward_hook(self.look)

    def keep(self, network: torch.nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        self.outputs = outputs.detach()

    def look(self, model: torch.nn.Module, inputs: tuple[Tensor, ...], results: Any) -> None:
        """A sample's code counts for each of its classes, as much less as it has more of them."""
        _, targets, centers = inputs
        codes = np.where(self.outputs.numpy() >= 0, 1, -1)
        weights = targets.double().numpy() * (WEIGHT_UNIT / targets.double().numpy().sum(axis=1, keepdims=True))
        total = np.column_stack([weights.T @ codes, weights.sum(axis=0)])
        epoch = self.run.epoch
        self.sums[epoch] = self.sums.get(epoch, 0) + total
        self.centers[epoch] = centers.numpy().copy()

    def solve(self, round_: Round, statistic: np.ndarray) -> np.ndarray:
        self.rounds.append(round_.number)
        self.statistics.append(statistic.copy())
        self.encoding.append(self.run.seconds["encoding"])
        self.tables.append(solve_locally(round_, statistic))
        return self.tables[-1]


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_round_stands_on_exactly_the_codes_that_training_saw_in_its_epoch(multi, accumulate):
    trial = {"epochs": 6, "early_epochs": 2, "update_interval": 4, "learning_rate": 0.05, "accumulate": accumulate}
    watch = Watch(features_split(multi), reassignment_codes="epoch", **trial)
    watch.run.train(silent)
    assert watch.rounds == [1, 2, 4]
    for number, statistic in zip(watch.rounds, watch.statistics, strict=True):
        assert statistic.dtype == np.int64
        assert np.array_equal(statistic, np.rint(watch.sums[number]).astype(np.int64))
    passing = Watch(features_split(multi), reassignment_codes="pass", **trial)
    passing.run.train(silent)
    assert not np.array_equal(passing.statistics[0][:, :-1], watch.statistics[0][:, :-1])
    assert np.array_equal(passing.statistics[0][:, -1], watch.statistics[0][:, -1])


def test_the_centres_follow_a_round_on_the_codes_of_the_epoch():
    watch = Watch(features_split(), reassignment_codes="epoch", epochs=5, early_epochs=2, update_interval=9)
    watch.run.take_first_centers()
    codebook, first = build_codebook(watch.run._spec), watch.run.table
    watch.run.train(silent)
    tables = [first, watch.tables[0], watch.tables[1]]
    for epoch, table in zip(range(1, 6), [*tables, tables[-1], tables[-1]], strict=True):
        assert np.array_equal(watch.centers[epoch], codebook.centers(table)), epoch
    assert not np.array_equal(watch.tables[0], first)
    assert np.array_equal(watch.run.table, watch.tables[-1])


def test_nothing_is_encoded_for_rounds_on_the_codes_of_the_epoch(monkeypatch: pytest.MonkeyPatch):
    encoded: list[tuple[int, int]] = []

    def spied(real):
        def spy(network, samples, workers):
            encoded.append((watch.run.epoch, len(samples)))
            return real(network, samples, workers)

        return spy

    for name in ("encode_share", "outputs_share"):
        monkeypatch.setattr(loop, name, spied(getattr(loop, name)))
    trial = {"epochs": 5, "early_epochs": 9, "evaluate_every": 4}
    watch = Watch(features_split(), reassignment_codes="epoch", **trial)
    metrics = watch.run.train(silent)
    assert watch.rounds == [1, 2, 3, 4]
    assert encoded == [(4, 120), (4, 30), (5, 120), (5, 30)]
    assert watch.encoding[:3] == [0.0, 0.0, 0.0]
    assert 0 < watch.encoding[3] < metrics["seconds/encoding"]
    encoded.clear()
    watch = Watch(features_split(), reassignment_codes="pass", **trial)
    watch.run.train(silent)
    assert encoded == [(1, 120), (2, 120), (3, 120), (4, 120), (4, 30), (5, 120), (5, 30)]


@pytest.mark.parametrize("multi", [False, True])
def test_while_nothing_moves_the_codes_of_the_epoch_are_those_of_a_pass(multi):
    trial = {"early_epochs": 2, "accumulate": 2, **STILL}
    runs = {codes: Watch(features_split(multi), reassignment_codes=codes, **trial) for codes in ("epoch", "pass")}
    metrics = {codes: without_seconds(watch.run.train(silent)) for codes, watch in runs.items()}
    assert metrics["epoch"] == metrics["pass"]
    assert len(runs["epoch"].tables) == 2
    for name in ("statistics", "tables"):
        for mine, other in zip(getattr(runs["epoch"], name), getattr(runs["pass"], name), strict=True):
            assert np.array_equal(mine, other), name


def test_codes_seen_before_a_checkpoint_are_not_needed_after_it(tmp_path: Path):
    split, trial = features_split(), {"reassignment_codes": "epoch", "epochs": 4, "early_epochs": 9}
    whole = make(split, **trial)
    expected = whole.train(lambda metrics, save: save(tmp_path) if metrics["epoch"] == 2 and save else None)
    resumed = make(split, **trial)
    resumed.restore(tmp_path)
    assert without_seconds(resumed.train(silent)) == without_seconds(expected)
    assert np.array_equal(resumed.table, whole.table)


# Augmentation


def augmented_by_hand(split: Split, rows: np.ndarray, trial: Any, epoch: int) -> np.ndarray:
    """These training images as an epoch sees them."""
    drawn = trial.augmentation.draw(len(split.train), split.train.inputs.shape[-1], trial.seed, epoch)[rows]
    pad, images = trial.padding, []
    for image, (top, left, flipped) in zip(split.train.inputs[rows], drawn, strict=True):
        crop = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))[:, top : top + trial.crop, left : left + trial.crop]
        images.append(crop[:, :, ::-1] if flipped else crop)
    return np.array(images)


def inputs_seen(run: TrainingRun) -> list[Tensor]:
    """What the network is given in training, written down as it trains."""
    seen: list[Tensor] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            seen.append(inputs[0].clone())

    run.network.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_epoch_trains_on_crops_and_flips_of_its_own(accumulate):
    split = split_of("digits")
    run = make(split, accumulate=accumulate, epochs=2, **CROPS)
    seen = inputs_seen(run)
    run.train(silent)
    expected = [
        augmented_by_hand(split, rows, run.trial, epoch)
        for epoch in (1, 2)
        for rows in epoch_batches(len(split.train), 300, 0, epoch)
    ]
    assert len(seen) == accumulate * len(expected)
    assert all(part.shape[1:] == (1, 6, 6) for part in seen)
    assert np.array_equal(torch.cat(seen).numpy(), np.concatenate(expected))


def test_a_run_with_augmentation_goes_on_from_a_checkpoint_to_the_last_bit(tmp_path: Path):
    split = split_of("digits")
    whole = make(split, epochs=4, **CROPS)
    expected = whole.train(lambda metrics, save: save(tmp_path) if metrics["epoch"] == 2 and save else None)
    resumed = make(split, epochs=4, **CROPS)
    resumed.restore(tmp_path)
    assert without_seconds(resumed.train(silent)) == without_seconds(expected)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    plain = make(split, epochs=4, batch_size=300).train(silent)
    assert plain["loss/total"] != expected["loss/total"]


def test_codes_are_those_of_the_centre_crop():
    split = split_of("digits")
    run = make(split, epochs=1, **CROPS)
    seen: list[Tensor] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not module.training:
            seen.append(inputs[0].clone())

    run.network.backbone.register_forward_pre_hook(note)
    run.train(silent)
    images = np.concatenate([split.train.inputs, split.queries.inputs])[:, :, 1:7, 1:7].astype(np.float64)
    mean, std = split.train.inputs.mean(), split.train.inputs.std()
    np.testing.assert_allclose(torch.cat(seen).numpy(), (images - mean) / std, rtol=1e-4, atol=1e-4)


# All of it in a group


def in_two(rank: int, size: int, expected: dict[str, Any]) -> None:
    """All checks in one process group, because starting one takes longer than they do."""
    workers = Workers(rank, size)
    for check in (compare_batch_sizes, compare_epoch_codes, compare_inputs, compare_accumulated):
        check(workers, expected)


def compare_batch_sizes(workers: Workers, expected: dict[str, Any]) -> None:
    split = split_of("digits")
    found = []
    for batch in ({"batch_size": 64, "batch_size_of": "worker"}, {"batch_size": 128}):
        run = make(split, workers, together, epochs=2, early_epochs=1, **batch)
        sizes = sizes_seen(run)
        found.append((without_seconds(run.train(silent)), run.model.state_dict(), sizes))
    (metrics, state, sizes), (other_metrics, other_state, other_sizes) = found
    assert sizes == other_sizes
    assert sizes == expected["sizes"][workers.rank]
    assert metrics == other_metrics
    assert all(torch.equal(value, other_state[name]) for name, value in state.items())


def compare_epoch_codes(workers: Workers, expected: dict[str, Any]) -> None:
    for multi, table in expected["tables"].items():
        run = make(features_split(multi), workers, together, reassignment_codes="epoch", early_epochs=2, **STILL)
        run.train(silent)
        assert np.array_equal(run.table, table)
    run = make(features_split(), workers, together, reassignment_codes="epoch", epochs=6, early_epochs=9)
    run.train(silent)
    tables = [torch.zeros(run.table.shape, dtype=torch.int64) for _ in range(workers.size)]
    torch.distributed.all_gather(tables, torch.from_numpy(run.table.copy()))
    assert all(torch.equal(table, tables[0]) for table in tables)
    assert not np.array_equal(run.table, expected["first table"])


def compare_inputs(workers: Workers, expected: dict[str, Any]) -> None:
    for accumulate in (1, 2):
        run = make(split_of("digits"), workers, together, accumulate=accumulate, epochs=2, evaluate_every=2, **CROPS)
        seen = inputs_seen(run)
        run.train(silent)
        mine = [batch[workers.rank :: workers.size] for batch in expected["inputs"]]
        assert len(seen) == accumulate * len(mine)
        assert torch.equal(torch.cat(seen), torch.cat(mine))


def compare_accumulated(workers: Workers, expected: dict[str, Any]) -> None:
    split = features_split()
    for count, alone in expected["gradients"].items():
        calls = []
        for accumulate in (1, 4):
            run = make(split, workers, together, accumulate=accumulate)
            exchanged: list[int] = []

            def exchange(group, bucket, exchanged=exchanged):
                exchanged.append(1)
                return allreduce_hook(group, bucket)

            run.wrapped.register_comm_hook(None, exchange)
            mine = gradients(run, np.arange(count))
            calls.append(len(exchanged))
            assert set(mine) == set(alone)
            for name, value in alone.items():
                torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-6)
        assert calls[0] == calls[1] > 0  # what parts add up to is exchanged once, after the last


def test_two_workers_do_with_all_options_what_one_does(in_group: Callable[..., None]):
    """Batches of a worker; codes of the epoch; the same augmented images; gradients of parts, and exchanged once."""
    digits = split_of("digits")
    one = make(digits, epochs=2, evaluate_every=2, **CROPS)
    inputs = inputs_seen(one)
    one.train(silent)
    tables = {}
    for multi in (False, True):
        run = make(features_split(multi), reassignment_codes="epoch", early_epochs=2, **STILL)
        run.take_first_centers()
        first = run.table
        run.train(silent)
        tables[multi] = run.table
        assert not np.array_equal(run.table, first)
    first_run = make(features_split())
    first_run.take_first_centers()
    expected = {
        "sizes": [[len(step[rank::2]) for step in epoch_batches(len(digits.train), 128, 0, 1)] * 2 for rank in (0, 1)],
        "tables": tables,
        "first table": first_run.table,
        "inputs": inputs,
        "gradients": {count: gradients(make(features_split()), np.arange(count)) for count in (30, 31, 3)},
    }
    in_group(2, in_two, expected)


# Settings


NAMED = "one of torchvision's classifiers, or timm/NAME of timm's"


@pytest.mark.parametrize(
    ("trial", "line"),
    [
        ({"weights": "DEFAULT"}, "trial.weights: backbone small_cnn has no pretrained weights: leave them out"),
        (
            {"backbone": "mlp", "weights": "mine.pth"},
            "trial.weights: backbone mlp has no pretrained weights: leave them out",
        ),
        (
            {"backbone": "resnet81"},
            f"trial.backbone: unknown backbone 'resnet81': small_cnn, mlp, linear, {NAMED}; did you mean "
            "resnet18 or resnet152 or resnet101?",
        ),
        (
            {"backbone": "convnext_tny", "weights": "DEFAULT"},
            f"trial.backbone: unknown backbone 'convnext_tny': small_cnn, mlp, linear, {NAMED}; did you mean "
            "convnext_tiny or convnext_base or convnext_small?",
        ),
        ({"backbone": "zzz"}, f"trial.backbone: unknown backbone 'zzz': small_cnn, mlp, linear, {NAMED}"),
        ({"padding": 4}, "trial: padding 4 is for crops: give crop, the side of the network's images"),
        (
            {"padding": 4, "flip": True, "crop": None},
            "trial: padding 4 is for crops: give crop, the side of the network's images",
        ),
        (
            {"backbone": "resnet18", "weights": "IMAGENET1K_V2"},
            "trial.weights: unknown weights 'IMAGENET1K_V2' of resnet18: IMAGENET1K_V1, DEFAULT, or a file such as "
            "weights.pth",
        ),
        (
            {"backbone": "resnet50", "weights": "default"},
            "trial.weights: unknown weights 'default' of resnet50: IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, or a file "
            "such as weights.pth",
        ),
        (
            {"backbone": "resnet18", "weights": ""},
            "trial.weights: string should have at least 1 character, got ''",
        ),
        ({"crop": 3}, "trial.crop: input should be greater than or equal to 4, got 3"),
        ({"padding": -1, "crop": 8}, "trial.padding: input should be greater than or equal to 0, got -1"),
        ({"accumulate": 0}, "trial.accumulate: input should be greater than or equal to 1, got 0"),
        ({"batch_size_of": "node"}, "trial.batch_size_of: input should be 'global' or 'worker', got 'node'"),
        ({"reassignment_codes": "last"}, "trial.reassignment_codes: input should be 'pass' or 'epoch', got 'last'"),
        ({"precision": "fp16"}, "trial.precision: input should be 'fp32' or 'bf16', got 'fp16'"),
    ],
)
def test_a_mistake_in_an_option_is_told_in_one_line(trial, line):
    assert complaint({"trial": trial}) == f"trial.yaml: {line}"


def test_without_options_nothing_is_augmented_accumulated_or_pretrained():
    trial = settings_of(features_split()).trial
    assert (trial.weights, trial.crop, trial.padding, trial.flip) == (None, None, 0, False)
    assert (trial.batch_size_of, trial.accumulate, trial.reassignment_codes) == ("global", 1, "pass")
    assert (trial.precision, trial.channels_last, trial.compile) == ("fp32", False, False)


@pytest.mark.parametrize(
    ("method", "given", "betas"),
    [("crh", {}, (0.5, 0.999)), ("csq", {}, (0.9, 0.999)), ("csq", {"betas": [0.3, 0.9]}, (0.3, 0.9))],
)
def test_adam_takes_the_betas_of_the_trial(method, given, betas):
    split = features_split()
    optimizer = TrainingRun(settings_of(split, method, **given), split, Workers(), solve_locally).optimizer
    assert {group["betas"] for group in optimizer.param_groups} == {betas}
