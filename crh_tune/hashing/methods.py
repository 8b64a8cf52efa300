"""The table of methods: method = objective x centres x reassignment x heads x hash layer x optimizer defaults.

A method is a preset of trial settings. Any of them can be set beside the method, and then that value counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reassignment = Literal["greedy", "hungarian", "none"]
Heads = Literal["multi", "single"]
Centers = Literal["codebook", "bernoulli", "hadamard", "mds", "shc", "none"]
"""Where centres come from: chosen from a codebook of M words, C centres of their own, or no centres at all."""
HashLayer = Literal["linear", "linear_batch_norm", "three_layers"]
"""One linear layer; one without bias, batch-normalised (OrthoHash, MDS); three with ReLU and dropout (CSQ's code)."""
OptimizerName = Literal["adam", "rmsprop"]
Schedule = Literal["cosine", "constant", "every_10_epochs", "at_80_percent"]
"""cosine to zero; constant; x 0.7 every 10 epochs (CSQ); x 0.1 after 80 % of the epochs (OrthoHash)."""
Precision = Literal["fp32", "bf16"]
"""bf16: the backbone under bfloat16 autocast; the hash layer, the objective and the weights stay in float32."""


@dataclass(frozen=True)
class Optimizer:
    """Optimizer defaults for a pretrained backbone, whose learning rate is ``backbone_ratio`` times the head's.

    ``betas`` are Adam's, the usual ones unless the method's paper or release has others.
    """

    name: OptimizerName = "adam"
    learning_rate: float = 1e-4
    backbone_ratio: float = 1.0
    weight_decay: float = 1e-5
    schedule: Schedule = "cosine"
    gradient_clip: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    title: str
    paper: str
    objective: str
    centers: Centers = "none"
    reassignment: Reassignment = "none"
    heads: Heads = "single"
    hash_layer: HashLayer = "linear"
    optimizer: Optimizer = Optimizer()


_CRH = Optimizer(betas=(0.5, 0.999))
_CSQ = Optimizer(learning_rate=1e-3, backbone_ratio=0.01, weight_decay=0.0, schedule="every_10_epochs")
_ORTHO = Optimizer(backbone_ratio=0.1, weight_decay=5e-4, schedule="at_80_percent")
_MDS = Optimizer("rmsprop", 1e-5, schedule="constant", gradient_clip=5.0)
_SHC = Optimizer("rmsprop", 1e-4)

METHODS: dict[str, Method] = {
    "crh": Method(
        "CRH", "Yin et al., AAAI 2026", "margin_cross_entropy", "codebook", "greedy", "multi", optimizer=_CRH
    ),
    "crh_m": Method("CRH-M", "Yin et al., AAAI 2026", "margin_cross_entropy", "codebook", "greedy", optimizer=_CRH),
    "crh_u": Method("CRH-U", "Yin et al., AAAI 2026", "margin_cross_entropy", "codebook", optimizer=_CRH),
    "csq": Method("CSQ", "Yuan et al., CVPR 2020", "central_similarity", "hadamard", optimizer=_CSQ),
    "csq_u": Method("CSQ_U", "Yin et al., AAAI 2026", "central_similarity", "hadamard", "greedy", optimizer=_CSQ),
    "orthohash": Method(
        "OrthoHash", "Hoe et al., NeurIPS 2021", "ortho_cosine", "bernoulli",
        hash_layer="linear_batch_norm", optimizer=_ORTHO,
    ),
    "orthohash_u": Method(
        "OrthoHash_U", "Yin et al., AAAI 2026", "ortho_cosine", "bernoulli", "greedy",
        hash_layer="linear_batch_norm", optimizer=_ORTHO,
    ),
    "mds": Method(
        "MDS", "Wang et al., CVPR 2023", "minimal_distance", "mds",
        hash_layer="linear_batch_norm", optimizer=_MDS,
    ),
    "mds_u": Method(
        "MDS_U", "Yin et al., AAAI 2026", "minimal_distance", "mds", "greedy",
        hash_layer="linear_batch_norm", optimizer=_MDS,
    ),
    "shc": Method("SHC", "Chen et al., TOIS 2025", "central_similarity", "shc", optimizer=_SHC),
    "dpn": Method("DPN", "Fan et al., IJCAI 2020", "polarization", "bernoulli"),
    "hashnet": Method("HashNet", "Cao et al., ICCV 2017", "pairwise_continuation"),
    "dtsh": Method("DTSH", "Wang, Shi and Kitani, ACCV 2016", "triplet_likelihood"),
    "greedyhash": Method("GreedyHash", "Su et al., NeurIPS 2018", "greedy_sign"),
}  # fmt: skip
