"""The datasets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crh_tune.data.images import OpenStore, decoded, feature_dataset, image_dataset
from crh_tune.data.listing import DataError
from crh_tune.data.options import ImageOptions, Options
from crh_tune.data.readers import cifar, coco, digits, features, folder, lists, nabirds, stanford_cars
from crh_tune.data.splits import Dataset
from crh_tune.data.store.cache import Say


@dataclass(frozen=True)
class Source:
    """A named dataset: the options it takes, and what opens it, or finds its files first.

    ``find`` lists what lies on disk (``Listing``, ``ArrayListing`` or ``FeatureListing``); a dataset that is built, not
    read, has ``build`` instead.
    """

    options: type[Options]
    find: Callable[[Any], Any] | None = None
    build: Callable[[Any], Dataset] | None = None


DATASETS: dict[str, Source] = {
    "folder": Source(folder.FolderOptions, folder.list_folder),
    "lists": Source(lists.ListsOptions, lists.list_lists),
    "features": Source(features.FeaturesOptions, features.list_features),
    "stanford_cars": Source(stanford_cars.StanfordCarsOptions, stanford_cars.list_stanford_cars),
    "nabirds": Source(nabirds.NABirdsOptions, nabirds.list_nabirds),
    "coco": Source(coco.CocoOptions, coco.list_coco),
    "cifar10": Source(cifar.CifarOptions, cifar.list_cifar10),
    "cifar100": Source(cifar.CifarOptions, cifar.list_cifar100),
    "digits": Source(digits.DigitsOptions, build=digits.digits),
    "digit_pairs": Source(digits.DigitPairsOptions, build=digits.digit_pairs),
    "digit_sets": Source(digits.DigitSetsOptions, build=digits.digit_sets),
}


def _silent(line: str) -> None:
    """Says nothing."""


def open_dataset(
    name: str, options: Mapping[str, Any], say: Say | None = None, store: OpenStore | None = None
) -> Dataset:
    """Open a dataset; ``say`` hears what takes time, and what should be known of the data.

    ``store`` keeps its images (None: their pixels, decoded once).

    Raises KeyError for an unknown name, pydantic's ValidationError for bad options, DataError for files that cannot be
    used as they are, or where a store is given and the dataset has no image files.
    """
    source = DATASETS[name]
    chosen = source.options(**options)
    if store is not None and not isinstance(chosen, ImageOptions):
        raise DataError(f"trial.freeze: dataset {name} has no image files that a pretrained backbone could see")
    if source.build is not None:
        return source.build(chosen)
    assert source.find is not None
    listing = source.find(chosen)
    if isinstance(listing, features.FeatureListing):
        assert isinstance(chosen, features.FeaturesOptions)
        return feature_dataset(name, listing, chosen, say)
    assert isinstance(chosen, ImageOptions)
    return image_dataset(name, listing, chosen, say or _silent, store or decoded)
