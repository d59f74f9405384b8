"""One free weight per row: what becomes of a point of the simplex, and a candidate of the search."""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ..._analysis.weight_statistics import effective_sample_size
from ..._callback import AbstractCallback
from ..._geometry import Simplex
from ..._problem import BilevelProblem
from ..._solve import solve
from ...tasks import uniform_weights
from .methods import FEW_STEPS, MANY_STEPS, MANY_TRUSTED, near_exact
from .weight_function import MAX_ROWS, Folds, Rows, model, penalised_risk, row_losses

MANY_A_PARAMETER = 10  # trusted rows that make free weights worth a try


class RowWeights(NamedTuple):
    """Weights of mean 1 for the training rows, and the weight of a trusted row beside them."""

    weights: Float[np.ndarray, " rows"]
    trusted_weight: float

    @property
    def keep(self) -> Bool[np.ndarray, " rows"]:
        """The rows worth at least half a trusted row."""
        return self.weights >= 0.5 * self.trusted_weight


def row_weights(u: Float[np.ndarray, " rows"]) -> RowWeights:
    """From a point of the simplex to sample weights: no row counts more than a trusted one.

        cap = n / (2 ESS(p)),   p = u normalised to mean 1
        w_i = c min(p_i, cap),  c such that the mean is 1;   a trusted row weighs c cap

    The weights that a bilevel run finds have a long upper tail: rows that happen to pull the way the
    trusted loss wants. With some hundred trusted rows that tail is where the overfitting is, and a
    training row has no claim to be worth more than a row that is known to be right. The cap is half
    of what each row would weigh if `ESS(p)` rows shared all the weight equally; uniform weights, and
    weights that are zero or equal, come out as they went in.

    >>> import numpy as np
    >>> row_weights(np.array([0.5, 0.5, 0.0, 0.0]))
    RowWeights(weights=array([2., 2., 0., 0.]), trusted_weight=2.0)
    """
    p = np.asarray(u, dtype=np.float64)
    p = p * (len(p) / p.sum())
    cap = 0.5 * len(p) / effective_sample_size(p)
    capped = np.minimum(p, cap)
    scale = len(p) / capped.sum()
    return RowWeights(scale * capped, float(scale * cap))


class Inner(eqx.Module):
    """The penalised risk of the training rows under weights on the simplex, times n."""

    rows: Rows

    def __call__(self, u: Float[Array, " rows"], w: PyTree, batch: None) -> Array:
        return penalised_risk(w, self.rows, len(u) * u)


class Outer(eqx.Module):
    """The mean loss of the trusted rows that count."""

    trusted: Rows
    counts: Float[Array, " trusted"]

    def __call__(self, u: Float[Array, " rows"], w: PyTree, batch: None) -> Array:
        losses = row_losses(model(w, self.trusted.x), self.trusted.y)
        return jnp.vdot(self.counts, losses) / jnp.sum(self.counts)


def allowed(data: Folds) -> bool:
    """Whether there are ten trusted rows for each parameter of the model, and not too many rows."""
    num_parameters = data.kind.number * (data.x.shape[1] + 1)
    return data.m >= MANY_A_PARAMETER * num_parameters and data.n <= MAX_ROWS


def free_row_weights(
    data: Folds, k: int, callbacks: Sequence[AbstractCallback]
) -> tuple[Float[np.ndarray, " n"], float]:
    """Near-exact mirror steps on the trusted rows that fold k keeps; (weights, of a trusted row).

    The weights sum to their effective sample size.
    """
    rows = data.rows
    train = Rows(rows.x[: data.n], rows.y[: data.n])
    trusted = Rows(rows.x[data.n :], rows.y[data.n :])
    counts = jnp.asarray(data.others[k], rows.x.dtype)
    problem = BilevelProblem(Outer(trusted, counts), Inner(train), geometry=Simplex())
    start = data.centred(data.fit(np.r_[np.ones(data.n), np.zeros(data.m)][None]))
    w0 = jax.tree.map(lambda a: jnp.asarray(a[0]), start)
    solution = solve(
        problem,
        near_exact(),
        uniform_weights(data.n, rows.x.dtype),
        w0,
        num_steps=MANY_STEPS if data.m >= MANY_TRUSTED else FEW_STEPS,
        chunk_size=1,
        callbacks=callbacks,
    )
    weights, trusted_weight = row_weights(np.asarray(solution.u))
    scale = effective_sample_size(weights) / data.n
    return scale * weights, scale * trusted_weight
