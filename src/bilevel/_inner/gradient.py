"""`GradientInner`: a fixed number of gradient steps on the inner objective."""

import dataclasses
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Bool, PyTree, Scalar

from .._arrays import function_operator
from .._derivatives import residual_along
from .._geometry import AbstractGeometry, Euclidean
from .._linear.base import Resolved, resolve_step_size
from .._problem import BilevelProblem, Problem
from .._sampler import FullBatch, Stream
from .._solution import RESULTS
from .._transformation import line_search_steps, transformed
from .base import AbstractStepInner, InnerStats, ended


class GradientInner(AbstractStepInner):
    """A fixed number of steps of any optax transformation.

        w_{k+1} = retract(w_k, tx.update(grad_w f(u, w_k, batch_k))),   k = 0 .. num_steps - 1

    For a `FixedPointProblem` the residual `w - map(u, w)` takes the place of the gradient, so that
    `optax.sgd(1.0)` iterates the map.

    Args:
        tx: an optax gradient transformation, such as `optax.sgd(0.1)` or `optax.lbfgs()`. Under a
            warm start its state is kept from one call to the next. It is told the inner objective
            on the batch of the step (`value`, `grad`, `value_fn`), which line searches need. On
            batches, a line search finds the step for that batch alone, and L-BFGS takes the noise
            between batches for curvature: give these all data. `"auto"` takes gradient steps of
            `1 / L`, with L the largest eigenvalue of the inner Hessian at the start of the solve.
            Power iteration finds L with 20 products in the first solve and, under a warm start, with
            one product in each later solve. On all data, half of a step that raised f is taken back,
            and the steps to come are halved. The step size carries no derivative.
        num_steps: the number of steps, >= 1. Each step draws one batch and costs one inner
            gradient, and one more for each evaluation of a line search.
        geometry: the set that w stays in. A step is the geometry's `retract`, which for `Box` and
            `Ball` makes this projected gradient descent. `ITD` differentiates through the
            projection. `AID` refuses it, because the gradient is not zero at a solution on the
            boundary.

    Error: for f mu-strongly convex and L-smooth in w, gradient steps of size `1 / L` shrink the
    distance to `w*(u)` at least by the factor `1 - mu / L` per step. A solve whose last gradient is
    longer than its first one ends with `RESULTS.inner_divergence`, and so does one on all data that
    leaves w where it was although its gradient is no rounding: the step size of a schedule may have
    fallen to nothing (under a warm start it goes on from solve to solve). Memory: that of the
    transformation; `ITD` keeps `num_steps` vectors of the size of w, and twice as many with "auto" on
    all data. Source: ours, as a wrapper of
    optax's transformations.

    An optax transformation is compiled in as it is, so build it once. To change its step size
    without compiling again, wrap it in `optax.inject_hyperparams`, which moves the step size into
    the state.

    Raises:
        ValueError: `num_steps` < 1, or `tx` is a word other than "auto".
    """

    tx: optax.GradientTransformation | Literal["auto"]
    num_steps: int
    geometry: AbstractGeometry = Euclidean()
    unrollable: ClassVar[bool] = True

    def __check_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"`GradientInner` needs num_steps >= 1, got {self.num_steps}.")
        if isinstance(self.tx, str) and self.tx != "auto":
            raise ValueError(
                f"`GradientInner` needs an optax transformation or 'auto', got {self.tx!r}."
            )

    def init(self, problem, u, w):
        """The optax state; for `"auto"` the eigenvector, which is zero until it is known."""
        return optax.tree.zeros_like(w) if isinstance(self.tx, str) else self.tx.init(w)

    def solve_by(self, scan, problem, u, w, state, stream):
        """`num_steps` steps, in the loop `scan`."""
        auto = isinstance(self.tx, str)
        found = _inverse_curvature(problem, u, w, state, stream) if auto else None
        # Without noise, a step of "auto" that raises f is taken back by half.
        exact = isinstance(stream.sampler, FullBatch) and isinstance(problem, BilevelProblem)
        careful = auto and exact and isinstance(self.geometry, Euclidean)

        def step(carry: _Carry, _: None) -> tuple[_Carry, tuple[Scalar, Array]]:
            w = carry.w
            batch, following = eqx.tree_at(lambda s: s.state, stream, carry.draws).draw()
            value, residual = _value_and_residual(problem, u, w, batch)
            size, evaluations = _length(residual), jnp.zeros((), jnp.int32)
            tx_state = carry.tx_state
            if found is not None:
                updates = optax.tree.scale(-found.step / carry.halvings, residual)
            else:

                def objective(x: PyTree[Array]) -> Scalar:
                    assert isinstance(problem, BilevelProblem)
                    inside = x if isinstance(self.geometry, Euclidean) else self.geometry.project(x)
                    return problem.inner(u, inside, batch)

                assert not isinstance(self.tx, str)
                updates, tx_state = transformed(
                    self.tx, residual, tx_state, w, value, None if value is None else objective
                )
                evaluations = line_search_steps(tx_state)
            # optax keeps the dtype of w for any dtype of the step size
            updates = jax.tree.map(lambda d, x: d.astype(x.dtype), updates, w)
            following_w = self.geometry.retract(w, updates)
            last = _Carry(following_w, tx_state, following.state, None, value, size, carry.halvings)
            if careful:
                last = _taken_back(carry, dataclasses.replace(last, w_before=w))
            return last, (last.size, evaluations)

        # When unrolled, a step keeps only w; intermediate values of the gradient are computed again.
        step = jax.checkpoint(step, prevent_cse=False)
        first = _first_carry(problem, u, w, () if auto else state, stream)
        if careful:
            first = dataclasses.replace(first, w_before=w)
        last, (sizes, evaluations) = scan(step, first, None, self.num_steps)
        calls = jnp.full((), self.num_steps, jnp.int32) + jnp.sum(evaluations, dtype=jnp.int32)
        result = ended(sizes[0], sizes[-1], w, last.w, stream)
        if isinstance(stream.sampler, FullBatch) and isinstance(self.geometry, Euclidean):
            still = _stands_still(problem, u, w, last.w, sizes[-1], stream)
            result = RESULTS.where(still, RESULTS.inner_divergence, result)
        stats = InnerStats(
            calls,
            result,
            products=jnp.zeros((), jnp.int32) if found is None else found.num_products,
        )
        state = last.tx_state if found is None else found.eigenvector
        return last.w, state, Stream(stream.sampler, stream.data, last.draws), stats


