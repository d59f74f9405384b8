"""Is the inner point of a result a minimiser of the inner problem, and is it the only one?"""

from collections.abc import Callable
from typing import NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree
from scipy.optimize import minimize

from .._pinned import Pins, pinned
from .._problem import BilevelProblem
from .._solution import Solution
from .._variables import as_arrays

REACHES = (0.5, 2.0, 5.0)  # of random starts around w, in units of its size
STEPS = 200  # evaluations of f per start
LOWER, APART = 1e-6, 1e-2  # differences that count: of f, in units of its range, and of w


class LowerLevelCheck(NamedTuple):
    """What the inner problem has beside the inner point of a result; `print` says it in words.

    Attributes:
        verdict: `"unique"`, all starts came back to `w`; `"not_minimal"`, a start reached a point
            with a lower inner objective, so `w` solves the first-order conditions and not the inner
            problem; `"not_unique"`, a start reached another point with the same inner objective, of
            which the outer objective may be better or worse; `"not_stationary"`, the inner problem
            is not solved at `w` itself.
        inner_value, outer_value: `f(u, w)` and `F(u, w)`.
        residual: the norm of `grad_w f(u, w)`.
        inner_values, outer_values: of the points that the starts reached.
        distances: from `w` to these points.
        w: the point with the lowest inner objective of all.
    """

    verdict: str
    inner_value: float
    outer_value: float
    residual: float
    inner_values: Float[np.ndarray, " starts"]
    outer_values: Float[np.ndarray, " starts"]
    distances: Float[np.ndarray, " starts"]
    w: PyTree[Array]

    def __str__(self) -> str:
        best = int(np.argmin(self.inner_values))
        here = f"f = {self.inner_value:.6g}, F = {self.outer_value:.6g}"
        there = f"f = {self.inner_values[best]:.6g}, F = {self.outer_values[best]:.6g}"
        starts = len(self.inner_values)
        return {
            "unique": f"The inner problem has no other minimum that {starts} starts could find "
            f"({here}). This is evidence, and no proof.",
            "not_minimal": f"w is no minimiser of the inner problem ({here}): a start reached "
            f"{there}, at a distance of {self.distances[best]:.3g}. The result solves first-order "
            "conditions only. Start w there, and solve again.",
            "not_unique": f"The inner problem has several minimisers: a start reached {there} at a "
            f"distance of {self.distances.max():.3g} from w ({here}), and F lies between "
            f"{min(self.outer_value, self.outer_values.min()):.6g} and "
            f"{max(self.outer_value, self.outer_values.max()):.6g} on them. Say which one is meant "
            "(docs: solution concepts).",
            "not_stationary": f"w does not solve the inner problem: |grad_w f| = {self.residual:.3g}. "
            "Solve it further before its other minima matter.",
        }[self.verdict]


