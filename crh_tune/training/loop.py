"""The epoch loop: the same function for one worker in its own process and for every worker of a group.

Everything random comes from (seed, epoch), so a checkpoint needs no generator state to be continued to the last bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crh_tune.data.splits import Samples, Split, Unseen
from crh_tune.data.store.stored import Rows
from crh_tune.hashing.assignment import Rule, class_statistic, reassigned_share
from crh_tune.hashing.centers import CodebookSpec, build_codebook, first_table
from crh_tune.hashing.codebook import Codes, Table
from crh_tune.hashing.network import HashNetwork
from crh_tune.hashing.objectives import OBJECTIVES, Objective, nested_terms
from crh_tune.hashing.shc import class_similarity, shc_centers
from crh_tune.retrieval.average_precision import LabelledCodes
from crh_tune.settings.training import TrainingSettings, objective_options
from crh_tune.settings.trial import TrialSettings
from crh_tune.training import checkpoints
from crh_tune.training.aggregator import Round, Solve
from crh_tune.training.batches import batch_parts, epoch_batches, load_batches, mixed_seed
from crh_tune.training.evaluation import (
    asymmetric_map,
    center_metrics,
    encode_share,
    gather_codes,
    harmonic_mean,
    nested_maps,
    outputs_share,
    ranking_map,
    reference_similarity,
    unseen_maps,
    untrained_unseen_map,
)
from crh_tune.training.models import build_network
from crh_tune.training.open_bits import fit_open_bits
from crh_tune.training.optimizers import build_optimizer, build_schedule
from crh_tune.training.similarity import Reached, State, classifier_scores
from crh_tune.training.workers import Workers

Metrics = dict[str, float]
Save = Callable[[Path], None]
"""Writes a checkpoint into a folder."""
Report = Callable[[Metrics, Save | None], None]
"""Called by every worker after each evaluation with the metrics; rank 0 also gets what writes the checkpoint.

Epochs of training that centres are learned from before the first are reported as epoch 0, with PREPARED alone.
"""
PREPARED = "prepared/epoch"

_PHASES = ("training", "encoding", "reassignment", "evaluation")


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


class Model(nn.Module):
    """Network and objective as one module, so that the objective's own parameters are trained and averaged too.

    ``lengths`` are those whose codes are trained: K alone, or shorter ones before it.
    """

    def __init__(self, network: HashNetwork, objective: Objective, lengths: Sequence[int]) -> None:
        super().__init__()
        self.network, self.objective, self.lengths = network, objective, lengths

    def forward(self, inputs: Tensor, targets: Tensor, centers: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The objective's terms, and the codes the batch had: B x learned bits, boolean, True for +1."""
        outputs = self.network(inputs, trained_only=True)
        if len(self.lengths) > 1:
            terms = nested_terms(self.objective, self.lengths, outputs, targets, centers)
        else:
            terms = self.objective(outputs, targets, centers)
        return terms, outputs.detach() >= 0


