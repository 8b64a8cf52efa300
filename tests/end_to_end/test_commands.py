"""The commands a user types: what they print, what they leave, and one clear line for every mistake."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from crh_tune.cli import main
from crh_tune.errors import run_command
from crh_tune.search import main as search_script

SPACE = yaml.safe_load((Path(__file__).parents[2] / "search_spaces" / "digit_pairs.yaml").read_text())
TRIAL = {
    "dataset": {"name": "digits"},
    "trial": {"bits": 16, "epochs": 2, "learning_rate": 2e-3, "seed": 3},
}


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with exit code 2; the one line it says."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def written(folder: Path, **changes) -> str:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({**SPACE, **changes}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"dataset": {"name": "mnist"}},
            "dataset: unknown dataset 'mnist': one of folder, features,",
        ),
        ({"method": "crhh"}, "method: unknown method 'crhh': did you mean 'crh'? It is one of crh,"),
        ({"budgets": {}}, "budgets: unknown key"),
        ({"search": {"margin": {"normal": [0, 1]}}}, "search.margin: unknown distribution 'normal': one of choice,"),
        ({"trial": {"bits": 16, "head_dim": 5}}, "trial: head_dim d = 5 does not divide bits K = 16"),
        ({"search": {"codebook_size": {"choice": [70000]}}}, "codebook_size M = 70000 is larger than 2^K = 65536"),
        ({"search": {"head_dim": {"choice": [4]}}}, "none of [4] divides bits K = 16 and holds M = 200"),
        ({"search": {"codebook_size": {"choice": [50]}}}, "M = 50 is smaller than the number of classes C = 100"),
        ({"trial": {"quantization_weight": -1}}, "trial.quantization_weight: input should be greater than or equal"),
        ({"budget": {"trials": 0}}, "budget.trials: input should be greater than or equal to 1, got 0"),
    ],
)
def test_a_mistake_in_a_space_file_is_one_line_with_file_and_field(changes, expected, tmp_path, capsys):
    line = complaint(["search", written(tmp_path, **changes), "--storage", str(tmp_path / "runs")], capsys)
    assert f"{tmp_path / 'space.yaml'}: " in line
    assert expected in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "no_such_space"], "unknown search space 'no_such_space': a path to a YAML file, or one of "),
        (["search", "missing.yaml"], "missing.yaml: No such file or directory"),
        (["search", "--trials", "0"], "--trials: expected at least 1, got 0"),
        (["search", "digit_pairs", "--space", "digit_pairs"], "given twice"),
        (["search", "table2", "--trials", "3"], "--trials, --hours, --epochs, --target: a study runs all its cells"),
        (["search", "table2", "--dataset", "mnist"], "unknown dataset 'mnist'"),
        (["train", "missing.yaml"], "missing.yaml: No such file or directory"),
        (["export", "nothing-001"], "no such search"),
        (["sync", "nothing-001"], "no search 'nothing-001' in crh_runs: there is "),
        (["search", "--resume", "nothing-001"], "no search 'nothing-001' in crh_runs: there is "),
        (["search", "--resume", "nothing-001", "--data", "x"], "--resume takes the search as it was begun"),
        (["search", "--resume", "nothing-001", "--trials", "3"], "no search 'nothing-001' in"),
        (["search", "--target", "test/map >= 0.8"], "--target: test/map is of the test queries"),
        (["search", "--hours", "0"], "--hours: expected more than 0, got 0"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(ray_session, arguments, expected, capsys):
    assert expected in complaint(arguments, capsys)


def test_a_grid_takes_no_number_of_trials(tmp_path, capsys):
    path = written(tmp_path, search={"margin": {"grid": [0.1, 0.2]}, "update_interval": {"grid": [1, 5, 10]}})
    line = complaint(["search", path, "--trials", "4", "--storage", str(tmp_path / "runs")], capsys)
    assert line.endswith(f"--trials: {path}: search: a grid tries all its 6 cells: leave --trials out")
    assert not (tmp_path / "runs").exists()


def test_the_script_of_ray_submit_complains_like_the_command(capsys):
    assert search_script(["--space", "no_such_space"]) == 2
    assert "unknown search space" in capsys.readouterr().err


def test_gpus_that_are_not_there_are_refused(ray_session, tmp_path, capsys):
    path = written(tmp_path, scaling={"gpus_per_worker": 1})
    line = complaint(["search", path, "--storage", str(tmp_path / "runs")], capsys)
    assert "scaling.gpus_per_worker: a trial needs 1 GPU" in line


def test_training_an_exported_setting_again_gives_the_same_to_the_last_bit(tmp_path, capsys):
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(TRIAL))
    assert main(["train", str(tmp_path / "trial.yaml"), "--to", str(tmp_path / "one")]) == 0
    assert main(["train", str(tmp_path / "one" / "settings.yaml"), "--to", str(tmp_path / "two")]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test mAP")]
    assert len(said) == 2
    assert said[0] == said[1]
    assert main(["train", str(tmp_path / "trial.yaml"), "--to", str(tmp_path / "three"), "--quiet", "--json"]) == 0
    printed = capsys.readouterr()
    trained = json.loads(printed.out)
    assert said[0] == f"test mAP     {trained['metrics']['test/map']:.6f}"
    assert trained["exported_to"] == str(tmp_path / "three")
    assert printed.err == ""
    for name in ("encoder.pt", "settings.yaml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert np.array_equal(np.load(tmp_path / "one" / "centers.npy"), np.load(tmp_path / "two" / "centers.npy"))


def test_training_that_diverges_fails_in_one_line(tmp_path, capsys):
    content = {**TRIAL, "trial": {**TRIAL["trial"], "learning_rate": 1e30}}
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", str(tmp_path / "trial.yaml"), "--to", str(tmp_path / "one")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("crh-tune train: failed: loss is nan after epoch")
    assert not any("Traceback" in line for line in said)


def test_a_target_that_cannot_be_written_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(TRIAL))
    (tmp_path / "file").touch()
    line = complaint(["train", str(tmp_path / "trial.yaml"), "--to", str(tmp_path / "file" / "x")], capsys)
    assert f"--to {tmp_path / 'file' / 'x'}: Not a directory: name a folder that can be written to" in line


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", r"\xb1 \u732b"), ("latin-1", "\xb1 \\u732b")])
def test_what_the_terminal_cannot_show_is_written_out_and_loses_no_result(monkeypatch, encoding, shown):
    terminals = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, terminal in terminals.items():
        monkeypatch.setattr(sys, name, terminal)

    def command() -> None:
        print("mAP ± 猫")
        print("mAP ± 猫", file=sys.stderr)

    code = run_command(command, "crh-tune search")
    monkeypatch.undo()
    assert code == 0
    for terminal in terminals.values():
        terminal.flush()
        assert terminal.buffer.getvalue().decode(encoding) == f"mAP {shown}\n"
