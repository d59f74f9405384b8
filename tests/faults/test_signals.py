"""SIGINT and SIGTERM, wherever they meet the command: exit codes, the last line, ten seconds."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bilevel import cli
from bilevel.cli._signals import Stop

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
