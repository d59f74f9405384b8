"""Tables at URLs: `fsspec` copies them beside the run folder, and they are read as files are."""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import typer

from .._reading.parquet import PARQUET
from ..reweighting._inputs.checks import InputError

# One letter is a drive, and a path may lose a slash.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::|:/)")


def is_url(text: str) -> bool:
    """Whether this names a place that only `fsspec` reads: `s3://bucket/train.parquet`."""
    return _URL.match(text) is not None and not Path(text).exists()


def as_given(text: str) -> str:
    """A URL as it is; a path in its shortest form, so that a run knows its files again.

    Raises:
        BadParameter: it is empty, which would be the folder one is in.
    """
    if not text:
        raise typer.BadParameter(
            "the path of a table is empty; has a variable of the shell no value?"
        )
    return text if is_url(text) else str(Path(text))


@contextlib.contextmanager
def local_copies(files: Mapping[str, str], beside: Path) -> Iterator[dict[str, Path]]:
    """Paths of the files on this machine; what was copied for it is removed afterwards.

    Errors about the data name the URL.

    Args:
        files: paths and URLs, by the name of the table.
        beside: the path in whose folder, or the nearest above it that exists, copies are made.

    Raises:
        InputError: `fsspec` is absent, or cannot read a URL.
    """
    urls = {name: file for name, file in files.items() if is_url(file)}
    paths = {name: Path(file) for name, file in files.items()}
    if not urls:
        yield paths
        return
    folder = next(one for one in beside.absolute().parents if one.is_dir())
    with tempfile.TemporaryDirectory(prefix=".bilevel-", dir=folder) as copies:
        for name, url in urls.items():
            target = Path(copies) / name
            target.mkdir()
            paths[name] = _copy(url, name, target)
        try:
            yield paths
        except InputError as error:
            message = str(error)
            for name, url in urls.items():
                message = message.replace(str(paths[name]), url)
            raise InputError(message) from error


def _copy(url: str, name: str, folder: Path) -> Path:
    """The file, or the folder of Parquet files, in `folder`."""
    try:
        import fsspec.core  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"the {name} file {url} is a URL, which takes fsspec to read: "
            "`pip install 'bilevel[remote]'`, and the package of the storage (s3fs, gcsfs, adlfs). Or "
            "copy the file to this machine."
        ) from error
    try:
        storage, path = fsspec.core.url_to_fs(url)
        root = path.rstrip("/")
        local = folder / (PurePosixPath(urlsplit(root).path).name or "table")
        if not storage.isdir(path):
            storage.get_file(path, str(local))
            return local
        for file in storage.find(path):
            inside = PurePosixPath(file.removeprefix(root).lstrip("/"))
            if inside.suffix.lower() in PARQUET and ".." not in inside.parts:
                (local / inside).parent.mkdir(parents=True, exist_ok=True)
                storage.get_file(file, str(local / inside))
        local.mkdir(exist_ok=True)
        return local
    except Exception as error:  # of as many kinds as there are storages
        told = str(error) or type(error).__name__
        raise InputError(f"the {name} file {url} cannot be read: {told}") from error
