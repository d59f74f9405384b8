"""A process that dies, or a disk that fails, at every call of the one writer."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disturbed import Bench
from server import KILL, Server, build_shim

from bilevel import _storage
from bilevel._storage import (
    CHECKPOINT_KIND,
    is_sealed,
    whole_file,
    whole_folder,
    write_sealed,
    write_text,
)
from bilevel.cli._run_folder import RunFolder, State
from bilevel.cli._weigh_config import WeighConfig

TOML = WeighConfig(train="a", label="y", trusted="b", out="c").to_toml({"train": "", "trusted": ""})
CALLS = ("open", "fdopen", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "ftruncate")


class Dead(BaseException):
    """The process is no more: whatever it would still do fails as well."""


class Faults:
    """While it is entered, the k-th of `CALLS` fails, or is the last one."""

    def __init__(self, at: int, error: int | None):
        self._at, self._error, self._patch = at, error, pytest.MonkeyPatch()
        self.calls = 0

    def __enter__(self) -> "Faults":
        for name in CALLS:
            self._patch.setattr(os, name, self._counted(vars(os)[name]))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _counted(self, real: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self._error is None and self.calls > self._at:
                raise Dead
            if self.calls == self._at + 1:
                raise OSError(self._error, os.strerror(self._error or 0))
            return real(*arguments, **options)

        return call


def job(folder: RunFolder, resume: bool) -> None:
    """What a run writes, and how it goes on from its checkpoint."""
    with folder.writing(TOML, resume=resume) as partial:
        if not is_sealed(partial / "checkpoint.eqx", CHECKPOINT_KIND):
            write_sealed(partial / "checkpoint.eqx", CHECKPOINT_KIND, {"step": 1}, b"state")
        write_text(partial / "weights.parquet", "weights")
        write_text(partial / "summary.json", "{}")


def finish(folder: RunFolder) -> State:
    """Go on as its state says; the state that was found."""
    found = folder.state()
    if found is not State.complete:
        folder.check(resume=found is not State.absent)
        job(folder, resume=found is not State.absent)
    folder.remove_lock()
    return found


def result(folder: RunFolder) -> dict[str, bytes]:
    home = folder.out.parent
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "error",
    [None, errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)],
    ids=["dies", "ENOSPC", "EIO"],
)
def test_a_run_ends_well_whatever_call_fails(tmp_path, error):
    def fresh(name: object) -> RunFolder:
        home = tmp_path / str(name)
        home.mkdir()
        return RunFolder.of(home / "run")

    right = fresh("right")
    with Faults(10**6, error) as counted:
        job(right, resume=False)
    assert counted.calls > 30
    seen = set()
    for k in range(counted.calls):
        folder = fresh(k)
        # A RunFolderError is a ValueError.
        with Faults(k, error), contextlib.suppress(Dead, OSError, ValueError):
            job(folder, resume=False)
        seen.add(finish(folder))
        assert result(folder) == result(right), k
    assert State.foreign not in seen
    assert {State.absent, State.begun, State.resumable} <= seen or error is not None


@pytest.mark.parametrize("error", [None, errno.ENOSPC, errno.EIO])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path, error):
    path, seen = tmp_path / "file", set()
    for k in range(12):
        path.write_text("old")
        with Faults(k, error), contextlib.suppress(Dead, OSError), whole_file(path) as file:
            file.write(b"new")
        seen.add(path.read_text())
        left = [p for p in tmp_path.iterdir() if p != path]
        assert len(left) <= (error is None)  # a process that has died removes nothing
        for leftover in left:
            assert leftover.name.startswith(".bilevel-")
            leftover.unlink()
    assert seen == {"old", "new"}


@pytest.mark.parametrize("error", [None, errno.ENOSPC])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path, error):
    """`fix` and `collect` once left a half folder, which the next call refused to touch."""
    seen = set()
    for k in range(30):
        _storage._looked_into.clear()
        home = tmp_path / str(k)
        with (
            Faults(k, error),
            contextlib.suppress(Dead, OSError),
            whole_folder(home / "out") as new,
        ):
            for name in ("a", "b"):
                write_text(new / name, name)
        whole = (home / "out").exists()
        seen.add(whole)
        assert not whole or sorted(p.name for p in (home / "out").iterdir()) == ["a", "b"]
        if not whole and home.exists():
            _storage.remove_leftovers(home, all_of_them=True)
            assert not list(home.iterdir())
    assert seen == {True, False}


@pytest.mark.slow  # quick: the same at the calls of the writer
def test_the_real_command_at_every_fifth_call(tmp_path):
    shim = build_shim(tmp_path)
    if shim is None:
        pytest.skip("no C compiler")
    with Server(shim) as server:
        bench = Bench(server, tmp_path / "bench", [], known=True)
        for k in range(0, bench.calls, 5):
            _, wrong = bench.disturb(folder=bench.folder, at=k, mode=KILL)
            assert not wrong, k


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    alive = tmp_path / f".bilevel-{_storage._HOST}-{os.getppid()}-01234567.partial"
    dead = tmp_path / f".bilevel-{_storage._HOST}-{2**22 + 1}-01234567.partial"
    elsewhere = tmp_path / ".bilevel-ffffff-1-01234567.partial"
    for path in (alive, dead, elsewhere):
        path.write_text("half")
    write_text(tmp_path / "file", "text")
    assert {p.name for p in tmp_path.iterdir()} == {"file", alive.name, elsewhere.name}
    _storage.remove_leftovers(tmp_path, all_of_them=True)
    assert [p.name for p in Path(tmp_path).iterdir()] == ["file"]
