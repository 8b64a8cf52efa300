"""SIGTERM, a terminal that goes, and the death of Ray's node process: in a search, and as one setting is trained."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from benchmarks.soak import SPACE, Driver, processes_below

WAITING = """
import sys, time
from crh_tune.command import say
from crh_tune.errors import run_command
from crh_tune.search import interruptible_ray
def wait():
    with interruptible_ray("crh-tune search", lambda stop: "go on so") as stop:
        print("up", flush=True)
        while True:
            time.sleep(1)
sys.exit(run_command(wait, "crh-tune search"))
"""
IN_RAY = WAITING.replace(
    "while True:\n            time.sleep(1)", "import ray; ray.get(ray.remote(lambda: time.sleep(1000)).remote())"
)
ENDING = 120
"""Seconds: a busy machine takes its time."""
ORDERLY = "interrupted: ending in order; once more ends it at once"
TRIAL = {"dataset": {"name": "digits"}, "trial": {"bits": 16, "epochs": 100_000, "learning_rate": 2e-3}}


def until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 400) -> None:
    """Wait until a condition holds of a process that runs; one that takes too long is ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it did not come so far in {seconds:g} s")
        time.sleep(0.05)


def test_a_signal_that_comes_as_a_result_is_said_interrupts_nothing(tmp_path: Path):
    """Only where the process ends with its command: a program that calls it keeps its handlers."""
    script = """
import signal, sys
from crh_tune.errors import ENDING, all_is_done, leave, run_command
def command():
    all_is_done()
    for number in ENDING if sys.argv[1:] else ():
        signal.raise_signal(number)
        print(number.name)
def program():
    code = run_command(command, "crh-tune search")
    for number in ENDING if sys.argv[1:] else ():
        signal.raise_signal(number)
    return code
before = [signal.getsignal(number) for number in ENDING]
program() if not sys.argv[1:] else leave(program)
assert [signal.getsignal(number) for number in ENDING] == before
"""
    alone = subprocess.run([sys.executable, "-c", script, "leave"], capture_output=True, text=True, check=False)
    assert (alone.returncode, alone.stdout, alone.stderr) == (0, "SIGINT\nSIGTERM\nSIGHUP\n", "")
    called = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (called.returncode, called.stderr) == (0, "")


LOST = """
import signal, sys, time, weakref
from contextlib import nullcontext
from crh_tune.errors import run_command
from crh_tune.tuning.stopping import Stop
class Kept:
    pass
class Finalized:
    def __del__(self):
        signal.raise_signal(number)
number, place, within = int(sys.argv[1]), sys.argv[2], sys.argv[3]
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def command():
    stop = Stop()
    with stop.on_signals() if within == "search" else nullcontext():
        if place == "finalizer":
            Finalized()
        else:
            kept = Kept()
            callback = weakref.ref(kept, lambda gone: signal.raise_signal(number))
            del kept
        with stop.in_order():
            time.sleep(0.3)
            print("in order", flush=True)
        time.sleep(1000 if within == "command" else 0)
        stop.raise_if_interrupted()
        time.sleep(1000)
sys.exit(run_command(command, "crh-tune search"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", ["finalizer", "weak reference"])
@pytest.mark.parametrize("within", ["search", "command"])
def test_a_signal_that_comes_where_python_lets_nothing_out_ends_a_command_all_the_same(number, place, within):
    """Such as in the callback of a lock that an import lets go of: there it was printed, and the command went on."""
    asked = [sys.executable, "-c", LOST, str(int(number)), place, within]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=400)
    lines = [ORDERLY] * (within == "search") + ["interrupted: the same command starts it again"]
    assert (done.returncode, done.stderr.splitlines()) == (130, lines)
    assert done.stdout == ("in order\n" if within == "search" else "")


LOST_BEFORE = """
import os, signal, sys, threading, time
from contextlib import nullcontext
from crh_tune.errors import run_command
from crh_tune.tuning.stopping import Stop
together, soon, search = (eval(each) for each in sys.argv[1:4])
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
class Finalized:
    def __del__(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, together)
        for number in together:
            signal.pthread_kill(threading.main_thread().ident, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, together)
        for number in soon:
            threading.Timer(0.01, signal.pthread_kill, [threading.main_thread().ident, number]).start()
