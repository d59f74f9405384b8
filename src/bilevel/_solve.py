"""`solve`: drives the compiled loop on the host."""

import numbers
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree, UInt32

from ._algorithm.base import AbstractAlgorithm, State
from ._callback import AbstractCallback, Chunk
from ._checks import (
    UNDER_TRANSFORMATION,
    any_tracer,
    check_call,
    check_fits,
    check_kinds,
    memory_of,
)
from ._chunk import NO_RATIO, Row, RunOptions, Status, Tolerances, run_chunk
from ._ending import (
    Ran,
    ending,
    ending_of_converged,
    ending_of_short,
    look_lower,
    spare_evaluations,
    warn_of_singular_hessian,
    warn_of_steps,
)
from ._inner.closed_form import ClosedForm
from ._loaders import Loaders
from ._pinned import Pins, compiled, hashable, pinned
from ._problem import BilevelProblem, FixedPointProblem, Problem
from ._processes import refuse_forked
from ._solution import RESULTS, BilevelError, Solution
from ._summary import Run, unknown
from ._variables import Formula, Uniform


# `eqx.filter_jit` would sort arrays from the rest at every call; a run does it once.
@partial(jax.jit, static_argnums=(0, 3), donate_argnums=2)
def _compiled_chunk(
    static: tuple[Any, ...], arrays: Any, changing: tuple[State, Status], chunk_size: int
) -> tuple[State, Status, Row]:
    leaves, structure, _ = static
    problem, algorithm, options = eqx.combine(arrays, jax.tree.unflatten(structure, leaves))
    return run_chunk(problem, algorithm, options, *changing, chunk_size=chunk_size)


@partial(jax.jit, static_argnums=0)
def _compiled_init(
    static: tuple[Any, ...], arrays: Any, u0: PyTree, w0: PyTree, key: Key[Array, ""]
) -> State:
    leaves, structure, _ = static
    problem, algorithm, _ = eqx.combine(arrays, jax.tree.unflatten(structure, leaves))
    return jax.tree.map(_own, algorithm.init(problem, u0, w0, key))


_copy = jax.jit(lambda state: jax.tree.map(_own, state))
_norm = jax.jit(lambda u, w: optax.tree.norm((u, w)))


