"""MS COCO 2014: labels out of the annotations, and the protocol of the paper or a split from list files."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from crh_tune.data.listing import DataError, Listing, Part, inside
from crh_tune.data.options import ImageOptions, LabelOptions
from crh_tune.data.readers.files import data_folder, files_in, missing_files, problem, too_few_classes
from crh_tune.data.readers.lists import Row, labelled, multi_hot_labels, read_rows, row_conflicts, without_label
from crh_tune.data.store.cache import cache_root
from crh_tune.data.store.sources import FileImages
from crh_tune.data.store.stored import Rows
from crh_tune.ground import write_whole

_FORMAT = 1
_PARTS = ("train2014", "val2014")


class CocoOptions(ImageOptions, LabelOptions):
    """``path`` holds train2014/, val2014/ and annotations/instances_train2014.json, instances_val2014.json.

    Queries and training images are drawn from those with a label; the rest is the database. Where ``lists`` says the
    split instead, each row of a list is an image's path and a 0 or 1 for every class, in alphabetical order.
    """

    lists: str | None = None
    """A folder of train.txt, test.txt and database.txt that say the split; null draws one."""
    seed: int = Field(0, ge=0)
    """What queries and training images are drawn with."""
    queries: int = Field(5000, ge=1)
    """How many queries are drawn."""
    train: int = Field(10_000, ge=1)
    """How many training images are drawn."""
    database_contains_train: bool = True
    """Whether the training images can be found too."""


@dataclass(frozen=True)
class _Images:
    """The images with their labels: N paths below the data folder and N x C multi-hot, and the class names."""

    paths: list[str]
    labels: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]

    def part(self, rows: Rows) -> Part:
        return Part(tuple(self.paths[row] for row in rows), self.labels[rows])


def list_coco(options: CocoOptions) -> Listing:
    """List MS COCO. Raises DataError where the annotations, or list files that are named, are not there."""
    root = data_folder(options)
    files = files_in(root, [f"annotations/instances_{part}.json" for part in _PARTS])
    problems: list[str] = []
    images = _known_images(root, files, problems)
    problems += too_few_classes(root / "annotations", images.class_names)
    empty: list[Row] = []
    if options.lists is None:
        parts = _drawn(root, images, options, problems)
        layout = "annotations, split drawn"
    else:
        parts = _listed(root, images, options.lists, options.database_contains_train, problems, empty)
        layout = "annotations, split from list files"
    notes = without_label(empty, options, problems)
    listed = dict.fromkeys(path for part in parts for path in part.paths)
    gone = missing_files(root, listed)
    problems += [problem(root / path, "does not exist, but is annotated") for path in listed if path in gone]
    return Listing(layout, root, images.class_names, *parts, problems=tuple(problems), notes=notes)


def _drawn(root: Path, images: _Images, options: CocoOptions, problems: list[str]) -> tuple[Part, Part, Part]:
    """Train, queries and database out of the images with a label."""
    labelled = np.flatnonzero(images.labels.any(axis=1))
    left = len(labelled) - options.queries - options.train
    if left < (0 if options.database_contains_train else 1):
        wanted = f"{options.queries} queries and {options.train} training images"
        problems.append(problem(root, f"{len(labelled)} images have a label: too few for {wanted} and a database"))
    order = np.random.default_rng(options.seed).permutation(labelled)
    asked, rest = order[: options.queries], order[options.queries :]
    trained, other = rest[: options.train], rest[options.train :]
    kept = rest if options.database_contains_train else other
    return images.part(np.sort(trained)), images.part(np.sort(asked)), images.part(np.sort(kept))


def _listed(
    root: Path, images: _Images, lists: str, with_train: bool, problems: list[str], empty: list[Row]
) -> tuple[Part, Part, Part]:
    """Train, queries and database out of list files; images are told by their file names alone."""
    folder = root / Path(lists).expanduser()
    files = files_in(folder, ["train.txt", "test.txt", "database.txt"])
    row_of = {PurePosixPath(path).name: row for row, path in enumerate(images.paths)}
    listed: list[list[Row]] = []
    for file in files:
        listed.append([])
        for row in read_rows(file, problems):
            known = row_of.get(PurePosixPath(row.path.replace("\\", "/")).name)
            if known is None:
                problems.append(problem(row.where, f"{row.path} is no image of {root / 'annotations'}: leave it out"))
            else:
                listed[-1].append(row._replace(path=images.paths[known]))
    problems += row_conflicts(listed)
    listed = labelled(listed, images.class_names, empty)
    listed, labels, _ = multi_hot_labels(listed, images.class_names, problems, empty)
    train, queries, database = (
        Part(tuple(row.path for row in rows), each) for rows, each in zip(listed, labels, strict=True)
    )
    other = sum(_differing(images, part) for part in (train, queries, database))
    count = len(train) + len(queries) + len(database)
    if 2 * other > count:
        wanted = "want a 0 or 1 for every class in alphabetical order of the names"
        problems.append(problem(folder, f"{other} of {count} rows have other labels than the annotations: {wanted}"))
    return train, queries, _with_train(database, train) if with_train else _less(database, train)


def _differing(images: _Images, part: Part) -> int:
    """How many images have other labels in the part than in the annotations."""
    row_of = {path: row for row, path in enumerate(images.paths)}
    rows = np.array([row_of[path] for path in part.paths], dtype=np.int64)
    return int((images.labels[rows] != part.labels).any(axis=1).sum())


def _with_train(database: Part, train: Part) -> Part:
    there = set(database.paths)
    added = [row for row, path in enumerate(train.paths) if path not in there]
    paths = database.paths + tuple(train.paths[row] for row in added)
    return Part(paths, np.concatenate([database.labels, train.labels[added]]))


def _less(database: Part, train: Part) -> Part:
    trained = set(train.paths)
    kept = [row for row, path in enumerate(database.paths) if path not in trained]
    return Part(tuple(database.paths[row] for row in kept), database.labels[kept])


def _known_images(root: Path, files: list[Path], problems: list[str]) -> _Images:
    """The images of the annotation files; kept beside the image caches, since reading the files takes long."""
    signature = FileImages(root, [str(file.relative_to(root)) for file in files]).signature()
    memo = cache_root() / "annotations" / f"{signature}-{_FORMAT}.npz"
    images = _recalled(memo)
    if images is None:
        images = _read_images(root, files, problems)
        if not problems:
            _keep(images, memo)
    return images


def _keep(images: _Images, memo: Path) -> None:
    """Write the images aside, after the digest of what is written, and rename them."""
    packed = io.BytesIO()
    np.savez_compressed(packed, paths=images.paths, labels=images.labels, class_names=images.class_names)
    content = packed.getvalue()
    with suppress(OSError):  # nothing is lost but time
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memo, lambda aside: aside.write_bytes(hashlib.sha256(content).digest() + content))


def _recalled(memo: Path) -> _Images | None:
    """The images that were kept; None where none were, or not these bytes."""
    try:
        content = memo.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    with np.load(io.BytesIO(content[32:]), allow_pickle=False) as kept:
        return _Images(kept["paths"].tolist(), kept["labels"], tuple(kept["class_names"].tolist()))


def _read_images(root: Path, files: list[Path], problems: list[str]) -> _Images:
    """All images of the annotation files, sorted by path."""
    read = []
    for file, part in zip(files, _PARTS, strict=True):
        try:
            read.append((file, part, *_read(file)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"{type(error).__name__}: {error}"
            problems.append(problem(file, f"cannot be read as annotations of COCO ({why}): restore the original file"))
    names = sorted({name for _, _, categories, _, _ in read for name in categories.values()})
    labels: dict[str, npt.NDArray[np.uint8]] = {}
    for file, part, categories, images, pairs in read:
        hot = {image: np.zeros(len(names), dtype=np.uint8) for image in images}
        for image, category in pairs:
            if image in hot and category in categories:
                hot[image][names.index(categories[category])] = 1
            else:
                named = f"image {image} and category {category}"
                problems.append(problem(file, f"an annotation names {named}, of which one is not in the file"))
        for image, name in images.items():
            try:
                labels[inside(root, f"{part}/{name}")] = hot[image]
            except DataError as error:
                problems.append(problem(file, str(error)))
    paths = sorted(labels)
    return _Images(paths, np.array([labels[path] for path in paths]).reshape(len(paths), len(names)), tuple(names))


def _read(file: Path) -> tuple[dict[int, str], dict[int, str], list[tuple[int, int]]]:
    """Names of categories and images by id, and of each annotation the image's and the category's id."""
    content = json.loads(file.read_bytes(), object_hook=_without_outline)
    return (
        {int(category["id"]): str(category["name"]) for category in content["categories"]},
        {int(image["id"]): str(image["file_name"]) for image in content["images"]},
        [(int(annotation["image_id"]), int(annotation["category_id"])) for annotation in content["annotations"]],
    )


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are nearly all of the files; dropped as they are read, they never fill the memory."""
    entry.pop("segmentation", None)
    return entry
