"""One export of a tiny network of photos, with ``encoder.onnx``, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from crh_tune.export.onnx_file import export_run
from crh_tune.serving import Encoder, load_encoder
from tests.export.test_bundle import image_run


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The export's folder, and that of the photos: train/{a,b,c} and test/{a,b,c}."""
    folder = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRH_TUNE_CACHE", str(folder / "cache"))
        run, root = image_run(folder)
        export_run(folder / "export", run, {}, [])
    return folder / "export", root


@pytest.fixture
def export(exported: tuple[Path, Path]) -> Path:
    return exported[0]


@pytest.fixture
def photos(exported: tuple[Path, Path]) -> Path:
    return exported[1]


@pytest.fixture
def encoder(export: Path) -> Encoder:
    return load_encoder(export)
