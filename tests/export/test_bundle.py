"""The exported folder: written and read again, queried with arrays and with files, and refused when it is broken."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Split, final_split, hold_out, search_split
from crh_tune.export import Encoder, load_encoder, load_index
from crh_tune.export.bundle import model_card, write_bundle
from crh_tune.hashing.network import HashNetwork
from crh_tune.serving.index import open_index
from crh_tune.serving.reach import load_reach
from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import TrialSettings, read_trial
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import Workers
from tests.whole_files import names_taken

SIZE, CROP, BITS = 24, 16, 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRH_TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(generator: np.random.Generator, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Coarse blotches, which survive JPEG and resizing."""
    blotches = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def image_files(folder: Path) -> Path:
    """18 training images and 6 queries of 3 classes: JPEG, PNG, gray and turned ones of several sizes."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in "abc":
            below = folder / part / name
            below.mkdir(parents=True)
            for i in range(count):
                width, height = (int(side) for side in generator.integers(20, 90, 2))
                if i % 3 == 0:
                    picture(generator, width, height).save(below / f"{i}.jpg", quality=90)
                elif i % 3 == 1:
                    picture(generator, width, height, "L").save(below / f"{i}.png")
                else:
                    exif = Image.Exif()
                    exif[0x0112] = 6  # lies on its side
                    picture(generator, width, height).save(below / f"{i}.jpeg", exif=exif)
    return folder


def feature_file(folder: Path, database: bool = True) -> Path:
    generator = np.random.default_rng(1)
    centers = generator.normal(size=(4, 12)) * 2
    arrays = {}
    for part, count in (("train", 40), ("test", 8), ("database", 25)):
        labels = np.arange(count) % 4
        arrays[f"{part}_features"] = (centers[labels] + generator.normal(size=(count, 12))).astype(np.float32)
        arrays[f"{part}_labels"] = labels
    path = folder / "features.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if database or not name.startswith("database")})
    return path


def trained(split: Split, dataset: dict[str, Any], method: str = "crh", **trial: Any) -> TrainingRun:
    """A run after two epochs, whose codes are neither all alike nor its labels."""
    content = {
        "dataset": dataset,
        "method": method,
        "trial": {"bits": BITS, "epochs": 2, "batch_size": 9, "scale": 3.0, "head_dim": 10, **trial},
    }
    settings = TrialSettings.model_validate(content).resolve(split.classes, split.multi_label)
    run = TrainingRun(settings, split, Workers(), solve_locally)
    run.train(lambda metrics, save: None)
    return run


def image_run(folder: Path, stage: str = "final", **trial: Any) -> tuple[TrainingRun, Path]:
    root = image_files(folder / "images")
    options = {"path": str(root), "size": SIZE}
    dataset = open_dataset("folder", options)
    split = final_split(dataset) if stage == "final" else search_split(dataset, 0.3, 0)
    return trained(split, {"name": "folder", **options}, **{"crop": CROP, "flip": True, **trial}), root


def feature_run(folder: Path, database: bool = True, **trial: Any) -> TrainingRun:
    options = {"path": str(feature_file(folder, database))}
    split = final_split(open_dataset("features", options))
    return trained(split, {"name": "features", **options}, **{"backbone": "mlp", **trial})


def exported(run: TrainingRun, folder: Path, card: str = "card") -> Path:
    write_bundle(folder, run, card)
    return folder


def codes_of(words: np.ndarray) -> np.ndarray:
    """N x K, 0 and 1, out of packed words; the bits beyond K must be zero."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    assert not bits[:, BITS:].any()
    return bits[:, :BITS]


def by_hand(run: TrainingRun, inputs: np.ndarray) -> np.ndarray:
    """The codes that the run's own network gives: N x K, 0 and 1."""
    with torch.no_grad():
        return (run.network.eval()(torch.from_numpy(inputs)) >= 0).numpy().astype(np.uint8)


