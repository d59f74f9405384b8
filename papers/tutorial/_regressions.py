"""The two problems of `descent.py`, with Phi in closed form and the constants of the step sizes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel

ROWS, FEATURES = 200, 6
PULL, PENALTY = 0.1, 1.0
# Over the largest curvature, at 2000 random points, of a Phi that is not quadratic.
MARGIN = 1.5


class Instance(NamedTuple):
    """A problem, Phi in closed form, and what the step sizes need to know of it."""

    problem: bilevel.BilevelProblem
    phi: Callable
    mu: float
    top: float
    batch_top: float  # of one row
    smoothness: float  # L_Phi

    @property
    def kappa(self) -> float:
        """`1 / (1 - q)` of gradient steps of size 1 / L."""
        return self.top / self.mu

    @property
    def decreasing(self):
        """`c / (k + d)`, from 1 / L of one row."""
        return bilevel.decreasing_step(1.5 / self.mu, 1.5 / self.mu * self.batch_top)


def loss(u, w, batch):
    """Half the mean squared error."""
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def pulled(u, w, batch):
    """Ridge regression around u."""
    return loss(u, w, batch) + 0.5 * PULL * jnp.sum((w - u) ** 2)


def penalised(u, w, batch):
    """One penalty per feature, between 0 and `PENALTY`."""
    return loss(u, w, batch) + 0.5 * PENALTY * jnp.vdot(jax.nn.sigmoid(u), w**2)


def instances(seed: int = 0) -> dict[str, Instance]:
    """Both problems, on the same rows: some features matter on inner rows only."""
    rng = np.random.default_rng(seed)
    scale = np.sqrt(np.geomspace(1, 0.15, FEATURES))

    def rows(w):
        x = rng.uniform(-np.sqrt(3), np.sqrt(3), (ROWS, FEATURES)) * scale
        return jnp.asarray(x), jnp.asarray(x @ w + 0.5 * rng.normal(size=ROWS))

    inner_data = rows(np.ones(FEATURES))
    outer_data = rows(np.array([1, 0, 0.5, 0, 1, 0]))
    x, y = inner_data
    hessian, b, eye = x.T @ x / ROWS, x.T @ y / ROWS, jnp.eye(FEATURES)
    low, *_, high = np.linalg.eigvalsh(hessian)
    row = float(jnp.max(jnp.sum(x**2, 1)))

    def pulled_solution(u):
        return jnp.linalg.solve(hessian + PULL * eye, b + PULL * u)

    def penalised_solution(u):
        return jnp.linalg.solve(hessian + PENALTY * jnp.diag(jax.nn.sigmoid(u)), b)

    points = jnp.asarray(rng.uniform(-4, 4, (2000, FEATURES)))

    def make(inner, solution, bounds, margin):
        def phi(u):
            return loss(u, solution(u), outer_data)

        curvatures = np.linalg.eigvalsh(jax.jit(jax.vmap(jax.hessian(phi)))(points))
        problem = bilevel.BilevelProblem(loss, inner, outer_data, inner_data)
        smoothness = margin * float(np.max(np.abs(curvatures)))
        mu, top = (float(x) for x in (low + bounds[0], high + bounds[1]))
        return Instance(problem, phi, mu, top, row + bounds[1], smoothness)

    return {
        "pull": make(pulled, pulled_solution, (PULL, PULL), 1.0),
        "penalties": make(penalised, penalised_solution, (0.0, PENALTY), MARGIN),
    }
