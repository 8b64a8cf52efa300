"""Tables 2, 3 and 5 of the paper on digit pairs, 3 seeds, 16 and 32 bits: runs what is missing, writes docs/studies.md.

    .venv/bin/python benchmarks/studies.py [STORAGE]

It takes about 10 minutes on 2 quiet cores. STORAGE (default crh_runs) keeps the runs: running it again goes on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from crh_tune.paper import study_sections
from crh_tune.reporting.report import write_report
from crh_tune.settings.study import read_study
from crh_tune.spaces import find_space

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
    markdown, html = write_report("studies", "The paper's studies on digit pairs", sections, folder)
    markdown.replace(folder / "studies.md")
    html.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
