"""The run folder: what state it is in, who holds it, and how it comes to be.

A run is written to `OUT.partial`, which gets the name `OUT` when it is complete. What each command
does in each state is in `docs/run_folder.md`.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from .._reading.parquet import PARQUET
from .._storage import (
    CHECKPOINT_KIND,
    check_is_no_device,
    is_sealed,
    is_unfinished,
    remove_leftovers,
    rename_folder,
    write_text,
)
from ..reweighting._inputs.checks import InputError, named
from ._app import RunFolderError, note, parse_toml
from ._lock import LOCK, hold, holder
from ._weigh_config import read_toml

CONFIG, SUMMARY, CHECKPOINT = "config.toml", "summary.json", "checkpoint.eqx"
PASSING = (CHECKPOINT, "history.jsonl")  # which a complete run has no more
FILES = frozenset(
    [
        *(CONFIG, SUMMARY, LOCK, *PASSING, "weights.parquet", "worst.csv", "model.skops"),
        *("scorer.npz", "scorer.skops", "report.json", "report.html"),
        *("rows.parquet", "annotators.csv", "labels.parquet"),
    ]
)
JUDGED_KIND = "bilevel judged rows, version 1"
_JUDGED = re.compile(r"judged-[0-9]{15}")  # rows of a large table, until the run is complete
LONGEST_NAME = 255  # bytes, of a file in the usual file systems


class State(StrEnum):
    """What `--out` holds."""

    absent = "absent"  # nothing
    begun = "begun"  # a run that was stopped before anything was kept
    resumable = "resumable"  # a run that was stopped, and its checkpoint
    complete = "complete"  # a run
    foreign = "foreign"  # something else, which is not touched


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run is written, and where it is until it is complete.

    Attributes:
        out, partial: the two folders.
    """

    out: Path
    partial: Path

    @classmethod
    def of(cls, out: str | os.PathLike) -> "RunFolder":
        """The folders that `--out` means; links in it are followed.

        Raises:
            RunFolderError: the name is too long, or it has none; links lead in a circle.
        """
        try:
            path = Path(out).resolve()
        except (OSError, RuntimeError) as error:
            raise RunFolderError(f"--out {out} leads nowhere: {error}. Choose another.") from error
        if not path.name:
            raise RunFolderError(f"--out {out} is where all folders are; choose another --out.")
        size = len(os.fsencode(path.name))
        if size > LONGEST_NAME:
            raise RunFolderError(
                f"the name of the folder --out {out} has {size} bytes, more than 255."
            )
        partial = f"{path.name}.partial"
        if len(os.fsencode(partial)) > LONGEST_NAME:
            partial = f"{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.partial"
        return cls(path, path.with_name(partial))

    def state(self) -> State:
        """What is there."""
        return self.look()[0]

    def look(self) -> tuple[State, str]:
        """The state, and what it was told by."""
        if os.path.lexists(self.out):
            if _is_folder(self.out) and _is_file(self.out / SUMMARY):
                return State.complete, f"the run folder {self.out} exists"
            return State.foreign, f"{self.out} exists, and is no run folder"
        if not os.path.lexists(self.partial):
            return State.absent, f"there is no {self.partial}"
        if not _is_folder(self.partial):
            return State.foreign, f"{self.partial} is no folder"
        entries = sorted(path.name for path in self.partial.iterdir())
        for name in entries:
            ours = name in FILES or _JUDGED.fullmatch(name) is not None
            if not is_unfinished(name) and not (ours and _is_file(self.partial / name)):
                return State.foreign, f"{self.partial / name} is no file of a run"
        if not set(entries) - {LOCK}:
            return State.absent, f"{self.partial} is empty"
        if not self.saved_config():
            return State.begun, f"{CONFIG} is missing or was cut short"
        judged = any(is_sealed(path, JUDGED_KIND) for path in judged_files(self.partial))
        if not judged and not is_sealed(self.partial / CHECKPOINT, CHECKPOINT_KIND):
            there = (self.partial / CHECKPOINT).exists()
            return State.begun, f"{CHECKPOINT} {'is damaged' if there else 'is missing'}"
        return State.resumable, f"an interrupted run is in {self.partial}"

    def saved_config(self) -> dict[str, Any]:
        """The settings of the run that was stopped; nothing if they were cut short."""
        try:
            found = read_toml(self.partial / CONFIG)
        except InputError:
            return {}
        sums = found.get("sha256")  # which come last
        return found if isinstance(sums, dict) and {"train", "trusted"} <= sums.keys() else {}

    def check(self, *, resume: bool) -> State:
        """Whether a run may be written; the state.

        Raises:
            RunFolderError: it may not; nothing was changed.
        """
        if _is_folder(self.partial) and (who := holder(self.partial)):
            raise RunFolderError(
                f"the run folder {self.partial} is in use by {who}. Wait for it, or choose another "
                "--out."
            )
        return self._check_state(resume)

    def _check_state(self, resume: bool) -> State:
        state, found = self.look()
        if state is State.foreign:
            raise RunFolderError(
                f"{found}; it is not touched. Choose another --out, or move it away."
            )
        if state is State.complete and not resume:
            raise RunFolderError(
                f"{found}; its results are not overwritten. Choose another --out, or remove it."
            )
        if state is State.absent and resume:
            raise RunFolderError(
                f"there is no interrupted run to resume in {self.partial}; start it without --resume."
            )
        if state is State.resumable and not resume:
            raise RunFolderError(
                f"{found}: continue it with --resume, or remove that folder to start again."
            )
        try:
            parent = next(p for p in (self.partial, *self.partial.parents) if p.exists())
        except OSError as error:  # a path that is too long
            raise self._unwritable(error) from error
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise RunFolderError(
                f"the folder {self.partial} cannot be written ({parent} is "
                f"{'read-only' if parent.is_dir() else 'a file'}); choose another --out."
            )
        return state

    def check_same_run(self, toml: str) -> None:
        """Refuse to go on with a run that had other settings or other files.

        Raises:
            RunFolderError: with what differs.
        """
        folder = self.partial if self.partial.exists() else self.out
        try:
            before, now = read_toml(folder / CONFIG), parse_toml(toml.encode())
        except InputError as error:
            raise RunFolderError(f"{error} Choose another --out, or remove that folder.") from error
        different = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
        if different:
            raise RunFolderError(
                f"the interrupted run in {folder} differs from this call in {named(different)}: "
                f"{ {k: before.get(k) for k in different} } then, "
                f"{ {k: now.get(k) for k in different} } now. Repeat the call that was "
                "interrupted, or remove that folder."
            )

    @contextlib.contextmanager
    def writing(
        self, toml: str | None, *, resume: bool = False, private: bool = False
    ) -> Iterator[Path]:
        """The folder to write to, held for this process alone; at the end it is named `out`.

        If the block fails, what a run can go on from stays, and otherwise nothing does.

        Args:
            toml: the settings, the first file that is written.
            resume: whether to go on with a run that was stopped.
            private: whether no file may name what the command was called with.

        Raises:
            RunFolderError: somebody else holds it or has written it, or it cannot be written.
        """
        new_parents = [
            path for path in self.partial.parents if not path.exists()
        ]  # innermost first
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(hold(self.partial, private))
            except OSError as error:
                self._remove_empty(new_parents)
                raise self._unwritable(error) from error
            state = self._check_state(resume)
            try:
                remove_leftovers(self.partial, all_of_them=True)
                if state is not State.resumable:
                    self._say_what_was_left(state)
                    self._clear()
                    if toml is not None:
                        write_text(self.partial / CONFIG, toml)
            except OSError as error:
                self._remove(new_parents)
                raise self._unwritable(error) from error
            try:
                yield self.partial
            except BaseException as error:
                # Bad input leaves nothing. After anything else what was finished stays, for --resume.
                bad = isinstance(error, InputError) and state is not State.resumable
                if bad or self.state() is not State.resumable:
                    self._remove(new_parents)
                raise
            remove_leftovers(self.partial, all_of_them=True)
            for path in [*judged_files(self.partial), *(self.partial / x for x in PASSING)]:
                path.unlink(missing_ok=True)
            rename_folder(self.partial, self.out)
            (self.out / LOCK).unlink(missing_ok=True)

    def remove_lock(self) -> None:
        """Remove the lock that a process left in the complete run, if it died as it removed it."""
        if _is_file(self.out / LOCK) and not holder(self.out):
            (self.out / LOCK).unlink(missing_ok=True)

    def _say_what_was_left(self, state: State) -> None:
        if state is State.begun:
            note(
                f"a run that was stopped left nothing in {self.partial} to go on from "
                f"({self.look()[1]}): it starts from the beginning."
            )

    def _clear(self) -> None:
        for path in [*judged_files(self.partial), *(self.partial / x for x in FILES - {LOCK})]:
            path.unlink(missing_ok=True)

    def _remove(self, new_parents: list[Path]) -> None:
        """Remove our files, and the folders if nothing else is in them."""
        remove_leftovers(self.partial, all_of_them=True)
        with contextlib.suppress(OSError):
            self._clear()
            (self.partial / LOCK).unlink(missing_ok=True)
        self._remove_empty(new_parents)

    def _remove_empty(self, new_parents: list[Path]) -> None:
        for folder in (self.partial, *new_parents):
            with contextlib.suppress(OSError):  # something of somebody else's is in it
                folder.rmdir()

    def _unwritable(self, error: OSError) -> RunFolderError:
        return RunFolderError(
            f"the folder {self.partial} cannot be written ({error.strerror}); choose another --out."
        )


