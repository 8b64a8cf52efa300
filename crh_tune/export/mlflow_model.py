"""An export as a model in MLflow, which any of its tools loads and serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import infer_signature
from mlflow.models.model import ModelInfo

from crh_tune.serving.encoder import load_encoder
from crh_tune.serving.pyfunc import PARAMS
from crh_tune.tuning.champion import LOADER, REQUIREMENTS


def log_export(export: Path, name: str = "model", **options: Any) -> ModelInfo:
    """Log an export to the active run; ``options`` are those of ``mlflow.pyfunc.log_model``.

    Raises DataError where the export has no readable ``encoder.onnx``.
    """
    load_encoder(export)
    options = {"signature": infer_signature(params=PARAMS), "pip_requirements": list(REQUIREMENTS), **options}
    return mlflow.pyfunc.log_model(name=name, loader_module=LOADER, data_path=str(export), **options)
