"""Makes the pictures of docs/mlflow.md: MLflow's pages of a search that has ended, in headless Chromium.

    python docs/make_mlflow_images.py crh_runs digit-pairs-001

The search of the pictures is that of ``make search``.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from make_images import write_small
from mlflow import MlflowClient
from PIL import Image

from crh_tune.tuning.address import runs_page
from crh_tune.tuning.tracking import KEY_TAG, default_tracking_uri

IMAGES = Path(__file__).parent / "images"
_ASSISTANT = 485
"""The width of MLflow's panel on the right, which is cut off, in pixels."""
_PATH = (500, 168, 1290, 194)
"""Where the page of an artifact shows its path: left, top, right, bottom."""
_START_SECONDS = 120


def main() -> None:
    """Start MLflow's pages on the storage's database, and keep pictures of its runs, the search's run and its model."""
    parser = argparse.ArgumentParser(description="Pictures of MLflow's pages of a search.")
    parser.add_argument("storage", type=Path)
    parser.add_argument("search")
    arguments = parser.parse_args()
    uri = default_tracking_uri(arguments.storage)
    client = MlflowClient(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    [parent] = client.search_runs(experiments, f"tags.`{KEY_TAG}` = '{arguments.search}'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--backend-store-uri", uri], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address)
        experiment = parent.info.experiment_id
        _keep("mlflow_runs.png", runs_page(address, experiment, "val/map", "max"), 1500 + _ASSISTANT, 950)
        run, mode = f"{address}/#/experiments/{experiment}/runs/{parent.info.run_id}", "?workflowType=machine_learning"
        _keep("mlflow_search.png", f"{run}{mode}", 1560 + _ASSISTANT, 1080)
        _keep("mlflow_figures.png", f"{run}/artifacts/figures/history.png{mode}", 1300 + _ASSISTANT, 760)
        name = client.get_experiment(experiment).name
        _keep("mlflow_model.png", f"{address}/#/models/{name}{mode}", 1300 + _ASSISTANT, 620)
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _keep(name: str, page: str, width: int, height: int) -> None:
    """A picture of a page, without the panel on its right and the folder of artifacts on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / name
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", f"--screenshot={taken}", f"--window-size={width},{height}",
             "--virtual-time-budget=15000", f"--user-data-dir={folder}/profile", page],
            check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        picture = Image.open(taken).convert("RGB").crop((0, 0, width - _ASSISTANT, height))
        if name == "mlflow_figures.png":
            picture.paste("white", _PATH)
        write_small(picture, IMAGES / name)


if __name__ == "__main__":
    main()
