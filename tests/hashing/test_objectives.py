"""The other methods' objectives against their formulas, written as plain loops over samples, pairs and triplets."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from crh_tune.hashing.objectives import OBJECTIVES, Symbol
from crh_tune.hashing.objectives.base import Options, sample_centers
from crh_tune.settings.reference import sentences
from tests.operations import Operations

NAMES = [name for name in OBJECTIVES if name != "margin_cross_entropy"]
"""margin_cross_entropy has its own file."""
OVER_SEVERAL_SAMPLES = {"pairwise_continuation", "triplet_likelihood"}
CLOSE = {"rel": 1e-9, "abs": 1e-11}
ROUNDED = {"rel": 2e-7, "abs": 1e-11}
"""For objectives over several samples; test_float64_keeps_its_precision asks for more."""


@dataclass(frozen=True)
class Values:
    """Values of the settings; an objective takes those that it has, and its defaults of others."""

    bits: int
    classes: int
    scale: float = 8.0
    margin: float = 0.2
    quantization_weight: float = 0.3
    bank_momentum: float = 0.9
    beta_growth: float = 0.005


def made(name: str, values: Values):
    kind = OBJECTIVES[name].options_type
    own = {field: getattr(values, field) for field in kind.own() if hasattr(values, field)}
    return OBJECTIVES[name](kind(bits=values.bits, classes=values.classes, **own))


@dataclass(frozen=True)
class Case:
    """A batch, the settings, and the state that an objective may have."""

    outputs: np.ndarray
    targets: np.ndarray
    centers: np.ndarray
    options: Values
    bank: np.ndarray
    classifier: np.ndarray
    epoch: int = 1
    beta: float = 1.0


def make_case(multi: bool, seed: int = 0, count: int = 6, classes: int = 3, bits: int = 8, **state) -> Case:
    """Multi-label batches have samples of none, one and more labels; lambda is large enough to be seen."""
    generator = np.random.default_rng(seed)
    targets = np.eye(classes)[generator.integers(0, classes, count)]
    if multi:
        targets = np.maximum(targets, generator.random((count, classes)) < 0.3)
        targets[generator.random(count) < 0.15] = 0
    return Case(
        generator.normal(size=(count, bits)),
        targets,
        np.where(generator.random((classes, bits)) < 0.5, -1.0, 1.0),
        Values(bits, classes),
        generator.normal(size=(classes, bits)),
        generator.normal(size=(classes, bits)),
        **state,
    )


def build(name: str, case: Case):
    objective = made(name, case.options).double()
    objective.epoch = case.epoch
    with torch.no_grad():
        if name == "minimal_distance":
            objective.bank.copy_(torch.from_numpy(case.bank))
        if name == "greedy_sign":
            objective.classifier.weight.copy_(torch.from_numpy(case.classifier))
    return objective


def evaluate(objective, case: Case, outputs: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    leaf = torch.from_numpy(case.outputs) if outputs is None else outputs
    return objective(leaf, torch.from_numpy(case.targets), torch.from_numpy(case.centers))


# The formulas. Each gives, by term, one number a sample; pairs and triplets give one number, the mean over the batch.


def cosine(u, v) -> float:
    length = math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))
    return sum(a * b for a, b in zip(u, v, strict=True)) / length


def soft_cross_entropy(logits, labels) -> float:
    total = math.log(sum(math.exp(logit) for logit in logits))
    return sum(y * (total - logit) / max(sum(labels), 1) for y, logit in zip(labels, logits, strict=True))


def tanh_quantization(case: Case) -> list[float]:
    weight, bits = case.options.quantization_weight, case.options.bits
    return [weight * sum((abs(math.tanh(value)) - 1) ** 2 for value in u) / bits for u in case.outputs]


def ortho_cosine(case: Case) -> dict[str, list[float]]:
    s, m = case.options.scale, case.options.margin
    losses = []
    for u, labels in zip(case.outputs, case.targets, strict=True):
        logits = [s * (cosine(u, c) - m * y) for c, y in zip(case.centers, labels, strict=True)]
        losses.append(soft_cross_entropy(logits, labels))
    return {"cross_entropy": losses}


def target_bits(case: Case, tie_breaker) -> list[list[float]]:
    """The sign of the sum of the labels' centres, bit by bit."""
    goals = []
    for labels in case.targets:
        sums = [sum(y * c[k] for y, c in zip(labels, case.centers, strict=True)) for k in range(case.options.bits)]
        goals.append([float(tie_breaker[k]) if value == 0 else math.copysign(1, value) for k, value in enumerate(sums)])
    return goals


