"""The ``crh-tune`` command: search, train, export, report, compare, list, clean, sync, data check.

What takes seconds to import is imported by the command that uses it: help and mistakes need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import crh_tune
from crh_tune import search as searching
from crh_tune.cli_service import add_service
from crh_tune.command import (
    DEFAULT_STORAGE,
    AsJson,
    Quiet,
    SearchName,
    Storage,
    complete_search,
    ending,
    run_app,
    say,
    search_names,
    silent,
    stdout_for_json,
)
from crh_tune.errors import SearchFailed, counted, leave, printable
from crh_tune.settings.base import SettingsError, did_you_mean
from crh_tune.spaces import find_space, is_study, space_names

SYNC_PATIENCE = 10.0
"""After how many seconds in which nothing could be sent ``sync`` gives up."""


app = typer.Typer(
    help="Find, train and export binary codes for image retrieval. crh-tune COMMAND --help has examples.",
    epilog="Exit codes: 0 done, 1 failed, 2 a mistake in arguments, settings or files, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Look at a dataset before anything is trained on it.")
app.command("search", epilog=searching.EXAMPLES)(ending("crh-tune search")(searching.search))
app.add_typer(data, name="data")
add_service(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 done, 1 failed, 2 a mistake in the arguments or settings, 130 interrupted."""
    return run_app(app, argv, "crh-tune")


def program() -> NoReturn:
    """The ``crh-tune`` command as a process."""
    leave(main)


