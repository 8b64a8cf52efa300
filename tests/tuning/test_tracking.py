"""The outbox: kept in order, sent once, whatever a crash or the tracking server does to it."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from crh_tune.cli import main
from crh_tune.settings.base import SettingsError
from crh_tune.settings.search import SearchSettings
from crh_tune.tuning.address import pages_at, runs_page, shown, ui_command
from crh_tune.tuning.outbox import WORDS
from crh_tune.tuning.record import new_folder
from crh_tune.tuning.stopping import Interrupted
from crh_tune.tuning.tracking import Tracker, answering, connect, default_tracking_uri

NOWHERE = "http://127.0.0.1:9"
SPACE = {"name": "outbox", "dataset": {"name": "digits"}, "search": {"margin": {"uniform": [0, 0.5]}}}


@pytest.fixture(autouse=True)
def a_database(empty_database: Path, tmp_path: Path) -> None:
    """MLflow's own, without a run: making one takes seconds."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")


def log_a_run(tracker: Tracker, last_step: int = 3) -> None:
    tracker.start_run("a", "a")
    tracker.params("a", {"seed": 0})
    for step in range(1, last_step + 1):
        tracker.metrics("a", {"val/map": step / 10}, step)
    tracker.end_run("a", "FINISHED")


def history(uri: str) -> tuple[str, list[tuple[int, float]]]:
    """The status and the metric of the one run that is there."""
    client = MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("outbox").experiment_id])
    points = client.get_metric_history(run.info.run_id, "val/map")
    return run.info.status, sorted((point.step, point.value) for point in points)


def test_what_a_run_that_is_gone_on_with_logs_again_is_there_once(tmp_path: Path):
    uri = default_tracking_uri(tmp_path)
    for last_step in (3, 4):
        tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
        log_a_run(tracker, last_step)
        assert tracker.has_ended("a")
        assert tracker.drain(120) == 0
    assert history(uri) == ("FINISHED", [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)])


@pytest.mark.parametrize("sent", ["", '{"sent": 2', '{"sent": 3, "server": "other"}', "[]", None])
def test_entries_that_are_sent_a_second_time_change_nothing(tmp_path: Path, sent: str | None):
    """What says how many were sent is behind, cut off, of another server, or gone."""
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    log_a_run(tracker)
    assert tracker.drain(120) == 0
    expected = history(uri)
    if sent is None:
        (tmp_path / "mlflow_sent").unlink()
    else:
        (tmp_path / "mlflow_sent").write_text(sent)
    again = Tracker(uri, "outbox", tmp_path, tmp_path)
    assert again.drain(120) == 0
    assert history(uri) == expected


@pytest.mark.parametrize("rest", ['["metrics", "a", {"val', "\0\0\0\0", '["tags"]\n', "7\n"])
def test_what_a_crash_left_half_written_is_cut_off_and_the_log_goes_on(tmp_path: Path, rest: str):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(NOWHERE, "outbox", tmp_path, tmp_path)
    tracker.start_run("a", "a")
    tracker.close(0)
    with (tmp_path / "mlflow_outbox.jsonl").open("a") as outbox:
        outbox.write(rest)
    later = Tracker(uri, "outbox", tmp_path, tmp_path)
    later.metrics("a", {"val/map": 0.5}, 1)
    later.end_run("a", "FINISHED")
    assert later.drain(120) == 0
    assert history(uri) == ("FINISHED", [(1, 0.5)])


def test_a_slow_server_does_not_keep_the_end_waiting(tmp_path: Path):
    over = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            over.wait()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tracker = Tracker(f"http://127.0.0.1:{server.server_port}", "outbox", tmp_path, tmp_path)
    log_a_run(tracker)
    assert tracker.close(patience=0.5) == 6  # it comes back, and the server has not answered
    over.set()
    server.shutdown()


