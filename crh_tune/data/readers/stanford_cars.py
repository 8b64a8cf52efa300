"""Stanford Cars in the layouts in which it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crh_tune.data.listing import DataError, Listing, Part, inside
from crh_tune.data.options import ImageOptions
from crh_tune.data.readers.files import data_folder, missing_files, problem, too_few_classes
from crh_tune.data.readers.folder import list_train_and_test
from crh_tune.data.readers.lists import untrained_classes
from crh_tune.data.store.stored import Array
from crh_tune.ground import first_line

_TRAIN = ("devkit/cars_train_annos.mat", "cars_train_annos.mat")
_TEST = (
    "cars_test_annos_withlabels.mat",
    "devkit/cars_test_annoswithlabels.mat",
    "devkit/cars_test_annos_withlabels.mat",
)
_META = ("devkit/cars_meta.mat", "cars_meta.mat")
_ALL = "cars_annos.mat"


class StanfordCarsOptions(ImageOptions):
    """``path`` holds cars_train/ and cars_test/ with the devkit, cars_annos.mat with car_ims/, or class folders."""


def list_stanford_cars(options: StanfordCarsOptions) -> Listing:
    """List Stanford Cars. Raises DataError where none of the three layouts is whole."""
    root = data_folder(options)
    train, test = _there(root, _TRAIN), _there(root, _TEST)
    if train is not None and test is not None:
        return _list_devkit(root, train, test)
    if (root / _ALL).is_file() and (root / "car_ims").is_dir():
        return _list_all(root)
    folders = list_train_and_test(root)
    if folders is not None:
        return folders
    missing = ", and ".join(" or ".join(names) for names in (_TRAIN, _TEST) if _there(root, names) is None)
    if (root / _ALL).is_file():
        found = f"{_ALL} is of car_ims/, which is not there; for cars_train/ and cars_test/ add {missing}"
    elif train is not None or test is not None or (root / "cars_train").is_dir():
        found = f"annotations of cars_train/ and cars_test/ are missing: {missing}"
    else:
        wanted = f"{_TRAIN[0]} with {_TEST[0]}; {_ALL} with car_ims/; class folders under train/ and test/"
        found = f"no layout of Stanford Cars is there; looked for: {wanted}"
    raise DataError(problem(root, found))


def _there(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these files that is there."""
    return next((root / name for name in names if (root / name).is_file()), None)


def _list_devkit(root: Path, train: Path, test: Path) -> Listing:
    problems: list[str] = []
    meta_file = _there(root, _META)
    meta = None if meta_file is None else _read(meta_file, "class_names", problems)
    sides = []
    for file, folder in ((train, "cars_train"), (test, "cars_test")):
        rows = _read(file, "annotations", problems)
        paths, classes = _fields(file, rows, ("fname", "class"), problems)
        below = f"{folder}/{folder}" if (root / folder / folder).is_dir() else folder  # as Kaggle's archive has it
        sides.append((file, [f"{below}/{path}" for path in paths], np.array(classes, dtype=np.int64)))
    return _listing("devkit with cars_train/ and cars_test/", root, meta, sides, problems)


def _list_all(root: Path) -> Listing:
    problems: list[str] = []
    meta = _read(root / _ALL, "class_names", problems)
    rows = _read(root / _ALL, "annotations", problems) if meta is not None else None
    paths, classes, tests = _fields(root / _ALL, rows, ("relative_im_path", "class", "test"), problems)
    sides = []
    for wanted in (0, 1):
        chosen = [row for row, flag in enumerate(tests) if int(flag) == wanted]
        labels = np.array([classes[row] for row in chosen], dtype=np.int64)
        sides.append((root / _ALL, [str(paths[row]) for row in chosen], labels))
    return _listing("cars_annos.mat with car_ims/", root, meta, sides, problems)


def _listing(
    layout: str,
    root: Path,
    meta: Array | None,
    sides: list[tuple[Path, list[str], npt.NDArray[np.int64]]],
    problems: list[str],
) -> Listing:
    """Out of train and test: the annotation file, the paths, and the classes from 1."""
    highest = max(int(classes.max(initial=0)) for _, _, classes in sides)
    names = tuple(str(c + 1) for c in range(highest)) if meta is None else tuple(str(name) for name in meta)
    parts = []
    for file, paths, classes in sides:
        kept = []
        for row, path in enumerate(paths):
            where = f"{file}: annotation {row + 1} ({path})"
            if not 1 <= classes[row] <= len(names):
                problems.append(problem(where, f"has the class {classes[row]}: want 1 to {len(names)}"))
                continue
            try:
                kept.append((inside(root, path), classes[row] - 1))
            except DataError as error:
                problems.append(problem(where, str(error)))
        parts.append(Part(tuple(path for path, _ in kept), np.array([c for _, c in kept], dtype=np.int64)))
    problems += too_few_classes(root, names)
    problems += untrained_classes(sides[1][0], names, parts[0].labels, parts[1].labels)
    listed = [path for part in parts for path in part.paths]
    missing = missing_files(root, listed)
    problems += [problem(root / path, "does not exist, but is annotated") for path in listed if path in missing]
    return Listing(layout, root, names, parts[0], parts[1], problems=tuple(problems))


def _read(file: Path, name: str, problems: list[str]) -> Array | None:
    """A variable of a MATLAB file as an array of one axis; None, and a problem, where it cannot be read."""
    from scipy.io import loadmat  # noqa: PLC0415 - seconds to import

    try:
        return np.atleast_1d(loadmat(file, squeeze_me=True)[name])
    except KeyError:
        problems.append(problem(file, f"has no variable {name}: restore the original file"))
    except Exception as error:  # a damaged file breaks scipy's parser in ways that it does not document
        why = first_line(error)
        problems.append(problem(file, f"cannot be read as a MATLAB file ({why}): restore the original file"))
    return None


def _fields(file: Path, rows: Array | None, names: tuple[str, ...], problems: list[str]) -> list[list[Any]]:
    """The values of each field of annotations; empty, and a problem, where a field is missing."""
    if rows is not None:
        missing = [name for name in names if name not in (rows.dtype.names or ())]
        if not missing:
            return [rows[name].tolist() for name in names]
        problems.append(
            problem(file, f"annotations have no field {' and no '.join(missing)}: restore the original file")
        )
    return [[] for _ in names]
