"""Training objectives, one file each. An objective maps outputs, targets and centres to named per-sample losses."""

from __future__ import annotations

from crh_tune.hashing.objectives.base import Objective, ObjectiveOptions
from crh_tune.hashing.objectives.central_similarity import CentralSimilarity
from crh_tune.hashing.objectives.greedy_sign import GreedySign
from crh_tune.hashing.objectives.margin_cross_entropy import MarginCrossEntropy
from crh_tune.hashing.objectives.minimal_distance import MinimalDistance
from crh_tune.hashing.objectives.ortho_cosine import OrthoCosine
from crh_tune.hashing.objectives.pairwise_continuation import PairwiseContinuation
from crh_tune.hashing.objectives.triplet_likelihood import TripletLikelihood

OBJECTIVES: dict[str, type[Objective]] = {
    "margin_cross_entropy": MarginCrossEntropy,
    "ortho_cosine": OrthoCosine,
    "central_similarity": CentralSimilarity,
    "minimal_distance": MinimalDistance,
    "pairwise_continuation": PairwiseContinuation,
    "triplet_likelihood": TripletLikelihood,
    "greedy_sign": GreedySign,
}

__all__ = ["OBJECTIVES", "Objective", "ObjectiveOptions"]