def files_of(root: Path, part: str) -> list[Path]:
    """In the order of the dataset: by class, then by name."""
    return sorted((root / part).rglob("*.*"), key=lambda path: path.as_posix())


@pytest.mark.parametrize("stage", ["final", "search"])
def test_images_exported_and_loaded_again_have_the_same_codes(tmp_path, stage):
    run, root = image_run(tmp_path, stage)
    split = run.split
    centers, train, queries = run.centers, split.train.inputs, split.queries.inputs
    folder = exported(run, tmp_path / "export", "# A card\n")
    encoder, index = load_encoder(folder), load_index(folder)
    assert (encoder.shape, encoder.bits, encoder.class_names) == ((3, SIZE, SIZE), BITS, ("a", "b", "c"))
    assert encoder.network.shape == (3, CROP, CROP)
    assert not encoder.network.training
    assert np.array_equal(codes_of(index.words), by_hand(run, train[np.arange(len(train))]))
    assert np.array_equal(codes_of(encoder.encode(queries)), by_hand(run, queries[np.arange(len(queries))]))
    assert np.array_equal(index.words, encoder.encode(train))
    assert np.array_equal(index.labels, split.train.labels)
    assert np.array_equal(encoder.encode_files([root / item for item in index.items]), index.words)
    assert [item.split("/")[1] for item in index.items] == [encoder.class_names[label] for label in index.labels]
    assert len(np.unique(index.words)) > 3
    assert np.array_equal(np.load(folder / "centers.npy"), centers)
    assert read_trial(folder / "settings.yaml") == run.settings
    assert (folder / "model_card.md").read_text() == "# A card\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "centers.npy",
        "codebook.npz",
        "encoder.pt",
        "index.npz",
        "model_card.md",
        "reach.json",
        "settings.yaml",
    ]
    apart = codes_of(encoder.encode(queries))[:, None] != codes_of(index.words)[None]
    reach = load_reach(folder)
    assert reach is not None
    assert reach.counts == tuple(np.bincount(apart.sum(axis=2).min(axis=1)))


@pytest.mark.parametrize("dataset", ["digits", "digit_sets"])
def test_the_index_has_the_classes_that_were_held_out_too(tmp_path, dataset):
    split = search_split(open_dataset(dataset, {}), 0.2, 0, classes=0.3)
    run = trained(split, {"name": dataset}, bits=16, head_dim=8, epochs=1, batch_size=256)
    encoder, (index, about) = load_encoder(exported(run, tmp_path)), open_index(tmp_path)
    unseen, names = split.unseen, about.class_names
    assert unseen is not None
    assert names == split.class_names + unseen.class_names
    assert encoder.class_names == split.class_names
    parts = (split.train, unseen.database)
    expected = [encoder.encode(part.inputs[np.arange(len(part))]) for part in parts]
    assert np.array_equal(index.words, np.concatenate(expected))
    rows = range(0, len(index), 50)
    labels = [part.labels[row] for part in parts for row in range(len(part))]
    for row in rows:
        own = np.flatnonzero(labels[row]).tolist() if split.multi_label else [int(labels[row])]
        assert about.label(index.labels[row]) == ", ".join(names[label] for label in own)


def test_files_have_exactly_the_codes_of_the_cached_pixels(tmp_path):
    run, root = image_run(tmp_path)
    encoder = load_encoder(exported(run, tmp_path / "export"))
    for part, samples in (("train", run.split.train), ("test", run.split.queries)):
        files = files_of(root, part)
        assert len(files) == len(samples)
        pixels = samples.inputs[np.arange(len(samples))]
        assert np.array_equal(encoder.decoded(files), pixels)
        words = encoder.encode_files(files)
        assert words.dtype == encoder.encode(samples.inputs).dtype
        assert np.array_equal(words, encoder.encode(samples.inputs))
        assert np.array_equal(words, encoder.encode(pixels))
        assert np.array_equal(encoder.encode_files([str(path) for path in files[2:4]]), words[2:4])


