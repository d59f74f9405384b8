"""Files of published data: checksums, archives, and a name only for what is whole."""

import gzip
import hashlib
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ._idx import GZIP_MAGIC, XZ_MAGIC
from ._sources import SUFFIXES, Download, find_name, plain_name

Checks = dict[str, dict[str, str]]  # by file name: algorithm and digest of the content


class Unavailable(Exception):
    """This source does not give the files; the text says why."""


def verify(path: Path, checks: Mapping[str, str]) -> str:
    """The sha256 of the decompressed content, if all of `checks` hold."""
    for algorithm, expected in checks.items():
        if (found := digest(path, algorithm)) != expected:
            raise Unavailable(f"{path}: wrong checksum, {algorithm} {found}, expected {expected}")
    return checks.get("sha256") or digest(path, "sha256")


def digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        magic = file.read(len(XZ_MAGIC))
    packed = magic.startswith(GZIP_MAGIC) or magic == XZ_MAGIC
    opener = gzip.open if magic.startswith(GZIP_MAGIC) else lzma.open if packed else open
    try:
        with opener(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()  # pyright: ignore[reportArgumentType]
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise Unavailable(f"{path}: cannot be decompressed ({error})") from None


def is_there(folder: Path, name: str, checks: Checks) -> bool:
    path = find_name(folder, name)
    try:
        return path is not None and (path.is_dir() or bool(verify(path, checks[name])))
    except Unavailable:
        return False


def install(source: Path, path: Path) -> None:
    """Give the complete file its name at once, and remove a damaged copy, plain or compressed."""
    source.replace(path)
    for suffix in SUFFIXES:
        twin = path.with_name(f"{plain_name(path.name)}{suffix}")
        if twin != path and twin.is_file():
            twin.unlink()


def unpack(part: Path, download: Download, checks: Checks, target: Path) -> None:
    """The archive's members, each regular file into a scratch folder, then to its name."""
    with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as scratch:
        with open_archive(download.file, part) as archive:
            paths = [extract(archive, member, Path(scratch)) for member in download.members]
        for path in paths:
            verify(path, checks.get(path.name, {}))
        for path in paths:
            install(path, target / path.name)


def extract(archive: tarfile.TarFile, member: str, folder: Path) -> Path:
    """Write the member under its last name in `folder`, from any path in the archive."""
    content = archive.extractfile(member)
    if content is None:
        raise KeyError(f"{member} is no regular file")
    folder.mkdir(exist_ok=True)
    path = folder / Path(member).name
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)
    return path


@contextmanager
def open_archive(label: str, path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (KeyError, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = str(error).partition("\n")[0]
        raise Unavailable(f"{label}: not the expected archive ({why})") from None
