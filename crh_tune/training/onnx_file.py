"""A network as an ONNX file, by the exporter that is built on torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn


def write_onnx(
    network: nn.Module,
    example: Tensor,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a network for batches of any size (``example``: two inputs or more) as ONNX.

    ``notes`` are kept in the file; nothing of this machine is. Raises whatever the exporter raises on a layer that it
    does not know.
    """
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # which line of which file on this machine it came from
        program.model.metadata_props.clear()
        program.model.metadata_props.update(notes or {})
        program.save(str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
