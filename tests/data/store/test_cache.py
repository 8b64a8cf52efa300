"""The decode-once cache: its pixels, when it is built anew, and what it does when it is disturbed while it is built."""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap
from PIL import Image

from crh_tune.data.listing import DataError
from crh_tune.data.store import cache as cache_module
from crh_tune.data.store.cache import ImageCache, _open_array, _reserve, cache_root, open_cache
from crh_tune.data.store.checked import file_states, is_checked, set_checked
from crh_tune.data.store.decode import BadImage
from crh_tune.data.store.sources import ArrayImages, FileImages

BLOCK = 64
DRIVER = """
import hashlib, json, sys
from pathlib import Path
from crh_tune.data.store.cache import open_cache
from crh_tune.data.store.sources import FileImages

class Held(FileImages):
    opened = []
    def open(self, row, content, size):
        self.opened.append(row)
        if len(self.opened) == int(sys.argv[3]):
            print("held", flush=True)
            sys.stdin.readline()
        return super().open(row, content, size)

said = []
names = sorted(path.name for path in Path(sys.argv[1]).iterdir())
print("ready", flush=True)
sys.stdin.readline()
cache = open_cache(Held(Path(sys.argv[1]), names), int(sys.argv[2]), said.append)
pixels = hashlib.sha256(cache.images.tobytes() + cache.thumbnails.tobytes() + cache.moments.tobytes()).hexdigest()
print(json.dumps([len(Held.opened), pixels, said]))
"""
MEMORY = """
import resource, sys
import numpy as np
from crh_tune.data.store.stored import StoredRows

def private(kind="RssAnon"):
    return int(next(line for line in open("/proc/self/status") if line.startswith(kind)).split()[1]) / 1024

array = np.load(sys.argv[1], mmap_mode="r")
stored = StoredRows(array, np.arange(len(array)))
limit = int(private("VmData") + 20) * 2**20  # what is allocated for a moment only runs into it
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
order, total, before, peak = np.random.default_rng(0).permutation(len(array)), 0, private(), 0
for rows in np.array_split(order, len(array) // 100):
    total += int(stored[rows].sum(dtype=np.int64))
    peak = max(peak, private() - before)
print(peak, total)
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass(frozen=True)
class Counted(FileImages):
    """Image files that count how often they are decoded."""

    opened: list[int] = field(default_factory=list)

    def open(self, row: int, content: bytes, size: int) -> Image.Image:
        self.opened.append(self.number(row))
        return super().open(row, content, size)

    def number(self, row: int) -> int:
        """Which image a row of a part is."""
        return int(Path(self.names[row]).stem)


def pixels_of(count: int, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def written(folder: Path, images: np.ndarray, suffix: str = "png") -> Counted:
    """The images as files ``000.png`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03}.{suffix}" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    return Counted(folder, names)


def again(source: Counted, folder: Path | None = None) -> Counted:
    return Counted(folder or source.root, source.names)


def opened(source: FileImages | ArrayImages, size: int = 8) -> tuple[ImageCache, list[str]]:
    said: list[str] = []
    return open_cache(source, size, said.append), said


def is_right(cache: ImageCache, images: np.ndarray) -> bool:
    """Whether a cache of images of the same size holds exactly these."""
    values = images.astype(np.int64)
    moments = np.stack([values.sum(axis=(1, 2)), (values**2).sum(axis=(1, 2))], axis=2)
    kinds = [cache.images.dtype == np.uint8, cache.thumbnails.dtype == np.uint8, cache.moments.dtype == np.int64]
    same = [np.array_equal(cache.images, images), np.array_equal(cache.thumbnails, images)]
    return all(kinds) and all(same) and np.array_equal(cache.moments, moments) and cache.bad == {}


def replace_content(path: Path, content: bytes) -> None:
    """Overwrite a file; its time of change looks as before."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def flip(path: Path, place: int, bits: int = 0xFF) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    replace_content(path, bytes(content))


def driver(folder: Path, size: int = 8, held_at: int = 0) -> subprocess.Popen[str]:
    """A process that waits for a line, then opens the cache of a folder's images; before one of them it waits again."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), str(size), str(held_at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def held(process: subprocess.Popen[str]) -> None:
    """Wait until a process waits before the image at which it is held."""
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"


def killed(source: Counted, root: Path, blocks: int) -> list[dict]:
    """Kill a process when it has decoded so many blocks; the lines that its part has by then."""
    process = driver(source.root, held_at=blocks * BLOCK + 1)
    go(process)
    held(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (progress,) = root.glob("*.part/progress.jsonl")
    return [json.loads(line) for line in progress.read_text().split("\n")[:-1]]


def rows_of(blocks: list[int], count: int) -> list[int]:
    return [row for block in sorted(blocks) for row in range(block * BLOCK, min((block + 1) * BLOCK, count))]


def test_what_an_older_decoder_wrote_is_decoded_again(tmp_path, monkeypatch):
    source = written(tmp_path / "d", pixels_of(3))
    before = opened(source)[0].folder
    monkeypatch.setattr("crh_tune.data.store.cache.DECODER", "another")
    newer = again(source)
    assert opened(newer)[0].folder != before
    assert sorted(newer.opened) == [0, 1, 2]


@pytest.mark.parametrize("size", [8, 20, 32])
def test_small_images_are_kept_as_they_are_and_are_their_own_thumbnails(tmp_path, root, size):
    images = pixels_of(150, size)
    source = written(tmp_path / "data", images)
    cache, said = opened(source, size)
    assert is_right(cache, images)
    assert cache.folder.parent == root
    assert said == [f"decoding 150 images to {size} x {size} pixels, once, into {cache.folder}"]
    assert sorted(source.opened) == list(range(150))
    assert not list(root.glob("*.part"))


def test_thumbnails_have_32_pixels_and_average_what_they_stand_for(tmp_path):
    images = pixels_of(5, 64)
    cache, _ = opened(written(tmp_path / "data", images), 64)
    assert np.array_equal(cache.images, images)
    assert cache.thumbnails.shape == (5, 32, 32, 3)
    means = images.reshape(5, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(cache.thumbnails - means).max() <= 0.5


@pytest.mark.parametrize("size", [12, 48, 33])
def test_other_sizes_are_stretched_and_summed_up_as_they_are_kept(tmp_path, size):
    images = pixels_of(7, 40)
    cache, _ = opened(written(tmp_path / "data", images), size)
    stretched = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    expected = np.stack([np.asarray(image) for image in stretched])
    small = [image if size <= 32 else image.resize((32, 32), Image.Resampling.BOX) for image in stretched]
    assert np.array_equal(cache.images, expected)
    assert np.array_equal(cache.thumbnails, np.stack([np.asarray(image) for image in small]))
    values = expected.astype(np.float64)
    assert np.array_equal(cache.moments[..., 0], values.sum(axis=(1, 2)))
    assert np.array_equal(cache.moments[..., 1], (values**2).sum(axis=(1, 2)))
    assert cache.moments.dtype == np.int64


def test_the_moments_of_large_white_images_do_not_overflow(tmp_path):
    cache, _ = opened(written(tmp_path / "data", np.full((2, 600, 600, 3), 255, dtype=np.uint8)), 600)
    assert cache.moments.tolist() == [[[600 * 600 * 255, 600 * 600 * 255**2]] * 3] * 2


def test_the_arrays_are_memory_maps_that_cannot_be_written(tmp_path):
    cache, _ = opened(written(tmp_path / "data", pixels_of(3)))
    for array in (cache.images, cache.thumbnails, cache.moments):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_rows_are_read_with_the_channels_first(tmp_path):
    images = pixels_of(9)
    cache, _ = opened(written(tmp_path / "data", images))
    inputs = cache.rows(np.array([7, 2, 5, 0]))
    assert (len(inputs), inputs.shape, inputs.ndim, inputs.dtype) == (4, (4, 3, 8, 8), 4, np.uint8)
    assert np.array_equal(inputs[:], images[[7, 2, 5, 0]].transpose(0, 3, 1, 2))
    assert np.array_equal(inputs[np.array([3, 3, 1])], images[[0, 0, 2]].transpose(0, 3, 1, 2))
    assert np.array_equal(inputs.pick(np.array([1, 0]))[:], images[[2, 7]].transpose(0, 3, 1, 2))


def test_opening_again_decodes_and_says_nothing(tmp_path):
    images = pixels_of(70)
    source = written(tmp_path / "data", images)
    first, _ = opened(source)
    other = again(source)
    second, said = opened(other)
    assert (other.opened, said, second.folder) == ([], [], first.folder)
    assert is_right(second, images)


def test_a_restarted_machine_checks_once_and_decodes_nothing(tmp_path):
    images = pixels_of(5)
    source = written(tmp_path / "data", images)
    cache, _ = opened(source)
    checked = json.loads((cache.folder / "checked.json").read_text())
    ((node, states),) = checked.items()
    (cache.folder / "checked.json").write_text(json.dumps({node: ["another boot", *states[1:]]}))
    other = again(source)
    assert is_right(opened(other)[0], images)
    assert other.opened == []
    assert json.loads((cache.folder / "checked.json").read_text()) == checked


def test_a_change_after_the_checksums_were_computed_is_seen(tmp_path, monkeypatch):
    images = pixels_of(70)
    source = written(tmp_path / "data", images)
    real, blocks = cache_module._checksum, []

    def then_changed(arrays, block, bad):
        blocks.append(real(arrays, block, bad))
        if len(blocks) == 2:  # the last one
            flip(Path(arrays[0].filename), -1)
        return blocks[-1]

    monkeypatch.setattr(cache_module, "_checksum", then_changed)
    opened(source)
    assert len(blocks) == 2
    cache, said = opened(again(source))
    assert said[0] == f"the image cache {cache.folder} is damaged: building it anew"
    assert is_right(cache, images)


def test_nodes_that_share_a_cache_check_it_once_each(tmp_path, monkeypatch):
    names = ["files"]
    (tmp_path / "files").write_text("content")
    states = file_states(tmp_path, names)
    for node, boot in (("a", "1"), ("b", "2")):
        monkeypatch.setattr(platform, "node", lambda node=node: node)
        assert not is_checked(tmp_path, [boot, *states[1:]])
        set_checked(tmp_path, [boot, *states[1:]])
    for node, boot in (("a", "1"), ("b", "2")):
        monkeypatch.setattr(platform, "node", lambda node=node: node)
        assert is_checked(tmp_path, [boot, *states[1:]])
        assert not is_checked(tmp_path, ["3", *states[1:]])


def test_changed_content_of_the_same_length_and_time_is_seen(tmp_path):
    images = pixels_of(70)
    source = written(tmp_path / "data", images, "ppm")
    first, _ = opened(source)
    changed = images.copy()
    changed[66] = 255 - changed[66]
    time.sleep(0.02)
    file = io.BytesIO()
    Image.fromarray(changed[66]).save(file, "PPM")
    replace_content(source.root / "066.ppm", file.getvalue())
    second, _ = opened(again(source))
    assert is_right(second, changed)
    assert second.folder != first.folder
    assert is_right(first, images)


def test_every_size_and_every_order_has_its_own_cache(tmp_path):
    images = pixels_of(5)
    source = written(tmp_path / "data", images)
    folders = {opened(again(source), size)[0].folder for size in (8, 9, 16)}
    turned, _ = opened(Counted(source.root, source.names[::-1]))
    fewer, _ = opened(Counted(source.root, source.names[:4]))
    assert len({*folders, turned.folder, fewer.folder}) == 5
    assert is_right(turned, images[::-1])
    assert is_right(fewer, images[:4])
    same = again(source)
    assert is_right(opened(same)[0], images)
    assert same.opened == []


def test_a_copy_elsewhere_or_under_other_names_finds_the_same_cache(tmp_path):
    images = pixels_of(70)
    source = written(tmp_path / "data", images)
    first, _ = opened(source)
    shutil.copytree(source.root, tmp_path / "copy")
    for name in source.names:
        (tmp_path / "copy" / name).rename(tmp_path / "copy" / f"other {name}")
    copy = Counted(tmp_path / "copy", [f"other {name}" for name in source.names])
    second, said = opened(copy)
    assert (copy.opened, said, second.folder) == ([], [], first.folder)
    assert is_right(second, images)


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


GARBAGE = [b"", b"{", b"null", b"3", b"[]", b"\xff\xfe", b"{}", b'{"bad": {}}', b'{"bad": {}, "blocks": []}']
DAMAGE = {
    "images.npy truncated by a byte": lambda folder: truncate(
        folder / "images.npy", (folder / "images.npy").stat().st_size - 1
    ),
    "images.npy truncated to its header": lambda folder: truncate(folder / "images.npy", 128),
    "images.npy truncated in its header": lambda folder: truncate(folder / "images.npy", 40),
    "images.npy empty": lambda folder: truncate(folder / "images.npy", 0),
    "images.npy gone": lambda folder: (folder / "images.npy").unlink(),
    "a byte of images.npy": lambda folder: flip(folder / "images.npy", 128 + 65 * 192 + 5),
    "the last bit of images.npy": lambda folder: flip(folder / "images.npy", -1, 1),
    "a byte of thumbnails.npy": lambda folder: flip(folder / "thumbnails.npy", 3000),
    "thumbnails.npy truncated": lambda folder: truncate(folder / "thumbnails.npy", 3000),
    "a byte of moments.npy": lambda folder: flip(folder / "moments.npy", 1000),
    "moments.npy gone": lambda folder: (folder / "moments.npy").unlink(),
    "another array in images.npy": lambda folder: np.save(folder / "images.npy", np.zeros((70, 4, 4, 3), np.uint8)),
    "fewer rows in moments.npy": lambda folder: np.save(folder / "moments.npy", np.zeros((69, 3, 2), np.int64)),
    "cache.json gone": lambda folder: (folder / "cache.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_anew(tmp_path, damage):
    images = pixels_of(70)
    source = written(tmp_path / "data", images)
    cache, _ = opened(source)
    DAMAGE[damage](cache.folder)
    other = again(source)
    healed, said = opened(other)
    assert is_right(healed, images)
    assert healed.folder == cache.folder
    assert len(other.opened) == 70
    assert said == [
        f"the image cache {cache.folder} is damaged: building it anew",
        f"decoding 70 images to 8 x 8 pixels, once, into {cache.folder}",
    ]
    last = again(source)
    assert is_right(opened(last)[0], images)
    assert last.opened == []


@pytest.mark.parametrize("garbage", [*GARBAGE, b'{"bad": 3}', b'{"bad": []}', b'{"bad": {"x": "y"}}'])
def test_garbage_in_place_of_what_says_that_a_cache_is_whole_is_built_anew(tmp_path, garbage):
    images = pixels_of(5)
    source = written(tmp_path / "data", images)
    cache, _ = opened(source)
    (cache.folder / "checked.json").unlink()
    (cache.folder / "cache.json").write_bytes(garbage)
    other = again(source)
    assert is_right(opened(other)[0], images)
    assert len(other.opened) == 5


@pytest.mark.parametrize("garbage", [b"", b"{", b"null", b"[]", b"\xff"])
def test_garbage_in_place_of_what_was_checked_only_costs_a_check(tmp_path, garbage):
    images = pixels_of(5)
    source = written(tmp_path / "data", images)
    cache, _ = opened(source)
    (cache.folder / "checked.json").write_bytes(garbage)
    other = again(source)
    assert is_right(opened(other)[0], images)
    assert other.opened == []


def test_which_images_are_bad_is_covered_by_a_checksum_too(tmp_path):
    source = written(tmp_path / "data", pixels_of(5))
    (source.root / "003.png").write_bytes(b"no image")
    cache, _ = opened(source)
    assert cache.bad == {3: "not an image"}
    text = (cache.folder / "cache.json").read_text()
    assert text.count('"3"') == 1
    (cache.folder / "cache.json").write_text(text.replace('"3"', '"1"'))
    assert opened(again(source))[0].bad == {3: "not an image"}


@pytest.mark.parametrize(
    ("name", "place", "bits"),
    [
        ("images.npy", 8, 0x40),
        ("images.npy", 10, 0x01),
        ("images.npy", 60, 0x01),
        ("images.npy", 100, 0x08),
        ("moments.npy", 21, 0x10),
        ("moments.npy", 22, 0x04),
        ("moments.npy", 22, 0x08),
        ("moments.npy", 21, 0x02),
        ("images.npy", 22, 0x1C),
    ],
)
def test_a_flipped_bit_in_the_header_of_an_array_is_damage_too(tmp_path, name, place, bits):
    images = pixels_of(5)
    source = written(tmp_path / "data", images)
    cache, _ = opened(source)
    flip(cache.folder / name, place, bits)
    other = again(source)
    assert is_right(opened(other)[0], images)
    assert len(other.opened) == 5


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "another shape"])
def test_damaged_signatures_are_computed_anew(tmp_path, root, damage):
    images = pixels_of(70)
    source = written(tmp_path / "data", images)
    cache, _ = opened(source)
    (memo,) = root.glob("signatures/*.npy")
    if damage == "another shape":
        np.save(memo, np.zeros((69, 16), dtype=np.uint8))
    elif damage == "garbage":
        memo.write_bytes(b"no array")
    else:
        truncate(memo, 0 if damage == "empty" else memo.stat().st_size - 1)
    other = again(source)
    found, _ = opened(other)
    assert (found.folder, other.opened) == (cache.folder, [])
    assert is_right(found, images)
    assert np.array_equal(np.load(memo)[:-1], cache.digests)


@pytest.mark.parametrize("place", [-1, 10])
def test_a_flipped_bit_in_a_signature_does_not_stop_the_node_for_good(tmp_path, root, place):
    images = pixels_of(5)
    source = written(tmp_path / "data", images)
    opened(source)
    (memo,) = root.glob("signatures/*.npy")
    flip(memo, place, 1)
    assert is_right(opened(again(source))[0], images)


def test_a_killed_build_is_gone_on_with(tmp_path, root, monkeypatch):
    images = pixels_of(5 * BLOCK + 20)
    source = written(tmp_path / "data", images)
    (source.root / "070.png").write_bytes(b"no image")
    done = [entry["block"] for entry in killed(source, root, 3)]
    assert done == [0, 1, 2]  # of six blocks
    there = rows_of(done, len(images))
    other = again(source)
    cache, said = opened(other)
    assert said == [
        f"decoding 340 images to 8 x 8 pixels, once, into {cache.folder}",
        f"{len(there)} of them are there already",
    ]
    assert sorted(other.opened) == sorted({*range(340)} - {*there})
    assert cache.bad == {70: "not an image"}
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "undisturbed"))
    whole, _ = opened(again(source))
    assert whole.folder.name == cache.folder.name
    for name in ("images.npy", "thumbnails.npy", "moments.npy"):
        assert (whole.folder / name).read_bytes() == (cache.folder / name).read_bytes()
    assert json.loads((whole.folder / "cache.json").read_text()) == json.loads(
        (cache.folder / "cache.json").read_text()
    )
    assert sorted(path.name for path in whole.folder.iterdir()) == sorted(path.name for path in cache.folder.iterdir())


@dataclass(frozen=True)
class Stopped(Counted):
    """Images of which one cannot be decoded because the process is stopped."""

    row: int = 0

    def open(self, row: int, content: bytes, size: int) -> Image.Image:
        if self.number(row) == self.row:
            raise KeyboardInterrupt
        return super().open(row, content, size)


def interrupted(source: Counted, row: int, monkeypatch) -> None:
    """Decode one block after the other up to the one that has ``row``, which is not finished."""
    with pytest.raises(KeyboardInterrupt):
        opened(Stopped(source.root, source.names, row=row))


@pytest.mark.parametrize(
    ("line", "whole"), [(b'{"block": 1, "chec', 2), (b"\0\0\0\0", 2), (b'{"block": 1, "checksum": 5, "bad": {}}\n', 1)]
)
def test_a_line_of_progress_that_was_half_written_or_is_wrong_is_not_believed(tmp_path, root, monkeypatch, line, whole):
    images = pixels_of(4 * BLOCK)
    source = written(tmp_path / "data", images)
    interrupted(source, 2 * BLOCK + 5, monkeypatch)
    (progress,) = root.glob("*.part/progress.jsonl")
    lines = progress.read_bytes().splitlines(keepends=True)
    assert [json.loads(text)["block"] for text in lines] == [0, 1]
    progress.write_bytes(lines[0] + (lines[1] if whole == 2 else b"") + line)
    other = again(source)
    cache, said = opened(other)
    assert is_right(cache, images)
    assert said[1:] == [f"{whole * BLOCK} of them are there already"]
    assert sorted(other.opened) == list(range(whole * BLOCK, 4 * BLOCK))


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"[]\n", b"7\n", b"{}\n", b'{"block": 1}\n', b'{"block": "x"}\n'])
def test_garbage_among_the_progress_is_not_believed(tmp_path, root, monkeypatch, line):
    images = pixels_of(3 * BLOCK)
    source = written(tmp_path / "data", images)
    interrupted(source, 2 * BLOCK, monkeypatch)
    (progress,) = root.glob("*.part/progress.jsonl")
    with progress.open("ab") as file:
        file.write(line)
    assert is_right(opened(again(source))[0], images)


def test_progress_after_a_half_written_line_is_not_lost(tmp_path, root, monkeypatch):
    source = written(tmp_path / "data", pixels_of(4 * BLOCK))
    interrupted(source, BLOCK, monkeypatch)
    (progress,) = root.glob("*.part/progress.jsonl")
    with progress.open("ab") as file:
        file.write(b'{"block": 1, "chec')
    interrupted(source, 2 * BLOCK, monkeypatch)
    other = again(source)
    opened(other)
    assert sorted(other.opened) == list(range(2 * BLOCK, 4 * BLOCK))


@pytest.mark.parametrize("name", ["images.npy", "thumbnails.npy", "moments.npy"])
def test_a_block_that_was_changed_after_its_progress_is_decoded_again(tmp_path, root, monkeypatch, name):
    images = pixels_of(4 * BLOCK)
    source = written(tmp_path / "data", images)
    interrupted(source, 3 * BLOCK + 9, monkeypatch)
    (array,) = root.glob(f"*.part/{name}")
    flip(array, 128 + (array.stat().st_size - 128) * 3 // 8)
    other = again(source)
    cache, said = opened(other)
    assert is_right(cache, images)
    assert said[1:] == [f"{2 * BLOCK} of them are there already"]
    assert sorted(other.opened) == [*range(BLOCK, 2 * BLOCK), *range(3 * BLOCK, 4 * BLOCK)]


@pytest.mark.parametrize("name", ["images.npy", "thumbnails.npy", "moments.npy"])
@pytest.mark.parametrize("size", [0, 60, 500])
def test_a_truncated_array_of_a_part_is_no_part(tmp_path, root, monkeypatch, name, size):
    images = pixels_of(3 * BLOCK)
    source = written(tmp_path / "data", images)
    interrupted(source, 2 * BLOCK, monkeypatch)
    (array,) = root.glob(f"*.part/{name}")
    truncate(array, size)
    other = again(source)
    assert is_right(opened(other)[0], images)
    assert len(other.opened) == 3 * BLOCK


@pytest.mark.parametrize("count", [2, 4])
def test_of_processes_that_start_at_once_one_decodes_and_all_get_the_same(tmp_path, count):
    images = pixels_of(3 * BLOCK + 1)
    source = written(tmp_path / "data", images)
    processes = [driver(source.root) for _ in range(count)]
    for process in processes:
        go(process)
    results = [json.loads(process.communicate(timeout=180)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    assert sorted(decoded for decoded, _, _ in results) == [0] * (count - 1) + [len(images)]
    assert len({pixels for _, pixels, _ in results}) == 1
    for decoded, _, said in results:
        assert [line.split()[0] for line in said] in ([["decoding"]] if decoded else [["waiting"], []])
    other = again(source)
    assert is_right(opened(other)[0], images)
    assert other.opened == []


def test_a_process_that_comes_while_another_decodes_says_that_it_waits(tmp_path, root):
    source = written(tmp_path / "data", pixels_of(3 * BLOCK))
    process = driver(source.root, held_at=1)
    go(process)
    held(process)
    other, said = again(source), []

    def hear(line: str) -> None:
        said.append(line)
        go(process)

    open_cache(other, 8, hear)
    decoded, _, _ = json.loads(process.communicate(timeout=180)[0])
    assert (decoded, other.opened) == (3 * BLOCK, [])
    assert said == ["waiting for another process that decodes the same images"]


def no_space(*_args: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_that_is_in_the_way(tmp_path, root, monkeypatch):
    images = pixels_of(70)
    source = written(tmp_path / "data", images)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(DataError) as caught:
            opened(source)
    assert str(caught.value) == f"{root}: No space left on device: CRH_TUNE_CACHE names another cache folder"
    assert source.opened == []
    cache, said = opened(source)
    assert is_right(cache, images)
    assert said == [f"decoding 70 images to 8 x 8 pixels, once, into {cache.folder}"]


def test_after_a_full_disk_the_place_is_reserved_again(tmp_path, monkeypatch):
    source = written(tmp_path / "data", pixels_of(5))
    reserved: list[int] = []
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(DataError, match="No space left on device"):
            opened(source)
    monkeypatch.setattr(os, "posix_fallocate", lambda _file, _start, size: reserved.append(size))
    opened(source)
    assert sorted(reserved) == sorted([128 + 5 * 192, 128 + 5 * 192, 128 + 5 * 48])


def test_without_posix_fallocate_zeros_reserve_the_place(tmp_path, monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(os, "posix_fallocate")
    images = pixels_of(70)
    assert is_right(opened(written(tmp_path / "data", images))[0], images)
    array = _open_array(tmp_path / "a.npy", (3, 1000, 1000), np.uint8)
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 3_000_000
    assert np.load(tmp_path / "a.npy").shape == array.shape
    with Path("/dev/full").open("r+b", buffering=0) as full, pytest.raises(OSError, match="No space left on device"):
        _reserve(full, 128, 5000)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_cache_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(DataError) as caught:
        opened(written(tmp_path / "data", pixels_of(2)))
    where, what = str(caught.value).split(": ", 1)
    assert Path(where).is_relative_to(tmp_path / "file")
    assert what == "Not a directory: CRH_TUNE_CACHE names another cache folder"


def test_the_cache_lies_where_the_environment_says_or_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CRH_TUNE_CACHE", "relative")
    monkeypatch.chdir(tmp_path)
    assert cache_root() == tmp_path / "relative"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("CRH_TUNE_CACHE")
        else:
            monkeypatch.setenv("CRH_TUNE_CACHE", unset)
        assert cache_root() == tmp_path / "home" / ".cache" / "crh_tune"


@dataclass(frozen=True)
class Touched(Counted):
    """Images one of which something happens to before it is read for the second time."""

    row: int = 0
    happens: list = field(default_factory=list)
    reads: list[int] = field(default_factory=list)

    def read(self, row: int) -> bytes:
        self.reads.append(self.number(row))
        if self.number(row) == self.row and self.reads.count(self.row) == 2:
            self.happens[0](self.root / self.names[row])
        return super().read(row)


def test_a_file_that_changes_between_its_digest_and_its_decoding_is_refused(tmp_path):
    images, new = pixels_of(70), pixels_of(1, seed=9)[0]
    source = written(tmp_path / "data", images)
    touched = Touched(source.root, source.names, row=66, happens=[lambda path: Image.fromarray(new).save(path)])
    with pytest.raises(DataError) as caught:
        opened(touched)
    assert str(caught.value) == "066.png: changed while it was read: start again when all is copied"
    images[66] = new
    assert is_right(opened(again(source))[0], images)


def test_a_file_that_is_gone_between_its_digest_and_its_decoding_is_refused(tmp_path):
    images = pixels_of(5)
    source = written(tmp_path / "data", images)
    content = (source.root / "003.png").read_bytes()
    with pytest.raises(DataError):
        opened(Touched(source.root, source.names, row=3, happens=[Path.unlink]))
    (source.root / "003.png").write_bytes(content)
    assert is_right(opened(again(source))[0], images)


def test_a_file_that_could_not_be_read_once_is_read_the_next_time(tmp_path, monkeypatch):
    images = pixels_of(5)
    source = written(tmp_path / "data", images)

    def fail(self: Counted, row: int) -> bytes:
        if row == 3:
            raise BadImage("Too many open files")
        return FileImages.read(self, row)

    with monkeypatch.context() as busy:
        busy.setattr(Counted, "read", fail)
        assert opened(source)[0].bad == {3: "Too many open files"}
    assert is_right(opened(again(source))[0], images)


def test_bad_images_are_kept_with_their_reasons(tmp_path):
    images = pixels_of(140)
    source = written(tmp_path / "data", images)
    (source.root / "000.png").write_bytes(b"")
    (source.root / "070.png").write_text("a note\nof two lines")
    whole = (source.root / "139.png").read_bytes()
    (source.root / "139.png").write_bytes(whole[:-40])
    (source.root / "005.png").unlink()
    (source.root / "005.png").mkdir()
    cache, _ = opened(source)
    assert sorted(cache.bad) == [0, 5, 70, 139]
    assert {row: cache.bad[row] for row in (0, 5, 70)} == {0: "not an image", 5: "Is a directory", 70: "not an image"}
    assert "truncated" in cache.bad[139]
    assert not cache.images[sorted(cache.bad)].any()
    good = np.setdiff1d(np.arange(140), list(cache.bad))
    assert np.array_equal(cache.images[good], images[good])
    other = again(source)
    assert opened(other)[0].bad == cache.bad
    assert other.opened == []
    (source.root / "139.png").write_bytes(whole)
    assert sorted(opened(again(source))[0].bad) == [0, 5, 70]


def test_a_file_that_is_not_there_is_named(tmp_path):
    source = written(tmp_path / "data", pixels_of(3))
    (source.root / "001.png").unlink()
    with pytest.raises(DataError) as caught:
        opened(source)
    assert str(caught.value) == f"{source.root}/001.png: No such file or directory"


@pytest.mark.parametrize("size", [32, 16, 40])
def test_arrays_are_cached_as_files_are(tmp_path, size):
    images = pixels_of(70, 32)
    (tmp_path / "batch").write_bytes(b"x")
    names = [f"image {row}" for row in range(70)]
    cache, said = opened(ArrayImages(names, [tmp_path / "batch"], images), size)
    files, _ = opened(written(tmp_path / "data", images), size)
    assert said == [f"decoding 70 images to {size} x {size} pixels, once, into {cache.folder}"]
    for name in ("images", "thumbnails", "moments"):
        assert np.array_equal(getattr(cache, name), getattr(files, name))
    assert opened(ArrayImages(names, [tmp_path / "batch"], images), size)[1] == []
    (tmp_path / "batch").write_bytes(b"yy")
    assert is_right(opened(ArrayImages(names, [tmp_path / "batch"], images[::-1]), 32)[0], images[::-1])


def test_reading_an_epoch_takes_no_more_memory_for_more_images(tmp_path):
    peaks = []
    for count in (2_000, 20_000):
        path = tmp_path / f"{count}.npy"
        array = open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 32, 32, 3))
        array[:] = np.arange(count, dtype=np.uint8)[:, None, None, None]
        array.flush()
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True, timeout=60
        )
        peak, total = done.stdout.split()
        assert int(total) == int((np.arange(count) % 256).sum()) * 3072
        peaks.append(float(peak))
    assert peaks[1] - peaks[0] < 20


def test_many_images_are_decoded_by_several_processes_with_the_same_result(tmp_path, root, monkeypatch):
    images = pixels_of(1100)
    source = written(tmp_path / "data", images)
    cache = open_cache(source, 8, lambda line: None)
    assert source.opened == []  # decoded elsewhere
    assert np.array_equal(cache.images, images)
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "alone"))
    monkeypatch.setattr("crh_tune.data.store.cache._FEW_BLOCKS", 1000)
    alone = open_cache(source, 8, lambda line: None)
    assert source.opened == list(range(1100))
    assert (alone.folder / "cache.json").read_text() == (cache.folder / "cache.json").read_text()
