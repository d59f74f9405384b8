"""Inner solvers for equations: optimistix's root finders and fixed-point solvers, and Anderson's."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree, Scalar

from .._problem import BilevelProblem, FixedPointProblem, num_rows
from .._solution import RESULTS
from .base import AbstractInnerSolver, InnerStats, told


class RootInner(AbstractInnerSolver):
    """Any optimistix root finder or fixed-point solver, for `w = map(u, w)` or `grad_w f(u, w) = 0`.

    Args:
        solver: such as `Anderson(1e-6, 1e-6)`, `optimistix.FixedPointIteration(1e-6, 1e-6)` or
            `optimistix.Newton(1e-6, 1e-6, linear_solver=lineax.GMRES(1e-3, 1e-3))`. Only a root
            finder works on a `BilevelProblem`, which has no map.
        max_steps: the largest number of steps. A solve that reaches it ends with
            `RESULTS.inner_max_steps_reached`, and one that diverges with `inner_divergence`.
        by_row: whether entry i of w on axis 0 is a problem of its own that depends on row i of the
            inner data only, as in `tasks.equilibrium`. The solver then treats each row separately,
            under `jax.vmap`, until the last row has ended: Anderson mixing combines iterates of the
            same row only, and Newton's linear systems have the size of one row. Otherwise w is one
            point.

    One batch is drawn for the whole solve. `calls` counts the solver's steps, which are evaluations
    of the map or Newton steps; with `by_row` it counts the steps of the slowest row. Products with
    the derivative of the map are not counted. Error and memory are those of the solver. Source:
    ours, as a wrapper of optimistix's solvers.

    Raises:
        TypeError: a fixed-point solver on a `BilevelProblem`.
        ValueError: with `by_row`, the leaves of w and of the inner data differ in their number of
            rows.

    >>> import jax.numpy as jnp, optimistix as optx, bilevel
    >>> problem = bilevel.FixedPointProblem(lambda u, w, _: w, lambda u, w, _: jnp.cos(u * w))
    >>> solver = RootInner(optx.Newton(1e-6, 1e-6))
    >>> stream = bilevel.Stream(bilevel.FullBatch(), None, ())
    >>> w, *_ = solver.solve(problem, jnp.array(1.0), jnp.array(1.0), (), stream)
    >>> round(float(w), 5)
    0.73909
    """

    solver: optx.AbstractRootFinder | optx.AbstractFixedPointSolver
    max_steps: int = 256
    by_row: bool = False
    unrollable: ClassVar[bool] = False

    def init(self, problem, u, w):
        """No state: what a solver learns about the map belongs to one `u`."""
        return ()

    def solve(self, problem, u, w, state, stream):
        """Solve on one batch."""
        batch, stream = stream.draw()
        solve = self._solve_root if isinstance(problem, BilevelProblem) else self._solve_map
        solve = partial(solve, problem, u)
        if self.by_row:
            num_rows((w, batch), "(w, inner data)")
            w, steps, good, exhausted = _each_row(solve)(w, batch)
        else:
            w, steps, good, exhausted = solve(w, batch)
        result = RESULTS.where(
            jnp.all(good | exhausted), RESULTS.inner_max_steps_reached, RESULTS.inner_divergence
        )
        result = RESULTS.where(jnp.all(good), RESULTS.successful, result)
        return w, state, stream, InnerStats(jnp.max(steps).astype(jnp.int32), result)

    def _solve_root(self, problem: BilevelProblem, u: PyTree, w: PyTree, batch: Any) -> Any:
        if not isinstance(self.solver, optx.AbstractRootFinder):
            raise TypeError(
                f"`{type(self.solver).__name__}` iterates a map, which a `BilevelProblem` does not "
                "have. Pass an optimistix root finder, such as `optimistix.Newton`, for "
                "`grad_w f = 0`; or use `MinimiserInner` or `GradientInner`."
            )
        return self._read(
            optx.root_find(
                lambda w, args: problem.residual(args[0], w, args[1]),
                self.solver,
                w,
                (u, batch),
                max_steps=self.max_steps,
                throw=False,
                tags=frozenset({lx.symmetric_tag}),
            )
        )

    def _solve_map(self, problem: FixedPointProblem, u: PyTree, w: PyTree, batch: Any) -> Any:
        return self._read(
            optx.fixed_point(
                lambda w, args: problem.map(args[0], w, args[1]),
                self.solver,
                w,
                (u, batch),
                max_steps=self.max_steps,
                throw=False,
            )
        )

    def _read(self, found: optx.Solution) -> tuple[PyTree[Array], Array, Array, Array]:
        result = told(found.result)
        good, exhausted = (
            result == code for code in (RESULTS.successful, RESULTS.inner_max_steps_reached)
        )
        return found.value, found.stats["num_steps"], good, exhausted


def _each_row(solve: Callable) -> Callable:
    """`solve` over axis 0, on batches of one row."""

    def row(w: PyTree[Array], batch: Any) -> Any:
        w, *rest = solve(*jax.tree.map(lambda x: x[None], (w, batch)))
        return jax.tree.map(lambda x: x[0], w), *rest

    return jax.vmap(row)


class _AndersonState(eqx.Module):
    points: Float[Array, "memory size"]
    residuals: Float[Array, "memory size"]
    num_steps: Int[Array, ""]
    error: Scalar


class Anderson(optx.AbstractFixedPointSolver):
    """Anderson mixing, a fixed-point solver for `optimistix.fixed_point`.

        r_i = g(y_i) - y_i,    a = argmin { ||sum_i a_i r_i||_2 : sum_i a_i = 1 }
        y_{k+1} = sum_i a_i (y_i + mixing r_i),    i over the last `memory` iterates

    A step evaluates the map once, as plain iteration does; `memory=1` is plain iteration. On an
    affine map the method is equivalent to GMRES, up to restarts. Where the map is not a contraction
    it may still converge, without a guarantee.

    Args:
        rtol, atol: the iteration stops when `norm(r / (atol + rtol |y|)) < 1`.
        norm: the norm of that test, `optimistix.max_norm` by default.
        memory: how many iterates are mixed, >= 1. The solver keeps twice as many vectors of the
            size of y.
        mixing: a damping in (0, 1]; 1 means none.

    All leaves of y form one vector with one set of coefficients. For many separate problems see
    `RootInner(..., by_row=True)`. The residuals are scaled to norm one, and 100 machine epsilons
    are added to the diagonal of their Gram matrix, so that collinear residuals do no harm.

    Raises:
        ValueError: `memory` < 1, or `mixing` outside of (0, 1].

    Source: Anderson (1965), "Iterative procedures for nonlinear integral equations"
    [anderson1965][], in the form of Walker and Ni (2011), "Anderson acceleration for fixed-point
    iterations" [walker2011][].

    >>> import jax.numpy as jnp, optimistix as optx
    >>> found = optx.fixed_point(lambda y, _: jnp.cos(y), Anderson(1e-5, 1e-5), jnp.array(1.0))
    >>> round(float(found.value), 4), int(found.stats["num_steps"])
    (0.7391, 5)
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    memory: int = 5
    mixing: float = 1.0

    def __check_init__(self):
        if self.memory < 1:
            raise ValueError(f"`Anderson` needs memory >= 1, got {self.memory}; 1 is no mixing.")
        if not 0 < self.mixing <= 1:
            raise ValueError(f"`Anderson` needs mixing in (0, 1], got {self.mixing}.")

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        """No iterate is known yet."""
        flat, _ = ravel_pytree(y)
        zeros = jnp.zeros((self.memory, flat.size), flat.dtype)
        return _AndersonState(zeros, zeros, jnp.zeros((), jnp.int32), jnp.array(jnp.inf))

    def step(self, fn, y, args, options, state, tags):
        """Evaluate the map, then mix."""
        image, aux = fn(y, args)
        flat, unravel = ravel_pytree(y)
        residual = ravel_pytree(image)[0] - flat
        slot = state.num_steps % self.memory
        points = state.points.at[slot].set(flat)
        residuals = state.residuals.at[slot].set(residual)
        known = jnp.arange(self.memory, dtype=jnp.int32) <= state.num_steps
        mix = _coefficients(residuals, known)
        y = unravel(mix @ points + self.mixing * (mix @ residuals))
        scaled = residual / (self.atol + self.rtol * jnp.abs(flat))
        error = jnp.asarray(self.norm(scaled), state.error.dtype)
        return y, _AndersonState(points, residuals, state.num_steps + 1, error), aux

    def terminate(self, fn, y, args, options, state, tags):
        """Whether the last residual was small."""
        return state.error < 1, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        """Nothing to do."""
        return y, aux, {}


def _coefficients(residuals: Float[Array, "m size"], known: Array) -> Float[Array, " m"]:
    """`argmin ||sum_i a_i r_i||` with `sum_i a_i = 1`, over the residuals that are known.

    The solution is proportional to `G^-1 1` with `G_ij = <r_i, r_j>`. Here `G = S E S` is scaled by
    `S = diag(||r_i||)`.
    """
    eps, tiny = (float(getattr(jnp.finfo(residuals.dtype), name)) for name in ("eps", "tiny"))
    norms = jnp.maximum(jnp.linalg.norm(residuals, axis=1), tiny)
    units = residuals / norms[:, None]
    gram = units @ units.T + jnp.diag(jnp.where(known, 100 * eps, 1))
    ratios = jnp.where(known, jnp.min(jnp.where(known, norms, jnp.inf)) / norms, 0)
    mix = ratios * jnp.linalg.solve(gram, ratios)
    return mix / jnp.sum(mix)