def test_every_file_of_an_export_takes_its_name_once_it_is_whole(tmp_path):
    with names_taken() as taken:
        folder = exported(feature_run(tmp_path, backbone="linear"), tmp_path / "export")
    assert {"encoder.pt", "centers.npy", "settings.yaml", "model_card.md"} <= {path.name for path in folder.iterdir()}
    assert set(folder.iterdir()) <= taken


def test_an_encoder_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    run = feature_run(tmp_path, backbone="linear")
    folder = exported(run, tmp_path / "export")
    before = (folder / "encoder.pt").read_bytes()
    whole = torch.save

    def full(content, path):
        whole({"half": content["bits"]}, path)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        exported(run, folder)
    assert (folder / "encoder.pt").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_an_encoder_takes_files_of_as_many_pixels_as_its_dataset_did(tmp_path):
    run, root = image_run(tmp_path)
    file = files_of(root, "test")[0]
    with Image.open(file) as image:
        pixels = image.width * image.height
    for allowed in (pixels, pixels - 1):
        dataset = run.settings.dataset.model_copy(update={"max_megapixels": allowed / 1e6})
        run.settings = run.settings.model_copy(update={"dataset": dataset})
        encoder = load_encoder(exported(run, tmp_path / "export"))
        if allowed == pixels:
            assert len(encoder.encode_files([file])) == 1
        else:
            with pytest.raises(ValueError, match=rf"^{file}: .* million, dataset.max_megapixels allows "):
                encoder.encode_files([file])


def test_more_files_than_are_decoded_at_once_stay_in_order(tmp_path, monkeypatch):
    run, root = image_run(tmp_path)
    encoder = load_encoder(exported(run, tmp_path / "export"))
    files = files_of(root, "train")
    expected = encoder.encode_files(files)
    monkeypatch.setattr("crh_tune.export.bundle._FILES", 5)
    assert np.array_equal(encoder.encode_files(files), expected)
    assert np.array_equal(encoder.encode_files(files[::-1]), expected[::-1])


def test_an_encoder_needs_neither_the_images_nor_their_cache(tmp_path, cache):
    run, root = image_run(tmp_path)
    query = files_of(root, "test")[0].rename(tmp_path / "query.jpg")
    folder = exported(run, tmp_path / "export")
    expected = load_encoder(folder).encode_files([query])
    for gone in (root, cache):
        gone.rename(gone.with_name(f"{gone.name} elsewhere"))
    moved = folder.rename(tmp_path / "moved")
    assert np.array_equal(load_encoder(moved).encode_files([query]), expected)


@pytest.mark.parametrize("database", [True, False])
@pytest.mark.parametrize("backbone", ["mlp", "linear"])
def test_features_exported_and_loaded_again_have_the_same_codes(tmp_path, database, backbone):
    run = feature_run(tmp_path, database, backbone=backbone)
    folder = exported(run, tmp_path / "export")
    encoder, index = load_encoder(folder), load_index(folder)
    assert (encoder.shape, encoder.bits, encoder.class_names) == ((12,), BITS, ("0", "1", "2", "3"))
    ranked = run.split.database or run.split.train
    assert len(ranked) == (25 if database else 40)
    features = ranked.inputs[np.arange(len(ranked))]
    assert np.array_equal(codes_of(index.words), by_hand(run, features))
    assert np.array_equal(index.words, encoder.encode(features))
    assert np.array_equal(index.labels, ranked.labels)
    queries = run.split.queries.inputs
    assert np.array_equal(codes_of(encoder.encode(queries)), by_hand(run, queries[np.arange(8)]))
    assert len(np.unique(index.words)) > 3


