"""Step sizes: numbers, schedules of the outer step, or `"auto"`.

`"auto"` assumes of the problem only that u is of order one (log-penalties, logits, log-weights):

    inner, linear   1 / (L sqrt(1 + T k / 20)) at outer step k, with T inner steps in each; 1 / L on
                    full batches and for a series of products; 1 / 3L with variance reduction, as SAGA
                    needs. L is the curvature `|H x|` that power iteration meets. It goes on during
                    the run with one product in eight steps.
    outer           d u_i = -d_i / sqrt(s_i + mean(s)), with s_i the sum of all d_i^2 so far (AdaGrad).
                    The mean is a floor that keeps coordinates that hardly matter from moving like
                    the others. s starts at the mean square of the two terms that d is made of. A
                    direction that is more than ten times as long as usual is cut to that length.

A step that leads to a point that is not finite is not taken, and all step sizes are halved.

Defazio, Bach and Lacoste-Julien (2014), "SAGA: A fast incremental gradient method with support for
non-strongly convex composite objectives" [defazio2014][]. Duchi, Hazan and Singer (2011), "Adaptive
subgradient methods for online learning and stochastic optimization" [duchi2011][].
"""

from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, PyTree, Scalar

from .._derivatives import residual_along
from .._hypergradient.base import linearise_inner
from .._problem import Problem
from .._sampler import Stream, Streams
from .._settings import POWER_STEPS, StepSize, random_unit

S = TypeVar("S", bound=Any)  # a State

RADIUS = 1.0  # of the first outer step, in every coordinate at most
OUTLIER = 10.0  # times the usual length of an outer direction
NEGLIGIBLE = 1e-3  # of v / w, in what the sums of squares begin at
DECAY = 0.05  # a noisy inner step: how fast it decreases
MEMORY = 0.9  # the part of the largest curvature that a product leaves
MIX = 0.3  # how much of a new random vector enters a product


class Control(NamedTuple):
    """What the step sizes `"auto"` are made of.

    `curvature` is the largest curvature met lately, and `eigenvector` the direction it was met in.
    `first` is the first inner step in units of its inverse, and `decay` says how fast inner steps
    decrease. `squares` are the sums s of the squared outer directions.
    """

    curvature: Scalar
    eigenvector: PyTree[Array]
    first: Scalar
    decay: Scalar
    squares: PyTree[Array]


class Move(NamedTuple):
    """An outer step that was made: the new u, its step size, and what `"auto"` learned of it."""

    u: PyTree[Array]
    step: Array
    control: Control | None


def first_control(
    problem: Problem,
    u: PyTree[Array],
    w: PyTree[Array],
    streams: Streams,
    first: float = 1.0,
    decay: float = 0.0,
) -> tuple[Control, int]:
    """Power iteration with a new batch per product, and the number of products.

    The sums of squares begin at what one term of the Neumann series gives for the two parts of the
    hypergradient. So a run that starts at the solution, where the two parts cancel, stays there. This
    takes an outer gradient and two mixed products more.
    """
    inner = streams.inner

    def multiply(carry: tuple[PyTree, Any], _: None) -> tuple[tuple[PyTree, Any], Array]:
        x, draws = carry
        batch, following = Stream(inner.sampler, inner.data, draws).draw()
        size, x = _multiply(problem, u, w, x, batch)
        return (x, following.state), size

    (x, _), sizes = jax.lax.scan(multiply, (random_unit(w), inner.state), length=POWER_STEPS)
    curvature = jnp.max(sizes)
    curvature = jnp.where(curvature > 0, curvature, 1)

    by_u, by_w = jax.grad(problem.outer, argnums=(0, 1))(u, w, streams.outer.draw()[0])
    _, products = linearise_inner(problem, u, w, inner.draw()[0])
    parts = by_u, products(optax.tree.scale(1 / curvature, by_w))[0]
    parts += (optax.tree.scale(NEGLIGIBLE, products(w)[0]),)  # where F is stationary in w too
    seed = sum(optax.tree.norm(problem.geometry.magnitude(u, x), squared=True) for x in parts)
    seed = jnp.asarray(seed) / optax.tree.size(u)
    control = Control(
        curvature=curvature,
        eigenvector=x,
        first=jnp.full_like(curvature, first),
        decay=jnp.full_like(curvature, decay),
        squares=jax.tree.map(lambda x: jnp.full_like(x, seed), u),
    )
    return control, POWER_STEPS


