"""The exported folder: how it is written, and how it is read again.

settings.yaml   resolved settings; ``crh-tune train settings.yaml`` gives the same result again
encoder.pt      the hash network, loadable with ``weights_only=True``
encoder.onnx    the same network for services without torch (``export.onnx_file``)
centers.npy     class centres, C x K, int8, -1 and +1 (methods with centres)
codebook.npz    the listed codewords and who holds them (``serving.enrolment``)
index.npz       packed codes and labels of the database, and what each item of it is
reach.json      how far the queries are from the nearest of these codes (``serving.reach``)
model_card.md   what was measured, and how
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from crh_tune.data.splits import Samples, Split
from crh_tune.data.store.decode import MEGAPIXELS, STRETCHED, BadImage, Fit, decode
from crh_tune.data.store.stored import Array, CachedImages, Inputs
from crh_tune.errors import DataError
from crh_tune.export.encoder_file import read_encoder, write_encoder
from crh_tune.ground import write_array, write_text
from crh_tune.hashing.codebook import Codebook
from crh_tune.hashing.network import FrozenHashNetwork, HashNetwork
from crh_tune.retrieval.index import Index
from crh_tune.retrieval.packing import Packed, pack_codes
from crh_tune.serving.encoder import want_length
from crh_tune.serving.enrolment import write_codebook
from crh_tune.serving.index import About, write_index
from crh_tune.serving.index import load_index as read_index
from crh_tune.serving.reach import Reach, write_reach
from crh_tune.settings.base import SettingsError
from crh_tune.settings.trial import TrialSettings, write_trial
from crh_tune.settings.used import symbols
from crh_tune.training.evaluation import encode_share, outputs_share
from crh_tune.training.frozen import pretrained
from crh_tune.training.loop import TrainingRun
from crh_tune.training.workers import CPU, Workers

SETTINGS_FILE, ENCODER_FILE, CENTERS_FILE = "settings.yaml", "encoder.pt", "centers.npy"
CARD_FILE = "model_card.md"
_FILES = 256


@dataclass(frozen=True)
class Encoder:
    """A trained hash network that turns inputs into packed codes. ``shape`` is that of one input.

    Codes are the first ``bits`` bits of the network's. ``fit`` says how an image file becomes an input, as it did in
    training.
    """

    network: HashNetwork | FrozenHashNetwork
    shape: tuple[int, ...]
    bits: int
    class_names: tuple[str, ...]
    device: torch.device = CPU
    fit: Fit = STRETCHED
    span: tuple[float, float] | None = None
    """What became 0 and 255 in training images of more than 8 bits a channel."""
    megapixels: float = MEGAPIXELS
    """How many million pixels an image file may have: ``dataset.max_megapixels``."""
    nested: tuple[int, ...] = ()
    """The shorter lengths that it was trained for: the first so many bits of a code are one."""

    def encode(self, inputs: Inputs) -> Packed:
        """Packed codes (N x W machine words) of N inputs: uint8 images N x C x H x W, or features N x D.

        Raises ValueError when the inputs are not of the encoder's shape.
        """
        codes = encode_share(self.network, self._samples(inputs), Workers(device=self.device))
        return pack_codes(codes[:, : self.bits].cpu().numpy())

    def outputs(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Real outputs u, N x K, of N inputs as in :meth:`encode`: their signs are the codes.

        ``index.search(encoder.outputs(inputs), 10)`` ranks by u . b, which is finer than Hamming distance.
        """
        outputs = outputs_share(self.network, self._samples(inputs), Workers(device=self.device))
        values: npt.NDArray[np.float32] = outputs[:, : self.bits].cpu().numpy()
        return values

    def _samples(self, inputs: Inputs) -> Samples:
        if inputs.shape[1:] != self.shape:
            raise ValueError(f"inputs of shape N x {' x '.join(map(str, self.shape))} expected, got {inputs.shape}")
        return Samples(inputs, np.zeros(len(inputs), dtype=np.int64))

    def encode_files(self, paths: Sequence[str | Path]) -> Packed:
        """Packed codes (N x W machine words) of N image files, resized as the training images were.

        Raises TypeError for one path in place of several, ValueError for an encoder of something else than square RGB
        images, or a file that is no image.
        """
        self._want_files(paths, "encode_files")
        codes = [self.encode(self.decoded(paths[i : i + _FILES])) for i in range(0, len(paths), _FILES)]
        return np.concatenate(codes) if codes else self.encode(np.empty((0, *self.shape), dtype=np.uint8))

    def decoded(self, paths: Sequence[str | Path]) -> npt.NDArray[np.uint8]:
        """N image files as inputs, N x 3 x S x S; raises what ``encode_files`` does."""
        self._want_files(paths, "decoded")
        images = []
        for path in paths:
            try:
                images.append(decode(Path(path).read_bytes(), self.shape[1], self.fit, self.span, self.megapixels))
            except (BadImage, OSError) as error:
                raise ValueError(f"{path}: {error}") from None
        return np.stack(images).transpose(0, 3, 1, 2)

    def _want_files(self, paths: Sequence[str | Path], name: str) -> None:
        """Raises TypeError for one path in place of several, ValueError where files are not what is encoded."""
        if isinstance(paths, str | Path):
            raise TypeError(f"{name} takes a list of files, got {str(paths)!r}: {name}([{str(paths)!r}])")
        if len(self.shape) != 3 or self.shape[0] != 3 or self.shape[1] != self.shape[2]:
            raise ValueError(f"image files are for encoders of square RGB images, this one takes {self.shape}")


