"""Addresses of tracking servers: as they may be seen, why one was not reached, and the page of an experiment."""

from __future__ import annotations

import os
import shlex
from typing import Any
from urllib.parse import quote, unquote

from crh_tune.ground import first_line
from crh_tune.settings.base import SettingsError

_REASON_LENGTH = 300
UI_PORT = 5000
VIEW = "crh_tune"
"""The name of the view of runs that every experiment is made with."""
_SHORTEST_SECRET = 4
"""A shorter one is not taken out of a line word by word: it would leave nothing to read."""


def shown(uri: str) -> str:
    """The address of a tracking server as it may be seen: without user, password and query."""
    scheme, mark, rest = uri.partition("://")
    if scheme.startswith("sqlite"):  # a file's path, which may hold any character
        return uri
    return f"{scheme}{mark}{rest.rpartition('@')[2].partition('?')[0]}"


def _secrets(uri: str) -> list[str]:
    """What no one is to see: of the address, and of what MLflow reads beside it; the longest first."""
    _, _, rest = uri.partition("://")
    query = rest.rpartition("@")[2].partition("?")[2]
    user_and_password = rest.rpartition("@")[0]
    password = user_and_password.partition(":")[2]
    others = [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")]
    found = {user_and_password, query, password, unquote(password), *others}
    return sorted((each for each in found if len(each) >= _SHORTEST_SECRET), key=len, reverse=True)


def _lowest_os_error(error: BaseException) -> OSError | None:
    """What the operating system said, at the bottom of an error of the network; None where it said nothing."""
    below: Any = error
    lowest = None
    while isinstance(below, BaseException):
        lowest = (
            below if type(below).__module__ in ("builtins", "socket", "ssl") and isinstance(below, OSError) else lowest
        )
        below = below.__cause__ or below.__context__ or getattr(below, "reason", None)
    return lowest


def reason(error: Exception, uri: str) -> str:
    """Why the tracking server was not reached, in one short line without a password."""
    short = uri.startswith("sqlite") or isinstance(error, SettingsError)
    unreached = None if short else _lowest_os_error(error)
    if unreached is not None:  # what MLflow, requests and urllib3 make of it are three lines of their own insides
        known = unreached.strerror if unreached.filename is None else ""  # a file that cannot be read is named
        said = known or str(unreached) or type(unreached).__name__
    else:
        said = first_line(error)
    said = said.replace(uri, shown(uri))  # as MLflow says it
    if not uri.startswith("sqlite"):
        for secret in _secrets(uri):
            said = said.replace(f"{secret}@", "").replace(secret, "***")
    return said[:_REASON_LENGTH]


def ui_command(uri: str, program: str = "mlflow") -> str:
    """The command that opens MLflow's pages for this machine alone; for a server that is there, where it is."""
    if uri.startswith(("http:", "https:")):
        return f"MLflow runs at {uri}"
    database = shlex.quote(uri) if uri.startswith("sqlite:") else '"$MLFLOW_TRACKING_URI"'
    return f"{program} ui --host 127.0.0.1 --port {UI_PORT} --backend-store-uri {database}"


def pages_at(uri: str) -> str:
    """Where MLflow's pages are once ``ui_command`` runs."""
    return uri.rstrip("/") if uri.startswith(("http:", "https:")) else f"http://127.0.0.1:{UI_PORT}"


def runs_page(server: str, experiment_id: str, metric: str, mode: str) -> str:
    """The page of an experiment's training runs, the best first: MLflow opens it on empty traces otherwise."""
    if not experiment_id:
        return f"{server}/#/experiments"
    page = f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    if metric == "val/map" and mode == "max":
        return f"{page}&viewStateShareKey={VIEW}"  # which sorts too; an order beside it would put the view off
    return (
        f"{page}&orderByKey={quote(f'metrics.`{metric}`', safe='')}&orderByAsc={'true' if mode == 'min' else 'false'}"
    )
