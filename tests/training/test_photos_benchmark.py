"""What ``benchmarks/photos.py`` holds out of class folders, and what it takes from its file of finished runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.photos import Run, every_fifth_held_out, kept, measured
from crh_tune.data.datasets import open_dataset
from crh_tune.data.listing import DataError
from crh_tune.data.readers.folder import FolderOptions, list_folder
from crh_tune.data.splits import Split, final_split

COUNTS = {"ant": 4, "bee": 5, "wasp fly": 23}


def photos(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir()
        for number in reversed(range(count)):
            (root / name / f"{number:02}.jpg").touch()
    return root


def test_every_fifth_file_by_name_of_each_class_is_a_query_and_no_file_is_on_both_sides(tmp_path: Path) -> None:
    photos(tmp_path, COUNTS)
    for seed in (0, 1):  # whatever queries the reader has drawn
        drawn = list_folder(FolderOptions(path=tmp_path, seed=seed))
        held = every_fifth_held_out(drawn)
        assert sorted(held.queries.paths) == [
            "bee/04.jpg", "wasp fly/04.jpg", "wasp fly/09.jpg", "wasp fly/14.jpg", "wasp fly/19.jpg",
        ]  # fmt: skip
        on_disk = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg")}
        assert set(held.train.paths) == on_disk - set(held.queries.paths)
        assert len(held.train) + len(held.queries) == len(on_disk)
        for part in (held.train, held.queries):
            named = [held.class_names[label] for label in part.labels]
            assert named == [path.partition("/")[0] for path in part.paths]


def test_a_random_fifth_has_as_many_of_each_class_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    listing = list_folder(FolderOptions(path=photos(tmp_path, COUNTS)))
    by_name, one, again, other = (every_fifth_held_out(listing, draw=draw) for draw in (None, 3, 3, 4))
    assert np.array_equal(np.bincount(one.queries.labels), np.bincount(by_name.queries.labels))
    assert sorted([*one.train.paths, *one.queries.paths]) == sorted([*listing.train.paths, *listing.queries.paths])
    assert one.queries.paths == again.queries.paths
    assert len({by_name.queries.paths, one.queries.paths, other.queries.paths}) == 3


def test_folders_without_five_photos_of_a_class_are_refused(tmp_path: Path) -> None:
    listing = list_folder(FolderOptions(path=photos(tmp_path, {"ant": 4, "bee": 3})))
    with pytest.raises(DataError, match="no class has five photos"):
        every_fifth_held_out(listing)


def flat_digits() -> Split:
    split = final_split(open_dataset("digits", {}))
    rows = [split.train, split.queries]
    train, queries = (type(each)(each.inputs[:].reshape(len(each), -1), each.labels) for each in rows)
    return Split(split.stage, split.class_names, train, queries, None, None)


def test_finished_runs_are_taken_from_the_file_unless_settings_differ(tmp_path: Path) -> None:
    split, keep = flat_digits(), tmp_path / "runs.jsonl"
    first, second = Run("pca_itq", 16, 0), Run("float_cosine", 0, 0)
    found = measured(split, {"epochs": 1}, [first], keep)
    with keep.open("a") as file:
        file.write('{"same": {"split')  # a process was killed while it wrote
    again = measured(split, {"epochs": 1}, [first, second], keep)
    assert again[first] == found[first]  # the seconds too: it was not run again
    same = {"split": split.fingerprint, "epochs": 1}
    assert dict(kept(keep, same)) == again
    assert not dict(kept(keep, {**same, "epochs": 2}))
    assert 0.3 < again[first].map < 1
    assert 0.3 < again[second].map < 1
