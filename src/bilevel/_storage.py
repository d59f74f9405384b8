"""Files that are whole or absent: the one writer of everything that a run leaves on disk.

A file is written under another name in its folder, flushed to the disk, renamed, and the folder is
flushed: at any moment a reader finds the old file or the new one. A link under either name is replaced
and never followed. What a process that died left behind is removed by the next one that writes there.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO


def _host() -> str:
    """Where the number of a process means one: containers may share a folder, and their name."""
    try:
        processes = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        processes = ""
    return hashlib.sha256(f"{platform.node()} {processes}".encode()).hexdigest()[:6]


CHECKPOINT_KIND = "bilevel checkpoint, version 2"  # the first line of such a file
_HOST = _host()
_UNFINISHED = re.compile(r"\.bilevel-([0-9a-f]{6})-([0-9]+)-[0-9a-f]{8}\.(partial|told)")
_POSIX = os.name == "posix"
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | (os.O_NOFOLLOW | os.O_CLOEXEC if _POSIX else 0)
_looked_into: set[str] = set()  # folders whose leftovers this process has removed
_BLOCK = 1 << 20


class DamagedFileError(ValueError):
    """A file was cut short or changed, or was never written by us."""


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name when the block ends well; otherwise nothing changes.

    Raises:
        OSError: it cannot be written, or not flushed to the disk; or it is a device, a pipe or a
            socket, whose place a file would take.
    """
    path = Path(path)
    check_is_no_device(path)
    _remove_leftovers_once(path.parent)
    with _opened(path.parent) as folder:
        name = _new_name()
        try:
            with os.fdopen(_open_new(path.parent, name, folder), "w+b") as file:
                yield file
                flush(file)
            _replace(path.parent, name, path.name, folder)
        except BaseException as error:
            with contextlib.suppress(OSError):
                (path.parent / name).unlink()
            if told := _of_file(path, name, error):
                raise told from error
            raise
        _flush_folder(folder)


