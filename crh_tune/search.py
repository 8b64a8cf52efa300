"""The entry point of a search: arguments in, a finished search out.

It runs as ``crh-tune search`` and, copied alone to a cluster's head, as ``ray submit clusters/gpu.yaml
crh_tune/search.py``; there it uses the running cluster, elsewhere it starts Ray on this machine. What takes seconds to
import is imported where it is used: help and mistakes need none of it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crh_tune.command import (
    DEFAULT_STORAGE,
    AsJson,
    Quiet,
    Say,
    Storage,
    complete_search,
    ending,
    prepare_process,
    run_app,
    say,
    silent,
    stdout_for_json,
)
from crh_tune.errors import AGAIN, INTERRUPTED_CODE, Interrupted, all_is_done, complain, leave, problem, unless_hung_up
from crh_tune.settings.base import SettingsError, read_yaml
from crh_tune.spaces import find_space, is_study, space_names

if TYPE_CHECKING:
    from crh_tune.settings.search import SearchSettings
    from crh_tune.tuning.pictures import Picture, Reference
    from crh_tune.tuning.results import SearchResult
    from crh_tune.tuning.stopping import Stop
    from crh_tune.tuning.study import Prepared

DEFAULT_SPACE = "digit_pairs"
EXAMPLES = """Examples:

crh-tune search

crh-tune search digit_pairs --trials 100

crh-tune search photos --data photos/

crh-tune search features --data embeddings.npz --json > result.json

crh-tune search table2 --dataset digit_pairs

crh-tune search photos --data photos/ --hours 2

crh-tune search --target "val/map >= 0.85"

crh-tune search --resume digit-pairs-001

