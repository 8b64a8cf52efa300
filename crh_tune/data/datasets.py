"""The datasets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crh_tune.data.images import OpenStore, decoded, image_dataset
from crh_tune.data.listing import DataError
from crh_tune.data.options import FileOptions, ImageOptions, Options
from crh_tune.data.readers import cifar, coco, digits, features, folder, lists, nabirds, stanford_cars
from crh_tune.data.readers.files import existing_path
from crh_tune.data.splits import Dataset
from crh_tune.data.store.cache import Say


@dataclass(frozen=True)
class Source:
    """A named dataset: the options it takes, and what opens it, or finds its files first.

    ``find`` lists what lies on disk (``Listing``, ``ArrayListing`` or ``FeatureListing``); a dataset that is built, not
    read, has ``build`` instead. ``make`` makes the dataset of a listing that holds no images. ``signs`` are patterns of
    files by which data at a path is told to be of this dataset.
    """

    options: type[Options]
    find: Callable[[Any], Any] | None = None
    build: Callable[[Any], Dataset] | None = None
    make: Callable[[str, Any, Any, Say | None], Dataset] | None = None
    signs: tuple[str, ...] = ()


DATASETS: dict[str, Source] = {
    "folder": Source(folder.FolderOptions, folder.list_folder),
    "features": Source(
        features.FeaturesOptions,
        features.list_features,
        make=features.feature_dataset,
        signs=("features.npy", "train_features.npy"),
    ),
    "stanford_cars": Source(
        stanford_cars.StanfordCarsOptions,
        stanford_cars.list_stanford_cars,
        signs=("cars_*.mat", "devkit/cars_*.mat", "cars_train"),
    ),
    "nabirds": Source(nabirds.NABirdsOptions, nabirds.list_nabirds, signs=("image_class_labels.txt",)),
    "coco": Source(coco.CocoOptions, coco.list_coco, signs=("annotations/instances_*.json",)),
    "cifar10": Source(cifar.CifarOptions, cifar.list_cifar10, signs=("data_batch_1", "cifar-10-batches-py")),
    "cifar100": Source(cifar.CifarOptions, cifar.list_cifar100, signs=("cifar-100-python", "train")),
    "lists": Source(lists.ListsOptions, lists.list_lists, signs=("train.txt",)),
    "digits": Source(digits.DigitsOptions, build=digits.digits),
    "digit_pairs": Source(digits.DigitPairsOptions, build=digits.digit_pairs),
    "digit_sets": Source(digits.DigitSetsOptions, build=digits.digit_sets),
}
"""One row a dataset. Data at a path is of the first whose signs are there."""


def check_path(name: str, options: Mapping[str, Any]) -> None:
    """Raises DataError where a dataset of files has no path, or nothing is there: known before anything slow begins."""
    chosen = DATASETS[name].options(**options)
    if isinstance(chosen, FileOptions):
        existing_path(chosen)


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
    if source.make is not None:
        return source.make(name, listing, chosen, say)
    assert isinstance(chosen, ImageOptions)
    return image_dataset(name, listing, chosen, say or _silent, store or decoded)
