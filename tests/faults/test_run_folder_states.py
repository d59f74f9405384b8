"""Every state of the run folder, and what each command does in it (docs/run_folder.md)."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bilevel import _storage
from bilevel._storage import CHECKPOINT_KIND, is_sealed, whole_file, write_sealed, write_text
from bilevel.cli import _weigh_work
from bilevel.cli._app import RunFolderError
from bilevel.cli._lock import LOCK, hold
from bilevel.cli._run_folder import RunFolder, State
from bilevel.cli._weigh_config import WeighConfig
from bilevel.reweighting._inputs.checks import InputError

CONFIG = WeighConfig(train="train.csv", label="y", trusted="trusted.csv", out="run")
TOML = CONFIG.to_toml({"train": "1" * 64, "trusted": "2" * 64})


def begun(folder: RunFolder) -> None:
    folder.partial.mkdir()
    write_text(folder.partial / "config.toml", TOML)


def resumable(folder: RunFolder) -> None:
    begun(folder)
    write_sealed(folder.partial / "checkpoint.eqx", CHECKPOINT_KIND, {"step": 3}, b"state")


def complete(folder: RunFolder) -> None:
    folder.out.mkdir()
    write_text(folder.out / "config.toml", TOML)
    write_text(folder.out / "summary.json", json.dumps({"files": {}}))


def foreign(folder: RunFolder) -> None:
    begun(folder)
    (folder.partial / "notes.txt").write_text("mine")


def cut_short(name: str, size: int) -> Callable[[RunFolder], None]:
    def make(folder: RunFolder) -> None:
        resumable(folder)
        path = folder.partial / name
        path.write_bytes(path.read_bytes()[:size])

    return make


def leftovers(folder: RunFolder) -> None:
    folder.partial.mkdir()
    (folder.partial / ".bilevel-0123ab-1-01234567.partial").write_text("half")


MAKE = {
    "nothing": (lambda _: None, State.absent),
    "an empty folder": (lambda folder: folder.partial.mkdir(), State.absent),
    "a file that was being written": (leftovers, State.begun),
    "an empty config": (cut_short("config.toml", 0), State.begun),
    "half a config": (cut_short("config.toml", 40), State.begun),
    "a config": (begun, State.begun),
    "an empty checkpoint": (cut_short("checkpoint.eqx", 0), State.begun),
    "half a checkpoint": (cut_short("checkpoint.eqx", 60), State.begun),
    "a checkpoint": (resumable, State.resumable),
    "a run": (complete, State.complete),
    "a file of the user's": (foreign, State.foreign),
    "a folder of the user's": (lambda folder: folder.out.mkdir(), State.foreign),
    "a file in its place": (lambda folder: folder.out.write_text("mine"), State.foreign),
    "a dangling link": (
        lambda folder: folder.partial.symlink_to(folder.out.parent / "none"),
        State.foreign,
    ),
}
REFUSALS = {  # by state and --resume
    (State.absent, True): "there is no interrupted run to resume",
    (State.resumable, False): "continue it with --resume, or remove that folder",
    (State.complete, False): "its results are not overwritten",
    (State.foreign, False): "it is not touched. Choose another --out",
    (State.foreign, True): "it is not touched. Choose another --out",
}


def listing(folder: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = str(path.readlink()) if path.is_symlink() else ""
        if path.is_file():
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_what_weigh_does_in_every_state(tmp_path, name, resume):
    folder, (make, state) = RunFolder.of(tmp_path / "run"), MAKE[name]
    make(folder)
    before = listing(tmp_path)
    assert folder.state() is state
    if refusal := REFUSALS.get((state, resume)):
        with pytest.raises(RunFolderError, match=refusal):
            folder.check(resume=resume)
        assert listing(tmp_path) == before
        return
    assert folder.check(resume=resume) is state
    if state is State.complete:
        folder.check_same_run(TOML)
        with pytest.raises(RunFolderError, match=r"differs from this call in 'sha256'"):
            folder.check_same_run(CONFIG.to_toml({"train": "3" * 64, "trusted": "2" * 64}))
        return
    with folder.writing(TOML, resume=resume) as partial:
        kept = {"checkpoint.eqx"} if state is State.resumable else set()
        assert {path.name for path in partial.iterdir()} == {LOCK, "config.toml"} | kept
        assert (partial / "config.toml").read_text() == TOML
        write_text(partial / "summary.json", "{}")
    assert folder.state() is State.complete
    assert sorted(listing(tmp_path)) == ["run", "run/config.toml", "run/summary.json"]


def write_and_fail(
    folder: RunFolder, error: BaseException, files: dict[str, bytes], saved: bool
) -> None:
    with folder.writing(TOML) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if saved:
            write_sealed(partial / "checkpoint.eqx", CHECKPOINT_KIND, {}, b"state")
        raise error


@pytest.mark.parametrize("error", [InputError("bad"), KeyboardInterrupt(), OSError("full")])
@pytest.mark.parametrize("saved", [False, True])
def test_what_a_failure_leaves(tmp_path, error, saved):
    folder = RunFolder.of(tmp_path / "new" / "run")
    with pytest.raises(type(error)):
        write_and_fail(folder, error, {".bilevel-0123ab-1-01234567.partial": b"half"}, saved)
    if saved and not isinstance(error, InputError):
        assert folder.state() is State.resumable
    else:
        assert listing(tmp_path) == {}
    if folder.state() is State.resumable:  # bad input of a run that goes on takes nothing away
        with pytest.raises(InputError), folder.writing(TOML, resume=True):
            raise InputError("bad")
        assert folder.state() is State.resumable


def test_what_the_user_put_there_stays(tmp_path):
    folder = RunFolder.of(tmp_path / "run")
    with pytest.raises(InputError):
        write_and_fail(folder, InputError("bad"), {"notes.txt": b"mine"}, saved=False)
    assert listing(tmp_path) == {"run.partial": "", "run.partial/notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["weights.parquet", "config.toml", "checkpoint.eqx", "lock"])
def test_a_planted_link_is_not_followed(tmp_path, name):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = RunFolder.of(tmp_path / "run")
    begun(folder)
    (folder.partial / name).unlink(missing_ok=True)
    (folder.partial / name).symlink_to(precious)
    for resume in (False, True):
        with pytest.raises(RunFolderError, match=rf"{name} is no file of a run"):
            folder.check(resume=resume)
    # Planted while the run writes, it is replaced.
    with whole_file(folder.partial / name) as file:
        file.write(b"ours")
    assert (folder.partial / name).read_bytes() == b"ours"
    assert not (folder.partial / name).is_symlink()
    assert precious.read_text() == "mine"


def test_the_second_of_two_commands_says_who_holds_the_folder(tmp_path):
    folder = RunFolder.of(tmp_path / "run")
    with folder.writing(TOML):
        for resume in (False, True):
            with pytest.raises(RunFolderError, match=rf"in use by process {os.getpid()} on"):
                folder.check(resume=resume)
            with pytest.raises(RunFolderError, match="in use by"), folder.writing(TOML):
                pass
        write_text(folder.partial / "summary.json", "{}")
    assert folder.state() is State.complete


HOLD = """
import sys, time
from pathlib import Path
from bilevel.cli._lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_dead_process_is_broken_here_and_by_its_age_elsewhere(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError, match=f"process {process.pid}"), hold(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    assert (tmp_path / LOCK).exists()
    with hold(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()

    # A machine that shares the disk, but not the locks: its heart beats, and then no more.
    (tmp_path / LOCK).write_text(json.dumps({"process": 1, "host": "elsewhere"}))
    with pytest.raises(RunFolderError, match="process 1 on 'elsewhere'"), hold(tmp_path):
        pass
    for beat in (0, time.time() + 1e6):  # nor does a clock that goes wrong keep it for ever
        (tmp_path / LOCK).write_text(json.dumps({"process": 1, "host": "elsewhere"}))
        os.utime(tmp_path / LOCK, (beat, beat))
        with hold(tmp_path):
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")
@pytest.mark.parametrize("planted", ["a pipe", "a folder", "nested"])
def test_a_planted_lock_keeps_nobody_waiting(tmp_path, planted):
    """The pipe once made the command wait for ever; the others ended it in other words than ours."""
    folder = RunFolder.of(tmp_path / "run")
    folder.partial.mkdir()
    path = folder.partial / LOCK
    if planted == "nested":
        path.write_text("[" * 60_000)
        assert folder.check(resume=False) is State.absent
        return
    os.mkfifo(path) if planted == "a pipe" else path.mkdir()
    with pytest.raises(RunFolderError, match="lock is no file of a run"):
        folder.check(resume=False)


@pytest.mark.parametrize("size", [3, 200, 247, 248, 250, 255])
def test_names_of_any_length(tmp_path, size):
    folder = RunFolder.of(tmp_path / ("x" * size))
    with folder.writing(TOML) as partial:
        write_text(partial / "summary.json", "{}")
    assert folder.state() is State.complete
    with pytest.raises(RunFolderError, match="has 256 bytes, more than 255"):
        RunFolder.of(tmp_path / ("x" * 256))


@pytest.mark.parametrize(
    ("out", "word"), [("/", "where all folders are"), ("a/" * 3000, "too long")]
)
def test_paths_that_no_folder_can_have_are_refused(out, word):
    """Once a traceback, and exit code 1."""
    with pytest.raises(RunFolderError, match=word):
        RunFolder.of(out).check(resume=False)


@pytest.mark.parametrize("header", [b"[" * 60_000, b"no json", b"[3]", b"3"])
def test_a_forged_header_of_a_checkpoint_is_damage(tmp_path, header):
    """Its checksum fits; what cannot be read of it once ended the command that looked at it."""
    path = tmp_path / "checkpoint.eqx"
    write_sealed(path, CHECKPOINT_KIND, {}, b"state")
    rest = header + b"\nstate"
    digest = hashlib.sha256(rest).hexdigest().encode()
    path.write_bytes(b"\n".join([CHECKPOINT_KIND.encode(), digest, rest]))
    assert not is_sealed(path, CHECKPOINT_KIND)


def test_links_that_lead_in_a_circle_are_refused(tmp_path):
    """Once a traceback."""
    path = tmp_path / "run"
    path.symlink_to(path)
    with pytest.raises(
        RunFolderError, match=r"leads nowhere|is no run folder"
    ):  # as of Python 3.13
        RunFolder.of(path).check(resume=False)


def test_a_link_to_where_the_run_goes_is_followed_in_messages_too(tmp_path):
    """`--out` may be a link that leads nowhere yet: the run goes where it leads."""
    (tmp_path / "link").symlink_to(tmp_path / "real")
    folder = RunFolder.of(tmp_path / "link")
    resumable(folder)
    assert folder == RunFolder.of(tmp_path / "real")
    assert RunFolder.of(tmp_path / "link").state() is State.resumable
    with folder.writing(TOML, resume=True) as partial:
        write_text(partial / "summary.json", "{}")
    assert (tmp_path / "link" / "summary.json").exists()


def test_a_disk_that_is_full_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    """It was told with none, or with the one that the file has while it is written."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "table.csv"
    with pytest.raises(OSError, match=r"No space left on device: '.*/table.csv'"):
        write_text(path, "x")
    with pytest.raises(OSError, match=r"No such file or directory: '.*/none'"):
        write_text(tmp_path / "none" / "table.csv", "x")
    with (
        pytest.raises(OSError, match=r"File name too long: '.*/x+'"),
        _storage.whole_folder(tmp_path / ("x" * 300)),
    ):
        pass
    monkeypatch.setattr(os, "pwrite", full)  # the first that is written of a run
    folder = RunFolder.of(tmp_path / "new" / "run")
    with pytest.raises(RunFolderError, match="No space left"), folder.writing(TOML):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no lock")
@pytest.mark.parametrize("name", ["another name of a file", "a text of the user's"])
def test_a_file_of_the_users_in_the_place_of_the_lock_is_not_touched(tmp_path, name):
    """Where it was another name of a file elsewhere, that file was once written over."""
    folder, mine = RunFolder.of(tmp_path / "run"), tmp_path / "mine"
    folder.partial.mkdir()
    mine.write_text("{}" if name.startswith("another") else "my work")
    if name.startswith("another"):
        os.link(mine, folder.partial / LOCK)
    else:
        (folder.partial / LOCK).write_text("my work")
    before = listing(tmp_path)
    with pytest.raises(RunFolderError, match="it is not touched"), folder.writing(TOML):
        pass
    assert listing(tmp_path) == before


@pytest.mark.parametrize(("time", "year"), [(86400.0, "1970-01-0."), (4.36e9, "2108-02-2.")])
def test_a_clock_that_models_cannot_hold_is_said_before_anything_is_learned(
    monkeypatch, time, year
):
    monkeypatch.setattr(_weigh_work.time, "time", lambda: time)
    with pytest.raises(OSError, match=rf"stands at {year}, .* Set the clock"):
        _weigh_work.check_clock()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_number_of_a_process_in_another_container_says_nothing_of_ours(tmp_path, monkeypatch):
    """Containers may share a folder and a name: one removed what the other was writing."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "readlink", lambda _: "pid:[1]")
        elsewhere = _storage._host()
    none = 2**22 + 1  # no process has this number
    for host in (elsewhere, _storage._HOST):
        (tmp_path / f".bilevel-{host}-{none}-01234567.partial").touch()
    _storage.remove_leftovers(tmp_path)
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == [elsewhere]


def test_names_that_no_file_of_a_run_can_hold_are_refused_before_anything_is_written():
    for name in ("caf\udce9.csv", "\ud800"):
        with pytest.raises(InputError, match=r"--train .* is not UTF-8"):
            WeighConfig(train=name, label="y", trusted="t", out="o").check_names()


@pytest.mark.parametrize("name", ["\x7f", 'a"b\\', "tab\t", "\u2028", "é", "\x00\x1b"])
def test_any_other_name_comes_back_from_the_config(tmp_path, name):
    folder = RunFolder.of(tmp_path / "run")
    config = WeighConfig(train=name, label=name, trusted="t", out="o", drop=(name,))
    toml = config.to_toml({"train": "", "trusted": ""})
    folder.partial.mkdir()
    write_text(folder.partial / "config.toml", toml)
    saved = folder.saved_config()
    assert [saved["train"], saved["label"], saved["drop"]] == [name, name, [name]]


def test_every_prefix_of_a_config_and_every_flipped_byte_of_a_checkpoint(tmp_path):
    """No state but the five, and no exception."""
    folder = RunFolder.of(tmp_path / "run")
    resumable(folder)
    config, path = TOML.encode(), folder.partial / "config.toml"
    for size in range(0, len(config), 7):
        path.write_bytes(config[:size])
        assert folder.state() in (State.begun, State.resumable)
        assert (folder.state() is State.resumable) <= (b"[sha256]" in config[:size])
    path.write_bytes(config)
    path = folder.partial / "checkpoint.eqx"
    whole = path.read_bytes()
    for place in np.arange(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert folder.state() is State.begun