def _version(asked: bool) -> None:
    if asked:
        print(f"crh-tune {crh_tune.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find, train and export binary codes for image retrieval. crh-tune COMMAND --help has examples."""


@app.command(
    epilog="""Examples:

crh-tune train crh_runs/digit-pairs-001/export/settings.yaml

crh-tune train settings.yaml --data photos/ --to model/"""
)
@ending("crh-tune train")
def train(
    settings: Annotated[
        Path, typer.Argument(metavar="SETTINGS.yaml", help="One setting, such as an export's settings.yaml.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the data lies.", show_default="the path in the settings"),
    ] = None,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the export.")] = Path("crh_model"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train one setting on all training data, evaluate it on the test set once, and export it."""
    with stdout_for_json(as_json) as print_json:
        from crh_tune.data.datasets import check_path
        from crh_tune.settings.trial import read_trial
        from crh_tune.settings.used import refuse_in_vain

        trial = read_trial(settings.expanduser(), data)  # before anything slow is imported
        refuse_in_vain(trial, str(settings))
        check_path(trial.dataset.name, trial.dataset.options)
        from crh_tune.trained import train as train_one
        from crh_tune.training.evaluation import shorter_test_maps

        trained = train_one(settings, data=data, to=to, say=silent if quiet else say)
        if as_json:
            print_json(trained)
        else:
            print(f"test mAP     {trained.metrics['test/map']:.6f}")
            for bits, value in shorter_test_maps(trained.metrics).items():
                print(f"at {bits} bits".ljust(13) + f"{value:.6f}")
            print(f"exported to  {trained.exported_to}")


@app.command(
    epilog="""Examples:

crh-tune export digit-pairs-001

crh-tune export digit-pairs-001 --to model/"""
)
@ending("crh-tune export")
def export(
    search: SearchName,
    storage: Storage = Path(DEFAULT_STORAGE),
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the export.", show_default="export/ in the search's folder"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export the winner of a search; of an unfinished one, its best trial so far."""
    with stdout_for_json(as_json) as print_json:
        folder = (storage.expanduser() / search).resolve()
        if not folder.is_dir():
            raise SettingsError(f"{folder}: no such search")
        target = to or folder / "export"
        from crh_tune.export.of_search import export_search

        export_search(folder, target)
        if as_json:
            print_json({"search": search, "exported_to": target})
        else:
            print(f"exported to  {target}")


@app.command(
    epilog="""Examples:

crh-tune sync digit-pairs-001"""
)
@ending("crh-tune sync")
def sync(
    search: SearchName,
    storage: Storage = Path(DEFAULT_STORAGE),
) -> None:
    """Send MLflow what its server missed of a search."""
    from crh_tune.tuning.address import shown
    from crh_tune.tuning.outbox import unsent_in
    from crh_tune.tuning.record import find_folder, held, read_settings
    from crh_tune.tuning.tracking import Tracker, default_tracking_uri

    storage = storage.expanduser()
    folder = find_folder(storage, search)
    experiment, uri = read_settings(folder).name, default_tracking_uri(storage)
    with held(folder):
        before = unsent_in(folder, uri)  # not asked of the tracker, which begins to send as it is made
        tracker = Tracker(uri, experiment, storage, folder)
        remaining = tracker.drain(SYNC_PATIENCE)
    print(f"{counted(before - remaining, 'entry', 'entries')} sent to {shown(uri)}, {remaining} remain")
    if remaining:
        raise SearchFailed(f"{counted(remaining, 'entry', 'entries')} not sent: {tracker.last_error}")


@app.command(
    epilog="""Examples:

crh-tune report digit-pairs-001

crh-tune report table2"""
)
@ending("crh-tune report")
def report(
    name: Annotated[
        str,
        typer.Argument(
            help="A search, such as digit-pairs-001, or a study, such as table2 or a YAML file.",
            autocompletion=lambda ctx: [*complete_search(ctx), *space_names()],
        ),
    ],
    storage: Storage = Path(DEFAULT_STORAGE),
) -> None:
    """Write the report of a search or of a study, finished or not: a page, its figures and its tables."""
    storage = storage.expanduser()
    path = _search_or_study(name, storage)
    if path.is_dir():
        from crh_tune.reporting.search_report import search_lines

        lines = search_lines(path, storage, say)
    else:
        from crh_tune.settings.study import read_study

        study = read_study(path)
        from crh_tune.paper import report_lines

        lines = report_lines(study, storage)
    print("\n".join(lines))


@app.command(
    epilog="""Examples:

crh-tune compare digit-pairs-001 digit-pairs-002"""
)
@ending("crh-tune compare")
def compare(
    names: Annotated[list[str], typer.Argument(help="Searches, two or more.", autocompletion=complete_search)],
    storage: Storage = Path(DEFAULT_STORAGE),
) -> None:
    """Put searches side by side, with the difference of those that were tested on the same queries."""
    from crh_tune.reporting.compare import compare_lines

    print("\n".join(compare_lines(storage.expanduser(), names)))


@app.command(
    "list",
    epilog="""Examples:

crh-tune list""",
)
@ending("crh-tune list")
def list_all(storage: Storage = Path(DEFAULT_STORAGE)) -> None:
    """List the searches there are: how far each is, its best value, and what it takes on disk."""
    from crh_tune.tuning.housekeeping import list_lines

    print("\n".join(list_lines(storage.expanduser())))


@app.command(
    epilog="""Examples:

crh-tune clean digit-pairs-001"""
)
@ending("crh-tune clean")
def clean(
    search: SearchName,
    storage: Storage = Path(DEFAULT_STORAGE),
) -> None:
    """Delete the checkpoints of a finished search that neither its export nor its report needs."""
    from crh_tune.tuning.housekeeping import clean as clean_search

    print("\n".join(clean_search(storage.expanduser(), search)))


@data.callback()
def _data() -> None:
    """Look at a dataset before anything is trained on it."""


@data.command(
    "check",
    epilog="""Examples:

crh-tune data check photos/

crh-tune data check embeddings.npz

crh-tune data check cars/ --dataset stanford_cars""",
)
@ending("crh-tune data")
def check(
    path: Annotated[Path, typer.Argument(help="The dataset's folder, or an .npz file of features.")],
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Read it as this dataset.", show_default="the one its files look like"),
    ] = None,
    max_megapixels: Annotated[
        float | None,
        typer.Option(metavar="N", help="Larger images are a problem.", show_default="what a search refuses"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what lies at a path, and everything that is wrong with it."""
    from crh_tune.data.check import check_data
    from crh_tune.data.datasets import DATASETS
    from crh_tune.data.readers.files import counted
    from crh_tune.data.store.decode import MEGAPIXELS

    if dataset is not None and getattr(DATASETS.get(dataset), "find", None) is None:
        names = [name for name, source in DATASETS.items() if source.find]
        raise SettingsError(
            f"--dataset: unknown dataset of files {dataset!r}: {did_you_mean(dataset, names)}one of {', '.join(names)}"
        )
    with stdout_for_json(as_json) as print_json:
        findings = check_data(
            path.expanduser().absolute(), dataset, MEGAPIXELS if max_megapixels is None else max_megapixels
        )
        if as_json:
            lines = [{"name": name, "text": text} for name, text in findings.lines]
            print_json({"path": path, "lines": lines, "problems": findings.problems})
        else:
            for name, text in findings.lines:
                print(f"{name:<12}{printable(text)}")
            print(f"{'problems':<12}{len(findings.problems) or 'none'}")
            for problem in findings.problems:
                print(f"  {problem}")
        if findings.problems:
            found = counted(len(findings.problems), "problem")
            raise SettingsError(f"{path}: {found}: mend the files that are named above")


def _search_or_study(name: str, storage: Path) -> Path:
    """The folder of a search, or else the file of a study. Raises SettingsError with the searches there are."""
    there = search_names(storage)
    if name in there:
        return storage / name
    searches = f"{did_you_mean(name, there)}there is {', '.join(there) or 'none'}"
    try:
        path = find_space(name)
    except SettingsError as error:
        raise SettingsError(f"no search {name!r} in {storage} ({searches}), and {error}") from None
    if not is_study(path):
        raise SettingsError(f"{name} is a search space: name a search that was run with it ({searches})")
    return path


if __name__ == "__main__":
    program()
