"""What a search hands over: settings that can be run again, an encoder, its centres, an index, and a model card."""

from crh_tune.export.bundle import Encoder, load_encoder, load_index
from crh_tune.retrieval.index import Index

__all__ = ["Encoder", "Index", "load_encoder", "load_index"]
