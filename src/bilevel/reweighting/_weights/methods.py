"""The algorithms that reweighting offers by name."""

import functools

import equinox as eqx
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import Array, PyTree, Scalar

from ..._algorithm.base import AbstractAlgorithm
from ..._algorithm.double_loop import DoubleLoop
from ..._algorithm.soba import SOBA
from ..._hypergradient.base import linearise_inner
from ..._hypergradient.implicit import AID, implicit_gradient
from ..._inner.minimiser import MinimiserInner
from ..._linear.cg import CG
from ..._outer.geometry import TransformedGeometry
from ..._outer.trust_region import log_trust_region
from ..._problem import BilevelProblem, num_rows
from ..._sampler import FullBatch, Shuffled, Stream
from ..._settings import largest_eigenvalue


@functools.cache  # equal calls give the same object, so that their runs share one compilation
def near_exact(*, damping: float = 0.0) -> DoubleLoop:
    """The default: near-exact outer steps in a trust region on the log-weights.

    Each outer step solves the inner problem nearly (L-BFGS from the last solution), then the linear
    system nearly (conjugate gradients from the last `v`), then takes a mirror step within the trust
    radius. Nothing has a step size. Because the model keeps up with the weights, the run stays
    in the regime where the weights follow the true hypergradient and do not collapse (Theorem 1 of
    Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization"
    [ivanova2023][]).

    Args:
        damping: added to the inner Hessian, for models whose inner objective is not convex.
    """
    return DoubleLoop(
        inner=MinimiserInner(optx.LBFGS(rtol=1e-2, atol=1e-3), max_steps=20),
        hypergradient=AID(CG(rtol=0.1, max_steps=20), damping=damping),
        outer_tx=log_trust_region(),
        warm_start=True,
    )


def soba(problem: BilevelProblem, u: Array, w: PyTree, *, batch_size: int = 64) -> SOBA:
    """SOBA with step sizes taken from the problem.

        inner_step = linear_step = 1 / (4 L),   L the largest inner eigenvalue at (u, w)
        outer_step = 0.1 |B| / (n max_i |c_i|),  c the centred hypergradient at w*(u)

    so that a visit to a row moves its log-weight by about 0.1 at the start.

    A minibatch sees the curvature of the rows it holds, times their weights: once a few weights
    dominate, the steps that fitted the start no longer do. Ten times this outer step is about the
    best for a linear model, and a hundred times collapses (`papers/reweighting/remedies.py`);
    `clipped_soba` needs no such choice.
    """
    n = num_rows(problem.inner_data)
    batch_size = min(batch_size, n, num_rows(problem.outer_data))
    largest, steepest = (float(x) for x in _scales(problem, u, w))
    return SOBA(
        inner_step=1 / (4 * largest),
        linear_step=1 / (4 * largest),
        outer_step=0.1 * batch_size / (n * steepest),
        inner_sampler=Shuffled(batch_size),
        outer_sampler=Shuffled(batch_size),
    )


CLIP = 0.1  # of a log-weight, per visit
_CLIPPING = optax.clip(CLIP)  # one object, so that runs share one compilation
BOLD = 1e4  # times the step of `soba`: every visit that matters is at the clip


def clipped_soba(
    problem: BilevelProblem, u: Array, w: PyTree, *, batch_size: int = 64
) -> tuple[BilevelProblem, SOBA]:
    """SOBA in which a visit moves the log-weight of a row by 0.1 at most, and nothing to tune.

    The outer step of `soba` times 10^4, so that nearly every visit is at the clip: what counts
    is in which direction a row pulls, not how hard. Returns the problem with the clip in its
    geometry, and the method. It beats the best tuned plain SOBA on 4 of 6 image problems, by far
    where the model is an MLP; with a model of two parameters it still collapses
    (`docs/reweighting.md`).
    """
    method = soba(problem, u, w, batch_size=batch_size)
    clipped = TransformedGeometry(_CLIPPING, problem.geometry)
    bold = eqx.tree_at(lambda m: m.outer_step, method, replace_fn=lambda step: BOLD * step)
    return eqx.tree_at(lambda p: p.geometry, problem, clipped), bold


@eqx.filter_jit
def _scales(problem: BilevelProblem, u: Array, w: PyTree) -> tuple[Scalar, Scalar]:
    """The largest inner eigenvalue at (u, w), and the largest centred hypergradient at w*(u)."""
    stream = Stream(FullBatch(), problem.inner_data, ())
    solver = MinimiserInner(optx.LBFGS(rtol=1e-4, atol=1e-5), max_steps=200)
    best, *_ = solver.solve(problem, u, w, (), stream)
    grad = implicit_gradient(problem, u, best, CG(rtol=1e-3, max_steps=200)).grad
    _, products = linearise_inner(problem, u, w, problem.inner_data)
    largest = largest_eigenvalue(lambda v: products(v)[1], w, num_steps=30)
    return largest, jnp.max(jnp.abs(grad - jnp.vdot(u, grad)))


METHODS = ("near-exact", "soba")
FEW_STEPS, MANY_STEPS, MANY_TRUSTED = 20, 60, 1000


def build_method(
    method: str | AbstractAlgorithm, problem: BilevelProblem, u: Array, w: PyTree, convex: bool
) -> tuple[BilevelProblem, AbstractAlgorithm, int, int]:
    """The problem and the algorithm for a name, with its number of steps and its chunk size."""
    if isinstance(method, AbstractAlgorithm):
        return problem, method, 100, 10
    if method == "near-exact":
        # With few trusted rows a longer path overfits their loss; with many it is better.
        many = num_rows(problem.outer_data) >= MANY_TRUSTED
        steps = MANY_STEPS if many else FEW_STEPS
        return problem, near_exact(damping=0.0 if convex else 1.0), steps, 1
    if method == "soba":
        return *clipped_soba(problem, u, w), 10_000, 500
    raise ValueError(
        f"`method` must be one of {', '.join(map(repr, METHODS))} or an algorithm such as "
        f"`bilevel.SOBA(...)`, got {method!r}."
    )
