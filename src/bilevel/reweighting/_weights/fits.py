"""Fits that need nothing of each other: one after the other, or where joblib's backend runs them."""

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import threadpoolctl
from sklearn.utils.parallel import Parallel, delayed

from ..._processes import end_with

SMALL = 2_000_000  # entries of a table up to which one thread is faster than several
# The same for trees. By judgement: a pass over so many entries takes a tenth of a millisecond, which
# is about what it takes to wake a thread.
SMALL_FOR_TREES = 100_000
_processes: ContextVar[int] = ContextVar("processes", default=1)


def number_of_processes() -> int:
    """That `shared_among` says; 1 outside."""
    return _processes.get()


@contextlib.contextmanager
def shared_among(processes: int) -> Iterator[None]:
    """Within the block, `independent` fits are made by so many processes of this machine.

    `joblib.parallel_config` would do the same, and would also share what estimators do within one fit
    or prediction: forests then add up the opinions of their trees in another order in each run.
    """
    token = _processes.set(processes)
    try:
        yield
    finally:
        _processes.reset(token)


def independent(fit: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> list[Any]:
    """`fit(*task)` for each task, in this order.

    `shared_among` says how many processes of this machine make them. Else, within
    `joblib.parallel_config`, its backend does: processes of this machine, Dask, Ray, or what else is
    registered with joblib. What they compute is the same to the last bit where BLAS has one thread
    here, as it then has one there too; else they add up in the order of as many threads as a worker
    has.

    Raises:
        BrokenProcessPool: of joblib's own processes one was killed (a `TerminatedWorkerError`), or
            cannot load what it is sent.
        PicklingError: a task cannot be sent.
    """
    return list(in_order(fit, tasks))


def in_order(fit: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """The results of `independent`, one after the other, as soon as they are there."""
    processes, own = number_of_processes(), {}
    if processes > 1:
        # Arrays are sent, not mapped: a mapped one cannot be written to, and lies in a file, for which
        # a container may have no room.
        own = {"n_jobs": processes, "backend": "loky", "max_nbytes": None}
        own |= {"return_as": "generator"}
    # scikit-learn's, which passes on its configuration and the filters of warnings.
    pool = Parallel(**own)
    if pool.n_jobs == 1:
        for task in tasks:
            found = fit(*task)
            del task  # its rows, before the next one has its own
            yield found
        return
    pools = threadpoolctl.threadpool_info()
    many = {threads["user_api"] for threads in pools if threads["num_threads"] > 1}
    limits = dict.fromkeys({"blas", "openmp"} - many, 1)
    if processes == 1:
        found: Any = pool(delayed(_there)(fit, task, limits) for task in tasks)
        yield from found
        return
    parent = os.getpid()
    with _deaf_children():
        results: Any = pool(delayed(_in_child)(parent, fit, task, limits) for task in tasks)
    for result, said in results:
        for warning in said:
            warnings.warn(warning, stacklevel=2)
        yield result


def _there(fit: Callable[..., Any], task: tuple[Any, ...], limits: dict[str, int]) -> Any:
    with threadpoolctl.threadpool_limits(limits):
        return fit(*task)


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start here do not hear Ctrl-C, which a terminal sends to them and the parent.

    They would say so in tracebacks, while the parent ends them.
    """
    if os.name != "posix":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_child(
    parent: int, fit: Callable[..., Any], task: tuple[Any, ...], limits: dict[str, int]
) -> tuple[Any, list[Warning]]:
    """(the result, warnings, which the parent gives), in a process that ends when the parent does."""
    end_with(parent)
    with warnings.catch_warnings(record=True) as said:
        result = _there(fit, task, limits)
    return result, [warning.message for warning in said if isinstance(warning.message, Warning)]


def few_threads(size: int) -> contextlib.AbstractContextManager[Any]:
    """One thread for a small problem: more only wait for each other, and OpenMP's in a busy loop.

    Where other processes have the cores, boosted trees on a few hundred rows then take twenty times as
    long, and as much more CPU time.
    """
    if size > SMALL:
        return contextlib.nullcontext()
    return one_thread() if size > SMALL_FOR_TREES else threadpoolctl.threadpool_limits(1)


def one_thread() -> contextlib.AbstractContextManager[Any]:
    """One thread for the matrix products."""
    return threadpoolctl.threadpool_limits(1, user_api="blas")
