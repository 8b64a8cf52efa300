"""Every table and figure of the paper on digit pairs, and on photos seen by a frozen backbone: writes docs/studies.md.

    .venv/bin/python -m benchmarks.studies [--storage crh_runs] [--photos DIR]

Runs what is missing, about 250 trainings of 3 seeds a dataset: on 2 quiet cores some 20 minutes for the digit pairs,
and 40 for 6,000 photos in class folders (extra ``offline``). The storage keeps the runs: a second start resumes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from crh_tune.paper import study_sections
from crh_tune.reporting.labels import dataset_title
from crh_tune.reporting.report import Section, write_report
from crh_tune.settings.study import read_study
from crh_tune.spaces import find_space
from crh_tune.tuning.studies import study_runs

STUDIES = ("table1", "table2", "table3", "table4", "table5", "figure2", "figure3", "figure4")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, default=Path("crh_runs"))
    parser.add_argument("--photos", type=Path, metavar="DIR", help="class folders of photos")
    arguments = parser.parse_args()
    storage = arguments.storage
    command = Path(sys.executable).parent / "crh-tune"
    datasets = [["digit_pairs"], *([["folder", "--data", arguments.photos]] if arguments.photos else [])]
    for dataset in datasets:
        for study in STUDIES:
            subprocess.run([command, "search", study, "--storage", storage, "--dataset", *dataset], check=True)
    with tempfile.TemporaryDirectory() as made:  # docs/ has a report.md of its own
        write_pages(storage, Path(made), arguments.photos)
        for page in Path(made).iterdir():
            shutil.move(page, Path(__file__).parents[1] / "docs" / page.name)
    return 0


def write_pages(storage: Path, folder: Path, photos: Path | None) -> None:
    """Write studies.md and its figures into a folder; ``photos`` are those that the storage has studies of."""
    sections = [
        section for name in STUDIES for section in study_sections(read_study(find_space(name)), storage, folder)
    ]
    sections.append(Section("Across the tables", across_tables(storage)))
    markdown, html = write_report("studies", "The paper's tables and figures, measured", sections, folder)
    html.unlink()
    text = markdown.read_text(encoding="utf-8")
    markdown.unlink()
    command = (
        "`crh-tune search table1 --dataset digit_pairs` runs one of these studies, on other data with `--dataset "
        "folder --data DIR`, and `crh-tune report table1` shows what is there of it. A study trains all its cells and "
        "takes no budget; the same command goes on where it was interrupted.\n\n"
        f"Measured on {date.today()} with `python -m benchmarks.studies --photos DIR`."
    )
    if photos is not None:
        files = [path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
        classes = len({path.parent.name for path in files})
        command += (
            f" `folder` below is a folder of photos: {len(files):,} in {classes} classes, "
            "seen by a small pretrained network that is not trained."
        )
    (folder / "studies.md").write_text(text.replace("Study: studies", command), encoding="utf-8")


def across_tables(storage: Path) -> list[str]:
    """Where another method stands against CRH, which in the paper is above all of them."""
    keys = ["dataset", "row", "bits"]
    measured = {name: study_runs(name, storage).groupby(keys)[["map", "pcc"]].mean() for name in STUDIES}
    lines = []
    for study, row, own_study, own, value in (
        ("table3", "MDS_U", "table2", "CRH", "map"),
        ("table3", "OrthoHash_U", "table2", "CRH", "map"),
        ("table5", "SHC", "table5", "Learned", "pcc"),
    ):
        index = measured[study].index
        for dataset, bits in sorted(set(zip(index.get_level_values(0), index.get_level_values(2), strict=True))):
            theirs = measured[study].loc[(dataset, row, bits), value]
            ours = measured[own_study].loc[(dataset, own, bits), value]
            verdict = "the paper's order shows" if ours > theirs else "the paper's order does not show"
            where = f"{dataset_title(dataset)}, {bits} bits, {value}"
            lines.append(f"{where}: {own} {ours:.3f}, {row} {theirs:.3f}: {verdict}.")
    for (dataset, row, bits), value in measured["table2"]["map"].items():
        if row == "CRH" and value == measured["table2"]["map"].get((dataset, "CRH-M", bits)):
            lines.append(
                f"{dataset_title(dataset)}, {bits} bits: CRH and CRH-M are the same here: a head has to divide the "
                f"{bits} bits and hold M = 2C codewords, and only a single head of {bits} bits does both."
            )
    return [
        *lines,
        "SHC's centres follow the similarity they were made from more closely here than in the paper, because they are "
        "found by a stronger optimiser than its augmented Lagrangian (see crh_tune/hashing/shc.py), under the same "
        "minimum distance.",
    ]


if __name__ == "__main__":
    sys.exit(main())
