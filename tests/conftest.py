"""One Ray for the whole test session, with a short health-check interval and without token authentication."""

from __future__ import annotations

import os

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own is 15: they hardly run on a busy machine
os.environ.pop("MLFLOW_TRACKING_URI", None)

from collections.abc import Iterator

import pytest
import ray
from hypothesis import HealthCheck, settings

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray on this machine with two CPUs."""
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True, scope="module")
def same_tracking_server() -> Iterator[None]:
    """MLflow writes what it is told in Python into the environment, where it would rule the tests of other files."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    assert os.environ.get("MLFLOW_TRACKING_URI") == before, "this file's tests left MLFLOW_TRACKING_URI changed"
