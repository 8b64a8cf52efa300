"""Studies from the door: run what is missing of a table or figure of the paper, and report it from MLflow."""

from __future__ import annotations

from pathlib import Path

from crh_tune.data.datasets import DATASETS
from crh_tune.errors import SearchFailed, counted
from crh_tune.ground import write_text
from crh_tune.reporting.figures import figure2, figure3, figure4
from crh_tune.reporting.report import Section, write_report
from crh_tune.reporting.search_report import REPORTS, TABLES
from crh_tune.reporting.search_tables import write_table
from crh_tune.reporting.tables import order_notes, printed_table, study_table, to_markdown
from crh_tune.settings.base import SettingsError
from crh_tune.settings.study import StudySettings, known_dataset
from crh_tune.tuning.progress import Say
from crh_tune.tuning.stopping import Stop
from crh_tune.tuning.studies import RANDOM, run_study, study_runs

_FIGURES = {"figure2": figure2, "figure3": figure3, "figure4": figure4}


def search_study(study: StudySettings, dataset: str | None, storage: Path, say: Say, stop: Stop | None = None) -> None:
    """Run a study on one dataset, or on all it names, and report it.

    Raises SettingsError, SearchFailed, Interrupted.
    """
    datasets = [dataset] if dataset else list(study.datasets)
    for name in datasets:
        known_dataset(name)
    failed = sum(run_study(study, name, storage, say, stop or Stop()) for name in datasets)
    say("\n".join(report_lines(study, storage)))
    if failed:
        raise SearchFailed(f"{counted(failed, 'run')} of study {study.name} did not finish: run it again for the rest")


def report_lines(study: StudySettings, storage: Path) -> list[str]:
    """Write the study's report from the runs that are there; its tables and where it is, as lines to print.

    Raises SettingsError when there is no complete run.
    """
    folder = storage / REPORTS / study.name
    sections = study_sections(study, storage, folder)
    printed: list[str] = []
    for section in sections:
        if section.table is not None:
            printed += [to_markdown(section.table)]
            write_table(printed_table(section.table), folder / TABLES, study.name)
            write_text(folder / TABLES / f"{study.name}_cells.csv", section.table.to_csv(index=False))
        printed += [*section.text, *map(str, section.figures)]
    markdown, html = write_report(study.name, study.title, sections, folder)
    return ["", *printed, "", f"reports  {markdown}  {html}"]


def study_sections(study: StudySettings, storage: Path, folder: Path) -> list[Section]:
    """The study's table or figure from the complete runs in MLflow; figures are drawn into ``folder``.

    Raises SettingsError when there is no complete run.
    """
    runs = study_runs(study.name, storage)
    if runs.empty:
        raise SettingsError(f"no complete run of {study.name} in {storage}: run crh-tune search {study.name} first")
    datasets = [name for name in dict.fromkeys((*study.datasets, *DATASETS)) if name in set(runs["dataset"])]
    if study.kind in _FIGURES:
        pictures = _FIGURES[study.kind](runs, folder)
        return [Section(study.title, [f"{len(runs)} runs on {', '.join(datasets)}."], None, pictures)]
    rows = [*study.rows(), *([RANDOM] if study.random_draws else [])]
    bits = sorted({int(length) for name in datasets for length in study.on(name).bits or study.bits})
    table = study_table(study.name, runs, rows, datasets, bits, "pcc" if study.kind == "pcc" else "map")
    return [Section(study.title, order_notes(table), table)]
