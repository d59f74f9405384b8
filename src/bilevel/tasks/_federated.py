"""Problems whose rows are spread over clients: a simulation of federated bilevel optimization."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Scalar, Shaped

from .._problem import BilevelProblem, Objective, num_rows

Index = Int[Array | np.ndarray, "_ _"]


class _ClientMean(eqx.Module):
    objective: Objective

    def __call__(self, u: PyTree, w: PyTree, clients: Any) -> Scalar:
        return jnp.mean(jax.vmap(self.objective, (None, None, 0))(u, w, clients))


def federated(
    problem: BilevelProblem, inner_rows: Index, outer_rows: Index | None = None
) -> BilevelProblem:
    """The same problem with its rows dealt out to clients; a batch then consists of clients.

        f(u, w) = mean_c f_c(u, w),   F(u, w) = mean_c F_c(u, w)

    with f_c and F_c the objectives of the problem on the rows of client c. The data of the new
    problem have one entry per client on axis 0, of shape `(clients, rows, ...)`, so that a sampler
    draws clients. If each row belongs to one client, f, F and the solution are those of the pooled
    rows. Gradients, Hessian-vector products and mixed products are averages of the clients' own.

    Args:
        problem: a problem whose objectives are means over rows, as those of this module are on a
            batch.
        inner_rows: the rows of `inner_data` that each client has, the same number for all clients.
            `deal_rows` makes such an index.
        outer_rows: the same for `outer_data`; `None` if the server has those rows itself, such as a
            trusted set.

    The average of the clients' own hypergradients, each through its own inverse Hessian, is not the
    hypergradient of the average. `AID` on this problem solves one linear system, whose products are
    averages (FedIHGP). `FederatedInner` is the inner solver with local steps.

    Raises:
        ValueError: an index is out of range, or there are no data to deal out.

    Source: Tarzanagh, Li, Thrampoulidis and Oymak (2022), "FedNest: Federated bilevel, minimax, and
    compositional optimization" [tarzanagh2022][].

    >>> import jax.numpy as jnp
    >>> from bilevel.tasks import ridge
    >>> X, y = jnp.arange(8.0).reshape(4, 2), jnp.arange(4.0)
    >>> pooled = ridge(X, y, X, y)
    >>> problem = federated(pooled, jnp.array([[0, 1], [2, 3]]))
    >>> u, w = jnp.zeros(()), jnp.ones(2)
    >>> values = [p.inner(u, w, p.inner_data) for p in (pooled, problem)]
    >>> [float(value) for value in values], problem.inner_data[0].shape
    ([21.75, 21.75], (2, 2, 2))
    """
    dealt = dataclasses.replace(
        problem,
        inner=_ClientMean(problem.inner),
        inner_data=_deal("inner", problem.inner_data, inner_rows),
    )
    if outer_rows is None:
        return dealt
    return dataclasses.replace(
        dealt,
        outer=_ClientMean(problem.outer),
        outer_data=_deal("outer", problem.outer_data, outer_rows),
    )


def _deal(name: str, data: Any, index: Index) -> PyTree[Array]:
    rows, index = num_rows(data), np.asarray(index)
    if not rows:
        raise ValueError(f"`federated` got {name}_rows, but the problem has no {name}_data.")
    if index.min() < 0 or index.max() >= rows:
        raise ValueError(
            f"`{name}_rows` must hold row numbers, 0 to {rows - 1}, got {index.min()} to "
            f"{index.max()}."
        )
    return jax.tree.map(lambda x: x[jnp.asarray(index)], data)


def deal_rows(
    y: Shaped[Array | np.ndarray, " rows"],
    num_clients: int,
    *,
    heterogeneity: float = 1.0,
    seed: int = 0,
) -> Int[np.ndarray, "clients rows_each"]:
    """Deal rows out to clients, at random or by label.

    Args:
        y: the labels, or other numbers by which clients are to differ.
        num_clients: the number of clients. Each gets `len(y) // num_clients` rows, and the remaining
            rows are left out.
        heterogeneity: the share of the rows that is dealt out in the order of y, so that each client
            gets few labels; the other rows are shuffled. 0 gives iid clients, and 1 sorts all rows.
        seed: the seed of the shuffle.

    Returns:
        Row numbers of shape `(clients, rows each)`, each at most once; an index for `federated`.

    Raises:
        ValueError: there are fewer rows than clients, or the share is not in [0, 1].

    >>> y = np.array([1, 0, 1, 0])
    >>> np.sort(y[deal_rows(y, 2, heterogeneity=1.0)]).tolist()
    [[0, 0], [1, 1]]
    """
    if not 1 <= num_clients <= len(y):
        raise ValueError(
            f"`num_clients` must be 1 to {len(y)}, the number of rows, got {num_clients}."
        )
    if not 0 <= heterogeneity <= 1:
        raise ValueError(f"`heterogeneity` must be a share, 0 to 1, got {heterogeneity}.")
    each = len(y) // num_clients
    order = np.random.default_rng(seed).permutation(len(y))[: num_clients * each]
    own = round(heterogeneity * each)
    by_label, shuffled = np.split(order, [num_clients * own])
    by_label = by_label[np.argsort(np.asarray(y)[by_label], kind="stable")]
    parts = by_label.reshape(num_clients, own), shuffled.reshape(num_clients, each - own)
    return np.concatenate(parts, axis=1)
