"""The error of the hypergradient against the Hessian-vector products spent on the linear system.

Weighted logistic regression, whose outer variable is one weight per row, at a converged inner point:
columns of the Hessian (Nystrom) beside terms of the Neumann series and steps of CG. The variances of
the features fall as j^-4 and a ridge is added, so the Hessian is (decaying spectrum) + ridge * I. The
problems are:

    weak ridge, rotated     ridge 1e-6, features mixed by a random orthogonal matrix: every coordinate
                            sees all of the spectrum, and any columns will do;
    weak ridge, axes        the decay lies along the coordinates, and random columns miss most of it;
    strong ridge, rotated   ridge 1e-3, as large as all but a few eigenvalues: no low-rank matrix.

A Nystrom solver of rank r takes r products with random columns and 2 r with leading ones; K Neumann
terms take K - 1, with the exact largest eigenvalue for a step (which is not charged). The damping is
given in units of the ridge.

`python benchmarks/nystrom.py` writes `results/nystrom.json` and docs/img/nystrom.png.
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from _measure import IMAGES, panels, save, write

import bilevel

ROWS, FEATURES = 1000, 300
PRODUCTS = (4, 10, 20, 40, 80)
KEYS = 10
PROBLEMS = {
    "weak ridge, rotated": (1e-6, True),
    "weak ridge, axes": (1e-6, False),
    "strong ridge, rotated": (1e-3, True),
}


class Decaying(NamedTuple):
    """A problem, its outer variable, its inner solution and the eigenvalues of the Hessian there."""

    problem: bilevel.BilevelProblem
    u: jax.Array
    w: jax.Array
    ridge: float
    eigenvalues: np.ndarray
    exact: np.ndarray  # the hypergradient


def outer(u, w, batch):
    x, y = batch
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


def inner(u, w, batch):
    x, y, ridge = batch  # the ridge is data, so that all problems share their compilations
    return jnp.mean(u * jax.nn.softplus(-y * (x @ w))) + 0.5 * jnp.mean(ridge) * jnp.sum(w**2)


def decaying_logistic(ridge: float = 1e-6, rotated: bool = True, seed: int = 0) -> Decaying:
    """The problem of this benchmark; in float64, so call it where x64 is enabled."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, FEATURES + 1) ** -2.0
    mix = np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0] if rotated else np.eye(FEATURES)
    truth = 3 * rng.normal(size=FEATURES)

    def draw():
        z = rng.normal(size=(ROWS, FEATURES)) * spread
        return z @ mix, np.where(rng.random(ROWS) < 1 / (1 + np.exp(-(z @ truth))), 1.0, -1.0)

    (x, y), (x_outer, y_outer) = draw(), draw()
    w = np.zeros(FEATURES)
    curvature = np.eye(FEATURES)
    for _ in range(100):  # Newton, no step changing a row's logit by more than 3
        p = 1 / (1 + np.exp(y * (x @ w)))
        gradient = ridge * w - x.T @ (y * p) / ROWS
        curvature = (x.T * (p * (1 - p))) @ x / ROWS + ridge * np.eye(FEATURES)
        if np.linalg.norm(gradient) < 1e-14:
            break
        step = np.linalg.solve(curvature, gradient)
        w = w - min(1.0, 3 / np.abs(x @ step).max()) * step
    problem = bilevel.BilevelProblem(
        outer,
        inner,
        (jnp.asarray(x_outer), jnp.asarray(y_outer)),
        (jnp.asarray(x), jnp.asarray(y), jnp.full(ROWS, ridge)),
    )
    found = _gradient(problem, jnp.ones(ROWS), jnp.asarray(w), lx.Cholesky())
    eigenvalues = np.linalg.eigvalsh(curvature)[::-1]
    return Decaying(problem, jnp.ones(ROWS), jnp.asarray(w), ridge, eigenvalues, np.asarray(found))


@eqx.filter_jit
def _gradient(problem, u, w, solver):
    return bilevel.implicit_gradient(problem, u, w, solver).grad


@eqx.filter_jit
def _nystrom_gradients(problem, u, w, rank, damping, columns, keys):
    def one(key):
        solver = bilevel.Nystrom(rank, damping, columns, key)
        return bilevel.implicit_gradient(problem, u, w, solver).grad

    return jax.lax.map(one, keys)


def _errors(case: Decaying, gradients: np.ndarray) -> np.ndarray:
    return np.linalg.norm(gradients - case.exact, axis=-1) / np.linalg.norm(case.exact)


