"""From samples to batches: in order, with the right inputs and targets, augmented, read ahead, and never left open."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from crh_tune.data.augment import Augmentation
from crh_tune.data.splits import Samples
from crh_tune.data.store.stored import StoredRows
from crh_tune.training.batches import load_batches, load_inputs

CPU = torch.device("cpu")
COUNT, CLASSES, SIDE = 11, 4, 6
BATCHES = [np.array([3, 0, 10]), np.array([7]), np.array([1, 2, 4, 5]), np.array([9, 8, 6])]


def single_samples(channels: int = 3) -> Samples:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, channels, SIDE, SIDE), dtype=np.uint8)
    return Samples(images, generator.integers(0, CLASSES, COUNT))


def multi_samples() -> Samples:
    generator = np.random.default_rng(1)
    labels = (generator.random((COUNT, CLASSES)) < 0.5).astype(np.uint8)
    labels[0] = 0
    return Samples(generator.normal(size=(COUNT, 5)).astype(np.float32), labels)


@dataclass(frozen=True)
class Watched(StoredRows):
    """Rows that note what is read of them, and cannot read some."""

    broken: int = -1
    reads: list[list[int]] = field(default_factory=list)

    def __getitem__(self, index):
        self.reads.append(index.tolist())
        if self.broken in index:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


def watched(broken: int = -1) -> tuple[Samples, list[list[int]]]:
    samples = single_samples()
    inputs = Watched(samples.inputs, np.arange(COUNT), broken)
    return Samples(inputs, samples.labels), inputs.reads


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread is not threading.main_thread()}


def test_batches_come_in_order_with_the_inputs_and_one_hot_targets_of_their_rows():
    samples = single_samples()
    loaded = list(load_batches(samples, BATCHES, CLASSES, CPU))
    assert len(loaded) == len(BATCHES)
    for rows, (inputs, targets) in zip(BATCHES, loaded, strict=True):
        assert inputs.dtype == torch.uint8
        assert np.array_equal(inputs.numpy(), samples.inputs[rows])
        assert targets.dtype == torch.float32
        assert np.array_equal(targets.numpy(), np.eye(CLASSES)[samples.labels[rows]])


def test_several_labels_a_sample_are_targets_as_they_are_also_where_there_is_none():
    samples = multi_samples()
    loaded = list(load_batches(samples, BATCHES, CLASSES, CPU))
    for rows, (inputs, targets) in zip(BATCHES, loaded, strict=True):
        assert inputs.dtype == torch.float32
        assert np.array_equal(inputs.numpy(), samples.inputs[rows])
        assert targets.dtype == torch.float32
        assert np.array_equal(targets.numpy(), samples.labels[rows])
    assert loaded[0][1][1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("samples", [single_samples(), multi_samples()], ids=["images", "features"])
def test_a_batch_without_rows_is_empty(samples):
    """A worker's share of a small batch may have nothing in it."""
    loaded = list(load_batches(samples, [np.arange(0), np.arange(2)], CLASSES, CPU))
    assert loaded[0][0].shape == (0, *samples.inputs.shape[1:])
    assert loaded[0][1].shape == (0, CLASSES)
    assert np.array_equal(loaded[1][0].numpy(), samples.inputs[:2])


def test_no_batches_are_no_batches():
    assert list(load_batches(single_samples(), [], CLASSES, CPU)) == []
    assert list(load_inputs(single_samples(), [], CPU)) == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augmentation", [Augmentation(4), Augmentation(6, 2), Augmentation(5, 3, True), Augmentation(None, 0, True)]
)
def test_images_are_padded_cropped_and_flipped_as_drawn_for_their_row(augmentation, channels):
    samples = single_samples(channels)
    drawn = augmentation.draw(COUNT, SIDE, 5, 2)
    loaded = list(load_batches(samples, BATCHES, CLASSES, CPU, augmentation, seed=5, epoch=2))
    for rows, (inputs, targets) in zip(BATCHES, loaded, strict=True):
        assert np.array_equal(inputs.numpy(), [by_hand(samples.inputs[row], augmentation, drawn[row]) for row in rows])
        assert np.array_equal(targets.numpy(), np.eye(CLASSES)[samples.labels[rows]])
    assert len({tuple(row) for row in drawn}) > 1
    again = list(load_batches(samples, BATCHES, CLASSES, CPU, augmentation, seed=5, epoch=2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(loaded, again, strict=True))
    for seed, epoch in ((5, 3), (6, 2)):
        other = list(load_batches(samples, BATCHES, CLASSES, CPU, augmentation, seed=seed, epoch=epoch))
        assert any(not torch.equal(a, b) for (a, _), (b, _) in zip(loaded, other, strict=True))


def by_hand(image: np.ndarray, augmentation: Augmentation, drawn: np.ndarray) -> np.ndarray:
    top, left, flipped = drawn
    pad = augmentation.padding
    size = augmentation.crop or SIDE
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    crop = padded[:, top : top + size, left : left + size]
    return crop[:, :, ::-1] if flipped else crop


def test_features_are_never_augmented():
    samples = multi_samples()
    plain = load_batches(samples, BATCHES, CLASSES, CPU, Augmentation(), seed=3, epoch=1)
    assert all(np.array_equal(inputs, samples.inputs[rows]) for rows, (inputs, _) in zip(BATCHES, plain, strict=True))


def test_a_thread_reads_at_most_two_batches_more_than_were_asked_for():
    samples, reads = watched()
    loaded = load_inputs(samples, BATCHES, CPU)
    assert reads == []
    for place, rows in enumerate(BATCHES):
        assert np.array_equal(next(loaded).numpy(), samples.inputs.array[rows])
        assert place < len(reads) <= min(place + 3, len(BATCHES))
    with pytest.raises(StopIteration):
        next(loaded)
    assert reads == [rows.tolist() for rows in BATCHES]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_exception_while_reading_reaches_whoever_asks_for_that_batch(place):
    before = readers()
    samples, _ = watched(broken=int(BATCHES[place][0]))
    loaded = load_batches(samples, BATCHES, CLASSES, CPU)
    for rows in BATCHES[:place]:
        assert np.array_equal(next(loaded)[0].numpy(), samples.inputs.array[rows])
    with pytest.raises(OSError, match="the disk is gone"):
        next(loaded)
    assert readers() <= before


def test_closing_early_or_forgetting_the_batches_leaves_no_thread_behind():
    before = readers()
    for leave in (lambda loaded: loaded.close(), lambda loaded: None):
        loaded = load_batches(watched()[0], BATCHES, CLASSES, CPU)
        next(loaded)
        assert len(readers() - before) == 1
        leave(loaded)
        del loaded
        assert readers() <= before
    assert len(list(load_batches(watched()[0], BATCHES, CLASSES, CPU))) == len(BATCHES)
    assert readers() <= before
