"""A trial's network: pretrained weights by name or from a file, how inputs are standardised, crops, compilation."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from crh_tune.data.splits import Samples, Split
from crh_tune.hashing.network import standardised
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings
from crh_tune.training.models import build_network, input_shape

SIDE, BITS = 32, 8
RESNET18 = "resnet18-f37072fd.pth"  # the end of the address of torchvision's weights, and so their file's name
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of torchvision's downloads, on a machine without a network."""

    def no_network(*arguments: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "torch_home" / "hub" / "checkpoints"
    torch.set_num_threads(threads)


@lru_cache
def resnet(classes: int = 1000) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None, num_classes=classes).state_dict()


@lru_cache
def split_of_images(shape: tuple[int, ...] = (3, SIDE, SIDE)) -> Split:
    generator = np.random.default_rng(0)
    parts = []
    for count in (12, 4):
        brighter = np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
        inputs = (generator.integers(0, 80, (count, *shape)) * brighter).astype(np.uint8)
        parts.append(Samples(inputs if len(shape) > 1 else inputs.astype(np.float32), np.arange(count) % 3))
    return Split("search", ("a", "b", "c"), parts[0], parts[1], None, None)


def network(split: Split | None = None, **trial):
    torch.manual_seed(2)
    return build_network(TrainingSettings(**{"backbone": "resnet18", **trial}), split or split_of_images(), BITS)


def refusal(split: Split | None = None, **trial) -> str:
    with pytest.raises(SettingsError) as caught:
        network(split, **trial)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def has(body: torch.nn.Module, expected: dict[str, Tensor]) -> bool:
    """Whether a backbone has these weights, the last layer aside."""
    own = body.state_dict()
    assert set(own) == set(expected) - {"fc.weight", "fc.bias"}
    return all(torch.equal(value, expected[name]) for name, value in own.items())


def into_hub(hub: Path, content: object) -> Path:
    hub.mkdir(parents=True)
    torch.save(content, hub / RESNET18)
    return hub / RESNET18


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1"])
def test_weights_by_torchvisions_name_come_from_its_folder_of_downloads(hub, name):
    into_hub(hub, resnet())
    assert has(network(weights=name).backbone.body, resnet())
    assert not has(network().backbone.body, resnet())


def test_offline_the_complaint_says_where_the_file_should_be(hub):
    assert refusal(weights="DEFAULT") == (
        f"trial.weights: DEFAULT of resnet18 are not at {hub / RESNET18} and cannot be downloaded "
        "(<urlopen error no route to host>): put them there, give a file, or leave weights out to train from scratch"
    )


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        (lambda state: state, 1000),
        (lambda state: state, 5),
        (lambda state: {"state_dict": state, "epoch": 90, "arch": "resnet18"}, 1000),
        (lambda state: {"model": state, "optimizer": {"lr": 0.1}}, 1000),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, 1000),
        (lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}}, 5),
        (lambda state: {name: value for name, value in state.items() if not name.startswith("fc.")}, 1000),
    ],
)
def test_weights_come_from_a_file_as_people_have_them(tmp_path, content, classes):
    torch.save(content(resnet(classes)), tmp_path / "mine.pth")
    assert has(network(weights=str(tmp_path / "mine.pth")).backbone.body, resnet(classes))


def test_a_file_is_found_from_another_working_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    torch.save(resnet(), tmp_path / "mine.pth")
    monkeypatch.chdir(tmp_path)
    trial = TrainingSettings(backbone="resnet18", weights="mine.pth")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert trial.weights == str(tmp_path / "mine.pth")
    assert has(build_network(trial, split_of_images(), BITS).backbone.body, resnet())


