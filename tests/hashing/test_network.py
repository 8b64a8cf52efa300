"""The hash network: its parameters counted by hand, sign(0) = +1, standardised inputs, images that do not mix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crh_tune.hashing.backbones.own import SmallCNN
from crh_tune.hashing.network import HashNetwork, standardised


def network(shape=(1, 8, 16), bits=16, mean=None, std=None) -> HashNetwork:
    torch.manual_seed(0)
    mean = torch.full((shape[0],), 80.0) if mean is None else mean
    std = torch.full((shape[0],), 60.0) if std is None else std
    return HashNetwork("small_cnn", shape, bits, mean, std).eval()


def images(shape=(1, 8, 16), count=5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8))


@pytest.mark.parametrize(("shape", "bits"), [((1, 8, 16), 16), ((3, 8, 8), 1), ((1, 4, 4), 7), ((2, 15, 9), 64)])
def test_the_output_is_batch_by_bits_and_the_parameters_are_as_described(shape, bits):
    net = network(shape, bits)
    with torch.no_grad():
        assert net(images(shape)).shape == (5, bits)
    codes = net.encode(images(shape))
    assert codes.shape == (5, bits)
    assert codes.dtype == torch.bool
    channels, height, width = shape
    convolutions = (channels * 32 * 9 + 64) + (32 * 32 * 9 + 64)
    hidden = 32 * (height // 4) * (width // 4) * 256 + 512
    assert sum(p.numel() for p in net.parameters()) == convolutions + hidden + 256 * bits + bits


def test_a_code_is_the_sign_of_tanh_of_the_output():
    net = network()
    with torch.no_grad():
        h = np.tanh(net(images()).numpy())
    assert np.array_equal(net.encode(images()).numpy(), h >= 0)
    assert 0 < net.encode(images()).float().mean() < 1


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_sign_of_zero_is_plus_one(zero):
    net = network()
    torch.nn.init.zeros_(net.hash_layer.weight)
    torch.nn.init.constant_(net.hash_layer.bias, zero)
    assert net.encode(images()).all()
    torch.nn.init.constant_(net.hash_layer.bias, -1e-30)
    assert not net.encode(images()).any()


@pytest.mark.parametrize(("offset", "scale"), [(1e8, 1e-2), (0.0, 1e40), (-1e12, 1.0)])
def test_features_that_float32_does_not_hold_are_standardised_in_float64(offset, scale):
    plain = np.random.default_rng(0).normal(size=(50, 3))
    wide = torch.from_numpy(offset + scale * plain)
    mean, std = (torch.tensor([value] * 3, dtype=torch.float64) for value in (offset, scale))
    net = HashNetwork("linear", (3,), 8, mean, std)
    found = standardised(wide, net.mean, net.std)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - plain).max() < 1e-3
    with torch.no_grad():
        assert torch.equal(net(wide), net.hash_layer(net.backbone(found)))


def test_inputs_are_standardised_channel_by_channel():
    shape = (3, 8, 8)
    mean, std = torch.tensor([10.0, 100.0, 200.0], dtype=torch.float64), torch.tensor([1.0, 50.0, 7.0])
    ready = network(shape, mean=torch.zeros(3), std=torch.ones(3))
    net = network(shape, mean=mean, std=std)
    pixels = images(shape)
    by_hand = (pixels.numpy().astype(np.float32) - np.array([10, 100, 200]).reshape(1, 3, 1, 1)) / np.array(
        [1, 50, 7]
    ).reshape(1, 3, 1, 1)
    with torch.no_grad():
        expected = ready(torch.from_numpy(by_hand.astype(np.float32)))
        assert torch.allclose(net(pixels), expected, atol=1e-4)
        assert not torch.allclose(net(pixels), ready(pixels), atol=1e-1)


def test_the_statistics_travel_with_the_weights():
    net = network(mean=torch.tensor([12.0]), std=torch.tensor([3.0]))
    other = network()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(other(images()), net(images()))


def test_a_code_does_not_depend_on_the_other_images_of_the_batch():
    net = network()
    together = net.encode(images(count=9))
    alone = torch.cat([net.encode(image[None]) for image in images(count=9)])
    assert torch.equal(together, alone)


def test_every_parameter_takes_part_in_the_output():
    net = network().train()
    net(images(count=16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("shape", [(64,), (1, 3, 8), (1, 8, 3), (8, 8), (1, 1, 8, 8)])
def test_inputs_that_are_no_images_of_4_by_4_are_refused(shape):
    with pytest.raises(ValueError, match=r"small_cnn needs images of at least 4 x 4, got inputs of shape \("):
        SmallCNN(shape)


def test_three_layers_are_those_of_csqs_release_before_its_tanh():
    torch.manual_seed(0)
    net = HashNetwork("small_cnn", (1, 8, 16), 16, torch.zeros(1), torch.ones(1), "three_layers").eval()
    first, second, last = (module for module in net.hash_layer if isinstance(module, torch.nn.Linear))
    hidden = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)
    expected = torch.from_numpy(hidden)
    for layer in (first, second):
        expected = (expected @ layer.weight.T + layer.bias).clamp(min=0)
    expected = expected @ last.weight.T + last.bias
    assert torch.allclose(net.hash_layer(torch.from_numpy(hidden)), expected, atol=1e-5)
    assert (first.weight.shape, second.weight.shape, last.weight.shape) == ((256, 256), (256, 256), (16, 256))
    training = net.hash_layer.train()
    assert not torch.equal(training(torch.from_numpy(hidden)), training(torch.from_numpy(hidden)))  # dropout
