"""Several processes that share a run of `weigh`, each started by its own command, as on machines.

`jax.distributed` brings them together: by an address that is given, or by what Slurm and Open MPI tell
their processes. Each of them is a child of a process that only waits for it, because JAX aborts when
another process is lost: the parent says so in words, and ends with the exit code `LOST`.
"""

import contextlib
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import typer

from .._processes import end_with
from .._storage import read_own, write_own
from ._app import LOST, LostProcessError, fail, stop
from ._signals import signal_name

SHARED = 60.0  # seconds until a file of another machine is seen
HEARTBEAT = 10  # seconds until a process that is not heard of counts as lost
TOGETHER = 300  # seconds within which all must have come
FOREVER = 10**9  # milliseconds
NOTHING = "-"  # for the others to do
WAITED_FOR = "BILEVEL_WAITED_FOR"  # a variable of the child: who waits


class Places(NamedTuple):
    """How the processes find each other; what is None is found by JAX.

    Attributes:
        coordinator: HOST:PORT of the first process.
        num_processes, process_id: how many there are, and which one this is.
    """

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


CLUSTERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # how many `srun`, `mpirun` started


def are_several(places: Places) -> bool:
    """Whether there are said to be several, or Slurm or Open MPI started several."""
    of_cluster = any(os.environ.get(name, "1") not in ("", "1") for name in CLUSTERS)
    return places.coordinator is not None or of_cluster


def start_together(places: Places, hint: Callable[[], str]) -> Places | None:
    """Where this process is one of several: in a child how it finds the others, else None.

    The parent of such a child does not return: it waits, and ends as the child does.

    Args:
        places: `--coordinator`, `--num-processes`, `--process-id`.
        hint: how to go on after an interruption.
    """
    if parent := os.environ.pop(WAITED_FOR, None):
        end_with(int(parent))
        return places
    if not are_several(places):
        return None
    _wait(hint)


def _wait(hint: Callable[[], str]) -> NoReturn:
    """Run this command in a child, and end as it does."""
    environment = {**os.environ, WAITED_FOR: str(os.getpid())}
    command = [sys.executable, "-c", "from bilevel.cli import main; main()", *sys.argv[1:]]
    child = subprocess.Popen(command, env=environment, start_new_session=os.name == "posix")
    try:
        while (code := child.poll()) is None:
            time.sleep(0.1)
    except KeyboardInterrupt:  # which a terminal sends to this process alone
        child.send_signal(stop.signal or signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(7.0)
        child.kill()  # its files are whole or absent
        child.wait()
        stop.said = True
        raise typer.Exit(stop.code) from None
    if code >= 0:  # it has said why
        sys.exit(code)
    fail(f"a process was lost ({signal_name(-code)}), the others are stopped: {hint()}", LOST, "\n")


class Job(Protocol):
    """What all processes do at once."""

    def do(self, team: "Team") -> None:
        """What falls to one of them."""


class Team:
    """The processes of a run; the first one leads, and tells the others what to do, once.

    What they say to each other goes through the store of the coordinator, and not through collective
    operations: those give up when a process comes half a minute later than another. Anybody who
    reaches the coordinator's port may write to its store. What is to be done is therefore a file in
    the run folder, which only this user can have made, and the store has its name and sum.

    Args:
        index, count: which one this is, and how many there are.
        folder: where the run is written until it is complete.
        client: of the coordinator, as JAX has it.
    """

    def __init__(self, index: int, count: int, folder: Path | None = None, client: Any = None):
        self.index, self.count, self._told = index, count, count == 1
        self._folder, self._client, self._file = folder, client, None

    def tell(self, job: Job | None) -> None:
        """Of the first process: what the others do; None if there is nothing."""
        if not self._told:
            self._told, said = True, NOTHING
            if job is not None and self._folder is not None:
                content = pickle.dumps(job)
                self._file = write_own(self._folder, content)
                said = f"{self._file.name} {hashlib.sha256(content).hexdigest()}"
            with _lost():
                self._client.key_value_set("bilevel/job", said)

    def work(self) -> None:
        """Of the others: do what the first one tells."""
        with _lost():
            said = self._client.blocking_key_value_get("bilevel/job", FOREVER)
        if said != NOTHING and self._folder is not None:
            name, _, digest = said.partition(" ")
            try:
                content = read_own(self._folder / Path(name).name, SHARED)
            except FileNotFoundError as error:
                raise LostProcessError(
                    f"{self._folder} of this process is not that of the first one: give all of them "
                    "an --out on a file system that they share."
                ) from error
            if hashlib.sha256(content).hexdigest() != digest:
                raise LostProcessError("what the first process says to do is not what is written.")
            job: Job = pickle.loads(content)
            job.do(self)
        self.part()

    def dismiss(self) -> None:
        """Of the first process: if the others have been told nothing, that there is nothing."""
        if not self._told:
            self.tell(None)
            self.part()

    def part(self) -> None:
        """Wait until all processes have come to this, and part.

        Raises:
            LostProcessError: one of them has ended.
        """
        if self.count > 1:
            import jax

            with _lost():
                self._client.wait_at_barrier("bilevel/done", FOREVER)
                jax.distributed.shutdown()
            if self._file is not None:
                self._file.unlink(missing_ok=True)


ALONE = Team(0, 1)


@contextmanager
def team_of(places: Places | None, folder: Path) -> Iterator[Team]:
    """The team that this process is in; for the first process, the others end with the block.

    The folder is that of the run, until it is complete.

    Raises:
        LostProcessError: not all of them are there.
    """
    if places is None:
        yield ALONE
        return
    import jax
    from jax._src.distributed import global_state  # whose client orbax uses too

    with _lost():
        jax.distributed.initialize(
            *places,
            initialization_timeout=TOGETHER,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
            # Of processes on one machine nobody else's can reach the port.
            coordinator_bind_address=places.coordinator if _is_local(places.coordinator) else None,
        )
        found = global_state
        team = Team(found.process_id, found.num_processes, folder, found.client)
    try:
        yield team
    except Exception:
        if team.index == 0:
            team.dismiss()
        raise
    if team.index == 0:
        team.dismiss()


def _is_local(coordinator: str | None) -> bool:
    return coordinator is not None and coordinator.rpartition(":")[0] in ("localhost", "127.0.0.1")


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            "the processes of the run have not all come, or one of them has ended "
            f"({str(error)[:300]}). Where they do not find each other, give each of them "
            "--coordinator, --num-processes and --process-id."
        ) from error
