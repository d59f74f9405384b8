"""`fetch` against a server on this machine, with files of a few kilobytes."""

import gzip
import hashlib
import http.server
import io
import lzma
import shutil
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from bilevel.datasets import Fetched, _fetch, _sources, _svhn, fetch, svhn
from bilevel.datasets._sources import PUBLISHED, Download, Package, Published

CONTENT = np.random.default_rng(0).integers(0, 256, 600_000, np.uint8).tobytes()
OTHER = bytes(1000)
FILE = "toy.bin"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Server:
    """Serves `files`; `asked` is (path, Range) of each request. The modes, by path:

    None: whole, and parts where a Range is asked for
    "no ranges": whole whatever is asked
    "cut": announces all, closes the connection after half of what it sends
    "cut once": that, the first time
    "wrong range": another part than the one asked for
    an integer: that error
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.modes: dict[str, str | int] = {}
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, format, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.http.server_address[1]}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path, asked = request.path.lstrip("/"), request.headers.get("Range")
        self.asked.append((path, asked))
        mode, content = self.modes.get(path), self.files.get(path)
        if isinstance(mode, int) or content is None:
            request.send_error(mode if isinstance(mode, int) else 404)
            return
        start = 0
        if asked and mode != "no ranges":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(content)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            request.send_response(206)
            said = start + 1 if mode == "wrong range" else start
            request.send_header("Content-Range", f"bytes {said}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        body = content[start:]
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if mode in ("cut", "cut once") else body)
        if mode == "cut once":
            del self.modes[path]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(_fetch, "_PAUSE", 0.0)
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    running = Server()
    yield running
    running.close()


def toy(server: Server, monkeypatch, **changes) -> Published:
    """A data set of one file with two addresses."""
    download = Download(FILE, (f"{server.root}first", f"{server.root}second"))
    dataset = Published(
        "toy",
        "its publisher, https://example.org",
        {"train": ((FILE,),)},
        {"train": (download,)},
        {FILE: {"sha256": sha256(CONTENT)}},
    )._replace(**changes)
    monkeypatch.setitem(PUBLISHED, "toy", dataset)
    return dataset


def get(**arguments) -> Fetched:
    return fetch("toy", progress=False, **arguments)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_comes_whole_under_its_name_into_the_cache(server, monkeypatch, cache):
    toy(server, monkeypatch)
    server.files["first"] = CONTENT
    assert get() == Fetched(cache / "toy", {FILE: sha256(CONTENT)})
    assert (cache / "toy" / FILE).read_bytes() == CONTENT
    assert names(cache / "toy") == [FILE]
    assert server.asked == [("first", None)]
    get()  # it is there: nobody is asked
    assert len(server.asked) == 1


def test_what_is_on_this_machine_is_not_downloaded(server, monkeypatch, tmp_path):
    toy(server, monkeypatch)
    for folder in (tmp_path / "given", tmp_path / "root" / "toy"):
        folder.mkdir(parents=True)
        (folder / f"{FILE}.gz").write_bytes(gzip.compress(CONTENT))
    assert get(folder=tmp_path / "given") == (tmp_path / "given", {FILE: sha256(CONTENT)})
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path / "root"))
    assert get().folder == tmp_path / "root" / "toy"
    assert server.asked == []


def test_an_interrupted_download_is_resumed_in_the_same_call(server, monkeypatch, cache):
    toy(server, monkeypatch)
    server.files["first"], server.modes["first"] = CONTENT, "cut once"
    get()
    assert server.asked == [("first", None), ("first", "bytes=300000-")]
    assert (cache / "toy" / FILE).read_bytes() == CONTENT


def test_an_interrupted_download_is_resumed_by_the_next_call(server, monkeypatch, cache):
    toy(server, monkeypatch)
    server.files["first"], server.modes["first"] = CONTENT, "cut"
    part = cache / "toy" / f"{FILE}.part"
    with pytest.raises(OSError, match=r"525000 of 600000 bytes.*answers 404.*is kept in") as error:
        get()
    assert str(part) in str(error.value)
    assert names(cache / "toy") == [part.name]  # nothing under the file's own name
    assert part.read_bytes() == CONTENT[:525_000]  # three attempts, each gave half of the rest
    server.modes.clear()
    get()
    assert server.asked[-1] == ("first", "bytes=525000-")
    assert (cache / "toy" / FILE).read_bytes() == CONTENT
    assert names(cache / "toy") == [FILE]


def test_a_server_without_ranges_sends_the_whole_file(server, monkeypatch, cache):
    toy(server, monkeypatch)
    server.files["first"], server.modes["first"] = CONTENT, "no ranges"
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / f"{FILE}.part").write_bytes(CONTENT[:1000])
    get()
    assert server.asked == [("first", "bytes=1000-")]
    assert (cache / "toy" / FILE).read_bytes() == CONTENT


def test_another_range_than_the_one_asked_for_is_refused(server, monkeypatch, cache):
    toy(server, monkeypatch)
    server.files["first"], server.modes["first"] = CONTENT, "wrong range"
    server.files["second"] = CONTENT
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / f"{FILE}.part").write_bytes(CONTENT[:1000])
    get()
    assert server.asked == [("first", "bytes=1000-")] * 3 + [("second", "bytes=1000-")]
    assert (cache / "toy" / FILE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("part", "requests"),
    [
        (CONTENT, 1),  # whole: stopped before the rename
        (CONTENT + b"more", 2),  # of a longer file
        (OTHER, 2),  # of another file: the checksum says so
    ],
)
def test_a_part_that_is_not_the_beginning_is_dropped(server, monkeypatch, cache, part, requests):
    toy(server, monkeypatch)
    server.files["first"] = CONTENT
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / f"{FILE}.part").write_bytes(part)
    get()
    asked = [("first", f"bytes={len(part)}-"), ("first", None)]
    assert server.asked == asked[:requests]
    assert (cache / "toy" / FILE).read_bytes() == CONTENT
    assert names(cache / "toy") == [FILE]


@pytest.mark.parametrize(
    ("error", "attempts"), [(404, 1), (403, 1), (500, 3), (503, 3), ("a wrong file", 1)]
)
def test_after_an_error_comes_the_next_address(server, monkeypatch, cache, error, attempts):
    toy(server, monkeypatch)
    server.files |= {"first": OTHER, "second": CONTENT}
    server.modes["first"] = error
    get()
    assert server.asked == [("first", None)] * attempts + [("second", None)]
    assert (cache / "toy" / FILE).read_bytes() == CONTENT


def test_when_no_address_helps_all_reasons_are_named_and_nothing_is_left(
    server, monkeypatch, cache
):
    toy(server, monkeypatch)
    server.files["first"], server.modes["second"] = OTHER, 503
    with pytest.raises(OSError, match=r"toy: not all files could be had\. Tried") as error:
        get()
    for part in (
        f"{cache / 'toy'}: does not hold all files of the split train",
        f"{server.root}first: ",
        f"wrong checksum, sha256 {sha256(OTHER)}, expected {sha256(CONTENT)}",
        f"{server.root}second: the server answers 503 Service Unavailable",
        "https://example.org",
    ):
        assert part in str(error.value)
    assert "call again" not in str(error.value)
    assert names(cache / "toy") == []


def test_no_server_answers(server, monkeypatch, cache):
    toy(server, monkeypatch)
    server.close()
    with pytest.raises(OSError, match=r"first: .*refused.*second: .*refused"):
        get()
    assert names(cache / "toy") == []


@pytest.mark.parametrize("damaged", [OTHER, CONTENT[:-1], gzip.compress(CONTENT)[:-9]])
@pytest.mark.parametrize("name", [FILE, f"{FILE}.gz"])
def test_a_damaged_file_is_replaced(server, monkeypatch, tmp_path, damaged, name):
    toy(server, monkeypatch)
    server.files["first"] = CONTENT
    (tmp_path / name).write_bytes(damaged)
    assert get(folder=tmp_path) == (tmp_path, {FILE: sha256(CONTENT)})
    assert (tmp_path / FILE).read_bytes() == CONTENT
    assert names(tmp_path) == [FILE]


def test_a_damaged_file_stays_until_its_replacement_is_complete(server, monkeypatch, tmp_path):
    toy(server, monkeypatch)
    (tmp_path / FILE).write_bytes(OTHER)
    with pytest.raises(OSError, match="wrong checksum"):
        get(folder=tmp_path)
    assert (tmp_path / FILE).read_bytes() == OTHER


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_the_checksum_is_that_of_the_decompressed_content(server, monkeypatch, tmp_path, pack):
    suffix, packed = ".gz" if pack is gzip.compress else ".xz", pack(CONTENT)
    download = Download(f"{FILE}{suffix}", (f"{server.root}first",), md5(packed))
    toy(server, monkeypatch, downloads={"train": (download,)})
    server.files["first"] = packed
    assert get(folder=tmp_path).sha256 == {FILE: sha256(CONTENT)}
    assert (tmp_path / f"{FILE}{suffix}").read_bytes() == packed


def test_an_md5_is_that_of_the_download(server, monkeypatch, cache):
    download = Download(FILE, (f"{server.root}first",), md5(OTHER))
    toy(server, monkeypatch, downloads={"train": (download,)}, checks={})
    server.files["first"] = CONTENT
    with pytest.raises(OSError, match=f"wrong checksum, md5 {md5(CONTENT)}, expected {md5(OTHER)}"):
        get()
    assert names(cache / "toy") == []


def test_a_users_own_checksum(server, monkeypatch, cache):
    toy(server, monkeypatch, checks={})
    server.files["first"] = CONTENT
    with pytest.raises(OSError, match=f"sha256 {sha256(CONTENT)}, expected {'0' * 64}"):
        get(sha256={FILE: "0" * 64})
    assert names(cache / "toy") == []
    found = get().sha256  # what is found is told ...
    assert get(sha256={FILE: found[FILE].upper()}).sha256 == found  # ... and can be demanded
    with pytest.raises(ValueError, match=r"sha256 names other; toy has toy.bin"):
        get(sha256={"other": "0" * 64})


def test_a_users_checksum_cannot_contradict_the_published_one(server, monkeypatch):
    toy(server, monkeypatch)
    with pytest.raises(ValueError, match=f"got {'0' * 64}, but published is {sha256(CONTENT)}"):
        get(sha256={FILE: "0" * 64})


def tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return file.getvalue()


def archived(server: Server, monkeypatch) -> None:
    members = ("inside/one.bin", "inside/two.bin")
    toy(
        server,
        monkeypatch,
        forms={"train": (("one.bin",), ("one",)), "test": (("two.bin",),)},
        downloads=dict.fromkeys(
            ("train", "test"),
            (Download("toy.tar.gz", (f"{server.root}first",), members=members),),
        ),
        checks={},
    )


def test_the_members_of_an_archive_are_unpacked_and_no_others(server, monkeypatch, cache):
    archived(server, monkeypatch)
    server.files["first"] = tar(
        {"inside/one.bin": b"1", "inside/two.bin": b"22", "../../outside": b"", "inside/three": b""}
    )
    assert get().sha256 == {"one.bin": sha256(b"1"), "two.bin": sha256(b"22")}
    assert names(cache / "toy") == ["one.bin", "two.bin"]
    assert get(split="test") == (cache / "toy", {"two.bin": sha256(b"22")})
    assert len(server.asked) == 1  # one archive for both splits


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar({"inside/one.bin": b"1"}), "toy.tar.gz: not the expected archive .*two.bin"),
        (tar({"inside/one.bin": b"1", "inside/two.bin": b"2"})[:-30], "not the expected archive"),
        (b"<!DOCTYPE html>", "not the expected archive"),
        (
            tar({"inside/one.bin": b"1"}, {"inside/two.bin": "/etc/passwd"}),
            "not the expected archive .*passwd",
        ),
    ],
    ids=["a member missing", "truncated", "a web page", "a link out of it"],
)
def test_a_wrong_archive_leaves_no_files(server, monkeypatch, cache, content, message):
    archived(server, monkeypatch)
    server.files["first"] = content
    with pytest.raises(OSError, match=message):
        get()
    assert names(cache / "toy") == []


def client(folder: Path, name: str, script: str) -> None:
    """An executable that plays the client of a registry."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """A folder for such executables, which is on the path only with the tools of the shell."""
    folder = tmp_path / "clients"
    folder.mkdir()
    for tool in ("sh", "cp", "mkdir"):
        (folder / tool).symlink_to(shutil.which(tool) or "")
    monkeypatch.setenv("PATH", str(folder))
    return folder


posix = pytest.mark.skipif(sys.platform == "win32", reason="the clients are shell scripts")


@posix
def test_the_npm_package_comes_before_the_publisher(server, monkeypatch, tmp_path, cache, clients):
    toy(server, monkeypatch, packages=(Package("npm", "toy-data", "package/data"),))
    (tmp_path / "toy.tgz").write_bytes(tar({f"package/data/{FILE}": CONTENT, "package/x": b""}))
    said = tmp_path / "said"
    client(clients, "npm", f"echo $* > '{said}'; cp '{tmp_path / 'toy.tgz'}' toy-data-1.0.0.tgz")
    assert get() == (cache / "toy", {FILE: sha256(CONTENT)})
    assert names(cache / "toy") == [FILE]
    assert said.read_text() == "pack --ignore-scripts --silent toy-data\n"
    assert server.asked == []


@posix
def test_the_debian_package_is_unpacked_not_installed(
    server, monkeypatch, tmp_path, cache, clients
):
    toy(server, monkeypatch, packages=(Package("apt-get", "dataset-toy", "usr/share/toy"),))
    (tmp_path / "content").write_bytes(gzip.compress(CONTENT))
    client(clients, "apt-get", '[ "$*" = "download dataset-toy" ] && echo > dataset-toy_1_all.deb')
    client(
        clients,
        "dpkg-deb",
        '[ "$1" = --extract ] && mkdir -p "$3/usr/share/toy" && '
        f"cp '{tmp_path / 'content'}' \"$3/usr/share/toy/{FILE}.gz\"",
    )
    assert get() == (cache / "toy", {FILE: sha256(CONTENT)})
    assert names(cache / "toy") == [f"{FILE}.gz"]
    assert server.asked == []


@posix
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "npm is not installed"),
        ("echo no; echo E404 not found >&2; exit 1", "`npm pack` failed: E404 not found"),
        ("exit 0", r"left 0 files \*\.tgz"),
        ("echo > toy.tgz", "not the expected archive"),
        ("cp '{other}' toy.tgz", f"toy.bin: wrong checksum, sha256 {sha256(OTHER)}"),
        ("cp '{empty}' toy.tgz", "holds no toy.bin"),
    ],
)
def test_a_package_that_is_unavailable_is_named_and_the_publisher_asked(
    server, monkeypatch, tmp_path, cache, clients, script, reason
):
    toy(server, monkeypatch, packages=(Package("npm", "toy-data", "package/data"),))
    for name, content in {"other": {f"package/data/{FILE}": OTHER}, "empty": {"x": b""}}.items():
        (tmp_path / name).write_bytes(tar(content))
    if script is not None:
        script = script.format(other=tmp_path / "other", empty=tmp_path / "empty")
        client(clients, "npm", script)
    with pytest.raises(OSError, match=rf"package toy-data \(npm\): .*{reason}.*first: the server"):
        get()
    assert names(cache / "toy") == []
    server.files["first"] = CONTENT
    get()
    assert names(cache / "toy") == [FILE]


@posix
def test_only_the_files_of_a_package_are_unpacked(server, monkeypatch, tmp_path, cache, clients):
    toy(server, monkeypatch, packages=(Package("npm", "toy-data", "package/data"),))
    members = {
        "../../../outside": b"x",
        "package/install.sh": b"x",
        f"package/data/{FILE}": CONTENT,
    }
    (tmp_path / "evil").write_bytes(tar(members, {"package/data/link": "/etc/passwd"}))
    client(clients, "npm", f"cp '{tmp_path / 'evil'}' toy.tgz")
    get()
    assert [p.name for p in cache.parent.rglob("*") if p.is_file()] == [FILE]
    # A link in the place of the file
    (cache / "toy" / FILE).unlink()
    (tmp_path / "evil").write_bytes(tar({}, {f"package/data/{FILE}": "/etc/passwd"}))
    with pytest.raises(OSError, match=r"not the expected archive .*passwd"):
        get()
    assert names(cache / "toy") == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_fetchers_into_one_folder_wait_for_each_other(server, monkeypatch, cache):
    toy(server, monkeypatch)
    server.files["first"] = CONTENT
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: get(), range(4)))
    assert found == [Fetched(cache / "toy", {FILE: sha256(CONTENT)})] * 4
    assert server.asked == [("first", None)]


def test_bars_go_to_standard_error(server, monkeypatch, capsys):
    toy(server, monkeypatch)
    server.files["first"] = CONTENT
    fetch("toy")
    out, err = capsys.readouterr()
    assert out == ""
    assert "first" in err
    assert "600.0" in err  # of 600.0 kB


def test_wrong_calls_are_refused(server):
    with pytest.raises(ValueError, match=r"name must be one of mnist, .*omniglot.*; got 'mnits'"):
        fetch("mnits")
    with pytest.raises(ValueError, match=r"split must be one of train, test, extra; got 'val'"):
        fetch("svhn", split="val")


def test_mini_imagenet_is_not_offered(server, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be downloaded; .*ImageNet's, https://image-net"):
        fetch("mini-imagenet")
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
    assert fetch("mini-imagenet", folder=tmp_path) == (tmp_path, {})  # folders have no checksum


@pytest.mark.parametrize("name", [name for name in PUBLISHED if PUBLISHED[name].downloads])
def test_the_table_is_sound(name):
    dataset = PUBLISHED[name]
    assert list(dataset.downloads) == list(dataset.forms)
    for split, downloads in dataset.downloads.items():
        given = {
            _sources.plain_name(Path(member).name)
            for d in downloads
            for member in d.members or (d.file,)
        }
        assert any(given >= set(form) for form in dataset.forms[split])
        for download in downloads:
            assert all(url.startswith(("https://", "http://")) for url in download.urls)
            assert all(url.endswith(f"/{download.file}") for url in download.urls)
            assert download.md5 is None or len(bytes.fromhex(download.md5)) == 16
    lengths = {"sha256": 32, "md5": 16}
    for checks in dataset.checks.values():
        assert all(len(bytes.fromhex(digest)) == lengths[k] for k, digest in checks.items())
    # Some checksum guards every file that is downloaded.
    for downloads in dataset.downloads.values():
        assert all(d.md5 or _sources.plain_name(d.file) in dataset.checks for d in downloads)


def served(server: Server, monkeypatch, name: str) -> None:
    """The data set's downloads come from the server."""
    dataset = PUBLISHED[name]

    def moved(download: Download) -> Download:
        content = server.files.get(download.file)
        return download._replace(
            urls=(f"{server.root}{download.file}",),
            md5=download.md5 and content and md5(content),
        )

    monkeypatch.setitem(
        PUBLISHED,
        name,
        dataset._replace(
            downloads={s: tuple(map(moved, d)) for s, d in dataset.downloads.items()},
            packages=(),
            checks=dataset.checks if name == "mnist" else {},
        ),
    )


def test_svhn_downloads_the_split_that_is_asked_for(server, monkeypatch, tmp_path):
    monkeypatch.setattr(_svhn, "_ROWS", {"train": 7, "test": 3, "extra": 5})
    content = io.BytesIO()
    X, y = np.ones((32, 32, 3, 3), np.uint8), np.array([[1], [10], [9]], np.uint8)
    scipy.io.savemat(content, {"X": X, "y": y})
    server.files["test_32x32.mat"] = content.getvalue()
    served(server, monkeypatch, "svhn")
    assert svhn("test", folder=tmp_path / "here", download=True).labels.tolist() == [1, 0, 9]
    assert names(tmp_path / "here") == ["test_32x32.mat"]
    assert server.asked == [("test_32x32.mat", None)]
