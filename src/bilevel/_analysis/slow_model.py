"""The joint flow when the model is infinitely slow: the integration behind `slow_model_flow`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.integrate
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from .._hypergradient.implicit import implicit_gradient
from .._pinned import Pins, pinned
from .._problem import BilevelProblem

ENTERS = 1e-6  # the weight with which a row that catches up begins


class Path(NamedTuple):
    """The states at the requested times, the number of switches, and whether the end was reached."""

    u: Float[np.ndarray, "times rows"]
    w: list[PyTree[Array]]
    num_switches: int
    finished: bool


class _Slow(eqx.Module):
    """The motion of (w, u, S) while the rows `on` share the weight, with psi the same on them."""

    problem: BilevelProblem
    linear_solver: lx.AbstractLinearSolver
    w0: PyTree[Array]
    pins: Pins = eqx.field(static=True)

    def field(self, u: Array, w: PyTree[Array]) -> Array:
        return implicit_gradient(self.problem, u, w, self.linear_solver).grad

    @eqx.filter_jit
    def velocity(self, y: Float[Array, " state"], on: Bool[Array, " rows"]) -> Array:
        """The derivative of the state."""
        flat, unravel = ravel_pytree(self.w0)
        w, u = unravel(y[: flat.size]), y[flat.size : flat.size + on.size]
        slope = self.problem.residual(u, w, self.problem.inner_data)
        towards = jax.tree.map(jnp.negative, slope)
        psi, drift = jax.jvp(lambda w: self.field(u, w), (w,), (towards,))
        du = _shares(jax.jacfwd(self.field)(u, w), -drift, on)
        return jnp.concatenate([ravel_pytree(towards)[0], du, psi])

    @eqx.filter_jit
    def levelled(self, u: Array, w: PyTree[Array], on: Bool[Array, " rows"]) -> Array:
        """The shares of the rows `on` after three steps of Newton's method."""

        def newton(_: Any, u: Array) -> Array:
            return u + _shares(jax.jacfwd(self.field)(u, w), -self.field(u, w), on)

        return jax.lax.fori_loop(0, 3, newton, u)


def _shares(jacobian: Array, known: Array, on: Bool[Array, " rows"]) -> Array:
    """The du on the rows `on`, of sum 0, with which `J du - known` is the same on all of them."""
    identity = jnp.eye(on.size, dtype=known.dtype)
    both = on[:, None] & on[None, :]
    rows = jnp.where(both, jacobian, jnp.where(on[:, None], 0, identity))
    column = jnp.where(on, -1.0, 0.0)[:, None].astype(known.dtype)
    matrix = jnp.block([[rows, column], [-column.T, jnp.zeros((1, 1), known.dtype)]])
    right = jnp.concatenate([jnp.where(on, known, 0), jnp.zeros(1, known.dtype)])
    return jnp.linalg.solve(matrix, right)[:-1]


def integrate(
    problem: BilevelProblem,
    rest: Callable[[Array, PyTree[Array]], tuple[Array, bool]],
    u0: Array,
    w0: PyTree[Array],
    ts: np.ndarray,
    linear_solver: lx.AbstractLinearSolver,
    rtol: float,
    max_switches: int,
) -> Path:
    """Smooth pieces, each to the first event; `rest(u, w)` is where the weights go at a switch."""
    pins = Pins((problem, linear_solver))
    n, slow = u0.size, _Slow(pinned(problem, pins), linear_solver, w0, pins)
    flat, unravel = ravel_pytree(w0)
    p = flat.size

    def parts(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return y[:p], y[p : p + n], y[p + n :]

    def settled(u: Array, w: PyTree[Array]) -> tuple[np.ndarray, bool]:
        end, found = rest(u, w)
        if not found:
            return np.asarray(end), False
        level = np.asarray(slow.levelled(end, w, end > 0))
        return level, bool(np.all(level[np.asarray(end) > 0] > 0))

    u, found = settled(u0, w0)
    y = np.concatenate([flat, u, np.zeros(n)])
    t, switches, finished, states = 0.0, 0, found, []
    waiting = list(ts)
    while finished and waiting:
        on = parts(y)[1] > 0
        off = np.flatnonzero(~on & (np.asarray(u0) > 0))

        def velocity(_: float, y: np.ndarray, on: np.ndarray = on) -> np.ndarray:
            return np.asarray(slow.velocity(jnp.asarray(y), jnp.asarray(on)))

        def arrival(_: float, y: np.ndarray, on: np.ndarray = on, off: np.ndarray = off) -> float:
            integral = parts(y)[2]
            return float(np.min(integral[off], initial=np.inf) - integral[on].mean())

        def departure(_: float, y: np.ndarray, on: np.ndarray = on) -> float:
            return float(parts(y)[1][on].min())

        for event in (arrival, departure):
            event.terminal, event.direction = True, -1.0  # pyright: ignore[reportFunctionMemberAccess]
        piece = scipy.integrate.solve_ivp(
            velocity,
            (t, ts[-1]),
            y,
            "DOP853",
            t_eval=[x for x in waiting if x >= t],
            events=[arrival, departure] if on.sum() > 1 else [arrival],
            rtol=rtol,
            atol=rtol,
        )
        if len(piece.t):  # SciPy returns lists if no time was met
            states += list(piece.y.T)
        waiting = waiting[len(piece.t) :]
        if piece.status != 1:
            finished = piece.status == 0
            break
        k = next(k for k, times in enumerate(piece.t_events) if times.size)
        t, y = piece.t_events[k][0], piece.y_events[k][0]
        w, u, integral = parts(y)
        u = np.where(on, u, 0)
        if k == 0:
            entering = off[np.argmin(integral[off])]
            u[entering] = ENTERS
            on = on | (np.arange(n) == entering)
        else:
            u[np.flatnonzero(on)[np.argmin(u[on])]] = 0
        switches += 1
        u, found = settled(jnp.asarray(u / u.sum()), unravel(jnp.asarray(w)))
        integral = np.where(on, integral[on].mean(), integral)
        y = np.concatenate([w, u, integral])
        finished = found and switches <= max_switches
    finished = finished and len(states) == len(ts)
    states += [states[-1] if states else y] * (len(ts) - len(states))
    found_w, found_u, _ = zip(*map(parts, states), strict=True)
    return Path(np.stack(found_u), [unravel(jnp.asarray(w)) for w in found_w], switches, finished)
