"""Iterative differentiation (ITD): the derivative of the inner solver itself."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

from .._derivatives import Traced
from .._inner.base import AbstractInnerSolver, InnerStats
from .._inner.bigsam import BiGSAM
from .._inner.gradient import GradientInner
from .._problem import Problem
from .._sampler import Stream, Streams
from .._settings import as_optional_data
from .._solution import Calls
from .base import (
    AbstractHypergradient,
    EstimatorState,
    Hypergradient,
    require_outer_variable,
)
from .implicit import charge_inner


class ITD(AbstractHypergradient):
    """Iterative differentiation, or "unrolling": the exact gradient of the *truncated* problem.

        Phi_T(u) = F(u, w_T(u)),   with w_T(u) the inner solver's result after T steps from a fixed w_0
        estimate = grad Phi_T(u)

    Args:
        mode: `"reverse"` takes one backward pass, whatever the size of u, and keeps T vectors of
            the size of `w` (the backward pass computes each step's gradient again and does not keep
            it). `"checkpointed"` returns the same numbers from about 2 sqrt(T) vectors, for one
            more forward pass. `"forward"` carries along the derivative of `w_k` with respect to
            every entry of u: it takes dim(u) times the cost of the inner solve, and keeps dim(u) + 1
            vectors for any T. Through `optax.lbfgs`, which divides by the length of the last step, it
            gives NaN once w no longer moves: take fewer steps, or `AID`.
        truncate: differentiate through the last K steps only; the iterate before them counts as a
            constant. K steps from the solution give K terms of the Neumann series. This needs a
            `GradientInner`.
        contraction: q < 1, the contraction constant of one step of the inner solver, if you know
            it. Only `error_estimate` uses it.

    Every optimiser of `GradientInner` is differentiated as it is, including momentum and Adam. The
    start `w_0` counts as a constant, also under a warm start.

    Error: for gradient steps on a strongly convex f the distance to `grad Phi` shrinks as `T q^T`,
    with q the contraction constant of one step.

    `error_estimate` is `(T + 1) q_T / (1 - q_T) ||grad - grad_u F||`, where `q_T` is `q^T` if
    `contraction` is given. Otherwise `q_T` is the share of a perturbation of the start that is left
    after the steps, measured along `grad_w F` in the reverse modes and along a random direction in
    the forward mode. The estimate is infinite if that share is 1 or more.

    Raises:
        ValueError: the inner solver cannot be unrolled (`MinimiserInner` stops adaptively); it
            cannot be split, which `truncate` and `"checkpointed"` need; its transformation has a
            line search, in the reverse modes; `truncate` < 1; or the mode is unknown.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", Algorithm 4 and, for `truncate`, Appendix E
    [vicol2022][]; the rate: Grazzi, Franceschi, Pontil and Salzo (2020), "On the iteration
    complexity of hypergradient computation" [grazzi2020][]; forward and reverse mode: Franceschi,
    Donini, Frasconi and Pontil (2017), "Forward and reverse gradient-based hyperparameter
    optimization" [franceschi2017][]; truncation: Shaban, Cheng, Hatch and Boots (2019), "Truncated
    back-propagation for bilevel optimization" [shaban2019][].
    """

    mode: Literal["reverse", "forward", "checkpointed"] = "reverse"
    truncate: int | None = None
    contraction: Float[np.ndarray | Array, "*batch"] | None = eqx.field(
        default=None, converter=as_optional_data
    )

    def __check_init__(self):
        if self.mode not in ("reverse", "forward", "checkpointed"):
            raise ValueError(
                f"`ITD` has the modes 'reverse', 'forward' and 'checkpointed', got {self.mode!r}."
            )
        if self.truncate is not None and self.truncate < 1:
            raise ValueError(f"`ITD` needs truncate >= 1, got {self.truncate}.")

    def init(self, problem, inner, u, w):
        """The inner solver's state."""
        if not inner.unrollable:
            raise ValueError(
                f"`ITD` differentiates the inner solver's steps, which `{type(inner).__name__}` "
                "does not allow. Use `GradientInner` or `ClosedForm`, or the estimator `AID`, "
                "which works with every inner solver."
            )
        if self.truncate is not None or self.mode == "checkpointed":
            _in_steps(inner)
        return EstimatorState(inner.init(problem, u, w))

    def estimate(self, problem, inner, u, w, state, streams):
        """Differentiate `u -> F(u, w_T(u))`."""
        outer_batch, outer_stream = streams.outer.draw()
        peek, _ = streams.inner.draw()
        require_outer_variable(problem, u, w, peek)

        start = _Iterate(w, state.inner, streams.inner.state)
        skipped, searched = 0, jnp.zeros((), jnp.int32)
        if self.truncate is not None:
            skipped = max(_in_steps(inner).num_steps - self.truncate, 0)
        if skipped:
            before = _with_steps(inner, skipped)
            start, stats = _advance(before, False, problem, u, start, streams.inner)
            searched = stats.products
            inner = _with_steps(inner, _in_steps(inner).num_steps - skipped, skipped)
        start = jax.lax.stop_gradient(start)
        checkpointed = self.mode == "checkpointed"

        def truncated(u: PyTree[Array], w: PyTree[Array]):
            at = start._replace(w=w)
            last, stats = _advance(inner, checkpointed, problem, u, at, streams.inner)
            return (problem.outer(u, last.w, outer_batch), last.w), (last, stats)

        if self.mode == "forward" and not Traced(truncated, u, start.w).has_forward_mode:
            raise TypeError(
                "an objective has a `jax.custom_vjp`, which forward mode cannot differentiate: use "
                "`ITD('reverse')` in place of `ITD('forward')`, or write a `jax.custom_jvp`."
            )
        differentiate = _forward if self.mode == "forward" else _reverse
        try:
            value, grad, (last, stats), left = differentiate(truncated, u, start.w)
        except ValueError as error:
            if "while_loop" not in str(error):
                raise
            raise ValueError(
                f"`ITD(mode={self.mode!r})` goes back through the inner solver's steps, and these "
                "have a loop of unknown length, such as the line search of `optax.lbfgs`. Use `AID`, "
                "which works with every inner solver, or a transformation without a line search."
            ) from error
        inner_batch, inner_stream = _stream(streams.inner, last).draw()
        outer_u, outer_w = jax.grad(problem.outer, argnums=(0, 1))(u, last.w, outer_batch)
        if self.contraction is not None:
            left = jnp.asarray(self.contraction, left.dtype) ** stats.calls.astype(left.dtype)
        elif self.mode != "forward":
            left = _over(left, optax.tree.norm(outer_w))
        implicit = optax.tree.norm(optax.tree.sub(grad, outer_u))
        error = (
            (stats.calls + 1).astype(left.dtype)
            * left
            * implicit
            / jnp.where(left < 1, 1 - left, 1)
        )

        one = jnp.ones((), jnp.int32)
        # A differentiated gradient step is one product with H and one with the mixed derivative.
        products = stats.calls * (optax.tree.size(u) if self.mode == "forward" else 1)
        replayed = stats.calls if checkpointed else 0
        estimate = Hypergradient(
            value=value,
            grad=grad,
            w=last.w,
            v=None,
            inner_residual=optax.tree.norm(problem.residual(u, last.w, inner_batch)),
            linear_residual=jnp.zeros_like(value),
            error_estimate=jnp.where(left < 1, error, jnp.inf),
            result=stats.result,
            calls=Calls(one, one + skipped + replayed, products + searched, products),
        )
        return (
            charge_inner(estimate, stats),
            EstimatorState(last.state),
            Streams(outer_stream, inner_stream),
        )