def solve(
    problem: Problem,
    algorithm: AbstractAlgorithm,
    u0: PyTree,
    w0: PyTree,
    *,
    num_steps: int,
    key: Key[Array, ""] | UInt32[Array, "2"] | int | np.integer | None = None,
    tol: float | Tolerances | None = None,
    callbacks: Sequence[AbstractCallback] = (),
    state: State | None = None,
    trace_every: int = 1,
    chunk_size: int = 256,
    throw: bool = True,
) -> Solution:
    """Run an algorithm: chunks of compiled steps, and callbacks between them.

    Args:
        problem: what to solve.
        algorithm: how.
        u0: the starting outer variable, a point of `problem.geometry`'s set: a pytree of
            floating-point arrays. It may contain an `equinox.Module`, whose floating-point arrays are
            then the variable and all else is static, and arrays of several dtypes, which are updated
            in the widest of them. `solution.u` is like it; `solution.state` and the callbacks have
            the arrays alone, in one dtype.
        w0: the starting inner variable; the same.
        num_steps: the number of outer steps *in all*; a run that is resumed at step 40 of 100 makes
            60 more.
        key: for the samplers, `jax.random.key(0)` by default; a whole number is a seed. Ignored when
            `state` is given.
        tol: stop when the outer, the inner *and* the linear residual are all at or below it, at the
            point that the last step started from; a float or `Tolerances`. `None`: make all steps.
            The three residuals are absolute, in the units of the gradients; with minibatches they
            are noisy.
        callbacks: called in order after each chunk, see `ProgressBar`, `Logger`, `Checkpoint`,
            `StopWhen`. They are never called in the middle of a chunk.
        state: go on from here in place of `u0`, `w0` (which then only give the structure); it is
            copied and stays usable.
        trace_every: record one step in so many, and the last one. Convergence is tested at these
            trace points only. Recording costs a projection onto U.
        chunk_size: the number of steps per chunk. It never changes the result.
        throw: raise `BilevelError` on a failure; if False, look at `solution.result`.

    Returns:
        A `Solution`; `print` shows why the run ended. Its result is `successful` if the run
        converged, or made its steps with `tol=None`; `outer_max_steps_reached` if it had a `tol` and
        did not meet it; `outer_divergence` if its steps and a residual grew 30-fold and more, so that
        what it returns is no solution (where a run has under eight trace points and ends with a long
        step, up to three steps more are looked at); `inner_divergence` if in the last half of the
        trace every inner solve ended with a larger residual than it began with;
        `loader_exhausted` if a `FromLoader` had no batches left;
        `lower_level_not_minimal` if the run converged and a look around w, for a twentieth of its cost
        or on a small problem, found that w is no minimum of f: see `check_lower_level`.

    Warns:
        UserWarning: `state` has made more than `num_steps` steps already, so that none is made.
        HypergradientWarning: once, if a linear solver met negative curvature or did not contract, or
            an inner solve ended with a larger residual than it began with; and, on a small problem,
            if the linear residual stays because the inner Hessian is singular.

    Raises:
        BilevelError: a number became non-finite, the run blew up, `tol` was not met, a loader
            ended, or a lower inner minimum was found (with `throw`); the partial solution is its
            attribute `solution`.
        ValueError: `u0` is not in U, an objective is not a scalar, a count is below 1, or a tolerance
            below 0.
        MemoryError: a step needs more memory than there is.
        RuntimeError: this process was forked after JAX was used.
        TypeError: a leaf is complex or no floating-point array; an argument, a callback or a sampler
            is of another kind; or `solve` is called under a jax transformation.

    >>> import jax.numpy as jnp, lineax as lx, optax
    >>> problem = BilevelProblem(  # Phi(u) = (u - 1)^2 / 2, through w*(u) = u
    ...     outer=lambda u, w, _: 0.5 * (w - 1.0) ** 2, inner=lambda u, w, _: (w - u) ** 2
    ... )
    >>> from bilevel import AID, DoubleLoop, GradientInner
    >>> inner = GradientInner(optax.sgd(0.5), num_steps=1)
    >>> method = DoubleLoop(inner, AID(lx.CG(1e-6, 1e-6)), optax.sgd(1.0))
    >>> solution = solve(problem, method, jnp.array(0.0), jnp.array(0.0), num_steps=10, tol=1e-5)
    >>> float(solution.u), solution.stats["num_steps"]
    (1.0, 2)
    """
    refuse_forked()
    check_kinds(problem, algorithm, callbacks)
    began = time.perf_counter()
    asked, own = (problem, algorithm), Pins(problem)
    given, size = check_call(pinned(problem, own), u0, w0, num_steps, trace_every, chunk_size)
    loaders = Loaders(algorithm, state)
    # Of the programs, not of what reads batches; also of the methods of networks within u and w.
    pins = own, Pins(loaders.algorithm), Pins((given.forms, given.u, given.w))
    problem, algorithm = given.problem, _with_formulas(loaders.algorithm, given)
    tolerances = _tolerances(tol)
    options = RunOptions(
        _on_device(num_steps, np.int32),
        _on_device(trace_every, np.int32),
        jax.tree.map(lambda x: _on_device(x, jnp.result_type(float)), tolerances),
    )
    arrays, rest = eqx.partition((problem, algorithm, options), eqx.is_array)
    leaves, structure = jax.tree.flatten(hashable(rest, pins[1]))
    static = (tuple(leaves), structure, pins)
    # A chunk reuses the memory of the state it is given, so that must belong to nobody else.
    if is_new := state is None:
        with memory_of(algorithm):
            state = cast(State, _compiled_init(static, arrays, given.u, given.w, _typed_key(key)))
            jax.block_until_ready(state.step)
    else:
        check_fits(state, problem, algorithm, given.u, given.w)
        state = cast(State, _copy(state))
        size = float(_norm(state.u, state.w))
    at_step = started = int(state.step)
    if at_step > num_steps:  # where they are equal, a finished run is repeated
        warnings.warn(
            f"`state` is at step {at_step}, and `num_steps` is the number of steps in all, so with "
            f"num_steps={num_steps} no step is made. For 100 more pass num_steps={at_step + 100}.",
            stacklevel=2,
        )
    status = Status(_on_device(at_step >= num_steps, np.bool_), RESULTS.outer_max_steps_reached)
    trace: list[dict[str, np.ndarray]] = []
    stopped = exhausted = False
    try:
        while True:
            with memory_of(algorithm):
                state, status, rows = cast(
                    tuple[State, Status, Row],
                    _compiled_chunk(static, arrays, (state, status), chunk_size),
                )
                if any_tracer((state, status, rows)):
                    raise TypeError(UNDER_TRANSFORMATION)
                rows = _fetch(rows)  # which waits for the steps
            trace.append(rows)
            chunk = Chunk(int(state.step), num_steps, state, rows, *asked, started)
            # Every callback sees every chunk, also when an earlier one asks to stop.
            answers = [bool(callback(chunk)) for callback in callbacks]
            stopped = any(answers)
            if stopped or bool(status.over):
                break
            if loaders:
                came, step = loaders.advance(state), int(state.step)
                if exhausted := not came and step == at_step:
                    _refuse_window(loaders)
                    break
                at_step = step
                algorithm = _with_formulas(loaders.algorithm, given)
                arrays = eqx.filter((problem, algorithm, options), eqx.is_array)
    finally:
        loaders.close()
        for callback in callbacks:
            callback.close()

    result = RESULTS.loader_exhausted if exhausted else status.result
    converged = bool(result == RESULTS.successful)
    if bool(result == RESULTS.outer_max_steps_reached) and (tol is None or stopped):
        result = RESULTS.successful
    columns = {name: np.concatenate([rows[name] for rows in trace]) for name in trace[0]}
    grown = ""
    ran = Ran(columns, size, float(_norm(state.u, state.w)))

    def start() -> Iterator[float]:
        if is_new and columns["step"][0] > 1:
            yield float(_values(given.problem, given, u0, w0)[0])

    def later() -> Iterator[float]:
        """At up to three steps more, by the program that is compiled; infinite if they fail."""
        after = cast(State, _copy(state))
        for step in range(int(state.step) + 1, int(state.step) + 4):
            until = _on_device(step, np.int32)
            further = options._replace(num_steps=until, trace_every=until)
            again = eqx.filter((problem, algorithm, further), eqx.is_array)
            going_on = Status(_on_device(False, np.bool_), RESULTS.outer_max_steps_reached)
            after, ended, rows = cast(
                tuple[State, Status, Row],
                _compiled_chunk(static, again, (after, going_on), chunk_size),
            )
            finite = ended.result in (RESULTS.successful, RESULTS.outer_max_steps_reached)
            yield float(_fetch(rows)["outer_value"][-1]) if finite else np.inf

    if converged:
        result, grown = ending_of_converged(ran)
    else:
        result, grown = ending(result, ran)
        if not grown and not loaders:  # whose batches are gone
            result, grown = ending_of_short(result, ran, start(), later())
    u, w = given.restore(state.u, state.w)
    if converged and not grown and (spare := spare_evaluations(problem, algorithm, state)):
        result, grown = look_lower(cast(BilevelProblem, problem), state, spare)
    solution = Solution(
        u=u,
        w=w,
        result=result,
        state=state,
        trace=columns,
        stats={
            "num_steps": int(state.step),
            "calls": {name: int(n) for name, n in vars(state.calls).items()},
            "converged": converged,
        },
        run=Run(
            algorithm=type(algorithm).__name__,
            num_steps=num_steps,
            tolerances=None if tol is None else tolerances,
            stopped=stopped,
            seconds=time.perf_counter() - began,
            grown=grown,
            values=unknown if loaders else partial(_values, problem, given),
        ),
    )
    warn_of_steps(columns)
    if not grown and not converged and not loaders:
        warn_of_singular_hessian(problem, state, columns)
    if throw and not bool(result == RESULTS.successful):
        raise BilevelError(
            f"the run ended at step {int(state.step)} of {num_steps}: {RESULTS[result]} "
            f"{grown + ' ' if grown else ''}"
            "(The partial solution is this error's `.solution`; `throw=False` returns it.)",
            solution,
        )
    return solution


