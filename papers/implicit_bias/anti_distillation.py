"""V9, Figures 11(a-c) and 14 to 18: the hypergradient's approximation chooses the learned targets.

Vicol et al., section 4.2 and appendix F.2. Targets of 13 points are learned so that a regression on
them fits one original point, (0, 2): many do. Cold starts, the inner solution in closed form
(`X^+ u`, as in the paper), and the inverse Hessian by truncated Neumann series, damping or truncated
CG. With one original point each run has a limit in closed form, from the spectrum of X (for CG from
an orthonormal Krylov basis), which we compare it with; the paper has none. Figure 11(c) is the same
with 2 points and a line; Figure 18 with an MLP, which has no closed form.

From the paper: 10 frequencies, learning rates 1e-7 (exponential amplitudes) and 1e-3 (1/n) inner, 1e-2
outer, 13 points in [-2, 2]. Not in it: how many frequencies make Figure 17 underparameterised (we
take 4, 9 parameters), its inner learning rate, that of Figure 11(c), and the values of K.

The outer steps are plain gradient steps. At the published rate up to 1e6 of them are needed, because
the truncated hypergradients are small; the limit does not depend on the rate, and where more than a
few thousand would be needed we take the step that halves the outer error, `1 / (2 phi_o^T X^+ c)`.
"K terms" are j = 0, ..., K - 1, as many as K unrolled steps have (the paper's sum has one more).
"""

import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import matplotlib as mpl
import numpy as np
import optax

