"""A process that has imported everything, and forks a child for each command.

With the shim of `shim.c` loaded before the C library, the k-th call of the child that changes a file
below a folder kills it, or fails. Lines of JSON come in and go out:

    {"arguments": [...], "folder": "/...", "at": k, "mode": 1, "seconds": s, "signal": n,
     "memory": bytes}
    {"code": 0, "calls": 57, "stderr": "..."}   code is -9 for a child that was killed
"""

import contextlib
import ctypes
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COUNT, KILL, FULL, BROKEN, SHORT, TORN, INTERRUPTED = range(7)
MODES = {
    "killed at the call": KILL,
    "killed within a write": TORN,
    "ENOSPC": FULL,
    "EIO": BROKEN,
    "a short write": SHORT,
    "EINTR": INTERRUPTED,
}
LIMIT = 300.0  # seconds of one command


def build_shim(folder: Path) -> Path | None:
    """The shim, compiled; None where there is no compiler for it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    target = folder / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", target, HERE / "shim.c", "-ldl"]
    done = subprocess.run([str(x) for x in command], check=False, capture_output=True)
    return target if done.returncode == 0 else None


class Server:
    """Starts the process, and asks it to run commands."""

    def __init__(self, shim: Path | None = None, *modules: str):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._compiled = tempfile.TemporaryDirectory()  # so that each child need not compile
        environment["JAX_COMPILATION_CACHE_DIR"] = self._compiled.name
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "server.py"), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        self._process.wait()
        self._compiled.cleanup()
        self._process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]

    def run(self, *arguments: str | Path, **how: Any) -> dict[str, Any]:
        """What became of a command."""
        ask = {"arguments": [str(x) for x in arguments], **how}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(ask, default=str) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def main() -> None:
    """Serve until the input ends."""
    import bilevel.cli._commands_work
    import bilevel.cli._weigh_work
    import bilevel.reweighting._report.charts
    import bilevel.reweighting._weights.candidates

    for module in sys.argv[1:]:
        __import__(module)
    bilevel.reweighting._report.charts  # noqa: B018
    from bilevel._reading import client
    from bilevel.reweighting._inputs.saved import model_types

    model_types()
    client._SERVER._start()  # all children ask the same process to read
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        answers.write(json.dumps(serve(json.loads(line))) + "\n")
        answers.flush()


def remember(ask: dict[str, Any]) -> dict[str, Any]:
    """Run the command here, and let the children take what it has learned: faults are about files.

    Not for methods that use JAX, which a fork does not survive.
    """
    from bilevel.cli import _weigh_work, app

    learn, known = _weigh_work.learn_weights, []

    def learned(*arguments: Any, **options: Any) -> Any:
        if options["method"] != "auto":
            return learn(*arguments, **options)
        if not known:
            known.append(learn(*arguments, **options))
        return known[0]

    _weigh_work.learn_weights = learned
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        app([*ask["arguments"]])
    return {"code": 0 if known else 1}


def serve(ask: dict[str, Any]) -> dict[str, Any]:
    """Fork, run, wait."""
    if ask.get("remember"):
        return remember(ask)
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as counts:
        child = os.fork()
        if child == 0:
            run(ask, said.fileno(), counts.fileno())
        began, sent, code = time.monotonic(), False, None
        while code is None and time.monotonic() - began < LIMIT:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
            elif not sent and ask.get("seconds", LIMIT) < time.monotonic() - began:
                os.kill(child, ask.get("signal", signal.SIGKILL))
                sent = True
            else:
                time.sleep(0.002)
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        said.seek(0)
        counts.seek(0)
        return {
            "code": code,
            "calls": int(counts.read() or 0),
            "stderr": said.read()[-4000:],
            "seconds": time.monotonic() - began,
        }


def run(ask: dict[str, Any], said: int, counts: int) -> None:
    """In the child: the command, with the shim armed."""
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.argv = ["bilevel", *ask["arguments"]]
    from bilevel.cli import main as command

    shim = None
    if "folder" in ask and "LD_PRELOAD" in os.environ:
        shim = ctypes.CDLL(None)
        shim.arm(ask["folder"].encode(), ctypes.c_long(ask.get("at", -1)), ask.get("mode", COUNT))
    code = 70
    if "memory" in ask:  # so many bytes more than there are now
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + ask["memory"],) * 2)
    try:
        command()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(Exception):
        if shim is not None:
            shim.counted.restype = ctypes.c_long
            number = shim.counted()
            shim.arm(b"/none", ctypes.c_long(-1), -1)
            os.write(counts, str(number).encode())
        sys.stderr.flush()
    os._exit(int(code))


if __name__ == "__main__":
    main()