def _refuse_window(loaders: Loaders) -> None:
    if not loaders.exhausted:
        raise ValueError(
            "one step draws more batches than a `FromLoader` has on the device. Give it a larger "
            "`window`: at least as many batches as a step draws, which is one per inner gradient and "
            "per product in most methods."
        )


def _with_formulas(algorithm: AbstractAlgorithm, given: Uniform) -> AbstractAlgorithm:
    """The algorithm whose `ClosedForm` sees u as it was given."""
    if given.forms is None:
        return algorithm
    forms = given.forms

    def replace(x: Any) -> Any:
        return ClosedForm(Formula(x.solution, *forms)) if isinstance(x, ClosedForm) else x

    return jax.tree.map(replace, algorithm, is_leaf=lambda x: isinstance(x, ClosedForm))


def _values(problem: Problem, given: Uniform, u: PyTree, w: PyTree) -> tuple[Any, Any]:
    """F and f on all data, for `print`."""
    u, w = given.strip(u, w)
    outer = _outer_value(problem, u, w)
    if isinstance(problem, FixedPointProblem):
        return outer, None
    return outer, _inner_value(problem, u, w)


@compiled
def _outer_value(problem: Problem, u: PyTree, w: PyTree) -> Any:
    return problem.outer(u, w, problem.outer_data)