def command():
    stop = Stop()
    if search == "later":
        Finalized()
    with stop.on_signals() if search else nullcontext():
        try:
            if search != "later":
                Finalized()
                time.sleep(1000)
        finally:
            with stop.in_order():
                time.sleep(0.3)
                print("in order", flush=True)
        stop.raise_if_interrupted()
        time.sleep(1000)
sys.exit(run_command(command, "crh-tune search"))
"""


@pytest.mark.parametrize(
    ("together", "soon", "search"),
    [
        ([signal.SIGTERM, signal.SIGHUP], [], False),
        ([signal.SIGINT, signal.SIGTERM], [], False),
        ([signal.SIGTERM, signal.SIGHUP], [], True),
        ([signal.SIGTERM], [signal.SIGHUP], True),
        ([signal.SIGTERM], [], "later"),
        ([signal.SIGINT], [], "later"),
    ],
)
def test_signals_of_which_the_first_is_lost_end_a_command_in_order(together, soon, search):
    """Two come at a logout; ``later`` is a search that begins before the lost one comes again."""
    asked = [sys.executable, "-c", LOST_BEFORE, str(list(map(int, together))), str(list(map(int, soon))), repr(search)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=400)
    lines = [ORDERLY] * bool(search) + ["interrupted: the same command starts it again"]
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (130, "in order\n", lines)


RESTORED = """
import itertools, signal, sys
from crh_tune.errors import ENDING, Handled
from crh_tune.tuning.stopping import Stop
def trace(frame, event, argument):
    if frame.f_code is not code:
        return None
    if event == "line" and frame.f_lineno == line:
        passed.append(line)
        if len(passed) == time:
            for number in sent:
                signal.raise_signal(number)
    return trace
got, ways = [], set()
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: got.append(number))
before = [*map(signal.getsignal, ENDING), sys.unraisablehook]
codes = (Handled._begin.__code__, Handled._end.__code__)
places = {(code, line) for code in codes for _, _, line in code.co_lines() if line and line > code.co_firstlineno}
assert len(places) > 8
cases = [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGHUP)]
for (code, line), time, sent in itertools.product(places, (1, 2, 3), cases):
    passed, raised = [], 0
    sys.settrace(trace)
    try:
        with Stop().on_signals():
            pass
    except KeyboardInterrupt:
        raised = 1
    sys.settrace(None)
    assert [*map(signal.getsignal, ENDING), sys.unraisablehook] == before, line
    assert bool(raised + len(got)) == (len(passed) >= time), line
    assert raised + len(got) <= len(sent)
    assert Handled._late == []
    ways |= {"raised"} if raised else {"got"} if got else set()
    got.clear()
print(*sorted(ways))
"""


def test_what_a_program_had_for_signals_is_put_back_whenever_one_comes():
    """One that comes meanwhile is the search's interruption, or goes to the program's own handler."""
    done = subprocess.run([sys.executable, "-c", RESTORED], capture_output=True, text=True, check=False, timeout=400)
    assert (done.returncode, done.stdout, set(done.stderr.splitlines())) == (0, "got raised\n", {ORDERLY})


def test_a_finalizer_that_is_interrupted_after_a_search_is_the_programs_own_affair():
    script = """
import signal, sys, time
from crh_tune.tuning.stopping import Stop
class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.unraisablehook = lambda lost: print("its own hook heard of", lost.exc_type.__name__)
try:
    with Stop().on_signals():
        Finalized()
except KeyboardInterrupt:
    print("not within 50 ms")
Finalized()
time.sleep(0.3)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=400)
    assert (done.returncode, done.stderr) == (0, ORDERLY + "\n")
    assert done.stdout.splitlines()[-1] == "its own hook heard of KeyboardInterrupt"


def raylet_below(process: int) -> int | None:
    return next((pid for pid, title in processes_below(process).items() if "raylet/raylet" in title), None)


