"""An export as an MLflow model: ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` read it through this module.

No object is unpickled: the model's files are an export's folder, and this module is named as what loads them.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from crh_tune.data.store.decode import BadImage
from crh_tune.serving.answers import COUNT, WAYS, Answers, By, open_answers
from crh_tune.serving.encoder import BATCH, Array
from crh_tune.serving.photos import Found

MOST = 1000
"""Neighbours of one input."""
PARAMS: dict[str, Any] = {"count": COUNT, "by": WAYS[0]}
"""What MLflow's ``params`` may hold, and their defaults."""


class Served:
    """What MLflow calls: ``predict`` takes photos, files or arrays, and gives codes and neighbours."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """For each of N inputs its ``code`` (hexadecimal, as the bytes of the packed words) and its ``neighbours``.

        ``params``: ``count`` neighbours (10), ranked ``by`` "bits" or "outputs".
        Inputs are an array N x C x H x W or N x D, a list of files' bytes or paths, or a table with a column ``image``
        (bytes, or base64 text as JSON has it), or a column ``path``. Raises ValueError, naming the row, for others.
        """
        count, by = _asked(params or {})
        inputs, found = self._inputs(model_input), []
        for start in range(0, len(inputs), BATCH):
            outputs, words = self.answers.encoder.both(self._array(inputs[start : start + BATCH], start))
            near = self.answers.near(words, outputs if by == "outputs" else None, count)
            found += [
                {"code": word.tobytes().hex(), "neighbours": [_told(each) for each in neighbours]}
                for word, neighbours in zip(words, near, strict=True)
            ]
        return found

    def _inputs(self, given: Any) -> Any:
        """An array, or a list of bytes and paths."""
        columns = [str(name) for name in getattr(given, "columns", [])]
        if columns:
            name = next((name for name in ("image", "path") if name in columns), None)
            if name is not None:
                return [
                    _content(value, row) if name == "image" else Path(value) for row, value in enumerate(given[name])
                ]
            return given.to_numpy()
        if isinstance(given, bytes | str | Path):
            return [given]
        array = given if isinstance(given, np.ndarray) else None
        if array is not None and array.dtype.kind in "uif":
            return array
        return list(given)

    def _array(self, part: Any, start: int) -> Array:
        encoder = self.answers.encoder
        if isinstance(part, np.ndarray):
            if encoder.dtype == np.uint8 and part.dtype != np.uint8:  # JSON has no small integers
                if part.dtype.kind not in "ui" or part.min(initial=0) < 0 or part.max(initial=0) > 255:
                    raise ValueError(f"images of whole numbers from 0 to 255 expected, got {part.dtype}")
                return part.astype(np.uint8)
            return part.astype(encoder.dtype) if encoder.dtype.kind == "f" and part.dtype.kind in "if" else part
        encoder.want_images()
        return np.stack([self._image(value, row) for row, value in enumerate(part, start)])

    def _image(self, value: Any, row: int) -> Array:
        if isinstance(value, str | Path):
            return self.answers.encoder.read(value)
        if not isinstance(value, bytes):
            raise ValueError(f"row {row}: an image's bytes or a path expected, got {type(value).__name__}")
        try:
            return self.answers.encoder.decode(value)
        except BadImage as error:
            raise ValueError(f"row {row}: {error}") from None


def _told(found: Found) -> dict[str, Any]:
    """A neighbour, with a score where it was ranked by one."""
    return {name: value for name, value in asdict(found).items() if value is not None}


def _asked(params: dict[str, Any]) -> tuple[int, By]:
    count, by = ({**PARAMS, **params}[name] for name in ("count", "by"))
    if not isinstance(count, int | np.integer) or not 0 < count <= MOST:
        raise ValueError(f"count: a whole number from 1 to {MOST} expected, got {count!r}")
    if by not in WAYS:
        raise ValueError(f"by: one of {', '.join(WAYS)} expected, got {by!r}")
    return int(count), by


def _content(value: Any, row: int) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"row {row}: image: the bytes of a file, or base64 text, expected") from None


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls with the folder of the model's files. Raises DataError where the export is broken."""
    return Served(open_answers(Path(path)))
