"""A process that has imported everything, and forks a child for each command.

With the shim of `shim.c` loaded before the C library, the k-th call of the child that changes a file
below a folder kills it, or fails. Lines of JSON come in and go out:

    {"arguments": [...], "folder": "/...", "at": k, "mode": 1, "cpu": s, "signal": n,
     "memory": bytes, "allocation": k, "known": true, "warm": true}
    {"code": 0, "calls": 57, "stderr": "..."}   code is -9 for a child that was killed

With "warm" the command runs in a child that has run others before it, which is ten times as fast, and
also meets calls that fail; with "known" what was learned once is taken from memory.
"""

import contextlib
import ctypes
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
LEAST = 1 << 14  # bytes of an allocation of a command that is counted
MOST = 250  # commands of one warm child
_known: list[Any] = []  # what the command learned that was to be remembered


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
    warm = WarmChild()
    for line in sys.stdin:
        answers.write(json.dumps(serve(json.loads(line), warm)) + "\n")
        answers.flush()


def remember(ask: dict[str, Any]) -> dict[str, Any]:
    """Run the command here, so that children can take what it has learned: faults are about files.

    Not for methods that use JAX, which a fork does not survive.
    """
    from bilevel.cli import _weigh_work, app

    learn = _weigh_work.learn_weights

    def learned(*arguments: Any, **options: Any) -> Any:
        _known.append(learn(*arguments, **options))
        return _known[-1]

    _known.clear()
    _weigh_work.learn_weights = learned
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        app([*ask["arguments"]])
    _weigh_work.learn_weights = learn
    return {"code": 0 if len(_known) == 1 else 1}


class WarmChild:
    """A child that runs one command after the other, and its successors."""

    def __init__(self) -> None:
        self._process, self._line, self._done = 0, socket.socket(), MOST

    def run(self, ask: dict[str, Any]) -> dict[str, Any]:
        """What became of a command; one that ends or hangs the child is told by its code."""
        if self._done >= MOST:
            self._start()
        self._done += 1
        with tempfile.TemporaryFile("w+") as said:
            socket.send_fds(self._line, [json.dumps(ask).encode()], [said.fileno()])
            code, calls = None, 0
            with contextlib.suppress(TimeoutError):
                answer = self._line.recv(64)
                code, calls = map(int, answer.split()) if answer else (self._end(), 0)
            if code is None:
                os.kill(self._process, signal.SIGKILL)
                self._end()
            said.seek(0)
            words = said.read()[-4000:]
        return {"code": code, "calls": calls, "stderr": words}

    def _start(self) -> None:
        if self._process:
            self._line.close()
            self._end()
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.settimeout(LIMIT)
        self._done, self._process = 0, os.fork()
        if self._process == 0:
            self._line.close()
            run_many(theirs)
        theirs.close()

    def _end(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        self._process, self._done = 0, MOST
        return code or 70  # which no command has


def run_many(line: socket.socket) -> None:
    """In the warm child: commands, until nobody asks. Those that fork do not."""
    import bilevel.cli

    bilevel.cli.run_apart = lambda: None
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    while True:
        request, handles, *_ = socket.recv_fds(line, 1 << 16, 1)
        if not request:
            os._exit(0)
        os.dup2(handles[0], 2)
        os.close(handles[0])
        ask = json.loads(request)
        sys.argv = ["bilevel", *ask["arguments"]]
        disarm = arm(ask)
        code = run_command()
        calls = disarm()
        sys.stderr.flush()
        line.send(f"{code} {calls}".encode())


def arm(ask: dict[str, Any]) -> Callable[[], int]:
    """Arm the shim, if it is there; what is returned disarms it, and tells how much it has counted."""
    if "LD_PRELOAD" not in os.environ or not ("folder" in ask or "allocation" in ask):
        return lambda: 0
    shim = ctypes.CDLL(None)
    shim.arm(
        ask.get("folder", "/none").encode(),
        ctypes.c_long(ask.get("at", -1)),
        ask.get("mode", COUNT),
    )
    shim.arm_allocations(ctypes.c_long(ask.get("allocation", -1)), ctypes.c_long(LEAST))

    def disarm() -> int:
        counted = shim.counted_allocations if "allocation" in ask else shim.counted
        counted.restype = ctypes.c_long
        number = counted()
        shim.arm_allocations(ctypes.c_long(-1), ctypes.c_long(1 << 62))
        shim.arm(b"/none", ctypes.c_long(-1), -1)
        return number

    return disarm


def run_command() -> int:
    """The exit code of the command in `sys.argv`; 70, and a traceback, if it lets an error through."""
    from bilevel.cli import main as command

    try:
        command()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    return 70


def serve(ask: dict[str, Any], warm: WarmChild) -> dict[str, Any]:
    """Fork, run, wait."""
    if ask.get("remember"):
        return remember(ask)
    if ask.get("warm"):
        return warm.run(ask)
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as counts:
        child = os.fork()
        if child == 0:
            run(ask, said.fileno(), counts.fileno())
        began, sent, code = time.monotonic(), False, None
        used = resource.getrusage(resource.RUSAGE_SELF)
        while code is None and time.monotonic() - began < LIMIT:
            found, status, used = os.wait4(child, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
            elif not sent and "cpu" in ask and ask["cpu"] < cpu_seconds(child):
                os.kill(child, ask.get("signal", signal.SIGKILL))
                sent = True
            else:
                time.sleep(0.002)
        if code is None:
            os.kill(child, signal.SIGKILL)
            used = os.wait4(child, 0)[2]
        said.seek(0)
        counts.seek(0)
        return {
            "code": code,
            "calls": int(counts.read() or 0),
            "stderr": said.read()[-4000:],
            "cpu": used.ru_utime + used.ru_stime,
        }


def cpu_seconds(process: int) -> float:
    """The seconds of the processor that a process of ours has had: of Linux, its clock's number."""
    return time.clock_gettime(~process << 3 | 2)


def run(ask: dict[str, Any], said: int, counts: int) -> None:
    """In the child: the command, with the shim armed."""
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.argv = ["bilevel", *ask["arguments"]]
    if ask.get("known") and _known:
        from bilevel.cli import _weigh_work

        _weigh_work.learn_weights = lambda *_, **__: _known[0]
    disarm = arm(ask)
    if "memory" in ask:
        leave(ask["memory"])
    code = run_command()
    with contextlib.suppress(Exception):
        os.write(counts, str(disarm()).encode())
        sys.stderr.flush()
    os._exit(code)


def leave(memory: int) -> None:
    """No more memory than so many bytes, nor what the allocator has of earlier commands."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (size, most))
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    for power in range(28, 11, -1):
        while malloc(1 << power):
            pass
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))


if __name__ == "__main__":
    main()
