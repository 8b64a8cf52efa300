"""Made-up runs of studies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.reporting.made_search import feature_data, image_data, make_search


def a_run(row: str, value: float, **others: Any) -> dict[str, Any]:
    defaults = {
        "dataset": "stanford_cars",
        "bits": 16,
        "seed": 0,
        "pcc": math.nan,
        "d_min": math.nan,
        "d_avg": math.nan,
    }
    settings = {"update_interval": 5.0, "early_epochs": 20.0, "codebook_size": 392.0, "head_dim": 16.0}
    return {"row": row, "map": value, **defaults, **settings, **others}


@pytest.fixture
def ablation() -> pd.DataFrame:
    """CRH 3 times, CRH-M twice, CRH-U once at 16 bits; CRH alone at 32."""
    runs = [a_run("CRH", value, seed=seed) for seed, value in enumerate((0.81, 0.82, 0.83))]
    runs += [a_run("CRH-M", value, seed=seed) for seed, value in enumerate((0.80, 0.78))]
    runs += [a_run("CRH-U", 0.75), a_run("CRH-U", math.nan, seed=1), a_run("CRH", 0.9, bits=32)]
    return pd.DataFrame(runs)


@pytest.fixture(scope="session")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A storage folder: a finished search on features, a second one on the same, one on photos that is half done."""
    folder = tmp_path_factory.mktemp("searches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRH_TUNE_CACHE", str(folder / "cache"))
        storage = folder / "storage"
        features = feature_data(folder / "features.npz")
        make_search(storage, features)
        make_search(storage, features, "again")
        make_search(storage, image_data(folder / "photos"), "photos", finished=False)
        yield storage
