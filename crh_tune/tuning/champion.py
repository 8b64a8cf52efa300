"""The winner of a search as a model in MLflow: logged with what it takes and gives, and registered as champion.

Everything goes through a client, never through MLflow's state of the process: a thread sends it while others log.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from PIL import Image

import crh_tune
from crh_tune.serving.answers import open_answers
from crh_tune.serving.encoder import Encoder, load_encoder
from crh_tune.serving.pyfunc import PARAMS, Served

LOADER = "crh_tune.serving.pyfunc"
REQUIREMENTS = (f"crh-tune=={crh_tune.__version__}", "numpy>=2.0", "onnxruntime>=1.23", "pillow>=11")
CHAMPION = "champion"
"""The alias of the winner of the latest search of its name that has ended; earlier ones stay as versions."""
_MODEL_TAG, _ENDED_TAG = "crh_tune.model", "crh_tune.ended"
"""Tags of a logged model and its version: what it is found again by, and when its search ended."""


@dataclass(frozen=True)
class Champion:
    """The exported winner of a search that has ended.

    Attributes:
        name: what it is registered as: the name of the search space, ``digit-pairs``.
        export: the export's folder; ``encoder``: the name of the encoder that it has to hold.
        ended: when the search ended, in milliseconds of Unix time.
        about: what is said of the version, in plain text.
    """

    name: str
    export: str
    encoder: str
    ended: int
    about: str


def send_champion(client: MlflowClient, experiment_id: str, run_id: str, key: str, champion: Champion) -> None:
    """Log the model to its run and register it; what is there already is left as it is, so that it can be sent again.

    Nothing is sent of an export that is gone, or that holds the winner of a search that went on. Raises DataError where
    the export is broken, and what MLflow raises.
    """
    export = Path(champion.export)
    if not export.exists() or load_encoder(export).name != champion.encoder:
        return
    mark = f"{key}/{champion.encoder}"
    model = _logged(client, experiment_id, run_id, mark, champion)
    version = _registered(client, run_id, mark, model, champion)
    present = _champion(client, champion.name)
    if present is None or int(present.tags.get(_ENDED_TAG, 0)) <= champion.ended:
        client.set_registered_model_alias(champion.name, CHAMPION, version.version)


def _logged(client: MlflowClient, experiment_id: str, run_id: str, mark: str, champion: Champion) -> LoggedModel:
    """The logged model, whole."""
    found = client.search_logged_models([experiment_id], f"tags.`{_MODEL_TAG}` = '{mark}'", max_results=1)
    model = found[0] if found else client.create_logged_model(experiment_id, "model", run_id, {_MODEL_TAG: mark})
    if model.status == LoggedModelStatus.READY:
        return model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_export(Path(champion.export), path, Model(model_id=model.model_id, run_id=run_id))
        client.log_model_artifacts(model.model_id, str(path))
    outputs = client.get_run(run_id).outputs
    if model.model_id not in [each.model_id for each in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _registered(client: MlflowClient, run_id: str, mark: str, model: LoggedModel, champion: Champion) -> ModelVersion:
    """The version of the registered model that this one is."""
    found = client.search_model_versions(f"name = '{champion.name}' and tags.`{_MODEL_TAG}` = '{mark}'")
    if found:
        return found[0]
    try:
        client.create_registered_model(champion.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {_MODEL_TAG: mark, _ENDED_TAG: str(champion.ended)}
    where = model.artifact_location  # models:/ID would be looked for at the address that this process has
    return client.create_model_version(
        champion.name, where, run_id, tags, description=champion.about, model_id=model.model_id
    )


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that is the champion now."""
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if version is None else client.get_model_version(name, version)


def save_export(export: Path, to: Path, model: Model) -> None:
    """Write an export as MLflow keeps models, with its signature and an example of what it takes.

    Raises DataError where the export is broken.
    """
    answers = open_answers(export)
    example = example_of(answers.encoder)
    mlflow.pyfunc.save_model(
        str(to),
        loader_module=LOADER,
        data_path=str(export),
        mlflow_model=model,
        signature=infer_signature(example, Served(answers).predict(example), PARAMS),
        input_example=example,
        pip_requirements=list(REQUIREMENTS),
    )


def example_of(encoder: Encoder) -> Any:
    """One input that an encoder takes: a column ``image`` with the bytes of a file, or an array.

    The image is made up: no photo of a dataset leaves the machine.
    """
    try:
        encoder.want_images()
    except ValueError:
        return np.zeros((1, *encoder.shape), dtype=encoder.dtype)
    ramp = np.broadcast_to(np.arange(encoder.shape[1], dtype=np.uint8), encoder.shape[1:])
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.stack([ramp, ramp.T, ramp[::-1]], axis=2))).save(content, "PNG")
    return pd.DataFrame({"image": [content.getvalue()]})
