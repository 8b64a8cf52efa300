"""The exported encoder without torch: ``encoder.onnx`` under onnxruntime."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crh_tune.data.store.decode import MEGAPIXELS, STRETCHED, BadImage, Fit, Span, decode
from crh_tune.errors import DataError
from crh_tune.ground import first_line
from crh_tune.retrieval.packing import Packed, first_bits, pack_codes
from crh_tune.serving.session import open_session

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[Any]
ONNX_FILE = "encoder.onnx"
FORMAT = 1
INPUT, OUTPUTS = "inputs", ["u", "codes"]
NOTES = "crh_tune"
"""The name under which the file keeps what its inputs are, as JSON."""
BATCH = 256
_BATCH_BYTES = 64 * 2**20
_LARGEST_FILE = 2 * 2**30
_ELSEWHERE = b"location"
"""What an ONNX file holds if its weights are to be read from files it names; never in the files of an export."""


@dataclass(frozen=True)
class Encoder:
    """A trained hash network under onnxruntime. ``shape`` and ``dtype`` are those of one input.

    ``fit``, ``span`` and ``megapixels`` say how an image file becomes an input, as it did in training. ``name`` is a
    digest of the weights: codes of encoders of other names are not to be compared. ``lengths`` are those that codes can
    have, the network's own last; ``bits``, one of them, is the one that they have: the first so many bits.
    """

    session: onnxruntime.InferenceSession
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    bits: int
    class_names: tuple[str, ...]
    name: str
    lengths: tuple[int, ...]
    fit: Fit = STRETCHED
    span: Span | None = None
    megapixels: float = MEGAPIXELS

    @property
    def empty(self) -> Packed:
        """No codes: 0 x W words of the type that codes have."""
        return pack_codes(np.zeros((0, self.bits), dtype=bool))

    def of_bits(self, bits: int) -> Encoder:
        """The same with codes of another of its ``lengths``. Raises ValueError for any other."""
        return replace(self, bits=want_length(bits, self.lengths))

    def outputs(self, inputs: Array) -> npt.NDArray[np.float32]:
        """u of N inputs, N x K: the sign is the bit, the size says how sure it is. Raises ValueError as ``encode``."""
        return self._run(inputs)[0]

    def encode(self, inputs: Array) -> Packed:
        """Packed codes (N x W machine words) of N inputs: uint8 images N x C x H x W, or features N x D.

        Raises ValueError when the inputs are not of the encoder's shape and type.
        """
        return self._run(inputs)[1]

    def both(self, inputs: Array) -> tuple[npt.NDArray[np.float32], Packed]:
        """u and packed codes of N inputs. Raises ValueError as ``encode``."""
        return self._run(inputs)

    def encode_files(self, paths: Sequence[str | Path]) -> Packed:
        """Packed codes (N x W machine words) of N image files, resized as the training images were.

        Raises TypeError for one path in place of several, ValueError for an encoder of something else than square RGB
        images, or a file that is no image.
        """
        if isinstance(paths, str | Path):
            raise TypeError(f"encode_files takes a list of files, got {str(paths)!r}: encode_files([{str(paths)!r}])")
        self.want_images()
        found = [
            self.encode(np.stack([self.read(path) for path in paths[i : i + BATCH]]))
            for i in range(0, len(paths), BATCH)
        ]
        return np.concatenate(found) if found else self.encode(np.empty((0, *self.shape), dtype=self.dtype))

    def read(self, path: str | Path) -> npt.NDArray[np.uint8]:
        """One image file as an input, 3 x S x S. Raises ValueError, naming the file, where it is none."""
        try:
            return self.decode(Path(path).read_bytes())
        except (BadImage, OSError) as error:
            raise ValueError(f"{path}: {error}") from None

    def decode(self, content: bytes) -> npt.NDArray[np.uint8]:
        """The bytes of an image file as an input, 3 x S x S. Raises BadImage."""
        return decode(content, self.shape[1], self.fit, self.span, self.megapixels).transpose(2, 0, 1)

    def want_images(self) -> None:
        """Raises ValueError where this encoder takes something else than square RGB images."""
        if len(self.shape) != 3 or self.shape[0] != 3 or self.shape[1] != self.shape[2]:
            raise ValueError(f"image files are for encoders of square RGB images, this one takes {self.shape}")

    def _run(self, inputs: Array) -> tuple[npt.NDArray[np.float32], Packed]:
        if inputs.shape[1:] != self.shape or inputs.ndim != len(self.shape) + 1:
            wanted = " x ".join(map(str, self.shape))
            raise ValueError(f"inputs of shape N x {wanted} expected, got {inputs.shape}")
        if not np.can_cast(inputs.dtype, self.dtype, "same_kind"):
            raise ValueError(f"inputs of type {self.dtype} expected, got {inputs.dtype}")
        us, words = [np.zeros((0, self.bits), dtype=np.float32)], [self.empty]
        size = max(1, min(BATCH, _BATCH_BYTES // max(1, math.prod(self.shape) * self.dtype.itemsize)))
        for start in range(0, len(inputs), size):
            batch = np.ascontiguousarray(inputs[start : start + size], dtype=self.dtype)
            u, codes = self._checked(self.session.run(OUTPUTS, {INPUT: batch}), len(batch))
            us.append(u[:, : self.bits])
            words.append(first_bits(codes, self.bits))
        return np.concatenate(us), np.concatenate(words)

    def _checked(self, found: Sequence[Any], count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Raises DataError where the file's network gives something else than outputs and their codes."""
        (u, codes), bits = (np.asarray(each) for each in found), self.lengths[-1]
        sound = u.shape == (count, bits) and u.dtype == np.float32 and np.isfinite(u).all()
        expected = pack_codes(u) if sound else None
        if expected is None or codes.dtype != np.uint8 or not np.array_equal(codes, expected.view(np.uint8)):
            raise DataError(f"{ONNX_FILE} gives no {bits} outputs with their codes: export the encoder again")
        return u, codes


