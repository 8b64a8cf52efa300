"""MLflow: one parent run a search, one child run for each of its training runs.

What is to be logged is first written, in order, to an outbox file beside the search; threads send it. So training
never waits for the tracking server, a server that is away costs nothing, and what could not be sent stays on disk.
Sending something twice changes nothing: a run is found again by its key before it is created.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

import crh_tune
from crh_tune.settings.base import SettingsError
from crh_tune.tuning.address import VIEW, reason, shown
from crh_tune.tuning.champion import Champion, send_champion
from crh_tune.tuning.outbox import FILES, LANES, SENT_FILE, WORDS, Sent, lane_of, line_of, whole_lines
from crh_tune.tuning.record import OUTBOX_FILE

KEY_TAG, RUN_TAG = "crh_tune.key", "crh_tune.run"
"""Tags of every run: what it is found again by, and its name in the search's folder; the page's own name changes."""
NOTE_TAG = "mlflow.note.content"
"""What MLflow shows as the description of a run or experiment, in Markdown."""
# Without a kind, the UI takes an experiment for one of language-model traces.
_VIEW = {
    "searchFilter": "",
    "orderByKey": "metrics.`val/map`",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
    "selectedColumns": [
        *(f"metrics.`{name}`" for name in ("val/map", "test/map")),
        *(f"params.`{name}`" for name in ("M", "d", "lambda", "margin", "interval")),
        "tags.`crh_tune.stage`",
    ],
}
"""A view of an experiment's runs, as MLflow's pages share one: the best first, with what was searched."""
_EXPERIMENT_TAGS = {
    f"mlflow.sharedViewState.{VIEW}": json.dumps(_VIEW),
    "mlflow.experimentKind": "custom_model_development",
    NOTE_TAG: "Searches of crh_tune. Each search is a parent run: its description is the leaderboard, with the winner "
    "and how to resume, export and open it. Below it is a run for every trial, named by its value and its setting. "
    "`tags.crh_tune.stage` tells `search`, `confirm`, `test` and `baseline` apart.",
}
_PARENT_TAG = "mlflow.parentRunId"
PATIENCE, SHORT_PATIENCE = 30.0, 3.0
"""Seconds: the end of a search waits so long for the next entry to be sent, an interrupted one for all of them."""
_BATCH = 100
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
_REQUEST_SECONDS = 5.0
_VALUE_LENGTH = 500


def default_tracking_uri(storage: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or an SQLite file in the storage folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def open_client(uri: str) -> MlflowClient:
    """A client that waits for seconds, not minutes, and prints nothing. Raises what MLflow does on no address."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # a line for every run that ends, with the password
    for name in ("mlflow.store.db.utils", "mlflow.pyfunc", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def connect(uri: str, experiment: str, storage: Path) -> str:
    """Reach the tracking server and create the experiment where it is missing; returns its id.

    Raises SettingsError when the server does not answer, or the experiment was deleted.
    """
    storage.mkdir(parents=True, exist_ok=True)
    with answering(uri), (storage / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that make a new SQLite database break each other's
        client = open_client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            artifacts = (storage.resolve() / "mlflow_artifacts").as_uri() if uri.startswith("sqlite:") else None
            return str(client.create_experiment(experiment, artifact_location=artifacts, tags=_EXPERIMENT_TAGS))
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise SettingsError(
            f"MLFLOW_TRACKING_URI: the experiment {experiment} at {shown(uri)} was deleted: restore it, or give the "
            "search another name"
        )
    with answering(uri):  # an experiment of an earlier version
        for name, value in _EXPERIMENT_TAGS.items():
            if name not in found.tags:
                client.set_experiment_tag(found.experiment_id, name, value)
    return str(found.experiment_id)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Within it the tracking server is asked; raises SettingsError, without its password, when it does not answer."""
    try:
        yield
    except Exception as error:
        raise SettingsError(
            f"MLFLOW_TRACKING_URI: the tracking server at {shown(uri)} does not answer: {reason(error, uri)}"
        ) from None


class Tracker:
    """Logs runs by key through the outbox. One process writes a search's outbox at a time. Raises SettingsError.

    A key's parameters, and its metrics of a step, are kept once, however often a run is gone on with.
    """

    def __init__(self, uri: str, experiment: str, storage: Path, folder: Path) -> None:
        with answering(uri):  # what is no address at all
            self._client = open_client(uri)
        self._connect = lambda: connect(uri, experiment, storage)
        self._uri = uri
        self._experiment_id = ""
        self._outbox = folder / OUTBOX_FILE
        lines = whole_lines(self._outbox)
        self._sent = Sent(folder / SENT_FILE, uri, len(lines))
        self._run_ids: dict[str, str] = {}
        self._logged: set[tuple[str, int]] = set()
        self._described: set[str] = set()
        self._seen_data: set[str] = set()
        self._open: set[str] = set()
        self._ended: set[str] = set()
        self._models: set[tuple[str, str]] = set()
        self._newest: dict[tuple[str, str], int] = {}
        """The last line that has each file of a run: those before it need not be sent."""
        self._wake = threading.Condition()
        self._closing, self._until = False, math.inf
        self._errors = dict.fromkeys(LANES, "")
        self._uploading, self._last_sent = False, -math.inf
        self._lines, self._unsent = 0, dict.fromkeys(LANES, 0)
        for line in lines:
            self._note(*json.loads(line))
        self._threads = [
            threading.Thread(target=self._send_all, args=(lane,), daemon=True, name=f"mlflow-{lane}") for lane in LANES
        ]
        for thread in self._threads:
            thread.start()

    def start_run(self, key: str, name: str, parent: str | None = None, tags: dict[str, str] | None = None) -> None:
        """Open the run of this key, or reopen the one there is."""
        self._append(
            "start", key, {"name": name, "parent": parent, "tags": {RUN_TAG: name, **source(), **(tags or {})}}
        )

    def rename(self, key: str, name: str) -> None:
        """Give a run another name on MLflow's pages."""
        self._append("name", key, {"name": name})

    def dataset(self, key: str, name: str, digest: str, origin: str, context: str) -> None:
        """Say what data a run sees: its ``digest``, where it comes from, and what part of it. Kept once."""
        if key not in self._seen_data:
            self._append("dataset", key, {"name": name, "digest": digest, "origin": origin, "context": context})

    def params(self, key: str, params: dict[str, Any]) -> None:
        if key not in self._described:
            self._append("params", key, {name: _text(value) for name, value in params.items()})

    def metrics(self, key: str, metrics: dict[str, float], step: int) -> None:
        if (key, step) not in self._logged:
            self._append("metrics", key, {"values": metrics, "step": step, "time": int(time.time() * 1000)})

    def tags(self, key: str, tags: dict[str, str]) -> None:
        self._append("tags", key, tags)

    def describe_experiment(self, key: str, said: str) -> None:
        """Say at the top of the experiment's page, in Markdown, how its newest search stands."""
        self._append("about", key, {"said": said})

    def artifact(self, key: str, path: Path, below: str = "") -> None:
        """Keep a file that stays where it is until it is sent, in the folder ``below``; it replaces one of its name.

        It is sent as it is then, and once where it was given several times.
        """
        self._append("artifact", key, {"path": str(path.resolve()), "below": below})

    def model(self, key: str, champion: Champion) -> None:
        """Log the model of a run and register it, once its export's folder is whole. Kept once for each encoder."""
        if (key, champion.encoder) not in self._models:
            self._append("model", key, asdict(champion))

    def end_run(self, key: str, status: str) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        self._append("end", key, {"status": status, "time": int(time.time() * 1000)})

    def has_ended(self, key: str) -> bool:
        """Whether the run of this key was closed, and not opened again since."""
        return key in self._ended

    def is_open(self, key: str) -> bool:
        """Whether the run of this key was started, and not closed since."""
        return key in self._open

    def close(self, patience: float) -> int:
        """Wait up to ``patience`` seconds for the outbox to empty; returns how many entries are unsent."""
        with self._wake:
            self._closing, self._until = True, time.monotonic() + patience
            self._wake.notify_all()
        for thread in self._threads:
            thread.join(max(self._until - time.monotonic(), 0))
        return self.unsent()

    def drain(self, patience: float, hurried: Callable[[], bool] = lambda: False) -> int:
        """Wait until the outbox is empty, or nothing was sent for so many seconds; returns how many are unsent.

        A file that is on its way is waited for, however large it is: a server that says nothing ends that by itself.
        Once it is ``hurried``, a few seconds are left for all.
        """
        begun = time.monotonic()
        while not self._all_past() and not hurried():
            if not self._uploading and time.monotonic() - max(begun, self._last_sent) >= patience:
                break
            time.sleep(0.05)
        if hurried():
            return self.close(SHORT_PATIENCE)
        self.close(0)
        for thread in self._threads:
            thread.join(_REQUEST_SECONDS)  # what is under way now
        return self.unsent()

    def _all_past(self) -> bool:
        """Whether each lane is past every line, those of the other lane too."""
        return min(self._sent.past.values()) == self._lines

    def unsent(self) -> int:
        return sum(self._unsent.values())

    @property
    def sent(self) -> int:
        """How many entries the tracking server has, of this and earlier processes."""
        return self._lines - self.unsent()

    @property
    def experiment_id(self) -> str:
        """The experiment's id; empty where the tracking server was not reached."""
        return self._experiment_id

    @property
    def last_error(self) -> str:
        """Why the last sending failed; empty where it did not."""
        return next(filter(None, self._errors.values()), "")

    def _append(self, kind: str, key: str, content: dict[str, Any]) -> None:
        # a path that is no UTF-8 cannot be sent, and would hold up all that comes after it
        line = line_of(kind, key, content).encode("utf-8", "replace")
        with self._wake:
            with self._outbox.open("ab") as outbox:
                outbox.write(line)
                outbox.flush()
                os.fsync(outbox.fileno())
            self._note(*json.loads(line))
            self._wake.notify_all()

    def _note(self, kind: str, key: str, content: dict[str, Any]) -> None:
        lane = lane_of(kind)
        self._unsent[lane] += self._lines >= self._sent.past[lane]
        if kind == "artifact":
            self._newest[key, content["path"]] = self._lines
        elif kind == "model":
            self._models.add((key, content["encoder"]))
        self._lines += 1
        if kind == "metrics":
            self._logged.add((key, content["step"]))
        elif kind == "params":
            self._described.add(key)
        elif kind == "dataset":
            self._seen_data.add(key)
        elif kind == "start":
            self._open.add(key)
            self._ended.discard(key)
        elif kind == "end":
            self._open.discard(key)
            self._ended.add(key)

    def _send_all(self, lane: str) -> None:
        """Send what this lane has, line by line, until the tracker is closed."""
        with self._outbox.open(encoding="utf-8") as outbox:
            for _ in range(self._sent.past[lane]):
                outbox.readline()
            while time.monotonic() <= self._until:  # whoever holds the folder next sends the rest, and not both at once
                with self._wake:
                    line = outbox.readline() if self._may_go_on(lane) else ""
                    if not line:
                        if self._closing and self._sent.past[lane] == self._lines:
                            return
                        self._wake.wait(None if self._until == math.inf else max(self._until - time.monotonic(), 0))
                        continue
                mine = lane_of(json.loads(line)[0]) == lane
                if mine and not self._sent_at_last(lane, line):
                    return
                with self._wake:
                    self._unsent[lane] -= mine
                    self._sent.move(lane)
                    self._wake.notify_all()

    def _may_go_on(self, lane: str) -> bool:
        """Whether the next line is this lane's to look at: a file waits for the words before it."""
        return lane == WORDS or self._sent.past[FILES] < self._sent.past[WORDS]

    def _sent_at_last(self, lane: str, line: str) -> bool:
        """Send a line, again and again where that fails; whether it was sent before the tracker was closed."""
        wait = _FIRST_WAIT
        while not self._try_send(lane, line):
            if time.monotonic() > self._until:
                return False
            if self._closing:
                time.sleep(_FIRST_WAIT)
            else:
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        return True

    def _try_send(self, lane: str, line: str) -> bool:
        kind, key, content = json.loads(line)
        if lane == FILES:
            self._uploading = True
        try:
            self._experiment_id = self._experiment_id or self._connect()
            getattr(self, f"_send_{kind}")(key, content)
            self._last_sent = time.monotonic()  # while it still counts as uploading: `drain` looks at both
        except Exception as error:
            self._errors[lane] = reason(error, self._uri)
            return self._was_deleted(key, error)
        finally:
            if lane == FILES:
                self._uploading = False
        self._errors[lane] = ""
        return True

    def _was_deleted(self, key: str, error: Exception) -> bool:
        """Whether someone has deleted the run there: then nothing of it can be sent, nor is it wanted."""
        refused = isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"
        try:
            known = self._run_ids.get(key)  # one that was made late is deleted, too
            deleted = self._search(key, ViewType.DELETED_ONLY) if refused or isinstance(error, LookupError) else []
            return any(known in (None, run.info.run_id) for run in deleted)
        except Exception:  # it cannot be asked now
            return False

    def _search(self, key: str, view: int = ViewType.ACTIVE_ONLY) -> list[Any]:
        """The runs of this key, the newest first."""
        return self._client.search_runs([self._experiment_id], f"tags.`{KEY_TAG}` = '{key}'", view)

    def _find(self, key: str) -> str | None:
        if key not in self._run_ids:
            found = self._search(key)
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

    def _send_name(self, key: str, content: dict[str, str]) -> None:
        self._client.update_run(self._run_id(key), name=content["name"])

    def _send_dataset(self, key: str, content: dict[str, str]) -> None:
        where = json.dumps({"uri": content["origin"]})
        seen = Dataset(content["name"], content["digest"], "local", where, profile=json.dumps(content))
        context = InputTag("mlflow.data.context", content["context"])
        self._client.log_inputs(self._run_id(key), datasets=[DatasetInput(seen, [context])])

    def _send_params(self, key: str, content: dict[str, str]) -> None:
        items = [Param(name, value) for name, value in content.items()]
        for start in range(0, len(items), _BATCH):
            self._client.log_batch(self._run_id(key), params=items[start : start + _BATCH])

    def _send_metrics(self, key: str, content: dict[str, Any]) -> None:
        metrics = [Metric(name, value, content["time"], content["step"]) for name, value in content["values"].items()]
        self._client.log_batch(self._run_id(key), metrics=metrics)

    def _send_tags(self, key: str, content: dict[str, str]) -> None:
        self._client.log_batch(self._run_id(key), tags=[RunTag(name, value) for name, value in content.items()])

    def _send_about(self, key: str, content: dict[str, str]) -> None:
        note = f"{content['said']}\n\n{_EXPERIMENT_TAGS[NOTE_TAG]}"
        self._client.set_experiment_tag(self._experiment_id, NOTE_TAG, note)

    def _send_artifact(self, key: str, content: dict[str, str]) -> None:
        newest = self._newest[key, content["path"]] == self._sent.past[FILES]
        if newest and Path(content["path"]).exists():
            self._client.log_artifact(self._run_id(key), content["path"], content.get("below") or None)

    def _send_model(self, key: str, content: dict[str, Any]) -> None:
        send_champion(self._client, self._experiment_id, self._run_id(key), key, Champion(**content))

    def _send_end(self, key: str, content: dict[str, Any]) -> None:
        run_id = self._run_id(key)
        self._client.set_terminated(run_id, status=content["status"], end_time=content["time"])
        for run in self._search(key):  # made by a request that was given up, and answered later
            if run.info.run_id != run_id and run.info.status == "RUNNING" and not run.data.metrics:
                self._client.delete_run(run.info.run_id)


@cache
def source() -> dict[str, str]:
    """The tags that fill MLflow's column Source: this package, and its commit where it runs from a repository."""
    tags = {"mlflow.source.name": f"crh_tune {crh_tune.__version__}", "mlflow.source.type": "LOCAL"}
    root = Path(crh_tune.__file__).parent.parent
    if (root / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            asked = ["git", "-C", str(root), "rev-parse", "HEAD"]
            found = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=5)
            tags["mlflow.source.git.commit"] = found.stdout.strip()
    return tags


def _text(value: Any) -> str:
    return str(value)[:_VALUE_LENGTH]