def central_similarity(case: Case) -> dict[str, list[float]]:
    tie_breaker = made("central_similarity", case.options).tie_breaker
    losses = []
    for u, goal in zip(case.outputs, target_bits(case, tie_breaker), strict=True):
        total = 0.0
        for value, bit in zip(u, goal, strict=True):
            p, q = (math.tanh(value) + 1) / 2, (bit + 1) / 2
            total -= q * math.log(p) + (1 - q) * math.log(1 - p)
        losses.append(total / case.options.bits)
    return {"central_similarity": losses, "quantization": tanh_quantization(case)}


def minimal_distance(case: Case) -> dict[str, list[float]]:
    """Cosines are those of h = tanh(u), and the bank holds such."""
    losses, pairs = [], []
    for u, labels in zip(np.tanh(case.outputs), case.targets, strict=True):
        powers = [math.exp(math.sqrt(case.options.bits) * cosine(u, c)) for c in case.centers]
        value = 0.0
        for c, y in enumerate(labels):
            others = sum(powers[:c] + powers[c + 1 :])
            value -= math.log(powers[c] / sum(powers)) if y else math.log(others / sum(powers))
        losses.append(value / len(labels))
        mean = sum(y * cosine(u, row) for y, row in zip(labels, case.bank, strict=True)) / max(sum(labels), 1)
        pairs.append(math.log(1 + math.exp((1 - mean) / 2)))
    terms = {"cross_entropy": losses, "quantization": tanh_quantization(case)}
    return {**terms, "pairs": pairs} if case.epoch > 9 else terms


def polarization(case: Case) -> dict[str, list[float]]:
    goals = target_bits(case, made("polarization", case.options).tie_breaker)
    m = case.options.margin
    losses = [
        sum(max(0.0, m - value * bit) for value, bit in zip(u, goal, strict=True))
        for u, goal in zip(case.outputs, goals, strict=True)
    ]
    return {"polarization": losses}


def share_a_label(case: Case, i: int, j: int) -> bool:
    return any(a and b for a, b in zip(case.targets[i], case.targets[j], strict=True))


def pairwise_continuation(case: Case) -> dict[str, list[float]]:
    everyone = range(len(case.outputs))
    pairs = [(i, j) for i in everyone for j in everyone if i != j]
    alike = sum(share_a_label(case, i, j) for i, j in pairs)
    codes = [[math.tanh(case.beta * value) for value in u] for u in case.outputs]
    total = weights = 0.0
    for i, j in pairs:
        similar = share_a_label(case, i, j)
        theta = 10 / case.options.bits * sum(a * b for a, b in zip(codes[i], codes[j], strict=True))
        logarithm = theta if theta > 15 else math.log(1 + math.exp(theta))
        weight = len(pairs) / (alike if similar else len(pairs) - alike)
        total += weight * (logarithm - similar * theta)
        weights += weight
    return {"pairs": [total / weights if pairs else 0.0]}


def triplet_likelihood(case: Case) -> dict[str, list[float]]:
    everyone, bits = range(len(case.outputs)), case.options.bits
    theta = [[sum(a * b for a, b in zip(u, v, strict=True)) / 2 for v in case.outputs] for u in case.outputs]
    losses = []
    for i in everyone:
        for p in everyone:
            for n in everyone:
                if p != i and share_a_label(case, i, p) and not share_a_label(case, i, n):
                    losses.append(math.log(1 + math.exp(-(theta[i][p] - theta[i][n] - bits / 2))))
    penalty = [sum((value - math.copysign(1, value)) ** 2 for value in u) / bits for u in case.outputs]
    return {
        "triplets": [sum(losses) / max(len(losses), 1)],
        "quantization": [case.options.quantization_weight * value for value in penalty],
    }