crh-tune search --resume digit-pairs-001 --trials 20"""


def run_search(
    space: str | Path | Mapping[str, Any] = DEFAULT_SPACE,
    *,
    dataset: str | None = None,
    data: str | Path | None = None,
    trials: int | None = None,
    hours: float | None = None,
    epochs: int | None = None,
    target: str | None = None,
    storage: str | Path = DEFAULT_STORAGE,
    say: Say | None = None,
) -> SearchResult:
    """Search for the best settings, confirm and test them, and export them to ``export/`` in the search's folder.

    It starts Ray, or joins the cluster of this machine, and takes Ctrl-C, SIGTERM and SIGHUP for itself while it runs:
    call it from the main thread.

    Args:
        space: a search space: the name of one in ``search_spaces/``, a YAML file, or its content as a mapping.
        dataset: another dataset in place of the space's own.
        data: the folder (or .npz file) with the dataset's files.
        trials: how many trials, in place of the space's budget.
        hours: after how many hours the trials end, running ones too, in place of the space's budget.
        epochs: after how many epochs of all trials together no new trial starts, in place of the space's budget.
        target: what is enough, ``val/map >= 0.85``, in place of the space's: no new trial starts once one has it.
        storage: the folder of searches; this one's is ``result.folder`` in it.
        say: called with every line of progress (None: nothing is said).

    Returns:
        The winner and the paper's setting with their validation metrics on fresh seeds and their test metrics, all mAP
        between 0 and 1.

    Raises:
        SettingsError: the settings, or the arguments, are wrong or do not fit the machine or the data.
        DataError: the dataset's files cannot be used as they are.
        SearchFailed: no trial ended well, or the disk is full.
        Interrupted: it was interrupted; ``resume_search`` resumes it.
    """
    prepare_process()
    settings, where = _settings(space, dataset, data, trials, hours, epochs, target)
    return _run(settings, where, _folder(storage), None, say)


def resume_search(
    name: str,
    *,
    trials: int | None = None,
    hours: float | None = None,
    epochs: int | None = None,
    storage: str | Path = DEFAULT_STORAGE,
    say: Say | None = None,
) -> SearchResult:
    """Resume a search where it stopped, by its name (``digit-pairs-001``); of a finished one, its result again.

    ``trials``, ``hours`` and ``epochs`` are added to a search that has ended: it continues for that long,
    and confirms and tests what wins now. Other arguments, result and errors are those of :func:`run_search`.
    """
    prepare_process()
    from crh_tune.tuning.record import SETTINGS_FILE, find_folder, read_settings, with_more

    folder = find_folder(_folder(storage), name)
    _check_budget(trials, hours, epochs)
    nothing = trials is None and hours is None and epochs is None
    settings = read_settings(folder) if nothing else with_more(folder, trials, hours, epochs)
    return _run(settings, str(folder / SETTINGS_FILE), _folder(storage), folder, say)


def _run(settings: SearchSettings, where: str, storage: Path, resume: Path | None, say: Say | None) -> SearchResult:
    """Run a search, or resume one, and export it. Raises SettingsError, DataError, SearchFailed, Interrupted.

    It is checked against its dataset before Ray starts, but where a cluster is to compute a frozen backbone's features.
    """
    _check_path(settings, where)  # before anything slow is imported
    from crh_tune.export.of_search import export_search
    from crh_tune.last_lines import storage_option
    from crh_tune.tuning import study
    from crh_tune.tuning.cluster import cluster_runs

    def again(stop: Stop) -> str:
        name = stop.search_id or (resume.name if resume else "")
        return f"resume with crh-tune search --resume {name}{storage_option(storage)}" if name else AGAIN

    tell = say or silent

    def export(folder: Path) -> Path:
        tell("encoding the database for the index")
        export_search(folder, folder / "export")
        return folder / "export"

    def draw(folder: Path, reference: Reference) -> list[Picture]:
        from crh_tune.reporting.search_pictures import draw_pictures

        return draw_pictures(folder, reference)

    prepared = None if settings.trial.freeze and cluster_runs() else _prepared(settings, where, tell)
    with interruptible_ray("crh-tune search", again) as stop:
        prepared = prepared or _prepared(settings, where, tell)
        return study.run_search(settings, prepared, storage, tell, stop, resume, study.After(export, draw))


def search(
    space: Annotated[
        str | None,
        typer.Argument(
            help="A search space: the name of one in search_spaces/ or a YAML file.",
            show_default=DEFAULT_SPACE,
            autocompletion=space_names,
        ),
    ] = None,
    space_option: Annotated[
        str | None, typer.Option("--space", metavar="SPACE", help="The same, as an option.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another dataset.", show_default="the search space's own"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the dataset's files lie.", show_default="the search space's path"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="How many trials.", show_default="the search space's budget")
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(
            metavar="H",
            help="After how many hours trials end, running ones too.",
            show_default="the search space's budget",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="E", help="How many epochs of all trials together.", show_default="the search space's budget"
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="GOAL",
            help="What is enough, such as 'val/map >= 0.85': no new trial starts once one has it.",
            show_default="the search space's",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Resume a search, such as digit-pairs-001; --trials, --hours and --epochs add to one that has ended.",
            show_default=False,
            autocompletion=complete_search,
        ),
    ] = None,
    storage: Storage = Path(DEFAULT_STORAGE),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search for the best settings, confirm them with fresh seeds, evaluate on the test set once, and export them."""
    storage = _folder(storage)
    with stdout_for_json(as_json) as print_json:
        with telling(quiet) as tell:
            if resume is not None:
                if any(value is not None for value in (space, space_option, dataset, data, target)):
                    raise SettingsError(
                        "--resume takes the search as it was begun: "
                        "beside it go --storage, --trials, --hours and --epochs"
                    )
                result = resume_search(resume, trials=trials, hours=hours, epochs=epochs, storage=storage, say=tell)
            elif is_study(path := _space_file(space, space_option)):
                _study(path, dataset, data, trials or hours or epochs or target, storage, tell, as_json)
                return
            else:
                result = run_search(
                    path,
                    dataset=dataset,
                    data=data,
                    trials=trials,
                    hours=hours,
                    epochs=epochs,
                    target=target,
                    storage=storage,
                    say=tell,
                )
        from crh_tune.last_lines import last_lines

        lines = [] if as_json else last_lines(_settings_of(result), result, result.folder / "export")
        all_is_done()
        if as_json:
            print_json(result)
        else:
            with unless_hung_up():
                print("\n".join(lines), flush=True)


@contextmanager
def telling(quiet: bool) -> Iterator[Say]:
    """What says how a search goes: a live view in a terminal, plain lines elsewhere, nothing when it is quiet."""
    if quiet or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        yield silent if quiet else say
        return
    from crh_tune.tuning.live import LiveView

    with LiveView() as view:
        yield view


def _settings_of(result: SearchResult) -> SearchSettings:
    from crh_tune.tuning.record import read_settings

    return read_settings(result.folder)


