"""The epoch loop: updates when they are due, bit-exact repetition and continuation, honest use of queries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import Dataset, Samples, Split, search_split
from crh_tune.hashing.codebook import shared_centers
from crh_tune.retrieval.average_precision import RankingProtocol
from crh_tune.retrieval.baselines import pca_itq
from crh_tune.training import checkpoints, loop
from crh_tune.training.aggregator import Round, solve_locally
from crh_tune.training.batches import steps_per_epoch
from crh_tune.training.evaluation import encode_share, outputs_share, untrained_unseen_map
from crh_tune.training.loop import Metrics, Save, TrainingDiverged, TrainingRun
from crh_tune.training.workers import Workers
from tests.training.conftest import settings_for, split_of


def trained(settings, split, solve=solve_locally, report=lambda metrics, save: None) -> tuple[TrainingRun, Metrics]:
    run = TrainingRun(settings, split, Workers(), solve)
    return run, run.train(report)


def without_seconds(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds/")}


def test_a_run_that_ends_before_its_last_epoch_is_the_beginning_of_the_whole_one(tmp_path: Path):
    """After 3 of 6 epochs, which is evaluated as the last one is; a restored run ends there too, or is over."""
    split = split_of()
    settings = settings_for(split, epochs=6, evaluate_every=2)
    whole: dict[float, Metrics] = {}
    trained(
        settings_for(split, epochs=6, evaluate_every=1), split, report=lambda m, save: whole.update({m["epoch"]: m})
    )
    short: dict[float, Metrics] = {}

    def kept(metrics: Metrics, save: Save | None) -> None:
        short[metrics["epoch"]] = metrics
        if save is not None:
            save(tmp_path / f"after-{metrics['epoch']:.0f}")

    run = TrainingRun(settings, split, Workers(), solve_locally)
    last = run.train(kept, until=3)
    assert [(epoch, metrics["final"]) for epoch, metrics in short.items()] == [(2, 0), (3, 1)]
    assert run.epoch == 3
    assert {name: value for name, value in without_seconds(last).items() if name != "final"} == {
        name: value for name, value in without_seconds(whole[3]).items() if name != "final"
    }
    for epoch in (2, 3):
        resumed = TrainingRun(settings, split, Workers(), solve_locally)
        resumed.restore(tmp_path / f"after-{epoch}")
        assert without_seconds(resumed.train(lambda metrics, save: None, until=3)) == without_seconds(last)
        assert resumed.epoch == 3


@pytest.mark.parametrize("dataset", ["digits", "digit_sets"])
def test_the_same_seed_gives_the_same_metrics_and_weights_to_the_last_bit(dataset):
    split = split_of(dataset)
    settings = settings_for(split, dataset=dataset)
    (first, a), (second, b) = trained(settings, split), trained(settings, split)
    assert without_seconds(a) == without_seconds(b)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    _, c = trained(settings_for(split, dataset=dataset, seed=1), split)
    assert c["loss/total"] != a["loss/total"]


def test_a_run_continued_from_a_checkpoint_ends_bit_equal_to_the_uninterrupted_one(tmp_path: Path):
    split = split_of()
    settings = settings_for(split, epochs=4, early_epochs=2, update_interval=1)
    whole, expected = trained(settings, split)

    def stop_after_two(metrics: Metrics, save: Save | None) -> None:
        if metrics["epoch"] == 2:
            assert save is not None
            save(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(settings, split, report=stop_after_two)
    resumed = TrainingRun(settings, split, Workers(), solve_locally)
    resumed.restore(tmp_path)
    assert without_seconds(resumed.train(lambda metrics, save: None)) == without_seconds(expected)
    assert np.array_equal(resumed.table, whole.table)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_updates_come_every_early_epoch_then_at_the_interval_and_never_after_the_last():
    split = split_of()
    rounds: list[int] = []

    def solve(round_: Round, statistic: np.ndarray) -> np.ndarray:
        rounds.append(round_.number)
        return solve_locally(round_, statistic)

    trained(settings_for(split, epochs=9, early_epochs=3, update_interval=3), split, solve)
    assert rounds == [1, 2, 3, 6]


def test_crh_u_never_reassigns_and_keeps_its_first_centres():
    split = split_of()
    settings = settings_for(split, "crh_u")

    def solve(round_: Round, statistic: np.ndarray) -> np.ndarray:
        raise AssertionError("CRH-U asked for a reassignment")

    untrained = TrainingRun(settings, split, Workers(), solve)
    untrained.take_first_centers()
    run, metrics = trained(settings, split, solve)
    assert np.array_equal(run.table, untrained.table)
    assert metrics["centers/reassigned"] == 0


def test_crh_m_has_one_head_and_crh_has_several():
    split = split_of("digit_pairs")
    heads = {}
    for method in ("crh", "crh_m", "crh_u"):
        run = TrainingRun(settings_for(split, method, "digit_pairs"), split, Workers(), solve_locally)
        run.take_first_centers()
        heads[method] = run.codebook.heads
    assert heads == {"crh": 2, "crh_m": 1, "crh_u": 1}


def test_training_learns_and_no_two_classes_share_a_centre():
    split = split_of()
    run, metrics = trained(settings_for(split, epochs=8), split)
    assert metrics["val/map"] > 0.8  # random codes give about 0.1
    assert not shared_centers(run.centers)


def test_the_whole_space_is_a_codebook_too():
    split = split_of()
    run, metrics = trained(settings_for(split, epochs=6, codebook_size="full"), split)
    assert metrics["val/map"] > 0.7
    assert not shared_centers(run.centers)


def test_test_queries_are_asked_once_and_only_by_the_final_split(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def spied(real):
        def spy(network, samples, workers):
            if samples is final.queries:
                asked.append(1)
            return real(network, samples, workers)

        return spy

    for name in ("encode_share", "outputs_share"):
        monkeypatch.setattr(loop, name, spied(getattr(loop, name)))
    final, search = split_of(stage="final"), split_of(stage="search")
    _, metrics = trained(settings_for(search), search)
    assert asked == []
    assert "val/map" in metrics
    assert "test/map" not in metrics
    reports: list[Metrics] = []
    trained(settings_for(final, epochs=4), final, report=lambda metrics, save: reports.append(metrics))
    assert asked == [1]
    assert [("test/map" in metrics) for metrics in reports] == [False, False, False, True]


def test_the_last_evaluation_also_ranks_stored_bits_by_the_queries_real_outputs():
    split, reports = split_of(), list[Metrics]()
    run, metrics = trained(settings_for(split, epochs=3), split, report=lambda metrics, save: reports.append(metrics))
    assert [("val/map_asymmetric" in metrics) for metrics in reports] == [False, False, True]
    outputs = outputs_share(run.network, split.queries, run.workers).double().numpy()
    stored = encode_share(run.network, split.train, run.workers).numpy()
    scores = outputs @ np.where(stored, 1.0, -1.0).T
    values = []
    for score, label in zip(scores, split.queries.labels, strict=True):
        distinct, group = np.unique(np.round(score, 9), return_inverse=True)
        groups = [split.train.labels[group == g] == label for g in range(len(distinct))[::-1]]
        seen = found = total = 0.0
        for hits in groups:  # the expected precision at each rank of a tie
            items, relevant = len(hits), int(hits.sum())
            slope = (relevant - 1) / max(items - 1, 1)
            total += sum(relevant / items * (found + 1 + t * slope) / (seen + t + 1) for t in range(items))
            seen, found = seen + items, found + relevant
        values.append(total / max(found, 1))
    assert metrics["val/map_asymmetric"] == pytest.approx(np.mean(values), abs=1e-9)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_reason():
    split = split_of()
    with pytest.raises(TrainingDiverged, match=r"loss is (nan|inf) after epoch"):
        trained(settings_for(split, learning_rate=1e30, epochs=5), split)


@pytest.mark.parametrize(
    ("samples", "batch", "steps"), [(1200, 128, 10), (129, 128, 2), (3, 2, 1), (2, 64, 1), (5, 1, 2)]
)
def test_an_epoch_is_cut_into_equal_steps_of_at_least_two_samples(samples, batch, steps):
    assert steps_per_epoch(samples, batch) == steps
    sizes = [len(part) for part in np.array_split(np.arange(samples), steps)]
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1


def test_a_checkpoint_that_is_cut_in_half_or_of_other_settings_is_refused(tmp_path: Path):
    split = split_of()
    run = TrainingRun(settings_for(split), split, Workers(), solve_locally)
    run.take_first_centers()
    run.epoch = 1
    run._save(tmp_path)
    other = TrainingRun(settings_for(split, margin=0.3), split, Workers(), solve_locally)
    with pytest.raises(checkpoints.CheckpointError, match="other settings"):
        other.restore(tmp_path)
    path = tmp_path / checkpoints.CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(checkpoints.CheckpointError, match=r"checkpoint\.pt"):
        run.restore(tmp_path)


def test_a_checkpoint_without_all_that_it_needs_is_told_in_one_line(tmp_path: Path):
    split = split_of()
    run = TrainingRun(settings_for(split), split, Workers(), solve_locally)
    run.take_first_centers()
    run.epoch = 1
    run._save(tmp_path)
    path = tmp_path / checkpoints.CHECKPOINT_FILE
    whole = torch.load(path, weights_only=True)
    for change, said in (
        ({"epoch": None}, "epoch: input should be a valid integer, got None"),
        ({"epoch": 0}, "prepared: is required"),
        ({"settings": "crh"}, "settings: input should be a valid dictionary, got 'crh'"),
        ({"metrics": {"val/map": "much"}}, "metrics.val/map: input should be a valid number"),
        ({"codebook": {**whole["codebook"], "words": "xyz"}}, "codebook: non-hexadecimal number"),
        ({"codebook": {"bits": 16}}, "codebook.size"),
        ({"model": ...}, "model: is required"),
        ({"table": ...}, "table: is required"),
    ):
        torch.save({name: value for name, value in {**whole, **change}.items() if value is not ...}, path)
        with pytest.raises(checkpoints.CheckpointError) as caught:
            run.restore(tmp_path)
        line = str(caught.value)
        assert line.startswith(f"{path}: not a checkpoint of a training run: {said}"), line
        assert "\n" not in line
    torch.save(whole, path)
    run.restore(tmp_path)


def with_unseen(name: str, share: float = 0.3) -> Split:
    return search_split(open_dataset(name, {}), 0.2, 0, classes=share)


def plain_map(queries: tuple[np.ndarray, np.ndarray], database: tuple[np.ndarray, np.ndarray]) -> float:
    """mAP by the definition, with the expected place among ties of each item, by shuffling them many times."""
    generator, values = np.random.default_rng(0), []
    for code, label in zip(*queries, strict=True):
        apart = (database[0] != code).sum(axis=1)
        relevant = (label[None] & database[1]).any(axis=1) if label.ndim else database[1] == label
        for _ in range(10):
            found = relevant[np.lexsort((generator.random(len(apart)), apart))]
            places = np.flatnonzero(found) + 1
            values.append((np.arange(1, len(places) + 1) / places).mean() if len(places) else 0.0)
    return float(np.mean(values))


def codes_of(run: TrainingRun, samples: Samples) -> np.ndarray:
    return run.network.eval().encode(torch.from_numpy(np.asarray(samples.inputs[np.arange(len(samples))]))).numpy()


@pytest.mark.parametrize("dataset", ["digits", "digit_sets"])
def test_classes_held_out_are_scored_among_themselves_and_in_one_database(dataset):
    split = with_unseen(dataset)
    run, metrics = trained(settings_for(split, dataset=dataset), split)
    unseen, own = split.unseen, split.classes
    assert unseen is not None
    among = [part.labels[:, own:] if split.multi_label else part.labels for part in (unseen.queries, unseen.database)]
    codes = [codes_of(run, part) for part in (unseen.queries, unseen.database)]
    assert metrics["val/map_unseen"] == pytest.approx(plain_map((codes[0], among[0]), (codes[1], among[1])), abs=5e-3)

    def both(seen: Samples, other: Samples, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = seen.labels
        if split.multi_label:
            labels = np.concatenate([labels, np.zeros((len(labels), len(unseen.class_names)), labels.dtype)], axis=1)
        return np.concatenate([codes_of(run, seen), held]), np.concatenate([labels, other.labels])

    queries, database = both(split.queries, unseen.queries, codes[0]), both(split.ranked, unseen.database, codes[1])
    assert metrics["val/map_mixed"] == pytest.approx(plain_map(queries, database), abs=5e-3)
    seen, new = metrics["val/map"], metrics["val/map_unseen"]
    assert metrics["val/map_harmonic"] == pytest.approx(2 / (1 / seen + 1 / new))


@pytest.mark.parametrize(("offset", "scale"), [(1e8, 1), (0, 1e39)])
def test_held_out_classes_without_training_are_found_wherever_their_features_lie(offset, scale):
    generator, labels = np.random.default_rng(0), np.arange(160) % 8
    near = 3 * generator.normal(size=(8, 12))[labels] + generator.normal(size=(160, 12))

    def found(inputs: np.ndarray) -> float | None:
        samples = Samples(inputs, labels)
        split = search_split(Dataset("made", tuple("abcdefgh"), samples, samples), 0.2, 0, classes=0.5)
        return untrained_unseen_map(split, 8, 0, RankingProtocol())

    expected = found(near)
    assert expected is not None
    assert expected > 0.8
    assert found(near * scale + offset) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("method", "open_bits"), [("crh", 0), ("shc", 0), ("crh", 4)])
def test_held_out_classes_reach_neither_training_nor_centres_nor_statistics_nor_pca(method, open_bits, monkeypatch):
    """Whatever they hold, all that is not about them is the same to the last bit."""
    split = with_unseen("digits")
    assert split.unseen is not None
    fitted: list[np.ndarray] = []
    monkeypatch.setattr(
        "crh_tune.training.evaluation.pca_itq", lambda inputs, *rest: fitted.append(inputs) or pca_itq(inputs, *rest)
    )
    wild = [
        replace(part, inputs=np.random.default_rng(0).integers(0, 256, part.inputs.shape).astype(part.inputs.dtype))
        for part in (split.unseen.queries, split.unseen.database)
    ]
    splits = (split, replace(split, unseen=replace(split.unseen, queries=wild[0], database=wild[1])))
    settings = settings_for(split, method, bits=16 + open_bits, open_bits=open_bits)
    (first, a), (second, b), (none, c) = (trained(settings, each) for each in (*splits, replace(split, unseen=None)))
    assert a["val/map_unseen"] != b["val/map_unseen"]
    about = ("val/map_unseen", "val/map_mixed", "val/map_harmonic", "val/map_unseen_itq")
    rest = [{k: v for k, v in without_seconds(each).items() if k not in about} for each in (a, b, c)]
    assert rest[0] == rest[1] == rest[2]
    assert first.centers.shape[0] == split.classes == 7
    for other in (second, none):
        assert np.array_equal(first.centers, other.centers)
        for name, value in first.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
    assert all(inputs is split.train.inputs for inputs in fitted)
