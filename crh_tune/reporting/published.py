"""The numbers that the paper prints, as data: one CSV file of ``published/`` a table."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import pandas as pd

Value = Literal["map", "pcc"]
PUBLISHED_VALUES: dict[str, Value] = {
    "table1": "map",
    "table2": "map",
    "table3": "map",
    "table4": "map",
    "table5": "pcc",
}
"""What each published table holds: mAP in %, or PCC."""

_COLUMNS = {"row": str, "dataset": str, "bits": int, "mean": float, "std": float}


def published(study: str) -> pd.DataFrame:
    """The published table of a study ("table1" to "table5"), one row a cell; empty for any other study.

    Columns: row (label as printed), dataset, bits, mean and std (mAP in %, or PCC in table5; std NaN where none
    is printed). Tables 1 and 3 disagree on OrthoHash; both are kept as printed. The frame is the caller's own copy.
    """
    if study not in PUBLISHED_VALUES:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _COLUMNS.items()})
    return _read(study).copy()


@cache
def _read(study: str) -> pd.DataFrame:
    path = resources.files("crh_tune.reporting") / "published" / f"{study}.csv"
    with path.open(encoding="utf-8") as file:
        return pd.read_csv(file, comment="#", dtype=_COLUMNS, keep_default_na=False, na_values={"std": [""]})
