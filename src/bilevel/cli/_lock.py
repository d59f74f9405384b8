"""Who writes to a run folder: one process at a time, and a lock that the dead do not keep.

The lock is the system's own (`flock`), which ends with the process that holds it. File systems that
several machines share do not always pass it on, so the file also says who holds it, and its time of
change is set again every `BEAT` seconds: from another machine, a lock that is older than `STALE`
seconds is that of a dead process. The clocks of the machines must agree within a minute.
On Windows there is no lock.
"""

import contextlib
import json
import os
import platform
import shlex
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ._app import RunFolderError
from ._signals import in_background

if sys.platform != "win32":
    import fcntl

LOCK = "lock"
BEAT, STALE = 10.0, 120.0  # seconds
_FIRST = (b"", b"{", b"\0")  # bytes of a lock: of one that was cut short too


@contextlib.contextmanager
def hold(folder: Path, private: bool = False) -> Iterator[None]:
    """Hold the lock of a folder for the length of the block.

    Others can read in it who does; in private mode it has not what the command was called with.

    Raises:
        RunFolderError: somebody else holds it, with who.
    """
    if sys.platform == "win32":
        yield
        return
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        if who := _held_by(handle):
            raise RunFolderError(f"the run folder {folder} is in use by {who}. Wait for it.")
        if not _is_at(handle, path):  # its holder has just ended, and removed it
            raise RunFolderError(f"the run folder {folder} was in use until now; try again.")
        if os.fstat(handle).st_nlink > 1 or os.pread(handle, 1, 0) not in _FIRST:
            raise RunFolderError(
                f"{path} has another name too, or was not written by bilevel; it is not touched. "
                "Choose another --out, or move it away."
            )
        ended, beat = threading.Event(), threading.Lock()
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_myself(private)).encode(), 0)
            in_background(_beat, handle, ended, beat)
            yield
        finally:
            with beat:  # the number of the file may soon be another's
                ended.set()
            if _is_at(handle, path):
                path.unlink()
    finally:
        os.close(handle)


def holder(folder: Path) -> str | None:
    """Who holds the lock of a folder, in words; None if nobody does."""
    if sys.platform == "win32":
        return None
    try:
        # A pipe, which `--out` is refused for, would keep us waiting.
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _held_by(handle) if stat.S_ISREG(os.fstat(handle).st_mode) else None
    finally:
        os.close(handle)


def _held_by(handle: int) -> str | None:
    """Who holds the lock; None if we have it now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except BlockingIOError:
        return _describe(handle)
    except OSError:  # a file system without such locks
        locked = False
    content = _content(handle)
    alive = abs(time.time() - os.fstat(handle).st_mtime) < STALE
    elsewhere = content.get("host") != platform.node()
    if content and alive and (elsewhere or not locked):
        return _describe(handle)
    return None


def _describe(handle: int) -> str:
    content = _content(handle)
    if not content:
        return "another process"
    return (
        f"process {content.get('process')} on {content.get('host')!r} since {content.get('since')} "
        f"({content.get('command')!r})"
    )


def _content(handle: int) -> dict[str, object]:
    try:
        content = json.loads(os.pread(handle, 1 << 16, 0))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _myself(private: bool) -> dict[str, object]:
    given = ["--private"] if private else sys.argv[1:]
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join([Path(sys.argv[0]).name, *given])[:1000],
    }


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


def _beat(handle: int, ended: threading.Event, beat: threading.Lock) -> None:
    while not ended.wait(BEAT):
        with beat:
            if not ended.is_set():
                os.utime(handle)
