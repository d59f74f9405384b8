"""Minimax and compositional problems as bilevel ones."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from .._geometry import AbstractGeometry, Euclidean
from .._problem import BilevelProblem, Objective

Map = Callable[[PyTree, Any], PyTree[Array]]
Function = Callable[[PyTree, PyTree, Any], Scalar]


class _Negative(eqx.Module):
    objective: Objective

    def __call__(self, u: PyTree, w: PyTree, batch: Any) -> Scalar:
        return -self.objective(u, w, batch)


class _Distance(eqx.Module):
    map: Map

    def __call__(self, u: PyTree, w: PyTree, batch: Any) -> Scalar:
        """`|w - map(u)|^2 / 2`, summed over the leaves."""
        squares = jax.tree.map(lambda w, g: jnp.sum((w - g) ** 2), w, self.map(u, batch))
        return 0.5 * jnp.asarray(optax.tree.sum(squares))


def minimax(
    objective: Objective,
    data: PyTree[Array] | None = None,
    geometry: AbstractGeometry | None = None,
) -> BilevelProblem:
    """The problem min_u max_w L(u, w) as a bilevel one: F = L, f = -L.

    Args:
        objective: L, `(u, w, batch) -> number`, strongly concave in w.
            A mean over the rows of a batch.
        data: what batches are drawn from, for both levels.
        geometry: the set of u, by default all of it.

    The gradient of F in w vanishes at `w*(u)`, so that v = 0 and the hypergradient is grad_u L; away
    from `w*(u)` the term with v corrects to first order. With `federated` and `FedNest` it is the
    federated minimax problem.

    Source: Tarzanagh, Li, Thrampoulidis and Oymak (2022), "FedNest: Federated bilevel, minimax, and
    compositional optimization" [tarzanagh2022][].

    >>> import bilevel, jax.numpy as jnp
    >>> problem = minimax(lambda u, w, _: w * (u - 1) - w**2 / 2)  # max_w: (u - 1)^2 / 2
    >>> u, w = jnp.array(3.0), jnp.array(2.0)
    >>> float(bilevel.implicit_gradient(problem, u, w, bilevel.CG()).grad)
    2.0
    """
    geometry = Euclidean() if geometry is None else geometry
    return BilevelProblem(objective, _Negative(objective), data, data, geometry)


def compositional(
    function: Function,
    map: Map,
    outer_data: PyTree[Array] | None = None,
    inner_data: PyTree[Array] | None = None,
    geometry: AbstractGeometry | None = None,
) -> BilevelProblem:
    """The problem min_u h(u, g(u)) with a mean g over rows inside of h: F = h, f = |w - g(u)|^2 / 2.

    Args:
        function: h, `(u, w, outer batch) -> number`, where w stands for g(u).
        map: g, `(u, inner batch) -> w`, a mean over the rows of a batch.
        outer_data, inner_data: the rows of h and those of g.
        geometry: the set of u, by default all of it.

    The inner Hessian is the identity: `w*(u) = g(u)` and v = grad_w h. What makes such problems hard
    is that h of a batch mean is not the batch mean of h; methods with one loop estimate g(u) by w as
    they go. With `federated` and `FedNest` it is the federated compositional problem.

    Source: Tarzanagh, Li, Thrampoulidis and Oymak (2022), "FedNest: Federated bilevel, minimax, and
    compositional optimization" [tarzanagh2022][].

    >>> import bilevel, jax.numpy as jnp
    >>> rows = jnp.array([1.0, 3.0])
    >>> problem = compositional(lambda u, w, _: w**2, lambda u, x: jnp.mean(x) * u, None, rows)
    >>> u = jnp.array(1.0)
    >>> w = jnp.mean(rows) * u
    >>> float(bilevel.implicit_gradient(problem, u, w, bilevel.CG()).grad)  # of (2 u)^2
    8.0
    """
    geometry = Euclidean() if geometry is None else geometry
    return BilevelProblem(function, _Distance(map), outer_data, inner_data, geometry)