import bilevel
from bilevel.tasks import (
    anti_distillation,
    anti_distillation_limit,
    exponential_amplitudes,
    fourier_features,
    harmonic_amplitudes,
    min_norm_fit,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from _frame import Claim, run_script

TARGET, OUTER_RATE = 2.0, 1e-2
TERMS = (1, 100, 10_000)
CG_STEPS = (2, 4, 6, 13)  # 13 is the rank
UNROLLED = (1, 10, 100)
LINE_RATE, LINE_TERMS = 0.1, (1, 3, 10)
MLP_RATE, MLP_WIDTH = 0.01, 10
# Outer rates and steps of the MLP's Neumann runs. The published rate, 1e-2, is as slow as above for
# small K. For K = 100 it is needed: larger ones throw some runs out to where the series does not
# contract, since gradient descent of rate .01 leaves a curvature of up to 2 / .01.
MLP_OUTER = {1: (5.0, 200), 10: (1.0, 200), 100: (0.1, 200)}
MLP_OUTER_FULL = MLP_OUTER | {100: (0.01, 2000)}
MLP_BEYOND = {1000: (0.01, 400)}  # in the full size
MLP_INNER_STEPS = 5000
MLP_UNROLLED = {1: 12_000, 10: 4000, 100: 1000}  # outer steps
MLP_UNROLLED_FULL = {1: 30_000, 10: 8000, 100: 3000}
OUTER_TX = optax.inject_hyperparams(optax.sgd)(learning_rate=OUTER_RATE)


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


def cases() -> dict[str, Case]:
    """Figures 11, 14, 15: exponential. Figure 16: 1/n. Figure 17: fewer parameters than points."""
    x, zero, target = jnp.linspace(-2, 2, 13), jnp.zeros(1), jnp.array([TARGET])
    schemes = {
        "exponential": (exponential_amplitudes(), 1e-7),
        "1/n": (harmonic_amplitudes(), 1e-3),
        "underparameterised": (exponential_amplitudes(4), 1e-3),
    }
    return {
        name: Case(
            fourier_features(x, a.astype(x.dtype)),
            fourier_features(zero, a.astype(x.dtype)),
            target,
            jnp.asarray(alpha),
        )
        for name, (a, alpha) in schemes.items()
    }


@jax.jit
def limits_of(case: Case, solved: jax.Array) -> jax.Array:
    """The limits for many `A^-1 phi_o`, one a row."""
    return jax.vmap(lambda v: anti_distillation_limit(*case[:3], v[:, None]))(solved)


def products(case: Case, inverses: np.ndarray) -> np.ndarray:
    """`A^-1 phi_o` where the approximate inverse has the eigenvalues `inverses`, one a row."""
    _, _, vt = np.linalg.svd(np.asarray(case.X), full_matrices=False)
    return (inverses * (vt @ np.asarray(case.original)[0])) @ vt


def filtered_limits(case: Case, inverses: np.ndarray) -> np.ndarray:
    """The limits with these approximate inverses, one a row."""
    return np.asarray(limits_of(case, jnp.asarray(products(case, inverses))))


def neumann_filter(case: Case, terms: np.ndarray) -> np.ndarray:
    """`(1 - (1 - a l)^K) / l`, one row a K."""
    curvature = case.singular_values**2
    return -np.expm1(terms[:, None] * np.log1p(-float(case.alpha) * curvature)) / curvature


def damped_filter(case: Case, terms: np.ndarray) -> np.ndarray:
    """`1 / (l + 1 / (a K))`, one row a K."""
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


def estimators(case: Case, name: str) -> dict[str, bilevel.AbstractHypergradient]:
    """The exact hypergradient, and those of Figures 11(a), 14, 16, 17; of Figure 15 for the first."""
    return {
        "exact": bilevel.ITD(),  # differentiates X^+ u
        **{f"Neumann {terms}": neumann(case.alpha, terms) for terms in TERMS},
        **{
            f"damped {terms}": bilevel.AID(lx.LU(), damping=1 / (case.alpha * terms))
            for terms in TERMS
        },
        **{f"CG {k}": truncated_cg(k) for k in CG_STEPS if name == "exponential"},
    }


def neumann(alpha: jax.Array, terms: int) -> bilevel.AID:
    return bilevel.AID(bilevel.Neumann(alpha, terms), warm_start=False)


def truncated_cg(steps: int) -> bilevel.AID:
    return bilevel.AID(bilevel.CG(rtol=0.0, atol=0.0, max_steps=steps), warm_start=False)


def long_run(
    case: Case, label: str, estimator: bilevel.AbstractHypergradient, full: bool
) -> dict[str, Any]:
    """A cold-started run and its limit: at the published rate if that does not take too many steps."""
    direction = closed_form(case, label)
    limit = limits_of(case, jnp.asarray(direction)[None])[0]
    terms = int(label.split()[1]) if "Neumann" in label else 1
    # A step changes the prediction at the original point by this share of its error, times the rate.
    share = float(case.original[0] @ np.linalg.pinv(case.X) @ (case.X @ direction))
    rate, num_steps = OUTER_RATE, int(np.ceil(28 / (OUTER_RATE * share)))
    if num_steps > (200_000 if full else 5000) or num_steps * terms > (1e8 if full else 1e6):
        rate, num_steps = 0.5 / share, 60
    method = bilevel.DoubleLoop(bilevel.ClosedForm(min_norm_fit), estimator, OUTER_TX)
    u0, w0 = jnp.zeros(case.X.shape[0]), jnp.zeros(case.X.shape[1])
    state = method.init(case.problem, u0, w0, jax.random.key(0))
    # The rate is data, so that runs that differ in it alone are compiled once.
    rates = state.aux.outer_tx.hyperparams | {"learning_rate": jnp.asarray(rate)}
    state = eqx.tree_at(lambda s: s.aux.outer_tx.hyperparams, state, rates)
    run = bilevel.solve(
        case.problem, method, u0, w0, state=state, num_steps=num_steps, trace_every=1000
    )
    return {
        "u": np.asarray(run.u).tolist(),
        "norm": float(jnp.vdot(run.u, run.u)),
        "inner_norm": float(jnp.vdot(run.w, run.w)),
        "error": float(jnp.linalg.norm(run.u - limit) / jnp.linalg.norm(limit)),
        "outer_value": float(run.trace["outer_value"][-1]),
        "outer_rate": rate,
        "num_steps": num_steps,
    }


def norms(case: Case) -> dict[str, Any]:
    """Figures 11(b), 16(c), 17(c): squared norms of the limits, for K from 1 to 1e6."""
    terms = np.unique(np.round(np.geomspace(1, 1e6, 61)))
    pseudo_inverse = np.linalg.pinv(np.asarray(case.X))
    curves: dict[str, Any] = {"terms": terms.tolist()}
    limits = {}
    for name, spectra in (("Neumann", neumann_filter), ("damped", damped_filter)):
        limits[name] = filtered_limits(case, spectra(case, terms))
        curves[name] = (limits[name] ** 2).sum(1).tolist()
        curves[f"{name}, inner"] = ((limits[name] @ pseudo_inverse.T) ** 2).sum(1).tolist()
    shortest = filtered_limits(case, 1 / case.singular_values[None] ** 2)[0]
    curves["minimum"] = float(shortest @ shortest)
    # How far the limits of other solvers are from the nearest one of a Neumann series.
    curves["damped_from_neumann"] = max(nearest(u, limits["Neumann"]) for u in limits["damped"])
    return curves


@eqx.filter_jit
def solve_by_cg(case: Case, b: jax.Array, steps: int) -> jax.Array:
    """`A^-1 b`, as the library's truncated CG has it."""
    operator = lx.MatrixLinearOperator(case.X.T @ case.X, lx.positive_semidefinite_tag)
    cg = truncated_cg(steps).linear_solver
    return lx.linear_solve(operator, b, cg, throw=False).value


def by_cg(case: Case, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Figure 15: truncated CG beside the Neumann series and the exact inverse."""
    terms = np.geomspace(1, 1e6, 601)
    series = filtered_limits(case, neumann_filter(case, terms))
    found = {k: np.array(runs[f"CG {k}"]["u"]) for k in CG_STEPS}
    exact = closed_form(case, "exact")
    phi, rank = case.original[0], int(np.linalg.matrix_rank(case.X))
    by_steps = range(1, rank + 3)
    errors, moved = [], []
    for k in by_steps:
        ours = np.asarray(solve_by_cg(case, phi, k))
        errors.append(float(np.linalg.norm(ours - exact) / np.linalg.norm(exact)))
        # Without rounding, three times the product of a third is the product.
        scaled = [3 * np.asarray(solve_by_cg(case, phi / 3, k)), ours]
        one, other = np.asarray(limits_of(case, jnp.asarray(np.stack(scaled))))
        moved.append(float(np.linalg.norm(one - other) / np.linalg.norm(other)))
    return {
        "steps": list(CG_STEPS),
        "norm": [float(u @ u) for u in found.values()],
        "from_neumann": [nearest(u, series) for u in found.values()],
        "rank": rank,
        "even_rank": even_rank(case),
        "by_steps": list(by_steps),
        "errors": errors,
        "moved_by_rounding": moved,
    }


def nearest(u: np.ndarray, others: np.ndarray) -> float:
    """The smallest relative distance of `u` to one of `others`."""
    return float(np.linalg.norm(others - u, axis=1).min() / np.linalg.norm(u))


def decreasing(values: list[float], minimum: float) -> bool:
    """Strictly, as far as float64 can tell: until the minimum is reached to 1e-12."""
    curve = np.array(values)
    above = int(np.sum(curve > minimum * (1 + 1e-12)))
    falls = np.all(np.diff(curve[:above]) < 0)
    return bool(falls and np.all(np.abs(curve[above:] / minimum - 1) <= 1e-12))


@eqx.filter_jit
def unrolled_gap(case: Case, u: jax.Array, terms: int) -> jax.Array:
    """Of the hypergradient of K unrolled steps from `X^+ u`, and of K Neumann terms there."""
    problem = case.problem
    w = min_norm_fit(u, (case.X, jnp.arange(u.size)))
    full = bilevel.FullBatch()
    streams = bilevel.Streams(
        bilevel.Stream(full, problem.outer_data, ()), bilevel.Stream(full, problem.inner_data, ())
    )
    inner = bilevel.GradientInner(optax.sgd(case.alpha), terms)
    itd = bilevel.ITD()
    state = itd.init(problem, inner, u, w)
    unrolled = itd.estimate(problem, inner, u, w, state, streams)[0].grad
    series = bilevel.implicit_gradient(problem, u, w, bilevel.Neumann(case.alpha, terms)).grad
    return jnp.linalg.norm(unrolled - series) / jnp.linalg.norm(series)


def line_runs() -> dict[str, dict[str, Any]]:
    """Figure 11(c): the line through (0, u_1) and (2, u_2) is to pass through (1, 1)."""
    rows, rate = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.asarray(LINE_RATE)
    case = Case(rows, jnp.ones((1, 2)), jnp.ones(1), rate)
    runs = {}
    for terms in (*LINE_TERMS, None):
        estimator: bilevel.AbstractHypergradient = bilevel.ITD()
        if terms is not None:
            estimator = neumann(rate, terms)
        expected = closed_form(case, "exact" if terms is None else f"Neumann {terms}")
        limit = limits_of(case, jnp.asarray(expected)[None])[0]
        method = bilevel.DoubleLoop(bilevel.ClosedForm(min_norm_fit), estimator, optax.sgd(0.5))
        u = jnp.zeros(2)

        def step(state, _, method=method):
            state, _ = method.step(case.problem, state)
            return state, state.u

        first = method.init(case.problem, u, jnp.zeros(2), jax.random.key(0))
        path = jax.jit(lambda s, step=step: jax.lax.scan(step, s, length=200)[1])(first)
        path = np.vstack([u, path])
        runs["exact" if terms is None else str(terms)] = {
            "path": path.tolist(),
            "end": path[-1].tolist(),
            "limit": np.asarray(limit).tolist(),
            "error": float(np.linalg.norm(path[-1] - limit) / np.linalg.norm(limit)),
        }
    return runs


def mlp_runs(full: bool, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Figure 18: Neumann series after a cold start, and alternating steps through K unrolled ones."""
    net = eqx.nn.MLP(1, 1, MLP_WIDTH, 2, key=jax.random.key(seed), dtype=jnp.float64)
    w0, static = eqx.partition(net, eqx.is_array)
    problem = anti_distillation(
        jnp.linspace(-2, 2, 13)[:, None],
        jnp.zeros((1, 1)),
        jnp.array([TARGET]),
        lambda w, x: jax.vmap(eqx.combine(w, static))(x),
    )

    def run(inner_steps: int, outer_steps: int, estimator, rate: float, warm: bool):
        method = bilevel.DoubleLoop(
            bilevel.GradientInner(optax.sgd(MLP_RATE), inner_steps),
            estimator,
            optax.sgd(rate),
            warm_start=warm,
        )
        options: dict[str, Any] = {"num_steps": outer_steps, "trace_every": outer_steps}
        with warnings.catch_warnings():  # of a series that does not contract: it is in the numbers
            warnings.simplefilter("ignore", bilevel.HypergradientWarning)
            found = bilevel.solve(problem, method, jnp.zeros(13), w0, throw=False, **options)
        codes = found.trace["result"]
        if not np.isfinite(found.trace["outer_value"]).all():
            return {"diverged": True, "contracts": False}
        return {
            "diverged": False,
            "contracts": bool(np.all(codes == 0)),
            "norm": float(jnp.vdot(found.u, found.u)),
            "inner_norm": float(optax.tree.norm(found.w, squared=True)),
            "outer_value": float(found.trace["outer_value"][-1]),
            "inner_residual": float(found.trace["inner_residual"][-1]),
            "u": np.asarray(found.u).tolist(),
        }

    def by_series(outer: dict[int, tuple[float, int]]) -> dict[str, dict[str, Any]]:
        return {
            str(terms): run(
                MLP_INNER_STEPS,
                steps,
                bilevel.AID(bilevel.Neumann(MLP_RATE, terms), warm_start=False),
                rate,
                False,
            )
            for terms, (rate, steps) in outer.items()
        }

    series = by_series(MLP_OUTER_FULL if full else MLP_OUTER)
    beyond = by_series(MLP_BEYOND if full else {})
    unrolled = {
        str(terms): run(terms, steps, bilevel.ITD(), OUTER_RATE, True)
        for terms, steps in (MLP_UNROLLED_FULL if full else MLP_UNROLLED).items()
    }
    return {"Neumann": series, "unrolling": unrolled, "beyond": beyond}


def curve_of(u: list[float], case: Case) -> np.ndarray:
    """The regression fitted to the targets `u`, on a grid."""
    frequencies = case.X.shape[1] // 2
    rows = fourier_features(jnp.linspace(-2.2, 2.2, 200), amplitudes_of(case, frequencies))
    return np.asarray(rows @ min_norm_fit(jnp.asarray(u), (case.X, jnp.arange(len(u)))))


def amplitudes_of(case: Case, frequencies: int) -> jax.Array:
    """At x = 0 the features are 1, the amplitudes, and zeros."""
    return case.original[0, 1 : 1 + frequencies]


def draw(report: dict[str, Any], made: dict[str, Case], path: Path) -> None:
    """Figures 11(a-c), 14 to 18."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 4, figsize=(18, 15), layout="constrained")
    x, grid = np.linspace(-2, 2, 13), np.linspace(-2.2, 2.2, 200)

    def targets(axis, name: str, family: str, title: str) -> None:
        labels = {"Neumann": "K = {}", "damped": r"$1/(\alpha\epsilon)$ = {}", "CG": "{} steps"}
        numbers = CG_STEPS if family == "CG" else TERMS
        wanted = {f"{family} {k}": labels[family].format(k) for k in numbers}
        for i, (run, label) in enumerate((wanted | {"exact": "exact"}).items()):
            found = report["runs"][name][run]
            colour = "k" if run == "exact" else f"C{i}"
            axis.plot(grid, curve_of(found["u"], made[name]), colour, lw=1, alpha=0.6)
            axis.plot(x, found["u"], "o", c=colour, ms=4, label=f"{label}: {found['norm']:.2f}")
        finish(axis, title)
        axis.set_ylim(-1, 3.6)

    def finish(axis, title: str) -> None:
        axis.plot(0, TARGET, "*", c="limegreen", mec="k", ms=13, zorder=3)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="x", ylabel="learned target")
        axis.legend(fontsize=8, title=r"$\|u\|^2$", title_fontsize=8, loc="upper center", ncols=2)

    def norm_curves(axis, name: str, title: str) -> None:
        curves, runs = report["norms"][name], report["runs"][name]
        axis.semilogx(curves["terms"], curves["Neumann"], "C0", label="Neumann, limit")
        axis.plot(TERMS, [runs[f"Neumann {k}"]["norm"] for k in TERMS], "C0o", ms=5, label="run")
        axis.semilogx(curves["terms"], curves["damped"], "C1--", label="damped, limit")
        axis.plot(
            TERMS, [runs[f"damped {k}"]["norm"] for k in TERMS], "C1s", ms=5, mfc="w", label="run"
        )
        axis.axhline(curves["minimum"], c="k", lw=0.8, ls=":", label="minimum norm")
        axis.set(xlabel=r"K, and $1 / (\alpha\epsilon)$", ylabel=r"$\|u\|^2$")
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=8)

    rows = (
        ("exponential", "11(a)", "14", "11(b)", ""),
        ("1/n", "16(a)", "16(b)", "16(c)", "amplitudes 1/n, "),
        ("underparameterised", "17(a)", "17(b)", "17(c)", "9 parameters, "),
    )
    for row, (name, series, damped, curves, what) in zip(axes[:3], rows, strict=True):
        targets(row[0], name, "Neumann", f"Figure {series}: {what}Neumann series")
        targets(row[1], name, "damped", f"Figure {damped}: {what}damped inverse")
        norm_curves(row[2], name, f"Figure {curves}: {what}outer norms")

    axis, curves = axes[0, 3], report["norms"]["exponential"]
    axis.loglog(curves["terms"], curves["Neumann, inner"], "C0", label="Neumann, limit")
    axis.loglog(curves["terms"], curves["damped, inner"], "C1--", label="damped, limit")
    axis.set(xlabel=r"K, and $1 / (\alpha\epsilon)$", ylabel=r"$\|w\|^2$")
    axis.set_title("Figure 11(b): inner norms", fontsize=10)
    axis.legend(fontsize=8)

    targets(axes[1, 3], "exponential", "CG", "Figure 15: truncated CG")

    axis, cg = axes[2, 3], report["cg"]
    axis.semilogy(cg["by_steps"], cg["errors"], "C0o-", ms=4, label="from the exact product")
    axis.semilogy(
        cg["by_steps"], cg["moved_by_rounding"], "C3s--", ms=4, label="limit moved by rounding"
    )
    for steps, what in ((cg["even_rank"], "even rank"), (cg["rank"], "rank")):
        axis.axvline(steps, c="k", lw=0.8, ls=":")
        axis.text(steps + 0.1, 1e-17, what, fontsize=8)
    axis.set(xlabel="CG steps", ylabel="relative difference", ylim=(2e-18, 1e4))
    axis.set_title("CG: exact at the rank; ill-conditioned before", fontsize=10)
    axis.legend(fontsize=8, loc="upper right")

    seed, kinds = next(iter(report["mlp"].values())), ("Neumann", "unrolling")
    for axis, letter, kind in zip(axes[3], "ab", kinds, strict=False):
        for i, (terms, run) in enumerate(seed[kind].items()):
            if not run["diverged"]:
                label = f"K = {terms}: {run['norm']:.1f}"
                axis.plot(x, run["u"], f"C{i}o-", ms=4, lw=0.8, label=label)
        finish(axis, f"Figure 18({letter}): an MLP, {kind}")
        axis.set_ylim(top=4)
    axis = axes[3, 2]
    for i, kind in enumerate(kinds):
        for key, style in (("norm", "o-"), ("inner_norm", "s--")):
            ended = {int(k): run[key] for k, run in seed[kind].items() if not run["diverged"]}
            what = r"\|u\|^2" if key == "norm" else r"\|w\|^2"
            axis.loglog(
                *zip(*ended.items(), strict=True), f"C{i}{style}", label=f"${what}$, {kind}"
            )
    axis.set(xlabel="K", ylabel="squared norm")
    axis.set_title("Figure 18(c): an MLP, norms", fontsize=10)
    axis.legend(fontsize=8)

    axis = axes[3, 3]
    axis.plot([0, 2], [2, 0], "k", lw=1, label="fits (1, 1)")
    for i, (name, run) in enumerate(report["line"].items()):
        way = np.array(run["path"])
        label = "exact" if name == "exact" else f"K = {name}"
        axis.plot(*way.T, f"C{i}.-", ms=3, lw=0.8, label=label)
        axis.plot(*way[-1], f"C{i}*", ms=12, mec="k")
    axis.set_title("Figure 11(c): two targets, from (0, 0)", fontsize=10)
    axis.set(xlabel=r"$u_1$", ylabel=r"$u_2$", aspect="equal", xlim=(-0.1, 2), ylim=(-0.1, 2))
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def several(values: list[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def judge(report: dict[str, Any]) -> list[Claim]:
    """The claims, from the numbers alone."""
    runs, curves, cg = report["runs"], report["norms"], report["cg"]
    at_rank = cg["errors"][cg["by_steps"].index(cg["rank"])]
    damped_apart = curves["exponential"]["damped_from_neumann"]
    errors = {
        family: max(
            run["error"]
            for by_name in runs.values()
            for name, run in by_name.items()
            if name.startswith("CG") == (family == "CG")
        )
        for family in ("others", "CG")
    }
    worst_value = max(run["outer_value"] for by_name in runs.values() for run in by_name.values())

    def norms_of(case: str, family: str) -> list[float]:
        return [runs[case][f"{family} {k}"]["norm"] for k in TERMS]

    exact = {name: by_name["exact"]["norm"] for name, by_name in runs.items()}
    falling = {
        (name, family): decreasing(curve[family], curve["minimum"])
        for name, curve in curves.items()
        for family in ("Neumann", "damped")
    }
    gaps = {
        name: max(abs(a / b - 1) for a, b in zip(curve["Neumann"], curve["damped"], strict=True))
        for name, curve in curves.items()
    }
    apart = max(curve["damped_from_neumann"] for curve in curves.values())
    line = report["line"]
    line_norms = [float(np.linalg.norm(run["end"])) for run in line.values()]
    mlp = {
        kind: [run for seed in report["mlp"].values() for run in seed[kind].values()]
        for kind in ("Neumann", "unrolling")
    }
    unrolled = max(max(row.values()) for row in report["unrolled"].values())
    return [
        Claim(
            "V9",
            "long runs with Neumann, damped and exact hypergradients end at the closed-form limits "
            "(Figures 11(a), 14, 16, 17)",
            "1e-8 asked for; the paper has no closed form",
            f"relative difference at most {errors['others']:.1e}, F at most {worst_value:.0e}",
            errors["others"] <= 1e-8 and worst_value <= 1e-10,
        ),
        Claim(
            "V9",
            "truncated CG as well (Figure 15)",
            "1e-8 asked for; the paper has no closed form",
            "relative difference "
            + ", ".join(f"{runs['exponential'][f'CG {k}']['error']:.0e}" for k in CG_STEPS)
            + f" for {', '.join(map(str, CG_STEPS))} steps",
            errors["CG"] <= 1e-8,
            "The even part of the features has rank "
            f"{cg['even_rank']}: near that many steps CG magnifies the rounding of its right-hand "
            "side, which differs between the steps of a run. At 6 steps one scaled by a third, which "
            "changes nothing without rounding, moves the limit by "
            f"{cg['moved_by_rounding'][cg['by_steps'].index(6)]:.0e}.",
        ),
        Claim(
            "V9",
            "better hypergradients, smaller outer parameters: squared norms for K = 1, 100, 1e4, "
            "exact (Figures 11(a), 14)",
            "falling (figure)",
            f"Neumann {several([*norms_of('exponential', 'Neumann'), exact['exponential']])}; "
            f"damped {several([*norms_of('exponential', 'damped'), exact['exponential']])}",
            falling["exponential", "Neumann"] and falling["exponential", "damped"],
            "Strictly decreasing over 61 values of K from 1 to 1e6, down to the minimum-norm one, "
            f"while |w|^2 rises from {curves['exponential']['Neumann, inner'][0]:.1e} to "
            f"{curves['exponential']['Neumann, inner'][-1]:.1e}.",
        ),
        Claim(
            "V9",
            "the same with amplitudes 1/n (Figure 16) and with fewer parameters than points "
            "(Figure 17)",
            "falling (figures)",
            f"1/n: {several([*norms_of('1/n', 'Neumann'), exact['1/n']])}; underparameterised: "
            f"{several([*norms_of('underparameterised', 'Neumann'), exact['underparameterised']])}",
            all(falling.values()),
        ),
        Claim(
            "V9",
            "the exact hypergradient finds the minimum-norm targets (Theorem 3.1)",
            "min-norm",
            "|u|^2 = " + ", ".join(f"{n:.6f} ({name})" for name, n in exact.items()),
            all(abs(n / curves[name]["minimum"] - 1) <= 1e-8 for name, n in exact.items()),
            "x = 0 is one of the 13 points: with as many parameters it moves that target alone.",
        ),
        Claim(
            "V9",
            "Neumann series and damping with eps = 1 / (a K) behave similarly, though not equal",
            "similar",
            "norms differ by at most "
            + ", ".join(f"{100 * gap:.0f}% ({name})" for name, gap in gaps.items())
            + f"; a damped solution is within {100 * apart:.0f}% of one of the Neumann family",
            max(gaps.values()) <= 0.2 and apart <= 0.1,
        ),
        Claim(
            "V9",
            "K unrolled steps from the inner solution and K Neumann terms have one hypergradient",
            "equal",
            f"relative difference at most {unrolled:.1e}, K = 1, 10, 100",
            unrolled <= 1e-12,
        ),
        Claim(
            "V9",
            "CG is exact after as many steps as there are parameters (Appendix F.2)",
            "21 steps",
            f"relative error {at_rank:.1e} after {cg['rank']} steps, the rank",
            at_rank <= 1e-8,
            f"By symmetry {cg['even_rank']} steps would do without rounding; with it they have an "
            f"error of {cg['errors'][cg['by_steps'].index(cg['even_rank'])]:.0e}.",
        ),
        Claim(
            "V9",
            "CG has a very different inductive bias (Figure 15)",
            "very different",
            f"{', '.join(map(str, CG_STEPS[:3]))} steps: "
            + ", ".join(f"{100 * gap:.0f}%" for gap in cg["from_neumann"][:3])
            + f" away from the Neumann family; damped ones {100 * damped_apart:.0f}% at most",
            min(cg["from_neumann"][:3]) > damped_apart,
            f"At 6 steps hardly more than damping. Squared norms {several(cg['norm'])} for "
            f"{', '.join(map(str, CG_STEPS))} steps.",
        ),
        Claim(
            "V9",
            "trajectories of two targets: all end on the line of solutions, the exact one at its "
            "minimum-norm point (Figure 11(c))",
            "figure",
            "; ".join(f"{name}: ({several(run['end'], 3)})" for name, run in line.items()),
            max(run["error"] for run in line.values()) <= 1e-8
            and max(abs(sum(run["end"]) - 2) for run in line.values()) <= 1e-8
            and decreasing(line_norms, float(np.sqrt(2))),
        ),
        *(
            judge_mlp(report["mlp"], kind, mlp[kind], note)
            for kind, note in (
                ("Neumann", mlp_rates(report)),
                ("unrolling", "Warm-started, alternating K inner steps with one outer step."),
            )
        ),
    ]


def mlp_rates(report: dict[str, Any]) -> str:
    """What the note on the MLP's Neumann runs begins with."""
    rates = ", ".join(f"{r:g} (K = {terms})" for terms, (r, _) in report["mlp_outer"].items())
    note = f"Inner steps at the published rate 0.01, outer ones at {rates}."
    for terms in MLP_BEYOND:
        runs = [seed["beyond"][str(terms)] for seed in report["mlp"].values() if seed["beyond"]]
        lost = sum(run["diverged"] or run["outer_value"] > 1 for run in runs)
        note += f" K = {terms} drives F up in {lost} of {len(runs)} runs." if runs else ""
    return note


def judge_mlp(seeds: dict[str, Any], kind: str, runs: list[dict[str, Any]], note: str) -> Claim:
    """Figure 18; a run that diverged counts against it."""
    norms_of_seeds = [[run.get("norm") for run in seed[kind].values()] for seed in seeds.values()]
    ended = [run for run in runs if not run["diverged"]]
    value = max(run["outer_value"] for run in ended)
    lost = len(runs) - len(ended)
    note += (
        f" F ends at {value:.0e} at most, |grad_w f| at "
        f"{max(run['inner_residual'] for run in ended):.0e}."
    )
    if not all(run["contracts"] for run in runs):
        note += (
            f" {sum(not run['contracts'] for run in runs)} runs end where the series does not "
            f"contract (no minimum, or curvature above 2 / 0.01), of which {lost} diverged."
        )
    return Claim(
        "V9",
        f"an MLP: norms fall with K, {kind} (Figure 18)",
        "falling (figure)",
        "; ".join(
            ", ".join("diverged" if n is None else f"{n:.1f}" for n in norms)
            for norms in norms_of_seeds
        )
        + f" for K = {', '.join(next(iter(seeds.values()))[kind])}",
        lost == 0 and value <= 1e-2 and all(np.all(np.diff(n) < 0) for n in norms_of_seeds),
        note,
    )


def main(full: bool, out: Path) -> tuple[dict[str, Any], list[Claim]]:
    """Run all, draw, judge."""
    seeds = range(3 if full else 1)
    report: dict[str, Any] = {"norms": {}, "runs": {}, "unrolled": {}}
    with jax.enable_x64(True):
        made = cases()
        for name, case in made.items():
            report["norms"][name] = norms(case)
            u = jnp.asarray(np.random.default_rng(0).normal(size=13))
            report["unrolled"][name] = {
                str(terms): float(unrolled_gap(case, u, terms)) for terms in UNROLLED
            }
            report["runs"][name] = {
                label: long_run(case, label, estimator, full)
                for label, estimator in estimators(case, name).items()
            }
        report["cg"] = by_cg(made["exponential"], report["runs"]["exponential"])
        report["line"] = line_runs()
        report["mlp_outer"] = {
            str(k): outer for k, outer in (MLP_OUTER_FULL if full else MLP_OUTER).items()
        }
        report["mlp"] = {str(seed): mlp_runs(full, seed) for seed in seeds}
        draw(report, made, out / "anti_distillation.png")
    settings = {
        "target": TARGET,
        "outer_rate": OUTER_RATE,
        "inner_rates": {name: float(case.alpha) for name, case in made.items()},
        "terms": list(TERMS),
        "line_rate": LINE_RATE,
        "mlp": {"rate": MLP_RATE, "width": MLP_WIDTH, "inner_steps": MLP_INNER_STEPS},
    }
    claims = judge(report)
    for run in report["line"].values():
        run["path"] = run["path"][::20]
    return {"settings": settings, "seeds": list(seeds), **report}, claims


if __name__ == "__main__":
    run_script(__file__, main)
