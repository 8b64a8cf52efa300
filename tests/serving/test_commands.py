"""encode, index, query and dedupe, as a user types them."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from crh_tune.serving import codes as codes_module
from crh_tune.serving import load_encoder
from crh_tune.serving.__main__ import main
from crh_tune.serving.codes import find_source, read_codes
from crh_tune.serving.index import open_index


def run(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def brute_force(queries: np.ndarray, words: np.ndarray, count: int) -> np.ndarray:
    bits = [np.unpackbits(each.view(np.uint8), axis=1).astype(int) for each in (queries, words)]
    return np.sort(np.abs(bits[0][:, None] - bits[1][None]).sum(axis=2), axis=1)[:, :count]


def test_photos_become_codes_an_index_and_answers(export, photos, encoder, tmp_path, capsys):
    assert run("encode", export, photos / "train", "-o", tmp_path / "codes.npz") == 0
    codes = read_codes(tmp_path / "codes.npz")
    files = sorted((photos / "train").rglob("*.*"), key=lambda path: path.relative_to(photos / "train").as_posix())
    assert codes.items.tolist() == [file.relative_to(photos / "train").as_posix() for file in files]
    assert codes.labels.tolist() == [file.parent.name for file in files]
    np.testing.assert_array_equal(codes.words, encoder.encode_files(files))
    assert (codes.root, codes.bits, codes.encoder) == (str(photos / "train"), encoder.bits, encoder.name)
    assert "18 codes of 20 bits" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]

    assert run("index", export, tmp_path / "codes.npz", "-o", tmp_path / "index") == 0
    query = photos / "test" / "a" / "0.jpg"
    capsys.readouterr()
    assert run("query", export, tmp_path / "index", query, "--count", "5", "--sheet", tmp_path / "q.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(query)
    distances = [int(line.split()[0]) for line in lines[2:7]]
    assert distances == brute_force(encoder.encode_files([query]), codes.words, 5)[0].tolist()
    for line in lines[2:7]:
        label, item = line.split()[1:]
        assert item.split("/")[0] == label
        assert (photos / "train" / item).exists()
    with Image.open(tmp_path / "q.png") as sheet:
        assert sheet.width > 6 * 128
        tile = np.asarray(sheet.convert("RGB"))[6 : 6 + 128, 6 + 134 : 6 + 134 + 128]
    assert tile.std() > 10  # the photo itself, not an empty frame


def test_photos_are_ranked_by_their_real_outputs_where_that_is_asked(export, photos, encoder, tmp_path, capsys):
    files = sorted((photos / "test").rglob("*.*"))
    assert run("query", export, export, *files, "--by", "outputs", "--sheet", tmp_path / "q.png") == 0
    lines = capsys.readouterr().out.splitlines()
    index, outputs = open_index(export)[0], encoder.outputs(np.stack([encoder.read(file) for file in files]))
    rows, scores = index.search(outputs, 10)
    for query, file in enumerate(files):
        assert lines[12 * query] == str(file)
        assert lines[12 * query + 1].split() == ["score", "bits", "label", "item"]
        found = [line.split() for line in lines[12 * query + 2 : 12 * query + 12]]
        assert [float(line[0]) for line in found] == pytest.approx(scores[query], abs=0.0051)
        assert [line[3] for line in found] == index.items[rows[query]].tolist()
        apart = (np.signbit(outputs[query]) != np.signbit(signs(index.words[rows[query]], 20))).sum(axis=1)
        assert [int(line[1]) for line in found] == apart.tolist()
    assert lines[-4].startswith("score: the query's outputs, added where the stored bit has their sign")
    assert lines[-3].startswith("bits: ")
    assert not np.array_equal(rows, index.search(encoder.encode_files(files), 10)[0])  # another ranking than by bits
    assert run("query", export, export, files[0], "--by", "label") == 2
    assert "--by: expected one of bits, outputs, got 'label'" in capsys.readouterr().err


def signs(words: np.ndarray, bits: int) -> np.ndarray:
    return np.unpackbits(words.view(np.uint8), axis=1, count=bits, bitorder="little") - 0.5


def test_the_index_of_the_export_itself_is_queried_by_class_names(export, photos, tmp_path, capsys):
    assert run("query", export, export, photos / "test" / "b" / "1.png", "--sheet", tmp_path / "q.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    for line in lines[2:12]:
        _, label, item = line.split()
        assert item.startswith(f"train/{label}/")


def test_unreadable_files_are_listed_and_not_fatal(export, photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos / "test", folder)
    (folder / "a" / "text.jpg").write_text("no image")
    (folder / "a" / "line\nbreak.png").write_bytes((folder / "a" / "1.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not looked at")
    assert run("encode", export, folder, "-o", tmp_path / "codes.npz") == 0
    codes = read_codes(tmp_path / "codes.npz")
    assert len(codes.words) == 6
    assert f"{folder}/a/text.jpg: not an image" in codes.unreadable
    assert len(codes.unreadable) == 2
    out = capsys.readouterr().out
    assert "2 files could not be read:" in out
    assert all(f"  {line}\n" in out for line in codes.unreadable)
    for path in folder.rglob("*.*g"):
        path.write_text("no image")
    assert run("encode", export, folder, "-o", tmp_path / "none.npz") == 2
    assert "none of 8 files can be read" in capsys.readouterr().err


def test_an_interrupted_encoding_goes_on(export, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(codes_module, "BATCH", 4)
    target, seen = tmp_path / "codes.npz", []
    real = type(load_encoder(export)).encode

    def counting(self, inputs):
        seen.append(len(inputs))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, inputs)

    monkeypatch.setattr("crh_tune.serving.encoder.Encoder.encode", counting)
    assert run("encode", export, photos / "train", "-o", target) == 130
    assert not target.exists()
    with (tmp_path / "codes.npz.partial").open("a") as log:
        log.write('{"encoder": "cut in the mid')
    assert run("encode", export, photos / "train", "-o", target) == 0
    assert sum(seen) == 4 + 4 + 4 + 10
    assert "8 of 18 were encoded before" in capsys.readouterr().out
    np.testing.assert_array_equal(
        read_codes(target).words, real(load_encoder(export), pixels(export, photos / "train"))
    )
    assert not (tmp_path / "codes.npz.partial").exists()


def pixels(export: Path, folder: Path) -> np.ndarray:
    encoder, source = load_encoder(export), find_source(folder)
    return np.stack([encoder.read(folder / item) for item in source.items])


def test_a_photo_that_changed_meanwhile_is_encoded_again(export, photos, tmp_path, encoder):
    folder = tmp_path / "photos"
    shutil.copytree(photos / "test", folder)
    source = find_source(folder)
    key = codes_module._keys(source)[0]
    stale = {"encoder": encoder.name, "found": {key.replace("|", "|9"): "AAAAAA=="}}
    (tmp_path / "codes.npz.partial").write_text(json.dumps(stale) + "\n")
    assert run("encode", export, folder, "-o", tmp_path / "codes.npz") == 0
    words = read_codes(tmp_path / "codes.npz").words
    np.testing.assert_array_equal(words, encoder.encode_files([folder / item for item in source.items]))


@pytest.mark.parametrize("line", ['{"encoder": "another", "found": {}}', "no json", "[1]", '{"encoder": 1}'])
def test_what_another_encoder_left_is_not_used(export, photos, tmp_path, capsys, line):
    (tmp_path / "codes.npz.partial").write_text(line + "\n")
    assert run("encode", export, photos / "test", "-o", tmp_path / "codes.npz") == 2
    assert "remove it" in capsys.readouterr().err


def test_lists_and_arrays_are_encoded_too(export, photos, encoder, tmp_path):
    files = sorted((photos / "test").rglob("*.*"))
    (photos / "list.txt").write_text(f"test/a/0.jpg\tapple\n\n{files[3]}\n")
    assert run("encode", export, photos / "list.txt", "-o", tmp_path / "list.npz") == 0
    codes = read_codes(tmp_path / "list.npz")
    assert codes.items.tolist() == ["test/a/0.jpg", str(files[3])]
    assert codes.labels.tolist() == ["apple", ""]
    np.testing.assert_array_equal(codes.words, encoder.encode_files([photos / "test/a/0.jpg", files[3]]))
    array = pixels(export, photos / "test")
    np.save(tmp_path / "array.npy", array)
    np.savez(tmp_path / "array.npz", images=array, labels=np.arange(6))
    for name, labels in (("array.npy", [""] * 6), ("array.npz", list("012345"))):
        assert run("encode", export, tmp_path / name, "-o", tmp_path / "out.npz") == 0
        codes = read_codes(tmp_path / "out.npz")
        assert codes.items.tolist() == list(range(6))
        assert codes.labels.tolist() == labels
        np.testing.assert_array_equal(codes.words, encoder.encode(array))


def test_arrays_that_a_search_takes_are_encoded_too(export, photos, tmp_path, capsys):
    """Several labels a row, and endings in any case of the letters."""
    array = pixels(export, photos / "test")
    flags = np.eye(6, 3, dtype=np.uint8)
    flags[0, 2] = 1
    np.savez(tmp_path / "several.npz", images=array, labels=flags)
    (tmp_path / "several.npz").rename(tmp_path / "S.NPZ")
    np.save(tmp_path / "array.npy", array)
    (tmp_path / "array.npy").rename(tmp_path / "A.NPY")
    for name, labels in (("S.NPZ", ["0, 2", "1", "2", "", "", ""]), ("A.NPY", [""] * 6)):
        assert run("encode", export, tmp_path / name, "-o", tmp_path / "out.npz") == 0
        assert read_codes(tmp_path / "out.npz").labels.tolist() == labels
    assert run("enroll", export, tmp_path / "S.NPZ", "-o", tmp_path / "new.npz") == 2
    assert "S.NPZ: has several labels a row" in capsys.readouterr().err
    for labels in (flags + 1, flags[:5], flags[:, :1], np.array(3)):
        np.savez(tmp_path / "bad.npz", images=array, labels=labels)
        assert run("encode", export, tmp_path / "bad.npz", "-o", tmp_path / "out.npz") == 2
        said = f"labels of shape {labels.shape}: one label, or C values 0 or 1, for each of 6 rows is wanted"
        assert said in capsys.readouterr().err
    np.save(tmp_path / "value.npy", 3)
    assert run("encode", export, tmp_path / "value.npy", "-o", tmp_path / "out.npz") == 2
    assert "value.npy: not a readable array: holds a single value" in capsys.readouterr().err


def test_a_half_line_is_cut_off_and_the_others_are_not_written_again(tmp_path, monkeypatch):
    path, whole = tmp_path / "codes.npz.partial", json.dumps({"encoder": "e", "found": {"a|1": "AAAA"}}) + "\n"
    path.write_text(whole + '{"encoder": "cut in the mid')
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: path.open("wb").close())  # a kill before the rest
    assert codes_module._read_partial(path, "e") == {"a|1": bytes(3)}
    assert path.read_text() == whole


def test_codes_of_several_folders_become_one_index(export, photos, tmp_path):
    for part in ("train", "test"):
        assert run("encode", export, photos / part, "-o", tmp_path / f"{part}.npz") == 0
    assert run("index", export, tmp_path / "train.npz", tmp_path / "test.npz", "-o", tmp_path / "both") == 0
    index, about = open_index(tmp_path / "both")
    assert len(index.words) == 24
    assert not about.root
    assert all(Path(item).is_file() for item in index.items)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["encode", "{export}", "{tmp}/none"], "there is no such file or folder"),
        (["encode", "{tmp}", "{photos}"], "encoder.onnx: there is no such file: crh-tune export SEARCH writes it"),
        (["encode", "{export}", "{tmp}/empty"], "no photos in it"),
        (["encode", "{export}", "{export}/encoder.pt"], "is no UTF-8 text"),
        (["encode", "{export}", "{export}/index.npz"], "has no features and no images"),
        (["encode", "{export}", "{export}/centers.npy"], "inputs of shape N x 3 x 24 x 24 expected"),
        (["index", "{export}", "{export}/index.npz"], "not the codes that crh-tune encode writes"),
        (["index", "{export}", "{tmp}/none.npz"], "not the codes that crh-tune encode writes"),
        (["query", "{export}", "{tmp}", "{photos}/test/a/0.jpg"], "not a readable index"),
        (["query", "{export}", "{export}", "{export}/settings.yaml"], "settings.yaml: not an image"),
        (["query", "{export}", "{export}", "{photos}/test/a/0.jpg", "--count", "0"], "expected at least 1, got 0"),
        (["dedupe", "{export}", "{export}/centers.npy"], "is an array: give a folder of photos"),
    ],
)
def test_mistakes_are_one_line(export, photos, tmp_path, capsys, monkeypatch, arguments, line):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(*[each.format(export=export, photos=photos, tmp=tmp_path) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("program", ["crh_tune", "crh_tune.serving"])
def test_an_answer_that_nobody_reads_ends_the_command_without_a_word(program, export, photos, tmp_path):
    """As in ``crh-tune query ... | head -1``, where the reader goes first."""
    asked = [export, export, *sorted(photos.rglob("*.png"))]
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", program, "query", *asked]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_name_that_the_terminal_cannot_show_is_written_out(export, photos, tmp_path, monkeypatch):
    query = tmp_path / "\xe9.png"
    shutil.copy(photos / "test" / "a" / "0.jpg", query)
    with monkeypatch.context() as patch:
        terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
        patch.setattr(sys, "stdout", terminal)
        code = run("query", export, export, query, "--sheet", tmp_path / "q.png")
    terminal.flush()
    assert code == 0
    assert terminal.buffer.getvalue().decode().splitlines()[0] == f"{tmp_path}/\\xe9.png"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_in_one_line(export, photos, tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr("crh_tune.serving.encoder.Encoder.encode", lambda *_: signal.raise_signal(number))
    mine = Mock()
    before = signal.signal(number, mine)
    try:
        assert run("encode", export, photos, "-o", tmp_path / "codes.npz") == 130
        assert signal.getsignal(number) == mine
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "interrupted: the same command starts it again\n"


def test_codes_of_another_encoder_are_refused(export, photos, tmp_path, capsys):
    assert run("encode", export, photos / "test", "-o", tmp_path / "codes.npz") == 0
    with np.load(tmp_path / "codes.npz") as arrays:
        content = dict(arrays)
    content["about"] = np.array(json.dumps({**json.loads(str(content["about"])), "encoder": "another"}))
    np.savez(tmp_path / "other.npz", **content)
    assert run("index", export, tmp_path / "other.npz", "-o", tmp_path / "index") == 2
    assert "codes of another encoder than this export's" in capsys.readouterr().err
    assert run("index", export, tmp_path / "codes.npz", tmp_path / "other.npz", "-o", tmp_path / "index") == 2
    assert "other.npz: codes of another encoder than those of" in capsys.readouterr().err


def test_near_identical_photos_are_grouped_by_a_run_that_was_interrupted_too(
    export, photos, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "photos"
    shutil.copytree(photos / "train", folder)
    for number, name in enumerate(("a/1.png", "b/4.png")):
        with Image.open(folder / name) as image:
            image.resize((2 * image.width, 2 * image.height)).convert("RGB").save(
                folder / f"copy{number}.jpg", quality=80
            )
    (folder / "broken.jpg").write_text("no image")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(codes_module, "BATCH", 8)
    real, seen = type(load_encoder(export)).encode, []

    def counting(self, inputs):
        seen.append(len(inputs))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(self, inputs)

    monkeypatch.setattr("crh_tune.serving.encoder.Encoder.encode", counting)
    assert run("dedupe", export, folder) == 130
    assert run("dedupe", export, folder) == 0
    assert seen == [8, 7, 7, 5]  # the second batch again, of which one photo is broken, and the rest
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 of 21 were encoded before"
    assert lines[1].startswith("13 of 13  ")
    assert lines[2].startswith("cannot be read: ")
    assert "broken.jpg: not an image" in lines[2]
    assert lines[3:] == [
        "group 1", "  a/1.png", "  copy0.jpg", "group 2", "  b/4.png", "  copy1.jpg",
        "2 groups of near-identical photos, 4 of 20 photos in them",
    ]  # fmt: skip
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    short = {codes_module._keys(find_source(folder))[0]: "AAAA"}
    (tmp_path / "dedupe.partial").write_text(json.dumps({"encoder": load_encoder(export).name, "found": short}) + "\n")
    assert run("dedupe", export, folder) == 2
    assert "dedupe.partial: left by an interrupted run of something else: remove it" in capsys.readouterr().err


def test_crh_tune_has_the_same_commands(export, photos, tmp_path, capsys, encoder):
    from crh_tune.cli import main as crh_tune_main  # noqa: PLC0415

    def crh_tune(*arguments: object) -> int:
        return crh_tune_main([str(each) for each in arguments])

    query = photos / "test" / "a" / "0.jpg"
    assert crh_tune("encode", export, photos / "train", "-o", tmp_path / "codes.npz") == 0
    assert crh_tune("index", export, tmp_path / "codes.npz", "-o", tmp_path / "index") == 0
    capsys.readouterr()
    assert crh_tune("query", export, tmp_path / "index", query, "--count", 3, "--sheet", tmp_path / "q.png") == 0
    lines = capsys.readouterr().out.splitlines()
    words = encoder.encode_files([query])
    expected = brute_force(words, read_codes(tmp_path / "codes.npz").words, 3)[0].tolist()
    assert [int(line.split()[0]) for line in lines[2:5]] == expected
    assert crh_tune("handover", export, "--to", "numpy", "-o", tmp_path / "numpy", "--index", tmp_path / "index") == 0
    assert crh_tune("dedupe", export, photos / "test") == 0
    capsys.readouterr()
    assert crh_tune("demo", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("crh-tune demo: ")
    assert error.count("\n") == 1
