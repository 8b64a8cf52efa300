"""The exported encoder as ONNX: preprocessing and packing are inside, so a service needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from crh_tune.data.store.stored import Array
from crh_tune.export.bundle import CARD_FILE, Encoder, encoder_name, load_encoder, model_card, write_bundle
from crh_tune.ground import first_line, write_text, write_whole
from crh_tune.retrieval.packing import pack_codes
from crh_tune.serving.encoder import FORMAT, INPUT, NOTES, ONNX_FILE, OUTPUTS
from crh_tune.serving.encoder import load_encoder as load_served
from crh_tune.training.loop import TrainingRun
from crh_tune.training.onnx_file import write_onnx

SURE = 1e-3
"""Bits whose |u| is at least this must be the same everywhere."""
_CHECKED = 256


class PackedNetwork(nn.Module):
    """Inputs -> u, B x K float32, and the codes' bytes, B x W uint8, as ``retrieval.packing`` packs them."""

    powers: Tensor

    def __init__(self, network: nn.Module, bits: int) -> None:
        super().__init__()
        self.network = network
        words = pack_codes(np.zeros((1, bits), dtype=bool))
        self.padding = 8 * words.nbytes - bits
        self.register_buffer("powers", 2 ** torch.arange(8, dtype=torch.int32))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        u = self.network(inputs)
        bits = nn.functional.pad((u >= 0).int(), (0, self.padding))
        return u, (bits.unflatten(1, (-1, 8)) * self.powers).sum(dim=2, dtype=torch.int32).to(torch.uint8)


def export_run(folder: Path, run: TrainingRun, metrics: dict[str, float], lines: list[str]) -> None:
    """Write a finished training run as an exported folder: everything, with a card of these metrics and lines."""
    write_bundle(folder, run, model_card(run.settings, run.split, metrics, lines))
    add_onnx(folder, run)


def add_onnx(folder: Path, run: TrainingRun) -> str:
    """Write ``encoder.onnx`` into an exported folder, check it, note the check in the model card, and return the note.

    It is checked against PyTorch on images of the database. Where the exporter does not know a layer, or a bit with
    |u| >= 1e-3 differs, there is no such file, and the note says why.
    """
    line = _written(folder, run)
    card = folder / CARD_FILE
    text = f"{card.read_text(encoding='utf-8').rstrip()}\n\n{line}\n"
    write_text(card, text)
    return line


def _written(folder: Path, run: TrainingRun) -> str:
    encoder, path = load_encoder(folder), folder / ONNX_FILE
    dtype = np.dtype(np.uint8) if run.trial.freeze else run.split.train.inputs.dtype
    network = PackedNetwork(encoder.network, encoder.bits).eval()
    example = torch.from_numpy(np.zeros((2, *encoder.shape), dtype=dtype))
    try:
        write_whole(path, lambda aside: write_onnx(network, example, aside, [INPUT], OUTPUTS, _notes(encoder, dtype)))
    except Exception as error:  # whatever the exporter raises on a layer that it does not know
        path.unlink(missing_ok=True)
        return f"No {ONNX_FILE}: the exporter cannot write this backbone: {first_line(error)}"
    inputs, what = _sample(run, encoder)
    apart, differing, unsure = compare(encoder, folder, inputs)
    if differing:
        path.unlink()
        return f"No {ONNX_FILE}: {differing} sure bits (|u| >= {SURE}) differed from PyTorch's on {len(inputs)} {what}."
    return (
        f"{ONNX_FILE} (onnxruntime {version('onnxruntime')}) was checked against PyTorch on {len(inputs)} {what}: no "
        f"bit with |u| >= {SURE} differs, u by at most {apart:.1e}; {unsure} of {len(inputs) * encoder.bits} bits have "
        f"|u| < {SURE}."
    )


def compare(encoder: Encoder, folder: Path, inputs: Array) -> tuple[float, int, int]:
    """PyTorch and ``encoder.onnx`` on N inputs: the largest difference of u, how many bits differ although
    |u| >= 1e-3, and how many bits have a smaller |u|."""
    served = load_served(folder)
    expected, outputs = encoder.outputs(inputs), served.outputs(inputs)
    sure = np.abs(expected) >= SURE
    bits = np.unpackbits(served.encode(inputs).view(np.uint8), axis=1, bitorder="little")[:, : encoder.bits]
    differing = sure & (bits.astype(bool) != (expected >= 0))
    apart = float(np.abs(outputs - expected).max(initial=0))
    return apart, int(differing.sum()) if np.isfinite(apart) else int(sure.size), int((~sure).sum())


def _notes(encoder: Encoder, dtype: np.dtype[Any]) -> Mapping[str, str]:
    content = {
        "format": FORMAT, "bits": encoder.bits, "nested": list(encoder.nested), "shape": list(encoder.shape),
        "dtype": dtype.name, "class_names": list(encoder.class_names), "fit": asdict(encoder.fit), "span": encoder.span,
        "megapixels": encoder.megapixels,
        "encoder": encoder_name(encoder.network.state_dict()),
    }  # fmt: skip
    return {NOTES: json.dumps(content).replace("location", "\\u006cocation")}  # a word that makes a file suspect


def _sample(run: TrainingRun, encoder: Encoder) -> tuple[Array, str]:
    """Some inputs of the database as the encoder takes them, and what they are."""
    samples = run.split.database or run.split.train
    rows = np.unique(np.linspace(0, len(samples) - 1, _CHECKED).astype(np.int64))
    if not run.trial.freeze:
        kind = "images" if samples.inputs.ndim == 4 else "feature vectors"
        return samples.inputs[rows], f"{kind} of the database"
    root: Any = run.settings.dataset.options.get("path")
    try:
        assert root is not None
        assert samples.items is not None
        return encoder.decoded([Path(root) / str(item) for item in samples.items[rows]]), "photos of the database"
    except (AssertionError, ValueError):  # images of an array, or photos that are there no longer
        noise: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (32, *encoder.shape), dtype=np.uint8)
        return noise, "images of noise (the photos themselves cannot be read here)"