def greedy_sign(case: Case, codes: np.ndarray | None = None) -> dict[str, list[float]]:
    """``codes`` in place of sign(u), to see what the classifier's loss does with real-valued codes."""
    codes = np.copysign(1, case.outputs) if codes is None else codes
    losses, penalty = [], []
    for u, b, labels in zip(case.outputs, codes, case.targets, strict=True):
        logits = [sum(w * bit for w, bit in zip(row, b, strict=True)) for row in case.classifier]
        losses.append(soft_cross_entropy(logits, labels))
        penalty.append(sum(abs(abs(value) - 1) ** 3 for value in u) / case.options.bits)
    return {"cross_entropy": losses, "quantization": [case.options.quantization_weight * value for value in penalty]}


FORMULAS = {
    formula.__name__: formula
    for formula in (
        ortho_cosine,
        central_similarity,
        minimal_distance,
        polarization,
        pairwise_continuation,
        triplet_likelihood,
        greedy_sign,
    )
}


def total_of(terms: dict[str, list[float]]) -> float:
    return sum(sum(term) / len(term) for term in terms.values())


def slopes(function, point: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central finite differences of a function of an array."""
    result = np.zeros_like(point)
    for place in np.ndindex(point.shape):
        move = np.zeros_like(point)
        move[place] = step
        result[place] = (function(point + move) - function(point - move)) / (2 * step)
    return result


def check_value(name: str, case: Case, objective=None) -> None:
    terms = evaluate(objective or build(name, case), case)
    expected = FORMULAS[name](case)
    assert list(terms) == list(expected)
    close = ROUNDED if name in OVER_SEVERAL_SAMPLES else CLOSE
    for term, values in expected.items():
        assert terms[term].shape == (len(case.outputs),), term
        if len(values) == len(case.outputs) and name not in OVER_SEVERAL_SAMPLES:
            assert terms[term].tolist() == pytest.approx(values, **CLOSE), term
        assert terms[term].mean().item() == pytest.approx(sum(values) / len(values), **close), term
    assert sum(terms.values()).mean().item() == pytest.approx(total_of(expected), **close)


def test_every_objective_has_its_formula_here():
    assert set(FORMULAS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    multi=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 7),
    classes=st.integers(2, 5),
    bits=st.integers(1, 12),
    epoch=st.sampled_from([1, 9, 10, 100]),
)
def test_the_loss_is_the_formula(name, multi, seed, count, classes, bits, epoch):
    check_value(name, make_case(multi, seed, count, classes, bits, epoch=epoch))


@pytest.mark.parametrize(
    ("name", "steps"), [("pairwise_continuation", 0), ("pairwise_continuation", 400), ("triplet_likelihood", None)]
)
def test_float64_keeps_its_precision(name, steps):
    """Weights, counts and beta too: none of them may be rounded to float32 on the way."""
    case = make_case(True, seed=4, beta=math.sqrt(1 + 0.005 * (steps or 0)))
    objective = build(name, case)
    if steps is not None:
        objective.steps.fill_(steps)
    value = sum(evaluate(objective, case).values()).mean().item()
    assert value == pytest.approx(total_of(FORMULAS[name](case)), rel=1e-12)


@pytest.mark.parametrize("epoch", [1, 10])
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "greedy_sign"])
def test_the_gradient_is_that_of_the_formula(name, multi, epoch):
    case = make_case(multi, seed=2, epoch=epoch)
    assert (case.targets.sum(axis=1) > 1).any() == multi
    assert total_of({"first": next(iter(FORMULAS[name](case).values()))}) > 0.01
    leaf = torch.from_numpy(case.outputs).requires_grad_()
    sum(evaluate(build(name, case), case, leaf).values()).mean().backward()
    expected = slopes(lambda outputs: total_of(FORMULAS[name](replace(case, outputs=outputs))), case.outputs)
    np.testing.assert_allclose(leaf.grad, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("multi", [False, True])
def test_greedyhash_passes_the_gradient_straight_through_the_sign(multi):
    """With respect to u it is the classifier's gradient with respect to b, plus that of the penalty."""
    case = make_case(multi, seed=2)
    leaf = torch.from_numpy(case.outputs).requires_grad_()
    objective = build("greedy_sign", case)
    terms = evaluate(objective, case, leaf)
    (through,) = torch.autograd.grad(terms["cross_entropy"].mean(), leaf, retain_graph=True)
    codes = np.copysign(1, case.outputs)
    expected = slopes(lambda b: np.mean(greedy_sign(case, b)["cross_entropy"]), codes)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(through, expected, rtol=1e-6, atol=1e-7)

    sum(terms.values()).mean().backward()
    penalty = slopes(lambda u: np.mean(greedy_sign(replace(case, outputs=u))["quantization"]), case.outputs)
    np.testing.assert_allclose(leaf.grad, expected + penalty, rtol=1e-6, atol=1e-7)
    weights = slopes(lambda w: total_of(greedy_sign(replace(case, classifier=w))), case.classifier)
    np.testing.assert_allclose(objective.classifier.weight.grad, weights, rtol=1e-6, atol=1e-7)


def test_greedyhash_takes_zero_as_plus_one_and_has_no_bias():
    case = make_case(False)
    case.outputs[:] = 0.0  # np.copysign(1, 0.0) is +1
    check_value("greedy_sign", case)
    assert [name for name, _ in build("greedy_sign", case).named_parameters()] == ["classifier.weight"]


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ortho_cosine", [{"scale": 8.0, "margin": 0.2}] * 4),
        ("central_similarity", [{"quantization_weight": 1e-4}] * 4),
        ("minimal_distance", [{"quantization_weight": 1e-4, "bank_momentum": 0.9}] * 4),
        ("pairwise_continuation", [{"beta_growth": 0.005}] * 4),
        ("polarization", [{"margin": 1.0}] * 4),
        ("triplet_likelihood", [{"quantization_weight": bits / 225} for bits in (16, 16, 16, 64)]),
        ("greedy_sign", [{"quantization_weight": weight} for weight in (0.1, 0.1, 1.0, 1.0)]),
    ],
)
def test_the_defaults_are_the_papers(name, expected, multi):
    kind = OBJECTIVES[name].options_type
    sizes = [(16, 10), (16, 99), (16, 100), (64, 555)]
    made_ = [kind(bits=bits, classes=classes, multi_label=multi) for bits, classes in sizes]
    assert [each.model_dump(include=set(kind.own())) for each in made_] == expected


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_setting_has_a_symbol_a_sentence_and_a_range_that_its_default_lies_in(name):
    kind = OBJECTIVES[name].options_type
    task = {"bits": 32, "classes": 10}
    for field, info in kind.own().items():
        (symbol,) = [each for each in info.metadata if isinstance(each, Symbol)]
        assert symbol.name
        assert info.is_required() is False
        assert (info.default_factory is None) == (not symbol.default), "a default that is computed is told in words"
        assert sentences(kind)[field].endswith(".")
        assert kind(**task, **{field: getattr(kind(**task), field)}) == kind(**task)
        for value in (-1, math.inf, math.nan):
            with pytest.raises(ValidationError):
                kind(**task, **{field: value})


