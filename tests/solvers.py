"""The tables of linear solvers, hypergradient estimators and inner solvers, a row for each.

A new one is one row here, and the ladder of tests holds for it. `tests/test_tables.py` fails if a
public one has no row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx

import bilevel
from problems import CASES, Case

# Linear solvers that must all give the exact implicit gradient.
LINEAR_SOLVERS: dict[str, lx.AbstractLinearSolver] = {
    "CG": bilevel.CG(rtol=1e-13),
    "lineax CG": lx.CG(rtol=1e-13, atol=1e-13),
    "GMRES": lx.GMRES(rtol=1e-12, atol=1e-12),
    "LU": lx.LU(),
    "Cholesky": lx.Cholesky(),
    "SVD": lx.SVD(),
    "Richardson": bilevel.Richardson(rtol=1e-13, max_steps=20_000),
    "CG, diagonal": bilevel.CG(rtol=1e-13, preconditioner=bilevel.diagonal_preconditioner()),
    "CG, Nystrom": bilevel.CG(rtol=1e-13, preconditioner=bilevel.nystrom_preconditioner(1, 1e-2)),
}
ITERATIVE = [n for n in LINEAR_SOLVERS if n not in ("LU", "Cholesky", "SVD")]
# Those with an error that stays: their relative error on `A = diag(1, 1.5, 2)`, from the formula.
APPROXIMATE: dict[str, tuple[lx.AbstractLinearSolver, float]] = {
    "Neumann": (bilevel.Neumann(num_terms=40, step_size=0.5), 0.5**40),
    "StochasticRichardson": (bilevel.StochasticRichardson(0.5, 40), 0.5**40),
    "Nystrom": (bilevel.Nystrom(rank=3, damping=1e-9), 1e-9),
}


# The pages under docs/methods.
PAGES = {
    "CG": "cg",
    "Neumann": "neumann",
    "Richardson": "richardson",
    "Nystrom": "nystrom",
    "StochasticRichardson": "sid",
    "AID": "aid",
    "ITD": "itd",
    "SID": "sid",
    **dict.fromkeys(["GradientInner", "MinimiserInner", "ClosedForm"], "inner"),
    **dict.fromkeys(["RootInner", "FISTA"], "inner"),
    "FederatedInner": "federated",
    "BiGSAM": "bigsam",
}


@dataclass(frozen=True)
class Estimator:
    """A hypergradient estimator with the inner solver that makes it exact on a case."""

    name: str
    estimator: bilevel.AbstractHypergradient
    inner: Callable[[Case], bilevel.AbstractInnerSolver]


def exact_inner(case: Case) -> bilevel.AbstractInnerSolver:
    return bilevel.ClosedForm(lambda u, _: case.w_star(u))


def converged_inner(case: Case) -> bilevel.AbstractInnerSolver:
    """Gradient steps to rounding error: `T q^T` at 1e-14."""
    steps = 1 if case.contraction < 1e-12 else int(np.log(1e-16) / np.log(case.contraction)) + 1
    return bilevel.GradientInner(case.sgd(), steps)


ESTIMATORS = {
    **{
        name: Estimator(name, bilevel.AID(solver), exact_inner)
        for name, solver in LINEAR_SOLVERS.items()
    },
    "ITD": Estimator("ITD", bilevel.ITD(), converged_inner),
    "ITD forward": Estimator("ITD forward", bilevel.ITD("forward"), converged_inner),
    "ITD checkpointed": Estimator("ITD checkpointed", bilevel.ITD("checkpointed"), converged_inner),
    "ITD through a formula": Estimator("ITD through a formula", bilevel.ITD(), exact_inner),
    "Neumann": Estimator("Neumann", bilevel.AID(bilevel.Neumann(num_terms=3000)), exact_inner),
    "SID": Estimator(
        "SID",
        bilevel.SID(bilevel.StochasticRichardson(0.3, 400), 1),
        exact_inner,
    ),
}


@dataclass(frozen=True)
class InnerSolver:
    """An inner solver on a problem whose inner solution is known."""

    solver: bilevel.AbstractInnerSolver
    problem: bilevel.BilevelProblem | bilevel.FixedPointProblem
    u: Any
    w0: Any
    w_star: Any
    tolerance: float = 1e-8


def _on(name: str, solver: bilevel.AbstractInnerSolver, tolerance: float = 1e-8) -> InnerSolver:
    case = CASES[name]
    return InnerSolver(solver, case.problem, case.u, case.w0, case.w_star(case.u), tolerance)


_coupled = CASES["coupled"]
_centers, _curvatures = jnp.array([0.0, 3.0]), jnp.array([1.0, 0.25])
_soft = bilevel.FixedPointProblem(  # of |w - 3|^2 / 2 + u |w|
    outer=lambda u, w, _: jnp.sum(w),
    map=lambda u, w, _: jnp.maximum(w - 0.5 * (w - 3.0) - 0.5 * u, 0.0),
)
_clients = bilevel.BilevelProblem(
    outer=lambda u, w, _: w**2,
    inner=lambda u, w, data: jnp.mean(data[1] * (w - u - data[0]) ** 2) / 2,
    inner_data=(_centers, _curvatures),
)
_many = bilevel.BilevelProblem(  # every w with w_0 = u solves f; of these the nearest to (., 1)
    outer=lambda u, w, _: 0.5 * jnp.sum((w - 1.0) ** 2),
    inner=lambda u, w, _: 0.5 * (w[0] - u) ** 2,
)
_half, _zeros = jnp.array(0.5), jnp.zeros(2)

INNER_SOLVERS = {
    "ClosedForm": _on("coupled", exact_inner(_coupled), 1e-12),
    "GradientInner": _on("coupled", converged_inner(_coupled), 1e-12),
    "MinimiserInner": _on(
        "logistic", bilevel.MinimiserInner(optx.BFGS(rtol=1e-9, atol=1e-9)), 1e-7
    ),
    "RootInner": InnerSolver(
        bilevel.RootInner(bilevel.Anderson(1e-12, 1e-12)),
        _soft,
        jnp.full(2, 0.5),
        _zeros,
        jnp.full(2, 2.5),
    ),
    "FISTA": InnerSolver(
        bilevel.FISTA(rtol=1e-12), _soft, jnp.full(2, 0.5), _zeros, jnp.full(2, 2.5)
    ),
    "FederatedInner": InnerSolver(
        bilevel.FederatedInner(0.5, 4, 100), _clients, jnp.array(0.0), jnp.array(0.0), 0.75 / 1.25
    ),
    "BiGSAM": InnerSolver(
        bilevel.BiGSAM(0.5, 0.5, 4000), _many, _half, _zeros, jnp.array([0.5, 1.0]), 5e-3
    ),
}


def solve_inner(row: InnerSolver) -> Any:
    """What the solver returns on all data, compiled."""
    stream = bilevel.Stream(bilevel.FullBatch(), row.problem.inner_data, ())
    state = row.solver.init(row.problem, row.u, row.w0)
    return jax.jit(lambda u, w: row.solver.solve(row.problem, u, w, state, stream))(row.u, row.w0)