def check_lower_level(
    problem: BilevelProblem,
    solution: Solution,
    fresh: Callable[[Key[Array, ""]], PyTree[Array]] | None = None,
    *,
    num_starts: int = 12,
    max_evaluations: int = STEPS,
    key: Key[Array, ""] | None = None,
) -> LowerLevelCheck:
    """Minimise the inner problem at the final u from several starts, and compare with w.

    Hypergradient methods see the inner problem through its first-order conditions, which a maximum, a
    saddle point or a worse minimum meets too. Then the result is exact to rounding in every residual,
    and wrong. No local method can prove that it is right; this check finds out in most cases when it
    is not.

    Args:
        problem: the problem of the run.
        solution: the result of the run.
        fresh: `key -> w0`, a random start for each key; by default points around w, at 0.5, 2 and 5
            times `1 + its root mean square`, in random directions.
        num_starts: the number of starts, beside w itself.
        max_evaluations: of the inner objective and its gradient, per start.
        key: for the starts, `jax.random.key(0)` by default.

    Cost: at most `(num_starts + 1) max_evaluations` evaluations of f on its full data with its
    gradient, by SciPy's L-BFGS-B; nothing else is compiled.

    Source: ours; the need for it is Mirrlees' (1999) example, see the documentation.

    Raises:
        ValueError: `num_starts` or `max_evaluations` is less than 1.

    >>> import jax.numpy as jnp
    >>> from bilevel import SOBA, BilevelProblem, solve
    >>> inner = lambda u, w, _: (w**2 - 1) ** 2 + 0.1 * u * w  # a well on either side of 0
    >>> problem = BilevelProblem(lambda u, w, _: (u - 1) ** 2 + (w - 1) ** 2, inner)
    >>> run = solve(problem, SOBA(0.05, 0.05, 0.05), jnp.array(1.0), jnp.array(1.0), num_steps=2000)
    >>> check_lower_level(problem, run).verdict
    'not_minimal'
    """
    for name, value in (("num_starts", num_starts), ("max_evaluations", max_evaluations)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    given = as_arrays(problem, solution.u, solution.w)
    keys = jax.random.split(jax.random.key(0) if key is None else key, num_starts)
    if fresh is None:
        starts = starts_around(given.w, keys)
    else:
        points = [given.strip(solution.u, fresh(k))[1] for k in keys]
        starts = [np.asarray(ravel_pytree(point)[0], np.float64) for point in points]
    inner = cast(BilevelProblem, given.problem)
    found = look_around(inner, given.u, given.w, starts, max_evaluations)
    return found._replace(w=given.restore(given.u, found.w)[1])


def starts_around(w: PyTree[Array], keys: Key[Array, " starts"]) -> list[np.ndarray]:
    """Random points at 0.5, 2 and 5 times `1 + the root mean square of w` from w, raveled."""
    flat = np.asarray(ravel_pytree(w)[0], np.float64)
    size = 1 + float(np.sqrt(np.mean(flat**2)))
    return [
        flat + size * REACHES[i % len(REACHES)] * np.asarray(jax.random.normal(k, flat.shape))
        for i, k in enumerate(keys)
    ]


def look_around(
    problem: BilevelProblem,
    u: PyTree[Array],
    w: PyTree[Array],
    starts: list[np.ndarray],
    max_evaluations: int,
) -> LowerLevelCheck:
    """`check_lower_level` for variables that are arrays, from these starts."""
    flat, unravel = ravel_pytree(w)
    pins = Pins((problem, u, w))
    problem = pinned(problem, pins)
    here = np.asarray(flat, np.float64)

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = _value_and_grad(problem, u, w, jnp.asarray(x, flat.dtype), pins)
        return float(value), np.asarray(grad, np.float64)

    def outer(x: np.ndarray) -> float:
        point = unravel(jnp.asarray(x, flat.dtype))
        return float(problem.outer(u, point, problem.outer_data))

    inner_value, grad = evaluate(here)
    options = {"maxfun": max_evaluations, "maxiter": max_evaluations, "ftol": 0.0, "gtol": 1e-8}
    found = [
        minimize(evaluate, x, jac=True, method="L-BFGS-B", options=options) for x in (here, *starts)
    ]
    ends = np.stack([run.x for run in found])
    values = np.array([run.fun if np.isfinite(run.fun) else np.inf for run in found])
    seen = np.array([inner_value, *(evaluate(x)[0] for x in starts)])
    scale = float(np.median(seen[np.isfinite(seen)]) - min(inner_value, values.min()))
    rounding = 100 * float(jnp.finfo(flat.dtype).eps) * abs(inner_value)
    margin = LOWER * scale + rounding
    distances = np.linalg.norm(ends - here, axis=1)
    far = distances > APART * (1 + np.linalg.norm(here))
    own, others = values[0], values[1:]
    if inner_value - own > margin:
        verdict = "not_stationary"
    elif inner_value - others.min() > margin:
        verdict = "not_minimal"
    elif bool((far[1:] & (np.abs(others - inner_value) <= margin)).any()):
        verdict = "not_unique"
    else:
        verdict = "unique"
    return LowerLevelCheck(
        verdict=verdict,
        inner_value=inner_value,
        outer_value=outer(here),
        residual=float(np.linalg.norm(grad)),
        inner_values=others,
        outer_values=np.array([outer(x) for x in ends[1:]]),
        distances=distances[1:],
        w=unravel(jnp.asarray(ends[int(np.argmin(values))], flat.dtype)),
    )


@eqx.filter_jit
def _value_and_grad(
    problem: BilevelProblem, u: PyTree[Array], w: PyTree[Array], x: Array, pins: Pins
) -> tuple[Array, Array]:
    """Of the inner objective at x, which is like w, raveled."""
    del pins
    unravel = ravel_pytree(w)[1]
    return jax.value_and_grad(lambda x: problem.inner(u, unravel(x), problem.inner_data))(x)