class _Carry(eqx.Module):
    w: PyTree[Array]
    tx_state: Any
    draws: Any
    w_before: PyTree[Array] | None  # the point from which the step to w was made
    value: Scalar | None  # of f, and of the length of its gradient, at w_before
    size: Scalar
    halvings: Scalar  # by which "auto" steps are divided, a power of two


def _first_carry(
    problem: Problem, u: PyTree, w: PyTree[Array], tx_state: Any, stream: Stream
) -> _Carry:
    batch, _ = stream.draw()
    value, residual = jax.eval_shape(lambda: _value_and_residual(problem, u, w, batch))
    size = jax.eval_shape(_length, residual)
    infinite = None if value is None else jnp.full((), jnp.inf, value.dtype)
    one = jnp.ones((), size.dtype)
    return _Carry(w, tx_state, stream.state, None, infinite, jnp.full_like(one, jnp.inf), one)


def _taken_back(before: _Carry, after: _Carry) -> _Carry:
    """`after`, unless f is larger at `before.w` than at the point before: then half the step to it."""
    assert before.value is not None
    assert after.value is not None
    room = 10 * float(jnp.finfo(after.value.dtype).eps) * jnp.abs(after.value)
    lower = after.value <= before.value + room
    middle = jax.tree.map(lambda x, y: x / 2 + y / 2, before.w_before, before.w)

    def choose(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda x, y: jnp.where(lower, x, y), new, old)

    return dataclasses.replace(
        after,
        w=choose(after.w, middle),
        w_before=choose(after.w_before, before.w_before),
        value=choose(after.value, before.value),
        size=choose(after.size, before.size),
        halvings=choose(after.halvings, 2 * before.halvings),
    )


def _value_and_residual(
    problem: Problem, u: PyTree, w: PyTree, batch: Any
) -> tuple[Scalar | None, PyTree[Array]]:
    """The inner objective, if there is one, and what is zero at the inner solution."""
    if isinstance(problem, BilevelProblem):
        return jax.value_and_grad(problem.inner, argnums=1)(u, w, batch)
    return None, problem.residual(u, w, batch)


def _length(residual: PyTree[Array]) -> Scalar:
    """Its norm, as a constant: the derivative of a norm at zero would be NaN, and nobody needs it."""
    return jnp.asarray(optax.tree.norm(jax.lax.stop_gradient(residual)))


def _stands_still(
    problem: Problem, u: PyTree, start: PyTree, end: PyTree, size: Scalar, stream: Stream
) -> Bool[Array, ""]:
    """Whether w has not moved though its residual is not rounding, as a schedule of steps may end.

    Rounding leaves a residual of about eps |H w|. H w is computed where w has not moved only, and by a
    difference of residuals: the objective need not have second derivatives, or of one mode alone.
    """
    u, start, end, size = jax.lax.stop_gradient((u, start, end, size))
    eps, (batch, _) = float(jnp.finfo(size.dtype).eps), stream.draw()
    moved, length = (jnp.asarray(optax.tree.norm(x)) for x in (optax.tree.sub(end, start), end))
    still = moved <= 4 * eps * length

    def scale() -> Scalar:
        ahead = optax.tree.scale(1 + eps**0.5, end)
        ends = (problem.residual(u, w, batch) for w in (ahead, end))
        return _length(optax.tree.sub(*ends)) / eps**0.5

    scaled = jax.lax.cond(still, scale, lambda: jnp.full_like(size, jnp.inf))
    return still & (size > eps**0.5 * scaled)


def _inverse_curvature(
    problem: Problem, u: PyTree, w: PyTree, eigenvector: PyTree, stream: Stream
) -> Resolved:
    """`1 / L` on the first batch, at a point that is held fixed."""
    u, w, eigenvector = jax.lax.stop_gradient((u, w, eigenvector))
    batch, _ = stream.draw()
    hessian = function_operator(
        lambda x: residual_along(problem, u, w, batch, x),
        w,
        lx.symmetric_tag if isinstance(problem, BilevelProblem) else (),
    )
    return resolve_step_size("GradientInner", "auto", hessian, {"eigenvector": eigenvector})