@pytest.mark.parametrize(
    ("stage", "number", "code", "said"),
    [
        pytest.param("starting", signal.SIGTERM, 130, [ORDERLY, "interrupted: go on so"], marks=pytest.mark.long),
        ("up", signal.SIGTERM, 130, [ORDERLY, "interrupted: go on so"]),
        ("in a call of Ray's", signal.SIGTERM, 130, [ORDERLY, "interrupted: go on so"]),
        (
            "raylet",
            signal.SIGKILL,
            1,
            ["crh-tune search: failed: Ray's node process (raylet) died; what was done is kept: go on so"],
        ),
    ],
)
def test_a_signal_to_a_command_with_ray_ends_it_with_one_line(tmp_path: Path, stage, number, code, said):
    """Ray's own handlers end the process with a crash report (134), or without a word once its node process is gone."""
    output = tmp_path / "output.txt"
    script = IN_RAY if stage == "in a call of Ray's" else WAITING
    with output.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=out, stderr=subprocess.STDOUT, text=True)
    until(lambda: raylet_below(process.pid) if stage == "starting" else "up" in output.read_text(), process)
    victim = raylet_below(process.pid) if stage == "raylet" else process.pid
    assert victim
    os.kill(victim, number)
    assert process.wait(ENDING) == code
    lines = output.read_text().splitlines()
    assert lines[-1] == said[-1]
    assert [line for line in lines if "SIGTERM received" in line or "Traceback" in line] == []
    assert stage == "raylet" or lines[-2] == said[0]


def gone_within(seconds: float, processes: dict[int, str]) -> None:
    """Ray's agents look every few seconds whether their node is still there."""
    end = time.monotonic() + seconds
    while left := [title for pid, title in processes.items() if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, left
        time.sleep(0.2)


def test_sigterm_to_all_processes_of_a_command_with_ray_ends_it_with_one_line(tmp_path: Path):
    """As systemd does, and ``kill -- -PGID``: Ray's processes have it first here, and took the driver with them."""
    output = tmp_path / "output.txt"
    with output.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=out, stderr=subprocess.STDOUT, text=True)
    until(lambda: "up" in output.read_text(), process)
    below = processes_below(process.pid)
    for each in below:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGTERM)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENDING) == 130
    assert output.read_text().splitlines() == ["up", ORDERLY, "interrupted: go on so"]
    gone_within(ENDING, below)


CONTROLLED = """
import os, signal
os.open(os.ttyname(0), os.O_RDWR)  # the first that its session opens
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may be run with nohup
"""


class Terminal:
    """A terminal whose programs are started as its session's first, and what they have printed."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLED + script, *arguments],
            start_new_session=True, stdin=theirs, stdout=theirs, stderr=theirs, text=True,
        )  # fmt: skip
        os.close(theirs)
        self.printed = ""

    def has(self, text: str) -> bool:
        """Reads on; whether the text was printed by then."""
        if select.select([self._ours], [], [], 0)[0]:
            self.printed += os.read(self._ours, 10_000).decode(errors="replace")
        return text in self.printed

    def go(self) -> None:
        """As when a window is closed, or an ssh connection is lost: what is in the foreground gets SIGHUP."""
        os.close(self._ours)


KEPT = """
import sys
from pathlib import Path
def kept(line):
    with Path(sys.argv[1]).open("a") as file:
        print(line, file=file)
"""


def test_a_terminal_that_goes_ends_a_command_with_ray_in_order(tmp_path: Path):
    """SIGHUP comes to Ray's processes, too, and nothing can be printed any more."""
    script = KEPT + WAITING.replace("sys.exit(run_command(", "code = run_command(").replace('search"))', 'search")')
    script = script.replace('lambda stop: "go on so"', 'lambda stop: kept("go on") or "go on so"')
    terminal = Terminal(script + "kept(code)\nsys.exit(code)\n", str(tmp_path / "kept.txt"))
    until(lambda: terminal.has("up"), terminal.process)
    below = processes_below(terminal.process.pid)
    terminal.go()
    assert terminal.process.wait(ENDING) == 130
    assert (tmp_path / "kept.txt").read_text() == "go on\n130\n"
    gone_within(ENDING, below)


