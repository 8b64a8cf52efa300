"""An exported encoder and index in a service: NumPy, onnxruntime and Pillow are all it needs."""

from crh_tune.serving.encoder import Encoder, load_encoder
from crh_tune.serving.index import Index, load_index

__all__ = ["Encoder", "Index", "load_encoder", "load_index"]