def test_objectives_that_share_a_setting_share_its_type():
    types: dict[str, set[object]] = {}
    for kind in OBJECTIVES.values():
        for name, field in kind.options_type.own().items():
            types.setdefault(name, set()).add(field.annotation)
    assert types
    assert all(len(found) == 1 for found in types.values())
    assert not {"bits", "classes", "multi_label"} & set(types)


def test_what_an_objective_does_not_have_is_refused():
    with pytest.raises(ValidationError, match="scale"):
        OBJECTIVES["polarization"].options_type(bits=8, classes=3, scale=2.0)
    assert OBJECTIVES["polarization"].options_type is not Options


class TestDPN:
    @pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 3.0])
    @pytest.mark.parametrize("multi", [False, True])
    def test_the_loss_is_the_formula_at_every_margin(self, margin, multi):
        case = make_case(multi, seed=5, count=8)
        check_value("polarization", replace(case, options=replace(case.options, margin=margin)))

    def test_an_output_past_the_margin_costs_nothing_and_has_no_gradient(self):
        """Four bits of target +1: past m = 1, at half of it, at zero, and on the wrong side."""
        case = make_case(False, count=1, classes=1, bits=4)
        case.outputs[:], case.centers[:] = [[1.5, 0.5, 0.0, -2.0]], 1.0
        case = replace(case, options=replace(case.options, margin=1.0))
        leaf = torch.from_numpy(case.outputs).requires_grad_()
        loss = evaluate(build("polarization", case), case, leaf)["polarization"]
        assert loss.tolist() == [0 + 0.5 + 1 + 3]
        loss.sum().backward()
        assert leaf.grad.tolist() == [[0, -1, -1, -1]]


