"""What is to be solved: two objectives, their data, and the set the outer variable lives in."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree, Scalar

from ._geometry import AbstractGeometry, Euclidean

Objective = Callable[[PyTree, PyTree, Any], Scalar]


class BilevelProblem(eqx.Module):
    """A bilevel problem.

        min_{u in U}  Phi(u) = F(u, w*(u))   subject to   w*(u) in argmin_w f(u, w)

    Args:
        outer: the outer objective `F(u, w, batch) -> scalar`.
        inner: the inner objective `f(u, w, batch) -> scalar`, in the same argument order.
        outer_data: a pytree of arrays that share axis 0 (one entry a row), or `None`; the
            objective then gets `None` as its batch.
        inner_data: the same for the inner objective. An objective that needs to know *which* rows
            it is given (one weight a row, say) carries `jnp.arange(n)` as one of its arrays.
        geometry: the set U and how to move in it.

    `u` and `w` are any pytrees of floating-point arrays. The gradients that this package computes
    assume `f` twice differentiable in `w` near the solution; the implicit ones also that its
    Hessian there is positive definite (positive semi-definite with a damped or a least-squares
    linear solver).

    Objectives are pure functions of their arguments. They may close over constant arrays (which
    are then compiled in: pass what is large as data). They must reach the outer variable through
    their argument `u`: a problem whose inner objective ignores it has no implicit gradient and is
    refused where one is asked for.

    Raises:
        ValueError: the leaves of one data argument differ in length or have no rows.
        TypeError: an objective is not callable, a leaf is not an array.
    """

    outer: Objective
    inner: Objective
    outer_data: PyTree[Array] | None = None
    inner_data: PyTree[Array] | None = None
    geometry: AbstractGeometry = Euclidean()

    def __check_init__(self):
        for name in ("outer", "inner"):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"`{name}` must be a function (u, w, batch) -> scalar, "
                    f"got {type(getattr(self, name)).__name__}."
                )
        for name in ("outer_data", "inner_data"):
            num_rows(getattr(self, name), name)


def num_rows(data: PyTree, name: str = "data") -> int:
    """The length of axis 0 that all leaves of `data` share; 0 if there is no data at all."""
    lengths = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if not eqx.is_array(leaf) or leaf.ndim == 0:
            raise TypeError(
                f"`{name}{jax.tree_util.keystr(path)}` must be an array with one row per sample on "
                f"axis 0, got {leaf!r}. Constants belong in the objective's closure."
            )
        lengths.add(leaf.shape[0])
    if len(lengths) > 1:
        raise ValueError(
            f"the leaves of `{name}` must have the same length on axis 0 (one entry per row), "
            f"got lengths {sorted(lengths)}."
        )
    if lengths == {0}:
        raise ValueError(f"`{name}` has zero rows; pass at least one, or None for no data.")
    return lengths.pop() if lengths else 0


def reparametrise(
    problem: BilevelProblem,
    transform: Callable[[PyTree], PyTree],
    geometry: AbstractGeometry | None = None,
) -> BilevelProblem:
    """The same problem in another outer variable: `Phi'(x) = Phi(transform(x))`.

    Args:
        problem: the problem in `u`.
        transform: a differentiable map from the new variable to `u`, such as `jax.nn.softmax`.
        geometry: the set the *new* variable lives in; by default all of space.

    The hypergradient follows by the chain rule, `grad Phi'(x) = J_transform(x)^T grad Phi(u)`,
    which automatic differentiation carries out inside the objectives. The minimisers correspond,
    the trajectories do not: a softmax is another flow on the simplex than mirror descent
    (Ivanova & Ablin, section 4).

    >>> import jax, jax.numpy as jnp
    >>> problem = BilevelProblem(
    ...     outer=lambda u, w, _: jnp.sum(u * w), inner=lambda u, w, _: jnp.sum((w - u) ** 2)
    ... )
    >>> soft = reparametrise(problem, jax.nn.softmax)
    >>> float(soft.outer(jnp.zeros(2), jnp.ones(2), None))
    1.0
    """

    def outer(x: PyTree, w: PyTree, batch: Any) -> Scalar:
        return problem.outer(transform(x), w, batch)

    def inner(x: PyTree, w: PyTree, batch: Any) -> Scalar:
        return problem.inner(transform(x), w, batch)

    return BilevelProblem(
        outer=outer,
        inner=inner,
        outer_data=problem.outer_data,
        inner_data=problem.inner_data,
        geometry=Euclidean() if geometry is None else geometry,
    )