class FastTracker(Tracker):
    """One that has sent everything before it is asked anything."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        deadline = time.monotonic() + 120
        while self.unsent():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_sync_sends_what_was_left_and_says_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    settings = SearchSettings.model_validate(SPACE)
    folder = new_folder(tmp_path, settings)
    tracker = Tracker(NOWHERE, "outbox", tmp_path, folder)
    log_a_run(tracker)
    assert tracker.close(0) == 6
    monkeypatch.setattr("crh_tune.cli.SYNC_PATIENCE", 0.5)
    monkeypatch.setattr("crh_tune.tuning.tracking._REQUEST_SECONDS", 60.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    assert main(["sync", "outbox-001", "--storage", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"0 entries sent to {NOWHERE}, 6 remain")
    assert "failed: 6 entries not sent: MLFLOW_TRACKING_URI: the tracking server at" in said.err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr("crh_tune.tuning.tracking.Tracker", FastTracker)
    assert main(["sync", "outbox-001", "--storage", str(tmp_path)]) == 0
    uri = default_tracking_uri(tmp_path)
    assert capsys.readouterr().out == f"6 entries sent to {uri}, 0 remain\n"
    assert history(uri) == ("FINISHED", [(1, 0.1), (2, 0.2), (3, 0.3)])
    assert main(["sync", "outbox-002", "--storage", str(tmp_path)]) == 2
    assert "there is outbox-001" in capsys.readouterr().err


def test_processes_that_make_a_new_database_at_once_do_not_break_it(tmp_path: Path):
    uri, failed = default_tracking_uri(tmp_path), []
    (tmp_path / "mlflow.db").unlink()

    def reach(name: str) -> None:
        try:
            connect(uri, name, tmp_path)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=reach, args=(name,)) for name in ("one", "two", "one")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {each.name for each in MlflowClient(uri).search_experiments()} >= {"one", "two"}


def test_a_password_in_the_address_is_not_written_down(tmp_path: Path):
    tracker = Tracker("http://me:secret@127.0.0.1:9", "outbox", tmp_path, tmp_path)
    tracker._sent.move(WORDS)
    tracker.close(0)
    assert json.loads((tmp_path / "mlflow_sent").read_text())["server"] == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        ("http://me:swordfish@127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://swordfish@127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://me:sword@fish@127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://me:sword%40fish@127.0.0.1:9/below", "http://127.0.0.1:9/below"),
        ("http://me:sword/fish@127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://me:sword?fish@127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://127.0.0.1:9/?token=swordfish", "http://127.0.0.1:9/"),
        ("http://me:swordfish@127.0.0.1:port", "http://127.0.0.1:port"),
        ("http://me:swordfish@[::1", "http://[::1"),
        ("nothing://me:swordfish@127.0.0.1", "nothing://127.0.0.1"),
        ("postgresql://me:sword/fish@127.0.0.1:9/runs", "postgresql://127.0.0.1:9/runs"),
        ("mysql+pymysql://me:swordfish@127.0.0.1:9/runs", "mysql+pymysql://127.0.0.1:9/runs"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dswordfish", "mssql+pyodbc:///"),
    ],
)
def test_what_is_said_of_a_server_that_does_not_answer_has_no_password_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str, seen: str
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("crh_tune.cli.SYNC_PATIENCE", 0.3)
    monkeypatch.setattr("crh_tune.tuning.tracking._REQUEST_SECONDS", 60.0)
    begins = f"MLFLOW_TRACKING_URI: the tracking server at {seen} does not answer: "
    with pytest.raises(SettingsError) as caught:
        connect(uri, "outbox", tmp_path)
    settings = SearchSettings.model_validate(SPACE)
    folder = new_folder(tmp_path, settings)
    (folder / "mlflow_outbox.jsonl").write_text('["tags", "a", {}]\n')
    assert main(["sync", folder.name, "--storage", str(tmp_path)]) in (1, 2)
    assert main(["report", "table2", "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr()
    lines = [str(caught.value), *said.err.splitlines()]
    assert len(lines) == 3
    assert lines[0].startswith(begins)
    assert begins in lines[1]
    assert begins in lines[2]
    for part in ("sword", "fish", "me:"):
        assert part not in "".join([*lines, said.out])
    assert not [path for path in folder.rglob("*") if b"fish" in path.read_bytes()]


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://nowhere.invalid:5000", "(Name|Temporary failure|No address).*"),
    ],
)
def test_a_server_that_is_not_there_takes_one_short_line(tmp_path: Path, uri: str, why: str):
    with pytest.raises(SettingsError) as caught:
        connect(uri, "outbox", tmp_path)
    said = f"MLFLOW_TRACKING_URI: the tracking server at {uri} does not answer: "
    assert str(caught.value).startswith(said)
    assert re.fullmatch(why, str(caught.value).removeprefix(said))
    assert len(str(caught.value)) < 150


def test_the_file_of_a_database_is_shown_as_it_is():
    assert shown("sqlite:////@home/me:you@here/mlflow.db") == "sqlite:////@home/me:you@here/mlflow.db"


def test_an_error_without_words_does_not_end_the_sending(tmp_path: Path):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    heard: list[str] = []

    def silent_at_first() -> str:
        if not heard:
            heard.append("nothing")
            raise TimeoutError
        heard.append(tracker.last_error)
        return connect(uri, "outbox", tmp_path)

    tracker._connect = silent_at_first
    log_a_run(tracker)
    assert tracker.drain(120) == 0
    assert heard == ["nothing", "TimeoutError"]
    assert history(uri) == ("FINISHED", [(1, 0.1), (2, 0.2), (3, 0.3)])


def test_a_tracker_that_was_closed_sends_nothing_more_when_a_slow_server_answers(tmp_path: Path):
    """The next one may be sending already: two at once would make every run twice."""
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    asked, answered = threading.Event(), threading.Event()

    def slow() -> str:
        asked.set()
        answered.wait()
        return connect(uri, "outbox", tmp_path)

    tracker._connect = slow
    log_a_run(tracker)
    assert asked.wait(120)
    assert tracker.close(0.1) == 6
    answered.set()
    for thread in tracker._threads:
        thread.join(60)
    assert tracker.unsent() == 5  # the one that was under way
    assert Tracker(uri, "outbox", tmp_path, tmp_path).drain(120) == 0
    assert history(uri) == ("FINISHED", [(1, 0.1), (2, 0.2), (3, 0.3)])


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_that_is_made_after_its_request_was_given_up_is_there_once(tmp_path: Path, resumed: bool):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    create, given_up = tracker._client.create_run, []

    def late(*given: Any, **more: Any) -> Any:
        if not given_up:
            given_up.append((given, {**more, "start_time": int(time.time() * 1000)}))  # as the client has it
            raise TimeoutError
        made = create(*given, **more)
        if len(given_up) == 1:  # of the request before it
            given_up.append(create(*given_up[0][0], **given_up[0][1]))
        return made

    tracker._client.create_run = late
    tracker.start_run("a", "a")
    tracker.metrics("a", {"val/map": 0.1}, 1)
    if resumed:
        assert tracker.drain(120) == 0
        tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    tracker.start_run("b", "b", parent="a")
    log_a_run(tracker)
    assert tracker.drain(120) == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("outbox").experiment_id
    runs = {run.data.tags["crh_tune.run"]: run for run in client.search_runs([experiment])}
    assert len(client.search_runs([experiment])) == len(runs) == 2
    assert runs["a"].info.status == "FINISHED"
    assert runs["a"].data.metrics == {"val/map": 0.3}
    assert runs["b"].data.tags["mlflow.parentRunId"] == runs["a"].info.run_id
    assert not tracker._was_deleted("a", MlflowException("refused", error_code=INVALID_PARAMETER_VALUE))
    client.delete_run(runs["a"].info.run_id)
    assert tracker._was_deleted("a", MlflowException("refused", error_code=INVALID_PARAMETER_VALUE))


def test_an_interruption_while_the_server_is_asked_is_no_answer_of_its():
    with pytest.raises(Interrupted), answering(NOWHERE):
        raise Interrupted


def test_an_experiment_that_was_deleted_is_refused_in_one_line(tmp_path: Path):
    uri = default_tracking_uri(tmp_path)
    MlflowClient(uri).delete_experiment(connect(uri, "outbox", tmp_path))
    with pytest.raises(SettingsError, match=r"the experiment outbox at .* was deleted: restore it, or give the search"):
        connect(uri, "outbox", tmp_path)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_that_was_deleted_there_does_not_hold_up_the_others(tmp_path: Path, resumed: bool):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    tracker.start_run("a", "a")
    assert tracker.drain(120) == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("outbox").experiment_id
    [run] = client.search_runs([experiment])
    if resumed:
        client.delete_run(run.info.run_id)
        tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    else:
        tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
        tracker.tags("a", {"known": "yes"})
        while tracker.unsent():
            time.sleep(0.01)
        client.delete_run(run.info.run_id)
    tracker.metrics("a", {"val/map": 0.5}, 1)
    tracker.tags("a", {"some": "tag"})
    tracker.end_run("a", "FINISHED")
    tracker.start_run("b", "b")
    assert tracker.drain(120) == 0
    [other] = client.search_runs([experiment])
    assert other.data.tags["crh_tune.key"] == "b"


def test_names_data_and_descriptions_are_sent_in_order_also_twice(tmp_path: Path):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(NOWHERE, "outbox", tmp_path, tmp_path)
    for _ in range(2):  # as a search that is resumed does it
        tracker.start_run("a", "trial-0000")
        tracker.dataset("a", "digits", "0123456789abcdef", "crh_tune:digits", "training and validation")
        tracker.rename("a", "0.5 · M=2C")
        tracker.describe_experiment("a", "first")
    tracker.rename("a", "★ 0.5 · M=2C")
    tracker.describe_experiment("a", "last")
    tracker.close(0)
    for _ in range(2):
        assert Tracker(uri, "outbox", tmp_path, tmp_path).drain(120) == 0
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("outbox")
        [run] = client.search_runs([experiment.experiment_id])
        assert (run.info.run_name, run.data.tags["crh_tune.run"]) == ("★ 0.5 · M=2C", "trial-0000")
        assert run.data.tags["mlflow.source.name"].startswith("crh_tune ")
        [data] = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("digits", "0123456789abcdef")
        assert experiment.tags["mlflow.note.content"].startswith("last\n")
        (tmp_path / "mlflow_sent").unlink()


def a_file(tmp_path: Path, content: str = "picture") -> Path:
    path = tmp_path / "history.png"
    path.write_text(content)
    return path


def files(uri: str) -> dict[str, str]:
    """The artifacts of the one run, with their content."""
    client = MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("outbox").experiment_id])
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("refused", [True, False])
def test_files_that_are_refused_or_slow_do_not_hold_up_metrics(tmp_path: Path, monkeypatch, refused: bool):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    drawn, ready, uploads, upload = threading.Event(), threading.Event(), [], tracker._client.log_artifact

    def when_all_are_drawn() -> str:
        assert drawn.wait(120)
        return connect(uri, "outbox", tmp_path)

    def slow(*arguments: str) -> None:
        uploads.append(arguments)
        if refused and not ready.is_set():
            raise MlflowException("413: too large")
        assert ready.wait(120)
        upload(*arguments)

    tracker._connect = when_all_are_drawn
    monkeypatch.setattr(tracker._client, "log_artifact", slow)
    tracker.start_run("a", "a")
    for number in range(5):  # drawn anew: what was not sent yet need not be
        tracker.artifact("a", a_file(tmp_path, f"drawing {number}"), "figures")
    drawn.set()
    log_a_run(tracker)
    deadline = time.monotonic() + 120
    while tracker._unsent[WORDS] or not uploads or (refused and not tracker.last_error):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert history(uri) == ("FINISHED", [(1, 0.1), (2, 0.2), (3, 0.3)])
    assert (tracker.last_error == "413: too large") == refused
    assert tracker.unsent() > 0
    ready.set()
    assert tracker.drain(120) == 0
    assert files(uri) == {"figures/history.png": "drawing 4"}
    assert len(set(uploads)) == 1
    assert len(uploads) == 1 or refused


def test_a_file_is_sent_after_its_run_is_there_and_once(tmp_path: Path):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(NOWHERE, "outbox", tmp_path, tmp_path)
    tracker.start_run("a", "a")
    tracker.artifact("a", a_file(tmp_path), "figures")
    tracker.metrics("a", {"val/map": 0.1}, 1)
    assert tracker.close(0) == 3
    assert Tracker(uri, "outbox", tmp_path, tmp_path).drain(120) == 0
    assert files(uri) == {"figures/history.png": "picture"}
    assert json.loads((tmp_path / "mlflow_sent").read_text()) == {"sent": 3, "files": 3, "server": uri}
    a_file(tmp_path, "not to be sent again")
    assert Tracker(uri, "outbox", tmp_path, tmp_path).drain(120) == 0
    assert files(uri) == {"figures/history.png": "picture"}


def test_what_version_0_1_has_sent_is_not_sent_again(tmp_path: Path):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    tracker.start_run("a", "a")
    tracker.artifact("a", a_file(tmp_path))
    assert tracker.drain(120) == 0
    (tmp_path / "mlflow_sent").write_text(json.dumps({"sent": 2, "server": uri}))
    a_file(tmp_path, "not to be sent again")
    assert Tracker(uri, "outbox", tmp_path, tmp_path).drain(120) == 0
    assert files(uri) == {"history.png": "picture"}


def test_sync_waits_for_files_that_each_take_longer_than_its_patience(tmp_path: Path, monkeypatch):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    under_way, waited_for, upload, hours = threading.Event(), threading.Event(), tracker._client.log_artifact, [0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * hours[0], time=time.time, sleep=time.sleep)

    def hold_up_what_counts(held: threading.Event) -> None:
        with tracker._wake:
            held.set()
            time.sleep(0.3)

    def slow(*arguments: str) -> None:
        under_way.set()
        assert waited_for.wait(120)
        hours[0] += 1
        time.sleep(0.3)
        upload(*arguments)
        held = threading.Event()
        threading.Thread(target=hold_up_what_counts, args=(held,)).start()
        assert held.wait(120)

    monkeypatch.setattr("crh_tune.tuning.tracking.time", clock)
    monkeypatch.setattr(tracker._client, "log_artifact", slow)
    tracker.start_run("a", "a")
    for name in ("one", "two", "three"):
        (tmp_path / name).write_text("picture")
        tracker.artifact("a", tmp_path / name)
    assert under_way.wait(120)
    threading.Timer(0.3, waited_for.set).start()
    assert tracker.drain(60) == 0
    assert set(files(uri)) == {"one", "two", "three"}


def test_an_interruption_leaves_a_few_seconds_for_what_is_unsent(tmp_path: Path, monkeypatch):
    uri = default_tracking_uri(tmp_path)
    tracker = Tracker(uri, "outbox", tmp_path, tmp_path)
    sending, over = threading.Event(), threading.Event()
    monkeypatch.setattr("crh_tune.tuning.tracking.SHORT_PATIENCE", 0.1)
    monkeypatch.setattr(tracker._client, "log_batch", lambda *given, **more: (sending.set(), over.wait(120)))
    log_a_run(tracker)
    assert tracker.drain(120, sending.is_set) == 5  # the run is there, its parameters are under way
    over.set()


def test_an_experiment_of_an_earlier_version_gets_its_view_and_keeps_its_own_description(tmp_path: Path):
    uri = default_tracking_uri(tmp_path)
    client = MlflowClient(uri)
    made = client.create_experiment("outbox", tags={"mlflow.note.content": "mine"})
    assert connect(uri, "outbox", tmp_path) == made
    tags = client.get_experiment(made).tags
    assert tags["mlflow.note.content"] == "mine"
    assert json.loads(tags["mlflow.sharedViewState.crh_tune"])["selectedColumns"][0] == "metrics.`val/map`"


@pytest.mark.parametrize(
    ("uri", "command", "page"),
    [
        ("sqlite:////a b/m.db", "--backend-store-uri 'sqlite:////a b/m.db'", "http://127.0.0.1:5000/#/experiments/7/"),
        ("postgresql://there/runs", '--backend-store-uri "$MLFLOW_TRACKING_URI"', "http://127.0.0.1:5000/#/exp"),
        ("http://there:5000/", "MLflow runs at http://there:5000/", "http://there:5000/#/experiments/7/"),
    ],
)
def test_how_the_pages_are_opened(uri: str, command: str, page: str):
    assert ui_command(uri).endswith(command)
    assert ("--host 127.0.0.1" in ui_command(uri)) == (not uri.startswith("http"))
    found = runs_page(pages_at(uri), "7", "val/map", "max")
    assert found.startswith(page)
    asked = parse_qs(urlsplit(found).fragment.partition("?")[2])
    assert asked["workflowType"] == ["machine_learning"]
    assert asked["viewStateShareKey"] == ["crh_tune"]
    other = parse_qs(urlsplit(runs_page(pages_at(uri), "7", "centers/pcc", "min")).fragment.partition("?")[2])
    assert (other["orderByKey"], other["orderByAsc"]) == (["metrics.`centers/pcc`"], ["true"])
    assert "viewStateShareKey" not in other
    assert runs_page(pages_at(uri), "", "val/map", "max").endswith("/#/experiments")
