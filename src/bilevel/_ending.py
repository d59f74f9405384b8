"""How a run ended: whether it blew up, from its trace, and what a person is told about it."""

import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ._algorithm.base import AbstractAlgorithm, State
from ._geometry import Euclidean
from ._hypergradient.implicit import implicit_gradient
from ._inner.gradient import GradientInner
from ._inner.lower_level import look_around, starts_around
from ._linear.cg import CG
from ._pinned import compiled
from ._problem import BilevelProblem, FixedPointProblem, Problem, num_rows
from ._sampler import AbstractSampler, FullBatch
from ._solution import RESULTS, HypergradientWarning

GROWTH = 30.0  # the last steps and residuals over those of the first quarter: a blow-up
JUMP = 1e6  # the same over the first two points: a blow-up that came early
GROWTH_OF_V = 1e6  # of the linear residual alone: v blew up, while u is kept in a set
_TWO = slice(0, 2)
SHORT = 8  # trace points: in fewer, a first value of about zero says nothing

# Once a run has converged: random starts from which a lower inner minimum is looked for, the part of
# the run's inner gradients that this may cost, the least number per start that is worth it, and the
# entries of w times the rows of data up to which that number costs milliseconds.
LOOKS, SPARE, FEWEST, SMALL = 3, 0.05, 30, 100_000

_WORDS = {
    "outer_residual": "the outer residual",
    "inner_residual": "the inner residual",
    "linear_residual": "the residual of the linear system",
    "move": "the length of a step of (u, w)",
    "outer_value": "|F|",
}
_WARNED = (
    RESULTS.negative_curvature,
    RESULTS.not_contracting,
    RESULTS.inner_divergence,
)


class Ending(NamedTuple):
    """The result of a run, and what grew if it blew up."""

    result: RESULTS
    grown: str = ""


class Ran(NamedTuple):
    """What a run left: its trace, and the norms of (u, w) at its start and at its end."""

    trace: dict[str, np.ndarray]
    size: float
    reached: float


