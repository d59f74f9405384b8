"""Equilibrium models as a bilevel problem, with one fixed point per example."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from .._problem import FixedPointProblem
from ._equilibrium_model import Cell, EquilibriumModel, Readout
from .models import Loss, row_losses, softmax_cross_entropy


class _Stacked(eqx.Module):
    """The cell on all rows, as the map of a problem."""

    cell: Cell

    def __call__(self, u: PyTree, w: Array, x: Array) -> Array:
        if len(w) != len(x):
            raise ValueError(
                f"w holds one fixed point for each row of `X`, got {len(w)} fixed points for a batch "
                f"of {len(x)} rows. Sample the inner data with `FullBatch`; to train on minibatches "
                "use the model's `predict` as a layer."
            )
        return self.cell(u, w, x)


class _ReadoutRisk(eqx.Module):
    readout: Readout
    loss: Loss

    def __call__(self, u: PyTree, w: Array, batch: tuple[Array, Array]) -> Array:
        row, y = batch
        return jnp.mean(row_losses(self.loss, self.readout(u, w[row]), y))


def equilibrium(
    X: Float[Array, "rows features"],
    y: Shaped[Array, " labels"],
    model: EquilibriumModel,
    *,
    loss: Loss = softmax_cross_entropy,
) -> FixedPointProblem:
    """Training an equilibrium model, with the fixed points of all rows as the inner variable.

        w_i = cell(u, w_i, x_i)                                  one fixed point per example
        F(u, w) = mean_i loss(readout(u, w_i), y_i)

    Args:
        X, y: training rows and their labels (class codes for the default loss).
        model: `equilibrium_model(...)`, or an `EquilibriumModel` with a cell of your own. Its
            solvers are not used; the solvers of the algorithm are.
        loss: `(predictions, y) -> one loss per row`.

    `u` starts at `model.u0` and w, of shape `(rows, width)`, at zero. Every estimator applies:
    `ITD`, or `AID` with `Richardson(1.0)`, `Neumann(1.0, K)` or `lineax.GMRES`. As the inner
    solver, `GradientInner(optax.sgd(1.0), T)` iterates the cell, and `RootInner(solver,
    by_row=True)` solves for each row separately. All rows are in memory, and each step solves for
    all of them; outer batches only sample F. To train on minibatches, differentiate
    `model.predict`, which has the same gradient.

    Raises:
        ValueError: shapes that do not belong together, or a minibatch of the inner data.

    Source: Bai, Kolter and Koltun (2019), "Deep equilibrium models" [bai2019][]; Grazzi and Pontil,
    "Principled and efficient bilevel optimization for machine learning", section "Deep Equilibrium
    Models", with one inner fixed-point problem per example [grazzi2023][].

    >>> import jax, jax.numpy as jnp
    >>> from bilevel.tasks.models import equilibrium_model
    >>> X, y = jnp.eye(3), jnp.array([0, 1, 1])
    >>> model = equilibrium_model(3, 2, key=jax.random.key(0), width=4)
    >>> problem = equilibrium(X, y, model)
    >>> problem.residual(model.u0, jnp.zeros((3, 4)), problem.inner_data).shape
    (3, 4)
    """
    if X.ndim != 2 or y.shape != (len(X),):
        raise ValueError(
            f"`X` must have shape (rows, features) and `y` one label for each row, got {X.shape} and "
            f"{y.shape}."
        )
    return FixedPointProblem(
        outer=_ReadoutRisk(model.readout, loss),
        map=_Stacked(model.cell),
        outer_data=(jnp.arange(len(X)), y),
        inner_data=X,
    )
