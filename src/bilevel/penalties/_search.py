"""The outer problem: where the search starts, and the search itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

PATIENCE = 2  # starts in a row that are no better, after which weaker penalties are not tried

Phi = Callable[[np.ndarray], tuple[float, np.ndarray]]
NOT_FINITE = FloatingPointError(
    "the cross-validated loss is not finite at any penalty; look for extreme values in X and y, and "
    "scale the features."
)


class Tuned(NamedTuple):
    """The best outer variable found.

    Attributes:
        u: the logarithms of the penalties.
        value: `Phi(u)`.
        residual: the largest entry of the hypergradient, where it does not point out of the bounds.
        values: the values of Phi after each step of the outer solver.
        message: the reason why the outer solver stopped.
        converged: whether the outer solver reports convergence.
    """

    u: np.ndarray
    value: float
    residual: float
    values: list[float]
    message: str
    converged: bool


def tune(
    phi: Phi,
    start: np.ndarray,
    lower: Any,
    upper: Any,
    max_iter: int,
    tol: float,
    unit: float = 1.0,
    curvature: float | None = None,
) -> Tuned:
    """`min_u Phi(u)` in a box, by L-BFGS-B; of one variable, by `_line`.

    The function returns the best point that was evaluated. `tol` and the outer solver see
    `Phi / unit`.

    Raises:
        FloatingPointError: Phi is not finite at the start.
    """
    best = np.clip(start, lower, upper)
    best_value, best_grad = phi(best)
    if not np.isfinite(best_value):
        raise NOT_FINITE
    first = (np.array(best), best_value, best_grad)

    def look(u: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, best_value, best_grad
        value, grad = first[1:] if np.array_equal(u, first[0]) else phi(u)
        if value < best_value:
            best, best_value, best_grad = np.array(u), value, grad
        return value / unit, grad / unit

    values = [best_value]
    if best.size == 1:
        limits = float(np.min(lower)), float(np.max(upper))
        bend = None if curvature is None else curvature / unit
        later, converged = _line(look, float(best[0]), limits, max_iter, tol, bend)
        values += [value * unit for value in later]
        message = "at a minimum" if converged else "too many steps"
    else:
        found = minimize(
            look,
            best,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(*np.broadcast_arrays(lower, upper, best)[:2], strict=True)),
            callback=lambda u: values.append(best_value),
            options={"maxiter": max_iter, "gtol": tol, "ftol": 1e-3 * tol},
        )
        converged, message = bool(found.success), str(found.message)
    inward = best - np.clip(best - best_grad, lower, upper)
    residual = float(np.max(np.abs(inward), initial=0.0))
    return Tuned(best, float(best_value), residual, values, message, converged)


def _line(
    phi: Phi,
    start: float,
    limits: tuple[float, float],
    max_iter: int,
    tol: float,
    curvature: float | None,
) -> tuple[list[float], bool]:
    """A minimum of Phi in one variable: the least values so far after each step; and success.

    The first step is a quarter, or a little more than Newton's where a `curvature` is known.

    A minimum is enclosed once Phi falls from the best point towards another one, and that one is
    higher. Between the two, the cubic with their values and derivatives finds a smooth minimum, and
    the intersection of their tangents finds a kink; both are tried in turn. The search ends where
    the derivative is at most `tol`, or where the tangents promise `0.01 tol^2` or less.
    """

    def look(x: float) -> tuple[float, float, float]:
        value, grad = phi(np.array([x]))
        return x, float(value), float(grad[0])

    near, far, step, values = look(start), None, 0.25, []
    if curvature is not None:
        step = float(np.clip(1.2 * abs(near[2]) / curvature, 1e-3, 1.0))
    for turn in range(max_iter):
        x, value, slope = near
        if abs(slope) <= tol or x == (limits[0] if slope > 0 else limits[1]):
            return values, True
        if far is None:
            new = look(float(np.clip(x - step * np.sign(slope), *limits)))
            step *= 3
        else:
            width = far[0] - x
            at = width / 2
            if slope * far[2] < 0:
                tangents = (far[1] - value - far[2] * width) / (slope - far[2])
                if 0 < tangents / width < 1:
                    if abs(slope * tangents) <= 0.01 * tol**2:
                        return values, True
                    at = tangents if turn % 2 else _cubic(width, value, far[1], slope, far[2])
            if abs(width) <= 1e-10:
                return values, True
            new = look(x + at)
        values.append(min(value, new[1]))
        if new[1] <= value and new[2] * slope > 0:
            near = new
            if far is None and abs(new[2]) < abs(slope):  # a little more than the secant's step
                secant = abs(new[2] * (new[0] - x) / (slope - new[2]))
                step = min(step, 1.2 * secant)
        elif new[1] < value:
            near, far = new, near
        else:
            far = new
    return values, False


def _cubic(width: float, f: float, f_end: float, g: float, g_end: float) -> float:
    """Where a cubic on an interval from 0 to `width` is least, whose ends fall inwards."""
    a = g + g_end - 3 * (f_end - f) / width
    b = np.copysign(np.sqrt(a * a - g * g_end), width)
    return width * (1 - (g_end + b - a) / (g_end - g + 2 * b))


class Start(NamedTuple):
    """Where to start, and the curvature of Phi along the line of starts, if it is known."""

    u: np.ndarray
    curvature: float | None


def best_of(value: Callable[[np.ndarray], float], starts: list[np.ndarray]) -> Start:
    """The lowest point of the parabola through the start of least value and its two neighbours.

    The starts lie on a line, at equal distances. After `PATIENCE` in a row that are no better, the
    rest is skipped. Where the best start has no two neighbours, it is the result.

    In general Phi has several local minima and is nearly flat for very large and small penalties;
    the starts keep the search away from there.

    Raises:
        FloatingPointError: no value is finite.
    """
    values, best, misses = [], 0, 0
    for i, start in enumerate(starts):
        values.append(value(start))
        better = values[i] < values[best] or (i > 0 and not np.isfinite(values[best]))
        best, misses = (i, 0) if better or i == 0 else (best, misses + 1)
        if misses == PATIENCE:
            break
    if not np.isfinite(values[best]):
        raise NOT_FINITE
    if not 0 < best < len(values) - 1 or not np.all(np.isfinite(values[best - 1 : best + 2])):
        return Start(starts[best], None)
    before, here, after = values[best - 1 : best + 2]
    step = starts[best + 1] - starts[best]
    bend = before - 2 * here + after
    if not bend > 0:
        return Start(starts[best], None)
    return Start(starts[best] + 0.5 * (before - after) / bend * step, bend / float(step[0]) ** 2)
