"""A search on a frozen backbone whose finalists are trained with all layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from crh_tune.export.bundle import load_encoder
from crh_tune.export.of_search import export_search
from crh_tune.hashing.network import HashNetwork
from crh_tune.search import _last_lines
from crh_tune.settings.search import SearchSettings
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
    lines = _last_lines(settings, result, root)
    line = f"all layers       {difference} validation mAP over the trial on frozen features, {result.best.frozen:.4f}"
    assert line in lines
    export_search(result.folder, root / "export")
    assert isinstance(load_encoder(root / "export").network, HashNetwork)
    assert (
        "All layers were trained; on frozen features its trial had" in (root / "export" / "model_card.md").read_text()
    )


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