class TrainingRun:
    """One training run on one worker. ``settings`` are resolved for the split (``TrialSettings.resolve``)."""

    def __init__(self, settings: TrialSettings, split: Split, workers: Workers, solve: Solve) -> None:
        self.settings, self.split, self.workers, self.solve = settings, split, workers, solve
        self.trial: TrainingSettings = settings.trial
        _make_deterministic(settings.scaling.cpus_per_worker, self.trial.compile)
        torch.manual_seed(self.trial.seed)
        self.model = _build_model(self.trial, split, workers).to(workers.device)
        workers.synchronised(self.model)
        self.wrapped = workers.wrap(self.model)
        rest = [*self.network.hash_layer.parameters(), *self.model.objective.parameters()]
        self.optimizer = build_optimizer(list(self.network.backbone.parameters()), rest, self.trial)
        self.schedule = build_schedule(self.optimizer, self.trial)
        self.reference = reference_similarity(split)
        self.has_centers = self.trial.centers != "none"
        self.codebook_spec: CodebookSpec | None = None
        self.epoch = 0
        self._prepared: State | None = None
        self._seen: list[tuple[Rows, Tensor]] = []
        self.metrics: Metrics = {}
        self.seconds = dict.fromkeys(_PHASES, 0.0)

    @property
    def network(self) -> HashNetwork:
        return self.model.network

    @property
    def centers(self) -> Codes:
        """The present centres, C x learned bits; zeros for a method without centres, whose objective looks at none."""
        if self.codebook_spec is None:
            return np.zeros((self.split.classes, self.trial.learned_bits), dtype=np.int8)
        return self.codebook.centers(self.table)

    def take_first_centers(self, report: Report | None = None) -> None:
        """Make the codebook and the first assignment; SHC trains its classifier for them, so not before training."""

        def reached(epoch: int, state: Callable[[], State]) -> None:
            if report is not None:
                due = self.workers.rank == 0 and epoch % self.trial.evaluate_every == 0
                save = (lambda folder: self._save_preparation(folder, {"epoch": epoch, **state()})) if due else None
                report({"epoch": 0.0, PREPARED: float(epoch)}, save)

        if self.has_centers and self.codebook_spec is None:
            self._use_codebook(first_codebook(self.settings, self.split, self.workers, self._prepared, reached))
            self.table: Table = first_table(self._spec, self.codebook, self.split.classes)

    def _use_codebook(self, spec: CodebookSpec) -> None:
        self.codebook_spec, self.codebook = spec, build_codebook(spec)

    @property
    def _spec(self) -> CodebookSpec:
        assert self.codebook_spec is not None
        return self.codebook_spec

    def train(self, report: Report, until: int | None = None) -> Metrics:
        """Train from the present epoch to the last one, reporting each evaluation; returns the last metrics.

        With ``until`` it ends after that epoch, where it is before the last; learning rates fall as in a whole run.

        What a checkpoint was reported with is reported again, since that report may have been lost with its process.
        Raises TrainingDiverged when the loss is not finite.
        """
        if self.metrics:
            report(self.metrics, None)
        self.take_first_centers(report)
        last = min(until or self.trial.epochs, self.trial.epochs)
        while self.epoch < last:
            self.epoch += 1
            self.model.objective.epoch = self.epoch
            losses = self._train_epoch()
            evaluating, updating = self._evaluation_due() or self.epoch == last, self._update_due()
            asking = evaluating and self._may_ask_queries()
            scores, changed = self._score_and_reassign(asking, updating) if asking or updating else ({}, 0.0)
            if evaluating:
                metrics = {"epoch": self.epoch, **losses, **scores}
                if self.has_centers:
                    metrics |= {"centers/reassigned": changed, **center_metrics(self.centers, self.reference)}
                metrics |= {f"seconds/{phase}": seconds for phase, seconds in self.seconds.items()}
                metrics["final"] = float(self.epoch == last)
                self.metrics = {name: float(value) for name, value in metrics.items()}
                report(self.metrics, self._save if self.workers.rank == 0 else None)
        return self.metrics

    def _score_and_reassign(self, asking: bool, updating: bool) -> tuple[Metrics, float]:
        """mAP with the present codes and then a round of reassignment, each where it is due.

        The round stands on the same codes, or on those that training has seen, and then it needs no pass of its own.
        """
        codes = self._encode(self.split.train) if asking or not self._seen else None
        scores = self._evaluate(codes) if asking and codes is not None else {}
        return scores, self._reassign(*self._round_codes(codes)) if updating else 0.0

    def _round_codes(self, encoded: Tensor | None) -> tuple[Rows, Tensor]:
        """Rows of this worker's training samples and their codes, share x K, that a round of reassignment stands on."""
        if self._seen:
            return np.concatenate([rows for rows, _ in self._seen]), torch.cat([codes for _, codes in self._seen])
        assert encoded is not None
        return self.workers.share(np.arange(len(self.split.train))), encoded[:, : self.trial.learned_bits]

    def restore(self, folder: Path, read: checkpoints.Checkpoint | None = None) -> None:
        """Go on from a checkpoint, which was perhaps ``read`` already.

        Raises checkpoints.CheckpointError when it is broken or of other settings.
        """
        header, parts = read or checkpoints.load(folder)
        if not self._is_of_these_settings(header.settings):
            raise checkpoints.CheckpointError(f"{folder}: the checkpoint is of a trial with other settings")
        if header.epoch == 0:
            self._prepared = parts["prepared"]
            return
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.schedule.load_state_dict(parts["schedule"])
        if header.codebook is not None:
            self._use_codebook(header.codebook)
            self.table = parts["table"].numpy()
        self.epoch = header.epoch
        self.metrics = dict(header.metrics)
        self.seconds = {**dict.fromkeys(_PHASES, 0.0), **header.seconds}

    def _is_of_these_settings(self, content: object) -> bool:
        """Whether a checkpoint's settings are this run's; an older version wrote what its objective does not have."""
        known = self.split.classes, self.split.multi_label
        try:
            return TrialSettings.model_validate(content).resolve(*known) == self.settings.resolve(*known)
        except ValueError:
            return False

    def _save_preparation(self, folder: Path, state: State) -> None:
        header = checkpoints.Header(settings=self.settings.model_dump(mode="json"), epoch=0)
        checkpoints.save(header, {"prepared": state}, folder)

    def _save(self, folder: Path) -> None:
        header = checkpoints.Header(
            settings=self.settings.model_dump(mode="json"),
            epoch=self.epoch,
            metrics=self.metrics,
            seconds=self.seconds,
            codebook=self.codebook_spec,
        )
        parts: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        if self.has_centers:
            parts["table"] = torch.from_numpy(self.table.copy())
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / checkpoints.CENTERS_FILE, self.centers, allow_pickle=False)
        checkpoints.save(header, parts, folder)  # last: where it is, the checkpoint is complete

    def _update_due(self) -> bool:
        """After each of the first epochs, then at intervals; never after the last, which nothing would train on."""
        early = self.epoch <= self.trial.early_epochs
        due = early or self.epoch % self.trial.update_interval == 0
        return self.trial.reassignment != "none" and due and self.epoch < self.trial.epochs

    def _evaluation_due(self) -> bool:
        return self.epoch % self.trial.evaluate_every == 0 or self.epoch == self.trial.epochs

    def _may_ask_queries(self) -> bool:
        """Validation queries at every evaluation; test queries once, after the last epoch."""
        return self.split.stage == "search" or self.epoch == self.trial.epochs

    def _train_epoch(self) -> Metrics:
        """One pass over the training samples; returns the epoch's mean of each loss term."""
        with self._timed("training"):
            torch.manual_seed(mixed_seed(self.trial.seed, self.epoch, self.workers.rank))
            centers = torch.from_numpy(self.centers).to(self.workers.device, torch.float32)
            samples, trial = len(self.split.train), self.trial
            steps = epoch_batches(samples, self.settings.global_batch, trial.seed, self.epoch)
            parts = [part for batch in steps for part in self._parts(batch)]
            loaded = load_batches(
                self.split.train,
                parts,
                self.split.classes,
                self.workers.device,
                trial.augmentation,
                trial.seed,
                self.epoch,
            )
            self._seen = []
            totals: dict[str, Tensor] = {}
            self.wrapped.train()
            for batch in steps:
                _add(totals, self._train_step(batch, loaded, centers))
            self.schedule.step()
            summed = self.workers.sum(torch.stack(list(totals.values())).double()).tolist()
        losses = {f"loss/{name}": value / samples for name, value in zip(totals, summed, strict=True)}
        total = sum(losses.values())
        if not math.isfinite(total):
            raise TrainingDiverged(f"loss is {total} after epoch {self.epoch}: try a smaller learning_rate")
        return {"loss/total": total, **losses}

    def _parts(self, batch: Rows) -> list[Rows]:
        return batch_parts(batch, self.workers, self.trial.accumulate)

    def _train_step(self, batch: Rows, loaded: Iterator[tuple[Tensor, Tensor]], centers: Tensor) -> dict[str, Tensor]:
        """One step on this worker's share of a global batch; returns each loss term summed over the share.

        Gradients are averaged over workers, so the share's sum is scaled to give the mean over the global batch, also
        where shares differ in size or are empty.
        """
        sums: dict[str, Tensor] = {}
        parts = self._parts(batch)
        self.optimizer.zero_grad(set_to_none=True)
        for place, rows in enumerate(parts):
            inputs, targets = next(loaded)
            with self.workers.averaging(self.wrapped, last=place == len(parts) - 1):
                terms, codes = self.wrapped(inputs, targets, centers)
                by_sample = torch.stack(list(terms.values()))
                (by_sample.sum() * (self.workers.size / len(batch))).backward()
            _add(sums, dict(zip(terms, by_sample.detach().sum(dim=1), strict=True)))
            if self.trial.reassignment_codes == "epoch" and self._update_due():
                self._seen.append((rows, codes))
        if self.trial.gradient_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.trial.gradient_clip)
        self.optimizer.step()
        return sums

    def _encode(self, samples: Samples) -> Tensor:
        with self._timed("encoding"):
            return encode_share(self.network, samples, self.workers)

    def _evaluate(self, train_codes: Tensor) -> Metrics:
        """mAP of the split's queries against its database (the training samples, encoded already, by default).

        Where classes are held out, theirs too. After the last epoch also that of the queries' real outputs against the
        stored bits, and that of the held-out classes without training.
        """
        split, protocol, last = self.split, self.settings.evaluation.protocol, self.epoch == self.trial.epochs
        with self._timed("encoding"):
            outputs = outputs_share(self.network, split.queries, self.workers)
        database_codes = train_codes if split.database is None else self._encode(split.database)
        with self._timed("evaluation"):
            queries = gather_codes(outputs >= 0, split.queries, self.workers)
            database = gather_codes(database_codes, split.ranked, self.workers)
            scores = {"map": ranking_map(queries, database, protocol, self.workers)}
            scores |= nested_maps(queries, database, self.trial.nested, protocol, self.workers)
            if last:
                scores["map_asymmetric"] = asymmetric_map(outputs, split.queries, database, protocol, self.workers)
        if split.unseen is not None:
            scores |= self._evaluate_unseen(split.unseen, queries, database)
            scores["map_harmonic"] = harmonic_mean(scores["map"], scores["map_unseen"])
            if last:
                bits, seed = self.trial.bits, self.trial.seed
                free = self.workers.from_first(lambda: untrained_unseen_map(split, bits, seed, protocol))
                scores |= {} if free is None else {"map_unseen_itq": free}
        return {f"{split.metric_prefix}/{name}": value for name, value in scores.items()}

    def _evaluate_unseen(self, unseen: Unseen, queries: LabelledCodes, database: LabelledCodes) -> Metrics:
        """mAP of the classes held out, and of all classes in one database."""
        shares = [(self._encode(part), part) for part in (unseen.queries, unseen.database)]
        with self._timed("evaluation"):
            asked, ranked = (gather_codes(share, part, self.workers) for share, part in shares)
            protocol = self.settings.evaluation.protocol
            return unseen_maps((queries, database), (asked, ranked), self.split.classes, protocol, self.workers)

    def _reassign(self, rows: Rows, codes: Tensor) -> float:
        """One round of reassignment with the codes of some training samples; the share of classes it moved."""
        with self._timed("reassignment"):
            labels = torch.from_numpy(self.split.train.labels[rows])
            statistic = class_statistic(codes.cpu(), labels, self.split.classes)
            rule: Rule = "hungarian" if self.trial.reassignment == "hungarian" else "greedy"
            before = self.centers
            self.table = self.solve(Round(self._spec, self.table, rule, self.trial.seed, self.epoch), statistic)
            return reassigned_share(before, self.centers)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


