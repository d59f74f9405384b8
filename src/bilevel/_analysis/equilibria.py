"""Equilibria: the points where cold-started and warm-started descent stays, checked numerically."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from .._geometry import outer_residual
from .._hypergradient.base import AbstractHypergradient, Hypergradient
from .._inner.base import AbstractInnerSolver
from .._pinned import compiled
from .._problem import Problem
from .._sampler import FullBatch, Stream, Streams


class Equilibrium(NamedTuple):
    """How far a point is from an equilibrium.

    Attributes:
        verdict: `"equilibrium"`, or the first of these that applies: `"not finite"`, `"inner solve
            not finished"` (`inner_residual` > tol), `"another inner solution"` (`gap` > tol),
            `"outer not stationary"` (`outer_residual` > tol).
        gap: `||w - r(u, w_start)||_2`, with r the inner solver.
        inner_residual: `||grad_w f(u, r(u, w_start))||_2`.
        outer_residual: `||u - project(u - g)||_2`, with g the hypergradient at `r(u, w_start)`; it
            is `||g||_2` where `u` is not constrained.
    """

    verdict: str
    gap: float
    inner_residual: float
    outer_residual: float

    @property
    def holds(self) -> bool:
        """Whether the verdict is `"equilibrium"`."""
        return self.verdict == "equilibrium"


def is_cold_start_equilibrium(
    problem: Problem,
    u: PyTree[Array],
    w: PyTree[Array],
    w0: PyTree[Array],
    inner: AbstractInnerSolver,
    hypergradient: AbstractHypergradient,
    *,
    tol: float = 1e-8,
) -> Equilibrium:
    """Whether cold-started descent stays at `(u, w)`.

        u stationary for F(u, r(u, w0)),   w = r(u, w0)

    Args:
        problem: the problem; all its data are used.
        u, w: the point.
        w0: the start of each inner solve.
        inner: r, which must converge: `GradientInner` with enough steps, or `ClosedForm`.
        hypergradient: the estimator whose zero counts as stationary. On a singular inner problem
            `AID(lineax.SVD())` is the exact one of the paper (pseudo-inverse).
        tol: the absolute tolerance on all three numbers.

    The definition asks for `u` in the argmin. Where `F(u, r(u, w0))` is convex, as for the
    quadratics of the paper's Assumption 3.1, a zero gradient is sufficient; elsewhere it is a
    necessary condition.

    Cost: one estimate.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", Definition 3.1 [vicol2022][].

    >>> import jax.numpy as jnp, lineax as lx, optax
    >>> from bilevel import AID, BilevelProblem, GradientInner
    >>> problem = BilevelProblem(  # w_2 is free: a cold start leaves it where it began
    ...     lambda u, w, _: jnp.sum((w - 1.0) ** 2), lambda u, w, _: (w[0] - u) ** 2
    ... )
    >>> parts = GradientInner(optax.sgd(0.5), 10), AID(lx.SVD())
    >>> u, w0 = jnp.array(1.0), jnp.zeros(2)
    >>> is_cold_start_equilibrium(problem, u, jnp.array([1.0, 0.0]), w0, *parts).verdict
    'equilibrium'
    >>> is_cold_start_equilibrium(problem, u, jnp.array([1.0, 1.0]), w0, *parts).verdict
    'another inner solution'
    """
    return _judge(problem, u, w, w0, inner, hypergradient, tol)


def is_warm_start_equilibrium(
    problem: Problem,
    u: PyTree[Array],
    w: PyTree[Array],
    inner: AbstractInnerSolver,
    hypergradient: AbstractHypergradient,
    *,
    tol: float = 1e-8,
) -> Equilibrium:
    """Whether warm-started descent stays at `(u, w)`.

        u stationary for F,   w = r(u, w)

    Args:
        problem: the problem; all its data are used.
        u, w: the point.
        inner: r: `GradientInner(tx, T)` for the partial equilibrium of T steps, and an inner solver
            that converges for the full equilibrium.
        hypergradient: the estimator whose zero counts as stationary.
        tol: the absolute tolerance on all three numbers.

    With gradient steps and an estimator that does not depend on T, the equilibria are the same for
    all T (Statement 3.2 of the paper), because `w = r(u, w)` means `grad_w f = 0`. `ITD` depends on
    T, and so do its equilibria, unless F is stationary in w too. Besides `w = r(u, w)` the check
    asks for `grad_w f = 0`: this is the sharper test for a small step, and it refuses cycles of
    length T that a step that is too large can produce.

    Cost: one estimate.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", Definition 3.2 [vicol2022][].
    """
    return _judge(problem, u, w, w, inner, hypergradient, tol)


def _judge(
    problem: Problem,
    u: PyTree[Array],
    w: PyTree[Array],
    start: PyTree[Array],
    inner: AbstractInnerSolver,
    hypergradient: AbstractHypergradient,
    tol: float,
) -> Equilibrium:
    if not tol > 0:
        raise ValueError(f"`tol` must be > 0, got {tol}.")
    u, w, start = jax.tree.map(jnp.asarray, (u, w, start))
    estimate, outer = _estimate(problem, u, start, inner, hypergradient)
    gap = float(optax.tree.norm(optax.tree.sub(w, estimate.w)))
    residual, outer = float(estimate.inner_residual), float(outer)
    if not gap + residual + outer < float("inf"):
        verdict = "not finite"
    elif residual > tol:
        verdict = "inner solve not finished"
    elif gap > tol:
        verdict = "another inner solution"
    elif outer > tol:
        verdict = "outer not stationary"
    else:
        verdict = "equilibrium"
    return Equilibrium(verdict, gap, residual, outer)


@compiled
def _estimate(
    problem: Problem,
    u: PyTree[Array],
    start: PyTree[Array],
    inner: AbstractInnerSolver,
    hypergradient: AbstractHypergradient,
) -> tuple[Hypergradient, Scalar]:
    full = FullBatch()
    streams = Streams(Stream(full, problem.outer_data, ()), Stream(full, problem.inner_data, ()))
    state = hypergradient.init(problem, inner, u, start)
    estimate, _, _ = hypergradient.estimate(problem, inner, u, start, state, streams)
    return estimate, outer_residual(problem.geometry, u, estimate.grad)