def write_bundle(folder: Path, run: TrainingRun, card: str) -> None:
    """Write a finished training run as an exported folder; ``card`` is the model card's text."""
    folder.mkdir(parents=True, exist_ok=True)
    split, network = run.split, run.network.cpu().eval()
    write_trial(run.settings, folder / SETTINGS_FILE)
    name = encoder_name(write_encoder(folder / ENCODER_FILE, run, network))
    if run.has_centers:
        write_array(folder / CENTERS_FILE, run.centers)
        if isinstance(run.codebook, Codebook):
            write_codebook(folder, run.codebook.words, run.table, name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as whoever loads it will encode queries
    network, workers = network.to(device), Workers(device=device)
    database, labels, items, names = _indexed(split)
    encoded = [pack_codes(encode_share(network, part, workers).cpu().numpy()) for part in (*database, split.queries)]
    root = run.settings.dataset.options.get("path")
    index = Index(np.concatenate(encoded[:-1]), labels, items)
    write_index(folder, index, About(name, root and str(root), names, run.trial.bits))
    write_reach(folder, Reach.of(index.search(encoded[-1], 1)[1]))
    write_text(folder / CARD_FILE, card)


def _indexed(split: Split) -> tuple[list[Samples], Array, Array, tuple[str, ...]]:
    """What an export's index has: the database with the classes held out, its labels and items, all classes' names."""
    parts, names = [split.ranked], split.class_names
    labels = [split.ranked.labels]
    if split.unseen is not None:
        parts, names = [*parts, split.unseen.database], names + split.unseen.class_names
        wide = labels[0] if not split.multi_label else np.pad(labels[0], ((0, 0), (0, len(names) - split.classes)))
        labels = [wide, split.unseen.database.labels]
    known = [part.items for part in parts if part.items is not None]
    items = np.concatenate(known) if known else np.arange(sum(map(len, parts)))
    return parts, np.concatenate(labels), items, names


def encoder_name(weights: Mapping[str, torch.Tensor]) -> str:
    """A digest of an encoder's weights: codes of encoders of other names are not to be compared."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_encoder(folder: str | Path, device: str | torch.device = "cpu", bits: int | None = None) -> Encoder:
    """Read an exported encoder, to encode on a device.

    ``bits``: a shorter length that was trained with it (``trial.nested``), whose codes are the first bits of the whole.

    Raises SettingsError, naming the file, when it is broken, or has no codes of this length.
    """
    path, device = Path(folder) / ENCODER_FILE, torch.device(device)
    header, network = read_encoder(path)
    try:
        length = header.bits if bits is None else want_length(bits, (*header.nested, header.bits))
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None
    return Encoder(
        network.to(device).eval(),
        header.inputs,
        length,
        header.class_names,
        device,
        header.fit,
        header.span,
        header.megapixels,
        header.nested,
    )


def load_index(folder: str | Path) -> Index:
    """Read an exported index. Raises SettingsError, naming the file, when it is missing or broken."""
    try:
        return read_index(folder)
    except DataError as error:
        raise SettingsError(str(error)) from None


def _usage(settings: TrialSettings, samples: Samples) -> list[str]:
    """How to ask, for a person with files where the inputs came from files."""
    of_files = samples.items is not None and samples.items.dtype == object
    lines = []
    if isinstance(samples.inputs, CachedImages) or settings.trial.freeze:
        lines.append('rows, distances = index.search(encoder.encode_files(["photo.jpg"]), 10)')
    if not settings.trial.freeze:
        kind = "images: uint8" if samples.inputs.ndim == 4 else "features: float"
        shape = " x ".join(map(str, samples.inputs.shape[1:]))
        lines.insert(0, f"rows, distances = index.search(encoder.encode(inputs), 10)   # {kind}, N x {shape}")
    found = "their files" if of_files else "their rows in the array they came from"
    return [*lines, f"index.items[rows]   # what was found: {found}"]


def _backbone(settings: TrialSettings) -> str:
    """What the model card says of the backbone, and of the weights of a frozen one."""
    if not settings.trial.freeze:
        return settings.trial.backbone
    found = pretrained(settings.trial, settings.dataset.options.get("size"))
    return f"{found.description}; head {settings.trial.head}"


def _in_symbols(settings: TrialSettings) -> str:
    """What the method reads of the settings that the papers have a symbol for."""
    trial = settings.trial
    values = ((symbol.name, getattr(trial, name)) for name, symbol in symbols(settings.method, trial).items())
    told = ", ".join(f"{name} = {value}" for name, value in values if value is not None)
    if trial.open_bits:
        told += f", of which {trial.open_bits} bits are open (fitted to the inputs, not trained)"
    if trial.nested:
        told += f", whose first {' and first '.join(map(str, trial.nested))} bits are codes of their own"
    rounds = "" if trial.reassignment == "none" else f" after {trial.early_epochs} epochs"
    return f"{told}{rounds}"


def on_unseen_classes(metrics: dict[str, float], held: int | None = None) -> str:
    """What is known of classes that training has not seen, in one line; ``held`` is how many were held out."""
    found = {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith(("val/", "test/"))}
    if "map_unseen" not in found:
        return (
            "On classes it has not seen: not measured. One more training does: `crh-tune train settings.yaml` with "
            "`validation.classes: 0.2` in that file, which holds a fifth of the classes out."
        )
    free = f", training-free (PCA + ITQ): {found['map_unseen_itq']:.4f}" if "map_unseen_itq" in found else ""
    which = "" if held is None else f" ({held} held out)"
    return (
        f"On classes it has not seen{which}: mAP {found['map_unseen']:.4f}{free}; all classes in one database: "
        f"{found['map_mixed']:.4f}."
    )


def model_card(settings: TrialSettings, split: Split, metrics: dict[str, float], lines: list[str]) -> str:
    """The model card: what it is, what it was trained on, what was measured, how to use it."""
    trial, evaluation = settings.trial, settings.evaluation
    size = split.database or split.train
    cutoff = "all" if evaluation.cutoff is None else str(evaluation.cutoff)
    measured = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    return "\n".join(
        [
            f"# {trial.bits}-bit codes for {settings.dataset.name}",
            "",
            f"Method {settings.method}, backbone {_backbone(settings)}: {_in_symbols(settings)}.",
            "",
            f"Trained {trial.epochs} epochs on {len(split.train)} samples of {split.classes} classes (seed "
            f"{trial.seed}); "
            f"{len(split.queries)} {'test' if split.stage == 'final' else 'validation'} queries ranked {len(size)} "
            f"database items. Split {split.fingerprint}.",
            "",
            f"mAP@{cutoff}, ties {evaluation.ties}, denominator {evaluation.denominator}, queries without a relevant "
            f"item: {evaluation.no_relevant}.",
            "",
            on_unseen_classes(metrics, None if split.unseen is None else len(split.unseen.class_names)),
            "",
            *lines,
            "",
            "| measured at the last epoch | |",
            "|---|---|",
            measured,
            "",
            "```python",
            "from crh_tune.export import load_encoder, load_index",
            "",
            'encoder, index = load_encoder("."), load_index(".")',
            *_usage(settings, split.train),
            "```",
            "",
            f"Run it again: `crh-tune train {SETTINGS_FILE}`",
            "",
        ]
    )
