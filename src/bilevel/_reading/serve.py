"""A process that reads files: it waits for requests, and forks a process for each of them.

Started by `client.py`. It has imported all that a reader needs, so a fork is ready at once; and it has
computed nothing, so that a fork loses nothing.
"""

import contextlib
import errno
import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import sys
import termios
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import formats, parquet
from .tables import RefusedError

LONGEST = 1 << 17  # bytes of a request
LOOK, IDLE = 10.0, 120.0  # seconds between two looks at a process, and those it may do nothing
TOO_LITTLE = ("launch worker thread", "Cannot allocate memory")  # what Arrow says without memory


def main(handle: int) -> None:
    """Serve until nobody is left who could ask."""
    parquet.mapped = True  # what may end the processes that read is told by their exit codes
    control = socket.socket(fileno=handle)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    waiting: dict[int, socket.socket | None] = {}  # who asked, by process
    seen: dict[int, tuple[Any, float]] = {}  # what a process had done, and since when
    pipes: dict[int, int] = {}  # what a process has written to, if it is one
    with selectors.DefaultSelector() as events:
        events.register(control, selectors.EVENT_READ)
        events.register(reader, selectors.EVENT_READ)
        while True:
            ready = events.select(LOOK if waiting else None)
            _end_idle(waiting, seen, pipes)
            for key, _ in ready:
                if key.fileobj is control:
                    request, handles, *_ = socket.recv_fds(control, LONGEST, 4)
                    if not request:
                        _end(waiting)
                        return
                    reply, target, *pipe = socket.socket(fileno=handles[0]), *handles[1:]
                    asked = json.loads(request)
                    formats.prepare(asked["format"])
                    child = os.fork()
                    if child == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        _read(asked, target, pipe[0] if pipe else None)
                    for handle in (target, *pipe[:1]):
                        os.close(handle)
                    waiting[child] = reply
                    if pipe:
                        pipes[child] = pipe[1]
                    events.register(reply, selectors.EVENT_READ, child)
                elif key.fileobj == reader:
                    with contextlib.suppress(BlockingIOError):
                        os.read(reader, 4096)
                    for child, status in _ended():
                        if child in pipes:
                            os.close(pipes.pop(child))
                        if reply := waiting.pop(child):
                            events.unregister(reply)
                            with contextlib.suppress(OSError):
                                reply.send(json.dumps(status).encode())
                            reply.close()
                elif waiting.get(key.data) is key.fileobj:  # who asked waits no more
                    events.unregister(key.fileobj)
                    waiting[key.data] = None
                    os.kill(key.data, signal.SIGKILL)


def _end_idle(
    children: Iterable[int], seen: dict[int, tuple[Any, float]], pipes: Mapping[int, int]
) -> None:
    """End processes that have neither computed nor read for so long.

    A parser may wait for ever for a thread of its own in which an allocation failed. But one that
    waits until somebody takes what it has written is not to blame.
    """
    now = time.monotonic()
    for gone in seen.keys() - set(children):
        del seen[gone]
    for child in children:
        try:
            fields = Path(f"/proc/{child}/stat").read_text(encoding="ascii", errors="replace")
            done = fields.rpartition(")")[2].split()[11:13], Path(f"/proc/{child}/io").read_text()
        except OSError:  # it has ended, or cannot be looked at
            continue
        before, since = seen.setdefault(child, (done, now))
        if done != before or (child in pipes and _unread(pipes[child])):
            seen[child] = done, now
        elif now - since > IDLE:
            os.kill(child, signal.SIGALRM)


def _unread(pipe: int) -> bool:
    """Whether a pipe holds anything."""
    return fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4)


def _ended() -> Iterator[tuple[int, int]]:
    """Processes that have ended, and their exit codes."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        yield child, os.waitstatus_to_exitcode(status)


def _end(waiting: Iterable[int]) -> None:
    for child in waiting:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)


def _read(request: dict[str, Any], target: int, pipe: int | None) -> None:
    """In the child: read, write to the pipe if there is one, else to the file, and end.

    Why it could not be read goes to the file.
    """
    sink = os.fdopen(target if pipe is None else pipe, "wb", buffering=0)
    failure = None
    try:
        path = Path(request["path"])
        # A mapped file takes addresses, and no memory.
        mapped = path.stat().st_size if request["format"] == "parquet" else 0
        limit(request["memory"] + mapped, request["seconds"], request["size"])
        arguments = request["format"], path, request["what"], request["options"]
        formats.write_tables(*arguments, sink)
    except MemoryError:
        failure = {"kind": "memory"}
    except RefusedError as error:
        failure = {"kind": "refused", "message": str(error)}
    except BaseException as error:
        number = error.errno if isinstance(error, OSError) else None
        full = number == errno.ENOSPC
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if number == errno.EFBIG and most != request["size"]:
            error = OSError(f"it takes more than the {most} bytes that `ulimit -f` allows")
            number = None
        little = number == errno.EFBIG or any(words in str(error) for words in TOO_LITTLE)
        failure = {
            "kind": "space" if full else "memory" if little else "error",
            "message": str(error) or type(error).__name__,
        }
    if failure is not None:
        with contextlib.suppress(BaseException):
            os.ftruncate(target, 0)
            os.lseek(target, 0, os.SEEK_SET)
            os.write(target, json.dumps(failure).encode())
    os._exit(0 if failure is None else 1)


def limit(memory: int, seconds: int, size: int | None) -> None:
    """No more memory than this, nor time of the processor, nor a file with what was in memory.

    What the caller's own limits allow less of stays so.

    Args:
        memory: bytes.
        seconds: of the processor.
        size: bytes of a file: one without a name and a disk is memory too, and of no process.
    """
    for kind, soft, hard in [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_CPU, seconds, seconds + 5),
        *([] if size is None else [(resource.RLIMIT_FSIZE, size, size)]),
    ]:
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))