def _add(totals: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        totals[name] = totals[name] + value if name in totals else value


def first_codebook(
    settings: TrialSettings, split: Split, workers: Workers, begun: State | None, reached: Reached
) -> CodebookSpec:
    """The codebook of a resolved trial with centres; SHC's is learned from the split first, perhaps from a state on."""
    trial = settings.trial
    assert trial.codebook_size is not None
    assert trial.head_dim is not None
    assert trial.centers is not None
    seed = trial.seed if trial.center_seed is None else trial.center_seed
    spec = CodebookSpec(trial.learned_bits, trial.codebook_size, trial.head_dim, seed, trial.centers)
    if trial.centers != "shc":
        return spec
    scores = classifier_scores(settings, split, workers, begun, reached)
    words = workers.from_first(lambda: shc_centers(class_similarity(scores), trial.learned_bits, seed))
    return replace(spec, words=np.ascontiguousarray(words).tobytes())


def _build_model(trial: TrainingSettings, split: Split, workers: Workers) -> Model:
    assert trial.objective is not None
    assert trial.hash_layer is not None
    network = build_network(trial, split, trial.learned_bits, trial.hash_layer, trial.open_bits)
    if trial.open_bits:
        open_ = workers.from_first(
            lambda: fit_open_bits(split.train, network.shape, split.classes, trial.open_bits, trial.seed)
        )
        network.open_mean.copy_(torch.from_numpy(open_.mean))
        network.open_projection.copy_(torch.from_numpy(open_.projection))
    options = objective_options(trial, trial.objective, split.classes, split.multi_label)
    objective = OBJECTIVES[trial.objective](options)
    if workers.size > 1:
        objective.rank, objective.gather = workers.rank, workers.gather_batch
    return Model(network, objective, trial.lengths)


def _make_deterministic(threads: int, compiled: bool) -> None:
    torch.set_num_threads(threads)
    # Filling memory that is written anyway takes a pass over it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if compiled:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:  # the same, without the two seconds that importing the compiler takes
        torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
