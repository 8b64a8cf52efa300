"""The entry point of a search: arguments in, a finished search out.

It runs as ``crh-tune search`` and, copied alone to a cluster's head, as ``ray submit clusters/gpu.yaml
crh_tune/search.py``; there it uses the running cluster, elsewhere it starts Ray on this machine.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import ray

from crh_tune.data.listing import DataError
from crh_tune.data.readers.files import problem
from crh_tune.export.of_search import export_search
from crh_tune.paper import search_study
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings, read_search
from crh_tune.settings.study import is_study, read_study
from crh_tune.spaces import find_space
from crh_tune.tuning.baselines import last_lines
from crh_tune.tuning.cluster import cluster_runs, connect_ray, node_watched
from crh_tune.tuning.progress import describe
from crh_tune.tuning.record import SETTINGS_FILE, find_folder, read_settings
from crh_tune.tuning.stopping import INTERRUPTED_CODE, Interrupted, Stop, terminable
from crh_tune.tuning.study import Candidate, Prepared, SearchFailed, SearchResult, prepare, run_search

DEFAULT_SPACE = "digit_pairs"
DEFAULT_STORAGE = "crh_runs"
AGAIN = "the same command starts it again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a search."""
    parser.add_argument("space", nargs="?", help=f"search space: a name or a YAML file (default {DEFAULT_SPACE})")
    parser.add_argument("--space", dest="space_option", metavar="SPACE", help="the same, as an option")
    parser.add_argument("--dataset", help="another dataset in place of the search space's own")
    parser.add_argument("--data", type=_folder, metavar="DIR", help="where the dataset's files lie")
    parser.add_argument("--trials", type=int, help="how many trials (default: the search space's budget)")
    parser.add_argument("--resume", metavar="NAME", help="go on with a search, such as digit-pairs-001")
    parser.add_argument("--storage", type=_folder, default=Path(DEFAULT_STORAGE), help="where searches are kept")


def search(arguments: argparse.Namespace) -> None:
    """Run a search as the arguments say and print what it found. Raises SettingsError, SearchFailed, Interrupted."""
    if arguments.resume is not None:
        _resume(arguments)
        return
    path = _space_file(arguments)
    if is_study(path):
        _study(path, arguments)
        return
    _search(_settings(path, arguments), path, arguments.storage, None)


def _resume(arguments: argparse.Namespace) -> None:
    """Go on with a search where it stopped; of one that has ended, print what it found again."""
    given = (arguments.space, arguments.space_option, arguments.dataset, arguments.data, arguments.trials)
    if any(value is not None for value in given):
        raise SettingsError("--resume goes on with a search as it was begun: give no other argument than --storage")
    folder = find_folder(arguments.storage, arguments.resume)
    settings = read_settings(folder)
    _search(settings, folder / SETTINGS_FILE, arguments.storage, folder)


def _search(settings: SearchSettings, path: Path, storage: Path, resume: Path | None) -> None:
    """Run a search, or go on with one, and print what it found. Raises SettingsError, SearchFailed, Interrupted.

    It is checked against its dataset before Ray starts, but where a cluster is to compute a frozen backbone's features.
    """
    prepared = None if settings.trial.freeze and cluster_runs() else _prepared(settings, path)

    def go_on(stop: Stop) -> str:
        name = stop.search_id or (resume.name if resume else "")
        return f"go on with crh-tune search --resume {name}{storage_option(storage)}" if name else AGAIN

    with interruptible_ray("crh-tune search", go_on) as stop:
        stop.raise_if_interrupted()
        result = run_search(settings, prepared or _prepared(settings, path), storage, _say, stop, resume)
        target = result.folder / "export"
        _say("encoding the database for the index")
        export_search(result.folder, target)
        print("\n".join(_last_lines(settings, result, target)), flush=True)


@contextmanager
def interruptible_ray(command: str, go_on: Callable[[Stop], str]) -> Iterator[Stop]:
    """Ray, and what ends the command in order, until both are gone: a signal never meets Ray as it starts or ends.

    Raises Interrupted with what ``go_on`` says. Once Ray's node process dies, the process says so and ends: Ray can
    neither do nor end anything any more, and all that was done is on disk.
    """
    stop, others = Stop(), ray.is_initialized()

    def node_died() -> None:
        line = f"failed: Ray's node process (raylet) died; what was done is kept: {go_on(stop)}"
        print(
            f"interrupted: {go_on(stop)}" if stop.interrupted else problem(command, line), file=sys.stderr, flush=True
        )
        sys.stdout.flush()
        os._exit(INTERRUPTED_CODE if stop.interrupted else 1)  # what else Ray has started here ends with this process

    with stop.on_signals():
        with stop.in_order():
            connect_ray()
        try:
            with node_watched(node_died):
                yield stop
        except Interrupted:
            raise Interrupted(go_on(stop)) from None
        finally:
            with stop.in_order():
                if not others:
                    ray.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one search: 0 finished, 1 failed, 2 a mistake in the arguments or settings, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="search.py", description="Search for the best settings of a hashing method.")
    add_arguments(parser)
    return run_command(lambda: search(parser.parse_args(argv)), "search")


