"""A search on a frozen backbone whose finalists are trained with all layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from crh_tune.export.bundle import load_encoder
from crh_tune.export.of_search import export_search
from crh_tune.hashing.network import HashNetwork
from crh_tune.last_lines import last_lines
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import TrialSettings
from crh_tune.training.frozen import pretrained
from crh_tune.training.opening import open_split
from crh_tune.tuning.baselines import splits_of_features
from crh_tune.tuning.study import prepare, run_search


def settings_of(root: Path, **confirm) -> SearchSettings:
    trial = {"bits": 16, "epochs": 3, "batch_size": 16, "backbone": "resnet18", "weights": str(root / "weights.pth")}
    content = {
        "name": "whole",
        "dataset": {"name": "folder", "path": str(root / "photos"), "size": 32},
        "trial": {**trial, "freeze": True, "evaluate_every": 3},
        "search": {"margin": {"uniform": [0.0, 0.5]}},
        "scheduler": {},
        "confirm": {"top": 1, "seeds": 1, **confirm},
        "budget": {"trials": 2},
    }
    return SearchSettings.model_validate(content)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve photos each of three colours, and weights for ResNet-18."""
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for name, colour in (("a", (200, 60, 20)), ("b", (10, 60, 190)), ("c", (40, 180, 40))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.normal(colour, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "weights.pth")
    return tmp_path


def test_finalists_are_trained_with_all_layers_and_what_that_changed_is_said(ray_session, root):
    settings, said = settings_of(root, freeze=False, epochs=2), []
    result = run_search(settings, prepare(settings, said.append), root / "runs", said.append)
    assert any(line.startswith("confirming ") and line.endswith(", all layers trained") for line in said)
    trial = result.best.settings["trial"]
    assert (trial["freeze"], trial["head"], trial["epochs"]) == (False, None, 2)
    assert (trial["learning_rate"], trial["optimizer"]) == (1e-4, "adam")  # CRH's for pretrained networks
    assert result.best_test.settings["trial"]["freeze"] is False
    assert result.best.frozen is not None
    difference = f"{result.best.mean - result.best.frozen:+.4f}"
    lines = last_lines(settings, result, root)
    line = f"all layers       {difference} validation mAP over the trial on frozen features, {result.best.frozen:.4f}"
    assert line in lines
    export_search(result.folder, root / "export")
    assert isinstance(load_encoder(root / "export").network, HashNetwork)
    assert (
        "All layers were trained; on frozen features its trial had" in (root / "export" / "model_card.md").read_text()
    )


def test_a_search_that_trains_a_pretrained_network_ranks_what_that_network_saw_before(ray_session, root):
    content = settings_of(root).model_dump(mode="json")
    content["trial"] |= {"freeze": False, "epochs": 1, "evaluate_every": 1}
    settings, said = SearchSettings.model_validate({**content, "budget": {"trials": 1}}), []
    result = run_search(settings, prepare(settings, said.append), root / "runs", said.append)
    assert "resnet18 as it was pretrained sees all images once, for rankings without training" in said
    assert [each.name for each in result.baselines] == ["float cosine", "PCA + rotation", "PCA + ITQ"]
    frozen = TrainingSettings(backbone="resnet18", weights=str(root / "weights.pth"), freeze=True)
    size = pretrained(frozen, None).size
    assert size == 224  # the model's own: dataset.size is for what is trained
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(torch.load(root / "weights.pth"))
    network.fc = torch.nn.Identity()
    last = prepare(settings, said.append).last
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    features, names = {}, {"train": last.train, "queries": last.queries}
    for part, samples in names.items():
        images = [Image.open(root / "photos" / item).convert("RGB") for item in samples.items]
        with torch.inference_mode():
            features[part] = network.eval()(torch.stack([preset(image) for image in images])).double().numpy()
    scores = cosine_similarity(features["queries"], features["train"])
    relevant = last.queries.labels[:, None] == last.train.labels
    by_hand = np.mean([average_precision_score(*each) for each in zip(relevant, scores, strict=True)])
    assert abs(result.baselines[0].test - by_hand) < 0.01
    assert any(line.startswith("float cosine     ") for line in last_lines(settings, result, root))


def test_a_network_trained_from_scratch_has_nothing_to_be_compared_with_and_a_line_says_so(tmp_path):
    content = {"dataset": {"name": "digits"}, "trial": {"bits": 16}}
    settings, said = TrialSettings.model_validate(content), []
    first, last = (open_split(settings, stage) for stage in ("search", "final"))
    assert splits_of_features(settings, first, last, said.append) is None
    assert said == ["no ranking without training is scored: a network trained from scratch has no features before"]


@pytest.mark.parametrize(
    ("confirm", "freeze", "line"),
    [
        ({"epochs": 3}, True, "epochs 3 goes with freeze: false"),
        ({"freeze": True}, True, "confirm.freeze"),
        (
            {"freeze": False},
            False,
            "confirm.freeze: false is for a search on a frozen backbone: set trial.freeze: true",
        ),
    ],
)
def test_a_confirmation_that_cannot_be_is_refused(tmp_path, confirm, freeze, line):
    content = settings_of(tmp_path).model_dump(mode="json")
    content["trial"]["freeze"] = freeze
    with pytest.raises(ValueError, match=r".") as caught:
        SearchSettings.model_validate({**content, "confirm": {"top": 1, "seeds": 1, **confirm}})
    assert line in str(caught.value)