def check_not_read(out: Path | None, *read: Path | str | None) -> None:
    """Refuse to write over what a command reads (a table, a file of a run but its page), or a device.

    Args:
        out: the file to write, if any.
        read: files and folders.

    Raises:
        RunFolderError: it is one of them, or in one of them; or it is a device, a pipe or a socket.
    """
    if out is None or not out.exists():
        return
    try:
        check_is_no_device(out)
    except OSError as error:
        raise RunFolderError(f"--out {error}") from error
    target = out.resolve()
    of_runs = out.name in FILES - {"report.html"} or out.suffix.lower() in PARQUET
    for path in (Path(one).resolve() for one in read if one is not None):
        if target == path or (of_runs and path in target.parents):
            raise RunFolderError(
                f"--out {out} is what this command reads{f', in {path}' if path != target else ''}; "
                "nothing is overwritten. Write to another file."
            )


def judged_file(start: int) -> str:
    """The name of the file of judged rows that begins with this one."""
    return f"judged-{start:015d}"


def judged_files(folder: Path) -> list[Path]:
    """The files of judged rows in a folder, by their rows."""
    return sorted(path for path in folder.iterdir() if _JUDGED.fullmatch(path.name))


def _is_folder(path: Path) -> bool:
    """A folder, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_file(path: Path) -> bool:
    """A file, and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
