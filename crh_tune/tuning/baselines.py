"""What training brings: a search's winner against what needs no training, on the same queries.

Features are ranked: those that the search trains on, or those of the pretrained network that it trains further, as that
network was before.

Baselines are scored when the final runs have asked the test queries: those are asked once a baseline too. A search that
is killed before its summary is written scores them again, with the same numbers and under the same keys in MLflow.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from crh_tune.data.listing import DataError
from crh_tune.data.splits import Samples, Split, final_split, search_split
from crh_tune.ground import first_line
from crh_tune.retrieval.average_precision import (
    Floats,
    LabelledCodes,
    RankingProtocol,
    average_precisions,
    mean_average_precision,
)
from crh_tune.retrieval.baselines import LinearCodes, bootstrap_gain, cosine_average_precisions, pca_itq, pca_rotation
from crh_tune.retrieval.packing import pack_codes
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.settings.training import TrainingSettings
from crh_tune.settings.trial import DatasetSettings, TrialSettings
from crh_tune.training.evaluation import encode_share, gather_codes
from crh_tune.training.opening import restored
from crh_tune.training.workers import Workers
from crh_tune.tuning.events import Place
from crh_tune.tuning.feature_pass import open_on_cluster
from crh_tune.tuning.pages import OUTCOME_TAG, ROLE_TAG, SPLIT_TAG, STAGE_TAG, origin
from crh_tune.tuning.progress import Say
from crh_tune.tuning.record import COMPLETE, Outcome
from crh_tune.tuning.results import FLOAT_COSINE, ITQ, ROTATION, Baseline, checkpoint_in

_NONE = "no ranking without training is scored: "


def validation_of_baselines(settings: SearchSettings, first: Split) -> dict[str, float]:
    """The mAP of each baseline on the search's validation queries; none where its inputs are no features."""
    if first.train.inputs.ndim != 2:
        return {}
    return _means(first, settings.trial.bits, settings.seed, settings.evaluation.protocol)


def compare_with_baselines(
    place: Place, first: Split, last: Split, tested: Outcome, seed: int, say: Say
) -> tuple[Baseline, ...]:
    """Score the baselines at the code length of the winner, whose final run is ``tested``, and tell MLflow.

    ``first`` and ``last`` are the search's and the final split. What the board has of the validation queries is not
    scored again. None is scored where there are no features, or scoring fails, and a line says so. Raises SettingsError
    where the winner's checkpoint cannot be read.
    """
    settings = tested.trial_settings
    splits = splits_of_features(settings, first, last, say)
    if splits is None:
        return ()
    say(f"scoring what needs no training: {FLOAT_COSINE}, {ROTATION} and {ITQ} at {settings.trial.bits} bits")
    protocol = settings.evaluation.protocol
    won = _winner_precisions(settings, checkpoint_in(place.folder, tested))
    board = place.board
    is_known = board is not None and board.untrained and board.settings.trial.bits == settings.trial.bits
    try:
        held_out = board.untrained if board and is_known else _means(splits[0], settings.trial.bits, seed, protocol)
        on_test = _precisions(splits[1], settings.trial.bits, seed, protocol)
    except (ValueError, MemoryError) as error:  # the search is done, and its result stands without them
        say(f"{_NONE}{first_line(error)}")
        return ()
    baselines = []
    for name, found in on_test.items():
        gain = bootstrap_gain(won, found, seed, no_relevant=protocol.no_relevant)
        test = mean_average_precision(found, protocol.no_relevant)
        size = _bytes_per_item(name, splits[1], settings.trial.bits)
        baselines.append(Baseline(name, size, held_out[name], test, *gain))
        _log(
            place,
            settings,
            seed,
            baselines[-1],
            {SPLIT_TAG: last.fingerprint, f"{SPLIT_TAG}.search": first.fingerprint},
        )
    return tuple(baselines)


