"""Images in one folder a class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from pydantic import Field

from crh_tune.data.listing import IMAGE_SUFFIXES, OTHER_SUFFIXES, DataError, Listing, Part
from crh_tune.data.options import ImageOptions
from crh_tune.data.readers.files import data_folder, is_file, printable, problem, stratified_draw, too_few_classes
from crh_tune.errors import counted

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
_LEFT_BY_PROGRAMS = frozenset({"__MACOSX", "@eaDir"})


class FolderOptions(ImageOptions):
    """``train/<class>/`` and ``test/<class>/``, or ``<class>/`` alone, of which queries are drawn class by class.

    ``training/`` stands in for ``train/``, and ``testing/``, ``val/``, ``valid/`` or ``validation/`` for ``test/``, in
    any case of the letters.
    """

    test_fraction: float = Field(0.2, gt=0, lt=1)
    """The share of each class that is drawn as queries, where there is no folder of them."""
    seed: int = Field(0, ge=0)
    """What queries are drawn with."""


def list_folder(options: FolderOptions) -> Listing:
    """List class folders. Raises DataError where there are none."""
    root = data_folder(options)
    listing = list_train_and_test(root)
    return listing if listing is not None else _list_and_draw(root, options.test_fraction, options.seed)


def list_train_and_test(root: Path) -> Listing | None:
    """List ``train/<class>/`` and ``test/<class>/`` (or what stands in for them); None where one is not there."""
    trains, tests = (_called(root, names) for names in (TRAIN_FOLDERS, TEST_FOLDERS))
    if not trains or not tests:
        return None
    train, test = (_first_with_classes(folders) for folders in (trains, tests))
    problems: list[str] = []
    unread: list[str] = []
    links: list[str] = []
    trained, asked = (_images_by_class(root, root / below, problems, unread, links) for below in (train, test))
    problems += [line for below, found in ((train, trained), (test, asked)) for line in _nested(root, below, found)]
    problems += [
        problem(root / test / name, f"has no counterpart in {root / train}: add training images, or remove it")
        for name in asked
        if name not in trained
    ]
    names = tuple(sorted({*trained, *asked}))
    problems += too_few_classes(root, names)
    left = ", ".join(f"{entry.name}/" for entry in (*trains, *tests) if entry.name not in (train, test))
    layout = f"class folders under {train}/ and {test}/" + (f" ({left} left out)" if left else "")
    parts = _part(names, trained), _part(names, asked)
    notes = _notes(unread, links, _deeper({train: trained, test: asked}))
    return Listing(layout, root, names, *parts, problems=tuple(problems), notes=notes)


def _called(root: Path, names: Sequence[str]) -> list[os.DirEntry[str]]:
    """The folders that have one of these names in any case of the letters, in the order of the names."""
    folders = [entry for entry in _scan(root) if entry.name.lower() in names and _is_folder(entry)]
    return sorted(folders, key=lambda entry: names.index(entry.name.lower()))


def _first_with_classes(folders: Sequence[os.DirEntry[str]]) -> str:
    """The name of the first that has folders in it: ``test/`` may hold images without labels; else, of the first."""
    return next((entry.name for entry in folders if _has_folders(entry)), folders[0].name)


def _has_folders(entry: os.DirEntry[str]) -> bool:
    return any(_is_folder(inner) for inner in _scan(entry))


def _list_and_draw(root: Path, fraction: float, seed: int) -> Listing:
    _refuse_half_a_split(root)
    problems: list[str] = []
    unread: list[str] = []
    links: list[str] = []
    found = _images_by_class(root, root, problems, unread, links)
    problems += _nested(root, "", found)
    if not any(found.values()):
        raise DataError(problem(root, f"no images in the folders below; images end in {_suffixes()}"))
    names = tuple(sorted(found))
    whole = _part(names, found)
    drawn = stratified_draw(whole.labels, fraction, seed)
    parts = _rows(whole, ~drawn), _rows(whole, drawn)
    problems += too_few_classes(root, names)
    if not len(parts[1]):
        problems.append(problem(root, "no class has two images: one to train on and one to ask for are needed"))
    layout = "class folders, test queries drawn"
    notes = _notes(unread, links, _deeper({"": found}))
    return Listing(layout, root, names, *parts, problems=tuple(problems), notes=notes)


def _refuse_half_a_split(root: Path) -> None:
    """Raises DataError where there is no folder, or those there are parts of a split rather than classes."""
    folders = [entry.name for entry in _scan(root) if _is_folder(entry)]
    alone = next((entry.name for entry in _called(root, TRAIN_FOLDERS) if _has_folders(entry)), None)
    if alone is None and any(name.lower() not in (*TRAIN_FOLDERS, *TEST_FOLDERS) for name in folders):
        return
    wanted = ", ".join(f"{name}/" for name in TEST_FOLDERS)
    found = f" (only {', '.join(f'{name}/' for name in folders)} there)" if folders else ""
    if alone is not None:
        found = f" ({alone}/ is; to draw test queries from it, set path to {root / alone})"
    raise DataError(problem(root, f"neither train/ with one of {wanted} nor one folder a class is there{found}"))


def _images_by_class(
    root: Path, folder: Path, problems: list[str], unread: list[str], links: list[str]
) -> dict[str, list[str]]:
    """The images of every class folder in ``folder``, as sorted paths relative to ``root``.

    Links to a folder that holds the data folder are left out: ``links`` gets them.
    """
    back = [entry for entry in _scan(folder) if entry.is_symlink() and _holds(entry.path, folder)]
    links += [os.path.relpath(entry.path, root) for entry in back]
    entries = [entry for entry in _scan(folder) if entry.name not in {link.name for link in back}]
    loose = [entry.name for entry in entries if _is_image(entry.name) and not _is_folder(entry)]
    if loose:
        count = f"{len(loose)} image{'' if len(loose) == 1 else 's'} outside of any class folder"
        problems.append(problem(folder, f"{count}, such as {loose[0]}: move them into the folder of their class"))
    return {entry.name: _images(root, Path(entry.path), problems, unread) for entry in entries if _is_folder(entry)}


def _images(root: Path, folder: Path, problems: list[str], unread: list[str]) -> list[str]:
    """The images of one class folder, as sorted paths relative to ``root``; ``unread`` gets those of other kinds."""
    try:
        files = list(_files(folder, root))
    except DataError as error:
        problems.append(str(error))
        return []
    images = [entry for entry in files if _is_image(entry.name)]
    if not files:
        problems.append(problem(folder, "is empty: put the images of the class into it, or remove it"))
    elif not images:
        count = f"holds {len(files)} file{'' if len(files) == 1 else 's'} but no image"
        problems.append(problem(folder, f"{count}; images end in {_suffixes()}"))
    for entry in images:
        if not is_file(entry):
            problems.append(problem(entry.path, "is a link to a file that does not exist: restore it, or remove it"))
        elif not _is_utf8(entry.path):
            problems.append(problem(entry.path, "has a name that is not UTF-8: rename it"))
    unread += [os.path.relpath(entry.path, root) for entry in files if _suffix(entry.name) in OTHER_SUFFIXES]
    return sorted(Path(entry.path).relative_to(root).as_posix() for entry in images)


def _nested(root: Path, part: str, found: Mapping[str, list[str]]) -> list[str]:
    """A problem where what should be class folders hold folders and no images: the classes are perhaps in these."""
    images = [path for paths in found.values() for path in paths]
    depth = len(PurePosixPath(part).parts) + 2
    if not images or any(len(PurePosixPath(path).parts) == depth for path in images):
        return []
    above = Counter(PurePosixPath(path).parent.parent for path in images)
    whole = {folder.parent for folder in above if folder.name.lower() in TRAIN_FOLDERS and len(folder.parts) > 1}
    tests = {folder.parent for folder in above if folder.name.lower() in TEST_FOLDERS}
    likely = sorted(whole & tests) or [folder for folder, _ in above.most_common(2)]
    shown = " or ".join(str(root / folder) for folder in likely)
    what = "the folders here hold folders and no images: if their folders are the classes"
    otherwise = "otherwise move the images up into the folder of their class"
    return [problem(root / part, f"{what}, set path to what holds these, such as {shown}; {otherwise}")]


def _deeper(parts: Mapping[str, Mapping[str, list[str]]]) -> str | None:
    """A line on the class folders, by the folder they are in, that hold folders and no images, where others do."""
    found = [
        f"{PurePosixPath(part, name)}/"
        for part, classes in parts.items()
        for name, paths in classes.items()
        if paths and not any(len(PurePosixPath(path).parts) == len(PurePosixPath(part).parts) + 2 for path in paths)
    ]
    if not found or len(found) == sum(map(len, parts.values())):
        return None
    several = f"{counted(len(found), 'class folder holds', 'class folders hold')} folders and no images"
    return printable(f"{several}, and what is below is one class: {', '.join(found[:3])}{', ...' * (len(found) > 3)}")


def _holds(path: str, folder: str | Path) -> bool:
    """Whether a path, its links followed, is a folder or one above it."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path))