def nystrom_errors(
    case: Decaying,
    rank: int,
    damping: float,
    columns: Literal["random", "leading"] = "random",
    num_keys: int = KEYS,
) -> np.ndarray:
    """The relative errors, one per key."""
    keys = jax.random.split(jax.random.key(1), num_keys)
    damping_ = jnp.asarray(damping)
    found = _nystrom_gradients(case.problem, case.u, case.w, rank, damping_, columns, keys)
    return _errors(case, np.asarray(found))


def neumann_error(case: Decaying, num_terms: int) -> float:
    """The relative error, with the exact largest eigenvalue for a step."""
    solver = bilevel.Neumann(jnp.asarray(1 / case.eigenvalues[0]), num_terms)
    return float(_errors(case, np.asarray(_gradient(case.problem, case.u, case.w, solver))))


def cg_error(case: Decaying, num_steps: int) -> float:
    """The relative error of that many steps."""
    solver = bilevel.CG(rtol=0, atol=0, max_steps=num_steps)
    return float(_errors(case, np.asarray(_gradient(case.problem, case.u, case.w, solver))))


Curve = list[tuple[int, np.ndarray]]


def measure(case: Decaying) -> dict[str, Curve]:
    """For each method, (products, errors) with one error per key."""
    curves: dict[str, Curve] = {
        "Neumann": [(k, np.array([neumann_error(case, k + 1)])) for k in PRODUCTS],
        "CG": [(k, np.array([cg_error(case, k)])) for k in PRODUCTS],
    }
    for factor in (1, 10, 100):
        name = f"Nystrom, random, damping {factor} ridge"
        curves[name] = [(k, nystrom_errors(case, k, factor * case.ridge)) for k in PRODUCTS]
    curves["Nystrom, leading, damping 10 ridge"] = [
        (k, nystrom_errors(case, k // 2, 10 * case.ridge, "leading")) for k in PRODUCTS
    ]
    return curves


def draw(results: dict[str, tuple[Decaying, dict[str, Curve]]]) -> None:
    figure, axes = panels(2, 2, (12, 9))
    axes = axes.ravel()
    for name, (case, _) in results.items():
        axes[0].loglog(np.arange(1, FEATURES + 1), case.eigenvalues, label=name)
    axes[0].set(xlabel="index", ylabel="eigenvalue", title="spectrum of the inner Hessian")
    axes[0].legend(fontsize=10)
    styles = {"Neumann": ("k", "o-"), "CG": ("grey", "s-")}
    for axis, (name, (_, curves)) in zip(axes[1:], results.items(), strict=True):
        for i, (method, points) in enumerate(curves.items()):
            color, style = styles.get(method, (f"C{i - 2}", "^--" if "leading" in method else "o-"))
            at = [k for k, _ in points]
            axis.loglog(at, [np.median(e) for _, e in points], style, color=color, label=method)
            if points[0][1].size > 1:
                low, high = ([f(e) for _, e in points] for f in (np.min, np.max))
                axis.fill_between(at, low, high, color=color, alpha=0.12)
        axis.set(xlabel="Hessian-vector products", ylabel="relative error of the hypergradient")
        axis.set(title=name, ylim=(1e-4, 1e2))
        axis.set_xticks(PRODUCTS, [str(k) for k in PRODUCTS])
        axis.minorticks_off()
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, IMAGES / "nystrom.png")


def main() -> None:
    results, problems = {}, {}
    for name, (ridge, rotated) in PROBLEMS.items():
        case = decaying_logistic(ridge, rotated)
        curves = measure(case)
        results[name] = case, curves
        neumann = float(dict(curves["Neumann"])[20][0])
        problems[name] = {
            "ridge": ridge,
            "eigenvalues": {i: case.eigenvalues[i - 1] for i in (1, 5, 10, 20, 50, 300)},
            "methods": {
                method: {
                    "median": {k: np.median(e) for k, e in points},
                    "worst": {k: e.max() for k, e in points},
                    "better_than_neumann_at_20": int(np.sum(dict(points)[20] < neumann)),
                }
                for method, points in curves.items()
            },
        }
    draw(results)
    settings = {"rows": ROWS, "features": FEATURES, "products": PRODUCTS, "keys": KEYS}
    write(__file__, {"settings": settings, "seeds": [0], "problems": problems})


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