def splits_of_features(settings: TrialSettings, first: Split, last: Split, say: Say) -> tuple[Split, Split] | None:
    """The search's and the final split with features as inputs: their own, or those of the pretrained network.

    None where the network is trained from scratch, or its features cannot be had; ``say`` hears why.
    """
    if first.train.inputs.ndim == 2:
        return first, last
    trial = settings.trial
    if trial.weights is None:
        say(f"{_NONE}a network trained from scratch has no features before")
        return None
    say(f"{trial.backbone} as it was pretrained sees all images once, for rankings without training")
    options = {name: value for name, value in settings.dataset.options.items() if name != "size"}
    frozen = TrainingSettings(backbone=trial.backbone, weights=trial.weights, freeze=True)
    try:
        opened = open_on_cluster(DatasetSettings(name=settings.dataset.name, **options), frozen, settings.scaling, say)
    except (DataError, SettingsError) as error:
        say(f"{_NONE}{error}")
        return None
    return search_split(opened, **settings.validation.model_dump()), final_split(
        opened, **settings.validation.held_classes
    )


def _winner_precisions(settings: TrialSettings, checkpoint: Path) -> Floats:
    """The average precision of each test query under the codes of a final run's last checkpoint."""
    workers = Workers(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    run = restored(settings, "final", checkpoint, workers)

    def codes(samples: Samples) -> LabelledCodes:
        return gather_codes(encode_share(run.network, samples, workers), samples, workers)

    database = codes(run.split.database or run.split.train)
    return average_precisions(codes(run.split.queries), database, settings.evaluation.protocol)


def _means(split: Split, bits: int, seed: int, protocol: RankingProtocol) -> dict[str, float]:
    """The mAP of each baseline on the queries of the split."""
    found = _precisions(split, bits, seed, protocol)
    return {name: mean_average_precision(each, protocol.no_relevant) for name, each in found.items()}


def _precisions(split: Split, bits: int, seed: int, protocol: RankingProtocol) -> dict[str, Floats]:
    """The average precision of each query of the split under each baseline, fitted on its training samples."""
    train, queries, database = split.train.inputs, split.queries, split.database or split.train
    rotated = pca_rotation(train, bits, seed)

    def of_codes(fitted: LinearCodes) -> Floats:
        asked, ranked = (
            LabelledCodes(pack_codes(fitted.encode(each.inputs)), each.labels, bits) for each in (queries, database)
        )
        return average_precisions(asked, ranked, protocol)

    return {
        FLOAT_COSINE: cosine_average_precisions(
            queries.inputs, queries.labels, database.inputs, database.labels, protocol
        ),
        ROTATION: of_codes(rotated),
        ITQ: of_codes(pca_itq(train, bits, seed, start=rotated)),
    }


def _bytes_per_item(name: str, split: Split, bits: int) -> int:
    """What an item takes: a float32 for each feature, or its code in whole machine words."""
    if name == FLOAT_COSINE:
        return 4 * int(split.train.inputs.shape[1])
    return int(pack_codes(np.zeros((1, bits), dtype=bool)).nbytes)


def _log(place: Place, settings: TrialSettings, seed: int, baseline: Baseline, splits: dict[str, str]) -> None:
    """Tell MLflow of a baseline, as one finished run; a second time changes nothing."""
    name = f"baseline-{baseline.name.replace(' + ', '-').replace(' ', '-').lower()}"
    key, tracker = place.key(name), place.tracker
    tags = {STAGE_TAG: "baseline", ROLE_TAG: "baseline", OUTCOME_TAG: COMPLETE, **splits}
    tracker.start_run(key, name, place.search_id, tags)
    data, context = settings.dataset, "training and test"
    tracker.dataset(key, data.name, splits[SPLIT_TAG], origin(data), context)
    length = {} if baseline.name == FLOAT_COSINE else {"bits": settings.trial.bits, "seed": seed}
    tracker.params(key, {"method": baseline.name, "dataset": settings.dataset.name, **length})
    metrics = {
        "val/map": baseline.validation,
        "test/map": baseline.test,
        "gain/map": baseline.gain,
        "gain/low": baseline.gain_low,
        "gain/high": baseline.gain_high,
        "bytes_per_item": float(baseline.bytes_per_item),
    }
    tracker.metrics(key, {name: value for name, value in metrics.items() if math.isfinite(value)}, 0)
    tracker.rename(key, f"{baseline.validation:.3f} · {baseline.name}, needs no training")
    tracker.end_run(key, "FINISHED")
