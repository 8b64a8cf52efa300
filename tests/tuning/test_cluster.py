"""What Ray refuses at its start, in one line and at once; what does not fit, before anything waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import TrialSettings
from crh_tune.tuning.trial import device_of, train_group

CODE = """
import functools, os, time
from ray._private import services
services._cached_find_gcs_addresses = functools.lru_cache(set)  # other clusters of this machine
from crh_tune.settings.base import SettingsError
from crh_tune.tuning.cluster import connect_ray
for name, value in {cases!r}:
    os.environ["TMPDIR"] = {folder!r}
    os.environ.pop("RAY_ADDRESS", None)
    os.environ[name] = value
    begun = time.monotonic()
    try:
        connect_ray()
    except SettingsError as error:
        print(time.monotonic() - begun < 30, error)
"""


def test_what_ray_refuses_at_its_start_is_one_line_that_names_the_variable(tmp_path: Path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    cases = [
        ("TMPDIR", str(deep)),
        ("RAY_ADDRESS", "auto"),
        ("RAY_ADDRESS", "127.0.0.1:1"),
        ("RAY_ADDRESS", "nonsense"),
    ]
    code = CODE.format(cases=cases, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    said = done.stdout.splitlines()
    assert len(said) == 4, done
    assert said[0] == f"True TMPDIR: {deep} is too long a path for Ray's sockets: set RAY_TMPDIR=/tmp"
    assert said[1].startswith(
        "True RAY_ADDRESS: no cluster can be joined with 'auto': start one, or unset RAY_ADDRESS ("
    )
    assert said[2] == ("True RAY_ADDRESS: nothing answers at 127.0.0.1:1: start that cluster, or unset RAY_ADDRESS")
    assert said[3].startswith("True RAY_ADDRESS: no cluster can be joined with 'nonsense': start one, or unset ")


def settings(**scaling: float) -> TrialSettings:
    return TrialSettings.model_validate(
        {"dataset": {"name": "digits"}, "trial": {"bits": 16, "epochs": 1}, "scaling": scaling}
    )


def test_a_worker_group_with_more_gpus_than_there_are_is_refused(ray_session):
    with pytest.raises(
        SettingsError, match=r"^scaling.gpus_per_worker: a trial needs 2 GPUs \(2 workers\), there are 0$"
    ):
        train_group(settings(workers_per_trial=2, gpus_per_worker=1), "split", None)  # type: ignore[arg-type]


def test_a_lone_worker_with_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of(settings(gpus_per_worker=1)).type == "cuda"
    with pytest.raises(SettingsError, match=r"^scaling.gpus_per_worker: 2 asked for, there are 1$"):
        device_of(settings(gpus_per_worker=2))
