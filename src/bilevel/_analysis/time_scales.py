"""The regime of a reweighting run: how fast the weights move in comparison with the model."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
from jaxtyping import Array, Float, Key, PyTree

from .._algorithm.base import AbstractAlgorithm, State
from .._arrays import dot
from .._geometry import Simplex
from .._inner.minimiser import MinimiserInner
from .._pinned import compiled
from .._problem import BilevelProblem
from .._sampler import FullBatch, Stream
from .._solution import Solution
from .weight_statistics import effective_sample_size

FOLLOWS, RUNS_AHEAD = (
    0.1,
    100.0,
)  # ratios of the two time scales up to and from which a theorem applies


class Regime(NamedTuple):
    """What `regime` measured; `print` says it in words.

    Attributes:
        outer_pace: how far the log-weights move per step, `sum_i u_i |d log u_i|`, at the start.
        inner_pace: how fast the model approaches `w*(u0)`, in factors of e per step.
        ratio: `outer_pace / inner_pace`: by how many factors of e the weights change while the
            distance of the model to its solution for them falls by a factor e.
        inner_residual: `||grad_w f||` at the end of the run divided by that at its start, which
            says whether the model is stationary for the weights at the end.
        effective_sample_size: of the final weights.
        num_rows, num_parameters: n and p.
        surviving_rows: how many rows weigh at least a hundredth of an average row.
        theorem: `"1"` if the weights follow the exact hypergradient; `"2"` if they move while the
            model is nearly fixed, to at most p rows; `"neither"` in between, where no theorem
            applies.
    """

    outer_pace: float
    inner_pace: float
    ratio: float
    inner_residual: float
    effective_sample_size: float
    num_rows: int
    num_parameters: int
    surviving_rows: int
    theorem: str

    def __str__(self) -> str:
        n, p, ess = self.num_rows, self.num_parameters, self.effective_sample_size
        speed = (
            f"weights move {_times(self.ratio)} faster than the model"
            if self.ratio > 1
            else f"the model moves {_times(1 / max(self.ratio, 1e-12))} faster than the weights"
        )
        if self.theorem == "1":
            verdict = "they follow the exact hypergradient (Ivanova and Ablin, Theorem 1)"
        elif self.theorem == "2" and p < n:
            verdict = f"expect at most p = {p} rows to survive (Theorem 2 and Proposition 8)"
        elif self.theorem == "2":
            verdict = (
                f"expect sparse weights (Theorem 2); p = {p} parameters for {n} rows set no bound "
                "on how sparse"
            )
        else:
            verdict = (
                "between the regimes of Theorems 1 and 2, the sparser the faster: judge by the "
                "retrained model"
            )
        return (
            f"{speed}: {verdict}. At the end {self.surviving_rows} of {n} rows carry weight, "
            f"effective sample size {ess:.4g}; the inner gradient is {self.inner_residual:.2g} of "
            "what it was at the start."
        )


def _times(x: float) -> str:
    return f"{x:.2g} times" if x < 100 else f"{x:.0f} times"


def regime(
    problem: BilevelProblem,
    algorithm: AbstractAlgorithm,
    u0: Float[Array, " rows"],
    w0: PyTree[Array],
    solution: Solution,
    *,
    key: Key[Array, ""] | None = None,
    num_steps: int = 64,
) -> Regime:
    """Measure the two time scales of a run that reweights rows, and name the theorem it falls under.

    Args:
        problem, algorithm, u0, w0: those of the run; `u` is one array of weights on the simplex.
        solution: what the run gave.
        key: for the batches, `jax.random.key(0)` by default.
        num_steps: the number of steps of the algorithm that measure the paces.

    The steps start from `w0`, and the weights are put back to `u0` after each step. The inner pace
    is the rate at which the model approaches `w*(u0)`, which L-BFGS finds on the full data. The
    outer pace is how far a step moves the weights, on average over the second half of the steps.
    The ratio of the two decides whether weights become sparse, and not the name of the method:
    whether a step size is fast depends on the curvature.

    Cost: `num_steps` steps of the algorithm and one accurate inner solve.

    Source: Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization",
    sections 3 (alpha and beta), 3.2 and 3.3 [ivanova2023][].
    """
    key = jax.random.key(0) if key is None else key
    u0, w0 = jax.tree.map(jnp.asarray, (u0, w0))
    gaps, moves = _paces(problem, algorithm, u0, w0, key, num_steps=num_steps)
    gaps = np.asarray(gaps, float)
    inner_pace = _decay(gaps)
    outer_pace = float(np.mean(moves[num_steps // 2 :]))
    n, p = u0.size, sum(x.size for x in jax.tree.leaves(w0))
    weights = np.asarray(solution.u, float)
    residual = [
        float(optax.tree.norm(problem.residual(u, w, problem.inner_data)))
        for u, w in [(u0, w0), (solution.u, solution.w)]
    ]
    ratio = outer_pace / inner_pace if inner_pace > 0 else np.inf
    theorem = "1" if ratio <= FOLLOWS else "2" if ratio >= RUNS_AHEAD else "neither"
    return Regime(
        outer_pace=outer_pace,
        inner_pace=inner_pace,
        ratio=float(ratio),
        inner_residual=residual[1] / residual[0] if residual[0] > 0 else residual[1],
        effective_sample_size=effective_sample_size(weights),
        num_rows=n,
        num_parameters=p,
        surviving_rows=int(np.sum(weights >= 0.01 / n)),
        theorem=theorem,
    )


def _decay(gaps: Float[np.ndarray, " steps"]) -> float:
    """The fastest mean decay to any of the points, in factors of e per step.

    The last point is not used alone, because a fast method reaches its noise level, or rounding,
    long before it.
    """
    tiny = np.finfo(np.float32).tiny
    fall = np.log(max(gaps[0], tiny)) - np.log(np.maximum(gaps[1:], tiny))
    return float(max(np.max(fall / np.arange(1, len(gaps))), 0.0))


@compiled
def _paces(
    problem: BilevelProblem,
    algorithm: AbstractAlgorithm,
    u0: Array,
    w0: PyTree[Array],
    key: Key[Array, ""],
    *,
    num_steps: int,
) -> tuple[Array, Array]:
    """The distances to `w*(u0)` and the moves of u, where each step starts from `u0` again."""
    stream = Stream(FullBatch(), problem.inner_data, ())
    solver = MinimiserInner(optx.LBFGS(rtol=1e-5, atol=1e-7), max_steps=500)
    target, *_ = solver.solve(problem, u0, w0, (), stream)

    def held(state: State, _: Any) -> tuple[State, tuple[Array, Array]]:
        following, _ = algorithm.step(problem, state)
        # A weight that is 0 stays 0 and does not count.
        after, before = (Simplex().log_weights(jnp.where(u0 > 0, u, 1)) for u in (following.u, u0))
        move = after - before
        gap = optax.tree.norm(optax.tree.sub(following.w, target))
        return dataclasses.replace(following, u=u0), (gap, dot(u0, jnp.abs(move)))

    state = algorithm.init(problem, u0, w0, key)
    _, (gaps, moves) = jax.lax.scan(held, state, length=num_steps)
    first = optax.tree.norm(optax.tree.sub(w0, target))
    return jnp.concatenate([jnp.reshape(first, 1), gaps]), moves
