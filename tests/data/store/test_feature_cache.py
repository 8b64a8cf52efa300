"""The run-once cache of features: what is computed, what is not computed again, and what disturbs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crh_tune.data.listing import DataError
from crh_tune.data.store.decode import MEGAPIXELS, STRETCHED, BadImage, Fit, decode
from crh_tune.data.store.feature_cache import BLOCK, FeatureCache, Recipe, open_features
from crh_tune.data.store.sources import FileImages
from crh_tune.data.store.stored import digest_of

DRIVER = """
import json, sys, time
from pathlib import Path
import numpy as np
from crh_tune.data.store.decode import Fit
from crh_tune.data.store.feature_cache import Recipe, open_features
from crh_tune.data.store.sources import FileImages

computed = 0
def start():
    def compute(images):
        global computed
        computed += len(images)
        time.sleep(float(sys.argv[2]))
        return images.reshape(len(images), -1, 3).mean(axis=1, dtype=np.float64).astype(np.float32)
    return compute

names = sorted(path.name for path in Path(sys.argv[1]).iterdir())
print("ready", flush=True)
sys.stdin.readline()
recipe = Recipe("mean colour", 3, 8, Fit(), start)
cache = open_features(FileImages(Path(sys.argv[1]), names), recipe, lambda line: None)
print(json.dumps([computed, cache.rows(np.arange(len(names)))[:].tolist()]))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photos(folder: Path, count: int, first: int = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(first)
    names = [f"{first + n:04d}.png" for n in range(count)]
    for name in names:
        Image.fromarray(generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / name)
    return names


@dataclass
class Colours:
    """Computes the mean colour of the image's left half, and counts; its mirror image has another."""

    key: str = "left half"
    mirrored: bool = False
    fit: Fit = STRETCHED
    started: int = 0
    computed: int = 0
    said: list[str] = field(default_factory=list)

    def start(self):
        self.started += 1

        def compute(images):
            self.computed += len(images)
            return colours(images)

        return compute

    def open(self, folder: Path, names: list[str]) -> FeatureCache:
        recipe = Recipe(self.key, 3, 8, self.fit, self.start, self.mirrored)
        return open_features(FileImages(folder, names), recipe, self.said.append)


def colours(images: np.ndarray) -> np.ndarray:
    return images[:, :, :4].mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


def expected(folder: Path, names: list[str], fit: Fit = STRETCHED) -> np.ndarray:
    return np.stack([decode((folder / name).read_bytes(), 8, fit) for name in names])


def all_rows(found: FeatureCache) -> np.ndarray:
    return found.rows(np.arange(len(found.digests)))[:]


def test_features_are_computed_once_and_added_photos_cost_only_theirs(tmp_path, cache):
    names, work = photos(tmp_path / "d", 40), Colours()
    found = work.open(tmp_path / "d", names)
    np.testing.assert_array_equal(all_rows(found), colours(expected(tmp_path / "d", names)))
    assert work.said == [f"computing the features of 40 images, once, into {next(cache.glob('features-*'))}"]
    names += photos(tmp_path / "d", 5, 40)
    (tmp_path / "d" / "twin.png").write_bytes((tmp_path / "d" / names[3]).read_bytes())
    names.append("twin.png")
    again = Colours()
    found = again.open(tmp_path / "d", names[::-1])
    assert again.computed == 5
    np.testing.assert_array_equal(all_rows(found), colours(expected(tmp_path / "d", names[::-1])))
    files = [next(cache.glob(f"features-*/{name}")) for name in ("features.f32", "blocks.jsonl", "checked.json")]
    before = [file.stat().st_mtime_ns for file in files]
    last = Colours()
    mapped = last.open(tmp_path / "d", names).array
    assert isinstance(mapped, np.memmap)
    assert mapped.mode == "r"
    assert (last.started, last.said) == (0, [])
    assert [file.stat().st_mtime_ns for file in files] == before  # and so they need not be checked again


def test_features_that_change_while_others_are_computed_are_not_taken_for_checked(tmp_path, cache):
    names = photos(tmp_path / "d", 8)
    Colours().open(tmp_path / "d", names)
    (file,) = cache.glob("features-*/features.f32")

    class Disturbed(Colours):
        def start(self):
            with file.open("r+b") as features:
                features.write(b"\xff")
            return super().start()

    names += photos(tmp_path / "d", 2, 8)
    Disturbed().open(tmp_path / "d", names)
    work = Colours()
    found = work.open(tmp_path / "d", names)
    assert work.said[0].startswith("1 block of features in ")
    np.testing.assert_array_equal(all_rows(found), colours(expected(tmp_path / "d", names)))


def test_another_limit_of_pixels_has_features_of_its_own(tmp_path):
    names = photos(tmp_path / "d", 4)
    recipe = Recipe("key", 3, 8, STRETCHED, Colours().start, False)
    for megapixels, bad in ((1e-6, 4), (MEGAPIXELS, 0)):
        found = open_features(FileImages(tmp_path / "d", names, None, megapixels), recipe, print)
        assert len(found.bad) == bad


def test_images_of_more_than_8_bits_are_scaled_by_one_range_for_all(tmp_path, cache):
    def deep(number: int, highest: int) -> str:
        values = np.linspace(0, highest, 120).reshape(10, 12).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "d" / f"deep{number}.png")
        return f"deep{number}.png"

    names, work = photos(tmp_path / "d", 3), Colours()
    names += [deep(number, 1000 * (number + 1)) for number in range(4)]
    found = work.open(tmp_path / "d", names)
    wanted = [decode((tmp_path / "d" / name).read_bytes(), 8, span=(0, 4000)) for name in names]
    np.testing.assert_array_equal(all_rows(found), colours(np.stack(wanted)))
    assert found.span == found.rows(np.arange(2)).span == (0, 4000)
    (memo,) = cache.glob("signatures/*.span")
    for damage in (memo.read_bytes()[:-1], memo.read_bytes()[:-20] + bytes(20), memo.read_bytes()):
        memo.write_bytes(damage)
        again = Colours()
        assert again.open(tmp_path / "d", names).span == (0, 4000)
        assert again.started == 0
    names.append(deep(4, 8000))
    wider = Colours()
    assert wider.open(tmp_path / "d", names).span == (0, 8000)
    assert wider.computed == 8