def ending(result: RESULTS, ran: Ran) -> Ending:
    """The result of a run whose numbers are all finite and that did not converge.

    A run has blown up if its steps and one of its residuals have grown: in the last tenth of the trace
    they are more than 30 times as long as in the first quarter, or a million times as long as at the
    first two points, and a step is then longer than `1 + size`, or |F| has grown alike; or F has grown
    a millionfold after such a step; or (u, w) has become a million times as large as `1 + size`, and F
    is no lower than it was. Residuals alone do not count: they are zero at a start that solves the
    inner problem. Steps alone do not count: a solution may be far away, and the residuals fall on the
    way to it. A run from a saddle point may look like a blow-up for a while, but its steps stay of the
    size of the start, or of order one.

    Args:
        result: what the run would be without this.
        ran: the run.
    """
    trace, size = ran.trace, ran.size
    if not _goes_on(result) or len(trace["step"]) < 2:
        return Ending(result)
    residuals = [
        x for x in ("outer_residual", "inner_residual", "linear_residual") if _grew(trace, x)
    ]
    large = _ends(trace, "move")[1] > 1 + size or _grew(trace, "outer_value")
    grown = ["move", *residuals] if _grew(trace, "move") and residuals and large else []
    far = np.max(trace["move"]) > 1 + size
    if (
        not grown
        and far
        and trace["outer_value"][-1] > 0
        and _grew(trace, "outer_value", JUMP, _TWO)
    ):
        grown = ["outer_value"]  # u was thrown far away, and lies still there
    before, after = _ends(trace, "linear_residual")
    if not grown and _grew(trace, "linear_residual", GROWTH_OF_V):
        usual = 1 + size + np.max(np.abs(trace["outer_value"][_head(trace)]))
        grown = ["linear_residual"] if before > 0 and after > 1e3 * usual else []
    if grown:
        told = []
        for name in grown:
            before, after = _ends(trace, name)
            told.append(f"{_WORDS[name]} from {before:.2g} to {after:.2g}")
        return Ending(RESULTS.outer_divergence, "These grew: " + ", ".join(told) + ".")
    codes = trace["result"]
    if np.all(codes[len(codes) // 2 :] == int(RESULTS.inner_divergence._value)):
        return Ending(RESULTS.inner_divergence)
    if len(trace["step"]) < SHORT:
        return Ending(result)
    return _thrown(result, ran, float(trace["outer_value"][0]), float(trace["outer_value"][-1]))


def ending_of_short(
    result: RESULTS, ran: Ran, start: Iterable[float], later: Iterable[float]
) -> Ending:
    """The result of a run that went far, and whose trace is too short to show growth.

    Where its last step led to shows only in the steps after it, which are no part of the run: u moves
    first, w follows, and F sees w. The run has blown up if F is a thousand times larger in one of
    them.

    Args:
        result, ran: as in `ending`.
        start: F at the start, where the trace does not begin with it.
        later: F at the steps after the last one, infinite if one fails.
    """
    trace = ran.trace
    if not _goes_on(result) or not 0 < len(trace["step"]) < SHORT:
        return Ending(result)
    if not (trace["move"][-1] > 1 + ran.size or ran.reached > 1e3 * (1 + ran.size)):
        return Ending(result)
    known = [*start, *(float(x) for x in trace["outer_value"])]
    before = max(abs(x) for x in known[: max(1, len(known) // 2)])
    after = known[-1]
    for after in later:
        if not np.isfinite(after) or 0 < 1e3 * before < after:
            told = f"These grew: |F| from {before:.2g} to {abs(after):.2g}."
            return Ending(RESULTS.outer_divergence, told)
    return _thrown(result, ran, known[0], after)


def ending_of_converged(ran: Ran) -> Ending:
    """The result of a run that met its tolerance: on a plain far away, residuals are zero too."""
    values = ran.trace["outer_value"]
    return _thrown(RESULTS.successful, ran, float(values[0]), float(values[-1]))


def _thrown(result: RESULTS, ran: Ran, before: float, after: float) -> Ending:
    """A blow-up if (u, w) went a million times as far as it was large, and F is no lower for it."""
    if not (ran.reached > JUMP * (1 + ran.size) and after >= before):
        return Ending(result)
    told = f"(u, w) went from a norm of {ran.size:.2g} to {ran.reached:.2g}, and F is no lower."
    return Ending(RESULTS.outer_divergence, told)


def _goes_on(result: RESULTS) -> bool:
    return bool(result == RESULTS.successful) or bool(result == RESULTS.outer_max_steps_reached)


def spare_evaluations(problem: Problem, algorithm: AbstractAlgorithm, state: State) -> int:
    """Evaluations of f per start that all together cost a twentieth of the run; 0 if too few.

    On a small problem there are always a few. With minibatches a run does not show what an
    evaluation on all data costs: there are none. Nor are there where the inner solver keeps w in a
    set, outside of which f may well be lower.
    """

    def is_sampler(x: Any) -> bool:
        return isinstance(x, AbstractSampler)

    def keeps_in_a_set(x: Any) -> bool:
        return isinstance(x, GradientInner) and not isinstance(x.geometry, Euclidean)

    parts = jax.tree.leaves(algorithm, is_leaf=is_sampler)
    in_a_set = any(map(keeps_in_a_set, jax.tree.leaves(algorithm, is_leaf=keeps_in_a_set)))
    minibatches = any(is_sampler(x) and not isinstance(x, FullBatch) for x in parts)
    if isinstance(problem, FixedPointProblem) or minibatches or in_a_set:
        return 0
    spare = int(SPARE * int(state.calls.inner_grad)) // (LOOKS + 2)
    return max(spare, FEWEST) if _is_small(problem, state) or spare >= FEWEST else 0


def look_lower(problem: BilevelProblem, state: State, budget: int) -> Ending:
    """Whether the inner problem has a lower minimum than w, from a few starts."""
    starts = starts_around(state.w, jax.random.split(jax.random.key(0), LOOKS))
    found = look_around(problem, state.u, state.w, starts, budget)
    if found.verdict == "not_minimal":
        return Ending(RESULTS.lower_level_not_minimal, str(found))
    return Ending(RESULTS.successful)


def warn_of_steps(trace: dict[str, np.ndarray]) -> None:
    """Warn once of a run whose inner solves failed, or whose linear systems suited no solver."""
    for code in _WARNED:
        met = trace["result"] == int(code._value)
        # A residual also grows by chance, under momentum or close to a solution.
        needed = 0.5 * len(met) if code is RESULTS.inner_divergence else 1
        if met.sum() >= max(needed, 1):
            warnings.warn(
                f"at {met.sum()} of {len(met)} trace points, first at step "
                f"{trace['step'][met][0]}: {RESULTS[code]}",
                HypergradientWarning,
                stacklevel=3,
            )


def warn_of_singular_hessian(problem: Problem, state: State, trace: dict[str, np.ndarray]) -> None:
    """Warn where the linear residual stays, because the inner Hessian at the end is singular.

    The methods that carry v make steps on `H v = grad_w F`. Where H is singular and grad_w F has a
    part in its null space, there is no such v, and v grows while the run goes on. If the residual no
    longer falls, and the problem is small, conjugate gradients look at the Hessian on all data, for
    at most 100 products.
    """
    residual = trace["linear_residual"]
    count = len(residual)
    uses_mixed = int(state.calls.mixed) >= int(state.step)  # besides the few of "auto"
    if count < SHORT or isinstance(problem, FixedPointProblem) or not uses_mixed:
        return
    tenth = max(1, count // 10)
    earlier, end = (float(np.median(residual[i - tenth : i])) for i in (3 * count // 4, count))
    stays = end > 0.5 * earlier and end > 1e-2 * float(np.max(residual))
    told = np.any(trace["result"] == int(RESULTS.negative_curvature._value))
    if stays and not told and _is_small(problem, state) and _is_singular(problem, state):
        warnings.warn(
            f"the linear residual stays at {end:.2g}, because the inner Hessian at the end of this "
            "run is singular or has a negative eigenvalue, and grad_w F has a part in that direction: "
            "w*(u) is not unique, and the hypergradient is not defined there. Add a small penalty "
            "such as 1e-3 |w|^2 to the inner objective, or take a method that chooses among the inner "
            "solutions the one with the least F (`F2SA`, `ValueFunctionPenalty`). "
            "`check_lower_level(problem, solution)` looks for other inner solutions.",
            HypergradientWarning,
            stacklevel=3,
        )


def _is_small(problem: Problem, state: State) -> bool:
    return ravel_pytree(state.w)[0].size * max(num_rows(problem.inner_data), 1) <= SMALL


@compiled
def _result_of_cg(problem: Problem, u: PyTree[Array], w: PyTree[Array]) -> RESULTS:
    return implicit_gradient(problem, u, w, CG(rtol=1e-3, max_steps=100)).result


def _is_singular(problem: Problem, state: State) -> bool:
    return bool(_result_of_cg(problem, state.u, state.w) == RESULTS.negative_curvature)


def _head(trace: dict[str, np.ndarray]) -> slice:
    count = len(trace["step"])
    return slice(0, min(max(2, count // 4), count - 1))


def _ends(
    trace: dict[str, np.ndarray], name: str, head: slice | None = None
) -> tuple[float, float]:
    """The largest value in the head, the first quarter, and the median of the last tenth."""
    values = np.abs(np.asarray(trace[name], float))
    last = max(1, len(values) // 10)
    head = _head(trace) if head is None else head
    return float(np.max(values[head])), float(np.median(values[-last:]))


def _grew(
    trace: dict[str, np.ndarray], name: str, factor: float = GROWTH, head: slice | None = None
) -> bool:
    if factor == GROWTH and _grew(trace, name, JUMP, _TWO):
        return True
    before, after = _ends(trace, name, head)
    if not (before > 0 and after > factor * before):  # an infinite norm of finite numbers counts
        return False
    eps = float(np.finfo(trace[name].dtype).eps) if trace[name].dtype.kind == "f" else 0.0
    return len(trace["step"]) >= SHORT or before > eps * after
