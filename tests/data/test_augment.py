"""Crops and flips of whole batches, compared sample by sample with slices of padded arrays."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crh_tune.data.augment import NO_AUGMENTATION, Augmentation

LAYOUTS = {
    "channels first": torch.from_numpy,
    "channels last": lambda images: torch.from_numpy(np.ascontiguousarray(images.transpose(0, 2, 3, 1))).permute(
        0, 3, 1, 2
    ),
    "part of a batch": lambda images: torch.from_numpy(np.concatenate([images[:1], images])).clone()[1:],
    "every other row of channels last": lambda images: torch.from_numpy(
        np.ascontiguousarray(np.repeat(images, 2, axis=0).transpose(0, 2, 3, 1))
    )[::2].permute(0, 3, 1, 2),
}


def one_by_one(augmentation: Augmentation, images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """What should come out: each image padded, sliced, and turned around."""
    pad, size = augmentation.padding, augmentation.crop or images.shape[2]
    found = []
    for image, (top, left, flip) in zip(images, drawn.tolist(), strict=True):
        crop = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))[:, top : top + size, left : left + size]
        found.append(crop[:, :, ::-1] if flip else crop)
    return np.stack(found)


def pixels(count: int, channels: int, side: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(count).integers(1, 256, (count, channels, side, side)).astype(dtype)


@st.composite
def augmentations(draw) -> tuple[Augmentation, int]:
    """An augmentation and the side of the images it is for."""
    side = draw(st.integers(1, 12))
    if draw(st.booleans()):
        padding = draw(st.integers(0, 4))
        return Augmentation(draw(st.integers(1, side + 2 * padding)), padding, draw(st.booleans())), side
    return Augmentation(flip=True), side


@settings(max_examples=300, deadline=None)
@given(
    chosen=augmentations(),
    count=st.integers(1, 7),
    channels=st.sampled_from([1, 3]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from([np.uint8, np.float32]),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_batch_is_cropped_and_flipped_as_its_samples_are_one_by_one(chosen, count, channels, layout, dtype, seed):
    augmentation, side = chosen
    images = pixels(count, channels, side, dtype)
    drawn = augmentation.draw(count, side, seed, 3)
    given_images = LAYOUTS[layout](images)
    found = augmentation.apply(given_images, drawn)
    assert np.array_equal(found.numpy(), one_by_one(augmentation, images, drawn))
    assert found.numpy().dtype == dtype
    assert np.array_equal(given_images.numpy(), images)


def test_every_corner_and_both_flips_cut_what_they_should():
    augmentation = Augmentation(crop=3, padding=1, flip=True)
    drawn = np.array(list(product(range(5), range(5), range(2))))
    images = np.repeat(pixels(1, 3, 5), len(drawn), axis=0)
    found = augmentation.apply(torch.from_numpy(images), drawn).numpy()
    assert np.array_equal(found, one_by_one(augmentation, images, drawn))
    assert len(np.unique(found, axis=0)) == len(drawn)


@pytest.mark.parametrize(("padding", "crop", "room"), [(0, 6, 3), (1, 8, 3), (2, 8, 5), (0, 8, 1), (3, 14, 1)])
def test_every_corner_is_drawn_with_and_without_a_flip(padding, crop, room):
    drawn = Augmentation(crop, padding, flip=True).draw(3000, 8, 0, 0)
    assert drawn.shape == (3000, 3)
    assert drawn.dtype == np.int64
    assert {tuple(row) for row in drawn.tolist()} == set(product(range(room), range(room), range(2)))
    often = np.unique(drawn, axis=0, return_counts=True)[1] * 2 * room**2 / 3000
    assert often.min() > 0.6
    assert often.max() < 1.4


def test_without_flips_none_is_drawn_and_without_a_crop_no_corner():
    assert not Augmentation(crop=4).draw(500, 8, 0, 0)[:, 2].any()
    drawn = Augmentation(flip=True).draw(500, 8, 0, 0)
    assert not drawn[:, :2].any()
    assert set(drawn[:, 2].tolist()) == {0, 1}


def test_draws_depend_on_the_seed_and_the_epoch():
    augmentation = Augmentation(crop=5, padding=2, flip=True)
    drawn = [augmentation.draw(50, 8, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0), (1, 1))]
    assert drawn[0] == drawn[1]
    assert len({str(each) for each in drawn}) == 4
    np.random.seed(1)
    torch.manual_seed(1)
    assert augmentation.draw(50, 8, 0, 0).tolist() == drawn[0]


def test_what_a_row_draws_does_not_depend_on_how_many_there_are():
    augmentation = Augmentation(crop=5, padding=2, flip=True)
    assert np.array_equal(augmentation.draw(100, 8, 7, 2)[:50], augmentation.draw(50, 8, 7, 2))


def test_a_sample_comes_out_the_same_in_whatever_batch_it_is():
    augmentation = Augmentation(crop=6, padding=2, flip=True)
    images = torch.from_numpy(pixels(20, 3, 8))
    drawn = augmentation.draw(20, 8, 5, 1)
    whole = augmentation.apply(images, drawn)
    order = np.random.default_rng(0).permutation(20)
    for rows in np.array_split(order, 6):
        assert torch.equal(augmentation.apply(images[torch.from_numpy(rows)], drawn[rows]), whole[rows])


@pytest.mark.parametrize("augmentation", [NO_AUGMENTATION, Augmentation(crop=None, flip=False)])
def test_without_crop_and_flip_the_same_images_come_back(augmentation):
    images = torch.from_numpy(pixels(4, 3, 8))
    assert augmentation.apply(images, augmentation.draw(4, 8, 0, 0)) is images
    features = torch.ones(4, 7)
    assert augmentation.apply(features, augmentation.draw(4, 7, 0, 0)) is features


def test_images_stay_bytes_and_as_they_lie():
    augmentation = Augmentation(crop=4, padding=1, flip=True)
    found = augmentation.apply(LAYOUTS["channels last"](pixels(4, 3, 8)), augmentation.draw(4, 8, 0, 0))
    assert (found.dtype, found.shape) == (torch.uint8, (4, 3, 4, 4))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_padding_is_black():
    found = Augmentation(crop=8, padding=3).apply(
        torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), np.array([[0, 6, 0]])
    )
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[3:, :5] = 255
    assert np.array_equal(found[0].numpy(), np.stack([expected] * 3))


def test_an_empty_batch_stays_empty():
    augmentation = Augmentation(crop=4, padding=1, flip=True)
    found = augmentation.apply(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), np.zeros((0, 3), dtype=np.int64))
    assert found.shape == (0, 3, 4, 4)
