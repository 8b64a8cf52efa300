"""Sessions of onnxruntime: on the CPU, on all the cores of this process, without what it says to its developers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(model: bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session of an ONNX model on the CPU; ``threads``: in place of all cores.

    Raises whatever onnxruntime raises on what is no such model.
    """
    import onnxruntime  # noqa: PLC0415  # whoever only reads an index needs it not

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
