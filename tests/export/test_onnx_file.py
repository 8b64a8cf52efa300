"""``encoder.onnx``: the same outputs and codes as PyTorch's, checked as it is written; the card says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from crh_tune.export import load_encoder, onnx_file
from crh_tune.serving import load_encoder as load_served
from tests.export.test_bundle import BITS, cache, exported, feature_run, files_of, image_run  # noqa: F401


def bits_of(words: np.ndarray) -> np.ndarray:
    """N x K, boolean, out of packed words."""
    return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, :BITS].astype(bool)


@pytest.mark.parametrize(("method", "trial"), [("crh", {"precision": "bf16"}), ("orthohash", {"channels_last": True})])
def test_photos_have_the_outputs_and_codes_of_pytorch(tmp_path, method, trial):
    run, root = image_run(tmp_path, method=method, **({} if method == "crh" else {"head_dim": None}), **trial)
    folder = exported(run, tmp_path / "export", "# A card")
    line = onnx_file.add_onnx(folder, run)
    assert "checked against PyTorch on 18 images of the database: no bit with |u| >= 0.001 differs" in line
    assert (folder / "model_card.md").read_text() == f"# A card\n\n{line}\n"
    encoder, served = load_encoder(folder), load_served(folder)
    assert (served.shape, served.bits, served.class_names) == (encoder.shape, BITS, ("a", "b", "c"))
    assert (served.fit, served.span, served.dtype) == (encoder.fit, encoder.span, np.uint8)
    files = files_of(root, "test")
    np.testing.assert_array_equal(np.stack([served.read(file) for file in files]), encoder.decoded(files))
    words, expected = served.encode_files(files), encoder.encode_files(files)
    assert words.dtype == expected.dtype
    with torch.no_grad():
        u = encoder.network(torch.from_numpy(encoder.decoded(files))).numpy()
    np.testing.assert_allclose(served.outputs(encoder.decoded(files)), u, atol=1e-4)
    np.testing.assert_allclose(encoder.outputs(encoder.decoded(files)), u, atol=1e-5)
    sure = np.abs(u) >= 1e-3
    assert sure.mean() > 0.9
    one_by_one = np.concatenate([served.encode_files([file]) for file in files])
    for found in (words, expected, one_by_one):
        np.testing.assert_array_equal(bits_of(found)[sure], (u >= 0)[sure])
    assert served.encode_files([]).shape == expected[:0].shape


@pytest.mark.parametrize("spare", [0, 1])
def test_image_files_may_have_as_many_pixels_as_the_dataset_allowed(tmp_path, spare):
    run, root = image_run(tmp_path)
    file = files_of(root, "test")[0]
    with Image.open(file) as image:
        allowed = (image.width * image.height - 1 + spare) / 1e6
    dataset = run.settings.dataset.model_copy(update={"max_megapixels": allowed})
    run.settings = run.settings.model_copy(update={"dataset": dataset})
    folder = exported(run, tmp_path / "export")
    onnx_file.add_onnx(folder, run)
    served = load_served(folder)
    assert served.megapixels == load_encoder(folder).megapixels == allowed
    if spare:
        assert len(served.encode_files([file])) == 1
    else:
        with pytest.raises(ValueError, match=rf"^{file}: .* million, dataset.max_megapixels allows "):
            served.encode_files([file])


@pytest.mark.parametrize(
    ("dtype", "trial"), [(np.float32, {}), (np.float64, {}), (np.float32, {"open_bits": 4, "head_dim": 8})]
)
def test_features_have_the_codes_of_pytorch(tmp_path, dtype, trial):
    run = feature_run(tmp_path, backbone="linear", database=False, **trial)
    folder = exported(run, tmp_path / "export")
    onnx_file.add_onnx(folder, run)
    encoder, served = load_encoder(folder), load_served(folder)
    inputs = np.random.default_rng(0).normal(size=(700, 12)).astype(dtype) * 3
    sure = np.abs(encoder.outputs(inputs)) >= 1e-3
    one, other = bits_of(encoder.encode(inputs)), bits_of(served.encode(inputs))
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(one[sure], other[sure])


@pytest.mark.parametrize("bits", [8, 20, 64, 100])
def test_bits_are_packed_as_retrieval_packs_them_and_zero_is_a_one(bits):
    u = torch.randn(50, bits, generator=torch.Generator().manual_seed(0))
    u[:, 0], u[:, 1], u[:, 2] = 0.0, -0.0, -1e-30
    packed = onnx_file.PackedNetwork(torch.nn.Identity(), bits)(u)[1].numpy()
    expected = np.zeros((50, packed.shape[1] * 8), dtype=np.uint8)
    expected[:, :bits] = u.numpy() >= 0
    np.testing.assert_array_equal(packed, np.packbits(expected, axis=1, bitorder="little"))
    np.testing.assert_array_equal(packed, onnx_file.pack_codes(u.numpy()).view(np.uint8))
    assert (packed[:, 0] & 7 == 3).all()


def test_a_class_may_have_any_name(tmp_path, monkeypatch):
    run = feature_run(tmp_path, backbone="linear")
    names = ("a location", 'quoted "', "ünicode\n", "\\u006cocation")
    monkeypatch.setattr(run, "split", replace(run.split, class_names=names))
    folder = exported(run, tmp_path / "export")
    assert "was checked" in onnx_file.add_onnx(folder, run)
    assert load_served(folder).class_names == names


def test_a_file_that_gives_other_codes_is_not_left_behind(tmp_path, monkeypatch):
    run = feature_run(tmp_path, backbone="linear")
    folder = exported(run, tmp_path / "export")
    exact = onnx_file.write_onnx

    def flips(network, *others):
        with torch.no_grad():
            network.network.hash_layer.bias += 1
        exact(network, *others)
        with torch.no_grad():
            network.network.hash_layer.bias -= 1

    monkeypatch.setattr(onnx_file, "write_onnx", flips)
    line = onnx_file.add_onnx(folder, run)
    assert line.startswith("No encoder.onnx: ")
    assert "sure bits (|u| >= 0.001) differed from PyTorch's on 25 feature vectors of the database." in line
    assert not (folder / "encoder.onnx").exists()


def test_a_backbone_that_the_exporter_does_not_know_is_told_in_the_card(tmp_path, monkeypatch):
    run = feature_run(tmp_path, backbone="linear")
    folder = exported(run, tmp_path / "export")

    def fails(*arguments):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(onnx_file, "write_onnx", fails)
    line = onnx_file.add_onnx(folder, run)
    assert line == "No encoder.onnx: the exporter cannot write this backbone: no such operator"
    assert line in (folder / "model_card.md").read_text()
    assert "encoder.onnx" not in [path.name for path in folder.iterdir()]


def test_the_file_holds_nothing_of_this_machine(tmp_path):
    run, _ = image_run(tmp_path)
    folder = exported(run, tmp_path / "export")
    onnx_file.add_onnx(folder, run)
    model = onnx.load(folder / "encoder.onnx")
    assert [each.key for each in model.metadata_props] == ["crh_tune"]
    content = (folder / "encoder.onnx").read_bytes()
    for word in (b"site-packages", b".py", str(tmp_path).encode()):
        assert word not in content
