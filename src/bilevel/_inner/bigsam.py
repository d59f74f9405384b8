"""BiG-SAM: among several inner minimisers, find the one that is best for the outer objective."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .._loader import refuse_loader
from .._problem import BilevelProblem
from .._sampler import Stream
from .._settings import as_data, known
from .._solution import RESULTS
from .base import NOISE, AbstractStepInner, InnerStats

Setting = Float[np.ndarray | Array, "*batch"]
Weighting = Callable[[Array], ArrayLike]


def sabach_shtern_weighting(
    contraction: Any = 0.0, gamma: Any = 1.0
) -> Callable[[ArrayLike], Array]:
    """The weights of the outer step that make BiG-SAM converge to the improved model's solution.

        b_k = min(2 gamma / (k (1 - beta)), 1)

    Args:
        contraction: beta in [0, 1), the contraction constant of one outer step of size s. It is
            `sqrt(1 - 2 s sigma L / (sigma + L))` for an F that is sigma-strongly convex and
            L-smooth in w. The rate 1 / k of f is proved for this beta. With another value, such as
            0 if beta is unknown, the iterates still converge, because b_k falls to zero, its sum
            diverges and b_{k+1} / b_k tends to 1. Measured on quadratics, `||w_k - w(u)||` falls as
            `k^-p` with p = min(1, 2 gamma s sigma / (1 - beta)), where sigma is taken along the
            inner minimisers.
        gamma: in (0, 1].

    Both are data: a new value compiles nothing.

    Raises:
        ValueError: `contraction` or `gamma` outside of its interval.

    Source: Sabach and Shtern (2017), "A first order method for solving convex bilevel optimization
    problems" [sabach2017][]; convergence for other weights: Xu (2004), "Viscosity approximation
    methods for nonexpansive mappings" [xu2004][].

    >>> weighting = sabach_shtern_weighting(contraction=0.5)
    >>> [float(weighting(k)) for k in (1, 4, 8, 16)]
    [1.0, 1.0, 0.5, 0.25]
    """
    contraction, gamma = as_data(contraction), as_data(gamma)
    _check("sabach_shtern_weighting", "contraction in [0, 1)", contraction, lambda x: 0 <= x < 1)
    _check("sabach_shtern_weighting", "gamma in (0, 1]", gamma, lambda x: 0 < x <= 1)
    return Partial(_harmonic, as_data(2 * gamma / (1 - contraction)))


def printed_weighting(power: Any = 0.25) -> Callable[[ArrayLike], Array]:
    """The weights of the outer step that the paper on the improved model prints.

        b_k = 1 - k^-p,   because the paper's alpha_k = k^-p multiplies the *inner* step

    The outer objective takes over: the iterates drift to `argmin_w F`, whatever f is, as `k^-p`.
    The drift is so slow that a run of 100 steps is a compromise of the two objectives, with
    k^-p = 0.32 at its end. All figures and tables of the paper use these weights; its theorems need
    `sabach_shtern_weighting`.

    Args:
        power: p > 0; the paper takes 0.25. It is data: a new value compiles nothing.

    Raises:
        ValueError: `power` <= 0.

    Source: Li, Gu and Huang (2020), "Improved bilevel model: Fast and optimal algorithm with
    theoretical guarantee", appendix C.1 [li2020][].

    >>> [round(float(printed_weighting()(k)), 3) for k in (1, 16, 10000)]
    [0.0, 0.5, 0.9]
    """
    power = as_data(power)
    _check("printed_weighting", "power > 0", power, lambda x: x > 0)
    return Partial(_rising, power)


def _as_weighting(value: Any) -> Any:
    if callable(value):
        return value
    raise TypeError(
        "`BiGSAM` takes its `weighting` as a function, k -> weight of the outer step, got "
        f"{value!r}; pass `sabach_shtern_weighting()`, `printed_weighting()` or a function."
    )


class BiGSAM(AbstractStepInner):
    """A fixed number of BiG-SAM steps: each averages an inner and an outer gradient step.

        theta_k = w_{k-1} - t grad_w f(u, w_{k-1}, batch_k)
        phi_k   = w_{k-1} - s grad_w F(u, w_{k-1}, outer data)
        w_k     = (1 - b_k) theta_k + b_k phi_k                      k = 1 .. num_steps

    This is the inner solver of the *improved* bilevel model, for an f with many minimisers:

        min_u F(u, w(u)),   w(u) = argmin { F(u, w) : w in argmin_w f(u, w) }

    `DoubleLoop(BiGSAM(...), ITD(), outer_tx)` is the whole method. With weights of zero the steps
    are those of `GradientInner(optax.sgd(t), num_steps)`, which belong to the *basic* model.

    Args:
        inner_step: t, at most 1 / L with L the smoothness of f in w.
        outer_step: s, at most 2 / (L + sigma) for an F that is L-smooth and sigma-strongly convex
            in w. Both steps are data: a new value compiles nothing.
        num_steps: the number of steps, >= 1.
        weighting: `k -> b_k`, from the number k = 1, 2, ... of the step (a floating-point scalar)
            to a weight in [0, 1]: `sabach_shtern_weighting(...)`, `printed_weighting()`, or a
            function.
        every: take the BiG-SAM step at k = every, 2 every, ..., and the gradient step `theta_k` at
            the others. b_k stays a function of k.
        done: how many steps came before: the first one is k = done + 1. Data, like the steps.

    **Valid** for f convex and F strongly convex in w, and for weights that fall to zero with a sum
    that diverges. `w_k` then converges to w(u), and f to its minimum as 1 / k. Where f is strongly
    convex, w(u) is its only minimiser, and gradient steps find it faster. With `printed_weighting`
    the limit is argmin F instead.

    Error: after K steps f is above its minimum by the order of `b_K`, which favours the outer
    objective: F at `w_K` is *below* the value of the model. Look at `inner_residual`. The
    `error_estimate` of `ITD` measures how much the result still depends on the start; it does not
    see `b_K`.

    The outer gradient is taken on all of the problem's `outer_data`, even if the algorithm has an
    outer sampler; each step draws one inner batch. A warm start goes on from the last w and begins
    again with k = 1.

    **Cost**: `num_steps` inner gradients (`InnerStats.calls`) and `num_steps // every` outer
    gradients (`InnerStats.outer_calls`). Unrolling keeps `num_steps` vectors of the size of w. When
    `ITD` differentiates the outer steps, it takes products with the Hessian and the mixed
    derivative of F that are not counted. `ITD` unrolls this solver in all of its modes; in
    `"checkpointed"` it keeps about 2 sqrt(num_steps) vectors, for one more forward pass.

    Source: Li, Gu and Huang (2020), "Improved bilevel model: Fast and optimal algorithm with
    theoretical guarantee", problem (3), Algorithms 1, 2 and 5, Figure 2 (`every`) and Algorithm 6
    (the basic model) [li2020][], after Sabach and Shtern (2017), "A first order method for solving
    convex bilevel optimization problems" [sabach2017][], with alpha_k = 1 - b_k. Departures: the
    paper's loop `k = 0 .. K` returns `w_K`, which is K steps. The reverse loops of its Algorithms
    2, 5 and 6 end at k = 1 with derivatives at `w_{k+1}`; `ITD` takes the exact derivatives, at
    `w_k` down to k = 0. The paper does not say which steps Figure 2 picks.

    Raises:
        ValueError: `num_steps` < 1, `every` not in 1 .. num_steps, a step size that is not
            positive.
        TypeError: `weighting` is not a function; the problem is a `FixedPointProblem`, which has no
            inner objective.

    Inner minimisers are all w with `w[0] = u`; the outer objective prefers `w[1] = 2`:

    >>> import bilevel, jax.numpy as jnp
    >>> problem = bilevel.BilevelProblem(
    ...     outer=lambda u, w, _: jnp.sum((w - 2.0) ** 2), inner=lambda u, w, _: (w[0] - u) ** 2
    ... )
    >>> solver = BiGSAM(0.5, 0.5, num_steps=1000)
    >>> stream = bilevel.Stream(bilevel.FullBatch(), None, ())
    >>> w, *_ = solver.solve(problem, jnp.array(1.0), jnp.zeros(2), (), stream)
    >>> w.round(2).tolist()
    [1.0, 2.0]
    """

    inner_step: Setting = eqx.field(converter=as_data)
    outer_step: Setting = eqx.field(converter=as_data)
    num_steps: int
    weighting: Weighting = eqx.field(
        converter=_as_weighting, default_factory=sabach_shtern_weighting
    )
    every: int = 1
    done: Setting = eqx.field(default=0, converter=as_data)
    unrollable: ClassVar[bool] = True

    def __check_init__(self):
        _check("BiGSAM", "inner_step > 0", self.inner_step, lambda x: x > 0)
        _check("BiGSAM", "outer_step > 0", self.outer_step, lambda x: x > 0)
        if self.num_steps < 1:
            raise ValueError(f"`BiGSAM` needs num_steps >= 1, got {self.num_steps}.")
        whole = isinstance(self.done, np.ndarray) and not self.done.any()
        if self.every < 1 or (whole and self.every > self.num_steps):
            raise ValueError(
                f"`BiGSAM` needs every in 1 .. num_steps = {self.num_steps}, got {self.every}. For "
                "gradient steps alone use `GradientInner(optax.sgd(t), num_steps)`."
            )

    def init(self, problem, u, w):
        """No state: k begins with 1 in each solve."""
        return ()

    def outer_calls(self) -> Int[Array, ""]:
        """How many of the steps take an outer gradient."""
        done = jnp.asarray(self.done).astype(jnp.int32)
        return (done + self.num_steps) // self.every - done // self.every

    def solve_by(self, scan, problem, u, w, state, stream):
        """`num_steps` steps, in the loop `scan`."""
        if not isinstance(problem, BilevelProblem):
            raise TypeError(
                "`BiGSAM` takes steps on an inner objective, which a "
                f"`{type(problem).__name__}` does not have; use `GradientInner(optax.sgd(1.0), T)` "
                "to iterate its map."
            )
        refuse_loader(stream.sampler, "BiGSAM")

        def step(carry: tuple[PyTree, Any], k: Array) -> tuple[tuple[PyTree, Any], Array]:
            w, draws = carry
            batch, following = Stream(stream.sampler, stream.data, draws).draw()
            residual = problem.residual(u, w, batch)
            theta = _descend(w, self.inner_step, residual)

            def averaged() -> PyTree:
                outer_grad = jax.grad(problem.outer, argnums=1)(u, w, problem.outer_data)
                phi = _descend(w, self.outer_step, outer_grad)
                return _average(theta, phi, self.weighting(jnp.asarray(k, float)))

            if self.every == 1:
                w = averaged()
            else:
                w = jax.lax.cond(k % self.every == 0, averaged, lambda: theta)
            return (w, following.state), jnp.asarray(optax.tree.norm(residual))

        numbers = jnp.arange(1, self.num_steps + 1, dtype=jnp.int32)
        numbers = numbers + jnp.asarray(self.done).astype(jnp.int32)
        # When unrolled, a step keeps only w; intermediate values of the gradients are computed again.
        step = jax.checkpoint(step, prevent_cse=False)
        (w, draws), sizes = scan(step, (w, stream.state), numbers, self.num_steps)
        # The outer steps may raise a residual that was small at the start, so only a blow-up counts.
        sizes = jax.lax.stop_gradient(sizes)
        failed = ~(sizes[-1] <= NOISE * jnp.max(sizes[: self.num_steps // 2 + 1]))
        stats = InnerStats(
            calls=jnp.full((), self.num_steps, jnp.int32),
            result=RESULTS.where(failed, RESULTS.inner_divergence, RESULTS.successful),
            outer_calls=self.outer_calls(),
        )
        return w, state, Stream(stream.sampler, stream.data, draws), stats


def _descend(w: PyTree[Array], step: Setting, grad: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda x, g: x - jnp.asarray(step, x.dtype) * g, w, grad)


def _average(theta: PyTree[Array], phi: PyTree[Array], weight: ArrayLike) -> PyTree[Array]:
    def mean(x: Array, y: Array) -> Array:
        b = jnp.asarray(weight, x.dtype)
        return (1 - b) * x + b * y

    return jax.tree.map(mean, theta, phi)


def _harmonic(scale: Setting, k: ArrayLike) -> Array:
    return jnp.minimum(jnp.asarray(scale, float) / jnp.asarray(k, float), 1.0)


def _rising(power: Setting, k: ArrayLike) -> Array:
    return 1 - jnp.asarray(k, float) ** -jnp.asarray(power, float)


def _check(name: str, needed: str, value: Setting, holds: Callable[[float], bool]) -> None:
    numbers = known(value)
    if numbers is not None and not all(holds(x) for x in numbers.flat):
        raise ValueError(f"`{name}` needs {needed}, got {value}.")
