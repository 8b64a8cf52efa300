"""Codes of samples, and what they are worth: encoding and ranking, shared out over the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from crh_tune.data.splits import Samples, Split, unseen_labels
from crh_tune.data.store.stored import prototype_vectors
from crh_tune.hashing.codebook import Codes, center_distances
from crh_tune.hashing.network import FrozenHashNetwork, HashNetwork
from crh_tune.retrieval.alignment import class_prototypes, cosine_similarity, semantic_alignment
from crh_tune.retrieval.asymmetric import asymmetric_average_precisions
from crh_tune.retrieval.average_precision import (
    LabelledCodes,
    RankingProtocol,
    average_precisions,
    mean_average_precision,
)
from crh_tune.retrieval.baselines import pca_itq
from crh_tune.retrieval.packing import pack_codes
from crh_tune.training.batches import load_inputs
from crh_tune.training.workers import Workers

_ENCODE_BATCH = 256


def encode_share(network: HashNetwork | FrozenHashNetwork, samples: Samples, workers: Workers) -> torch.Tensor:
    """Codes of this worker's share of the samples: share x K, boolean, True for +1."""
    nothing = torch.empty(0, network.bits, dtype=torch.bool, device=workers.device)
    return torch.cat([nothing, *_over_share(network, network.encode, samples, workers)])


@torch.inference_mode()
def outputs_share(network: HashNetwork | FrozenHashNetwork, samples: Samples, workers: Workers) -> torch.Tensor:
    """Real outputs u of this worker's share of the samples, whose signs are the codes: share x K, float32."""
    nothing = torch.empty(0, network.bits, device=workers.device)
    return torch.cat([nothing, *(part.float() for part in _over_share(network, network, samples, workers))])


def _over_share(
    network: nn.Module, of: Callable[[torch.Tensor], torch.Tensor], samples: Samples, workers: Workers
) -> list[torch.Tensor]:
    """What ``of`` makes of each batch of this worker's share, with the network in eval mode."""
    rows = workers.share(np.arange(len(samples)))
    was_training = network.training
    network.eval()
    batches = [rows[start : start + _ENCODE_BATCH] for start in range(0, len(rows), _ENCODE_BATCH)]
    parts = [of(inputs) for inputs in load_inputs(samples, batches, workers.device)]
    network.train(was_training)
    return parts


def gather_codes(share: torch.Tensor, samples: Samples, workers: Workers) -> LabelledCodes:
    """The packed codes of all samples from every worker's share of them."""
    return LabelledCodes(workers.gather(pack_codes(share.cpu().numpy())), samples.labels, share.shape[1])


def ranking_map(queries: LabelledCodes, database: LabelledCodes, protocol: RankingProtocol, workers: Workers) -> float:
    """mAP with each worker ranking its share of the queries; the mean is taken in query order."""
    mine = queries[workers.share(np.arange(len(queries)))]
    values = workers.gather(average_precisions(mine, database, protocol, torch.get_num_threads()))
    return mean_average_precision(values.astype(np.float64), protocol.no_relevant)


def nested_maps(
    queries: LabelledCodes,
    database: LabelledCodes,
    lengths: Sequence[int],
    protocol: RankingProtocol,
    workers: Workers,
) -> dict[str, float]:
    """mAP of the first so many bits of the codes, for each of some lengths: ``map_16`` of 16 bits."""
    return {
        f"map_{bits}": ranking_map(queries.first_bits(bits), database.first_bits(bits), protocol, workers)
        for bits in lengths
    }


def shorter_test_maps(metrics: Mapping[str, float]) -> dict[int, float]:
    """Among a final run's metrics the mAP of the nested lengths, by length, the shortest first."""
    found = {name.removeprefix("test/map_"): value for name, value in metrics.items() if name.startswith("test/map_")}
    return dict(sorted((int(bits), value) for bits, value in found.items() if bits.isdecimal()))


def asymmetric_map(
    share: torch.Tensor, queries: Samples, database: LabelledCodes, protocol: RankingProtocol, workers: Workers
) -> float:
    """mAP of real query outputs against stored bits, from this worker's share of the outputs."""
    mine = queries.labels[workers.share(np.arange(len(queries)))]
    outputs = share.cpu().numpy()
    values = workers.gather(asymmetric_average_precisions(outputs, mine, database, protocol, torch.get_num_threads()))
    return mean_average_precision(values.astype(np.float64), protocol.no_relevant)


def unseen_maps(
    seen: tuple[LabelledCodes, LabelledCodes],
    unseen: tuple[LabelledCodes, LabelledCodes],
    classes: int,
    protocol: RankingProtocol,
    workers: Workers,
) -> dict[str, float]:
    """mAP of the classes held out among themselves, and of all queries in one database.

    ``seen`` and ``unseen`` are queries and database; ``classes`` is how many the training has.
    """
    among = [
        replace(part, labels=part.labels[:, classes:] if part.labels.ndim == 2 else part.labels) for part in unseen
    ]
    mixed = [_together(*parts) for parts in zip(seen, unseen, strict=True)]
    return {
        "map_unseen": ranking_map(among[0], among[1], protocol, workers),
        "map_mixed": ranking_map(mixed[0], mixed[1], protocol, workers),
    }


def _together(seen: LabelledCodes, unseen: LabelledCodes) -> LabelledCodes:
    """Both as one; multi-hot rows of the seen get empty columns for the classes held out."""
    labels = seen.labels
    if labels.ndim == 2:
        labels = np.pad(labels, ((0, 0), (0, unseen.labels.shape[1] - labels.shape[1])))
    words = np.concatenate([seen.words, unseen.words])
    return LabelledCodes(words, np.concatenate([labels, unseen.labels]), seen.bits)


def harmonic_mean(first: float, second: float) -> float:
    """Of two numbers that are not negative; 0 where one of them is."""
    return 2 * first * second / (first + second) if first and second else 0.0


def untrained_unseen_map(split: Split, bits: int, seed: int, protocol: RankingProtocol) -> float | None:
    """mAP of the classes held out under PCA + ITQ of the inputs, fitted on the training samples.

    None where no class is held out, or the inputs are no vectors.
    """
    unseen, inputs = split.unseen, split.train.inputs
    if unseen is None or inputs.ndim != 2:
        return None
    fitted = pca_itq(inputs, bits, seed)
    queries, database = (
        LabelledCodes(pack_codes(fitted.encode(part.inputs)), unseen_labels(part, split.classes), bits)
        for part in (unseen.queries, unseen.database)
    )
    return mean_average_precision(average_precisions(queries, database, protocol), protocol.no_relevant)


def reference_similarity(split: Split) -> npt.NDArray[np.float64]:
    """C x C: the dataset's own, or the cosine of its classes' mean inputs after the mean of all is taken off."""
    if split.reference is not None:
        return split.reference
    means = [part.mean(axis=0, dtype=np.float64) * len(part) for part in prototype_vectors(split.train.inputs)]
    mean = np.sum(means, axis=0) / len(split.train)
    centred = (part - mean for part in prototype_vectors(split.train.inputs))
    return cosine_similarity(class_prototypes(centred, split.train.labels, split.classes))


def center_metrics(centers: Codes, reference: npt.NDArray[np.float64]) -> dict[str, float]:
    """PCC against the reference, d_min and d_avg of C x K centres. PCC is left out where it is undefined."""
    d_min, d_avg = center_distances(centers)
    metrics = {"centers/d_min": float(d_min), "centers/d_avg": d_avg}
    pcc = semantic_alignment(centers, reference)
    return metrics if np.isnan(pcc) else {"centers/pcc": pcc, **metrics}
