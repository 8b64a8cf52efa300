"""How datasets are called and ordered in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable

_TITLES = {"stanford_cars": "Stanford Cars", "nabirds": "NABirds", "coco": "MS COCO"}


def dataset_title(dataset: str) -> str:
    """The paper's name of a dataset; any other dataset's name as it is."""
    return _TITLES.get(dataset, dataset)


def ordered_datasets(datasets: Iterable[str]) -> list[str]:
    """The distinct datasets: the paper's in its order, then the others as they come."""
    distinct = list(dict.fromkeys(datasets))
    return [name for name in _TITLES if name in distinct] + [name for name in distinct if name not in _TITLES]
