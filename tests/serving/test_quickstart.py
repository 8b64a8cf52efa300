"""docs/quickstart.ipynb runs from top to bottom, and finds what it says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # crh-tune lies there
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=600,
        iopub_timeout=120,
        raise_on_iopub_timeout=True,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    with_this_python(client)
    client.execute()
    text = "\n".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "encoder.onnx (onnxruntime" in text
    assert "1797 items indexed in quickstart/index" in text
    assert "codes of 32 bits for PostgreSQL" in text
    assert (tmp_path / "query.png").exists()


def with_this_python(client) -> None:
    """Kernels are installed for whichever Python installed them: this test's is wanted."""
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