@contextmanager
def interruptible_ray(command: str, go_on: Callable[[Stop], str]) -> Iterator[Stop]:
    """Ray, and what ends the command in order, until both are gone: a signal never meets Ray as it starts or ends.

    Raises Interrupted with what ``go_on`` says. Once Ray's node process dies, the process says so and ends: Ray can
    neither do nor end anything any more, and all that was done is on disk.
    """
    import ray

    from crh_tune.tuning.cluster import connect_ray, node_watched
    from crh_tune.tuning.stopping import Stop

    stop, others = Stop(), ray.is_initialized()

    def node_died() -> None:
        line = f"failed: Ray's node process (raylet) died; what was done is kept: {go_on(stop)}"
        complain(f"interrupted: {go_on(stop)}" if stop.interrupted else problem(command, line))
        with unless_hung_up():
            sys.stdout.flush()
        os._exit(INTERRUPTED_CODE if stop.interrupted else 1)  # what else Ray has started here ends with this process

    with stop.on_signals():
        with stop.in_order():
            connect_ray()
        try:
            stop.raise_if_interrupted()
            with node_watched(node_died):
                yield stop
        except KeyboardInterrupt:  # what Ray makes of Interrupted, too
            raise Interrupted(go_on(stop)) from None
        finally:
            with stop.in_order():
                if not others:
                    ray.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one search: 0 finished, 1 failed, 2 a mistake in the arguments or settings, 130 interrupted."""
    app = typer.Typer(add_completion=False)
    app.command(epilog=EXAMPLES)(ending("crh-tune search")(search))
    return run_app(app, argv, "search.py")


def _study(
    path: Path,
    dataset: str | None,
    data: Path | None,
    budget: float | str | None,
    storage: Path,
    say: Say,
    as_json: bool,
) -> None:
    """Run a study on the dataset asked for, or on all it names, and report it. Raises SettingsError, SearchFailed."""
    if budget is not None:
        raise SettingsError(
            "--trials, --hours, --epochs, --target: a study runs all its cells, however long that takes"
        )
    if as_json:
        raise SettingsError("--json: the result of a study is its report: leave --json out")
    from crh_tune.settings.study import read_study

    study = read_study(path)
    if data is not None:
        if dataset is None:
            raise SettingsError("--data: say which of the study's datasets lies there with --dataset")
        study = study.with_data(dataset, data)
    from crh_tune.paper import report_lines, search_study

    with interruptible_ray("crh-tune search", lambda stop: f"the same command resumes study {study.name}") as stop:
        search_study(study, dataset, storage, say, stop)
    if say is silent:
        with unless_hung_up():
            print("\n".join(report_lines(study, storage)), flush=True)


def _folder(path: str | Path) -> Path:
    return Path(path).expanduser()


def _space_file(space: str | None, option: str | None) -> Path:
    """The search-space file that the arguments name. Raises SettingsError."""
    if space and option:
        raise SettingsError("the search space is given twice: once as an argument and once as --space")
    return find_space(space or option or DEFAULT_SPACE)


def _settings(
    space: str | Path | Mapping[str, Any],
    dataset: str | None,
    data: str | Path | None,
    trials: int | None,
    hours: float | None,
    epochs: int | None,
    target: str | None,
) -> tuple[SearchSettings, str]:
    """The settings of a search as the arguments say, and where they come from. Raises SettingsError."""
    _check_budget(trials, hours, epochs)
    where = "space" if isinstance(space, Mapping) else str(find_space(str(space)))
    content = space if isinstance(space, Mapping) else read_yaml(Path(where))
    from crh_tune.settings.course import target_value
    from crh_tune.settings.search import search_settings

    settings = search_settings(content, where, dataset, None if data is None else _folder(data))
    if trials is not None and settings.is_grid:
        raise SettingsError(
            f"--trials: {where}: search: a grid tries all its {settings.trials} cells: leave --trials out"
        )
    if target is not None:
        try:
            target_value(target, settings.objective.metric, settings.objective.mode)
        except ValueError as error:
            raise SettingsError(f"--target: {error}") from None
        settings = settings.model_copy(update={"target": target})
    given = {
        name: value for name, value in (("trials", trials), ("hours", hours), ("epochs", epochs)) if value is not None
    }
    return settings.model_copy(update={"budget": settings.budget.model_copy(update=given)}), where


def _check_budget(trials: int | None, hours: float | None, epochs: int | None) -> None:
    """Raises SettingsError for a budget that allows nothing."""
    for option, number in (("--trials", trials), ("--epochs", epochs)):
        if number is not None and number < 1:
            raise SettingsError(f"{option}: expected at least 1, got {number}")
    if hours is not None and not 0 < hours < math.inf:
        raise SettingsError(f"--hours: expected more than 0, got {hours:g}")


def _check_path(settings: SearchSettings, where: str) -> None:
    from crh_tune.data.datasets import check_path

    try:
        check_path(settings.dataset.name, settings.dataset.options)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from None


def _prepared(settings: SearchSettings, where: str, say: Say) -> Prepared:
    from crh_tune.tuning.study import prepare

    try:
        return prepare(settings, say)
    except ValueError as error:  # SettingsError, and what a dataset says of its options
        raise SettingsError(f"{where}: {error}") from None


if __name__ == "__main__":
    leave(main)
