"""How a run can end, what it returns, and the error that carries both."""

import warnings
from typing import Any

import equinox as eqx
import lineax as lx
import numpy as np
from jaxtyping import Array, Int, PyTree

from ._summary import Run, as_html, as_text

with warnings.catch_warnings():  # of the message of `successful`, which is empty in lineax
    warnings.filterwarnings("ignore", message="Enumeration has duplicate incompatible values")

    class RESULTS(lx.RESULTS):  # pyright: ignore
        """How a solve, or one step of it, ended: lineax's codes and ours."""

        successful = "Successful: it converged, or made all steps it was given, and nothing failed."
        inner_max_steps_reached = (
            "The inner solver stopped before its own tolerance was met. Give it more steps or a "
            "looser tolerance; until then the hypergradient carries the error that `inner_residual` "
            "shows."
        )
        inner_divergence = (
            "The inner solver ended with a larger residual than it began with, or met a number that "
            "is not finite: it went away from the inner solution. Or it left w where it was although "
            "the residual is large. Usually its step size is too large, or a schedule has let it fall "
            "to nothing; `GradientInner('auto', num_steps)` finds one, `MinimiserInner` needs none."
        )
        outer_max_steps_reached = (
            "The run used all its steps before every residual met its tolerance. Go on with "
            "`solve(..., state=solution.state, num_steps=more)`, or loosen `tol`."
        )
        outer_divergence = (
            "The run blew up: its steps and its residuals grew instead of shrinking, so what it "
            "returned is no solution. Usually a step size is too large (of w, of v or of u), or an "
            "objective is not bounded below. Take smaller steps, or 'auto', and start anew."
        )
        lower_level_not_minimal = (
            "Every residual met its tolerance, but w does not minimise the inner problem: from "
            "another start it ends at a lower value (`check_lower_level` returns the point). "
            "First-order conditions cannot see this. Start w there, and solve again."
        )
        negative_curvature = (
            "Conjugate gradients met a direction in which the inner Hessian is not positive and "
            "stopped there. The inner point may be no minimum: solve the inner problem further, or "
            "damp."
        )
        not_contracting = (
            "The Neumann or fixed-point iteration on the linear system does not contract, so its "
            "result does not approximate the inverse: the step size is above 2 / L, or the inner "
            "Hessian has a negative eigenvalue. Use step_size='auto', solve the inner problem "
            "further, or damp."
        )
        linear_divergence = (
            "The linear system's solution became non-finite while the objectives were finite. The "
            "inner Hessian may be singular or indefinite, or the step on `v` too large: damp it, "
            "choose another linear solver or a smaller step."
        )
        nonfinite = (
            "An objective, a gradient or an iterate became NaN or infinite. The state returned is the "
            "last finite one. Usually a step size is too large, or the objective is undefined "
            "there, such as the loss of a label that is none of the model's classes."
        )
        loader_exhausted = (
            "A `FromLoader` had no batches left before the run had made its steps. Give it more, or "
            "an iterable that can be begun again when it ends, and go on with "
            "`solve(..., state=solution.state)`."
        )


NAMES = {int(item._value): name for name, item in RESULTS._name_to_item.items()}
"""The names of the codes, by number, as a trace has them."""


class Calls(eqx.Module):
    """How often each oracle was called, a batch of any size counting once.

    `outer_grad`: F with its gradients in u and w. `inner_grad`: f with its gradient. `hvp`:
    products with the inner Hessian. `mixed`: products with the mixed second derivative,
    `(d2_uw f)^T v`. One pass may give several of these; each is counted.
    """

    outer_grad: Int[Array, "*batch"]
    inner_grad: Int[Array, "*batch"]
    hvp: Int[Array, "*batch"]
    mixed: Int[Array, "*batch"]

    @property
    def cross(self) -> Int[Array, "*batch"]:
        """The old name of `mixed`, which warns and goes with version 0.2."""
        warnings.warn(
            "`Calls.cross` is called `Calls.mixed` now; the old name goes with version 0.2.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.mixed


class Solution(eqx.Module):
    """What `solve` returns; `print` says in words why the run ended and how far it came.

    Attributes:
        u, w: the outer and the inner variable after the last step. A method moves u last or moves
            both at once, so w was found at the u *before* the last step: at a solution of `DoubleLoop`
            it is the inner solution of that u. Where the last step still moved u, solve for w again
            before you use it: `retrain` does, and `LookAhead` does so within its steps.
        result: a `RESULTS`; print it for the reason in words.
        state: the state of the algorithm; pass it to `solve(..., state=...)` to go on.
        trace: a dict of numpy arrays, one entry per trace point: `step`, `outer_value`,
            `outer_residual`, `inner_residual`, `linear_residual`, `step_ratio` (outer over inner
            step size, see `Info`), `move` (how far the step moved (u, w), in the 2-norm), `result`
            (0: that step was successful) and the running totals of the oracle calls.
            `pandas.DataFrame(solution.trace)` is a table.
        stats: `num_steps` done in all, the total `calls`, and `converged`.
        run: what `print` knows of the run besides: its seconds, tolerances and objectives. It is not
            pickled.
    """

    u: PyTree
    w: PyTree
    result: RESULTS
    state: Any
    trace: dict[str, np.ndarray]
    stats: dict[str, Any]
    run: Run | None = eqx.field(static=True, default=None)

    def __repr__(self) -> str:
        return as_text(self, *_named(self.result))

    def _repr_html_(self) -> str:
        """For notebooks: the summary, and the trace as a small picture."""
        return as_html(self, *_named(self.result))


def _named(result: RESULTS) -> tuple[str, str]:
    return NAMES[int(result._value)], RESULTS[result]


class HypergradientWarning(UserWarning):
    """A hypergradient comes with a reason not to rely on it."""


class BilevelError(RuntimeError):
    """A run failed numerically; `error.solution` is the partial `Solution` up to there."""

    def __init__(self, message: str, solution: Solution):
        super().__init__(message)
        self.solution = solution