@compiled
def _inner_value(problem: BilevelProblem, u: PyTree, w: PyTree) -> Any:
    return problem.inner(u, w, problem.inner_data)


def _tolerances(tol: Any) -> Tolerances:
    """One for each residual; no residual meets a negative one."""
    if tol is None:
        return Tolerances(-1.0, -1.0, -1.0)
    each = tol if isinstance(tol, Tolerances) else (tol, tol, tol)
    try:
        outer, inner, linear = (float(x) for x in each)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`tol` must be a number, or `Tolerances(outer, inner, linear)` of numbers, got {tol!r}."
        ) from error
    if not min(outer, inner, linear) >= 0 or np.isnan([outer, inner, linear]).any():
        raise ValueError(f"`tol` must be at least 0, got {tol!r}; `tol=None` makes all steps.")
    return Tolerances(outer, inner, linear)


def _typed_key(key: Any) -> Key[Array, ""]:
    """The given key as a typed key; an integer is a seed, and the default is 0."""
    if key is None or isinstance(key, numbers.Integral):
        return jr.key(0 if key is None else int(key))
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jr.wrap_key_data(key)


def _on_device(x: Any, dtype: Any) -> Array:
    """As an array; unlike `jnp.asarray`, without a compiled conversion."""
    return jax.device_put(np.asarray(x, dtype))


def _own(x: Array) -> Array:
    """A copy without a weak type (of `jnp.full(3, 0.5)`, say), which a step would lose."""
    return x.copy() if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.array(x, x.dtype)


def _fetch(rows: Row) -> dict[str, np.ndarray]:
    """The trace points among a chunk's rows, on the host."""
    columns = {name: np.asarray(column) for name, column in rows._asdict().items()}
    live, ratio = columns.pop("live"), columns["step_ratio"]
    columns["step_ratio"] = np.where(ratio == NO_RATIO, np.asarray(np.nan, ratio.dtype), ratio)
    return {name: column[live] for name, column in columns.items()}
