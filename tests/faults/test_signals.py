"""Signals that end a command, wherever they meet it: exit codes, the last line, ten seconds."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bilevel import cli
from bilevel.cli._activity import Activity
from bilevel.cli._lock import hold
from bilevel.cli._signals import Stop, in_background, stoppable

START = """
import sys
from bilevel.cli import _app, main
from bilevel.cli import app

@app.command(name="work")
def work(kind: str) -> None:
    with _app.failures(lambda: "interrupted; go on:\\nbilevel work x"):
        print("ready", flush=True)
        {body}

sys.argv = ["bilevel", "work", "x"]
main()
"""
QUICK = {"a destructor"}
BODIES = {
    "Python": "while True: pass",
    "a sleep": "import time; time.sleep(100)",
    "a callback of the garbage collector": (
        "import gc, time; gc.callbacks.append(lambda *_: time.sleep(0.05))\n"
        "        while True: gc.collect(); time.sleep(0.05)"
    ),
    "a destructor": (
        "import time\n"
        "        class Slow:\n"
        "            def __del__(self): time.sleep(0.05)\n"
        "        while True: Slow(); time.sleep(0.05)"
    ),
    "an error that hides it": (
        "import time\n"
        "        try: time.sleep(100)\n"
        "        except BaseException as e: raise RuntimeError('XLA') from e"
    ),
}


def start(body: str) -> subprocess.Popen:
    code = START.replace("{body}", body)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BODIES],
)
def test_a_signal_ends_the_command_and_the_last_line_goes_on(name):
    number = signal.SIGTERM if "hides" in name else signal.SIGINT
    process = start(BODIES[name])
    time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1] == "bilevel work x"
    assert "Traceback" not in said


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed_ends_the_command_unless_nohup_was_asked(nohup):
    """Nothing can be printed any more, and the exit code is that of the signal."""
    how = "SIG_IGN" if nohup else "SIG_DFL"  # whatever these tests were started with
    code = f"import signal; signal.signal(signal.SIGHUP, signal.{how})\n"
    code += START.replace("{body}", f"import time; time.sleep({0.2 if nohup else 100})")
    terminal, theirs = os.openpty()
    take = f"import fcntl, termios; fcntl.ioctl({theirs}, termios.TIOCSCTTY, 0)\n"
    with subprocess.Popen(
        [sys.executable, "-c", take + code],
        stdout=subprocess.PIPE,
        stderr=theirs,
        pass_fds=[theirs],
        start_new_session=True,
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.close(terminal)
        assert process.wait(60) == (0 if nohup else 129)


def test_a_signal_as_the_command_begins_is_told_in_words(monkeypatch, capsys):
    """As handlers were set it was a traceback, which a signal at a random moment found."""

    def begins(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "stoppable", begins)
    monkeypatch.setattr(cli, "stop", Stop())  # another test of this process may have stopped
    monkeypatch.setattr(sys, "argv", ["bilevel", "audit", "x.csv"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "bilevel audit x.csv"


def test_no_command_waits_for_a_thread_that_gets_no_memory_to_begin(tmp_path, monkeypatch, capfd):
    """`Thread.start` waits for it for ever, which an allocation that failed has found."""

    def waits(_):
        pytest.fail("waits for the thread")

    monkeypatch.setattr(threading.Thread, "start", waits)
    with hold(tmp_path), stoppable(Stop()), Activity("a", visible=True):
        assert (tmp_path / "lock").exists()
    assert list(tmp_path.iterdir()) == []
    done = threading.Lock()
    done.acquire()

    def lacks():
        done.release()
        raise MemoryError

    in_background(lacks)
    assert done.acquire(timeout=60)
    assert "MemoryError" not in capfd.readouterr().err


@pytest.mark.slow  # quick: signals that Python sees
def test_where_no_python_runs_the_process_ends_after_some_seconds_or_a_second_signal():
    # A mutex that is never given back: pthread_mutex_lock starts again after a signal.
    native = (
        "import ctypes; c = ctypes.CDLL(None); m = ctypes.create_string_buffer(64)\n"
        "        c.pthread_mutex_lock(m); c.pthread_mutex_lock(m)"
    )
    for signals in (1, 2):
        process = start(native)
        for _ in range(signals):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert said.splitlines()[-1] == "bilevel work x"
        assert "stopped at once" in said


APART = """
import os, sys, time
from bilevel import cli
def work():
    print("child", os.getpid(), flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    print("done", flush=True)
cli.app = work
sys.argv = ["bilevel", "score", sys.argv[1]]
cli.main()
"""


def state_of(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_that_is_stopped_waits_with_the_process_that_it_started(tmp_path):
    """Ctrl-Z stopped only the one that waits for it, and what the other one printed met the shell."""
    gate = tmp_path / "go on"
    command = [sys.executable, "-c", APART.replace("sys.argv[2]", repr(str(gate))), "run"]
    # In a group of its own: Linux stops none whose parents are all in it or in another session.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline().split()[1])
        process.send_signal(signal.SIGTSTP)
        both = (process.pid, child)
        while [state_of(one) for one in both] != ["T", "T"]:
            assert process.poll() is None
            time.sleep(0.01)
        gate.touch()
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "done\n"
        assert process.wait(60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="has terminals of another kind")
def test_a_terminal_that_stops_what_is_in_the_background_stops_no_command():
    """After `stty tostop`, `bilevel score` waited for ever for a process that was not to print."""
    code = (
        "import fcntl, termios\n"
        "fcntl.ioctl(1, termios.TIOCSCTTY, 0)\n"
        "settings = termios.tcgetattr(1)\n"
        "settings[3] |= termios.TOSTOP\n"
        "termios.tcsetattr(1, termios.TCSANOW, settings)\n"
    )
    command = [sys.executable, "-c", code + APART.replace("sys.argv[2]", "sys.executable"), "run"]
    terminal, theirs = os.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # at the end of what is said
            while select.select([terminal], [], [], 60)[0] and (more := os.read(terminal, 4096)):
                said += more
        os.close(terminal)
        process.kill()
    assert said.split()[::2] == [b"child", b"done"]
