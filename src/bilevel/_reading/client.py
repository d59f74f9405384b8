"""Asks the process that reads files, and takes what it has read without copying it.

Only Linux has what this needs; elsewhere files are read in the process itself.
"""

import atexit
import json
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from .formats import FORMATS, write_tables
from .parquet import parquet_files
from .tables import RefusedError, beside

MEMORY, SECONDS = "BILEVEL_READ_MEMORY", "BILEVEL_READ_SECONDS"  # of the environment
LEAST = 1 << 28  # bytes, which the process itself needs
MOST, LONGEST = 1 << 60, 1 << 31  # bytes and seconds that are no limit
PLENTY = 1 << 33  # bytes, of which the allocator may reserve one in four ahead
POSSIBLE = sys.platform == "linux" and bool(sys.executable)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_START = """
import sys
sys.path[:] = {path!r}
from bilevel._reading.serve import main
main({handle})
"""


class ReadError(ValueError):
    """A file cannot be read; the message says which, and what to do."""


class Mapped(NamedTuple):
    """What a file holds, mapped into memory.

    Attributes:
        table: whose cells are read when they are asked for.
        release: gives back the memory of cells that were read; they are read again when asked for.
    """

    table: pa.Table
    release: Callable[[], None]


class Rows(NamedTuple):
    """What a file holds, table by table.

    Attributes:
        schema: of the tables.
        tables: each is read when it is asked for.
    """

    schema: pa.Schema
    tables: Iterator[pa.Table]


def read_file(format: str, path: Path, what: str, kind: str, **options: Any) -> pa.Table:
    """What a file holds, read in another process, whose death is an error here.

    Args:
        format: one of `formats.FORMATS`.
        path: the file.
        what: how messages name it.
        kind: how they name the format.
        options: of the format.

    Raises:
        ReadError: it cannot be parsed or used, it takes too much memory or time, or the process that
            read it died.
    """
    return map_file(format, path, what, kind, None, **options).table


