"""V9, Figures 11(a, b) and 14 to 17: the approximate hypergradient chooses the learned targets.

Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in overparameterized bilevel
optimization", section 4.2 and Appendix F.2 [vicol2022][]. Targets of 13 points are learned so that a
regression on them fits one original point, (0, 2), which many targets do. Runs are cold-started, the
inner solution is in closed form (`X^+ u`, as in the paper), and the inverse Hessian is approximated by
a truncated Neumann series, damping or truncated CG. With one original point each run has a limit in
closed form, from the spectrum of X (for CG from an orthonormal Krylov basis), with which we compare;
the paper has none. `anti_distillation_more.py` has Figure 11(c), two targets and a line, and Figure
18, an MLP.

From the paper: 10 frequencies, inner learning rates 1e-7 (exponential amplitudes) and 1e-3 (amplitudes
1/n), outer learning rate 1e-2, 13 points in [-2, 2], and the damping factors 1e4, 1e5, 1e6 and 1e7 of
Figure 14, which are 1 / (alpha K) for K = 1000, 100, 10 and 1. Not in it: how many frequencies make
Figure 17 underparameterised (we take 4, which is 9 parameters) and its inner learning rate.

The outer steps are plain gradient steps. At the published rate up to 1e6 of them are needed, because
the truncated hypergradients are small; the limit does not depend on the rate. If more than a few
thousand would be needed, we take the step that halves the outer error, `1 / (2 phi_o^T X^+ c)`.
"K terms" are j = 0, ..., K - 1, as many as K unrolled steps have (the paper's sum has one more).
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from matplotlib.figure import Figure

import bilevel
from bilevel.tasks import exponential_amplitudes, fourier_features, harmonic_amplitudes
from bilevel.tasks.reference import min_norm_fit

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bias import distance, hypergradient
from _frame import Claim, panels, run
from _limits import (
    OUTER_RATE,
    TARGET,
    Case,
    closed_form,
    damped_filter,
    decreasing,
    even_rank,
    filtered_limits,
    finish,
    limits_of,
    neumann,
    neumann_filter,
    several,
)

TERMS = (1, 10, 100, 1000, 10_000)  # up to 1000 those of the published damping factors
CG_STEPS = (2, 4, 6, 13)  # 13 is the rank
UNROLLED = (1, 10, 100)
GRID = np.linspace(-2.2, 2.2, 200)
OUTER_TX = optax.inject_hyperparams(optax.sgd)(learning_rate=OUTER_RATE)


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


def truncated_cg(steps: int) -> bilevel.AID:
    return bilevel.AID(bilevel.CG(rtol=0.0, atol=0.0, max_steps=steps), warm_start=False)


def long_run(
    case: Case, label: str, estimator: bilevel.AbstractHypergradient, full: bool
) -> dict[str, Any]:
    """A cold-started run and its limit, at the published rate unless that takes too many steps."""
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
        "error": float(distance(run.u, limit)),
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
        errors.append(float(distance(ours, exact)))
        # Without rounding, three times the product of a third is the product.
        scaled = [3 * np.asarray(solve_by_cg(case, phi / 3, k)), ours]
        one, other = np.asarray(limits_of(case, jnp.asarray(np.stack(scaled))))
        moved.append(float(distance(one, other)))
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


@eqx.filter_jit
def unrolled_gap(case: Case, u: jax.Array, terms: int) -> jax.Array:
    """Of the hypergradient of K unrolled steps from `X^+ u`, and of K Neumann terms there."""
    problem, inner = case.problem, bilevel.GradientInner(optax.sgd(case.alpha), terms)
    w = min_norm_fit(u, (case.X, jnp.arange(u.size)))
    unrolled = hypergradient(problem, bilevel.ITD(), inner, u, w)
    series = bilevel.implicit_gradient(problem, u, w, bilevel.Neumann(case.alpha, terms)).grad
    return distance(unrolled, series)


def measure(full: bool) -> dict[str, Any]:
    """All three regressions, and truncated CG on the first."""
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
        curves = {
            (name, label): curve_of(found["u"], made[name])
            for name, runs in report["runs"].items()
            for label, found in runs.items()
        }
    settings = {
        "target": TARGET,
        "outer_rate": OUTER_RATE,
        "inner_rates": {name: float(case.alpha) for name, case in made.items()},
        "terms": list(TERMS),
    }
    return {"settings": settings, "seeds": [0], **report, "figure": curves}


def curve_of(u: list[float], case: Case) -> np.ndarray:
    """The regression fitted to the targets `u`, on `GRID`."""
    # At x = 0 the features are 1, the amplitudes, and zeros.
    amplitudes = case.original[0, 1 : 1 + case.X.shape[1] // 2]
    w = min_norm_fit(jnp.asarray(u), (case.X, jnp.arange(len(u))))
    return np.asarray(fourier_features(jnp.asarray(GRID), amplitudes) @ w)


def draw(measured: dict[str, Any]) -> Figure:
    """Figures 11(a, b), 14 to 17."""
    figure, axes = panels(3, 4, (16, 10.5))
    x = np.linspace(-2, 2, 13)

    def targets(axis, name: str, family: str, title: str) -> None:
        labels = {"Neumann": "K = {}", "damped": r"$1/(\alpha\epsilon)$ = {}", "CG": "{} steps"}
        numbers = CG_STEPS if family == "CG" else TERMS
        wanted = {f"{family} {k}": labels[family].format(k) for k in numbers}
        for i, (label, text) in enumerate((wanted | {"exact": "exact"}).items()):
            found = measured["runs"][name][label]
            colour = "k" if label == "exact" else f"C{i}"
            axis.plot(GRID, measured["figure"][name, label], colour, lw=1, alpha=0.6)
            axis.plot(x, found["u"], "o", c=colour, ms=4, label=f"{text}: {found['norm']:.2f}")
        finish(axis, title)
        axis.set_ylim(-1, 3.6)

    rows = (
        ("exponential", "11(a)", "14", "11(b)", ""),
        ("1/n", "16(a)", "16(b)", "16(c)", "amplitudes 1/n, "),
        ("underparameterised", "17(a)", "17(b)", "17(c)", "9 parameters, "),
    )
    for row, (name, series, damped, third, what) in zip(axes, rows, strict=True):
        targets(row[0], name, "Neumann", f"Figure {series}: {what}Neumann series")
        targets(row[1], name, "damped", f"Figure {damped}: {what}damped inverse")
        axis, curves, runs = row[2], measured["norms"][name], measured["runs"][name]
        for family, style, marker in (("Neumann", "C0", "C0o"), ("damped", "C1--", "C1s")):
            axis.semilogx(curves["terms"], curves[family], style, label=f"{family}, limit")
            ends = [runs[f"{family} {k}"]["norm"] for k in TERMS]
            axis.plot(TERMS, ends, marker, ms=5, mfc="w", label="run")
        axis.axhline(curves["minimum"], c="k", lw=0.8, ls=":", label="minimum norm")
        axis.set(xlabel=r"K, and $1 / (\alpha\epsilon)$", ylabel=r"$\|u\|^2$")
        axis.set_title(f"Figure {third}: {what}outer norms", fontsize=10)
        axis.legend(fontsize=8)

    axis, curves = axes[0, 3], measured["norms"]["exponential"]
    axis.loglog(curves["terms"], curves["Neumann, inner"], "C0", label="Neumann, limit")
    axis.loglog(curves["terms"], curves["damped, inner"], "C1--", label="damped, limit")
    axis.set(xlabel=r"K, and $1 / (\alpha\epsilon)$", ylabel=r"$\|w\|^2$")
    axis.set_title("Figure 11(b): inner norms", fontsize=10)
    axis.legend(fontsize=8)
    targets(axes[1, 3], "exponential", "CG", "Figure 15: truncated CG")
    axis, cg = axes[2, 3], measured["cg"]
    axis.semilogy(cg["by_steps"], cg["errors"], "C0o-", ms=4, label="from the exact product")
    axis.semilogy(
        cg["by_steps"], cg["moved_by_rounding"], "C3s--", ms=4, label="limit moved by rounding"
    )
    for steps, what in ((cg["even_rank"], "even rank"), (cg["rank"], "rank")):
        axis.axvline(steps, c="k", lw=0.8, ls=":")
        axis.text(steps + 0.1, 1e-17, what, fontsize=8)
    axis.set(xlabel="CG steps", ylabel="relative difference", ylim=(2e-18, 1e4))
    axis.set_title("CG: exact at the rank, ill-conditioned before", fontsize=10)
    axis.legend(fontsize=8, loc="upper right")
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """From the numbers alone."""
    runs, curves, cg = measured["runs"], measured["norms"], measured["cg"]
    at = {k: i for i, k in enumerate(cg["by_steps"])}
    cg_steps = ", ".join(map(str, CG_STEPS))
    cg_runs = {k: runs["exponential"][f"CG {k}"] for k in CG_STEPS}
    others = [
        run
        for by_name in runs.values()
        for name, run in by_name.items()
        if not name.startswith("CG")
    ]
    error = max(run["error"] for run in others)
    worst_value = max(run["outer_value"] for run in (*others, *cg_runs.values()))
    exact = {name: by_name["exact"]["norm"] for name, by_name in runs.items()}

    def norms_of(case: str, family: str) -> str:
        return several([*(runs[case][f"{family} {k}"]["norm"] for k in TERMS), exact[case]])

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
    damped_apart = curves["exponential"]["damped_from_neumann"]
    unrolled = max(max(row.values()) for row in measured["unrolled"].values())
    inner_norms = curves["exponential"]["Neumann, inner"]
    claim = partial(Claim, "V9")
    return [
        claim(
            "Long runs with Neumann, damped and exact hypergradients end at the closed-form limits "
            "(Figures 11(a), 14, 16, 17).",
            "the paper has no closed form; we ask for 1e-8",
            f"relative difference at most {error:.1e}, F at most {worst_value:.0e}",
            error <= 1e-8 and worst_value <= 1e-10,
        ),
        claim(
            "Long runs with truncated CG end at their closed-form limits too (Figure 15).",
            "the paper has no closed form; we ask for 1e-8",
            "relative difference "
            + ", ".join(f"{run['error']:.0e}" for run in cg_runs.values())
            + f" for {cg_steps} steps",
            max(run["error"] for run in cg_runs.values()) <= 1e-8,
            f"The even part of the features has rank {cg['even_rank']}. With nearly as many steps, CG "
            "magnifies the rounding errors of its right-hand side, which differ between the steps of "
            "a run. At 6 steps, a right-hand side scaled by a third, which changes nothing without "
            f"rounding, moves the limit by {cg['moved_by_rounding'][at[6]]:.0e}.",
        ),
        claim(
            "Better hypergradients give smaller outer parameters: their squared norms fall along "
            "K = 1, 10, 100, 1000, 1e4 (damping 1e7 to 1e3) and the exact one (Figures 11(a), 14).",
            "falling (figure)",
            f"Neumann {norms_of('exponential', 'Neumann')}; damped "
            f"{norms_of('exponential', 'damped')}",
            falling["exponential", "Neumann"] and falling["exponential", "damped"],
            "The norms decrease strictly over 61 values of K from 1 to 1e6, down to the minimum, "
            f"while |w|^2 rises from {inner_norms[0]:.1e} to {inner_norms[-1]:.1e}.",
        ),
        claim(
            "The norms also fall with amplitudes 1/n (Figure 16) and with fewer parameters than "
            "points (Figure 17).",
            "falling (figures)",
            f"1/n: {norms_of('1/n', 'Neumann')}; underparameterised: "
            f"{norms_of('underparameterised', 'Neumann')}",
            all(falling.values()),
        ),
        claim(
            "The exact hypergradient finds the minimum-norm targets (Theorem 3.1).",
            "min-norm",
            "|u|^2 = " + ", ".join(f"{n:.6f} ({name})" for name, n in exact.items()),
            all(abs(n / curves[name]["minimum"] - 1) <= 1e-8 for name, n in exact.items()),
            "The original point x = 0 is one of the 13 points: with as many parameters as points, "
            "only that target moves.",
        ),
        claim(
            "Neumann series and damping with eps = 1 / (a K) behave similarly, but are not equal.",
            "similar",
            "norms differ by at most "
            + ", ".join(f"{100 * gap:.0f}% ({name})" for name, gap in gaps.items())
            + f"; a damped solution is within {100 * apart:.0f}% of one of the Neumann family",
            max(gaps.values()) <= 0.2 and apart <= 0.1,
        ),
        claim(
            "K unrolled steps from the inner solution and K Neumann terms have the same "
            "hypergradient.",
            "equal",
            f"relative difference at most {unrolled:.1e}, K = 1, 10, 100",
            unrolled <= 1e-12,
        ),
        claim(
            "CG is exact after as many steps as there are parameters (Appendix F.2).",
            "21 steps",
            f"relative error {cg['errors'][at[cg['rank']]]:.1e} after {cg['rank']} steps, the rank",
            cg["errors"][at[cg["rank"]]] <= 1e-8,
            f"By symmetry {cg['even_rank']} steps would be enough without rounding; with rounding "
            f"their error is {cg['errors'][at[cg['even_rank']]]:.0e}.",
        ),
        claim(
            "CG has a very different inductive bias (Figure 15).",
            "very different",
            f"distance to the Neumann family at {', '.join(map(str, CG_STEPS[:3]))} steps: "
            + ", ".join(f"{100 * gap:.0f}%" for gap in cg["from_neumann"][:3])
            + f"; with damping at most {100 * damped_apart:.0f}%",
            min(cg["from_neumann"][:3]) > damped_apart,
            f"At 6 steps the distance is hardly larger than with damping. The squared norms are "
            f"{several(cg['norm'])} for {cg_steps} steps.",
        ),
    ]


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