def _notes(unread: Sequence[str], links: Sequence[str], deeper: str | None) -> tuple[str, ...]:
    """A line on links left out, one on folders in class folders, and one on images of kinds that are not read."""
    back = f"links back to the data folder are left out: {', '.join(sorted(links)[:3])}"
    return (*([printable(back)] if links else []), *([deeper] if deeper else []), *_unread(unread))


def _unread(unread: Sequence[str]) -> tuple[str, ...]:
    if not unread:
        return ()
    first: dict[str, str] = {}
    for path in sorted(unread):
        first.setdefault(_suffix(path), path)
    shown = ", ".join(f"{suffix} ({path})" for suffix, path in sorted(first.items()))
    count = f"{len(unread)} image{'' if len(unread) == 1 else 's'} of kinds that are not read"
    return (printable(f"{count}: {shown}: convert them"),)


def _part(names: tuple[str, ...], found: Mapping[str, list[str]]) -> Part:
    paths = [found.get(name, []) for name in names]
    labels = np.repeat(np.arange(len(names)), [len(images) for images in paths])
    return Part(tuple(path for images in paths for path in images), labels)


def _rows(part: Part, chosen: npt.NDArray[np.bool_]) -> Part:
    return Part(tuple(part.paths[row] for row in np.flatnonzero(chosen)), part.labels[chosen])


def _files(folder: str | Path, root: Path, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry[str]]:
    """All that is below a folder and not a folder; links are followed, but none to what holds the data folder."""
    real = os.path.realpath(folder)
    if real in above or _holds(real, root):  # a link back up: it would never end, or be a class of everything
        return
    for entry in _scan(folder):
        if _is_folder(entry):
            yield from _files(entry.path, root, (*above, real))
        else:
            yield entry


def _scan(folder: str | Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, without what is hidden or left by programs."""
    try:
        with os.scandir(folder) as entries:
            seen = [
                entry for entry in entries if not entry.name.startswith(".") and entry.name not in _LEFT_BY_PROGRAMS
            ]
    except OSError as error:
        raise DataError(problem(os.fspath(folder), f"cannot be read: {error.strerror}")) from None
    return sorted(seen, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """DirEntry knows without asking the disk, but raises for a link to itself."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_image(name: str) -> bool:
    return _suffix(name) in IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))