def map_file(
    format: str, path: Path, what: str, kind: str, folder: Path | None, **options: Any
) -> Mapped:
    """The same, laid down in `folder` in place of memory: in a file without a name.

    Raises:
        ReadError: as `read_file`, or the folder has no room.
    """
    if folder is None and not POSSIBLE:
        return Mapped(_read_here(format, path, what, kind, options), lambda: None)
    target = os.memfd_create("bilevel") if folder is None else _unnamed(folder, what)
    try:
        if POSSIBLE:
            _read_there(format, path, what, kind, options, target, folder)
        else:
            with os.fdopen(os.dup(target), "wb") as sink, _in_words(what, kind):
                write_tables(format, path, what, options, sink)
        content = mmap.mmap(target, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(target)

    def release() -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            content.madvise(mmap.MADV_DONTNEED)

    parts, source = [], pa.BufferReader(pa.py_buffer(content))
    while source.tell() < source.size():
        batches, stream = [], pa.ipc.open_stream(source)
        for batch in stream:
            batch.validate()
            batches.append(batch)
            if folder is not None:
                release()  # as the system maps some pages around each that is looked at
        parts.append(pa.Table.from_batches(batches, stream.schema))
    return Mapped(beside(parts), release)


def stream_file(format: str, path: Path, what: str, kind: str, **options: Any) -> Rows:
    """The same of a format with one group of columns, of which few tables are in memory at a time.

    Raises:
        ReadError: as `read_file`, also while tables are asked for.
    """
    tables = (_stream if POSSIBLE else _stream_here)(format, path, what, kind, options)
    return Rows(next(tables).schema, tables)


def _stream_here(
    format: str, path: Path, what: str, kind: str, options: dict[str, Any]
) -> Iterator[pa.Table]:
    with _in_words(what, kind):
        schema, tables = next(iter(FORMATS[format](path, what, **options)))
        yield schema.empty_table()
        yield from tables


def _stream(
    format: str, path: Path, what: str, kind: str, options: dict[str, Any]
) -> Iterator[pa.Table]:
    """An empty table, and then those of the file, through a pipe."""
    with ExitStack() as stack:
        source, sink = os.pipe()
        pipe = stack.enter_context(os.fdopen(source, "rb"))
        request = _request(format, path, what, options)
        with os.fdopen(sink, "wb"), os.fdopen(os.memfd_create("bilevel"), "rb") as failure:
            said = stack.enter_context(os.fdopen(os.dup(failure.fileno()), "rb"))
            reply = _SERVER.begin(json.dumps(request).encode(), [said.fileno(), sink, source])
        stack.enter_context(reply)  # closed, it ends the process that reads
        try:
            stream = pa.ipc.open_stream(pa.PythonFile(pipe, "r"))
            yield stream.schema.empty_table()
            for batch in stream:
                batch.validate()
                yield pa.Table.from_batches([batch], stream.schema)
        except pa.ArrowException as error:
            _check_answer(reply.recv(64), request, kind, said.fileno())
            raise ReadError(f"{what} cannot be read as {kind}: {error}") from error
        _check_answer(
            reply.recv(64), request, kind, said.fileno()
        )  # a pipe also ends with the dead


def _unnamed(folder: Path, what: str) -> int:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise ReadError(
            f"{what} is laid down on the disk while it is used, and {folder} takes no file: {error}."
        ) from error


def _read_there(
    format: str,
    path: Path,
    what: str,
    kind: str,
    options: dict[str, Any],
    target: int,
    folder: Path | None,
) -> None:
    request = _request(format, path, what, options)
    if folder is None:
        request["size"] = request["memory"]
    answer = _SERVER.ask(json.dumps(request).encode(), target)
    _check_answer(answer, request, kind, target, folder)


def _request(format: str, path: Path, what: str, options: dict[str, Any]) -> dict[str, Any]:
    memory, seconds = limits(path)
    return {
        "format": format,
        "path": str(path.absolute()),
        "what": what,
        "options": options,
        "memory": memory,
        "seconds": seconds,
        "size": None,
    }


def _check_answer(
    answer: bytes, request: dict[str, Any], kind: str, target: int, folder: Path | None = None
) -> None:
    """Whether all was read, by the exit code of the process that did; why not, is in `target`."""
    what, memory, seconds = (request[key] for key in ("what", "memory", "seconds"))
    code = int(answer) if answer else -signal.SIGKILL  # the latter if it is not known
    if code == 0:
        return
    if code != 1:
        raise ReadError(
            f"{what} cannot be read: the process that read it {_death(code, seconds)}. The file "
            "is damaged, or made to do harm; nothing of it was used."
        )
    said = os.pread(target, os.fstat(target).st_size, 0)
    nothing = {"kind": "memory" if folder is None else "space"}  # not even room for a message
    try:
        failure = json.loads(said)
    except ValueError:
        failure = nothing
    if failure["kind"] == "memory":
        raise ReadError(
            f"{what} takes more than {memory / 1e9:.1f} GB of memory to read. If the machine has "
            f"it and you trust the file, set {MEMORY} to more, as in {MEMORY}=32GB."
        )
    if failure["kind"] == "refused":
        raise ReadError(failure["message"])
    if failure["kind"] == "space" and folder is not None:
        raise ReadError(
            f"{what} is laid down on the disk while it is used, and {folder} has no room for it. "
            "Free some, or write the results to another disk."
        )
    raise ReadError(f"{what} cannot be read as {kind}: {failure['message']}")


def limits(path: Path) -> tuple[int, int]:
    """Bytes of memory and seconds of the processor for a file.

    Raises:
        ReadError: the variable of the environment is neither a size nor a number.
    """
    files = parquet_files(path) if path.is_dir() else [path] if path.is_file() else []
    size = sum(file.stat().st_size for file in files)
    seconds = os.environ.get(SECONDS, str(300 + size // 10**6))
    if not seconds.isdecimal():
        raise ReadError(f"{SECONDS}={seconds!r} is no number of seconds.")
    return max(_memory(), LEAST), min(int(seconds[:20]), LONGEST)


def _memory() -> int:
    """Bytes of memory that a reader may take: what the user allows, or all that there is."""
    given = os.environ.get(MEMORY)
    if given is None:
        return _memory_here()
    if found := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?\s*", given, re.IGNORECASE):
        return int(min(float(found[1]) * _UNITS[found[2].upper()], MOST))
    raise ReadError(f"{MEMORY}={given!r} is no size; write it as in 4GB.")


def _memory_here() -> int:
    """Bytes of memory that this machine has, or the container that we are in, or our limit is."""
    import resource  # which not every system has

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    memory = memory if most == resource.RLIM_INFINITY else min(memory, most)
    try:
        allowed = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return memory
    return min(memory, int(allowed)) if allowed.isdecimal() else memory


def _read_here(format: str, path: Path, what: str, kind: str, options: dict[str, Any]) -> pa.Table:
    with _in_words(what, kind):
        found = FORMATS[format](path, what, **options)
        return beside([pa.concat_tables([x.empty_table(), *tables]) for x, tables in found])


@contextmanager
def _in_words(what: str, kind: str) -> Iterator[None]:
    """Failures of a reader as errors of ours."""
    try:
        yield
    except RefusedError as error:
        raise ReadError(str(error)) from error
    except Exception as error:  # parsers raise many kinds; each means the same to the user
        raise ReadError(f"{what} cannot be read as {kind}: {error}") from error


def _death(code: int, seconds: int) -> str:
    if code == -signal.SIGXCPU:
        return f"took more than {seconds} s of the processor ({SECONDS} sets another limit)"
    if code == -signal.SIGALRM:
        return "did nothing for minutes"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended with the code {code}"


class _Server:
    """The process that reads, started when it is first asked, and again if it has died."""

    def __init__(self) -> None:
        self.after_fork()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def after_fork(self) -> None:
        """A lock that another thread held is never given up in the child."""
        self._lock = threading.Lock()

    def ask(self, request: bytes, target: int) -> bytes:
        """The exit code of the process that has served the request; nothing if it is not known."""
        for _ in range(2):
            with self.begin(request, [target]) as reply:
                if answer := reply.recv(64):
                    return answer
            with self._lock:
                self._close()
        return b""

    def begin(self, request: bytes, handles: list[int]) -> socket.socket:
        """What the exit code will come from; closed before, it ends the process that serves.

        Args:
            request: what to read.
            handles: of files: for the failure, and for the tables; of the latter if it is a pipe, both
                ends, that to write to first.
        """
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._lock:
            control = self._control or self._start()
            try:
                socket.send_fds(control, [request], [theirs.fileno(), *handles])
            except OSError:  # it has died
                self._close()
                socket.send_fds(self._start(), [request], [theirs.fileno(), *handles])
        return mine

    def _start(self) -> socket.socket:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = _START.format(path=[*sys.path], handle=theirs.fileno())
        plain = _PLAIN if _memory() < PLENTY else {}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # so that Ctrl-C ends the command, and not this
                env=os.environ | _QUIET | plain,
            )
        return self._control

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control = self._process = None


_QUIET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # as a fork copies one thread only
_PLAIN = {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # slower, and reserves nothing ahead
_SERVER = _Server()
_OWNER = os.getpid()
if os.name == "posix":
    os.register_at_fork(after_in_child=_SERVER.after_fork)


@atexit.register
def _end() -> None:
    """The process ends when the last of those who may ask it has ended."""
    process = _SERVER._process
    if process is not None and os.getpid() == _OWNER:
        _SERVER._close()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