def test_another_backbone_has_features_of_its_own(tmp_path):
    names = photos(tmp_path / "d", 4)
    Colours().open(tmp_path / "d", names)
    other = Colours(key="other")
    other.open(tmp_path / "d", names)
    assert other.computed == 4


def test_images_are_fitted_as_the_recipe_says(tmp_path):
    names, fit = photos(tmp_path / "d", 3), Fit(0.5, "bicubic")
    found = Colours(fit=fit).open(tmp_path / "d", names)
    wanted = expected(tmp_path / "d", names, fit)
    np.testing.assert_array_equal(all_rows(found), colours(wanted))
    assert (wanted != expected(tmp_path / "d", names)).any()


def test_mirror_images_have_features_too_and_are_drawn_by_row(tmp_path):
    names = photos(tmp_path / "d", 6)
    Colours().open(tmp_path / "d", names[:2])
    found = Colours(mirrored=True).open(tmp_path / "d", names)
    inputs, pixels = found.rows(np.arange(6)), expected(tmp_path / "d", names)
    flipped = np.array([True, False, True, False, False, True])
    wanted = np.where(flipped[:, None], colours(pixels[:, :, ::-1]), colours(pixels))
    np.testing.assert_array_equal(inputs.turned(flipped)[np.arange(6)], wanted)
    np.testing.assert_array_equal(inputs.pick(np.array([5, 0])).turned(np.array([True, True]))[:], wanted[[5, 0]])


def test_mirror_images_that_are_wanted_later_cost_only_theirs(tmp_path):
    names, plain, both = photos(tmp_path / "d", 4), Colours(), Colours(mirrored=True)
    plain.open(tmp_path / "d", names[:3])
    found = both.open(tmp_path / "d", names)
    assert (plain.computed, both.computed) == (3, 4 + 1)
    pixels = expected(tmp_path / "d", names)
    every = np.arange(4)
    np.testing.assert_array_equal(found.rows(every)[:], colours(pixels))
    np.testing.assert_array_equal(found.rows(every).turned(every >= 0)[:], colours(pixels[:, :, ::-1]))
    assert Colours(mirrored=True).open(tmp_path / "d", names).array.shape == (8, 3)