class Malice:
    """Makes a folder when it is unpickled the ordinary way."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def saved(folder: Path, value: object) -> bytes:
    torch.save(value, folder / "saved.pth")
    return (folder / "saved.pth").read_bytes()


def broken_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    whole = saved(folder, {"fc.weight": torch.zeros(200)})
    return {
        "cut": (whole[: len(whole) // 2], "cut short, or no file of weights alone"),
        "empty": (b"", "cut short, or no file of weights alone"),
        "text": (b"<html>Not found</html>\n", "cut short, or no file of weights alone"),
        "a list": (saved(folder, [torch.zeros(2)]), "expected a state dict of tensors"),
        "a tensor": (saved(folder, torch.zeros(2)), "expected a state dict of tensors"),
        "numbers": (saved(folder, {"state_dict": {"fc.weight": 1.0}}), "expected a state dict of tensors"),
        "numbered": (saved(folder, {1: torch.zeros(2)}), "expected a state dict of tensors"),
        "code": (saved(folder, {"fc.weight": Malice(folder / "made")}), "cut short, or no file of weights alone"),
        "pickled code": (pickled({"fc.weight": Malice(folder / "made")}), "cut short, or no file of weights alone"),
        "a model": (saved(folder, torchvision.models.squeezenet1_1()), "cut short, or no file of weights alone"),
    }


KINDS = ["cut", "empty", "text", "a list", "a tensor", "numbers", "numbered", "code", "pickled code", "a model"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_holds_no_weights_is_told_in_one_line_and_never_runs(tmp_path, kind):
    content, reason = broken_files(tmp_path)[kind]
    path = tmp_path / "mine.pth"
    path.write_bytes(content)
    assert refusal(weights=str(path)).startswith(f"trial.weights: {path}: {reason}")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "a list", "code", "pickled code"])
def test_a_broken_file_among_torchvisions_downloads_is_told_in_one_line_and_never_runs(hub, tmp_path, kind):
    hub.mkdir(parents=True)
    (hub / RESNET18).write_bytes(broken_files(tmp_path)[kind][0])
    line = refusal(weights="DEFAULT")
    assert line.startswith("trial.weights: ")
    assert str(hub / RESNET18) in line
    assert not (tmp_path / "made").exists()


def test_the_malice_would_do_its_work_if_it_were_let(tmp_path):
    pickle.loads(pickled({"fc.weight": Malice(tmp_path / "made")}))
    assert (tmp_path / "made").is_dir()


def test_a_missing_file_and_a_folder_are_told_in_one_line(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    for name in ("missing.pth", "folder.pth"):
        path = tmp_path / name
        expected = f"trial.weights: {path}: no such file, nor weights that the library has under this name"
        assert refusal(weights=str(path)) == expected


def test_weights_of_another_architecture_are_told_in_one_line(tmp_path, hub):
    path = tmp_path / "mine.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    line = refusal(weights=str(path))
    assert line.startswith(f"trial.weights: {path}: Error(s) in loading state_dict for ResNet: ")
    into_hub(hub, {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    line = refusal(weights="DEFAULT")
    assert line.startswith("trial.weights: DEFAULT: Error(s) in loading state_dict for ResNet: ")


def test_inputs_are_standardised_as_the_weights_were_trained(tmp_path, hub):
    torch.save(resnet(), tmp_path / "mine.pth")
    into_hub(hub, resnet())
    images = split_of_images().train.inputs
    mean, std = (np.array(values).reshape(3, 1, 1) for values in IMAGENET)
    for weights in ("DEFAULT", str(tmp_path / "mine.pth")):
        net = network(weights=weights).eval()
        torch.testing.assert_close(net.mean.flatten(), torch.tensor(IMAGENET[0], dtype=torch.float64) * 255)
        torch.testing.assert_close(net.std.flatten(), torch.tensor(IMAGENET[1], dtype=torch.float64) * 255)
        seen: list[Tensor] = []
        net.backbone.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            net(torch.from_numpy(images))
        np.testing.assert_allclose(seen[0].numpy(), (images / 255 - mean) / std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "shape"), [("resnet18", (3, SIDE, SIDE)), ("small_cnn", (1, 8, 8)), ("linear", (5,))]
)
def test_without_weights_inputs_are_standardised_by_the_training_samples_alone(backbone, shape):
    split = split_of_images(shape)
    net = network(split, backbone=backbone)
    axes = (0, *range(2, len(shape) + 1))
    pixels = split.train.inputs.astype(np.float64)
    np.testing.assert_allclose(net.mean.flatten().numpy(), pixels.mean(axis=axes), rtol=1e-5)
    np.testing.assert_allclose(net.std.flatten().numpy(), pixels.std(axis=axes), rtol=1e-5)


def test_a_channel_that_never_changes_gives_finite_outputs():
    split = split_of_images()
    inputs = split.train.inputs.copy()
    inputs[:, 1] = 7
    flat = Split("search", split.class_names, Samples(inputs, split.train.labels), split.queries, None, None)
    net = network(flat, backbone="small_cnn").eval()
    with torch.no_grad():
        outputs = net(torch.from_numpy(inputs))
    assert torch.isfinite(outputs).all()
    assert outputs.std() > 0


def test_the_networks_inputs_are_of_the_size_of_the_crops():
    split = split_of_images()
    assert input_shape(TrainingSettings(), split) == (3, SIDE, SIDE)
    assert input_shape(TrainingSettings(flip=True), split) == (3, SIDE, SIDE)
    assert input_shape(TrainingSettings(crop=SIDE), split) == (3, SIDE, SIDE)
    net = network(split, backbone="small_cnn", crop=20, padding=30, flip=True)
    assert net.shape == (3, 20, 20)
    assert net.backbone[9].weight.shape == (256, 32 * 5 * 5)


@pytest.mark.parametrize(
    ("shape", "trial", "line"),
    [
        (
            (3, SIDE, SIDE),
            {"crop": 33},
            "trial.crop: 33 pixels asked for, the images have 32 (dataset.size)",
        ),
        ((5,), {"crop": 4}, "trial.crop, trial.flip: for square images only, got inputs of shape (5,)"),
        ((5,), {"flip": True}, "trial.crop, trial.flip: for square images only, got inputs of shape (5,)"),
        ((1, 8, 16), {"crop": 8}, "trial.crop, trial.flip: for square images only, got inputs of shape (1, 8, 16)"),
        ((5,), {}, "trial.backbone: backbone resnet18 needs RGB images, got inputs of shape (5,)"),
        ((1, 8, 8), {}, "trial.backbone: backbone resnet18 needs RGB images, got inputs of shape (1, 8, 8)"),
        (
            (3, 8, 8),
            {"backbone": "linear"},
            "trial.backbone: backbone linear needs feature vectors, got inputs of shape (3, 8, 8)",
        ),
        (
            (3, SIDE, SIDE),
            {"backbone": "squeezenet1_0"},
            "trial.backbone: backbone squeezenet1_0 has no last linear layer to take off: another one is needed",
        ),
    ],
)
def test_a_backbone_or_crop_that_does_not_fit_the_inputs_is_told_in_one_line(shape, trial, line):
    assert refusal(split_of_images(shape), **trial) == line


def test_channels_last_is_for_images_and_leaves_features_alone():
    images = network(channels_last=True)
    assert images.memory_format == torch.channels_last
    assert images.backbone.body.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    features = network(split_of_images((5,)), backbone="linear", channels_last=True)
    assert features.memory_format == torch.contiguous_format
    assert network().memory_format == torch.contiguous_format


COMPILED = """
import json
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers
from tests.training.conftest import settings_for, split_of

