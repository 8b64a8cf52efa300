"""The pass of a frozen backbone as a task: on a cluster's node with the GPU, and again where its process dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import torchvision
from PIL import Image

from benchmarks.soak import processes_below
from crh_tune.data.store.feature_cache import BLOCK
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.training.opening import open_data
from crh_tune.tuning.feature_pass import compute_features, open_on_cluster
from crh_tune.tuning.study import prepare

PROJECT = Path(__file__).parents[2]
IMAGES = 2 * BLOCK // 3 * 3
GPU_NODE = "the node with the GPU"
ON_A_CLUSTER = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from tests.tuning.test_feature_pass import GPU_NODE, settings_of
from pathlib import Path
from crh_tune.tuning.study import prepare

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=1, num_gpus=1, env_vars={"TQDM_DESC": GPU_NODE})
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
said = []
prepared = prepare(settings_of(Path(sys.argv[1]), gpus_per_worker=1), said.append)
loaded = [name for name in ("onnxruntime", "onnx", "timm") if name in sys.modules]
print(json.dumps([said, loaded, prepared.last.fingerprint]))
sys.stdout.flush()
"""


def settings_of(root: Path, **scaling: float) -> SearchSettings:
    content = {
        "name": "features",
        "dataset": {"name": "folder", "path": str(root / "photos"), "size": 32},
        "trial": {
            "bits": 16,
            "epochs": 1,
            "backbone": "resnet18",
            "weights": str(root / "weights.pth"),
            "freeze": True,
        },
        "search": {"margin": {"uniform": [0.0, 0.5]}},
        "scaling": scaling,
    }
    return SearchSettings.model_validate(content)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in three classes, of two blocks of images, and weights for ResNet-18."""
    root, generator = tmp_path_factory.mktemp("pass"), np.random.default_rng(0)
    for name in "abc":
        (root / "photos" / name).mkdir(parents=True)
        for number in range(IMAGES // 3):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), root / "weights.pth")
    return root


def opened(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, str]:
    """All training features that lie in a cache, which nothing is to be added to, and the split's fingerprint."""
    monkeypatch.setenv("CRH_TUNE_CACHE", str(cache))
    settings = settings_of(root)
    inputs = open_data(settings.dataset, settings.trial, compute=False).train.inputs
    return inputs[np.arange(len(inputs))], prepare(settings, lambda line: None).last.fingerprint


@pytest.fixture(scope="module")
def in_process(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, str]:
    """The same, computed in this process."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("in-process")
        patch.setenv("CRH_TUNE_CACHE", str(cache))
        prepare(settings_of(root), lambda line: None)
        return opened(root, cache, patch)


def test_on_a_cluster_the_pass_runs_on_the_node_with_the_gpu_and_the_driver_loads_no_backbone(
    root, in_process, tmp_path, monkeypatch
):
    with tempfile.TemporaryDirectory(prefix="crh-", ignore_cleanup_errors=True) as short:  # sockets need a short path
        environment = {**os.environ, "RAY_TMPDIR": short, "CRH_TUNE_CACHE": str(tmp_path)}
        command = [sys.executable, "-c", ON_A_CLUSTER, str(root)]
        done = subprocess.run(
            command, check=False, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=600
        )
    assert done.returncode == 0, done.stderr
    said, loaded, fingerprint = json.loads(done.stdout.splitlines()[-1])
    assert said[0] == "features are computed by a task of the cluster with 1 CPU and 1 GPU"
    assert said[1].startswith(f"computing the features of {IMAGES} images, once, into {tmp_path}/features-")
    assert len(said) == 2
    assert loaded == []
    assert f"{GPU_NODE}: 100%" in done.stderr  # that node's progress bar, on the driver's terminal
    features, again = opened(root, tmp_path, monkeypatch)
    np.testing.assert_array_equal(features, in_process[0])
    assert fingerprint == again == in_process[1]
    assert not list(tmp_path.glob("shared-*"))


def test_a_task_whose_process_dies_goes_on_in_another(ray_session, root, in_process, tmp_path, monkeypatch):
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path))
    settings, said = settings_of(root), []
    threading.Thread(target=kill_after_a_block, args=(tmp_path,), daemon=True).start()
    compute_features(settings.dataset, settings.trial, settings.scaling, said.append)
    assert [line for line in said if line.startswith("the task that computes features died (")]
    counted = [int(line.split()[4]) for line in said if line.startswith("computing the features of")]
    assert counted[0] == IMAGES
    assert counted[1] <= counted[0] - BLOCK
    np.testing.assert_array_equal(opened(root, tmp_path, monkeypatch)[0], in_process[0])


def kill_after_a_block(cache: Path) -> None:
    """Kill the process of the task as soon as a block is in the cache."""
    while not (found := [pid for pid, title in processes_below(os.getpid()).items() if title.startswith("ray::_pass")]):
        time.sleep(0.01)
    while not any(blocks.stat().st_size for blocks in cache.glob("features-*/blocks.jsonl")):
        time.sleep(0.001)
    os.kill(found[0], signal.SIGKILL)


def test_what_is_wrong_with_the_data_is_said_as_without_a_cluster(ray_session, root, tmp_path, monkeypatch):
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path))
    settings = settings_of(root)
    bad = settings.trial.model_copy(update={"weights": str(tmp_path / "none.pth")})
    with pytest.raises(SettingsError, match=r"^trial.weights: .*none.pth: no such file") as caught:
        compute_features(settings.dataset, bad, settings.scaling, lambda line: None)
    assert not isinstance(caught.value, ray.exceptions.RayError)


def test_more_gpus_than_there_are_are_refused_before_anything_waits_for_them(ray_session, root, tmp_path, monkeypatch):
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path))
    settings = settings_of(root, gpus_per_worker=1)
    with pytest.raises(SettingsError, match=r"^scaling.gpus_per_worker: a trial needs 1 GPU \(1 worker\), there are 0"):
        open_on_cluster(settings.dataset, settings.trial, settings.scaling, lambda line: None)


def test_nodes_that_do_not_share_the_cache_are_one_line(ray_session, root, tmp_path, monkeypatch):
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path))
    settings = settings_of(root)
    monkeypatch.setattr(Path, "touch", lambda path, **options: None)  # written where the task does not see it
    with pytest.raises(SettingsError, match=r"CRH_TUNE_CACHE has to name a folder that all nodes share"):
        compute_features(settings.dataset, settings.trial, settings.scaling, lambda line: None)
