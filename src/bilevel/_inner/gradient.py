"""`GradientInner`: a fixed number of gradient steps on the inner objective."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import PyTree

from .._geometry import AbstractGeometry, Euclidean
from .._linear.base import Resolved, resolve_step_size
from .._problem import BilevelProblem, Problem
from .._sampler import Stream
from .._solution import RESULTS
from .base import AbstractInnerSolver, InnerStats


class GradientInner(AbstractInnerSolver):
    """A fixed number of steps of any optax transformation.

        w_{k+1} = retract(w_k, tx.update(grad_w f(u, w_k, batch_k))),   k = 0 .. num_steps - 1

    For a `FixedPointProblem` the residual `w - map(u, w)` takes the place of the gradient, so that
    `optax.sgd(1.0)` iterates the map.

    Args:
        tx: an optax gradient transformation, such as `optax.sgd(0.1)`. Under a warm start its state
            is kept from one call to the next. `"auto"` takes gradient steps of `1 / L`, with L the
            largest eigenvalue of the inner Hessian at the start of the solve. Power iteration finds
            L with 20 products in the first solve and, under a warm start, with one product in each
            later solve. The step size carries no derivative.
        num_steps: the number of steps, >= 1. Each step draws one batch and costs one inner
            gradient.
        geometry: the set that w stays in. A step is the geometry's `retract`, which for `Box` and
            `Ball` makes this projected gradient descent. `ITD` differentiates through the
            projection. `AID` refuses it, because the gradient is not zero at a solution on the
            boundary.

    Error: for f mu-strongly convex and L-smooth in w, gradient steps of size `1 / L` shrink the
    distance to `w*(u)` at least by the factor `1 - mu / L` per step. Memory: that of the
    transformation; `ITD` keeps `num_steps` vectors of the size of w. Source: ours, as a wrapper of
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

    def solve(self, problem, u, w, state, stream):
        """`num_steps` steps."""
        tx, products, eigenvector = self.tx, jnp.zeros((), jnp.int32), None
        if isinstance(tx, str):
            found = _inverse_curvature(problem, u, w, state, stream)
            tx, eigenvector, products = optax.sgd(found.step), found.eigenvector, found.num_products
            state = tx.init(w)

        def step(carry, _):
            w, tx_state, draws = carry
            batch, following = eqx.tree_at(lambda s: s.state, stream, draws).draw()
            residual = problem.residual(u, w, batch)
            updates, tx_state = tx.update(residual, tx_state, w)
            # optax keeps the dtype of w for any dtype of the step size
            updates = jax.tree.map(lambda d, x: d.astype(x.dtype), updates, w)
            return (self.geometry.retract(w, updates), tx_state, following.state), None

        # When unrolled, a step keeps only w; intermediate values of the gradient are computed again.
        step = jax.checkpoint(step, prevent_cse=False)
        (w, state, draws), _ = jax.lax.scan(step, (w, state, stream.state), length=self.num_steps)
        calls = jnp.full((), self.num_steps, jnp.int32)
        stats = InnerStats(calls, RESULTS.successful, products=products)
        state = state if eigenvector is None else eigenvector
        return w, state, Stream(stream.sampler, stream.data, draws), stats


def _inverse_curvature(
    problem: Problem, u: PyTree, w: PyTree, eigenvector: PyTree, stream: Stream
) -> Resolved:
    """`1 / L` on the first batch, at a point that is held fixed."""
    u, w, eigenvector = jax.lax.stop_gradient((u, w, eigenvector))
    batch, _ = stream.draw()
    hessian = lx.FunctionLinearOperator(
        lambda x: jax.jvp(lambda w: problem.residual(u, w, batch), (w,), (x,))[1],
        jax.eval_shape(lambda: w),
        lx.symmetric_tag if isinstance(problem, BilevelProblem) else (),
    )
    return resolve_step_size("GradientInner", "auto", hessian, {"eigenvector": eigenvector})
