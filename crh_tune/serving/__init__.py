"""An exported encoder and index in a service: NumPy, onnxruntime and Pillow are all it needs."""

from crh_tune.serving.encoder import Encoder, load_encoder
from crh_tune.serving.index import Index, load_index
from crh_tune.serving.reach import Reach, load_reach

__all__ = ["Encoder", "Index", "Reach", "load_encoder", "load_index", "load_reach"]
