"""MLflow: one parent run a search, one child run a trial.

What is to be logged is first written, in order, to an outbox file beside the search; a thread sends it. So training
never waits for the tracking server, a server that is away costs nothing, and what could not be sent stays on disk.
Sending something twice changes nothing: a run is found again by its key before it is created.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from crh_tune.settings.base import SettingsError

KEY_TAG = "crh_tune.key"
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
# Without a kind, the UI takes an experiment for one of language-model traces.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_PARENT_TAG = "mlflow.parentRunId"
_BATCH = 100
_LONGEST_WAIT = 30.0
_VALUE_LENGTH = 500


def default_tracking_uri(storage: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or an SQLite file in the storage folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def connect(uri: str, experiment: str, storage: Path) -> str:
    """Reach the tracking server and create the experiment where it is missing; returns its id.

    Raises SettingsError when the server does not answer.
    """
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (storage.resolve() / "mlflow_artifacts").as_uri() if uri.startswith("sqlite:") else None
        return str(client.create_experiment(experiment, artifact_location=artifacts, tags=_EXPERIMENT_TAGS))
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise SettingsError(f"MLFLOW_TRACKING_URI: the tracking server at {uri} does not answer: {reason}") from None


class Tracker:
    """Logs runs by key through the outbox. One process writes a search's outbox at a time."""

    def __init__(self, uri: str, experiment_id: str, folder: Path) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        self._experiment_id = experiment_id
        self._outbox = folder / "mlflow_outbox.jsonl"
        self._sent = folder / "mlflow_sent"
        self._run_ids: dict[str, str] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._last_error = ""
        self._outbox.touch()
        self._thread = threading.Thread(target=self._send_all, daemon=True, name="mlflow-outbox")
        self._thread.start()

    def start_run(self, key: str, name: str, parent: str | None = None, tags: dict[str, str] | None = None) -> None:
        """Open the run of this key, or reopen the one there is."""
        self._append("start", key, {"name": name, "parent": parent, "tags": tags or {}})

    def params(self, key: str, params: dict[str, Any]) -> None:
        self._append("params", key, {name: _text(value) for name, value in params.items()})

    def metrics(self, key: str, metrics: dict[str, float], step: int) -> None:
        self._append("metrics", key, {"values": metrics, "step": step, "time": int(time.time() * 1000)})

    def tags(self, key: str, tags: dict[str, str]) -> None:
        self._append("tags", key, tags)

    def artifact(self, key: str, path: Path) -> None:
        """Keep a file that stays where it is until it is sent."""
        self._append("artifact", key, {"path": str(path.resolve())})

    def end_run(self, key: str, status: str) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        self._append("end", key, {"status": status})

    def close(self, patience: float = 60.0) -> int:
        """Wait up to ``patience`` seconds for the outbox to empty; returns how many entries are unsent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(patience)
        return self.unsent()

    def unsent(self) -> int:
        return len(self._outbox.read_bytes().splitlines()) - self._sent_count()

    @property
    def last_error(self) -> str:
        """Why the last sending failed."""
        return self._last_error

    def _append(self, kind: str, key: str, content: dict[str, Any]) -> None:
        with self._wake:
            with self._outbox.open("a", encoding="utf-8") as outbox:
                outbox.write(json.dumps([kind, key, content]) + "\n")
            self._wake.notify()

    def _sent_count(self) -> int:
        return int(self._sent.read_text()) if self._sent.exists() else 0

    def _send_all(self) -> None:
        wait = 1.0
        done = self._sent_count()
        with self._outbox.open(encoding="utf-8") as outbox:
            for _ in range(done):
                outbox.readline()
            while True:
                with self._wake:
                    line = outbox.readline()
                    if not line:
                        if self._closing:
                            return
                        self._wake.wait()
                        continue
                while not self._try_send(line):
                    time.sleep(min(wait, _LONGEST_WAIT))
                    wait *= 2
                wait = 1.0
                done += 1
                self._sent.write_text(str(done))

    def _try_send(self, line: str) -> bool:
        kind, key, content = json.loads(line)
        try:
            getattr(self, f"_send_{kind}")(key, content)
        except Exception as error:
            self._last_error = str(error).splitlines()[0]
            return False
        return True

    def _find(self, key: str) -> str | None:
        if key not in self._run_ids:
            found = self._client.search_runs([self._experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            if not found:
                return None
            self._run_ids[key] = found[0].info.run_id
        return self._run_ids[key]

    def _run_id(self, key: str) -> str:
        run_id = self._find(key)
        if run_id is None:
            raise LookupError(f"the tracking server has no run {key}")
        return run_id

    def _send_start(self, key: str, content: dict[str, Any]) -> None:
        run_id = self._find(key)
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            return
        tags = {KEY_TAG: key, **content["tags"]}
        if content["parent"]:
            tags[_PARENT_TAG] = self._run_id(content["parent"])
        run = self._client.create_run(self._experiment_id, tags=tags, run_name=content["name"])
        self._run_ids[key] = run.info.run_id

    def _send_params(self, key: str, content: dict[str, str]) -> None:
        items = [Param(name, value) for name, value in content.items()]
        for start in range(0, len(items), _BATCH):
            self._client.log_batch(self._run_id(key), params=items[start : start + _BATCH])

    def _send_metrics(self, key: str, content: dict[str, Any]) -> None:
        metrics = [Metric(name, value, content["time"], content["step"]) for name, value in content["values"].items()]
        self._client.log_batch(self._run_id(key), metrics=metrics)

    def _send_tags(self, key: str, content: dict[str, str]) -> None:
        self._client.log_batch(self._run_id(key), tags=[RunTag(name, value) for name, value in content.items()])

    def _send_artifact(self, key: str, content: dict[str, str]) -> None:
        if Path(content["path"]).exists():
            self._client.log_artifact(self._run_id(key), content["path"])

    def _send_end(self, key: str, content: dict[str, str]) -> None:
        self._client.set_terminated(self._run_id(key), status=content["status"])


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.name: value``."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def _text(value: Any) -> str:
    return str(value)[:_VALUE_LENGTH]