split, found = split_of(), []
for compiled in (False, True):
    run = TrainingRun(settings_for(split, epochs=2, batch_size=2000, compile=compiled), split, Workers(), solve_locally)
    assert (run.network.backbone._compiled_call_impl is not None) == compiled
    run.take_first_centers()
    losses = []
    for run.epoch in (1, 2):
        losses.append(run._train_epoch()["loss/total"])
    weight = run.network.backbone[0].weight.flatten().tolist()
    found.append({"losses": losses, "weight": weight, "names": list(run.model.state_dict())})
print(json.dumps(found))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_a_compiled_backbone_trains_as_the_plain_one_does():
    """Two steps: the second loss stands on the gradients of the first."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plain, compiled = json.loads(done.stdout.splitlines()[-1])
    assert compiled["names"] == plain["names"]
    assert len(plain["losses"]) == 2
    assert plain["losses"][1] < plain["losses"][0]
    np.testing.assert_allclose(compiled["losses"], plain["losses"], rtol=1e-3)
    np.testing.assert_allclose(compiled["weight"], plain["weight"], atol=1e-3)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e8, 1e-2), (0.0, 1e40), (3.0, 1e-9)])
def test_features_are_standardised_whatever_their_offset_and_scale(offset, scale):
    """The network sees the same numbers as of the features without offset and scale."""
    plain, labels = np.random.default_rng(0).normal(size=(200, 4)), np.arange(200) % 2
    plain[:, 3] = 0  # constant
    given = Samples(offset + scale * plain, labels)
    net = build_network(
        TrainingSettings(bits=BITS, backbone="linear"), Split("search", ("a", "b"), given, given, None, None), BITS
    )
    seen = standardised(torch.from_numpy(given.inputs), net.mean, net.std).numpy()
    wanted = (plain - plain.mean(axis=0)) / np.where(plain.std(axis=0) > 0, plain.std(axis=0), 1)
    assert np.abs(seen - wanted).max() < 1e-4