def update_curvature(problem: Problem, state: S, inner: Stream) -> S:
    """The state with the curvature of `"auto"` brought up to date, by one product in eight steps.

    In the first 64 steps, when u moves most, there is one product per step.
    """
    if state.control is None:
        return state

    def update(control: Control) -> Control:
        batch, _ = inner.draw()
        # Another eigenvector may have become the first one, and the old one need not point to it.
        away = optax.tree.random_like(jr.fold_in(state.key, state.step), control.eigenvector)
        away = optax.tree.scale(MIX / optax.tree.norm(away), away)
        x = optax.tree.add(control.eigenvector, away)
        x = optax.tree.scale(1 / optax.tree.norm(x), x)
        size, x = _multiply(problem, state.u, state.w, x, batch)
        good = jnp.isfinite(size) & (size > 0)
        largest = jnp.maximum(MEMORY * control.curvature, jnp.where(good, size, 0))
        x = jax.tree.map(lambda new, old: jnp.where(good, new, old), x, control.eigenvector)
        return control._replace(curvature=largest, eigenvector=x)

    due = (state.step % 8 == 0) | (state.step < 64)
    control = jax.lax.cond(due, update, lambda control: control, state.control)
    hvp = state.calls.hvp + due.astype(jnp.int32)
    return eqx.tree_at(lambda s: (s.control, s.calls.hvp), state, (control, hvp))


def _multiply(
    problem: Problem, u: PyTree, w: PyTree, x: PyTree[Array], batch: Any
) -> tuple[Scalar, PyTree[Array]]:
    product = residual_along(problem, u, w, batch, x)
    size = jnp.asarray(optax.tree.norm(product))
    return size, optax.tree.scale(1 / jnp.where(size > 0, size, 1), product)


def step_size_at(step_size: StepSize, step: Int[Array, ""], control: Control | None = None) -> Any:
    """A step size, or momentum, at an outer step: schedules are called with the number of steps."""
    if isinstance(step_size, str):
        assert control is not None
        past = control.decay * step.astype(control.decay.dtype)
        return control.first / (control.curvature * jnp.sqrt(1 + past))
    return jnp.asarray(step_size(step), float) if callable(step_size) else step_size


def series_step(step_size: StepSize, step: Int[Array, ""], control: Control | None) -> Any:
    """The same for a series of products, whose step size has to stay of the order of 1 / L."""
    if isinstance(step_size, str):
        assert control is not None
        return 1 / control.curvature
    return step_size_at(step_size, step)


def move_outer(
    outer_step: StepSize, problem: Problem, state: Any, direction: PyTree[Array]
) -> Move:
    """`retract(u, -outer_step * direction)`."""
    control = state.control
    if isinstance(outer_step, str):
        sizes = problem.geometry.magnitude(state.u, direction)
        cut = _cut_outlier(sizes, control.squares, state.step)
        squares = jax.tree.map(lambda s, d: s + (cut * d) ** 2, control.squares, sizes)
        mean = jnp.asarray(optax.tree.sum(squares)) / optax.tree.size(squares)
        floor = jnp.where(mean > 0, mean, 1)
        update = jax.tree.map(
            lambda d, s: -RADIUS * cut * d / jnp.sqrt(s + floor), direction, squares
        )
        size = jnp.asarray(optax.tree.norm(direction))
        # Along a direction of zero, what a small one would get.
        small = RADIUS / jnp.sqrt(jnp.where(mean > 0, 2 * mean, 1)).astype(size.dtype)
        step = optax.tree.norm(update) / jnp.where(size > 0, size, 1)
        step = jnp.where(size > 0, step, small)
        control = control._replace(squares=squares)
    else:
        step = jnp.asarray(step_size_at(outer_step, state.step))
        update = jax.tree.map(lambda d: -step.astype(d.dtype) * d, direction)
    return Move(problem.geometry.retract(state.u, update), step, control)


def _cut_outlier(sizes: PyTree[Array], squares: PyTree[Array], step: Int[Array, ""]) -> Scalar:
    """The factor that cuts a direction to ten times the root mean square of those before it."""
    size = jnp.asarray(optax.tree.norm(sizes))
    usual = jnp.sqrt(optax.tree.sum(squares) / jnp.maximum(step, 1).astype(size.dtype))
    outlier = (step > 0) & (usual > 0) & (size > OUTLIER * usual)
    return jnp.where(outlier, OUTLIER * usual / jnp.where(size > 0, size, 1), 1)
