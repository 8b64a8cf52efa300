"""Find, train and export binary codes for image retrieval with Center-Reassigned Hashing.

What this package offers to other programs; nothing slow is imported before it is used::

    import crh_tune

    result = crh_tune.run_search("photos", data="photos/", say=print)       # search, confirm, test once, export
    trained = crh_tune.train("settings.yaml", to="model")                   # one setting on all training data
    encoder = crh_tune.load_encoder(result.folder / "export")               # images or features -> packed codes
    index = crh_tune.load_index(result.folder / "export")                   # the packed codes that are searched
    rows, distances = index.search(encoder.encode_files(["new.jpg"]), 10)   # both Q x 10, nearest first

Shapes and units, in all of it: images are N x channels x height x width of uint8, features N x D of floats, labels N
class indices or N x C of 0 and 1, codes of K bits N x W machine words as ``pack_codes`` makes them. Distances are
Hamming distances in bits, mAP lies between 0 and 1.

A mistake in settings or arguments raises ``SettingsError``, unusable files ``DataError`` (both are ValueErrors of one
line), a search without a result ``SearchFailed``, one that was interrupted ``Interrupted`` (a KeyboardInterrupt).

``crh_tune.search`` is the script that ``ray submit`` copies to a cluster; the function is ``run_search``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_MODULES = {
    "crh_tune.data.check": ("Findings", "check_data"),
    "crh_tune.errors": ("DataError", "Interrupted", "SearchFailed"),
    "crh_tune.export.bundle": ("Encoder", "Index", "load_encoder", "load_index"),
    "crh_tune.export.of_search": ("export_search",),
    "crh_tune.retrieval.average_precision": (
        "LabelledCodes",
        "RankingProtocol",
        "average_precisions",
        "mean_average_precision",
    ),
    "crh_tune.retrieval.packing": ("hamming_distances", "pack_codes"),
    "crh_tune.search": ("resume_search", "run_search"),
    "crh_tune.settings.base": ("SettingsError",),
    "crh_tune.trained": ("Trained", "train"),
    "crh_tune.tuning.results": ("SearchResult",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

if TYPE_CHECKING:
    from crh_tune.data.check import Findings, check_data
    from crh_tune.errors import DataError, Interrupted, SearchFailed
    from crh_tune.export.bundle import Encoder, Index, load_encoder, load_index
    from crh_tune.export.of_search import export_search
    from crh_tune.retrieval.average_precision import (
        LabelledCodes,
        RankingProtocol,
        average_precisions,
        mean_average_precision,
    )
    from crh_tune.retrieval.packing import hamming_distances, pack_codes
    from crh_tune.search import resume_search, run_search
    from crh_tune.settings.base import SettingsError
    from crh_tune.trained import Trained, train
    from crh_tune.tuning.results import SearchResult

__all__ = [
    "DataError",
    "Encoder",
    "Findings",
    "Index",
    "Interrupted",
    "LabelledCodes",
    "RankingProtocol",
    "SearchFailed",
    "SearchResult",
    "SettingsError",
    "Trained",
    "average_precisions",
    "check_data",
    "export_search",
    "hamming_distances",
    "load_encoder",
    "load_index",
    "mean_average_precision",
    "pack_codes",
    "resume_search",
    "run_search",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, the first time it is."""
    if name not in _WHERE:
        raise AttributeError(f"module 'crh_tune' has no attribute {name!r}")
    found = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
