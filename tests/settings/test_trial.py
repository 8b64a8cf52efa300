"""The settings of a trial: the paper's values by default, one line for every mistake, YAML there and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from crh_tune.hashing.methods import METHODS
from crh_tune.settings.base import SettingsError, validated
from crh_tune.settings.training import TrainingSettings, codebook_size, head_dim, optimizer_defaults
from crh_tune.settings.trial import TrialSettings, read_trial, write_trial


def trial(method: str = "crh", dataset: str = "digits", **values: Any) -> TrialSettings:
    return TrialSettings.model_validate({"dataset": {"name": dataset}, "method": method, "trial": values})


def complaint(path: Path, text: str) -> str:
    """The one line that reading this file, and resolving it for the 196 Stanford Cars, raises."""
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_trial(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


CARS, NABIRDS, COCO = (196, False), (555, False), (80, True)


@pytest.mark.parametrize(
    ("data", "bits", "size", "d", "weight", "scale"),
    [
        *[(CARS, bits, 392, 16, 0.1, 7.457) for bits in (16, 32, 64)],
        *[(NABIRDS, bits, 1110, 16, 0.1, 8.934) for bits in (16, 32, 64)],
        *[(COCO, bits, 160, 8, 0.0, 6.179) for bits in (16, 32, 64)],
    ],
)
def test_every_default_resolves_to_the_papers_value(data, bits, size, d, weight, scale):
    resolved = trial(bits=bits).resolve(*data)
    assert resolved.method == "crh"
    assert resolved.trial.scale is not None
    assert round(resolved.trial.scale, 3) == scale
    expected = {
        "bits": bits,
        "codebook_size": size,
        "codebook_ratio": None,
        "head_dim": d,
        "quantization_weight": weight,
        "objective": "margin_cross_entropy",
        "reassignment": "greedy",
        "epochs": 300,
        "batch_size": 128,
        "learning_rate": 2e-3,  # of small_cnn, which is trained from scratch
        "weight_decay": 1e-5,
        "margin": 0.2,
        "update_interval": 5,
        "early_epochs": 20,
    }
    assert {name: getattr(resolved.trial, name) for name in expected} == expected
    assert resolved.resolve(*data) == resolved


@pytest.mark.parametrize(
    ("method", "d", "reassignment"), [("crh", 16, "greedy"), ("crh_m", 64, "greedy"), ("crh_u", 64, "none")]
)
def test_a_method_sets_heads_and_reassignment_unless_they_are_given(method, d, reassignment):
    resolved = trial(method, bits=64).resolve(*CARS).trial
    assert (resolved.head_dim, resolved.reassignment) == (d, reassignment)
    given_ = trial(method, bits=64, head_dim=32, reassignment="hungarian").resolve(*CARS).trial
    assert (given_.head_dim, given_.reassignment) == (32, "hungarian")


@pytest.mark.parametrize("bits", [16])
def test_at_16_bits_crh_is_crh_m_on_cars(bits):
    crh, crh_m = (trial(method, bits=bits).resolve(*CARS).trial for method in ("crh", "crh_m"))
    assert crh == crh_m


def test_what_is_given_is_kept():
    values = {"codebook_size": 500, "head_dim": 32, "quantization_weight": 0.0, "scale": 3.5, "margin": 0.0}
    resolved = trial(bits=64, **values).resolve(*CARS).trial
    assert {name: getattr(resolved, name) for name in values} == values
    assert trial(bits=64, quantization_weight=0.7).resolve(*COCO).trial.quantization_weight == 0.7


@pytest.mark.parametrize(
    ("values", "classes", "size"),
    [
        ({"bits": 64}, 196, 392),
        ({"bits": 64, "codebook_ratio": 1}, 196, 196),
        ({"bits": 64, "codebook_ratio": 2.5}, 10, 25),
        ({"bits": 64, "codebook_size": 196}, 196, 196),
        ({"bits": 8}, 200, 256),  # 2C = 400 words do not exist: all there are
        ({"bits": 4}, 16, 16),
        ({"bits": 64, "codebook_ratio": "full"}, 196, "full"),
        ({"bits": 64, "codebook_size": "full"}, 196, "full"),
        ({"bits": 16, "codebook_size": 2**16}, 196, 2**16),
    ],
)
def test_the_codebook_size(values, classes, size):
    assert codebook_size(trial(**values).trial, classes) == size
    resolved = trial(**values).resolve(classes, False).trial
    assert resolved.codebook_size == size
    assert resolved.codebook_ratio is None
    if size == "full":
        assert resolved.head_dim == values["bits"]


@pytest.mark.parametrize(
    ("values", "size", "single", "d"),
    [
        ({"bits": 64}, 392, False, 16),
        ({"bits": 64}, 392, True, 64),
        ({"bits": 64, "head_dim": 32}, 392, True, 32),
        ({"bits": 64, "head_dim": 16}, 2**16, False, 16),
        ({"bits": 24}, 392, False, 12),
        ({"bits": 64}, "full", False, 64),
    ],
)
def test_the_head_dim(values, size, single, d):
    assert head_dim(trial(**values).trial, size, single) == d


@pytest.mark.parametrize("method", ["crh", "crh_m", "crh_u"])
def test_two_classes_have_the_scale_of_three_unless_it_is_given(method):
    assert trial(method, bits=16).resolve(2, False).trial.scale == pytest.approx(0.98026, abs=1e-5)
    assert trial(method, bits=16).resolve(3, False).trial.scale == pytest.approx(0.98026, abs=1e-5)
    assert trial(method, bits=16, scale=4).resolve(2, False).trial.scale == 4


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"bits": 64, "codebook_size": 195}, ["codebook_size M = 195", "C = 196"]),
        ({"bits": 8, "codebook_ratio": 2}, ["codebook_size M = 392", "2^K = 256", "bits K = 8"]),
        ({"bits": 7}, ["M = 196", "2^K = 128", "bits K = 7"]),
        ({"bits": 7, "codebook_size": "full"}, ["bits K = 7", "2^K = 128", "C = 196"]),
        ({"bits": 64, "head_dim": 8}, ["head_dim d = 8", "M = 392", "2^d = 256", "[16, 32, 64]"]),
        ({"bits": 16, "head_dim": 8, "codebook_size": "full"}, ["codebook_size full", "head_dim", "16", "8"]),
        ({"bits": 128, "codebook_size": "full"}, ["codebook_size full", "bits <= 64", "128"]),
        (
            {"bits": 64, "codebook_size": "full", "reassignment": "hungarian"},
            ["hungarian", "codebook_size full", "greedy"],
        ),
    ],
)
def test_what_196_classes_make_impossible_is_told_in_one_line(values, parts):
    with pytest.raises(SettingsError) as caught:
        trial(**values).resolve(*CARS)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("trial: ")
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("text", "field", "parts"),
    [
        ("{dataset: {name: cars}}", "dataset: ", ["'cars'", "digits, digit_pairs, digit_sets"]),
        ("{dataset: {name: digits, size: 3}}", "dataset: size: ", ["unknown key"]),
        (
            "{dataset: {name: digit_pairs, images_per_class: 1}}",
            "dataset: images_per_class: ",
            ["greater than or equal to 2", "got 1"],
        ),
        ("{dataset: {}}", "dataset.name: ", ["required"]),
        ("{method: crh}", "dataset: ", ["required"]),
        ("{dataset: {name: digits}, method: csq2}", "method: ", ["'csq2'", "crh, crh_m, crh_u"]),
        ("{dataset: {name: digits}, methods: crh}", "methods: ", ["unknown key"]),
        ("{dataset: {name: digits}, trial: {bit: 16}}", "trial.bit: ", ["unknown key: one of bits, ", "epochs"]),
        ("{dataset: {name: digits}, trail: {bits: 16}}", "trail: ", ["unknown key: one of trial, ", "evaluation"]),
        ("{dataset: {name: digits}, trial: {bits: 1}}", "trial.bits: ", ["greater than or equal to 2", "got 1"]),
        ("{dataset: {name: digits}, trial: {bits: x}}", "trial.bits: ", ["integer", "got 'x'"]),
        ("{dataset: {name: digits}, trial: {bits: null}}", "trial.bits: ", ["integer", "got None"]),
        ("{dataset: {name: digits}, trial: 16}", "trial: ", ["got 16"]),
        ("{dataset: {name: digits}, trial: {bits: 16, head_dim: 3}}", "trial: ", ["head_dim d = 3", "bits K = 16"]),
        (
            "{dataset: {name: digits}, trial: {bits: 4, codebook_size: 17}}",
            "trial: ",
            ["codebook_size M = 17", "2^K = 16"],
        ),
        (
            "{dataset: {name: digits}, trial: {codebook_size: 30, codebook_ratio: 2}}",
            "trial: ",
            ["codebook_size or codebook_ratio"],
        ),
        ("{dataset: {name: digits}, trial: {codebook_ratio: 0.5}}", "trial.codebook_ratio: ", ["got 0.5"]),
        ("{dataset: {name: digits}, trial: {codebook_size: most}}", "trial.codebook_size: ", ["got 'most'"]),
        (
            "{dataset: {name: digits}, trial: {quantization_weight: -0.1}}",
            "trial.quantization_weight: ",
            ["greater than or equal to 0", "got -0.1"],
        ),
        ("{dataset: {name: digits}, trial: {quantization_weight: .inf}}", "trial.quantization_weight: ", ["got inf"]),
        ("{dataset: {name: digits}, trial: {learning_rate: 0}}", "trial.learning_rate: ", ["greater than 0", "got 0"]),
        ("{dataset: {name: digits}, trial: {learning_rate: .nan}}", "trial.learning_rate: ", ["got nan"]),
        ("{dataset: {name: digits}, trial: {epochs: 0}}", "trial.epochs: ", ["got 0"]),
        ("{dataset: {name: digits}, trial: {margin: 2.5}}", "trial.margin: ", ["got 2.5"]),
        ("{dataset: {name: digits}, trial: {seed: -1}}", "trial.seed: ", ["got -1"]),
        ("{dataset: {name: digits}, trial: {backbone: vgg}}", "trial.backbone: ", ["'vgg'", "small_cnn"]),
        ("{dataset: {name: digits}, trial: {objective: l2}}", "trial.objective: ", ["'l2'", "margin_cross_entropy"]),
        (
            "{dataset: {name: digits}, trial: {reassignment: best}}",
            "trial.reassignment: ",
            ["'greedy', 'hungarian' or 'none'", "got 'best'"],
        ),
        ("{dataset: {name: digits}, evaluation: {cutoff: 0}}", "evaluation.cutoff: ", ["got 0"]),
        (
            "{dataset: {name: digits}, evaluation: {ties: random}}",
            "evaluation.ties: ",
            ["'expected', 'stable' or 'shuffle'", "got 'random'"],
        ),
        ("{dataset: {name: digits}, validation: {fraction: 1}}", "validation.fraction: ", ["less than 1", "got 1"]),
        ("{dataset: {name: digits}, scaling: {workers_per_trial: 0}}", "scaling.workers_per_trial: ", ["got 0"]),
        (
            "{dataset: {name: digits}, scaling: {workers_per_trial: 2, gpus_per_worker: 0.5}}",
            "scaling: ",
            ["gpus_per_worker", "0.5"],
        ),
        ('{dataset: {name: digits}, "two\\nlines": 1}', "two", ["unknown key"]),
        ("[1, 2]", "expected a mapping of settings", ["[1, 2]"]),
        ("", "expected a mapping of settings", ["None"]),
        ("{1: 2}", "expected a mapping of settings", ["{1: 2}"]),
        ("{dataset: [", "not readable as YAML", []),
        ("a: b: c", "not readable as YAML", []),
        ("a: 2021-99-99", "not readable as YAML", []),
    ],
)
def test_a_mistake_is_told_in_one_line_that_names_file_and_field(tmp_path, text, field, parts):
    line = complaint(tmp_path / "trial.yaml", text)
    assert line.startswith(field), line
    assert all(part in line for part in parts), line


def test_more_than_one_mistake_is_counted(tmp_path):
    line = complaint(tmp_path / "trial.yaml", "{dataset: {name: digits}, trial: {bits: 1, epochs: 0, margin: -3}}")
    assert line.startswith("trial.bits: ")
    assert line.endswith("(and 2 more)")


def test_a_file_that_is_not_there_a_folder_and_no_text_are_told_in_one_line(tmp_path):
    noise = tmp_path / "noise.yaml"
    noise.write_bytes(b"\xff\xfe\x00\x81")
    for path, reason in ((tmp_path / "missing.yaml", "No such file"), (tmp_path, "directory"), (noise, "YAML")):
        with pytest.raises(SettingsError, match=reason) as caught:
            read_trial(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("2e-05", 2e-5), ("1E-4", 1e-4), ("1.0e-3", 1e-3)])
def test_a_number_may_be_written_without_a_dot(tmp_path, text, value):
    path = tmp_path / "trial.yaml"
    names = ("learning_rate", "quantization_weight", "weight_decay")
    path.write_text(f"dataset: {{name: digits}}\ntrial: {{{', '.join(f'{name}: {text}' for name in names)}}}\n")
    read = read_trial(path).trial
    assert [getattr(read, name) for name in names] == [value] * 3


POSITIVE = st.floats(1e-30, 1e30)


@settings(max_examples=40, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "bits": st.sampled_from([16, 48, 64]),
            "epochs": st.integers(1, 10**6),
            "learning_rate": POSITIVE,
            "weight_decay": st.floats(0, 1),
            "quantization_weight": POSITIVE,
            "margin": st.floats(0, 2),
            "scale": POSITIVE,
            "codebook_ratio": st.floats(1, 8) | st.just("full"),
            "head_dim": st.sampled_from([8, 16]),
            "seed": st.integers(0, 2**31 - 1),
        },
    ),
    options=st.sampled_from([{"name": "digits"}, {"name": "digit_pairs", "images_per_class": 3, "seed": 4}]),
    evaluation=st.fixed_dictionaries(
        {}, optional={"cutoff": st.none() | st.integers(1, 99), "ties": st.sampled_from(["stable", "shuffle"])}
    ),
)
def test_written_settings_are_read_back_equal(tmp_path_factory, values, options, evaluation):
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    written = TrialSettings.model_validate({"dataset": options, "trial": values, "evaluation": evaluation})
    write_trial(written, path)
    assert read_trial(path) == written
    assert read_trial(path).dataset.options == {k: v for k, v in options.items() if k != "name"}
    plain = yaml.safe_load(path.read_text())
    assert {name: plain["trial"][name] for name in values} == values


def test_resolved_settings_are_read_back_equal(tmp_path):
    for data in (CARS, COCO):
        resolved = trial(bits=64).resolve(*data)
        write_trial(resolved, tmp_path / "resolved.yaml")
        assert read_trial(tmp_path / "resolved.yaml") == resolved


def test_settings_do_not_change_after_construction():
    made = trial(bits=16)
    with pytest.raises(ValidationError, match="frozen"):
        made.trial.bits = 32
    resolved = made.resolve(*CARS)
    assert made.trial.codebook_size is None
    assert resolved.trial.codebook_size == 392


def test_the_ranking_protocol_is_the_one_set():
    content = {"cutoff": 5000, "ties": "stable", "denominator": "achievable", "no_relevant": "skip"}
    made = TrialSettings.model_validate({"dataset": {"name": "digits"}, "evaluation": content})
    protocol = made.evaluation.protocol
    assert {name: getattr(protocol, name) for name in content} == content
    assert math.isclose(trial().validation.fraction, 0.2)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("crh", ("adam", 1e-4, 1.0, 1e-5, "cosine", (0.5, 0.999))),
        ("crh_u", ("adam", 1e-4, 1.0, 1e-5, "cosine", (0.5, 0.999))),
        ("csq", ("adam", 1e-3, 0.01, 0.0, "every_10_epochs", (0.9, 0.999))),
        ("orthohash", ("adam", 1e-4, 0.1, 5e-4, "at_80_percent", (0.9, 0.999))),
        ("mds", ("rmsprop", 1e-5, 1.0, 1e-5, "constant", (0.9, 0.999))),
        ("shc", ("rmsprop", 1e-4, 1.0, 1e-5, "cosine", (0.9, 0.999))),
    ],
)
def test_a_pretrained_backbone_takes_the_optimizer_of_the_methods_paper(method, expected):
    defaults = optimizer_defaults(METHODS[method].optimizer, "resnet34")
    names = ("optimizer", "learning_rate", "backbone_ratio", "weight_decay", "schedule", "betas")
    assert tuple(defaults[name] for name in names) == expected
    assert defaults["gradient_clip"] == (5.0 if method == "mds" else 0.0)


@pytest.mark.parametrize(
    ("method", "betas"), [("crh_m", (0.5, 0.999)), ("orthohash", (0.9, 0.999)), ("mds", (0.9, 0.999))]
)
def test_a_backbone_from_scratch_trains_with_the_methods_betas_unless_they_are_given(method, betas):
    resolved = trial(method).resolve(*CARS).trial
    assert (resolved.optimizer, resolved.learning_rate, resolved.betas) == ("adam", 2e-3, betas)
    assert trial(method, betas=[0.7, 0.99]).resolve(*CARS).trial.betas == (0.7, 0.99)


@pytest.mark.parametrize("betas", [[0.9, 1.0], [-0.1, 0.999], [0.9], 0.9])
def test_betas_are_two_numbers_below_one(betas):
    with pytest.raises(ValueError, match="betas"):
        trial(betas=betas)


def test_open_bits_are_taken_from_the_methods_bits():
    resolved = trial(bits=64, open_bits=32).resolve(*CARS).trial
    short = trial(bits=32).resolve(*CARS).trial
    assert (resolved.learned_bits, resolved.head_dim, resolved.codebook_size) == (32, short.head_dim, 392)
    with pytest.raises(SettingsError, match=r"open_bits 15 of 16 bits leave 1 to train"):
        validated(TrainingSettings, {"bits": 16, "open_bits": 15}, "trial")


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("crh", {"nested": [32, 16]}, r"nested \[32, 16\]: want lengths shorter than 64 bits, the shortest first"),
        ("crh", {"nested": [16, 16]}, r"nested \[16, 16\]: want lengths shorter than 64 bits"),
        ("crh", {"nested": [64]}, r"nested \[64\]: want lengths shorter than 64 bits"),
        ("crh", {"nested": [16, 40], "open_bits": 24}, r"nested \[16, 40\]: want lengths shorter than 40 bits"),
        ("crh", {"nested": [0]}, r"(?s)nested.*greater than or equal to 2"),
        ("crh", {"nested": [24]}, "nested 24: codes of 24 bits are no whole heads of head_dim d = 16 bits"),
        ("crh", {"nested": [16], "codebook_size": "full"}, "nested 16: .* no whole heads of head_dim d = 64"),
        ("crh_m", {"nested": [16]}, "nested 16: codes of 16 bits are no whole heads of head_dim d = 64"),
        ("orthohash", {"nested": [16]}, "nested has no meaning with centers bernoulli"),
        ("crh", {"nested": [16], "centers": "hadamard"}, "nested has no meaning with centers hadamard"),
        ("csq", {"nested": [16]}, "nested: objective central_similarity is not defined on the first bits"),
        ("dtsh", {"nested": [16]}, "nested: objective triplet_likelihood is not defined on the first bits"),
    ],
)  # fmt: skip
def test_nested_lengths_are_whole_heads_and_shorter_than_the_code(method, given, said):
    with pytest.raises(ValueError, match=said):
        trial(method, bits=64, **given).resolve(*CARS)


def test_nested_lengths_leave_the_rest_of_a_setting_as_it_is():
    nested, plain = (trial(bits=64, **given).resolve(*CARS).trial for given in ({"nested": [16, 32]}, {}))
    assert nested.lengths == (16, 32, 64)
    assert nested.model_copy(update={"nested": ()}) == plain