class _Iterate(NamedTuple):
    """The inner solver between two steps: all of it is arrays."""

    w: PyTree[Array]
    state: Any
    draws: Any


def _stream(stream: Stream, iterate: _Iterate) -> Stream:
    return Stream(stream.sampler, stream.data, iterate.draws)


def _advance(
    inner: AbstractInnerSolver,
    checkpointed: bool,
    problem: Problem,
    u: PyTree,
    at: _Iterate,
    stream: Stream,
) -> tuple[_Iterate, InnerStats]:
    stream = _stream(stream, at)
    if not checkpointed:
        w, state, stream, stats = inner.solve(problem, u, at.w, at.state, stream)
    else:
        solve = _in_steps(inner).solve_by
        w, state, stream, stats = solve(_in_blocks, problem, u, at.w, at.state, stream)
        if isinstance(inner, BiGSAM):
            stats = stats._replace(outer_calls=2 * stats.outer_calls)
    return _Iterate(w, state, stream.state), stats


def _in_blocks(step: Callable, carry: Any, xs: Any, num_steps: int) -> tuple[Any, Any]:
    """`jax.lax.scan` in blocks of sqrt(T) steps; the backward pass keeps only the start of each."""
    size = math.isqrt(num_steps - 1) + 1
    blocks, rest = divmod(num_steps, size)

    def part(carry: Any, start: ScalarLike, length: int) -> tuple[Any, Any]:
        def steps(carry: Any) -> tuple[Any, Any]:
            own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, length), xs)
            return jax.lax.scan(step, carry, own, length=length)

        return jax.checkpoint(steps)(carry)

    carry, ys = jax.lax.scan(
        lambda carry, start: part(carry, start, size), carry, size * jnp.arange(blocks)
    )
    ys = jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), ys)
    if rest:
        carry, last = part(carry, blocks * size, rest)
        ys = jax.tree.map(lambda y, z: jnp.concatenate([y, z]), ys, last)
    return carry, ys