def test_files_that_are_no_images_are_named_and_not_tried_again(tmp_path):
    names = photos(tmp_path / "d", 3)
    (tmp_path / "d" / "bad.png").write_bytes(b"no image")
    work = Colours()
    for _ in range(2):
        assert work.open(tmp_path / "d", [*names, "bad.png"]).bad == {3: "not an image"}
    assert work.computed == 3
    (tmp_path / "d" / "0002.png").unlink()
    with pytest.raises(DataError, match=r"0002.png: No such file"):
        work.open(tmp_path / "d", names)


def test_a_file_that_changes_while_it_is_read_is_said(tmp_path):
    class Changing(FileImages):
        def open(self, row, content, size, fit=STRETCHED):
            raise BadImage("is read twice")

        def read(self, row):
            return os.urandom(8)

    names = photos(tmp_path / "d", 1)
    with pytest.raises(DataError, match="changed while it was read"):
        open_features(Changing(tmp_path / "d", names), Recipe("k", 3, 8, Fit(), Colours().start), print)


@pytest.mark.parametrize("damage", ["flipped", "cut", "line", "gone"])
def test_damaged_features_are_noticed_and_computed_anew(tmp_path, cache, damage):
    names = photos(tmp_path / "d", 5)
    first = all_rows(Colours().open(tmp_path / "d", names)).copy()
    folder = next(cache.glob("features-*"))
    data, blocks = folder / "features.f32", folder / "blocks.jsonl"
    if damage == "flipped":
        content = bytearray(data.read_bytes())
        content[7] ^= 1
        data.write_bytes(content)
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:-3])
    elif damage == "line":
        blocks.write_bytes(blocks.read_bytes()[:50])
    else:
        data.unlink()
    work = Colours()
    np.testing.assert_array_equal(all_rows(work.open(tmp_path / "d", names)), first)
    assert work.computed == 5
    assert work.said[0] == f"1 block of features in {folder} is damaged: computing it anew"
    quiet = Colours()
    np.testing.assert_array_equal(all_rows(quiet.open(tmp_path / "d", names)), first)
    assert (quiet.computed, quiet.said) == (0, [])


def test_the_fingerprint_is_of_files_and_backbone_not_of_floats(tmp_path, cache):
    names = photos(tmp_path / "d", 4)
    rows = np.arange(4)
    one = Colours().open(tmp_path / "d", names).rows(rows)
    other_floats = FeatureCache(one.key, one.array + 1, one.rows, None, one.digests, {}, np.array([])).rows(rows)
    assert digest_of(one) == digest_of(other_floats)
    assert digest_of(one) != digest_of(Colours(key="other").open(tmp_path / "d", names).rows(rows))
    assert digest_of(one) != digest_of(one.pick(rows[::-1]))


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_killed_pass_loses_one_block_at_most(tmp_path, cache):
    count = 3 * BLOCK
    photos(tmp_path / "d", count)
    killed = start(tmp_path / "d", 0.05)
    go(killed)
    while not (blocks := next(iter(cache.glob("features-*/blocks.jsonl")), None)) or not blocks.read_bytes():
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = sum(len(json.loads(line)["digests"]) // 32 for line in blocks.read_text().split("\n")[:-1])
    assert done >= BLOCK
    again = start(tmp_path / "d", 0)
    computed, rows = json.loads(again.communicate("\n")[0])
    assert computed == count - done
    names = sorted(path.name for path in (tmp_path / "d").iterdir())
    wanted = expected(tmp_path / "d", names).reshape(count, -1, 3).mean(axis=1).astype(np.float32)
    np.testing.assert_array_equal(np.array(rows, np.float32), wanted)


def test_two_processes_at_once_compute_every_image_once(tmp_path):
    photos(tmp_path / "d", 2 * BLOCK)
    both = [start(tmp_path / "d", 0.02) for _ in range(2)]
    for process in both:
        go(process)
    answers = [json.loads(process.communicate()[0]) for process in both]
    assert sorted(computed for computed, _ in answers) == [0, 2 * BLOCK]
    assert answers[0][1] == answers[1][1]


def test_images_of_a_single_grey_value_are_known_again(tmp_path):
    names = photos(tmp_path / "d", 3)
    Image.new("L", (9, 9), 7).save(tmp_path / "d" / names[1])
    Image.new("RGB", (9, 9), "red").save(tmp_path / "d" / names[2])
    for _ in range(2):
        assert Colours().open(tmp_path / "d", names).plain.tolist() == [1]