class TestHashNet:
    def test_beta_grows_every_200_training_steps(self):
        case = make_case(False, count=2, bits=2)
        objective = build("pairwise_continuation", case)
        for step in range(1, 621):
            beta = math.sqrt(1 + 0.005 * (step - step % 200))
            check_value("pairwise_continuation", replace(case, beta=beta), objective)
        objective.eval()
        for _ in range(200):
            evaluate(objective, case)
        assert objective.beta.item() == pytest.approx(2, rel=1e-6)  # sqrt(1 + 0.005 * 600)

    def test_the_growth_is_a_setting(self):
        case = make_case(False, seed=4, beta=math.sqrt(1 + 0.02 * 400))
        case = replace(case, options=replace(case.options, beta_growth=0.02))
        objective = build("pairwise_continuation", case)
        objective.steps.fill_(400)
        check_value("pairwise_continuation", case, objective)

    @pytest.mark.parametrize(("steps", "beta"), [(198, 1.0), (599, 2.0), (798, 2.0), (2999, 4.0)])
    @pytest.mark.parametrize("multi", [False, True])
    def test_the_outputs_are_sharpened_by_the_beta_of_the_step_they_are_of(self, steps, beta, multi):
        case = make_case(multi, seed=4, beta=beta)
        objective = build("pairwise_continuation", case)
        objective.steps.fill_(steps)
        check_value("pairwise_continuation", case, objective)

    def test_the_step_is_saved_with_the_state(self):
        case = make_case(False)
        objective = build("pairwise_continuation", case)
        objective.steps.fill_(601)
        other = build("pairwise_continuation", case)
        other.load_state_dict(objective.state_dict())
        assert other.beta == objective.beta

    @pytest.mark.parametrize("theta", [-19.0, -1.0, 14.5, 15.5, 19.0])
    @pytest.mark.parametrize("similar", [False, True])
    def test_it_is_linear_beyond_15(self, theta, similar):
        """With K bits |theta| is at most 10; a K of the settings below that of the outputs takes it beyond 15."""
        case = make_case(False, count=2, classes=2, bits=4)
        height = math.atanh(math.sqrt(abs(theta) / 20))
        case.outputs[:] = [[height] * 4, [math.copysign(height, theta)] * 4]
        case.targets[:] = np.eye(2)[[0, 0 if similar else 1]]
        case = replace(case, options=replace(case.options, bits=2))
        value = evaluate(build("pairwise_continuation", case), case)["pairs"].mean().item()
        logarithm = theta if theta > 15 else math.log1p(math.exp(theta))  # at 15 they differ by 3e-7
        assert value == pytest.approx(logarithm - similar * theta, abs=1e-11)

    @pytest.mark.parametrize("size", [1e3, 1e30])
    def test_huge_outputs_do_not_overflow(self, size):
        case = make_case(False, seed=3)
        leaf = torch.from_numpy(np.copysign(size, case.outputs)).float().requires_grad_()
        objective = build("pairwise_continuation", case).float()
        objective.steps.fill_(10**6)
        value = objective(leaf, torch.from_numpy(case.targets).float(), None)["pairs"].mean()
        value.backward()
        expected = pairwise_continuation(replace(case, outputs=np.copysign(size, case.outputs)))
        assert value.item() == pytest.approx(expected["pairs"][0], rel=1e-5)
        assert torch.isfinite(leaf.grad).all()

    def test_each_kind_of_pair_has_half_of_the_weight(self):
        """4 samples of class 0 and 1 of class 1: 12 similar and 8 dissimilar ordered pairs, 20 in all."""
        case = make_case(False, seed=1, count=5, classes=2)
        case.targets[:] = np.eye(2)[[0, 0, 0, 0, 1]]
        codes = np.tanh(case.outputs)
        theta = 10 / 8 * codes @ codes.T
        similar = [math.log1p(math.exp(theta[i, j])) - theta[i, j] for i in range(4) for j in range(4) if i != j]
        dissimilar = [math.log1p(math.exp(theta[i, 4])) for i in range(4)] * 2
        value = evaluate(build("pairwise_continuation", case), case)["pairs"].mean().item()
        assert value == pytest.approx((20 / 12 * sum(similar) + 20 / 8 * sum(dissimilar)) / 40, **ROUNDED)
        assert value == pytest.approx((np.mean(similar) + np.mean(dissimilar)) / 2, **ROUNDED)

    def test_a_sample_is_no_pair_with_itself(self):
        case = make_case(False, count=2, classes=2)
        case.targets[:] = np.eye(2)
        first, second = np.tanh(case.outputs)
        theta = 10 / 8 * first @ second
        value = evaluate(build("pairwise_continuation", case), case)["pairs"].mean().item()
        assert value == pytest.approx(math.log1p(math.exp(theta)), **CLOSE)
        alone = replace(case, outputs=case.outputs[:1], targets=case.targets[:1])
        assert evaluate(build("pairwise_continuation", alone), alone)["pairs"].tolist() == [0.0]


