"""The limits in closed form of anti-distillation runs, and what its two scripts share besides.

`X` are rows of features, `phi_o` the features of the original point, `l` the eigenvalues of `X^T X`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel
from bilevel.tasks import anti_distillation
from bilevel.tasks.reference import anti_distillation_limit

TARGET, OUTER_RATE = 2.0, 1e-2


class Case(NamedTuple):
    """One regression: rows of features, the original point's, its target, the inner rate."""

    X: jax.Array
    original: jax.Array
    target: jax.Array
    alpha: jax.Array

    @property
    def problem(self) -> bilevel.BilevelProblem:
        return anti_distillation(self.X, self.original, self.target)

    @property
    def singular_values(self) -> np.ndarray:
        """Those of X, without the zeros."""
        return np.linalg.svd(np.asarray(self.X), compute_uv=False)


@jax.jit
def limits_of(case: Case, solved: jax.Array) -> jax.Array:
    """The limits for many `A^-1 phi_o`, one per row."""
    return jax.vmap(lambda v: anti_distillation_limit(*case[:3], v[:, None]))(solved)


def products(case: Case, inverses: np.ndarray) -> np.ndarray:
    """`A^-1 phi_o` where the approximate inverse has the eigenvalues `inverses`, one per row."""
    _, _, vt = np.linalg.svd(np.asarray(case.X), full_matrices=False)
    return (inverses * (vt @ np.asarray(case.original)[0])) @ vt


def filtered_limits(case: Case, inverses: np.ndarray) -> np.ndarray:
    """The limits with these approximate inverses, one per row."""
    return np.asarray(limits_of(case, jnp.asarray(products(case, inverses))))


def neumann_filter(case: Case, terms: np.ndarray) -> np.ndarray:
    """`(1 - (1 - a l)^K) / l`, one row per K."""
    curvature = case.singular_values**2
    return -np.expm1(terms[:, None] * np.log1p(-float(case.alpha) * curvature)) / curvature


def damped_filter(case: Case, terms: np.ndarray) -> np.ndarray:
    """`1 / (l + 1 / (a K))`, one row per K."""
    return 1 / (case.singular_values**2 + 1 / (float(case.alpha) * terms[:, None]))


def krylov(case: Case, steps: int) -> np.ndarray:
    """`A^-1 phi_o` of CG: `min_v v'Hv / 2 - phi_o'v` over the span of `H^j phi_o`, j < steps."""
    if steps >= even_rank(case):
        return closed_form(case, "exact")
    hessian, b = np.asarray(case.X.T @ case.X), np.asarray(case.original)[0]
    basis = b[:, None] / np.linalg.norm(b)
    for _ in range(1, steps):
        new = hessian @ basis[:, -1]
        for _ in range(2):  # twice is enough
            new = new - basis @ (basis.T @ new)
        basis = np.column_stack([basis, new / np.linalg.norm(new)])
    return basis @ np.linalg.solve(basis.T @ hessian @ basis, basis.T @ b)


def even_rank(case: Case) -> int:
    """The rank of the bias and the cosines, to which CG from `phi_o` is confined by symmetry."""
    return int(np.linalg.matrix_rank(case.X[:, : 1 + case.X.shape[1] // 2]))


def closed_form(case: Case, label: str) -> np.ndarray:
    """`A^-1 phi_o` of one of the `estimators`, without any of the library's solvers."""
    family, *number = label.split()
    if family == "CG":
        return krylov(case, int(number[0]))
    if family == "exact":
        return products(case, 1 / case.singular_values[None] ** 2)[0]
    spectra = {"Neumann": neumann_filter, "damped": damped_filter}
    return products(case, spectra[family](case, np.array(number, dtype=float)))[0]


def neumann(alpha: Any, terms: int) -> bilevel.AID:
    return bilevel.AID(bilevel.Neumann(alpha, terms), warm_start=False)


def decreasing(values: list[float], minimum: float) -> bool:
    """Strictly, as far as float64 can tell: until the minimum is reached to 1e-12."""
    curve = np.array(values)
    above = int(np.sum(curve > minimum * (1 + 1e-12)))
    falls = np.all(np.diff(curve[:above]) < 0)
    return bool(falls and np.all(np.abs(curve[above:] / minimum - 1) <= 1e-12))


def finish(axis: Any, title: str) -> None:
    """The original point, and the legend of a panel of targets."""
    axis.plot(0, TARGET, "*", c="limegreen", mec="k", ms=13, zorder=3)
    axis.set_title(title, fontsize=10)
    axis.set(xlabel="x", ylabel="learned target")
    axis.legend(fontsize=8, title=r"$\|u\|^2$", title_fontsize=8, loc="upper center", ncols=2)


def several(values: list[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)
