"""Equilibrium models, whose hidden layer is one fixed point per example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Float, Int, Key, PyTree

from .._hypergradient.layer import implicit_layer
from .._inner.base import AbstractInnerSolver
from .._inner.root import RootInner
from .._linear.richardson import Richardson
from .._problem import FixedPointProblem
from .._sampler import FullBatch, Stream
from .._solution import RESULTS

Cell = Callable[[PyTree, Array, Array], Array]
Readout = Callable[[PyTree, Array], Array]


class FixedPoints(NamedTuple):
    """The fixed points of a batch, and their residuals.

    `z` has shape `(batch, width)`; `residual` is `||cell(u, z_i, x_i) - z_i||_2` of each row;
    `steps` is the number of steps of the inner solver; `result` is a `RESULTS`.
    """

    z: Float[Array, "batch width"]
    residual: Float[Array, " batch"]
    steps: Int[Array, ""]
    result: RESULTS


class EquilibriumModel(eqx.Module):
    """A model whose hidden layer is a fixed point: `z_i = cell(u, z_i, x_i)`, then `readout(u, z_i)`.

    Args:
        u0: initial parameters, any pytree.
        cell: `(u, z, x) -> z` on rows, with z of shape `(batch, width)`. Row i of the result
            depends on row i of z and of x only. Solvers that iterate the cell need a contraction in
            z.
        readout: `(u, z) -> (batch, outputs)`.
        width: the number of units of a fixed point.
        solver: the inner solver for a `FixedPointProblem` that finds the fixed points from zero; by
            default plain iteration to 1e-5. `RootInner(Anderson(1e-5, 1e-5), by_row=True)` needs
            fewer evaluations of the cell and more work besides them, so it suits cells that
            contract slowly or are large.
        linear_solver: the linear solver of the backward pass, any lineax solver that does not need
            symmetry; by default the fixed-point method to a relative tolerance of 1e-6.

    `predict` differentiates by the implicit function theorem (`implicit_layer`), in `u` and in `x`:

        (I - d_z cell)^T v = d loss / dz,     d loss / du = (d_u cell)^T v

    so memory does not grow with the number of steps of the solver. The model is a layer of any jax
    program, also on minibatches, and `Model(model.u0, model.predict)` is a model for the other
    tasks.

    Error: a fixed point with the error d biases the gradient by O(d). Only `model.solve(u,
    x).residual` shows this: `||z - z*|| <= residual / (1 - q)` for a cell with the contraction
    constant q. If the linear solver diverges in the backward pass, the gradient is NaN; the default
    solver diverges where the cell is not a contraction.

    Source: Bai, Kolter and Koltun (2019), "Deep equilibrium models" [bai2019][]; Grazzi and Pontil,
    "Principled and efficient bilevel optimization for machine learning", section "Equilibrium
    models" [grazzi2023][].
    """

    u0: PyTree[Array]
    cell: Cell
    readout: Readout
    width: int = eqx.field(static=True)
    solver: AbstractInnerSolver = RootInner(optx.FixedPointIteration(1e-5, 1e-5))
    linear_solver: lx.AbstractLinearSolver = Richardson(1.0, rtol=1e-6)

    def solve(self, u: PyTree[Array], x: Float[Array, "batch features"]) -> FixedPoints:
        """The fixed points for the rows of x, differentiable in u and x."""
        problem = FixedPointProblem(_no_outer, self.cell, inner_data=x)
        # The solve for z carries no derivative, so that no solver needs one.
        fixed_u, fixed_x = jax.lax.stop_gradient((u, x))
        z = jnp.zeros((len(x), self.width), x.dtype)
        stream = Stream(FullBatch(), fixed_x, ())
        state = self.solver.init(problem, fixed_u, z)
        z, _, _, stats = self.solver.solve(problem, fixed_u, z, state, stream)
        residual = jnp.linalg.norm(self.cell(fixed_u, z, fixed_x) - z, axis=1)
        z = implicit_layer(problem, u, z, self.linear_solver)
        return FixedPoints(z, residual, stats.calls, stats.result)

    def predict(
        self, u: PyTree[Array], x: Float[Array, "batch features"]
    ) -> Float[Array, "batch outputs"]:
        """`readout(u, z)` at the fixed points."""
        return self.readout(u, self.solve(u, x).z)


def _no_outer(u: PyTree, w: PyTree, batch: Any) -> Array:
    raise TypeError("the layer has no outer objective.")


def contracted(W: Float[Array, "width width"], norm: float) -> Float[Array, "width width"]:
    """`W / (1 + sum_j (s_j / norm)^8)^(1/8)`, s the singular values of W: spectral norm < `norm`.

    The map is smooth. It leaves a W of small norm almost as it is, and a W of large norm gets a
    spectral norm of at least `width^(-1/8) norm` (0.59 `norm` for width 64). Cost: two matrix
    products, because `sum_j s_j^8 = ||(W'W)^2||_F^2`. Source: ours.

    >>> import jax.numpy as jnp
    >>> A = contracted(jnp.diag(jnp.array([0.1, 50.0])), 0.9)
    >>> [round(float(a), 4) for a in A.diagonal()]
    [0.0018, 0.9]
    """
    scaled = W / norm
    gram = scaled.T @ scaled
    return W / (1 + jnp.sum((gram @ gram) ** 2)) ** 0.125


class _TanhCell(eqx.Module):
    contraction: float | None

    def __call__(self, u: dict[str, Array], z: Array, x: Array) -> Array:
        W = u["W"] if self.contraction is None else contracted(u["W"], self.contraction)
        return jnp.tanh(z @ W.T + x @ u["U"].T + u["b"][None])


def _affine_readout(u: dict[str, Array], z: Array) -> Array:
    return z @ u["V"].T + u["c"][None]


def equilibrium_model(
    num_features: int,
    num_outputs: int,
    *,
    key: Key[Array, ""],
    width: int = 64,
    contraction: float | None = 0.9,
    solver: AbstractInnerSolver | None = None,
    linear_solver: lx.AbstractLinearSolver | None = None,
) -> EquilibriumModel:
    """The tanh model, `z = tanh(A z + U x + b)` with prediction `V z + c`.

    Args:
        num_features, num_outputs: sizes of a row and of a prediction.
        key: for the initial parameters.
        width: the number of units of a fixed point.
        contraction: q, 0 < q < 1. `A = contracted(W, q)` has a spectral norm below q for every W,
            and |tanh'| <= 1, so the map is a contraction with constant q. There is then exactly one
            fixed point, every solver finds it, and its error is at most `residual / (1 - q)`.
            `None` takes `A = W`. Training may then leave the region in which a fixed point exists;
            the residual shows it.
        solver, linear_solver: as in `EquilibriumModel`.

    The parameters are `u = {"W", "U", "b", "V", "c"}`.

    Raises:
        ValueError: `contraction` outside of (0, 1).

    Source: Bai, Kolter and Koltun (2019), "Deep equilibrium models" [bai2019][].

    >>> import jax, jax.numpy as jnp
    >>> model = equilibrium_model(3, 2, key=jax.random.key(0), width=4)
    >>> found = model.solve(model.u0, jnp.ones((5, 3)))
    >>> found.z.shape, bool(found.residual.max() < 1e-4)
    ((5, 4), True)
    """
    if contraction is not None and not 0 < contraction < 1:
        raise ValueError(
            f"`contraction` must be in (0, 1), got {contraction}; pass None for a W without a bound."
        )
    keys = jr.split(key, 3)
    u0 = {
        "W": jr.normal(keys[0], (width, width)) * (0.25 / width**0.5),
        "U": jr.normal(keys[1], (width, num_features)) / num_features**0.5,
        "b": jnp.zeros(width),
        "V": jr.normal(keys[2], (num_outputs, width)) / width**0.5,
        "c": jnp.zeros(num_outputs),
    }
    model = EquilibriumModel(u0, _TanhCell(contraction), _affine_readout, width)
    solver = model.solver if solver is None else solver
    linear_solver = model.linear_solver if linear_solver is None else linear_solver
    return EquilibriumModel(u0, model.cell, model.readout, width, solver, linear_solver)
