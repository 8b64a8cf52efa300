"""NABirds: images, labels and the split in text files, and a hierarchy that says how alike classes are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crh_tune.data.listing import DataError, Listing, Part, inside
from crh_tune.data.options import ImageOptions
from crh_tune.data.readers.files import data_folder, files_in, missing_files, problem, read_text, too_few_classes
from crh_tune.data.readers.lists import untrained_classes

_FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


class NABirdsOptions(ImageOptions):
    """``path`` holds images/, images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, hierarchy.txt."""


def list_nabirds(options: NABirdsOptions) -> Listing:
    """List NABirds: labels are ranks of the class ids in use; the hierarchy gives the reference, Wu-Palmer similarity.

    Raises DataError where a text file other than hierarchy.txt is not there.
    """
    root = data_folder(options)
    files = files_in(root, _FILES)
    problems: list[str] = []
    images, labels, split, titles = (_read_pairs(file, problems) for file in files)
    used = sorted({label for label in labels.values() if label.isdecimal()}, key=int)
    rank = {label: number for number, label in enumerate(used)}
    sides: dict[str, list[tuple[str, int]]] = {"1": [], "0": []}
    for image, name in images.items():
        label, side = labels.get(image, "(none)"), split.get(image, "(none)")
        try:
            path = inside(root, f"images/{name}")
        except DataError as error:
            problems.append(problem(files[0], str(error)))
            continue
        if label not in rank:
            problems.append(problem(files[1], f"image {image} has the label {label}: want the number of a class"))
        elif side not in sides:
            problems.append(problem(files[2], f"image {image} has the side {side}: want 1 (train) or 0 (test)"))
        else:
            sides[side].append((path, rank[label]))
    train, queries = (
        Part(tuple(path for path, _ in rows), np.array([c for _, c in rows], dtype=np.int64)) for rows in sides.values()
    )
    names = _class_names(files[3], used, titles, problems)
    problems += too_few_classes(root, names)
    problems += untrained_classes(files[1], names, train.labels, queries.labels)
    gone = missing_files(root, train.paths + queries.paths)
    problems += [
        problem(root / path, "does not exist, but images.txt lists it")
        for path in train.paths + queries.paths
        if path in gone
    ]
    hierarchy = root / "hierarchy.txt"
    reference = _wu_palmer(hierarchy, used, problems) if hierarchy.is_file() else None
    return Listing("text files of NABirds", root, names, train, queries, reference=reference, problems=tuple(problems))


def _read_pairs(file: Path, problems: list[str]) -> dict[str, str]:
    """The rows of a file: an id, a blank, and the rest of the line."""
    try:
        lines = read_text(file).split("\n")
    except DataError as error:
        problems.append(str(error))
        return {}
    pairs: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split(maxsplit=1)
        if len(fields) == 1:
            problems.append(problem(f"{file}:{number}", f"{fields[0]!r} stands alone: want two fields"))
        elif fields and pairs.setdefault(fields[0], fields[1].strip()) != fields[1].strip():
            problems.append(problem(f"{file}:{number}", f"{fields[0]} has another row above: want one"))
    return pairs


def _class_names(file: Path, used: Sequence[str], titles: Mapping[str, str], problems: list[str]) -> tuple[str, ...]:
    """The names of the classes in use; those of one name are told apart by their ids."""
    problems += [problem(file, f"class {c} is in use and has no name: add its row") for c in used if c not in titles]
    names = [titles.get(c, c) for c in used]
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({c})" for name, c in zip(names, used, strict=True))


def _wu_palmer(file: Path, used: Sequence[str], problems: list[str]) -> npt.NDArray[np.float64] | None:
    """C x C: 2 depth(lowest common ancestor) / (depth(a) + depth(b)), the root's depth being 1.

    None, and problems, where the rows child, parent make no tree.
    """
    parents = _read_pairs(file, problems)
    lines: list[list[str]] = []
    for c in used:
        line = [c]
        while line[-1] in parents:
            line.append(parents[line[-1]])
            if line[-1] in line[:-1]:
                problems.append(problem(file, f"class {c} is below itself ({' in '.join(line)}): want a tree"))
                return None
        lines.append(line)
    for c, line in zip(used, lines, strict=True):
        if line[-1] != lines[0][-1]:
            ends = f"class {c} ends at {line[-1]}, class {used[0]} at {lines[0][-1]}"
            problems.append(problem(file, f"{ends}: a parent is missing; want one root"))
            return None
    nodes = {node: number for number, node in enumerate({node for line in lines for node in line})}
    above = np.zeros((len(used), len(nodes)))
    for row, line in enumerate(lines):
        above[row, [nodes[node] for node in line]] = 1
    depth = above.sum(axis=1)
    similarity: npt.NDArray[np.float64] = 2 * (above @ above.T) / np.add.outer(depth, depth)
    return similarity
