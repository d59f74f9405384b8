"""SIGINT, SIGTERM and SIGHUP: a command stops within seconds wherever it is, and says how to go on.

The signal raises KeyboardInterrupt in the main thread. Where Python swallows that (in callbacks of the
garbage collector, say) it is raised again, and where no Python runs (in compiled loops) a thread
ends the process after `GRACE` seconds. It may: files are whole or absent at any moment. A second
signal ends the process at once.
"""

import _thread
import contextlib
import ctypes
import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

GRACE = 8.0  # seconds
_HANGUP = getattr(signal, "SIGHUP", None)  # of a terminal that is closed
SIGNALS = tuple(n for n in (signal.SIGINT, signal.SIGTERM, _HANGUP) if n is not None)


def that_end() -> list[int]:
    """The signals that end this process: all but that of a closed terminal after `nohup`."""
    ignored = _HANGUP is not None and signal.getsignal(_HANGUP) == signal.SIG_IGN
    return [number for number in SIGNALS if not (ignored and number == _HANGUP)]


class Stop:
    """What is known of a signal that ends the command.

    Attributes:
        signal: the first one that came.
        hint: what to say, with the command that goes on in its last line.
        said: whether it was.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.hint: Callable[[], str] = lambda: f"interrupted\n{command_line()}"
        self.said = False

    @property
    def code(self) -> int:
        """The exit code: 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + (self.signal or signal.SIGINT)


def signal_name(number: int) -> str:
    """What a signal is called."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def is_asked_for_privacy() -> bool:
    """Whether this command has the option, before anything of it is read."""
    return "--private" in sys.argv


def command_line(*more: str) -> str:
    """This command, for a shell, and the further options that it does not have yet.

    With --private it is named alone: its options are names of files and columns.
    """
    given = [*sys.argv[1:2], "--private", "..."] if is_asked_for_privacy() else sys.argv[1:]
    return shlex.join(["bilevel", *given, *(option for option in more if option not in given)])


@contextlib.contextmanager
def stoppable(stop: Stop) -> Iterator[None]:
    """Signals stop the block; only in the main thread of a process, and nowhere within another."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    main = threading.get_ident()

    def swallowed(unraisable: Any) -> None:
        if stop.signal is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not here: it would be swallowed again.
            in_background(raise_again, main, 0.03)
        else:
            hook(unraisable)

    before = {number: signal.signal(number, _handler(stop)) for number in that_end()}
    hook, sys.unraisablehook = sys.unraisablehook, swallowed
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    in_background(_watch, stop, reader)
    try:
        yield
    finally:
        if stop.signal is None:  # otherwise the thread sees to it that the process ends
            signal.set_wakeup_fd(old)
            os.close(writer)
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _handler(stop: Stop) -> Callable[[int, Any], None]:
    def handle(number: int, _: Any) -> None:
        stop.signal = stop.signal or number
        raise KeyboardInterrupt

    return handle


def in_background(work: Callable[..., None], *arguments: Any) -> None:
    """Run it in a thread that nobody waits for.

    `threading.Thread.start` waits until the thread has begun: for ever, if it gets no memory for that.
    """

    def run() -> None:
        with contextlib.suppress(MemoryError):
            work(*arguments)

    _thread.start_new_thread(run, ())


def raise_again(thread: int, seconds: float) -> None:
    """KeyboardInterrupt in a thread, at its next step after so many seconds."""
    time.sleep(seconds)
    error = ctypes.py_object(KeyboardInterrupt)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)


def _watch(stop: Stop, reader: int) -> None:
    """End the process `GRACE` seconds after the first signal, and at once after the second."""
    while not (number := _next(reader)):
        if number is None:
            os.close(reader)
            return
    stop.signal = stop.signal or number
    ready = True
    while ready:
        ready = select.select([reader], [], [], GRACE)[0]
        if not ready or _next(reader):
            break
    with contextlib.suppress(Exception):
        os.write(2, f"\nbilevel: stopped at once. {stop.hint()}\n".encode(errors="replace"))
    os._exit(stop.code)


def _next(reader: int) -> int | None:
    """The next signal of ours; 0 for another, None at the end."""
    got = os.read(reader, 1)
    if not got:
        return None
    return got[0] if got[0] in SIGNALS else 0
