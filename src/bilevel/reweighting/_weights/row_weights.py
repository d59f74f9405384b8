"""One free weight a row, learned on the trusted rows outside of a fold."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..._analysis.weight_statistics import effective_sample_size
from ..._callback import AbstractCallback
from ..._geometry import Simplex
from ..._problem import BilevelProblem
from ..._solve import solve
from ...tasks import uniform_weights
from .diagnostics import row_weights
from .methods import FEW_STEPS, MANY_STEPS, MANY_TRUSTED, near_exact
from .weight_function import MAX_ROWS, Folds, Rows, model, penalised_risk, row_losses

MANY_A_PARAMETER = 10  # trusted rows that make free weights worth a try


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
