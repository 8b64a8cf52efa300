"""Backbones by name: torchvision's without their last layer, what they refuse, and the network around them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from crh_tune.hashing.backbones import OWN_BACKBONES, build_backbone, torchvision_weights
from crh_tune.hashing.backbones.libraries import Torchvision
from crh_tune.hashing.backbones.own import MLP, Linear, SmallCNN
from crh_tune.hashing.network import HashNetwork, center_crop

RGB = (3, 32, 32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More are slower on networks as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def classifier(name: str, classes: int = 1000, **options) -> nn.Module:
    torch.manual_seed(1)
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **options).eval()


def last_linear_inputs(model: nn.Module, images: Tensor) -> Tensor:
    """What the linear layer that is called last is given."""
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    return seen[-1]


def some_images(shape=RGB, count=3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8))


def refusal(name: str, shape: tuple[int, ...]) -> str:
    with pytest.raises(ValueError, match="backbone") as caught:
        build_backbone(name, shape)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("resnet18", 512),
        ("mobilenet_v3_small", 1024),
        ("densenet121", 1024),
        ("convnext_tiny", 768),
        ("mnasnet0_5", 1280),
    ],
)
def test_the_features_are_what_torchvisions_last_linear_layer_is_given(name, length):
    model = classifier(name)
    backbone = build_backbone(name, RGB)
    assert backbone.features == length
    backbone.load(model.state_dict())
    images = torch.randn(2, *RGB)
    with torch.no_grad():
        features = backbone.eval()(images)
    assert features.shape == (2, length)
    assert torch.equal(features, last_linear_inputs(model, images))
    assert 0 < features.std() < 1e4


def test_a_transformer_is_built_for_the_size_of_the_images_and_takes_weights_of_that_size_only():
    backbone = build_backbone("vit_b_16", RGB)
    model = classifier("vit_b_16", image_size=32)
    backbone.load(model.state_dict())
    images = torch.randn(2, *RGB)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images), last_linear_inputs(model, images))
    state = model.state_dict()
    state["encoder.pos_embedding"] = torch.zeros(1, 197, 768)  # of 224 x 224 images
    with pytest.raises(ValueError, match=r"size mismatch for encoder\.pos_embedding") as caught:
        backbone.load(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "classes"), [("resnet18", 2), ("resnet18", 1000), ("mobilenet_v3_small", 7)])
def test_weights_of_a_classifier_of_any_number_of_classes_or_without_its_last_layer_are_taken_over(name, classes):
    state = classifier(name, classes).state_dict()
    removed = ("fc.weight", "fc.bias", "classifier.3.weight", "classifier.3.bias")
    kept = {key: value for key, value in state.items() if key not in removed}
    for given in (state, kept):
        torch.manual_seed(2)
        backbone = Torchvision(name, RGB)
        assert set(backbone.body.state_dict()) == set(kept)
        assert len(state) == len(kept) + 2
        backbone.load(given)
        assert all(torch.equal(value, kept[key]) for key, value in backbone.body.state_dict().items())


def test_the_names_that_torchvisions_densenet_files_have_are_understood():
    """Those write norm.1 for norm1 (see ``_load_state_dict`` in its densenet.py) and count no batches."""
    state = {}
    for key, value in classifier("densenet121").state_dict().items():
        if not key.endswith("num_batches_tracked"):
            state[re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key)] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    backbone = Torchvision("densenet121", RGB)
    backbone.load(state)
    expected = classifier("densenet121").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in backbone.body.state_dict().items())


def without(key: str) -> dict[str, Tensor]:
    state = classifier("resnet18").state_dict()
    del state[key]
    return state


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (lambda: classifier("resnet34").state_dict(), 'Unexpected key(s) in state_dict: "layer1.2.conv1.weight"'),
        (lambda: without("layer4.1.bn2.running_var"), 'Missing key(s) in state_dict: "layer4.1.bn2.running_var"'),
        (lambda: classifier("resnet18", width_per_group=64, norm_layer=nn.Identity).state_dict(), "Missing key(s)"),
        (dict, 'Missing key(s) in state_dict: "conv1.weight"'),
    ],
)
def test_the_weights_of_something_else_are_refused_in_one_line(state, text):
    with pytest.raises(ValueError, match="Error") as caught:
        Torchvision("resnet18", RGB).load(state())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(("name", "side"), [("squeezenet1_0", 64), ("inception_v3", 80)])
def test_models_without_a_last_linear_layer_on_a_single_path_are_refused(name, side):
    assert refusal(name, (3, side, side)) == (
        f"backbone {name} has no last linear layer to take off: another one is needed"
    )


@pytest.mark.parametrize("shape", [(1, 32, 32), (4, 32, 32), (512,), (3, 32), (1, 3, 32, 32)])
def test_what_is_no_rgb_image_is_refused_by_every_torchvision_backbone(shape):
    for name in ("resnet18", "vit_b_16", "squeezenet1_0"):
        assert refusal(name, shape) == f"backbone {name} needs RGB images, got inputs of shape {shape}"


@pytest.mark.parametrize(
    ("name", "side", "why"),
    [
        ("alexnet", 32, "Output size is too small"),
        ("densenet121", 16, "Output size is too small"),
        ("convnext_tiny", 16, "Kernel size can't be greater than actual input size"),
        ("vit_b_16", 40, "Input shape indivisible by patch size!"),
        ("maxvit_t", 64, "is not divisible by partition size 7"),
    ],
)
def test_images_that_are_too_small_or_of_the_wrong_size_are_refused_in_one_line(name, side, why):
    line = refusal(name, (3, side, side))
    assert line.startswith(f"backbone {name} cannot take inputs of shape (3, {side}, {side}): ")
    assert why in line
    assert "\n" not in line


def test_the_look_at_one_blank_image_leaves_a_backbone_ready_to_train():
    backbone = Torchvision("resnet18", RGB)
    assert all(module.training for module in backbone.modules())
    assert backbone.body.bn1.num_batches_tracked == 0
    assert torch.equal(backbone.body.bn1.running_mean, torch.zeros(64))
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_every_parameter_of_a_torchvision_backbone_takes_part_in_the_output():
    torch.manual_seed(0)
    network = HashNetwork("mobilenet_v3_small", RGB, 8, torch.full((3,), 100.0), torch.full((3,), 50.0))
    network(some_images(count=8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_linear_hands_feature_vectors_on_and_mlp_hides_them_once():
    vectors = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    linear = build_backbone("linear", (12,))
    assert isinstance(linear, Linear)
    assert linear.features == 12
    assert torch.equal(linear(vectors), vectors)
    assert list(linear.parameters()) == []
    mlp = build_backbone("mlp", (12,))
    assert isinstance(mlp, MLP)
    assert mlp.features == 1024
    assert sum(p.numel() for p in mlp.parameters()) == 12 * 1024 + 2 * 1024
    hidden = vectors @ mlp[0].weight.T
    normal = (hidden - hidden.mean(dim=0)) / (hidden.var(dim=0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(mlp(vectors), normal.clamp(min=0), atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "linear"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), ()])
def test_linear_and_mlp_refuse_images(name, shape):
    assert refusal(name, shape) == f"backbone {name} needs feature vectors, got inputs of shape {shape}"


def test_torchvisions_names_are_those_of_its_registry_though_it_is_not_imported_for_them():
    names = torchvision.models.list_models(module=torchvision.models)
    assert torchvision_weights() == {
        name: tuple(torchvision.models.get_model_weights(name).__members__) for name in names
    }
    assert list(torchvision_weights()) == names
    assert not set(OWN_BACKBONES) & set(names)


def test_every_name_finds_its_kind():
    assert isinstance(build_backbone("small_cnn", (3, 8, 8)), SmallCNN)
    assert isinstance(build_backbone("resnet18", (3, 8, 8)), Torchvision)


@pytest.mark.parametrize(
    ("size", "shape", "rows", "columns"),
    [
        ((8, 8), (3, 6, 6), slice(1, 7), slice(1, 7)),
        ((9, 12), (3, 8, 6), slice(0, 8), slice(3, 9)),
        ((9, 9), (3, 4, 4), slice(2, 6), slice(2, 6)),
        ((6, 6), (3, 6, 6), slice(0, 6), slice(0, 6)),
    ],
)
def test_larger_images_are_cropped_at_their_centre(size, shape, rows, columns):
    torch.manual_seed(0)
    images = some_images((3, *size))
    middle = images[:, :, rows, columns]
    assert torch.equal(center_crop(images, shape), middle)
    network = HashNetwork("small_cnn", shape, 16, torch.full((3,), 120.0), torch.full((3,), 70.0)).eval()
    seen: list[Tensor] = []
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        assert torch.equal(network(images), network(middle))
    assert [tuple(part.shape) for part in seen] == [(3, *shape)] * 2
    assert torch.equal(seen[0], (middle - 120.0) / 70.0)


def test_inputs_reach_the_backbone_minus_the_mean_over_the_std():
    generator = np.random.default_rng(0)
    for shape in ((3, 8, 8), (6,)):
        mean, std = generator.uniform(1, 200, shape[0]), generator.uniform(0.1, 90, shape[0])
        network = HashNetwork(
            "small_cnn" if len(shape) == 3 else "linear", shape, 4, torch.from_numpy(mean), torch.from_numpy(std)
        ).eval()
        seen: list[Tensor] = []
        network.backbone.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        per_channel = (1, -1) + (1,) * (len(shape) - 1)
        for dtype in (np.uint8, np.float16, np.float32, np.float64):
            inputs = generator.integers(0, 256, (5, *shape)).astype(dtype)
            before = inputs.copy()
            with torch.no_grad():
                assert network(torch.from_numpy(inputs)).dtype == torch.float32
            assert np.array_equal(inputs, before)
            by_hand = (inputs.astype(np.float64) - mean.reshape(per_channel)) / std.reshape(per_channel)
            assert seen[-1].dtype == torch.float32
            np.testing.assert_allclose(seen[-1].numpy(), by_hand, rtol=1e-4, atol=1e-4)


def make(precision="fp32") -> HashNetwork:
    torch.manual_seed(0)
    mean, std = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 61.0, 62.0])
    return HashNetwork("resnet18", RGB, 16, mean, std, precision=precision)


def trained_once(network: HashNetwork) -> tuple[Tensor, Tensor]:
    """The outputs in training mode, and the gradient of the first convolution."""
    outputs = network.train()(some_images(count=8))
    outputs.square().mean().backward()
    return outputs.detach(), network.backbone.body.conv1.weight.grad


def test_channels_last_gives_the_same_numbers_from_another_order_in_memory():
    plain, other = make(), make()
    other.in_channels_last()
    seen: list[Tensor] = []
    other.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for name, value in other.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    with torch.no_grad():
        expected = plain.eval()(some_images())
        torch.testing.assert_close(other.eval()(some_images()), expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.01
    (outputs, gradient), (other_outputs, other_gradient) = trained_once(plain), trained_once(other)
    torch.testing.assert_close(other_outputs, outputs, rtol=1e-3, atol=1e-4)
    assert (other_gradient - gradient).norm() < 1e-3 * gradient.norm()
    weight = other.backbone.body.layer1[0].conv1.weight
    for tensor in (weight, *seen):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()
    assert plain.backbone.body.layer1[0].conv1.weight.is_contiguous()


def test_bf16_runs_the_backbone_alone_in_half_precision():
    full, half = make(), make("bf16")
    kinds: list[torch.dtype] = []
    half.backbone.body.layer4[1].conv2.register_forward_hook(lambda module, inputs, out: kinds.append(out.dtype))
    half.hash_layer.register_forward_hook(lambda module, inputs, out: kinds.extend([inputs[0].dtype, out.dtype]))
    with torch.no_grad():
        expected, outputs = full.eval()(some_images()), half.eval()(some_images())
    assert kinds == [torch.bfloat16, torch.float32, torch.float32]
    assert outputs.dtype == torch.float32
    assert 0 < (outputs - expected).norm() < 0.05 * expected.norm()
    assert half.encode(some_images()).shape == (3, 16)
    _, gradient = trained_once(half)
    assert gradient.dtype == torch.float32
    learned = {value.dtype for name, value in half.state_dict().items() if name not in ("mean", "std")}
    assert learned == {torch.float32, torch.int64}
    for name, value in make().state_dict().items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(value, half.state_dict()[name]), name
