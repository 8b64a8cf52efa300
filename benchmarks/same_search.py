"""Holds a change of the engine to the outcomes of the code before it, to the last bit.

    .venv/bin/python -m benchmarks.same_search --record before.json   # on the code as it was
    .venv/bin/python -m benchmarks.same_search --compare before.json  # on the changed code

Two whole searches, one trial at a time (8 trials, ASHA, confirmation, test), by the command a user types: one left
alone, and one whose driver gets a SIGKILL in its fifth trial and in a run of the confirmation, and is resumed. Compared
are the settings, states and metrics of every run, the winner and what the test set said; seconds are left out.
A resumed sampler is seeded anew, so each search is compared with its own kind.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.soak import Driver

SPACE = {
    "name": "same",
    "dataset": {"name": "digit_pairs", "images_per_class": 5},
    "trial": {"bits": 16, "epochs": 12, "batch_size": 128, "learning_rate": 2.0e-3, "evaluate_every": 1},
    "search": {
        "codebook_ratio": {"choice": [1, 2, 4]},
        "head_dim": {"feasible": True},
        "quantization_weight": {"log_uniform": [0.001, 1.0]},
        "margin": {"uniform": [0.0, 0.5]},
        "update_interval": {"int": [1, 5]},
    },
    "scheduler": {"asha": {"grace_epochs": 2, "reduction": 2}},
    "confirm": {"top": 2, "seeds": 2},
    "budget": {"trials": 8, "concurrent": 1},
}
KILLS = ("trial-0004", "confirm-trial-*-seed2")
"""The driver is killed once these runs have begun and have a checkpoint, each time in the second epoch or later."""
Found = dict[str, Any]


def whole_search(storage: Path, kills: tuple[str, ...] = ()) -> Found:
    """Run the search, with the driver killed and resumed in each of these runs; what it found. Raises RuntimeError."""
    storage.mkdir(parents=True)
    (storage / "space.yaml").write_text(yaml.safe_dump(SPACE))
    folder, common = storage / "same-001", ["--storage", str(storage)]
    command = ["search", str(storage / "space.yaml"), *common]
    for number, run in enumerate((*kills, "")):
        driver = Driver(command, storage / f"output-{number}.txt")
        command = ["search", "--resume", folder.name, *common]
        while driver.running() and not (run and any(folder.glob(f"runs/{run}/checkpoint_*/checkpoint.pt"))):
            time.sleep(0.02)
        if run and driver.running():
            driver.kill()
    if driver.process.wait() != 0:
        raise RuntimeError("\n".join(driver.lines[-5:]))
    return found_in(folder)


def found_in(folder: Path) -> Found:
    """What a search's folder says of every run and of the end, without seconds and places."""
    outcomes = {path.stem: _plain(json.loads(path.read_text())) for path in sorted(folder.glob("outcomes/*.json"))}
    summary = json.loads((folder / "summary.json").read_text())
    ends = {name: summary[name] for name in ("best", "paper", "ended", "search_id")}
    return {"outcomes": outcomes, **ends, **{name: _plain(summary[name]) for name in ("best_test", "paper_test")}}


def _plain(outcome: Found) -> Found:
    metrics = {name: value for name, value in outcome["metrics"].items() if not name.startswith("seconds/")}
    return {**{name: outcome[name] for name in ("name", "settings", "status", "error")}, "metrics": metrics}


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Where two findings differ, one line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted({*before, *after})
        return [line for name in names for line in differences(before.get(name), after.get(name), f"{where}/{name}")]
    return [] if before == after else [f"{where}: {before!r} before, {after!r} after"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, metavar="FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    found = {}
    with tempfile.TemporaryDirectory(prefix="crh-same-") as folder:
        for name, kills in (("alone", ()), ("killed", KILLS)):
            begun = time.monotonic()
            found[name] = whole_search(Path(folder) / name, kills)
            print(f"{name}: {len(found[name]['outcomes'])} runs in {time.monotonic() - begun:.0f} s", flush=True)
    if arguments.record:
        arguments.record.write_text(json.dumps(found, indent=1))
    wrong = differences(json.loads(arguments.compare.read_text()), found) if arguments.compare else []
    print("\n".join([*wrong, f"differences: {len(wrong)}"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
