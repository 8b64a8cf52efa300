"""A user's own photos and embeddings, from the folder they lie in to codes that find them again."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

import crh_tune
from crh_tune.cli import main
from crh_tune.data.datasets import open_dataset
from crh_tune.data.splits import final_split, search_split
from crh_tune.export import load_encoder, load_index
from crh_tune.retrieval.baselines import pca_itq
from crh_tune.settings.search import read_search
from crh_tune.settings.trial import DatasetSettings
from crh_tune.spaces import shipped
from crh_tune.training.opening import open_data
from crh_tune.tuning.results import Baseline, baseline_lines
from crh_tune.tuning.study import prepare

FOX = "red 'fox' \"🦊\", 50%"
CLASSES = (FOX, "sea", "grass")
COLOURS = {FOX: (200, 60, 20), "sea": (10, 60, 190), "grass": (40, 180, 40)}
PHOTOS = "my 'photos' #1? ü"
QUICK = {
    "confirm": {"top": 1, "seeds": 1},
    "scheduler": {},
    "budget": {"trials": 2},
    "search": {"margin": {"uniform": [0.0, 0.5]}},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's image cache, for the trial processes that this session's Ray has already started as well."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CRH_TUNE_CACHE", str(folder))
    return folder


def photo(generator: np.random.Generator, colour: tuple[int, int, int]) -> Image.Image:
    pixels = generator.normal(colour, 30, (20, 24, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((60, 48))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty training and five test photos a class, as JPEG."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 5)):
        for name in CLASSES:
            folder = tmp_path / PHOTOS / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                photo(generator, COLOURS[name]).save(folder / f"{number:02d}.jpg")
    return tmp_path / PHOTOS


def space(folder: Path, name: str, **trial: object) -> str:
    """The shipped search space of this name, cut down to seconds."""
    content = yaml.safe_load((shipped() / f"{name}.yaml").read_text())
    content = {**content, **QUICK, "trial": {**content["trial"], "bits": 16, "epochs": 3, "batch_size": 32, **trial}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_folder_of_photos_is_checked_searched_and_found_again(ray_session, photos, cache, tmp_path, capsys):
    assert main(["data", "check", str(photos)]) == 0
    checked = capsys.readouterr().out
    for line in (
        "dataset     folder: class folders under train/ and test/",
        f"classes     3 (grass, {FOX}, sea)",
        "train       60 samples, 20 a class",
        "queries     15 samples, 5 a class",
        "sizes       60 x 48, all of them",
        "duplicates  no query is also among the training samples",
        "problems    none",
    ):
        assert line in checked.splitlines()
    broken = photos / "train" / "sea" / "99.jpg"
    broken.write_bytes(b"no photo")
    runs, file = tmp_path / 'my "runs" #2; 50% 🦊\'s', Path(space(tmp_path, "photos"))
    file.write_text(file.read_text().replace("on_bad_image: stop", "on_bad_image: skip"))
    assert main(["search", str(file), "--data", str(photos), "--storage", str(runs)]) == 0
    said = capsys.readouterr().out
    assert "computing the features of 76 images, once, into" in said
    assert (runs / "photos-001" / "skipped_images.txt").read_text() == f"{broken}: not an image\n"
    assert "(3 classes, 48 training samples, 12 validation queries), batches of 32 (global), 2 trials" in said
    heard: list[str] = []
    options = {"name": "folder", "path": str(photos), "on_bad_image": "skip"}
    open_data(DatasetSettings(**options), read_search(Path(file)).trial, heard.append)
    assert heard == []
    export = runs / "photos-001" / "export"
    encoder, index = load_encoder(export), load_index(export)
    asked = sorted((photos / "test").glob("*/*.jpg"))
    rows, distances = index.search(encoder.encode_files(asked), 5)
    names = np.array(encoder.class_names)[index.labels[rows]]
    right = names == np.array([path.parent.name for path in asked])[:, None]
    assert right.mean() > 0.9
    assert (np.vectorize(lambda item: Path(item).parent.name)(index.items[rows]) == names).all()
    assert all((photos / item).is_file() for item in index.items)
    assert (np.diff(distances.astype(int), axis=1) >= 0).all()
    assert 'encode_files(["photo.jpg"])' in (export / "model_card.md").read_text()


def test_a_broken_photo_stops_the_search_before_any_trial_unless_it_is_skipped(photos, tmp_path, capsys):
    broken = photos / "train" / "sea" / "99.jpg"
    broken.write_bytes((photos / "train" / "sea" / "00.jpg").read_bytes()[:400])
    file, runs = space(tmp_path, "photos"), tmp_path / "runs"
    arguments = ["search", file, "--data", str(photos), "--storage", str(runs)]
    assert main(arguments) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert f"{broken}: Truncated File Read" in complaint
    assert complaint.endswith("unreadable image; mend it, or set dataset.on_bad_image: skip")
    assert not runs.exists()
    assert main(["data", "check", str(photos)]) == 2
    assert f"  {broken}: Truncated File Read" in capsys.readouterr().out

    content = yaml.safe_load(Path(file).read_text())
    content["dataset"]["on_bad_image"] = "skip"
    Path(file).write_text(yaml.safe_dump(content))
    heard: list[str] = []
    prepared = prepare(read_search(Path(file), None, photos), heard.append)
    assert heard[-1] == f"skipped 1 unreadable image: {broken}: Truncated File Read"
    assert prepared.skipped == (f"{broken}: Truncated File Read",)
    assert (len(prepared.first.train), len(prepared.last.train)) == (48, 60)


@dataclass
class Embeddings:
    """Two hundred embeddings of five classes and a search of them, with what it said."""

    features: np.ndarray
    labels: np.ndarray
    data: Path
    runs: Path
    said: list[str]

    @property
    def summary(self) -> dict:
        return json.loads((self.runs / "features-001" / "summary.json").read_text())

    def baseline_runs(self) -> dict[str, Run]:
        client = MlflowClient(f"sqlite:///{self.runs / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("features")
        found = client.search_runs([experiment.experiment_id], "tags.`crh_tune.stage` = 'baseline'")
        assert len({run.data.tags["crh_tune.run"] for run in found}) == len(found)
        return {run.data.tags["crh_tune.run"]: run for run in found}


@pytest.fixture(scope="module")
def embeddings(ray_session, tmp_path_factory) -> Embeddings:
    folder, generator = tmp_path_factory.mktemp("embeddings"), np.random.default_rng(1)
    middles, labels = generator.normal(size=(5, 24)), generator.integers(0, 5, 200)
    features = (middles[labels] + 0.8 * generator.normal(size=(200, 24))).astype(np.float32)
    data, runs, said = folder / "embeddings.npz", folder / "runs", io.StringIO()
    np.savez(data, features=features, labels=np.array(["ant", "bee", "cat", "dog", "elk"])[labels])
    with redirect_stdout(said):
        assert main(["search", space(folder, "features"), "--data", str(data), "--storage", str(runs)]) == 0
    return Embeddings(features, labels, data, runs, said.getvalue().splitlines())


def test_embeddings_are_searched_from_one_file(embeddings):
    features, labels, export = embeddings.features, embeddings.labels, embeddings.runs / "features-001" / "export"
    encoder, index = load_encoder(export), load_index(export)
    assert encoder.class_names == ("ant", "bee", "cat", "dog", "elk")
    rows, _ = index.search(encoder.encode(features[:50]), 3)
    assert (index.labels[rows] == labels[:50, None]).mean() > 0.9
    assert (labels[index.items] == index.labels).all()
    with pytest.raises(ValueError, match="image files are for encoders of square RGB images"):
        encoder.encode_files(["photo.jpg"])


def test_results_are_printed_for_programs_or_without_progress(embeddings, capsys):
    command = ["search", "--resume", "features-001", "--storage", str(embeddings.runs)]
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    result, summary = json.loads(printed.out), embeddings.summary
    for name in ("search_id", "best", "paper", "best_test", "paper_test", "ended"):
        assert result[name] == summary[name], name
    assert result["folder"] == str(embeddings.runs / "features-001")
    assert "encoding the database for the index" in printed.err.splitlines()

    assert main([*command, "--quiet"]) == 0
    last = embeddings.said[embeddings.said.index("encoding the database for the index") + 1 :]
    assert capsys.readouterr() == ("\n".join([*last, ""]), "")

    heard: list[str] = []
    resumed = crh_tune.resume_search("features-001", storage=embeddings.runs, say=heard.append)
    assert resumed.best_test.metrics == summary["best_test"]["metrics"]
    assert heard == ["encoding the database for the index"]
    assert capsys.readouterr() == ("", "")

    assert main(["export", "features-001", "--storage", str(embeddings.runs), "--json"]) == 0
    exported = {"search": "features-001", "exported_to": str(embeddings.runs / "features-001" / "export")}
    assert json.loads(capsys.readouterr().out) == exported


def test_a_search_on_embeddings_says_what_training_brings_over_none(embeddings):
    dataset = open_dataset("features", {"path": str(embeddings.data)})
    cosine, rotation, itq = embeddings.summary["baselines"]
    tested = embeddings.summary["best_test"]["metrics"]["test/map"]
    splits = {"validation": search_split(dataset, 0.2, 0), "test": final_split(dataset)}
    for name, split in splits.items():
        near = cosine_similarity(split.queries.inputs, split.train.inputs)
        relevant = split.queries.labels[:, None] == split.train.labels
        each = [average_precision_score(*pair) for pair in zip(relevant, near, strict=True)]
        assert cosine[name] == pytest.approx(np.mean(each), abs=1e-4)
        axes = PCA(16, svd_solver="full").fit(split.train.inputs)
        for baseline, iterations in ((rotation, 0), (itq, 50)):
            codes = pca_itq(split.train.inputs, 16, 0, iterations)
            turn = axes.components_ @ codes.projection
            asked, ranked = (axes.transform(part.inputs) @ turn >= 0 for part in (split.queries, split.train))
            same = asked.astype(int) @ ranked.T + (1 - asked) @ (1 - ranked.T)
            by_ties = [expected_average_precision(*pair) for pair in zip(relevant, same, strict=True)]
            assert baseline[name] == pytest.approx(np.mean(by_ties), abs=1e-3)
    for baseline in (cosine, rotation, itq):
        assert baseline["gain"] == pytest.approx(tested - baseline["test"], abs=1e-6)
        assert baseline["gain_low"] <= baseline["gain"] <= baseline["gain_high"]
    assert (cosine["bytes_per_item"], rotation["bytes_per_item"], itq["bytes_per_item"]) == (24 * 4, 2, 2)
    lines = baseline_lines([Baseline(**each) for each in (cosine, rotation, itq)])
    start = embeddings.said.index(lines[0])
    assert embeddings.said[start : start + len(lines)] == lines
    card = (embeddings.runs / "features-001" / "export" / "model_card.md").read_text()
    assert f"| PCA + ITQ, 2 bytes an item as the trained codes | {itq['validation']:.4f} | {itq['test']:.4f} |" in card
    assert f"Training brings {itq['gain']:+.4f} test mAP over PCA + ITQ (95 % interval" in card


def expected_average_precision(relevant: np.ndarray, scores: np.ndarray) -> float:
    """The mean of average precision over many random orders inside ties."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(200):
        hits = relevant[np.lexsort((generator.random(len(scores)), -scores))]
        ranks = np.flatnonzero(hits) + 1
        drawn.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    return float(np.mean(drawn))


