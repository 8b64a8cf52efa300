"""The ``crh-tune`` command: search, train, export, report, sync."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crh_tune import search as searching
from crh_tune.data.check import check_data
from crh_tune.data.datasets import DATASETS
from crh_tune.data.readers.files import counted, printable
from crh_tune.data.store.decode import MEGAPIXELS
from crh_tune.export.bundle import model_card, write_bundle
from crh_tune.export.of_search import export_search
from crh_tune.paper import report_lines
from crh_tune.settings.base import SettingsError
from crh_tune.settings.study import read_study
from crh_tune.settings.trial import read_trial
from crh_tune.settings.used import refuse_in_vain
from crh_tune.spaces import find_space
from crh_tune.training.aggregator import solve_locally
from crh_tune.training.loop import PREPARED, Metrics, Save, TrainingDiverged, TrainingRun
from crh_tune.training.opening import open_split
from crh_tune.training.workers import Workers
from crh_tune.tuning.record import find_folder, held, read_settings
from crh_tune.tuning.study import SearchFailed
from crh_tune.tuning.tracking import Tracker, default_tracking_uri, shown
from crh_tune.tuning.trial import device_of, train_group

SYNC_PATIENCE = 10.0
"""After how many seconds in which nothing could be sent ``sync`` gives up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 done, 1 failed, 2 a mistake in the arguments or settings, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="crh-tune", description="Find, train and hand over binary codes.")
    commands = parser.add_subparsers(dest="command", required=True)
    of_search = commands.add_parser("search", help="search for the best settings, confirm, test and export them")
    searching.add_arguments(of_search)
    of_search.set_defaults(run=searching.search)
    of_train = commands.add_parser("train", help="train one setting on all training samples, test and export it")
    of_train.add_argument("settings", type=Path, help="YAML file of one trial, such as an export's settings.yaml")
    of_train.add_argument("--data", type=Path, metavar="DIR", help="where the data lies, if not where it was")
    of_train.add_argument("--to", type=Path, default=Path("crh_model"), help="folder of the export")
    of_train.set_defaults(run=train)
    of_export = commands.add_parser("export", help="write the best settings and encoder of a search")
    of_export.add_argument("search", help="the search's name, such as digit-pairs-001")
    of_export.add_argument(
        "--storage", type=Path, default=Path(searching.DEFAULT_STORAGE), help="where searches are kept"
    )
    of_export.add_argument("--to", type=Path, help="folder of the export (default: export/ in the search's folder)")
    of_export.set_defaults(run=export)
    of_report = commands.add_parser("report", help="rebuild the report of a study from MLflow")
    of_report.add_argument("study", help="a study of search_spaces/paper/, such as table2, or a YAML file")
    of_report.add_argument("--storage", type=Path, default=Path(searching.DEFAULT_STORAGE), help="where runs are kept")
    of_report.set_defaults(run=report)
    of_sync = commands.add_parser("sync", help="send what the tracking server has not got of a search")
    of_sync.add_argument("search", help="the search's name, such as digit-pairs-001")
    of_sync.add_argument(
        "--storage", type=Path, default=Path(searching.DEFAULT_STORAGE), help="where searches are kept"
    )
    of_sync.set_defaults(run=sync)
    of_data = commands.add_parser("data", help="look at a data folder before anything is trained on it")
    data_commands = of_data.add_subparsers(dest="data_command", required=True)
    of_check = data_commands.add_parser("check", help="say what is there, and everything that is wrong with it")
    of_check.add_argument("path", type=Path, help="the dataset's folder, or an .npz file of features")
    of_check.add_argument("--dataset", help="read it as this dataset (default: the one its files look like)")
    of_check.add_argument(
        "--max-megapixels", type=float, default=MEGAPIXELS, help="larger images are a problem (default %(default)g)"
    )
    of_check.set_defaults(run=check)
    arguments = parser.parse_args(argv)
    return searching.run_command(lambda: arguments.run(arguments), f"crh-tune {arguments.command}")


def train(arguments: argparse.Namespace) -> None:
    """Train one setting on the final split, print its metrics, and export it. Raises SettingsError, SearchFailed."""
    settings = read_trial(arguments.settings, arguments.data)
    refuse_in_vain(settings, str(arguments.settings))
    split = open_split(settings, "final")
    settings = settings.resolve(split.classes, split.multi_label)
    try:
        arguments.to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--to {arguments.to}: {error.strerror}: name a folder that can be written to") from None
    workers = Workers(device=device_of(settings))
    run = TrainingRun(settings, split, workers, solve_locally)
    try:
        if settings.scaling.workers_per_trial == 1:
            metrics = run.train(_print_progress)
        else:
            with searching.interruptible_ray("crh-tune train", lambda stop: searching.AGAIN):
                metrics = train_group(settings, split.fingerprint, run)
    except TrainingDiverged as error:
        raise SearchFailed(str(error)) from None
    print("encoding the database for the index", flush=True)
    write_bundle(arguments.to, run, model_card(settings, split, metrics, []))
    print(f"test mAP     {metrics['test/map']:.6f}")
    print(f"exported to  {arguments.to}")


def check(arguments: argparse.Namespace) -> None:
    """Say what lies in a data folder, and every problem. Raises SettingsError, DataError."""
    if arguments.dataset is not None and getattr(DATASETS.get(arguments.dataset), "find", None) is None:
        names = ", ".join(name for name, source in DATASETS.items() if source.find)
        raise SettingsError(f"--dataset: unknown dataset of files {arguments.dataset!r}: one of {names}")
    findings = check_data(arguments.path.expanduser().absolute(), arguments.dataset, arguments.max_megapixels)
    for name, text in findings.lines:
        print(f"{name:<12}{printable(text)}")
    print(f"{'problems':<12}{len(findings.problems) or 'none'}")
    for problem in findings.problems:
        print(f"  {problem}")
    if findings.problems:
        found = counted(len(findings.problems), "problem")
        raise SettingsError(f"{arguments.path}: {found}: mend the files that are named above")


def export(arguments: argparse.Namespace) -> None:
    """Export a search. Raises SettingsError."""
    folder = (arguments.storage / arguments.search).resolve()
    if not folder.is_dir():
        raise SettingsError(f"{folder}: no such search")
    target = arguments.to or folder / "export"
    export_search(folder, target)
    print(f"exported to  {target}")


def sync(arguments: argparse.Namespace) -> None:
    """Send what is left in a search's outbox. Raises SettingsError, SearchFailed where something remains."""
    folder = find_folder(arguments.storage, arguments.search)
    experiment, uri = read_settings(folder).name, default_tracking_uri(arguments.storage)
    with held(folder):
        tracker = Tracker(uri, experiment, arguments.storage, folder)
        before = tracker.unsent()
        remaining = tracker.drain(SYNC_PATIENCE)
    print(f"{before - remaining} entries sent to {shown(uri)}, {remaining} remain")
    if remaining:
        raise SearchFailed(f"{remaining} entries remain: {tracker.last_error}")


def report(arguments: argparse.Namespace) -> None:
    """Report a study, finished or not. Raises SettingsError."""
    print("\n".join(report_lines(read_study(find_space(arguments.study)), arguments.storage)))


def _print_progress(metrics: Metrics, save: Save | None) -> None:
    if PREPARED in metrics:
        print(f"classifier that the first centres are learned from: epoch {metrics[PREPARED]:>4.0f}", flush=True)
        return
    print(f"epoch {metrics['epoch']:>4.0f}  loss {metrics['loss/total']:.4f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