def test_items_of_drawn_features_are_rows_of_the_users_array(tmp_path):
    features = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    np.savez(tmp_path / "drawn.npz", features=features, labels=np.arange(60) % 4)
    options = {"path": str(tmp_path / "drawn.npz")}
    run = trained(final_split(open_dataset("features", options)), {"name": "features", **options}, backbone="mlp")
    folder = exported(run, tmp_path / "export")
    encoder, index = load_encoder(str(folder)), load_index(str(folder))
    assert len(index.items) == 48
    assert np.array_equal(encoder.encode(features[index.items]), index.words)
    assert np.array_equal(index.items % 4, index.labels)


def test_a_search_gives_the_nearest_first_and_equal_distances_in_database_order(tmp_path):
    run = feature_run(tmp_path)
    folder = exported(run, tmp_path / "export")
    encoder, index = load_encoder(folder), load_index(folder)
    words = encoder.encode(run.split.queries.inputs)
    queries, items = codes_of(words).astype(int), codes_of(index.words).astype(int)
    distances = np.abs(queries[:, None] - items[None]).sum(axis=2)
    rows, found = index.search(words, 7)
    for query, (own_rows, own_distances) in enumerate(zip(rows, found, strict=True)):
        expected = sorted(range(len(items)), key=lambda item: (distances[query, item], item))[:7]
        assert own_rows.tolist() == expected
        assert own_distances.tolist() == distances[query, expected].tolist()
    assert index.search(words, 1000)[0].shape == (8, 25)
    assert [part.shape for part in index.search(words[:0], 3)] == [(0, 3), (0, 3)]
    own_rows, own_distances = index.search(index.words, 1)
    assert not own_distances.any()
    assert np.array_equal(index.words[own_rows[:, 0]], index.words)
    outputs = encoder.outputs(run.split.queries.inputs)
    assert np.array_equal(outputs >= 0, codes_of(words))
    scores = outputs.astype(np.float64) @ np.where(codes_of(index.words), 1.0, -1.0).T
    rows, found = index.search(outputs, 7)
    order = np.argsort(-np.round(scores, 9), axis=1, kind="stable")[:, :7]
    assert np.array_equal(rows, order)
    assert np.allclose(found, np.take_along_axis(scores, order, axis=1), atol=1e-9)


@pytest.mark.parametrize(
    ("method", "trial"),
    [("orthohash", {}), ("greedyhash", {}), ("crh", {"channels_last": True}), ("crh", {"precision": "bf16"})],
)
def test_every_kind_of_network_is_read_back_in_full_precision(tmp_path, method, trial):
    """``linear_batch_norm`` hash layers, objectives with weights of their own, other orders in memory, bfloat16."""
    head = {} if method == "crh" else {"head_dim": None}
    run, _ = image_run(tmp_path, method=method, **head, **trial)
    folder = exported(run, tmp_path / "export")
    encoder, index = load_encoder(folder), load_index(folder)
    assert (folder / "centers.npy").exists() == (method != "greedyhash")
    assert np.array_equal(index.words, encoder.encode(run.split.train.inputs))
    for name, value in run.network.state_dict().items():
        assert torch.equal(encoder.network.state_dict()[name], value), name
    run.network.precision = "fp32"
    assert np.array_equal(codes_of(index.words), by_hand(run, run.split.train.inputs[np.arange(18)]))


def test_a_torchvision_backbone_is_read_back(tmp_path):
    run, root = image_run(tmp_path, backbone="resnet18", crop=None)
    encoder = load_encoder(exported(run, tmp_path / "export"))
    assert encoder.network.shape == encoder.shape == (3, SIZE, SIZE)
    assert np.array_equal(
        codes_of(encoder.encode_files(files_of(root, "test"))), by_hand(run, encoder.decoded(files_of(root, "test")))
    )


def small_encoder(shape: tuple[int, ...], inputs: tuple[int, ...] | None = None) -> Encoder:
    torch.manual_seed(0)
    backbone = "small_cnn" if len(shape) == 3 else "linear"
    network = HashNetwork(backbone, shape, BITS, torch.zeros(shape[0]), torch.ones(shape[0])).eval()
    return Encoder(network, inputs or shape, BITS, ("a", "b"))