def _reverse(function: Callable, u: PyTree, w: PyTree) -> tuple[Scalar, PyTree, Any, Scalar]:
    """Value, gradient in u, the rest, and the norm of the gradient in the start."""
    (value, _), pull_back, rest = jax.vjp(function, u, w, has_aux=True)
    grad, by_start = pull_back((jnp.ones_like(value), optax.tree.zeros_like(w)))
    return value, grad, rest, optax.tree.norm(by_start)


def _forward(function: Callable, u: PyTree, w: PyTree) -> tuple[Scalar, PyTree, Any, Scalar]:
    """Value, gradient in u, the rest, and the effect of a random unit step at the start on the end."""
    flat, unravel = ravel_pytree(u)

    def along(du: Array):
        (value, _), (slope, _), rest = jax.jvp(
            lambda u: function(u, w), (u,), (unravel(du),), has_aux=True
        )
        return value, slope, rest

    basis = jnp.eye(flat.size, dtype=flat.dtype)
    value, slopes, rest = jax.vmap(along, out_axes=(None, 0, None))(basis)
    # A separate pass, which is not compiled if the error estimate is not used.
    away = optax.tree.random_like(jr.key(0), w)
    away = optax.tree.scale(1 / optax.tree.norm(away), away)
    moved = jax.jvp(lambda w: function(u, w)[0][1], (w,), (away,))[1]
    return value, unravel(slopes), rest, optax.tree.norm(moved)


def _over(x: Scalar, size: Scalar) -> Scalar:
    return jnp.where(size > 0, x / jnp.where(size > 0, size, 1), 0)


def _in_steps(inner: AbstractInnerSolver) -> GradientInner | BiGSAM:
    if not isinstance(inner, GradientInner | BiGSAM):
        raise ValueError(
            "`ITD` with `truncate` or mode='checkpointed' splits the inner solve into blocks of "
            f"steps, which `{type(inner).__name__}` does not have; use `GradientInner` or `BiGSAM`."
        )
    return inner


def _with_steps(
    inner: AbstractInnerSolver, num_steps: int, done: int = 0
) -> GradientInner | BiGSAM:
    """So many steps of a solver, after those that are done."""
    if isinstance(inner, BiGSAM):
        before = jnp.asarray(inner.done)
        return dataclasses.replace(inner, num_steps=num_steps, done=before + done)
    assert isinstance(inner, GradientInner)
    return GradientInner(inner.tx, num_steps, inner.geometry)