def test_baselines_are_runs_in_mlflow_once_also_of_a_search_killed_before_its_summary(embeddings, capsys):
    before, summary = embeddings.baseline_runs(), embeddings.summary
    assert set(before) == {"baseline-float-cosine", "baseline-pca-rotation", "baseline-pca-itq"}
    for run in before.values():
        assert run.info.status == "FINISHED"
        assert "mlflow.parentRunId" in run.data.tags
        assert run.data.params["dataset"] == "features"
    of_itq = before["baseline-pca-itq"]
    assert of_itq.data.params["bits"] == "16"
    itq = summary["baselines"][2]
    names = {"val/map": "validation", "test/map": "test", "gain/map": "gain"}
    names |= {"gain/low": "gain_low", "gain/high": "gain_high", "bytes_per_item": "bytes_per_item"}
    assert of_itq.data.metrics == {metric: itq[name] for metric, name in names.items()}
    again = ["search", "--resume", "features-001", "--storage", str(embeddings.runs)]
    assert main(again) == 0
    assert "scoring what needs no training" not in capsys.readouterr().out
    (embeddings.runs / "features-001" / "summary.json").unlink()
    assert main(again) == 0
    said = capsys.readouterr().out.splitlines()
    lines = baseline_lines([Baseline(**each) for each in summary["baselines"]])
    assert said[said.index(lines[0]) :][: len(lines)] == lines
    assert embeddings.summary["baselines"] == summary["baselines"]
    after = embeddings.baseline_runs()
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in before.items()
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "photos"], "dataset.path is not given: --data names the folder that holds the dataset"),
        (["search", "photos", "--data", "/nowhere"], "/nowhere: does not exist: path must be the folder"),
        (["search", "features"], "dataset.path is not given: --data names an .npz file"),
        (["search", "digit_pairs", "--data", "."], "--data: dataset digit_pairs is built in, it has no files"),
        (["search", "table2", "--data", "."], "--data: say which of the study's datasets lies there with --dataset"),
        (["data", "check", "/nowhere"], "/nowhere: does not exist"),
        (["data", "check", ".", "--dataset", "digits"], "unknown dataset of files 'digits': one of folder, features"),
    ],
)
def test_a_mistake_about_data_is_one_line(arguments, expected, capsys):
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert expected in lines[0]


