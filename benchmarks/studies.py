"""Tables 2, 3 and 5 of the paper on digit pairs, 3 seeds, 16 and 32 bits: runs what is missing, writes docs/studies.md.

    .venv/bin/python benchmarks/studies.py [STORAGE]

It takes about 10 minutes on 2 quiet cores. STORAGE (default crh_runs) keeps the runs: running it again goes on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from crh_tune.paper import study_sections
from crh_tune.reporting.report import Section, write_report
from crh_tune.settings.study import read_study
from crh_tune.spaces import find_space
from crh_tune.tuning.studies import study_runs

STUDIES = ("table2", "table3", "table5", "figure2")
DATASET = "digit_pairs"


def main() -> int:
    storage = Path(sys.argv[1] if len(sys.argv) > 1 else "crh_runs")
    command = Path(sys.executable).parent / "crh-tune"
    for study in STUDIES:
        subprocess.run([command, "search", study, "--dataset", DATASET, "--storage", storage], check=True)
    folder = Path(__file__).parents[1] / "docs"
    sections = [
        section for name in STUDIES for section in study_sections(read_study(find_space(name)), storage, folder)
    ]
    sections.append(Section("Across the tables", across_tables(storage)))
    markdown, html = write_report("studies", "The paper's studies on digit pairs", sections, folder)
    markdown.replace(folder / "studies.md")
    html.unlink()
    return 0


def across_tables(storage: Path) -> list[str]:
    """Where another method stands against CRH, which in the paper is above all of them."""
    measured = {name: study_runs(name, storage).groupby(["row", "bits"])[["map", "pcc"]].mean() for name in STUDIES}
    lines = []
    for study, row, own_study, own, value in (
        ("table3", "MDS_U", "table2", "CRH", "map"),
        ("table3", "OrthoHash_U", "table2", "CRH", "map"),
        ("table5", "SHC", "table5", "Learned", "pcc"),
    ):
        for bits in sorted(set(measured[study].index.get_level_values("bits"))):
            theirs = measured[study].loc[(row, bits), value]
            ours = measured[own_study].loc[(own, bits), value]
            verdict = "the paper's order shows" if ours > theirs else "the paper's order does not show"
            lines.append(f"{bits} bits, {value}: {own} {ours:.3f}, {row} {theirs:.3f}: {verdict}.")
    return [
        *lines,
        "SHC's centres follow the similarity they were made from more closely here than in the paper, because they are "
        "found by a stronger optimiser than its augmented Lagrangian (see crh_tune/hashing/shc.py), under the same "
        "minimum distance.",
    ]


if __name__ == "__main__":
    sys.exit(main())
