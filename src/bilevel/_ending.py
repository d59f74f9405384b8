"""How a run ended: whether it blew up, from its trace, and what a person is told about it."""

import warnings
from typing import NamedTuple

import numpy as np

from ._solution import RESULTS, HypergradientWarning

GROWTH = 30.0  # the last steps and residuals over those of the first quarter: a blow-up
JUMP = 1e6  # the same over the first two points: a blow-up that came early
GROWTH_OF_V = 1e6  # of the linear residual alone: v blew up, while u is kept in a set
SHORT = 8  # trace points: in fewer, a first value of about zero says nothing

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


def ending(result: RESULTS, trace: dict[str, np.ndarray], size: float) -> Ending:
    """The result of a run whose numbers are all finite and that did not converge.

    A run has blown up if its steps and one of its residuals have grown: in the last tenth of the trace
    they are more than 30 times as long as in the first quarter, or a million times as long as at the
    first two points, and a step is then longer than `1 + size`, or |F| has grown alike. Residuals
    alone do not count: they are zero at a start that solves the inner problem. Steps alone do not
    count: a solution may be far away, and the residuals fall on the way to it. A run from a saddle
    point may look like a blow-up for a while, but its steps stay of the size of the start, or of
    order one.

    Args:
        result: what the run would be without this.
        trace: of `Solution`.
        size: the norm of (u, w) at the start.
    """
    going_on = bool((result == RESULTS.successful) | (result == RESULTS.outer_max_steps_reached))
    if not going_on or len(trace["step"]) < 2:
        return Ending(result)
    residuals = [
        x for x in ("outer_residual", "inner_residual", "linear_residual") if _grew(trace, x)
    ]
    large = _ends(trace, "move")[1] > 1 + size or _grew(trace, "outer_value")
    grown = ["move", *residuals] if _grew(trace, "move") and residuals and large else []
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
    return Ending(result)


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
    if factor == GROWTH and _grew(trace, name, JUMP, slice(0, 2)):
        return True
    before, after = _ends(trace, name, head)
    if not (before > 0 and after > factor * before):  # an infinite norm of finite numbers counts
        return False
    eps = float(np.finfo(trace[name].dtype).eps) if trace[name].dtype.kind == "f" else 0.0
    return len(trace["step"]) >= SHORT or before > eps * after
