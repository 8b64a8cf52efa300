"""The settings of a search: every impossible space refused in one line, possible ones read, written and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings, read_search
from crh_tune.settings.space import allowed_head_dims, check_feasible, without_effect
from crh_tune.settings.trial import TrialSettings

BASE: dict[str, Any] = {
    "name": "a-search",
    "dataset": {"name": "digit_pairs"},
    "trial": {"bits": 16},
    "search": {"margin": {"uniform": [0.0, 0.5]}},
}


def space(**changes: Any) -> SearchSettings:
    return SearchSettings.model_validate({**BASE, **changes})


def read(path: Path, text: str) -> SearchSettings:
    """The base with the keys of a piece of YAML in place of its own, read from a file."""
    kept = {name: value for name, value in BASE.items() if name not in yaml.safe_load(text)}
    path.write_text("\n".join([yaml.safe_dump(kept), text]))
    return read_search(path)


def complaint(path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(path, text)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


KINDS = "choice, grid, uniform, log_uniform, int, feasible, smallest"


@pytest.mark.parametrize(
    ("text", "field", "parts"),
    [
        ("dataset: {name: cars}", "dataset: ", ["'cars'", "digits, digit_pairs, digit_sets"]),
        ("dataset: {name: digit_pairs, images: 3}", "dataset: images: ", ["unknown key"]),
        ("method: csq2", "method: ", ["'csq2'", "crh, crh_m, crh_u"]),
        ("trials: 3", "trials: ", ["unknown key"]),
        ("name: two words", "name: ", ["'two words'"]),
        ("name: ../up", "name: ", ["'../up'"]),
        ("search: {}", "search: ", ["nothing to search over"]),
        ("search: 3", "search: ", ["got 3"]),
        ("search: {lambda: {uniform: [0, 1]}}", "search.lambda: ", ["'lambda'", "quantization_weight"]),
        ("search: {margin: {normal: [0, 1]}}", "search.margin: ", ["'normal'", KINDS]),
        ("search: {margin: 0.3}", "search.margin: ", [KINDS, "got 0.3"]),
        ("search: {margin: {uniform: [0, 1], int: [0, 1]}}", "search.margin: ", [KINDS]),
        ("search: {margin: {uniform: [0.5]}}", "search.margin: ", ["[low, high]", "got [0.5]"]),
        ("search: {margin: {uniform: [0.5, 0.1]}}", "search.margin: ", ["low < high", "got [0.5, 0.1]"]),
        ("search: {margin: {uniform: [0.1, 0.1]}}", "search.margin: ", ["low < high", "got [0.1, 0.1]"]),
        ("search: {margin: {uniform: [0.1, .nan]}}", "search.margin: ", ["low < high", "nan"]),
        ("search: {margin: {uniform: [a, b]}}", "search.margin: ", ["[low, high]", "got ['a', 'b']"]),
        ("search: {margin: {uniform: 0.3}}", "search.margin: ", ["[low, high]", "got 0.3"]),
        ("search: {margin: {choice: []}}", "search.margin: ", ["a list of values", "got []"]),
        ("search: {margin: {uniform: [0, 3]}}", "search.margin: ", ["less than or equal to 2", "got 3"]),
        ("search: {update_interval: {int: [1.5, 3]}}", "search.update_interval: ", ["whole numbers", "[1.5, 3]"]),
        ("search: {update_interval: {int: [0, 3]}}", "search.update_interval: ", ["got 0"]),
        ("search: {update_interval: {uniform: [1, 10]}}", "search.update_interval: ", ["uniform"]),
        ("search: {bits: {smallest: [16, 32, 16]}}", "search.bits: ", ["smallest names a value twice"]),
        ("search: {bits: {smallest: [16]}}", "search.bits: ", ["two code lengths or more, got [16]"]),
        ("search: {bits: {smallest: [1, 16]}}", "search.bits: ", ["got 1"]),
        ("search: {bits: {smallest: 16}}", "search.bits: ", ["a list of code lengths", "got 16"]),
        ("search: {margin: {smallest: [0.1, 0.2]}}", "search.margin: ", ["smallest is for bits only"]),
        ("search: {margin: {grid: [0, 1]}, bits: {smallest: [16, 32]}}", "search: ", ["grid cannot be mixed"]),
        (
            "search: {bits: {smallest: [16, 32]}}\nstart_from: [{bits: 16}]",
            "start_from.0.bits: ",
            ["not drawn: leave it out"],
        ),
        ("search: {bits: {log_uniform: [16, 64]}}", "search.bits: ", ["log_uniform"]),
        ("search: {quantization_weight: {uniform: [-1, 1]}}", "search.quantization_weight: ", ["got -1"]),
        ("search: {quantization_weight: {choice: [0.1, -1]}}", "search.quantization_weight: ", ["got -1"]),
        ("search: {quantization_weight: {log_uniform: [0, 1]}}", "search.quantization_weight: ", ["both positive"]),
        ("search: {margin: {choice: [0.1, 0.2, 0.1]}}", "search.margin: ", ["twice", "[0.1, 0.2, 0.1]"]),
        ("search: {method: {grid: [crh, crh]}}", "search.method: ", ["twice", "crh"]),
        ("search: {codebook_ratio: {choice: [2, 2.0]}}", "search.codebook_ratio: ", ["twice", "2"]),
        ("search: {codebook_ratio: {choice: [0.5, 2]}}", "search.codebook_ratio: ", ["got 0.5"]),
        ("search: {codebook_ratio: {choice: [most, 2]}}", "search.codebook_ratio: ", ["got 'most'"]),
        ("search: {codebook_ratio: {choice: [[1, 2]]}}", "search.codebook_ratio: ", ["got [1, 2]"]),
        ("search: {codebook_size: {choice: [70000]}}", "search.codebook_size: ", ["M = 70000", "2^K = 65536"]),
        ("search: {codebook_size: {int: [1, 300]}}", "search.codebook_size: ", ["got 1"]),
        (
            "search: {codebook_size: {choice: [200]}, codebook_ratio: {choice: [2]}}",
            "search: ",
            ["codebook_size or codebook_ratio, not both"],
        ),
        ("search: {head_dim: {choice: [3]}}", "search.head_dim: ", ["d = 3", "K = 16"]),
        ("search: {head_dim: {choice: [0]}}", "search.head_dim: ", ["got 0"]),
        ("search: {head_dim: {feasible: false}}", "search.head_dim: ", ["feasible takes true", "got False"]),
        ("search: {margin: {feasible: true}}", "search.margin: ", ["head_dim only"]),
        ("search: {margin: {uniform: [0, 1]}, bits: {feasible: true}}", "search.bits: ", ["head_dim only"]),
        ("search: {bits: {choice: [16, many]}}", "search.bits: ", ["got 'many'"]),
        ("search: {bits: {choice: [16, null]}}", "search.bits: ", ["None"]),
        ("search: {bits: {choice: [1, 16]}}", "search.bits: ", ["got 1"]),
        ("search: {method: {choice: [crh, csq2]}}", "search.method: ", ["'csq2'", "crh, crh_m, crh_u"]),
        ("search: {backbone: {choice: [vgg]}}", "search.backbone: ", ["'vgg'", "small_cnn"]),
        ("search: {margin: {grid: [0, 1]}, bits: {choice: [16]}}", "search: ", ["grid cannot be mixed"]),
        ("search: {codebook_ratio: {grid: [1, 2]}, head_dim: {feasible: true}}", "search: ", ["grid cannot be mixed"]),
        ("method: hashnet", "search.margin: ", ["method hashnet does not use it"]),
        ("method: csq\nsearch: {scale: {choice: [3, 4]}}", "search.scale: ", ["method csq does not use it"]),
        ("method: csq\nsearch: {update_interval: {int: [1, 5]}}", "search.update_interval: ", ["method csq"]),
        ("method: csq\nsearch: {codebook_ratio: {choice: [1, 2]}}", "search.codebook_ratio: ", ["method csq"]),
        (
            "search: {method: {choice: [csq, hashnet]}, margin: {choice: [0, 0.1]}}",
            "search.margin: ",
            ["method csq or hashnet does not use it"],
        ),
        (
            "method: hashnet\nsearch: {learning_rate: {choice: [1, 2]}}\ntrial: {margin: 0.3}",
            "trial.margin: ",
            ["method hashnet"],
        ),
        (
            "start_from: [{method: csq, margin: 0}]\nsearch: {method: {choice: [crh, csq]}, margin: {choice: [0, 1]}}",
            "start_from.0.margin: ",
            ["method csq does not use it"],
        ),
        (
            "objective: {metric: centers/pcc}\nsearch: {method: {choice: [crh, dtsh]}}",
            "objective.metric: ",
            ["centers/pcc", "method dtsh", "val/map"],
        ),
        ("objective: {metric: val/map_harmonic}", "objective.metric: ", ["val/map_harmonic", "validation.classes"]),
        ("search: {betas: {choice: [[0.5, 0.999]]}}", "search.betas", ["a list of numbers cannot be searched"]),
        ("search: {nested: {choice: [[16]]}}", "search.nested", ["a list of numbers cannot be searched"]),
        (
            "method: csq\nsearch: {learning_rate: {choice: [1, 2]}}\ntrial: {bits: 32, nested: [16]}",
            "trial.nested: ",
            ["method csq does not use it"],
        ),
        ("start_from: [papr]", "start_from.0: ", ["'paper'", "got 'papr'"]),
        ("start_from: [paper, {scale: 3}]", "start_from.1.scale: ", ["not searched over", "margin"]),
        ("start_from: [{margin: 0.7}]", "start_from.0.margin: ", ["0.7", "[0.0, 0.5]"]),
        (
            "start_from: [{head_dim: 3}]\nsearch: {head_dim: {feasible: true}}",
            "start_from.0.head_dim: ",
            ["3"],
        ),
        ("target: val/map > 0.85", "target: ", ["val/map >= 0.85", "got 'val/map > 0.85'"]),
        ("target: centers/pcc >= 0.5", "target: ", ["the search's metric", "val/map >="]),
        ("target: val/map <= 0.5", "target: ", ["val/map >="]),
        ("target: val/map >= 1.2.3", "target: ", ["a number"]),
        ("target: test/map >= 0.8", "target: ", ["of the test queries", "never asks", "val/map >= 0.8"]),
        ("objective: [val/map]", "objective: ", ["such as [val/map, bits]", "got ['val/map']"]),
        ("objective: [val/map, test/map]", "objective.also: ", ["'bits' or 'val/map_asymmetric'", "got 'test/map'"]),
        ("objective: [bits, val/map]", "objective.metric: ", ["'val/map'", "got 'bits'"]),
        ("objective: [val/map, bits]", "", ["objective: bits are the same in all trials: search over bits"]),
        (
            "objective: [val/map, bits]\nsearch: {bits: {smallest: [16, 32]}}",
            "objective: ",
            ["smallest: leave the second out"],
        ),
        (
            "objective: [val/map, val/map_asymmetric]\nstart_from: [paper, earlier]",
            "start_from: ",
            ["leave earlier out"],
        ),
        ("objective: {metric: test/map}", "objective.metric: ", ["'val/map'", "got 'test/map'"]),
        ("objective: {mode: best}", "objective.mode: ", ["'max' or 'min'", "got 'best'"]),
        ("budget: {trials: 0}", "budget.trials: ", ["greater than or equal to 1", "got 0"]),
        ("budget: {hours: -1}", "budget.hours: ", ["got -1"]),
        ("budget: {concurrent: 0}", "budget.concurrent: ", ["auto", "got 0"]),
        ("budget: {concurrent: many}", "budget.concurrent: ", ["got 'many'"]),
        ("confirm: {top: 0}", "confirm.top: ", ["got 0"]),
        ("scheduler: {pbt: {}}", "scheduler.pbt: ", ["unknown key", "hyperband"]),
        ("scheduler: hyperbnd", "scheduler: ", ["'hyperbnd'", "did you mean 'hyperband'", "none"]),
        ("scheduler: {asha: {}, hyperband: {}}", "scheduler: ", ["asha and hyperband are both given"]),
        (
            "scheduler: short\nsearch: {bits: {smallest: [16, 32]}}\ntarget: val/map >= 0.5",
            "scheduler: ",
            ["short does not train trials whole", "search.bits", "asha"],
        ),
        (
            "scheduler: short\nsearch: {bits: {choice: [16, 32]}}\nobjective: [val/map, bits]",
            "scheduler: ",
            ["short does not train trials whole", "objective names two", "asha"],
        ),
        (
            "sampler: cmaes\nsearch: {margin: {uniform: [0, 1]}, update_interval: {choice: [1, 5]}}",
            "sampler: ",
            ["cmaes moves two or more ranges", "search has margin", "tpe"],
        ),
        (
            "sampler: cmaes\nsearch: {method: {choice: [crh, hashnet]}, margin: {uniform: [0, 1]}}",
            "sampler: ",
            ["ranges that every trial draws", "search has none"],
        ),
        (
            "sampler: cmaes\nsearch: {bits: {choice: [16, 32]}}\nobjective: [val/map, bits]",
            "sampler: ",
            ["cmaes takes one objective"],
        ),
        (
            "trial: {weights: DEFAULT, backbone: resnet18}\nsearch: {backbone: {choice: [resnet18, small_cnn]}}",
            "search.backbone: ",
            ["small_cnn has no pretrained weights"],
        ),
        (
            "trial: {weights: DEFAULT, backbone: resnet18, freeze: true}\nsearch: {crop: {choice: [24, 32]}}",
            "search.crop: ",
            ["features of whole images"],
        ),
        (
            "search: {learning_rate: {choice: [1, 2]}, backbone: {choice: [resnet99, resnet18]}}",
            "search.backbone: ",
            ["resnet99"],
        ),
        ("search: {margin: {choice: [0, 1]}, crop: {choice: [2, 8]}}", "search.crop: ", ["got 2"]),
        (
            "trial: {weights: DEFAULT, backbone: resnet18, freeze: true}\nsearch: {precision: {choice: [fp32, bf16]}}",
            "search.precision: ",
            ["set precision in trial"],
        ),
        ("scheduler: {short: {epochs: 0}}", "scheduler.short.epochs: ", ["got 0"]),
        ("scheduler: {asha: {reduction: 1}}", "scheduler.asha.reduction: ", ["greater than 1", "got 1"]),
        ("validation: {fraction: 0}", "validation.fraction: ", ["greater than 0", "got 0"]),
        ("validation: {queries: 0}", "validation.queries: ", ["greater than or equal to 1", "got 0"]),
        ("trial: {bits: 16, head_dim: 3}", "trial: ", ["head_dim d = 3", "K = 16"]),
        ("trial: {quantization_weight: -1}", "trial.quantization_weight: ", ["got -1"]),
        ("seed: -1", "seed: ", ["got -1"]),
        ('"two\\nlines": 1', "two", ["unknown key"]),
    ],
)
def test_a_mistake_is_told_in_one_line_that_names_file_and_field(tmp_path, text, field, parts):
    line = complaint(tmp_path / "space.yaml", text)
    assert line.startswith(field), line
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("missing", ["name", "dataset", "search"])
def test_what_has_no_default_is_required(tmp_path, missing):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in BASE.items() if name != missing}))
    with pytest.raises(SettingsError, match=f"^{path}: {missing}: is required$"):
        read_search(path)


@pytest.mark.parametrize(
    ("changes", "field", "parts"),
    [
        ({"search": {"codebook_size": {"choice": [99, 200]}}}, "codebook_size", ["M = 99", "C = 100"]),
        ({"search": {"codebook_size": {"int": [50, 200]}}}, "codebook_size", ["M = 50", "C = 100"]),
        ({"search": {"codebook_ratio": {"choice": [2, 1000]}}}, "codebook_size", ["M = 100000", "2^K = 65536"]),
        ({"search": {"codebook_ratio": {"uniform": [1, 1000]}}}, "codebook_size", ["M = 100000", "2^K = 65536"]),
        ({"search": {"bits": {"choice": [6, 64]}}}, "bits", ["2^K = 64", "K = 6"]),
        ({"search": {"bits": {"int": [6, 64]}}}, "bits", ["2^K = 64", "K = 6"]),
        ({"search": {"head_dim": {"choice": [2, 4]}}}, "head_dim", ["[2, 4]", "M = 200", "[8, 16]"]),
        (
            {"search": {"head_dim": {"choice": [8]}, "codebook_ratio": {"choice": [2, 8]}}},
            "head_dim",
            ["[8]", "M = 800", "[16]"],
        ),
        ({"search": {"bits": {"smallest": [6, 64]}}}, "bits", ["2^K = 64", "K = 6"]),
        ({"trial": {"bits": 6}}, "bits", ["2^K = 64", "K = 6"]),
        (
            {"trial": {"bits": 16, "head_dim": 8}, "search": {"codebook_ratio": {"choice": [2, 8]}}},
            "head_dim",
            ["d = 8", "M = 800"],
        ),
        (
            {"trial": {"bits": 24, "head_dim": 12}, "search": {"bits": {"choice": [24, 64]}}},
            "head_dim",
            ["d = 12", "K = 64"],
        ),
        (
            {"trial": {"bits": 16, "head_dim": 8}, "search": {"codebook_ratio": {"choice": [2, "full"]}}},
            "head_dim",
            ["full", "8"],
        ),
        (
            {"search": {"bits": {"choice": [64, 128]}, "codebook_ratio": {"choice": [2, "full"]}}},
            "codebook_size",
            ["full", "bits <= 64", "128"],
        ),
        (
            {
                "search": {
                    "reassignment": {"choice": ["greedy", "hungarian"]},
                    "codebook_ratio": {"choice": [2, "full"]},
                }
            },
            "reassignment",
            ["hungarian", "codebook_size full", "greedy"],
        ),
        (  # of which the range is drawn from first: nothing is listed
            {
                "method": "dtsh",
                "search": {"accumulate": {"choice": [1, 2]}, "learning_rate": {"log_uniform": [1e-4, 1e-2]}},
            },
            "method dtsh with accumulate 2",
            ["compares the samples of a whole batch"],
        ),
        (
            {
                "search": {
                    "accumulate": {"int": [1, 4]},
                    "objective": {"choice": ["margin_cross_entropy", "triplet_likelihood"]},
                    "head_dim": {"feasible": True},
                }
            },
            "objective triplet_likelihood, accumulate 4",
            ["compares the samples of a whole batch"],
        ),
    ],
)
def test_what_100_classes_make_impossible_is_told_in_one_line_before_a_trial_starts(changes, field, parts):
    settings_ = space(**changes)
    with pytest.raises(SettingsError) as caught:
        check_feasible(settings_, 100)
    line = str(caught.value)
    assert "\n" not in line
    assert field in line
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    "search",
    [
        {"codebook_ratio": {"choice": [1, 2, 4, 8]}, "head_dim": {"feasible": True}},
        {"codebook_ratio": {"choice": [2, "full"]}},
        {"codebook_size": {"choice": [100, 65536, "full"]}},
        {"codebook_size": {"int": [100, 65536]}, "head_dim": {"feasible": True}},
        {"codebook_ratio": {"uniform": [1.0, 8.0]}, "head_dim": {"choice": [8, 16]}},
        {"bits": {"choice": [16, 24, 64]}, "head_dim": {"feasible": True}},
        {"bits": {"choice": [16, 24]}, "head_dim": {"choice": [16, 24]}},  # each K has one of them
        {"method": {"grid": ["crh", "crh_m", "crh_u"]}, "bits": {"grid": [16, 32, 64]}},
        {"quantization_weight": {"choice": [0, 0.1]}, "scale": {"choice": [None, 8]}},
        {"accumulate": {"choice": [1, 2]}, "head_dim": {"feasible": True}},
        {"padding": {"choice": [0, 4]}, "crop": {"choice": [24, 32]}},
        {"weights": {"choice": ["DEFAULT", "IMAGENET1K_V2"]}, "backbone": {"choice": ["resnet50", "wide_resnet50_2"]}},
    ],
)
def test_possible_spaces_are_accepted(tmp_path, search):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**BASE, "search": search}))
    check_feasible(read_search(path), 100)


@pytest.mark.parametrize(
    ("trial", "search"),
    [
        ({"crop": 24}, {"padding": {"choice": [0, 4]}}),
        ({"backbone": "resnet50"}, {"weights": {"choice": ["IMAGENET1K_V1", "IMAGENET1K_V2"]}}),
        ({"backbone": "resnet18", "weights": "DEFAULT", "freeze": True}, {"head": {"choice": ["linear", "mlp"]}}),
    ],
)
def test_what_is_searched_over_is_possible_with_what_is_fixed(trial, search):
    check_feasible(space(trial={"bits": 16, **trial}, search=search), 100)


@pytest.mark.parametrize("ends", ["[1e-3, 1]", "[1.0e-3, 1]", "[0.001, 1e0]"])
def test_a_range_may_be_written_without_a_dot(tmp_path, ends):
    made = read(tmp_path / "space.yaml", f"search: {{quantization_weight: {{log_uniform: {ends}}}}}")
    assert made.search["quantization_weight"].values == (0.001, 1)


def test_choices_and_starts_may_be_written_without_a_dot(tmp_path):
    text = "search: {learning_rate: {choice: [1e-3, 1e-4]}}\nstart_from: [{learning_rate: 1e-4}]"
    made = read(tmp_path / "space.yaml", text)
    assert made.search["learning_rate"].values == (0.001, 0.0001)
    assert made.start_from == ({"learning_rate": 0.0001},)


def test_a_value_written_in_two_ways_is_still_named_twice(tmp_path):
    assert "twice" in complaint(tmp_path / "space.yaml", "search: {learning_rate: {choice: [1e-3, 0.001]}}")


def test_defaults_are_the_documented_ones():
    made = space()
    assert (made.method, made.seed, made.start_from) == ("crh", 0, ("paper",))
    assert (made.objective.metric, made.objective.mode) == ("val/map", "max")
    assert (made.validation.fraction, made.validation.queries) == (0.2, 10_000)
    assert made.scheduler.asha is not None
    assert (made.scheduler.asha.grace_epochs, made.scheduler.asha.reduction) == (5, 3)
    assert (made.confirm.top, made.confirm.seeds) == (3, 3)
    assert (made.budget.trials, made.budget.hours, made.budget.concurrent) == (24, None, "auto")
    assert (made.scaling.workers_per_trial, made.scaling.gpus_per_worker) == (1, 0)
    assert space(scheduler={}).scheduler.asha is None


NUMBERS = st.floats(1e-12, 2, allow_subnormal=False)
RANGES = st.tuples(NUMBERS, NUMBERS).filter(lambda ends: ends[0] < ends[1]).map(list)
SEARCHES = st.fixed_dictionaries(
    {"margin": RANGES.map(lambda ends: {"uniform": ends})},
    optional={
        "quantization_weight": RANGES.map(lambda ends: {"log_uniform": ends}),
        "update_interval": st.just({"int": [1, 10]}),
        "codebook_ratio": st.just({"choice": [1, 2.5, "full"]}),
        "head_dim": st.just({"feasible": True}),
        "method": st.just({"choice": ["crh", "crh_m"]}),
    },
)


@settings(max_examples=30, deadline=None)
@given(search=SEARCHES, hours=st.none() | st.floats(0.1, 100), starts=st.sampled_from([["paper"], []]), data=st.data())
def test_written_settings_are_read_back_equal(tmp_path_factory, search, hours, starts, data):
    low, high = search["margin"]["uniform"]
    content = {
        **BASE,
        "dataset": {"name": "digit_pairs", "images_per_class": 12},
        "search": search,
        "start_from": [*starts, {"margin": data.draw(st.floats(low, high))}],
        "budget": {"trials": 7, "hours": hours, "concurrent": 2},
        "scheduler": data.draw(st.sampled_from([{}, {"asha": {"grace_epochs": 2}}])),
    }
    made = SearchSettings.model_validate(content)
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json"), sort_keys=False))
    assert read_search(path) == made
    assert SearchSettings.model_validate_json(made.model_dump_json()) == made
    assert yaml.safe_load(path.read_text())["search"] == search
    assert list(read_search(path).search) == list(search)


def test_another_dataset_takes_the_place_of_the_files_own(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**BASE, "dataset": {"name": "digit_pairs", "images_per_class": 3}}))
    other = read_search(path, "digit_sets").dataset
    assert (other.name, other.options) == ("digit_sets", {})
    with pytest.raises(SettingsError, match=f"^{path}: dataset: unknown dataset 'cars'"):
        read_search(path, "cars")


@pytest.mark.parametrize(
    ("own", "other", "kept"),
    [
        ({"name": "folder", "size": 32, "on_bad_image": "skip"}, "lists", {"size": 32, "on_bad_image": "skip"}),
        ({"name": "folder", "size": 32, "test_fraction": 0.1}, "cifar10", {"size": 32}),
        ({"name": "cifar100", "size": 32, "protocol": "sampled", "seed": 3}, "folder", {"size": 32, "seed": 3}),
        ({"name": "folder", "path": "/here", "reference": "/here.csv", "size": 64}, "stanford_cars", {"size": 64}),
        ({"name": "lists", "train": "some.txt", "size": 64}, "coco", {"size": 64}),  # there, train is a number
        ({"name": "folder", "size": 32}, "features", {}),
        ({"name": "lists", "path": "/here", "train": "some.txt"}, "lists", {"path": "/here", "train": "some.txt"}),
        ({"name": "cars", "size": 32}, "folder", {}),
        ("cars", "folder", {}),
        ({"name": ["folder"], "size": 32}, "lists", {}),
    ],
)
def test_another_dataset_keeps_the_options_that_both_have(tmp_path, own, other, kept):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**BASE, "dataset": own}))
    assert read_search(path, other).dataset.options == kept


def test_the_shipped_search_spaces_are_valid():
    files = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
    assert files
    for path in files:
        read_search(path)


def test_a_grid_is_every_combination_the_last_name_fastest():
    grid = space(search={"method": {"grid": ["crh", "crh_u"]}, "bits": {"grid": [16, 32, 64]}})
    assert grid.is_grid
    assert [tuple(cell.items()) for cell in grid.cells()] == [
        (("method", method), ("bits", bits)) for method in ("crh", "crh_u") for bits in (16, 32, 64)
    ]
    assert not space().is_grid
    assert (grid.trials, space(budget={"trials": 7}).trials) == (6, 7)


def test_a_grid_has_each_setting_once_where_a_method_does_not_use_all():
    grid = space(search={"method": {"grid": ["crh", "hashnet"]}, "margin": {"grid": [0.1, 0.3]}})
    assert grid.cells() == [{"method": "crh", "margin": 0.1}, {"method": "crh", "margin": 0.3}, {"method": "hashnet"}]
    assert grid.trials == 3
    check_feasible(grid, 100)


def test_a_fixed_setting_is_left_out_of_trials_whose_method_does_not_use_it():
    mixed = space(trial={"bits": 16, "margin": 0.4}, search={"method": {"choice": ["crh", "hashnet"]}})
    margins = [mixed.trial_settings({"method": method}, 0).trial.margin for method in ("crh", "hashnet")]
    assert margins == [0.4, None]


def test_the_alignment_of_two_classes_is_no_objective():
    made = space(objective={"metric": "centers/pcc"})
    check_feasible(made, 3)
    with pytest.raises(SettingsError, match=r"^objective\.metric: centers/pcc .* two classes"):
        check_feasible(made, 2)


def test_searched_values_take_the_place_of_fixed_ones():
    fixed = space(
        trial={"bits": 16, "codebook_size": 300, "margin": 0.1, "epochs": 7},
        search={"codebook_ratio": {"choice": [1, 2]}, "method": {"choice": ["crh_m"]}},
        evaluation={"cutoff": 9},
    )
    made = fixed.trial_settings({"codebook_ratio": 2, "method": "crh_m"}, seed=5)
    expected = {
        "dataset": {"name": "digit_pairs"},
        "method": "crh_m",
        "trial": {"bits": 16, "codebook_ratio": 2, "margin": 0.1, "epochs": 7, "seed": 5},
        "evaluation": {"cutoff": 9},
    }
    assert made == TrialSettings.model_validate(expected)


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        ({"choice": [1, 2.5, "full"]}, [1, 1.0, 2.5, "full"], [2, "none", None]),
        ({"grid": ["crh", "crh_m"]}, ["crh"], ["crh_u"]),
        ({"uniform": [0.0, 0.5]}, [0, 0.0, 0.25, 0.5], [-0.1, 0.6, "full"]),
        ({"log_uniform": [0.001, 1.0]}, [0.001, 0.1, 1], [0, 0.0009, 1.1]),
        ({"int": [1, 10]}, [1, 5, 10], [0, 11, 2.5, "full"]),
    ],
)
def test_a_distribution_contains_what_it_can_draw(distribution, inside, outside):
    name = "method" if "grid" in distribution else "codebook_ratio" if "choice" in distribution else "margin"
    name = "update_interval" if "int" in distribution else name
    made = space(search={name: distribution}).search[name]
    assert all(made.contains(value) for value in inside)
    assert not any(made.contains(value) for value in outside)


@pytest.mark.parametrize(
    ("search", "bits", "size", "allowed"),
    [
        ({"head_dim": {"feasible": True}}, 64, 392, [16, 32, 64]),
        ({"head_dim": {"feasible": True}}, 64, 256, [8, 16, 32, 64]),
        ({"head_dim": {"feasible": True}}, 24, 392, [12, 24]),
        ({"head_dim": {"choice": [4, 8]}}, 16, 200, [8]),
        ({"head_dim": {"int": [8, 16]}}, 16, 200, [8, 16]),
        ({"head_dim": {"feasible": True}}, 16, "full", [16]),
        ({"margin": {"uniform": [0, 1]}}, 16, 200, [8, 16]),
    ],
)
def test_head_dims_that_may_be_drawn_are_feasible_and_listed(search, bits, size, allowed):
    assert allowed_head_dims(space(search=search), bits, size) == allowed


def test_head_dimensions_that_are_drawn_divide_the_nested_lengths_too():
    search = {"codebook_ratio": {"choice": [1, 2]}, "head_dim": {"feasible": True}}
    made = space(trial={"bits": 64, "nested": [16, 48]}, search=search)
    check_feasible(made, 100)
    assert allowed_head_dims(made, 64, 200) == [8, 16]
    made = space(trial={"bits": 64, "nested": [24]}, search={"head_dim": {"choice": [16, 32]}})
    with pytest.raises(
        SettingsError, match=r"none of \[16, 32\] divides bits K = 64 and nested \[24\] and holds M = 200"
    ):
        check_feasible(made, 100)
    made = space(trial={"bits": 64, "nested": [20]}, search={"margin": {"choice": [0, 0.1]}})
    with pytest.raises(SettingsError, match="nested 20: codes of 20 bits are no whole heads of head_dim d = 8"):
        check_feasible(made, 100)


def test_a_search_over_methods_nests_those_that_can():
    made = space(trial={"bits": 64, "nested": [16]}, search={"method": {"grid": ["crh", "csq"]}})
    check_feasible(made, 100)
    lengths = [made.trial_settings({"method": method}, 0).trial.nested for method in ("crh", "csq")]
    assert lengths == [(16,), ()]


def test_open_bits_are_searched_with_the_head_dimensions_that_they_leave():
    made = space(trial={"bits": 64}, search={"open_bits": {"choice": [0, 16, 24]}, "head_dim": {"feasible": True}})
    check_feasible(made, 50)
    for free, allowed in ((0, [8, 16, 32, 64]), (16, [8, 12, 16, 24, 48]), (24, [8, 10, 20, 40])):
        settings = made.trial_settings({"open_bits": free}, 0)
        assert allowed_head_dims(made, settings.trial.learned_bits, 100) == allowed
    with pytest.raises(ValueError, match=r"search\.open_bits: open_bits 16 of 16 bits leave 0 to train"):
        space(trial={"bits": 16}, search={"open_bits": {"choice": [0, 16]}})


@pytest.mark.parametrize(
    ("trial", "scheduler", "epochs"),
    [
        ({"epochs": 40}, {"short": {"epochs": 10}}, "10 epochs"),
        ({"epochs": 21}, "asha", "21 epochs"),
        ({"epochs": 1, "early_epochs": 0}, "asha", "1 epoch"),
        ({"epochs": 22}, "asha", ""),
        ({"epochs": 40, "early_epochs": 5}, {"short": {"epochs": 10}}, ""),
        ({"epochs": 8}, {"short": {"epochs": 10}}, "8 epochs"),
    ],
)
def test_update_intervals_that_no_trial_could_tell_apart_are_said(trial: dict, scheduler: Any, epochs: str):
    """Against the epochs after which centres are reassigned, for every interval."""
    made = space(trial={"bits": 16, **trial}, search={"update_interval": {"int": [1, 10]}}, scheduler=scheduler)
    last, early = min(trial["epochs"], made.scheduler.until or 1000), trial.get("early_epochs", 20)
    updates = {tuple(e for e in range(1, last) if e <= early or e % each == 0) for each in range(1, 11)}
    assert (len(updates) == 1) == bool(epochs)
    said = [line for line in without_effect(made) if line.startswith("update_interval: ")]
    assert len(said) == bool(epochs)
    assert all(f"trials of {epochs} cannot tell its values apart" in line for line in said)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ({"asha": {"grace_epochs": 5}}, "trials have 5 epochs, and it begins after 5"),
        ({"hyperband": {"grace_epochs": 6}}, "trials have 5 epochs, and it begins after 6"),
        ("median_stopping", "trials have 5 epochs, and it begins after 5"),
        ({"short": {"epochs": 5}}, "trials have 5 epochs, and it begins after 5"),
        ({"asha": {"grace_epochs": 4}}, None),
        ({"short": {"epochs": 4}}, None),
        ("none", None),
        (None, None),
    ],
)
def test_a_scheduler_that_could_end_no_trial_is_said_where_one_was_asked_for(scheduler: Any, said: str | None):
    asked = {} if scheduler is None else {"scheduler": scheduler}
    made = space(trial={"bits": 16, "epochs": 5}, **asked)  # a margin is searched, no interval
    assert without_effect(made) == ([] if said is None else [f"scheduler: ends no trial early: {said}"])