@pytest.mark.parametrize(
    ("name", "bits", "classes", "words", "head_dim", "weight", "epochs"),
    [
        ("stanford_cars", 32, 196, 392, 16, 0.1, 300),
        ("nabirds", 32, 555, 1110, 16, 0.1, 300),
        ("coco", 32, 80, 160, 8, 0.0, 30),
    ],
)
def test_trial_0_of_the_papers_datasets_is_the_papers_setting(name, bits, classes, words, head_dim, weight, epochs):
    settings = read_search(shipped() / f"{name}.yaml")
    assert settings.start_from[0] == "paper"
    trial = settings.trial_settings({}, 0).resolve(classes, name == "coco").trial
    assert (trial.bits, trial.codebook_size, trial.head_dim) == (bits, words, head_dim)
    assert (trial.quantization_weight, trial.margin, trial.epochs) == (weight, 0.2, epochs)
    assert (trial.early_epochs, trial.update_interval, trial.batch_size) == (20, 5, 128)
    assert (trial.optimizer, trial.learning_rate, trial.weight_decay, trial.schedule) == ("adam", 1e-4, 1e-5, "cosine")
    assert (trial.backbone, trial.weights) == ("resnet34", "IMAGENET1K_V1")


@pytest.mark.parametrize("path", sorted(shipped().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_search_space_is_valid(path):
    assert read_search(path).name
