"""An inner solution that jax can differentiate, as a layer of any computation."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Bool, PyTree

from .._linear.base import solve_linear
from .._linear.cg import CG
from .._problem import BilevelProblem, Problem
from .._variables import as_arrays, from_numbers
from .base import FULL


def implicit_layer(
    problem: Problem,
    u: PyTree,
    w: PyTree,
    linear_solver: lx.AbstractLinearSolver | None = None,
    *,
    inner_batch: Any = FULL,
) -> PyTree:
    """`w`, with the derivative that the implicit function theorem gives `w*(u)`.

        r(u, w) = 0   =>   dw = -(d_w r)^{-1} d_u r du

    with r the residual: `grad_w f(u, w)`, or `w - map(u, w)` for a `FixedPointProblem`. The layer
    works in any jax program. Its value is the `w` that is given, however it was found, and
    `jax.grad`, `jax.jvp`, `jax.vmap` and higher derivatives go through it. Arrays that the
    objective closes over are differentiated too.

    Args:
        problem: the problem; only its inner part is used.
        u: the outer variable.
        w: the inner solution at u, such as the result of an inner solver. Its own derivative is
            dropped, so that no memory is used for how it was found.
        linear_solver: for the systems with `d_w r`; by default `CG(rtol=1e-6)` for an inner
            objective and `lineax.GMRES` for a map, both matrix-free.
        inner_batch: data to use in place of `problem.inner_data`.

    Error: that of `implicit_gradient`. Nothing is reported here, so check the residual
    `problem.residual(u, w, batch)` where it is not known to be small. The derivative is NaN where the
    linear solver breaks down and what it has found is worse than zero. Cost: one linear solve per
    derivative that is taken through the layer.

    Source: Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-López, Pedregosa and Vert (2021),
    "Efficient and modular implicit differentiation" [blondel2021][]; Bai, Kolter and Koltun (2019),
    "Deep equilibrium models" [bai2019][].

    >>> import jax, jax.numpy as jnp
    >>> problem = BilevelProblem(  # w*(u) = sin(u)
    ...     outer=lambda u, w, _: w, inner=lambda u, w, _: 0.5 * (w - jnp.sin(u)) ** 2
    ... )
    >>> layer = lambda u: implicit_layer(problem, u, jnp.sin(u))
    >>> u = jnp.array(0.5)
    >>> bool(jnp.isclose(jax.grad(layer)(u), jnp.cos(u)))
    True
    >>> bool(jnp.isclose(jax.grad(jax.grad(layer))(u), -jnp.sin(u)))
    True
    """
    batch = problem.inner_data if inner_batch is FULL else inner_batch
    given = as_arrays(problem, from_numbers(u), from_numbers(w))
    problem, u, w = given.problem, given.u, given.w
    symmetric = isinstance(problem, BilevelProblem)
    if linear_solver is None:
        linear_solver = CG(rtol=1e-6) if symmetric else lx.GMRES(rtol=1e-6, atol=1e-6)
    tags = (lx.symmetric_tag, lx.positive_semidefinite_tag) if symmetric else ()
    solver = _OrNaN(linear_solver)

    layer = jax.lax.custom_root(
        lambda w: problem.residual(u, w, batch),
        jax.lax.stop_gradient(w),
        lambda _, w: w,
        lambda function, b: solve_linear(function, b, solver, tags).value,
    )
    return given.restore(u, layer)[1]


class _OrNaN(lx.AbstractLinearSolver[Any]):
    """A linear solver that gives NaN where it breaks down, and zero would have less residual."""

    solver: lx.AbstractLinearSolver

    def init(self, operator, options):
        return operator, self.solver.init(operator, options)

    def compute(self, state, vector, options):
        operator, inner = state
        value, result, stats = self.solver.compute(inner, vector, options)

        def useless() -> Bool[Array, ""]:
            rest = optax.tree.sub(vector, operator.mv(value))
            return ~(optax.tree.norm(rest) <= optax.tree.norm(vector))

        broken = result == lx.RESULTS.breakdown
        lost = jax.lax.cond(broken, useless, lambda: jnp.zeros((), bool))
        return jax.tree.map(lambda x: jnp.where(lost, jnp.nan, x), value), result, stats

    def transpose(self, state, options):
        operator, inner = state
        inner, options = self.solver.transpose(inner, options)
        return (operator.transpose(), inner), options

    def conj(self, state, options):
        operator, inner = state
        inner, options = self.solver.conj(inner, options)
        return (lx.conj(operator), inner), options

    def assume_full_rank(self):
        return self.solver.assume_full_rank()