def _of_file(path: Path, name: str, error: BaseException) -> OSError | None:
    """The error with the name that the user knows, in place of none or of the one for the meantime."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename is not None and name not in str(error.filename):
        return None
    return OSError(error.errno, os.strerror(error.errno), str(path))


def check_is_no_device(path: Path) -> None:
    """Refuse a name whose place a file must not take, also where a link leads there.

    Raises:
        OSError: it is a device, a pipe or a socket.
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # there is nothing, or a link to nothing
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(
            f"{path} is a device, a pipe or a socket, and a file would take its place; nothing was "
            "written. Name a file."
        )


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """`whole_file` with this content."""
    with whole_file(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """`whole_file` with this text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_own(folder: Path, content: bytes) -> Path:
    """A file for other processes of this user, which they read by `read_own`.

    It goes like an unfinished one, so that it does not outlive the run; but no file that holds what
    somebody else has written, as tables do, is ever called so.
    """
    path = folder / _new_name("told")
    with os.fdopen(os.open(path, _CREATE, 0o600), "w+b") as file:
        file.write(content)
        flush(file)
    return path


def read_own(path: Path, seconds: float) -> bytes:
    """What `write_own` wrote, on this machine or on another one that shares the folder.

    Args:
        path: of the file.
        seconds: for which it may not be there yet: shared folders are slow.

    Raises:
        FileNotFoundError: it does not come.
        DamagedFileError: it has another name than those of `write_own`, is no file of this user's, or
            others may write to it.
    """
    if not (is_unfinished(path.name) and path.name.endswith(".told")):
        raise DamagedFileError(f"{path} has the name of another file")
    until = time.monotonic() + seconds
    # Not blocking: a pipe may have been put there.
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK if _POSIX else 0
    while True:
        try:
            handle = os.open(path, os.O_RDONLY | flags)
            break
        except FileNotFoundError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise DamagedFileError(f"{path} is no file")
        if _POSIX and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
            raise DamagedFileError(f"{path} may have been written by somebody else")
        return file.read()


def flush(file: IO[Any]) -> None:
    """All that was written so far is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def open_log(path: str | os.PathLike, kept: str) -> IO[str]:
    """A file that holds `kept` and can be appended to; a link under its name is replaced."""
    path = Path(path)
    _remove_leftovers_once(path.parent)
    with _opened(path.parent) as folder:
        name = _new_name()
        file = os.fdopen(_open_new(path.parent, name, folder), "w", encoding="utf-8")
        try:
            file.write(kept)
            flush(file)
            _replace(path.parent, name, path.name, folder)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                (path.parent / name).unlink()
            raise
        _flush_folder(folder)
    return file


def rename_folder(old: Path, new: Path) -> None:
    """Give a folder its final name, and flush the folder that both are in.

    Raises:
        OSError: there is something of that name.
    """
    old.rename(new)
    with _opened(new.parent) as folder:
        _flush_folder(folder)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to write to, which gets its name when the block ends well; otherwise nothing is left.

    Of that name there may be an empty folder, or a link to one, which it takes the place of.

    Raises:
        OSError: it cannot be written, or something else has its name.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers_once(path.parent)
    unfinished = path.with_name(_new_name())
    try:
        unfinished.mkdir()
        yield unfinished
        if os.name != "posix" and path.is_dir():
            path.rmdir()
        rename_folder(unfinished, path)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if told := _of_file(path, unfinished.name, error):
            raise told from error
        raise


def is_unfinished(name: str) -> bool:
    """Whether it is the name of a file that some process was writing, or of one for others."""
    return _UNFINISHED.fullmatch(name) is not None


def remove_leftovers(folder: Path, *, all_of_them: bool = False) -> None:
    """Remove what processes that died were writing; `all_of_them` if nobody else can be writing."""
    for entry in _entries(folder):
        found = _UNFINISHED.fullmatch(entry.name)
        if found is None:
            continue
        if all_of_them or (found[1] == _HOST and not _is_alive(int(found[2]))):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()


def write_sealed(
    path: str | os.PathLike, kind: str, header: dict[str, Any], payload: bytes
) -> None:
    """A file that carries its own checksum: three lines of text, and the payload.

    Args:
        path: where.
        kind: what it is, in a few words; the first line.
        header: what is to be known of it without reading the payload.
        payload: the content.
    """
    rest = json.dumps(header).encode() + b"\n" + payload
    digest = hashlib.sha256(rest).hexdigest().encode()
    with whole_file(path) as file:
        file.write(kind.encode() + b"\n" + digest + b"\n" + rest)


def open_sealed(path: str | os.PathLike, kind: str) -> tuple[dict[str, Any], io.BytesIO]:
    """(header, the payload) of a file that `write_sealed` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is of another kind, was cut short, or a bit of it has changed.
    """
    content = read_regular(path)
    first, _, rest = content.partition(b"\n")
    if first != kind.encode():
        raise DamagedFileError(f"{path} is no file of the kind {kind!r}")
    digest, _, rest = rest.partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise DamagedFileError(f"{path} was cut short or has changed: its checksum is another")
    header, _, payload = rest.partition(b"\n")
    try:
        return dict(json.loads(header)), io.BytesIO(payload)
    except (ValueError, TypeError, RecursionError) as error:  # with a checksum that fits, so forged
        raise DamagedFileError(f"the header of {path} cannot be read") from error


def is_sealed(path: Path, kind: str) -> bool:
    """Whether the file is there, of this kind, and whole."""
    try:
        open_sealed(path, kind)
    except (OSError, DamagedFileError):
        return False
    return True


def read_regular(path: str | os.PathLike, at_most: int | None = None) -> bytes:
    """The content of a file; not of a device, a pipe or a folder, which may never end.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is no file, or larger than `at_most` bytes.
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise DamagedFileError(f"{path} is no file")
    if at_most is not None and size > at_most:
        raise DamagedFileError(f"{path} has {size} bytes, more than {at_most}")
    return path.read_bytes()


def checksum(path: Path) -> str:
    """The sha256 sum of a file.

    Raises:
        DamagedFileError: it is no file.
    """
    if not path.is_file():
        raise DamagedFileError(f"{path} is no file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _new_name(end: str = "partial") -> str:
    return f".bilevel-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.{end}"


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of the folder, in which names cannot be led astray; None where there are none."""
    if not _POSIX:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _open_new(parent: Path, name: str, folder: int | None) -> int:
    if folder is None:
        return os.open(parent / name, _CREATE, 0o666)
    return os.open(name, _CREATE, 0o666, dir_fd=folder)


def _replace(parent: Path, old: str, new: str, folder: int | None) -> None:
    if folder is None:
        (parent / old).replace(parent / new)
    else:
        os.replace(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def _flush_folder(folder: int | None) -> None:
    if folder is not None:
        os.fsync(folder)


def _remove_leftovers_once(folder: Path) -> None:
    name = str(folder.absolute())
    if name not in _looked_into:
        _looked_into.add(name)
        remove_leftovers(folder)


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name.startswith(".bilevel-")]
    except OSError:
        return []


def _is_alive(process: int) -> bool:
    if not _POSIX:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
