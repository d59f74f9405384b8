"""The problem: two objectives, their data, and the set that contains the outer variable."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PyTree, Scalar

from ._geometry import AbstractGeometry, Euclidean
from ._transformation import transformed

Objective = Callable[[PyTree, PyTree, Any], Scalar]


class BilevelProblem(eqx.Module):
    """A bilevel problem.

        min_{u in U}  Phi(u) = F(u, w*(u))   subject to   w*(u) in argmin_w f(u, w)

    Args:
        outer: the outer objective `F(u, w, batch) -> scalar`.
        inner: the inner objective `f(u, w, batch) -> scalar`, in the same argument order.
        outer_data: a pytree of arrays that share axis 0 (one entry per row), or `None`; the
            objective then gets `None` as its batch.
        inner_data: the same for the inner objective. An objective that needs to know *which* rows
            it is given, for example to look up one weight per row, carries `jnp.arange(n)` as one
            of its arrays, and calls `take_rows(u, i)`.
        geometry: the set U and how to move in it.

    `u` and `w` are any pytrees of floating-point arrays. The hypergradients of this package assume
    that `f` is twice differentiable in `w` near the solution. Implicit hypergradients also assume
    that the Hessian of `f` in `w` is positive definite there, or positive semi-definite if the
    linear solver damps or solves a least-squares problem.

    Objectives are pure functions of their arguments. They may close over constant arrays, which are
    then compiled in; pass large arrays as data. Numbers, attributes and arrays that they look up
    may be other ones at the next `solve`, which compiles anew then, also where an array of NumPy
    was changed in place. What is not noticed: variables of the environment, rows of a data frame,
    and what the code of a library or of `jax.jit` looks up by itself. Where an objective has a
    `jax.custom_vjp`, second derivatives are taken in reverse mode, because it has no forward mode.
    Objectives must use the outer variable through their argument `u`: if the inner objective does
    not depend on it, there is no implicit gradient, and the estimators refuse the problem.

    Raises:
        ValueError: the leaves of one data argument differ in length or have no rows.
        TypeError: an objective is not callable, or a leaf is not an array.
    """

    outer: Objective
    inner: Objective
    outer_data: PyTree[Array] | None = None
    inner_data: PyTree[Array] | None = None
    geometry: AbstractGeometry = Euclidean()

    def __check_init__(self):
        _check_callable("outer", self.outer, "scalar")
        _check_callable("inner", self.inner, "scalar")
        num_rows(self.outer_data, "outer_data")
        num_rows(self.inner_data, "inner_data")

    def residual(self, u: PyTree[Array], w: PyTree[Array], batch: Any) -> PyTree[Array]:
        """`grad_w f(u, w)`, which is zero at the inner solution."""
        return jax.grad(self.inner, argnums=1)(u, w, batch)


class FixedPointProblem(eqx.Module):
    """A bilevel problem whose inner problem is an equation.

        min_{u in U}  Phi(u) = F(u, w*(u))   subject to   w*(u) = map(u, w*(u))

    Equilibrium models are of this kind. Training by an optimiser is as well:
    `optimizer_fixed_point` makes such a problem.

    Args:
        outer: the outer objective `F(u, w, batch) -> scalar`.
        map: `map(u, w, batch)`, a pytree like `w`. Methods that iterate the map need it to be a
            contraction in `w`.
        outer_data, inner_data, geometry: as in `BilevelProblem`.

    The residual is `r = w - map(u, w)`, so `GradientInner(optax.sgd(1.0), T)` iterates the map T
    times, and `optax.sgd(a)` damps it. The derivative of the map need not be symmetric:
    hypergradients solve `(I - d_w map)^T v = grad_w F` with any linear solver that does not need
    symmetry, such as `Neumann(1.0, K)` and `Richardson(1.0)`, which are the fixed-point method,
    `lineax.GMRES` and `lineax.LU`.

    Raises:
        ValueError, TypeError: as in `BilevelProblem`.

    Source: Grazzi and Pontil, "Principled and efficient bilevel optimization for machine learning",
    section "Bilevel Min-Fixed-point" [grazzi2023][].
    """

    outer: Objective
    map: Callable[[PyTree, PyTree, Any], PyTree]
    outer_data: PyTree[Array] | None = None
    inner_data: PyTree[Array] | None = None
    geometry: AbstractGeometry = Euclidean()

    def __check_init__(self):
        _check_callable("outer", self.outer, "scalar")
        _check_callable("map", self.map, "pytree like w")
        num_rows(self.outer_data, "outer_data")
        num_rows(self.inner_data, "inner_data")

    def residual(self, u: PyTree[Array], w: PyTree[Array], batch: Any) -> PyTree[Array]:
        """`w - map(u, w)`, which is zero at the inner solution."""
        return optax.tree.sub(w, self.map(u, w, batch))


# What inner solvers of gradient type and hypergradients work on: all they need is the residual.
Problem = BilevelProblem | FixedPointProblem


def optimizer_fixed_point(
    problem: BilevelProblem, tx: optax.GradientTransformation, tx_state: PyTree
) -> FixedPointProblem:
    """The fixed-point problem of one optimiser step with its state held fixed.

        map(u, w) = w + tx.update(grad_w f(u, w), tx_state)

    This serves for models that are trained by momentum, Adam or another preconditioned method. At a
    solution the derivative of the map is `I - P H`, with `P` the preconditioner that `tx_state`
    stands for. Neumann and Richardson steps then converge as fast as the optimiser does, where
    plain steps are slow, and to the same hypergradient: `(P H)^T v = grad_w F` and `grad_u F - (P
    d2_uw f)^T v`.

    Args:
        problem: the problem that the model was trained on.
        tx: its optimiser.
        tx_state: the state of the optimiser at the end of training.

    The fixed points of the map are the inner solutions only if the state no longer moves w by
    itself, which holds at convergence (the momentum is zero there). The residual shows whether it
    does. Cost: one update of the optimiser per evaluation of the map. Source: ours.
    """

    def step(u: PyTree, w: PyTree, batch: Any) -> PyTree:
        value, gradient = jax.value_and_grad(problem.inner, argnums=1)(u, w, batch)
        updates, _ = transformed(
            tx, gradient, tx_state, w, value, lambda x: problem.inner(u, x, batch)
        )
        return optax.apply_updates(w, updates)

    return FixedPointProblem(
        problem.outer, step, problem.outer_data, problem.inner_data, problem.geometry
    )


def _check_callable(name: str, function: Any, returns: str) -> None:
    if not callable(function):
        raise TypeError(
            f"`{name}` must be a function (u, w, batch) -> {returns}, got "
            f"{type(function).__name__}."
        )


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
        geometry: the set that contains the *new* variable; by default all of space.

    The hypergradient follows by the chain rule, `grad Phi'(x) = J_transform(x)^T grad Phi(u)`,
    which automatic differentiation carries out inside the objectives. The minimisers correspond to
    each other, and the trajectories do not: gradient descent through a softmax follows another flow
    on the simplex than mirror descent does.

    Source: Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization",
    section 4.1 [ivanova2023][].

    >>> import jax, jax.numpy as jnp
    >>> problem = BilevelProblem(
    ...     outer=lambda u, w, _: jnp.sum(u * w), inner=lambda u, w, _: jnp.sum((w - u) ** 2)
    ... )
    >>> soft = reparametrise(problem, jax.nn.softmax)
    >>> float(soft.outer(jnp.zeros(2), jnp.ones(2), None))
    1.0
    """
    return BilevelProblem(
        outer=_Reparametrised(problem.outer, transform),
        inner=_Reparametrised(problem.inner, transform),
        outer_data=problem.outer_data,
        inner_data=problem.inner_data,
        geometry=Euclidean() if geometry is None else geometry,
    )


class _Reparametrised(eqx.Module):
    objective: Objective
    transform: Callable[[PyTree], PyTree]

    def __call__(self, x: PyTree, w: PyTree, batch: Any) -> Scalar:
        return self.objective(self.transform(x), w, batch)