def run_command(command: Callable[[], None], name: str) -> int:
    """Call a command; its exit code, with one last line on standard error where it did not end well.

    What the terminal cannot show is written out: a result is not lost for want of a letter.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with terminable():
            command()
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"interrupted: {str(error) or AGAIN}", file=sys.stderr)
        return INTERRUPTED_CODE
    except (SettingsError, DataError) as error:
        print(problem(name, str(error)), file=sys.stderr)
        return 2
    except SearchFailed as error:
        print(problem(name, f"failed: {error}"), file=sys.stderr)
        return 1
    except Exception as error:  # nothing of the above: where it comes from matters too
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # a name that was given, wherever it went
            print(problem(name, f"{error.filename}: {error.strerror}"), file=sys.stderr)
            return 2
        traceback.print_exc()
        print(f"{name}: failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _study(path: Path, arguments: argparse.Namespace) -> None:
    """Run a study on the dataset asked for, or on all it names, and report it. Raises SettingsError, SearchFailed."""
    if arguments.trials is not None:
        raise SettingsError("--trials: a study runs all its cells, it has no number of trials")
    study = read_study(path)
    if arguments.data is not None:
        if arguments.dataset is None:
            raise SettingsError("--data: say which of the study's datasets lies there with --dataset")
        study = study.with_data(arguments.dataset, arguments.data)
    with interruptible_ray("crh-tune search", lambda stop: f"the same command goes on with study {study.name}") as stop:
        stop.raise_if_interrupted()
        search_study(study, arguments.dataset, arguments.storage, _say, stop)


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _say(line: str) -> None:
    print(line, flush=True)


def _space_file(arguments: argparse.Namespace) -> Path:
    """The search-space file that the arguments name. Raises SettingsError."""
    if arguments.space and arguments.space_option:
        raise SettingsError("the search space is given twice: once as an argument and once as --space")
    return find_space(arguments.space or arguments.space_option or DEFAULT_SPACE)


def _settings(path: Path, arguments: argparse.Namespace) -> SearchSettings:
    """The search as the arguments say. Raises SettingsError."""
    settings = read_search(path, arguments.dataset, arguments.data)
    if arguments.trials is not None:
        if arguments.trials < 1:
            raise SettingsError(f"--trials: expected at least 1, got {arguments.trials}")
        if settings.is_grid:
            raise SettingsError(
                f"--trials: {path}: search: a grid tries all its {settings.trials} cells: leave --trials out"
            )
        budget = settings.budget.model_copy(update={"trials": arguments.trials})
        settings = settings.model_copy(update={"budget": budget})
    return settings


def _prepared(settings: SearchSettings, path: Path) -> Prepared:
    try:
        return prepare(settings, _say)
    except ValueError as error:  # SettingsError, and what a dataset says of its options
        raise SettingsError(f"{path}: {error}") from None


def _last_lines(settings: SearchSettings, result: SearchResult, target: Path) -> list[str]:
    best, paper = result.best, result.paper
    metric = "validation mAP" if settings.objective.metric == "val/map" else settings.objective.metric
    seeds = f"mean of {len(best.values)} fresh seeds"
    lines = [
        "",
        f"best settings    {describe(best.settings, settings.search)}  ({best.trial})",
        f"{metric:<17}{best.mean:.4f} ± {best.std:.4f}, the paper's setting "
        f"{paper.mean:.4f} ± {paper.std:.4f} ({seeds})",
        *_what_all_layers_changed(best, metric),
        f"test mAP         {result.best_test.metrics['test/map']:.4f}, the paper's setting "
        f"{result.paper_test.metrics['test/map']:.4f}",
        *last_lines(result.baselines),
        f"exported to      {_near(target)}",
    ]
    if result.unsent_why:
        lines.append(f"MLflow           {result.unsent_why}")
    if result.unsent:
        lines.append(
            f"MLflow           {result.unsent} entries are still unsent, and kept: "
            f"crh-tune sync {result.search_id}{storage_option(result.folder.parent)} sends them"
        )
    return [*lines, f"open the UI      {_ui_command(result.tracking_uri)}", result.ended]


def _what_all_layers_changed(best: Candidate, metric: str) -> list[str]:
    """After a search on a frozen backbone whose finalists were trained with all layers, the difference."""
    if best.frozen is None:
        return []
    gain = best.mean - best.frozen
    return [f"all layers       {gain:+.4f} {metric} over the trial on frozen features, {best.frozen:.4f}"]


def storage_option(storage: Path) -> str:
    """The --storage option that a command for a search in this storage needs, with a space before it."""
    return "" if storage.resolve() == Path(DEFAULT_STORAGE).resolve() else f" --storage {_near(storage)}"


def _ui_command(uri: str) -> str:
    if not uri.startswith("sqlite:"):
        return f"MLflow runs at {uri}"
    beside = Path(sys.executable).parent / "mlflow"
    program = _near(beside) if beside.exists() else shutil.which("mlflow") or "mlflow"
    return f"{program} ui --host 127.0.0.1 --port 5000 --backend-store-uri {shlex.quote(uri)}"


def _near(path: Path) -> str:
    """The path as seen from the working folder, where it lies below it."""
    absolute = path.absolute()
    return shlex.quote(str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute))


if __name__ == "__main__":
    sys.exit(main())
