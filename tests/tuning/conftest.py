"""Torch process groups without Ray, as the training tests have them, and a database of MLflow to copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.training.conftest import in_group

__all__ = ["empty_database", "in_group"]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
