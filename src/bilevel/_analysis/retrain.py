"""Does a bilevel result survive retraining, and what do its parameters remember of the outer data?"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
import optimistix as optx
import pandas as pd
from jaxtyping import Array, Bool, Float, Key, PyTree, Scalar
from sklearn.metrics import roc_auc_score

from .._callback import AbstractCallback
from .._inner.base import AbstractInnerSolver
from .._inner.minimiser import MinimiserInner
from .._pinned import compiled
from .._problem import BilevelProblem, num_rows
from .._sampler import FullBatch, Stream
from .._solution import RESULTS, Solution
from .._variables import Form, as_arrays

HOLDS, LOST = 0.9, 0.5  # of the improvement: at least the first holds, below the second is lost


class Trajectory(AbstractCallback):
    """A callback that keeps the outer variable at the end of each chunk, in `steps` and `us`.

    Pass it to `retrain_check(..., path=trajectory)`. `solve(..., chunk_size=k)` says how often it
    is called. A run keeps what is there up to the step where it starts, as `Logger` does: nothing if
    it is a new one.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.us: list[PyTree[np.ndarray]] = []
        self._running = False

    def __call__(self, chunk):
        """Copy u to the host."""
        if not self._running:
            kept = sum(step <= chunk.start for step in self.steps)
            del self.steps[kept:], self.us[kept:]
        self._running = True
        self.steps.append(chunk.step)
        self.us.append(jax.tree.map(np.asarray, chunk.state.u))

    def close(self):
        """The next run is another one."""
        self._running = False


class RetrainCheck(NamedTuple):
    """How much of a result is in its outer variable; `print` says it in words.

    All values are values of the outer objective on its full data, unless a `value` was given. Lower
    is better.

    Attributes:
        warm: the value with the inner variable at the end of the run.
        retrained: the values with inner variables that are trained from fresh starts on the final
            u.
        start: the same for the u that the run began with.
        kept: `(mean start - mean retrained) / (mean start - warm)`, the share of the run's
            improvement that its outer variable carries: 1 if nothing is lost on retraining, 0 (or
            less) if all of it lives in the inner variable. NaN if there was no improvement.
        spread: the standard deviation of `retrained`, divided by the same denominator.
        verdict: `"holds"` (kept >= 0.9), `"partly"`, `"lost"` (kept < 0.5), `"no improvement"`; or
            `"inconclusive"` if a value is not finite, as where the inner solver diverges.
        path: a table of `step` and `retrained` value along the trajectory; empty if none was given.
        w: the retrained inner variables, stacked on a first axis.
        converged: whether the inner solver met its tolerance from every fresh start on the final u.
            A `GradientInner` has no tolerance and counts as converged.
    """

    warm: float
    retrained: Float[np.ndarray, " inits"]
    start: Float[np.ndarray, " inits"]
    kept: float
    spread: float
    verdict: str
    path: pd.DataFrame
    w: PyTree
    converged: bool

    def __str__(self) -> str:
        values = f"{self.start.mean():.4g} at the start, {self.warm:.4g} as left"
        if self.verdict == "inconclusive":
            return (
                f"Nothing can be said: a value is not finite ({values}, {self.retrained.mean():.4g} "
                "retrained). Pass an `inner` solver that converges from fresh starts, such as one "
                "with smaller steps."
            )
        if self.verdict == "no improvement":
            return (
                f"The run did not improve on its start: {self.warm:.4g} as left, "
                f"{self.start.mean():.4g} retrained at the start."
            )
        advice = {
            "holds": "the outer variable can be used on its own",
            "partly": "report the retrained value, not the one the run ended with",
            "lost": "the result lives in the inner variable; the outer variable alone is not it",
        }[self.verdict]
        return (
            f"{self.kept:.0%} (+- {self.spread:.0%}) of the improvement survives retraining "
            f"({values}, {self.retrained.mean():.4g} retrained {len(self.retrained)} times): {advice}."
            + " The inner solver did not converge from all fresh starts, so the values may be those "
            "of the solver and not of the run." * (not self.converged)
        )


