"""What the training loop adds to a training step. Prints a Markdown table.

    .venv/bin/python -m benchmarks.step

One epoch of a run beside the loop that one would write by hand in PyTorch for the same arithmetic: its own shuffled
batches, standardised, through the same layers, margin cross entropy to the centres and quantization (Eq. 1 to 4), Adam.
At C = 10,000 also beside a loop that knows that a sample has one label, and takes it by its index.

The last line trains several heads on the same frozen features as one batch (stacked weights), beside one after the
other: trials of a search could share a process like that.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.turns import CPU, Line, announce, in_turns
from crh_tune.compiled import usable_threads
from crh_tune.data.splits import Samples, Split
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers

LEAST = 0.95
BITS, RATE = 64, 1e-3
HEADS = 8


def made_split(shape: tuple[int, ...], samples: int, classes: int) -> Split:
    """Random pixels or features, and labels; nothing looks at how alike the classes are."""
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (samples, *shape), dtype=np.uint8)
    inputs = pixels if len(shape) == 3 else pixels.astype(np.float32)
    train = Samples(inputs, chance.integers(0, classes, samples))
    names = tuple(map(str, range(classes)))
    return Split("search", names, train, train[np.arange(10)], None, np.zeros((0, 0)))


def our_epoch(split: Split, backbone: str, batch: int) -> tuple[TrainingRun, Callable[[], None]]:
    trial = {"bits": BITS, "epochs": 10_000, "batch_size": batch, "learning_rate": RATE, "backbone": backbone}
    content = {"dataset": {"name": "digits"}, "trial": trial, "scaling": {"cpus_per_worker": usable_threads()}}
    run = TrainingRun(
        TrialSettings.model_validate(content).resolve(split.classes, False), split, Workers(), solve_locally
    )
    run.take_first_centers()

    def epoch() -> None:
        run.epoch += 1
        run._train_epoch()

    return run, epoch


Logits = Callable[[Tensor, Tensor, float, float], Tensor]


def by_hot_targets(cosine: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Eq. 1 and 2 as they stand: a matrix of targets, which a sample with several labels needs."""
    targets = nn.functional.one_hot(labels, cosine.shape[1]).float()
    logits = scale * (cosine - margin * targets)
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()


def by_index(cosine: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """The same for one label a sample."""
    rows = torch.arange(len(labels))
    cosine[rows, labels] -= margin
    return nn.functional.cross_entropy(scale * cosine, labels)


def bare_epoch(split: Split, network: nn.Module, run: TrainingRun, batch: int, entropy: Logits) -> Callable[[], None]:
    inputs, labels = split.train.inputs, torch.from_numpy(split.train.labels)
    across = (0, 2, 3) if inputs.ndim == 4 else (0,)
    mean, std = (torch.from_numpy(of(inputs, axis=across, dtype=np.float32, keepdims=True)) for of in (np.mean, np.std))
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, betas=run.trial.betas or (0.9, 0.999))
    centers = nn.functional.normalize(torch.from_numpy(run.centers).float(), dim=1)
    options = run.model.objective.options
    chance = np.random.default_rng(0)

    def epoch() -> None:
        torch.set_deterministic_debug_mode("default")
        network.train()
        total = torch.zeros(())
        for rows in np.array_split(chance.permutation(len(inputs)), -(-len(inputs) // batch)):
            outputs = network((torch.from_numpy(inputs[rows]).float() - mean) / std)
            cosine = nn.functional.normalize(outputs, dim=1) @ centers.T
            loss = entropy(cosine, labels[rows], options.scale, options.margin)
            loss = loss + options.quantization_weight * (outputs.tanh().abs() - 1).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        total.item()
        torch.set_deterministic_debug_mode("warn")

    return epoch


def small_cnn(shape: tuple[int, ...]) -> nn.Module:
    blocks: list[nn.Module] = []
    for given in (shape[0], 32):
        blocks += [nn.Conv2d(given, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    flat = 32 * (shape[1] // 4) * (shape[2] // 4)
    return nn.Sequential(
        *blocks,
        nn.Flatten(),
        nn.Linear(flat, 256, bias=False),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, BITS),
    )


def compare(
    name: str, split: Split, backbone: str, network: nn.Module, batch: int, entropies: Iterable[Logits]
) -> None:
    run, ours = our_epoch(split, backbone, batch)
    steps = -(-len(split.train) // batch)
    bare = [bare_epoch(split, network, run, batch, entropy) for entropy in entropies]
    taken, *theirs = in_turns(ours, *bare, rounds=5 if backbone == "resnet18" or split.classes > 1000 else 21)
    for place, seconds in enumerate(theirs):
        reference = "bare loop, labels by index" if place else "bare loop"
        print(
            Line(
                name,
                taken / steps,
                reference,
                seconds / steps,
                least_ratio=None if place else LEAST,
                limit=f"a step; {steps} of them in turns",
            ),
            flush=True,
        )


def heads_on_features(classes: int = 200, samples: int = 4096, size: int = 512, batch: int = 256) -> None:
    """Several linear heads on the same batches of features: one after the other, and as one."""
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(samples, size, generator=chance)
    hot = nn.functional.one_hot(torch.randint(0, classes, (samples,), generator=chance), classes).float()
    centers = nn.functional.normalize(torch.randn(HEADS, classes, BITS, generator=chance).sign(), dim=2)
    weights = torch.randn(HEADS, BITS, size, generator=chance) / size**0.5

    def train(heads: list[int]) -> None:
        weight = weights[heads].clone().requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=RATE)
        for rows in torch.arange(samples).split(batch):
            outputs = (features[rows] @ weight.flatten(0, 1).T).unflatten(1, (len(heads), BITS)).transpose(0, 1)
            cosine = nn.functional.normalize(outputs, dim=2) @ centers[heads].transpose(1, 2)
            targets = hot[rows]
            logits = 8 * (cosine - 0.2 * targets)
            loss = -(targets * torch.log_softmax(logits, dim=2)).sum() / batch
            loss = loss + 0.1 * (outputs.tanh().abs() - 1).square().mean(dim=(1, 2)).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    together, alone = in_turns(
        lambda: train(list(range(HEADS))), lambda: [train([head]) for head in range(HEADS)] and None
    )
    print(
        Line(
            f"{HEADS} heads on frozen features (D {size}, K {BITS}, C {classes}), as one batch",
            together,
            "one after the other",
            alone,
            limit="worth building from 2 x on",
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(CPU, action="store_true", help="count processor time")
    parser.parse_args()
    if (given := os.environ.get("OMP_NUM_THREADS")) is not None:
        torch.set_num_threads(int(given))
    announce("Training step", "python -m benchmarks.step")
    digits, photos, features = (1, 8, 16), (3, 64, 64), (512,)
    plain, both = [by_hot_targets], [by_hot_targets, by_index]
    resnet, head = torchvision.models.resnet18(num_classes=BITS), nn.Linear(features[0], BITS)
    split = made_split(digits, 1152, 100)
    compare("small CNN, 8 x 16 pixels, C 100, batches of 128", split, "small_cnn", small_cnn(digits), 128, plain)
    split = made_split(photos, 256, 200)
    compare("resnet18, 64 x 64 pixels, C 200, batches of 64", split, "resnet18", resnet, 64, plain)
    split = made_split(features, 8192, 200)
    compare("head on features, D 512, C 200, batches of 256", split, "linear", head, 256, plain)
    split = made_split(features, 5120, 10_000)
    compare("head on features, D 512, C 10,000, batches of 256", split, "linear", nn.Linear(512, BITS), 256, both)
    heads_on_features()


if __name__ == "__main__":
    main()