def refusal(encoder: Encoder, *paths: str | Path) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        encoder.encode_files(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shape", [(12,), (1, 8, 8), (3, 8, 10)])
def test_files_are_refused_by_encoders_of_something_else_than_square_rgb_images(tmp_path, shape):
    expected = f"image files are for encoders of square RGB images, this one takes {shape}"
    assert refusal(small_encoder(shape), tmp_path / "photo.jpg") == expected


def test_a_file_that_is_no_image_is_named_in_one_line(tmp_path):
    encoder = small_encoder((3, 8, 8))
    good, text, empty, cut = (tmp_path / f"{name}.png" for name in ("good", "text", "empty", "cut"))
    picture(np.random.default_rng(0), 30, 20).save(good)
    text.write_text("no image\nat all\n")
    empty.write_bytes(b"")
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    assert encoder.encode_files([good]).shape == (1, 1)
    assert refusal(encoder, good, text) == f"{text}: not an image"
    assert refusal(encoder, good, empty) == f"{empty}: not an image"
    assert refusal(encoder, good, cut).startswith(f"{cut}: ")
    for path, why in ((tmp_path / "missing.png", "No such file or directory"), (tmp_path, "Is a directory")):
        line = refusal(encoder, good, str(path))
        assert line.startswith(f"{path}: ")
        assert why in line


def test_no_files_have_no_codes():
    encoder = small_encoder((3, 8, 8))
    assert encoder.encode(np.zeros((0, 3, 8, 8), dtype=np.uint8)).shape == (0, 1)
    assert encoder.encode_files([]).shape == (0, 1)


@pytest.mark.parametrize(
    ("shape", "given"),
    [((3, 8, 8), (2, 3, 8, 9)), ((3, 8, 8), (2, 8, 8, 3)), ((3, 8, 8), (3, 8, 8)), ((12,), (2, 11)), ((12,), (12,))],
)
def test_inputs_of_another_shape_are_refused(shape, given):
    wanted = " x ".join(str(side) for side in shape)
    with pytest.raises(ValueError, match="expected") as caught:
        small_encoder(shape).encode(np.zeros(given, dtype=np.uint8))
    assert str(caught.value) == f"inputs of shape N x {wanted} expected, got {given}"


def test_inputs_of_the_crops_size_are_not_those_of_the_encoder():
    encoder = small_encoder((3, 8, 8), (3, 12, 12))
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 12, 12), dtype=np.uint8)
    assert np.array_equal(encoder.encode(images), small_encoder((3, 8, 8)).encode(images[:, :, 2:10, 2:10]))
    with pytest.raises(ValueError, match="N x 3 x 12 x 12 expected"):
        encoder.encode(images[:, :, 2:10, 2:10])


