"""Flows of weights on the simplex, which explain why reweighting becomes sparse.

Mirror descent with small steps follows the *mirror flow* of a field `phi`,

    du/dt = -P(u) phi(u),   P(u) = diag(u) - u u^T                                     (9)

and the warm-started method, whose model moves at the same time, the *joint flow*

    dw/dt = -alpha grad_w f(u, w),   du/dt = -beta P(u) Psi(w, u)                      (8)

with `Psi` the hypergradient at (u, w). This module has both flows, the limit of the second one for a
slow model, and the flow of a constant field in closed form (Proposition 6). The fields, and tests of
a point, are in `fields`.

The source is Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization",
section 3 [ivanova2023][]; equations and propositions have the numbers of that paper. The paper
writes `theta` for our `w`, `w` for our `u`, and `G` for `f`. All flows are integrated in
log-weights, in which a vanishing weight is a straight line and not a boundary. Use float64
(`jax.enable_x64(True)`).
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar, ScalarLike, Shaped

from .._geometry import Simplex
from .._hypergradient.implicit import implicit_gradient
from .._pinned import compiled
from .._problem import BilevelProblem
from . import slow_model
from .fields import SUPPORT, Field, Weights, frozen_field, value

__all__ = [
    "Flow",
    "constant_field_flow",
    "constant_field_limit",
    "joint_flow",
    "mirror_flow",
    "slow_model_flow",
]

STIFF = 100.0  # the ratio of alpha and beta from which the joint flow is taken for stiff


class Flow(eqx.Module):
    """A flow at the requested times.

    Attributes:
        ts: the times.
        log_u: the log-weights at these times, `(times, rows)`; -inf for rows that started at 0.
        w: the inner variable at these times, with `times` as a first axis; `None` in a mirror flow.
        converged: whether the flow came to rest before the last time, after which the last state is
            repeated; `False` if no tolerance was given.
        residual: `max(max_i u_i |c_i|, max_i -c_i)` at the end, with `c = phi - <u, phi>`. It is
            zero exactly at the stationary points at which no row outside of the support would gain
            weight.
        finished: whether the solver reached the end within its largest number of steps.
        num_steps: the number of steps that the solver took.
    """

    ts: Float[Array, " times"]
    log_u: Float[Array, "times rows"]
    w: PyTree[Array] | None
    converged: Bool[Array, ""]
    residual: Float[Array, ""]
    finished: Bool[Array, ""]
    num_steps: Int[Array, ""]

    @property
    def u(self) -> Float[Array, "*batch times rows"]:
        """The weights."""
        return jnp.exp(self.log_u)

    @property
    def support(self) -> Bool[Array, "*batch rows"]:
        """The rows that carry weight at the end; under `vmap`, with its axes in front."""
        return jnp.exp(self.log_u[..., -1, :]) > SUPPORT


def mirror_flow(
    field: Field,
    u0: Weights,
    ts: Shaped[Array, " times"],
    *,
    tol: ScalarLike = 0.0,
    rtol: float = 1e-9,
    atol: float = 1e-9,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
) -> Flow:
    """The mirror flow `du/dt = -P(u) phi(u)` (equation 9), integrated as `dlog u/dt = -c`.

    Args:
        field: `phi`, weights `(rows,)` to a vector `(rows,)`. A field that is an `equinox.Module`,
            as those of this module are, shares one compilation with others of its shape.
        u0: the start, a point of the simplex. Rows at exactly 0 stay there.
        ts: increasing times, from 0 or later; the flow starts at time 0.
        tol: stop when `Flow.residual` is at or below this.
        rtol, atol: tolerances of the solver, on the log-weights.
        solver: a diffrax solver, `diffrax.Tsit5()` by default.
        max_steps: the largest number of steps of the solver; `Flow.finished` says whether it was
            enough.

    The function may be called under `jit` and `vmap`. A flow need not converge: the fields of
    reweighting are not gradients, and some trajectories are periodic. Source: equation (9) of
    Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization"
    [ivanova2023][].

    >>> import jax.numpy as jnp
    >>> flow = mirror_flow(lambda u: jnp.array([0.0, 1.0]), jnp.array([0.5, 0.5]), jnp.array([2.0]))
    >>> round(float(flow.u[-1, 1]), 4)  # 1 / (1 + e^2)
    0.1192
    """
    solver = diffrax.Tsit5() if solver is None else solver
    ts = _as_times(ts)
    tol = jnp.asarray(tol, ts.dtype)  # an array, so that another one compiles nothing
    return _integrate(
        _MirrorTerm(field), (u0, None), ts, tol, rtol, atol, solver, max_steps=max_steps
    )


def joint_flow(
    problem: BilevelProblem,
    u0: Weights,
    w0: PyTree[Array],
    ts: Shaped[Array, " times"],
    *,
    alpha: float,
    beta: float,
    linear_solver: lx.AbstractLinearSolver | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-9,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
) -> Flow:
    """The joint flow of weights and model (equation 8).

        dw/dt = -alpha grad_w f(u, w),   dlog u/dt = -beta (Psi(w, u) - <u, Psi(w, u)>)

    Args:
        problem: on the simplex, with weights of shape `(rows,)`; its full data are used.
        u0, w0, ts: start and times, as in `mirror_flow`.
        alpha, beta: the speeds of the model and of the weights. With `beta << alpha` the weights
            follow the exact hypergradient (Theorem 1); with `alpha << beta` the model follows the
            sparse limit of the weights (Theorem 2).
        linear_solver: for Psi, by default Cholesky of the p x p Hessian.
        rtol, atol, solver, max_steps: as in `mirror_flow`; the default solver is implicit
            (`diffrax.Kvaerno5`) where one speed is 100 times the other or more. Its cost grows
            with the cube of rows + parameters.
    """
    stiff = max(alpha, beta) >= STIFF * min(alpha, beta)
    if solver is None:
        solver = diffrax.Kvaerno5() if stiff else diffrax.Tsit5()
    linear_solver = lx.Cholesky() if linear_solver is None else linear_solver
    speeds = (jnp.asarray(alpha, float), jnp.asarray(beta, float))
    term = _JointTerm(problem, linear_solver, *speeds)
    return _integrate(term, (u0, w0), _as_times(ts), 0.0, rtol, atol, solver, max_steps=max_steps)


def slow_model_flow(
    problem: BilevelProblem,
    u0: Weights,
    w0: PyTree[Array],
    ts: Float[Array, " times"],
    *,
    linear_solver: lx.AbstractLinearSolver | None = None,
    rtol: float = 1e-10,
    max_switches: int = 100,
) -> Flow:
    """The limit of the joint flow for alpha / beta -> 0, on the time scale of the model.

        dw/dt = -grad_w f(u, w),   dS/dt = Psi(w, u),   S(0) = 0,   supp u(t) in argmin_i S_i(t)

    The weights of the joint flow are `u0 exp(-(beta / alpha) S)`, normalised, with S the *integral* of
    the field along the path. So they sit where the integral is least, and a row that becomes better
    than the others must first make up for the time that it was worse. `joint_flow(..., ts / alpha,
    alpha=alpha, beta=1.0)` differs from this flow by O(alpha), except within O(alpha |log alpha|) of a
    switch. At t = 0 the weights jump to the end of the mirror flow with the model held at w0. Where
    several rows share the weight, Psi is the same on them, which determines their shares.

    The limit in Theorem 2 of the paper is another flow: there the weights are `Omega(w, u0)`, the end
    of the mirror flow from u0 at every w. Both agree until a row that lost at the start would win. The
    theorem's Assumption 3, `<P(u) Psi(w, u), u - Omega(w, u0)> >= nu ||u - Omega(w, u0)||^2` for all u
    and w, holds for no problem with two rows or more: `P(u) = 0` at every vertex of the simplex, so
    that the left side is 0, and the right side is positive at all vertices but Omega.

    Args:
        problem: on the simplex, with weights of shape `(rows,)` and a model of few parameters.
        u0, w0: the start.
        ts: increasing times, 0 or later, of the slow time `alpha t`; at 0 the weights are those after
            the jump.
        linear_solver: as in `joint_flow`.
        rtol: relative and absolute tolerance of the pieces between switches.
        max_switches: where switches accumulate, as in a limit that slides between two rows, the flow
            ends after this many, with `finished` False.

    Returns:
        A `Flow`. Its `num_steps` is the number of switches; `finished` is also False if the mirror
        flow came to no rest at a switch. Then the last state is repeated.

    The integration runs on the host and cannot be traced. Use float64. Source: ours; equation (8) and
    Theorem 2 are those of Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel
    optimization" [ivanova2023][].
    """
    linear_solver = lx.Cholesky() if linear_solver is None else linear_solver

    def rest(u: Weights, w: PyTree[Array]) -> tuple[Weights, bool]:
        field = frozen_field(problem, w, linear_solver)
        flow = mirror_flow(field, u, jnp.array([1e5]), tol=1e-7)
        end = jnp.where(flow.u[-1] > SUPPORT, flow.u[-1], 0)
        return end / jnp.sum(end), bool(flow.converged)

    times = np.asarray(ts)
    path = slow_model.integrate(
        problem, rest, jnp.asarray(u0), w0, times, linear_solver, rtol, max_switches
    )
    u, end = jnp.asarray(path.u), path.w[-1]
    field = value(frozen_field(problem, end, linear_solver), u[-1])
    c = Simplex().tangent(u[-1], field)
    return Flow(
        ts=jnp.asarray(ts),
        log_u=jnp.log(u),
        w=jax.tree.map(lambda *x: jnp.stack(x), *path.w),
        converged=jnp.asarray(False),
        residual=jnp.maximum(jnp.max(u[-1] * jnp.abs(c)), jnp.max(-c)),
        finished=jnp.asarray(path.finished),
        num_steps=jnp.asarray(path.num_switches),
    )


def _as_times(ts: Any) -> Float[Array, " times"]:
    """Times that are whole numbers are numbers: a tolerance would be rounded to 0 like them."""
    ts = jnp.asarray(ts)
    return ts if jnp.issubdtype(ts.dtype, jnp.floating) else ts.astype(float)


class _MirrorTerm(eqx.Module):
    field: Field

    def __call__(self, u: Weights, w: None) -> tuple[Weights, None]:
        return Simplex().tangent(u, self.field(u)), None


class _JointTerm(eqx.Module):
    problem: BilevelProblem
    linear_solver: lx.AbstractLinearSolver
    alpha: Scalar
    beta: Scalar

    def __call__(self, u: Weights, w: PyTree[Array]) -> tuple[Weights, PyTree[Array]]:
        problem = self.problem
        psi = implicit_gradient(problem, u, w, self.linear_solver).grad
        slope = problem.residual(u, w, problem.inner_data)
        return self.beta * Simplex().tangent(u, psi), optax.tree.scale(self.alpha, slope)


@compiled
def _integrate(
    term: _MirrorTerm | _JointTerm,
    start: tuple[Weights, PyTree[Array]],
    ts: Array,
    tol: ScalarLike,
    rtol: float,
    atol: float,
    solver: diffrax.AbstractSolver,
    *,
    max_steps: int,
) -> Flow:
    u0, w0 = start
    alive = u0 > 0
    log_u0 = jnp.log(jnp.where(alive, u0, 1))

    def weights(log_u: Array) -> Weights:
        # The flow conserves the sum of the weights; normalising removes the errors of the solver.
        return jax.nn.softmax(log_u, where=alive)

    def velocity(_: Any, y: tuple[Array, PyTree], __: Any) -> tuple[Array, PyTree]:
        c, slope = term(weights(y[0]), y[1])
        return jnp.where(alive, -c, 0), optax.tree.scale(-1, slope)

    def residual(log_u: Array, w: PyTree) -> Scalar:
        u = weights(log_u)
        c, _ = term(u, w)
        c = jnp.where(alive, c, 0)
        return jnp.maximum(jnp.max(u * jnp.abs(c)), jnp.max(-c))

    def at_rest(_: Any, y: tuple[Array, PyTree], __: Any, **___: Any) -> Array:
        # Without a tolerance the flow continues even if the weights do not change by a bit: in a joint
        # flow the model may still move, and move the weights with it.
        return (residual(*y) <= tol) & (jnp.asarray(tol) > 0)

    save = diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        solver,
        t0=jnp.zeros((), ts.dtype),
        t1=ts[-1],
        dt0=None,
        y0=(log_u0, w0),
        saveat=diffrax.SaveAt(subs=save),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        event=diffrax.Event(at_rest),
        max_steps=max_steps,
        throw=False,
    )
    saved, last = solution.ys  # pyright: ignore[reportGeneralTypeIssues]
    reached = solution.ts[0] <= solution.ts[1][0]  # pyright: ignore[reportOptionalSubscript]

    def filled(x: Array, end: Array) -> Array:
        return jnp.where(reached.reshape(-1, *(1,) * (x.ndim - 1)), x, end)

    (log_u, w), end = (
        jax.tree.map(filled, saved, last),
        jax.tree.map(lambda x: x[0], last),
    )
    event = diffrax.RESULTS.event_occurred
    return Flow(
        ts=ts,
        log_u=jax.nn.log_softmax(jnp.where(alive, log_u, -jnp.inf)),
        w=w,
        converged=solution.result == event,
        residual=residual(*end),
        finished=(solution.result == event) | (solution.result == diffrax.RESULTS.successful),
        num_steps=jnp.asarray(solution.stats["num_steps"]),
    )


def constant_field_flow(phi: Weights, u0: Weights, t: ScalarLike) -> Weights:
    """`u(t) = u0 exp(-t phi)`, normalised (proof of Proposition 6).

    At `t = k eta` it is also the iterate of mirror descent with step `eta` after k steps.
    """
    return Simplex().retract(u0, -jnp.asarray(t, phi.dtype) * phi)


def constant_field_limit(phi: Weights, u0: Weights) -> Weights:
    """Where the flow of a constant field ends: `u0` restricted to the *smallest* entries of phi.

    Source: Proposition 6. The paper prints arg max; the update is `u exp(-t phi)`, so it is arg
    min.

    >>> import jax.numpy as jnp
    >>> constant_field_limit(jnp.array([1.0, 0.0, 0.0]), jnp.array([0.5, 0.125, 0.375])).tolist()
    [0.0, 0.25, 0.75]
    """
    smallest = jnp.min(jnp.where(u0 > 0, phi, jnp.inf))
    kept = jnp.where(phi == smallest, u0, 0)
    return kept / jnp.sum(kept)