def test_work_that_has_left_its_terminal_goes_on_when_that_goes(tmp_path: Path):
    """As with ``disown`` and ``nohup``: there is no SIGHUP, and what it prints is lost."""
    script = f"""{KEPT}
import signal, time
from rich.console import Console
from crh_tune.command import say
from crh_tune.errors import Handled, terminable
from crh_tune.tuning.live import LiveView
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with terminable(), Handled(print, signal.SIGHUP), LiveView(Console(file=sys.stdout)) as view:
    view("up")
    while Path(sys.argv[1]).exists():
        time.sleep(0.01)
    view("lost")
    say("lost")
    kept("done")
kept("left")
"""
    (tmp_path / "kept.txt").touch()
    terminal = Terminal(script, str(tmp_path / "kept.txt"))
    until(lambda: terminal.has("up"), terminal.process)
    terminal.go()
    (tmp_path / "kept.txt").unlink()
    assert terminal.process.wait(ENDING) == 0
    assert (tmp_path / "kept.txt").read_text() == "done\nleft\n"


def test_progress_that_nobody_reads_any_more_ends_a_search_in_order(tmp_path: Path):
    """As in ``crh-tune search | head -1``."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.replace("print(", "while True: say(").replace(", flush=True)", ")")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "up\n"
    process.stdout.close()
    assert process.wait(ENDING) == 130
    assert process.stderr.read() == "interrupted: go on so\n"


def test_a_setting_that_is_trained_ends_with_one_line(tmp_path: Path):
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(TRIAL))
    driver = Driver(["train", str(tmp_path / "trial.yaml"), "--to", str(tmp_path / "to")], tmp_path / "output.txt")
    until(lambda: any(line.startswith("epoch") for line in driver.lines), driver.process)
    driver.process.send_signal(signal.SIGTERM)
    assert driver.process.wait(ENDING) == 130
    assert driver.lines[-1] == "interrupted: the same command starts it again"


@pytest.mark.long
def test_a_setting_that_a_worker_group_trains_ends_with_one_line(tmp_path: Path):
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump({**TRIAL, "scaling": {"workers_per_trial": 2}}))
    driver = Driver(["train", str(tmp_path / "trial.yaml"), "--to", str(tmp_path / "to")], tmp_path / "output.txt")
    until(lambda: any("TrainWorker" in title for title in processes_below(driver.process.pid).values()), driver.process)
    below = processes_below(driver.process.pid)
    driver.process.send_signal(signal.SIGTERM)
    assert driver.process.wait(ENDING) == 130
    assert driver.lines[-1] == "interrupted: the same command starts it again"
    gone_within(ENDING, below)


@pytest.mark.long
def test_sigterm_in_each_stage_of_a_search_ends_it_in_order_and_it_goes_on(tmp_path: Path):
    """Each process of the search is terminated one stage further than the one before; the last one finishes.

    Every second time, all its processes are terminated, in any order.
    """
    space = {**SPACE, "trial": {**SPACE["trial"], "epochs": 20}, "budget": {"trials": 2, "concurrent": 1}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**space, "scheduler": {}}))
    arguments = ["search", str(tmp_path / "space.yaml"), "--storage", str(tmp_path)]
    go_on = f"interrupted: resume with crh-tune search --resume soak-001 --storage {tmp_path}"
    for number, stage in enumerate(["search soak-001", "trial-0000", "confirming", "retraining", "encoding"]):
        driver = Driver(arguments, tmp_path / f"output-{number}.txt")
        until(lambda stage=stage, driver=driver: any(stage in line for line in driver.lines), driver.process)
        for each in {driver.process.pid, *(processes_below(driver.process.pid) if number % 2 else ())}:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGTERM)
        code = driver.process.wait(ENDING)
        if stage != "encoding" or code:  # it may have ended by then
            assert (code, driver.lines[-2:]) == (130, [ORDERLY, go_on]), driver.lines
        arguments = ["search", "--resume", "soak-001", "--storage", str(tmp_path)]
    last = Driver(arguments, tmp_path / "output-last.txt")
    assert last.process.wait(400) == 0
    assert last.lines[-1] == "finished"