def want_length(bits: int, lengths: Sequence[int]) -> int:
    """The same number. Raises ValueError where codes cannot have this length."""
    if bits not in lengths:
        known = " or ".join(map(str, lengths))
        raise ValueError(f"no codes of {bits} bits: this encoder was trained for {known} bits (trial.nested)")
    return bits


def load_encoder(folder: str | Path, threads: int | None = None, bits: int | None = None) -> Encoder:
    """Read ``encoder.onnx`` of an exported folder; ``threads``: in place of all cores.

    ``bits``: a shorter length that was trained with it (``trial.nested``), whose codes are the first bits of the whole.

    Raises DataError, naming the file, when it is missing or broken, or has no codes of this length.
    """
    path = Path(folder) / ONNX_FILE
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("more than 2 GiB")
        model = path.read_bytes()
        if _ELSEWHERE in model:
            raise ValueError("its weights lie in other files")
        session = open_session(model, threads)
        whole = _encoder(session, json.loads(session.get_modelmeta().custom_metadata_map[NOTES]))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file: crh-tune export SEARCH writes it") from None
    except KeyError as error:
        raise DataError(f"{path}: not an encoder of crh-tune export: {error} is missing") from None
    except Exception as error:  # whatever onnxruntime raises on what is no model
        raise DataError(f"{path}: not a readable encoder: {first_line(error)[:300]}") from None
    try:
        return whole if bits is None else whole.of_bits(bits)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _encoder(session: onnxruntime.InferenceSession, notes: dict[str, Any]) -> Encoder:
    """Raises ValueError, KeyError or TypeError where the notes are not those of an encoder, or not of this one."""
    if notes["format"] != FORMAT:
        raise ValueError(f"format {notes['format']!r}, this version reads {FORMAT}: export it again")
    bits, shape, names = notes["bits"], tuple(notes["shape"]), tuple(notes["class_names"])
    lengths = (*notes.get("nested", ()), bits)
    numbers = (*lengths, *shape)
    if not all(type(number) is int and 0 < number <= 2**24 for number in numbers) or math.prod(shape) > 2**28:
        raise ValueError(f"{bits!r} bits of inputs of shape {shape}")
    if list(lengths) != sorted(set(lengths)):
        raise ValueError(f"codes of {lengths} bits")
    if not all(isinstance(text, str) for text in (*names, notes["encoder"])):
        raise ValueError("names that are no text")
    dtype, span, fit = np.dtype(notes["dtype"]), notes["span"], Fit(notes["fit"]["crop"], notes["fit"]["interpolation"])
    if dtype.kind not in "uif" or fit.interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"inputs of type {dtype}, {fit.interpolation!r} interpolation")
    if fit.crop is not None and not 0 < fit.crop <= 1:
        raise ValueError(f"crop {fit.crop!r}")
    megapixels = float(notes.get("megapixels", MEGAPIXELS))
    if not megapixels > 0:
        raise ValueError(f"images of at most {megapixels} megapixels")
    inputs, outputs = session.get_inputs(), [each.name for each in session.get_outputs()]
    if [each.name for each in inputs] != [INPUT] or list(inputs[0].shape[1:]) != list(shape) or outputs != OUTPUTS:
        raise ValueError("a network of other inputs or outputs than its notes say")
    return Encoder(
        session,
        shape,
        dtype,
        bits,
        names,
        notes["encoder"],
        lengths,
        fit,
        None if span is None else (float(span[0]), float(span[1])),
        megapixels,
    )