def retrain_check(
    problem: BilevelProblem,
    solution: Solution,
    u0: PyTree,
    fresh: Callable[[Key[Array, ""]], PyTree],
    *,
    inner: AbstractInnerSolver | None = None,
    value: Callable[[PyTree, PyTree], Scalar] | None = None,
    path: Trajectory | None = None,
    num_inits: int = 3,
    key: Key[Array, ""] | None = None,
) -> RetrainCheck:
    """Train the inner problem again, from fresh starts, with the outer variable that a run found.

        kept = (mean start - mean retrained) / (mean start - warm)

    A warm-started run moves u and w together. Where the inner problem has many solutions, w can
    remember outer variables of much earlier steps: the paper reports an accuracy of 90.8 % for the
    warm-started model and of 12.9 % for the retrained model. A user who receives only `u` gets the
    retrained model.

    Args:
        problem: the problem of the run.
        solution: the result of the run; its `w` is the warm one.
        u0: the outer variable that the run began with; the improvement is measured from there.
        fresh: `key -> w0`, another random start for each key; `lambda _: w0` for a fixed start.
        inner: the inner solver that trains, to convergence; by default L-BFGS with at most 2000
            steps.
        value: `(u, w) -> scalar` where lower is better, such as an error rate; by default the outer
            objective on its full data.
        path: a `Trajectory` of the run; the inner problem is then also solved once for each outer
            variable along it.
        num_inits: the number of fresh starts, >= 1.
        key: for the starts, `jax.random.key(0)` by default.

    Cost: `2 num_inits` inner solves, and one for each point of the path.

    Source: Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in
    overparameterized bilevel optimization", section 4.1 [vicol2022][], for the experiment; the
    measure `kept` is ours.

    >>> import jax.numpy as jnp
    >>> from bilevel import BilevelProblem, SOBA, solve
    >>> problem = BilevelProblem(lambda u, w, _: (w - 1.0) ** 2, lambda u, w, _: (w - u) ** 2)
    >>> u0 = w0 = jnp.array(0.0)
    >>> run = solve(problem, SOBA(0.2, 0.2, 0.2), u0, w0, num_steps=200)
    >>> retrain_check(problem, run, u0, lambda key: jax.random.normal(key)).verdict
    'holds'
    """
    if num_inits < 1:
        raise ValueError(f"`num_inits` must be at least 1, got {num_inits}.")
    if inner is None:
        inner = MinimiserInner(optx.LBFGS(rtol=1e-5, atol=1e-7), max_steps=2000)
    if value is None:
        value = _OuterValue(problem)
    keys = jax.random.split(jax.random.key(0) if key is None else key, num_inits)
    warm = float(value(solution.u, solution.w))
    given = as_arrays(problem, solution.u, fresh(keys[0]), ("solution.u", "fresh(key)"))
    w0 = jax.vmap(lambda key: given.strip(solution.u, fresh(key))[1])(keys)
    if given.forms is not None:
        value = _Restored(value, *given.forms)
    assert isinstance(given.problem, BilevelProblem)
    problem = given.problem
    w, retrained, converged = _retrain(problem, inner, value, given.u, w0)
    _, start, _ = _retrain(problem, inner, value, given.strip(u0, w0)[0], w0)
    retrained, start = np.asarray(retrained, float), np.asarray(start, float)

    rows = []
    for step, u in zip(*((path.steps, path.us) if path is not None else ((), ())), strict=True):
        u = given.strip(u, w0)[0]
        _, values, _ = _retrain(problem, inner, value, u, jax.tree.map(lambda x: x[:1], w0))
        rows.append({"step": step, "retrained": float(values[0])})
    gain = start.mean() - warm
    kept = float((start.mean() - retrained.mean()) / gain) if gain > 0 else np.nan
    verdict = "no improvement"
    if not np.isfinite([warm, *retrained, *start]).all():
        kept, verdict = np.nan, "inconclusive"
    elif gain > 0:
        verdict = "holds" if kept >= HOLDS else "lost" if kept < LOST else "partly"
    return RetrainCheck(
        warm=warm,
        retrained=retrained,
        start=start,
        kept=kept,
        spread=float(retrained.std(ddof=1) / gain) if num_inits > 1 and gain > 0 else 0.0,
        verdict=verdict,
        path=pd.DataFrame(rows, columns=["step", "retrained"]),
        w=given.restore(given.u, w)[1],
        converged=bool(converged.all()),
    )


class _Restored(eqx.Module):
    """A value of variables as they were given, on those of the methods."""

    value: Callable[[PyTree, PyTree], Scalar]
    u: Form
    w: Form

    def __call__(self, u: PyTree, w: PyTree) -> Scalar:
        return self.value(self.u.restore(u), self.w.restore(w))