@pytest.mark.parametrize("name", ["encoder.pt", "index.npz"])
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "something else"])
def test_a_broken_export_is_told_in_one_line_that_names_the_file(tmp_path, name, kind):
    run = feature_run(tmp_path, backbone="linear")
    path = exported(run, tmp_path / "export") / name
    content = path.read_bytes()
    path.unlink()
    if kind == "something else":
        if name == "encoder.pt":
            torch.save({"weights": run.network.state_dict()}, path)
        else:
            np.savez(tmp_path / "export" / "index", words=np.zeros((2, 1), dtype=np.uint8))
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"no bundle\n", "cut": content[: len(content) // 2]}[kind])
    with pytest.raises(SettingsError) as caught:
        (load_encoder if name == "encoder.pt" else load_index)(tmp_path / "export")
    what = "encoder" if name == "encoder.pt" else "index"
    assert str(caught.value).startswith(f"{path}: not a readable {what}: ")
    assert "\n" not in str(caught.value)


def test_an_encoder_with_weights_of_another_network_is_refused(tmp_path):
    run = feature_run(tmp_path, backbone="linear")
    path = exported(run, tmp_path / "export") / "encoder.pt"
    content = torch.load(path, weights_only=True)
    for name, value in (("bits", 8), ("hash_layer", "linear_batch_norm"), ("backbone", "mlp"), ("backbone", "none")):
        torch.save({**content, name: value}, path)
        with pytest.raises(SettingsError, match="not a readable encoder") as caught:
            load_encoder(path.parent)
        assert "\n" not in str(caught.value)
    later = ("open_bits", "span", "megapixels", "pretrained")  # what an older version did not write
    torch.save({name: value for name, value in content.items() if name not in later}, path)
    assert load_encoder(path.parent).bits == BITS


def test_what_an_encoder_says_of_itself_is_checked_field_by_field(tmp_path):
    path = exported(feature_run(tmp_path, backbone="linear"), tmp_path / "export") / "encoder.pt"
    content = torch.load(path, weights_only=True)
    for change, said in (
        ({"bits": "many"}, "bits: input should be a valid integer"),
        ({"inputs": None}, "inputs: input should be a valid tuple"),
        ({"hash_layer": "cubic"}, "hash_layer: input should be 'linear', "),
        ({"pretrained": {"backbone": "resnet18"}}, "pretrained.crop: is required"),
        ({"weights": ...}, "weights: is required"),
        ({"class_names": ...}, "class_names: is required"),
    ):
        torch.save({name: value for name, value in {**content, **change}.items() if value is not ...}, path)
        with pytest.raises(SettingsError) as caught:
            load_encoder(path.parent)
        assert str(caught.value).startswith(f"{path}: not a readable encoder: {said}")
        assert "\n" not in str(caught.value)


def test_the_model_card_tells_how_to_ask_with_files_only_where_inputs_came_from_files(tmp_path):
    run, _ = image_run(tmp_path)
    card = model_card(run.settings, run.split, {"test/map": 0.123456789}, ["Found by hand."])
    assert f"# {BITS}-bit codes for folder\n" in card
    assert "Trained 2 epochs on 18 samples of 3 classes (seed 0); 6 test queries ranked 18 database items." in card
    assert "| test/map | 0.123457 |" in card
    assert "Found by hand." in card
    assert "# images: uint8, N x 3 x 24 x 24\n" in card
    assert 'encoder.encode_files(["photo.jpg"])' in card
    features = feature_run(tmp_path, epochs=1)
    card = model_card(features.settings, replace(features.split, stage="search"), {"val/map": math.pi}, [])
    assert "8 validation queries ranked 25 database items." in card
    assert "# features: float, N x 12\n" in card
    assert "encode_files" not in card


def test_one_path_in_place_of_several_is_refused_in_plain_words(tmp_path: Path):
    """A string would be taken for a list of its letters."""
    encoder = Encoder.__new__(Encoder)
    for path in ("folder", Path("folder")):
        for name in ("encode_files", "decoded"):
            with pytest.raises(TypeError, match=rf"takes a list of files, got 'folder': {name}\(\['folder'\]\)"):
                getattr(encoder, name)(path)


def test_a_card_always_says_what_is_known_of_classes_never_seen(tmp_path):
    run, _ = image_run(tmp_path)
    card = model_card(run.settings, run.split, {"test/map": 0.8}, [])
    assert "On classes it has not seen: not measured. One more training does" in card
    measured = {"test/map": 0.8, "test/map_unseen": 0.2, "test/map_mixed": 0.6, "test/map_unseen_itq": 0.18}
    held = hold_out(run.split, np.array([2]))
    line = "On classes it has not seen (1 held out): mAP 0.2000, training-free (PCA + ITQ): 0.1800; all classes in one"
    assert line in model_card(run.settings, held, measured, [])
