"""What ends a command early, and how it becomes one line. Mistakes need nothing else imported than this."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, ClassVar, NoReturn, TextIO

INTERRUPTED_CODE = 130
"""The exit code of a command that was interrupted."""
UNREAD_CODE = 141
"""The exit code of a command whose output nobody reads any more (``| head``), as shells have it for other programs."""
AGAIN = "the same command starts it again"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command in order: Ctrl-C, what ends a service, and a terminal or connection that is gone."""
_LEAVES, _ALL_DONE = threading.Event(), threading.Event()
"""Whether the process ends with its command, and whether its command has only to say what it did."""
_AGAIN_SECONDS = 0.05
"""How soon an interruption that was lost comes again."""


class Mistake(ValueError):
    """What a user can put right: one line that says what is wrong, where, and what would be right."""


class DataError(Mistake):
    """Data that cannot be used as it is: one line that says what is wrong, where, and what would be right."""


class SearchFailed(RuntimeError):
    """A search without a result, and why: one line."""


class Interrupted(KeyboardInterrupt):
    """The search was interrupted and can be resumed. It is no error that one may catch.

    A KeyboardInterrupt, since nothing else that a signal's handler raises ends ``ray.get`` and ``ray.wait``: they would
    go on waiting, and then break.
    """


def problem(where: str | Path, what: str) -> str:
    """A problem as one line, even where a file name holds line breaks or bytes that are no UTF-8."""
    return printable(f"{where}: {what}")


def printable(text: str) -> str:
    """A text as one line that any terminal takes: line breaks and bytes that are no UTF-8 are written out."""
    line = text.encode(errors="backslashreplace").decode()
    return line.replace("\n", "\\n").replace("\r", "\\r")


def drop_output(stream: TextIO) -> None:
    """Send to nowhere what is still printed to a stream: what read it has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def unless_hung_up() -> Iterator[None]:
    """Within it, what is printed to a terminal that has gone is dropped, and what is printed there later."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        _drop_hung_up()


def _drop_hung_up() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            os.write(stream.fileno(), b"")
        except OSError as error:
            if error.errno == errno.EIO:  # as a terminal that has gone answers
                drop_output(stream)


def counted(count: float, name: str, several: str | None = None) -> str:
    """``1 image``, ``2 images``, ``0.5 GPUs``; ``several`` where that is not the name with an s."""
    shown = f"{count:g}" if isinstance(count, float) else count
    return f"{shown} {name if count == 1 else several or name + 's'}"


def leave(program: Callable[[], int]) -> NoReturn:
    """Run a program and end the process with its exit code: a signal that comes then has nothing left to interrupt."""
    _LEAVES.set()
    code = program()
    all_is_done()
    sys.exit(code)


def all_is_done() -> None:
    """Only the result is left to be said: where the process ends with its command, nothing is left to interrupt."""
    if _LEAVES.is_set():
        _ALL_DONE.set()
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)


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
    except KeyboardInterrupt as error:
        complain(f"interrupted: {str(error) or AGAIN}")
        return INTERRUPTED_CODE
    except Mistake as error:
        complain(problem(name, str(error)))
        return 2
    except SearchFailed as error:
        complain(problem(name, f"failed: {error}"))
        return 1
    except BrokenPipeError:
        drop_output(sys.stdout)
        return UNREAD_CODE
    except Exception as error:
        return _unforeseen(error, name)
    return 0


def _unforeseen(error: Exception, name: str) -> int:
    """Say what a command failed with that it does not know; its exit code."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # a name that was given, wherever it went
        complain(problem(name, f"{error.filename}: {error.strerror}"))
        return 2
    with unless_hung_up():
        traceback.print_exception(error)  # where it comes from matters too
    complain(f"{name}: failed: {type(error).__name__}: {error}")
    return 1


def complain(line: str) -> None:
    """A last line on standard error, red on a terminal."""
    red = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    try:
        print(f"\033[31m{line}\033[0m" if red else line, file=sys.stderr)
    except OSError:  # nobody reads it any more
        drop_output(sys.stderr)


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, SIGTERM and SIGHUP raise Interrupted, as Ctrl-C raises KeyboardInterrupt."""

    def interrupt(number: int, frame: Any) -> None:
        raise Interrupted

    with Handled(interrupt, signal.SIGTERM, signal.SIGHUP):
        yield


class Handled:
    """Within it, signals go to a handler, but SIGHUP not where it is ignored, as ``nohup`` has it.

    When a terminal goes, SIGHUP comes from the system and from the shell: the second one is ignored.

    What the handler raises where Python lets nothing out, in a finalizer or in the callback of a weak reference (every
    import has one), is raised again, by a new SIGTERM: that must be among the signals.
    """

    _repeats = False
    """Whether the next SIGTERM repeats a signal."""
    _late: ClassVar[list[int]] = []
    """The signals that came while handlers were put back."""

    def __init__(self, handler: Callable[[int, Any], None], *numbers: int) -> None:
        self._handler, self._numbers = handler, numbers
        self._earlier: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        self._lock, self._over = threading.Lock(), False

    @classmethod
    def is_repeated(cls, number: int) -> bool:
        """Whether a signal only repeats one whose interruption was lost. To be asked once for each signal."""
        repeated = cls._repeats and number == signal.SIGTERM
        cls._repeats = cls._repeats and not repeated
        return repeated

    def __enter__(self) -> None:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        self._end()
        late = Handled._late[:1]  # one interruption is enough
        Handled._late.clear()
        for number in late:
            signal.raise_signal(number)

    def _begin(self) -> None:
        sys.unraisablehook = self._unraisable
        for number in self._numbers:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._earlier[number] = signal.getsignal(number)
                signal.signal(number, self._handle)

    def _end(self) -> None:
        with self._lock:
            self._over = True
        sys.unraisablehook = self._hook
        for number, earlier in reversed(self._earlier.items()):  # SIGINT last: Python's own handler raises at once
            if not _ALL_DONE.is_set():
                signal.signal(number, earlier)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        running = _running(frame)
        leaves = frame is not None and frame.f_code is Handled.__exit__.__code__ and frame.f_locals["self"] is self
        if leaves or Handled._end.__code__ in running:  # what is put back there is put back to its end
            if not Handled.is_repeated(number):
                Handled._late.append(number)
            return
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
            _drop_hung_up()
        try:
            self._handler(number, frame)
        except KeyboardInterrupt:
            # in the hook it would be lost, too, and that repeats an earlier one already
            if Handled._unraisable.__code__ not in running:
                raise

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        if not (isinstance(lost.exc_type, type) and issubclass(lost.exc_type, KeyboardInterrupt)):
            self._hook(lost)
            return
        try:
            self._come_again()
        except KeyboardInterrupt:  # from Python's own handler of Ctrl-C
            self._come_again()

    def _come_again(self) -> None:
        timer = threading.Timer(_AGAIN_SECONDS, self._again)
        timer.daemon = True
        timer.start()

    def _again(self) -> None:
        with self._lock:
            if not self._over:
                Handled._repeats = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _running(frame: FrameType | None) -> set[CodeType]:
    """The code of a frame and of all that called it."""
    found = set()
    while frame is not None:
        found.add(frame.f_code)
        frame = frame.f_back
    return found