class _OuterValue(eqx.Module):
    problem: BilevelProblem

    def __call__(self, u: PyTree, w: PyTree) -> Scalar:
        return self.problem.outer(u, w, self.problem.outer_data)


@compiled
def _retrain(
    problem: BilevelProblem,
    inner: AbstractInnerSolver,
    value: Callable[[PyTree, PyTree], Scalar],
    u: PyTree[Array],
    w0: PyTree[Array],
) -> tuple[PyTree[Array], Float[Array, " inits"], Bool[Array, " inits"]]:
    """Inner solutions from all starts, their values, and whether each met its tolerance."""

    def one(w: PyTree[Array]) -> tuple[PyTree[Array], Scalar, Array]:
        stream = Stream(FullBatch(), problem.inner_data, ())
        w, _, _, stats = inner.solve(problem, u, w, inner.init(problem, u, w), stream)
        return w, value(u, w), stats.result == RESULTS.successful

    return jax.lax.map(one, w0)


class LeakCheck(NamedTuple):
    """How much a warm inner variable knows about the outer rows themselves; `print` says it in words.

    Attributes:
        gain_seen: how much lower the outer loss of the warm model is than that of the retrained
            models, on the outer rows (in nats per row for a cross-entropy).
        gain_new: the same on new rows of the same distribution.
        memorised: `gain_seen - gain_new`, the part that holds for the outer rows only.
        standard_error: the standard error of `memorised` over the rows.
        auroc: how well the gain per row separates outer rows from new rows; 0.5 means not at all.
    """

    gain_seen: float
    gain_new: float
    memorised: float
    standard_error: float
    auroc: float

    def __str__(self) -> str:
        found = self.memorised > 2 * self.standard_error
        return (
            f"The warm model beats retrained ones by {self.gain_seen:.3g} per row on the outer rows "
            f"and by {self.gain_new:.3g} on new ones: "
            + (
                f"it remembers {self.memorised:.2g} +- {self.standard_error:.1g} per row"
                if found
                else "no sign that it remembers the rows themselves"
            )
            + f" (rows told apart with AUROC {self.auroc:.2f})."
        )


def leak_check(
    problem: BilevelProblem, solution: Solution, retrained: RetrainCheck, new_data: PyTree[Array]
) -> LeakCheck:
    """What the warm inner variable contains of the outer data beyond what retraining explains.

    Two things can leak through a warm start. One is how to solve the outer task, which helps on new
    rows as well (`gain_new`); a user who receives only `u` loses it. The other is the outer rows
    themselves (`memorised`).

        memorised = mean over outer rows of (retrained loss - warm loss) - the same over new rows

    Args:
        problem, solution: of the run.
        retrained: of `retrain_check` on them.
        new_data: rows of the outer distribution that the run has not seen, like
            `problem.outer_data`.

    The loss of a row is the outer objective on a batch of that row alone, so the outer objective
    must be a mean over rows. Cost: one outer objective per row, new row and model. Source: ours.

    Raises:
        ValueError: the problem has no outer data.
    """
    if not num_rows(problem.outer_data):
        raise ValueError("`leak_check` compares outer rows with new ones; this problem has none.")

    def gains(data: PyTree[Array]) -> np.ndarray:
        warm = _row_losses(problem, solution.u, solution.w, data)
        others = [
            _row_losses(problem, solution.u, jax.tree.map(lambda x: x[k], retrained.w), data)  # noqa: B023
            for k in range(len(retrained.retrained))
        ]
        return np.mean([np.asarray(x, float) for x in others], axis=0) - np.asarray(warm, float)

    seen, new = gains(problem.outer_data), gains(new_data)
    labels = np.r_[np.ones(len(seen)), np.zeros(len(new))]
    variance = seen.var(ddof=1) / len(seen) + new.var(ddof=1) / len(new)
    return LeakCheck(
        gain_seen=float(seen.mean()),
        gain_new=float(new.mean()),
        memorised=float(seen.mean() - new.mean()),
        standard_error=float(np.sqrt(variance)),
        auroc=float(roc_auc_score(labels, np.r_[seen, new])),
    )


@compiled
def _row_losses(
    problem: BilevelProblem, u: PyTree, w: PyTree, data: PyTree[Array]
) -> Float[Array, " rows"]:
    return jax.lax.map(
        lambda row: problem.outer(u, w, jax.tree.map(lambda x: x[None], row)), data, batch_size=256
    )