class TestDTSH:
    def test_one_triplet_by_hand(self):
        """u0.u1 = 8 and u0.u2 = -8: theta 4 and -4, alpha = K/2 = 4; the other anchor of class 0 the same."""
        u = np.ones(8)
        case = make_case(False, count=3, classes=2)
        case.outputs[:] = [u, u, -u]
        case.targets[:] = np.eye(2)[[0, 0, 1]]
        terms = evaluate(build("triplet_likelihood", case), case)
        assert terms["triplets"].mean().item() == pytest.approx(math.log1p(math.exp(-(4 + 4 - 4))), **CLOSE)
        assert terms["quantization"].tolist() == [0, 0, 0]

    @pytest.mark.parametrize("bits", [1, 7, 32])
    def test_the_margin_is_half_the_bits(self, bits):
        case = make_case(False, count=3, classes=2, bits=bits)
        case.outputs[:] = 0
        case.targets[:] = np.eye(2)[[0, 0, 1]]
        value = evaluate(build("triplet_likelihood", case), case)["triplets"].mean().item()
        assert value == pytest.approx(math.log1p(math.exp(bits / 2)), **CLOSE)

    @pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0], [0]], ids=["no_positive", "no_negative", "alone"])
    def test_without_triplets_the_term_is_zero_and_has_a_gradient(self, labels):
        """Were a sample its own positive, the first case would have triplets."""
        case = make_case(False, count=len(labels))
        case.targets[:] = np.eye(3)[labels]
        leaf = torch.from_numpy(case.outputs).requires_grad_()
        term = evaluate(build("triplet_likelihood", case), case, leaf)["triplets"]
        assert term.tolist() == [0.0] * len(labels)
        term.sum().backward()
        assert (leaf.grad == 0).all()

    def test_of_many_classes_only_the_triplets_that_count_are_computed(self):
        """Two samples a class: 128 pairs, each with 126 negatives, of 128 x 128 x 128 triplets."""
        case, kept = make_case(False, count=128, classes=64), []
        case.targets[:] = np.eye(64)[np.arange(128) % 64]
        leaf = torch.from_numpy(case.outputs).requires_grad_()
        keep = torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.numel()) or each, torch.clone)
        with keep:
            evaluate(build("triplet_likelihood", case), case, leaf)
        assert max(kept) == 128 * 128

    def test_a_multi_label_sample_is_a_negative_only_without_a_common_label(self):
        case = make_case(True, count=3)
        case.targets[:] = [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
        losses = []
        theta = case.outputs @ case.outputs.T / 2
        for i, p, n in [(1, 0, 2), (2, 0, 1)]:  # anchor 0 shares a label with both
            losses.append(math.log1p(math.exp(-(theta[i, p] - theta[i, n] - 4))))
        value = evaluate(build("triplet_likelihood", case), case)["triplets"].mean().item()
        assert value == pytest.approx(sum(losses) / 2, **CLOSE)


class TestMDS:
    @pytest.mark.parametrize(("epoch", "present"), [(1, False), (9, False), (10, True), (11, True)])
    def test_pairs_are_pulled_together_after_epoch_9(self, epoch, present):
        case = make_case(False, epoch=epoch)
        assert ("pairs" in evaluate(build("minimal_distance", case), case)) == present

    @pytest.mark.parametrize("momentum", [0.9, 0.5])
    @pytest.mark.parametrize("multi", [False, True])
    def test_the_bank_has_momentum(self, multi, momentum):
        """The first mean of a class as it is; then momentum old + (1 - momentum) new; an absent class keeps its row."""
        case = make_case(multi, classes=4)
        case = replace(case, options=replace(case.options, bank_momentum=momentum))
        objective = made("minimal_distance", case.options).double()
        expected: list[np.ndarray | None] = [None] * 4
        present = []
        for seed in range(6):
            batch = make_case(multi, seed, count=3, classes=4)
            evaluate(objective, batch)
            for c in range(4):
                rows = [u for u, labels in zip(np.tanh(batch.outputs), batch.targets, strict=True) if labels[c]]
                present.append((seed, c, bool(rows)))
                if rows:
                    mean = sum(rows) / len(rows)
                    old = expected[c]
                    expected[c] = mean if old is None else momentum * old + (1 - momentum) * mean
                row = np.zeros(8) if expected[c] is None else expected[c]
                np.testing.assert_allclose(objective.bank[c], row, rtol=1e-12, atol=1e-14)
        assert any(not there for seed, _, there in present if seed > 0)

    def test_the_pairs_term_sees_the_bank_of_the_batches_before(self):
        case = make_case(False, epoch=10)
        objective = build("minimal_distance", case)
        check_value("minimal_distance", case, objective)
        assert not np.allclose(objective.bank, case.bank)
        check_value("minimal_distance", replace(case, bank=objective.bank.numpy().copy()), objective)

    def test_a_class_never_seen_is_at_right_angles(self):
        case = make_case(False, epoch=10)
        objective = made("minimal_distance", case.options).double()
        objective.epoch = 10
        assert evaluate(objective, case)["pairs"].tolist() == pytest.approx([math.log1p(math.exp(0.5))] * 6)

    def test_the_bank_is_left_alone_in_evaluation_and_has_no_gradient(self):
        case = make_case(False, epoch=10)
        objective = build("minimal_distance", case).eval()
        evaluate(objective, case, torch.from_numpy(case.outputs).requires_grad_())
        np.testing.assert_array_equal(objective.bank, case.bank)
        evaluate(objective.train(), case, torch.from_numpy(case.outputs).requires_grad_())
        assert not objective.bank.requires_grad
        assert list(objective.state_dict()) == ["bank"]

    def test_a_probability_near_one_keeps_loss_and_gradient_finite(self):
        """Two opposite centres of 4,096 bits: 1 - p = e^-128, on the right and on the wrong side."""
        center = torch.where(torch.rand(4096, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
        leaf = torch.stack([center, -center]).requires_grad_()
        objective = made("minimal_distance", Values(4096, 2, quantization_weight=0.0))
        terms = objective(leaf, torch.tensor([[1.0, 0.0]] * 2), torch.stack([center, -center]))
        assert terms["cross_entropy"][0].item() == pytest.approx(0, abs=1e-6)
        assert 64 <= terms["cross_entropy"][1].item() <= 128
        terms["cross_entropy"].sum().backward()
        assert torch.isfinite(leaf.grad).all()


class TestCSQ:
    def test_a_multi_label_target_is_the_sign_of_the_sum_of_its_centres(self):
        for seed in range(10):
            case = make_case(True, seed, count=8, classes=6, bits=16)
            objective = build("central_similarity", case)
            targets, centers = torch.from_numpy(case.targets), torch.from_numpy(case.centers)
            goals = sample_centers(targets, centers, objective.tie_breaker)
            assert goals.tolist() == target_bits(case, objective.tie_breaker)

    def test_a_single_label_target_is_its_centre(self):
        case = make_case(False)
        targets, centers = torch.from_numpy(case.targets), torch.from_numpy(case.centers)
        result = sample_centers(targets, centers, build("central_similarity", case).tie_breaker)
        np.testing.assert_array_equal(result, case.centers[case.targets.argmax(axis=1)])

    def test_ties_take_the_bits_of_one_fixed_vector(self):
        vectors = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            vectors.append(made("central_similarity", Values(64, 4)).tie_breaker.tolist())
        assert vectors[0] == vectors[1]
        assert set(vectors[0]) == {-1.0, 1.0}

        row = np.where(np.random.default_rng(0).random(64) < 0.5, -1.0, 1.0)
        half = np.concatenate([row[:32], -row[32:]])
        centers = torch.from_numpy(np.stack([row, -row, half, row])).float()
        targets = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]).float()
        result = sample_centers(targets, centers, torch.tensor(vectors[0]))
        assert result[:3].tolist() == [vectors[0]] * 3
        assert result[3].tolist() == row[:32].tolist() + vectors[0][32:]

    def test_the_random_stream_of_the_network_is_left_alone(self):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        made("central_similarity", Values(16, 2))
        assert torch.equal(torch.get_rng_state(), before)

    def test_huge_outputs_do_not_overflow(self):
        case = make_case(False)
        leaf = torch.full((6, 8), 1e4).requires_grad_()
        targets, centers = torch.from_numpy(case.targets).float(), torch.from_numpy(case.centers).float()
        value = sum(build("central_similarity", case).float()(leaf, targets, centers).values()).mean()
        wrong = (case.targets @ case.centers < 0).mean()
        assert value.item() == pytest.approx(2e4 * wrong, rel=1e-5)  # -ln sigmoid(-2u) = 2u
        value.backward()
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("epoch", [1, 10])
@pytest.mark.parametrize(
    ("count", "classes", "multi", "labels"),
    [
        (6, 3, False, "same"),
        (6, 2, False, "any"),
        (6, 2, True, "any"),
        (1, 3, False, "any"),
        (1, 2, True, "same"),
        (0, 3, False, "any"),
        (0, 2, True, "any"),
        (4, 3, True, "none"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_and_one_sided_batches_give_finite_results(name, epoch, count, classes, multi, labels, dtype):
    case = make_case(multi, 7, count, classes, epoch=epoch)
    if labels != "any":
        case.targets[:] = np.eye(classes)[0] if labels == "same" else 0
    for objective in (made(name, case.options), build(name, case)):
        objective.to(dtype).epoch = epoch
        leaf, targets, centers = (
            torch.from_numpy(array).to(dtype) for array in (case.outputs, case.targets, case.centers)
        )
        leaf.requires_grad_()
        terms = objective(leaf, targets, centers)
        assert all(term.shape == (count,) and term.dtype == dtype for term in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        for tensor in (*terms.values(), leaf.grad, *objective.buffers(), *(p.grad for p in objective.parameters())):
            assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("name", sorted(OVER_SEVERAL_SAMPLES))
def test_a_batch_of_128_takes_no_loop_over_pairs_or_triplets(name, multi):
    def operations(count: int) -> Counter[str]:
        case = make_case(multi, count=count, classes=10, bits=32)
        objective = made(name, case.options)
        arrays = (case.outputs, case.targets, case.centers)
        leaf, targets, centers = (torch.from_numpy(array).float() for array in arrays)
        leaf.requires_grad_()
        with Operations() as counted:
            sum(objective(leaf, targets, centers).values()).mean().backward()
        return counted.seen

    assert operations(128) == operations(64)
