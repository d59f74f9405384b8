"""Fits that need nothing of each other: one after the other, or where joblib's backend runs them."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import threadpoolctl
from sklearn.utils.parallel import Parallel, delayed

SMALL = 2_000_000  # entries of a table up to which one thread is faster than several
# The same for trees. By judgement: a pass over so many entries takes a tenth of a millisecond, which
# is about what it takes to wake a thread.
SMALL_FOR_TREES = 100_000


def independent(fit: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> list[Any]:
    """`fit(*task)` for each task, in this order.

    Within `joblib.parallel_config` its backend runs them: processes of this machine, Dask, Ray, or
    what else is registered with joblib. What they compute is the same to the last bit where BLAS has
    one thread here, as it then has one there too; else they add up in the order of as many threads as
    a worker has.
    """
    pool = (
        Parallel()
    )  # scikit-learn's, which passes on its configuration and the filters of warnings
    if pool.n_jobs == 1:
        return [fit(*task) for task in tasks]
    alone = all(
        found["num_threads"] == 1
        for found in threadpoolctl.threadpool_info()
        if found["user_api"] == "blas"
    )
    return list(pool(delayed(_fit)(fit, task, alone) for task in tasks))


def _fit(fit: Callable[..., Any], task: tuple[Any, ...], alone: bool) -> Any:
    with one_thread() if alone else contextlib.nullcontext():
        return fit(*task)


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
