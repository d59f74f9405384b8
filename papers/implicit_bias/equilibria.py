"""V3: Theorem 3.1, Remark 3.2 and Statement 3.2 on random quadratics of Assumption 3.1.

Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in overparameterized bilevel
optimization", section 3.3 [vicol2022][]. The paper proves these statements and has no numbers. We draw
quadratics from Gaussian matrices whose singular values we then set:

    f(u, w) = |X w - Y u - t|^2 / 2      (w of 8 entries, u of 6; X of rank 5, of rank 8 where f is
                                         to be strongly convex; curvatures between 1 / k and 1)
    F(u, w) = |G w - s|^2 / 2            (Y and G of random ranks, from 2 to 6 and 8)

If X has rank 5, Phi has a null space too. A draw is repeated if the condition number of its Phi is
above 30, because gradient descent would only be slower. We add what the statements leave open: cold
and warm starts agree on singular inner problems as well, because the curvature does not depend on u,
and the equilibria of warm starts do depend on T for the hypergradient of T unrolled steps.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from matplotlib.figure import Figure

import bilevel
from bilevel import is_cold_start_equilibrium, is_warm_start_equilibrium

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bias import rollout
from _frame import Claim, panels, run

DIM_W, DIM_U = 8, 6
RANK = {"singular": 5, "strongly convex": 8}
KAPPA = {"singular": 2.0, "strongly convex": 4.0}  # of f, on the range of its Hessian
NUM_PROBLEMS, WORST_CONDITION = 20, 30.0
STEPS, CONVERGED = 2000, 60  # outer steps; inner ones that converge if f is singular: 2^-60
GAP_STEPS, GAP_OUTER = (1, 10, 100, 300), 200
FOUND_WITH, CHECKED_WITH = (1, 10, 100), (1, 10, 100, 1000)
GRADIENT = optax.sgd(1.0)  # 1 / L: the largest curvature of f is 1
EXACT = bilevel.AID(lx.SVD())  # the pseudo-inverse


class Inner(eqx.Module):
    x: jax.Array
    y: jax.Array
    t: jax.Array

    def __call__(self, u, w, batch):
        return 0.5 * jnp.sum((self.x @ w - self.y @ u - self.t) ** 2)


class Outer(eqx.Module):
    g: jax.Array
    s: jax.Array

    def __call__(self, u, w, batch):
        return 0.5 * jnp.sum((self.g @ w - self.s) ** 2)


class Quadratic(NamedTuple):
    """The two objectives, where a run begins, and `1 / L` of Phi."""

    inner: Inner
    outer: Outer
    u0: jax.Array
    w0: jax.Array
    rate: jax.Array

    @property
    def problem(self) -> bilevel.BilevelProblem:
        return bilevel.BilevelProblem(self.outer, self.inner)


def reduced(case: Quadratic, w0: Any) -> tuple[np.ndarray, np.ndarray]:
    """`Z` and `b` of `F(u, r(u, w0)) = u'Z u / 2 + b'u + ...`, by Lemmas C.1 and C.2."""
    x, y, t, g, s, w0 = map(np.asarray, (*jax.tree.leaves((case.inner, case.outer)), w0))
    inverse = np.linalg.pinv(x, rcond=1e-10)
    response = g @ inverse @ y
    return response.T @ response, response.T @ (g @ (inverse @ (t - x @ w0) + w0) - s)


def nearest_solution(case: Quadratic, w0: Any) -> np.ndarray:
    """Equation (4): the minimiser of `F(u, r(u, w0))` that is nearest to `u0`."""
    z, b = reduced(case, w0)
    u0 = np.asarray(case.u0)
    return u0 - np.linalg.pinv(z, rcond=1e-10, hermitian=True) @ (z @ u0 + b)


def matrix(rng: np.random.Generator, columns: int, singular_values: np.ndarray) -> jax.Array:
    """A random matrix of `DIM_W` rows with these singular values, and zeros."""
    left, _, right = np.linalg.svd(rng.normal(size=(DIM_W, columns)), full_matrices=False)
    rank = len(singular_values)
    return jnp.asarray((left[:, :rank] * singular_values) @ right[:rank])


def quadratic(kind: str, seed: int) -> Quadratic:
    """One draw."""
    rng = np.random.default_rng([seed, RANK[kind]])
    while True:
        case = Quadratic(
            Inner(
                matrix(rng, DIM_W, np.geomspace(KAPPA[kind] ** -0.5, 1, RANK[kind])),
                matrix(rng, DIM_U, np.geomspace(0.5, 1, rng.integers(2, DIM_U + 1))),
                jnp.asarray(rng.normal(size=DIM_W)),
            ),
            Outer(
                matrix(rng, DIM_W, np.geomspace(0.5, 1, rng.integers(2, DIM_W + 1))),
                jnp.asarray(rng.normal(size=DIM_W)),
            ),
            jnp.asarray(rng.normal(size=DIM_U)),
            jnp.asarray(rng.normal(size=DIM_W)),
            jnp.zeros(()),
        )
        curvature = np.linalg.eigvalsh(reduced(case, np.zeros(DIM_W))[0])
        positive = curvature[curvature > 1e-10 * curvature[-1]]
        if positive[-1] <= WORST_CONDITION * positive[0]:
            return case._replace(rate=jnp.asarray(1 / positive[-1]))


def path(
    case: Quadratic,
    w0: jax.Array,
    inner_steps: int,
    warm: bool,
    num_steps: int,
    slow: float = 1.0,
    printed: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The outer and inner variables of Algorithm 1 or 2 after each step."""
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(GRADIENT, inner_steps),
        EXACT,
        optax.sgd(case.rate / slow),
        warm_start=warm,
    )
    method = bilevel.LookAhead(method) if printed else method
    return rollout(case.problem, method, case.u0, w0, num_steps)


def orders(cases: Quadratic, draws: list[Quadratic]) -> dict[str, Any]:
    """Algorithms 1 and 2 in the printed order: equilibria, and how far they are from the library's."""
    found: dict[str, Any] = {"gaps": {}, "equilibria": 0, "checked": 0}
    for steps in FOUND_WITH[:2]:

        def run(case: Quadratic, printed: bool, steps=steps) -> tuple[jax.Array, jax.Array]:
            return path(case, case.w0, steps, True, STEPS, 2.0, printed)

        ours, theirs = (jax.jit(jax.vmap(partial(run, printed=x)))(cases) for x in (False, True))
        size = jnp.linalg.norm(ours[0][:, -1], axis=1)
        gap = jnp.linalg.norm(theirs[0] - ours[0], axis=2) / size[:, None]
        found["gaps"][str(steps)] = {
            "on the way": float(jnp.max(gap)),
            "at the end": float(jnp.max(gap[:, -1])),
        }
        inner = bilevel.GradientInner(GRADIENT, CHECKED_WITH[2])
        for case, u, w in zip(draws, *(x[:, -1] for x in theirs), strict=True):
            check = is_warm_start_equilibrium(case.problem, u, w, inner, EXACT, tol=1e-10)
            found["equilibria"] += check.holds
            found["checked"] += 1
    # Algorithm 1 returns the inner solution of its last u, even if the last step still moved u.
    short = jax.vmap(lambda case: path(case, case.w0, CONVERGED, False, 3, printed=True))
    us, ws = (x[:, -1] for x in jax.jit(short)(cases))
    found["residual after 3 cold steps"] = max(
        float(jnp.linalg.norm(case.problem.residual(u, w, None)))
        for case, u, w in zip(draws, us, ws, strict=True)
    )
    return found


def theorem(cases: Quadratic, draws: list[Quadratic]) -> tuple[np.ndarray, dict[str, Any]]:
    """Theorem 3.1 and Statement 3.1: the way to equation (4) from zero, and the numbers."""
    run = jax.jit(jax.vmap(lambda case, w0: path(case, w0, CONVERGED, False, STEPS)))
    way: list[np.ndarray] = []
    found: dict[str, Any] = {}
    for name, starts in (("w0 = 0", jnp.zeros_like(cases.w0)), ("w0 random", cases.w0)):
        us, ws = map(np.asarray, run(cases, starts))
        nearest = np.stack([nearest_solution(c, w0) for c, w0 in zip(draws, starts, strict=True)])
        errors = np.linalg.norm(us - nearest[:, None], axis=2)
        errors = errors / np.linalg.norm(nearest, axis=1)[:, None]
        way.append(errors[:, :: STEPS // 100])
        checks = [
            is_cold_start_equilibrium(
                case.problem,
                jnp.asarray(u),
                jnp.asarray(w),
                jnp.asarray(w0),
                bilevel.GradientInner(GRADIENT, CONVERGED),
                EXACT,
                tol=1e-8,
            )
            # The method's w belongs to the u before its last step, from which u has converged.
            for case, u, w, w0 in zip(draws, us[:, -1], ws[:, -1], starts, strict=True)
        ]
        found[name] = {
            "last": errors[:, -1].tolist(),
            "moved": np.linalg.norm(us[:, -1] - np.asarray(cases.u0), axis=1).tolist(),
            "equilibria": sum(check.holds for check in checks),
            "residual": max(max(check[1:]) for check in checks),
        }
    return way[0], found


def remark(cases: Quadratic) -> dict[str, list[float]]:
    """Remark 3.2: the largest gap between cold and warm outer variables on the way, for each T."""
    gaps = {}
    for steps in GAP_STEPS:

        def gap(case: Quadratic, steps=steps) -> jax.Array:
            cold, _ = path(case, case.w0, steps, False, GAP_OUTER)
            warm, _ = path(case, case.w0, steps, True, GAP_OUTER)
            size = jnp.linalg.norm(cold, axis=1)
            return jnp.max(jnp.linalg.norm(warm - cold, axis=1) / size)

        gaps[str(steps)] = jax.jit(jax.vmap(gap))(cases).tolist()
    return gaps


def statement(cases: Quadratic, draws: list[Quadratic]) -> dict[str, Any]:
    """Statement 3.2: warm-start equilibria of one T, examined with another."""
    inner = {steps: bilevel.GradientInner(GRADIENT, steps) for steps in CHECKED_WITH}
    exact: dict[str, list[float]] = {}
    unrolled: dict[str, list[float]] = {}
    verdicts = []
    us = ws = jnp.zeros(())
    for found_with in FOUND_WITH:
        run = jax.jit(
            jax.vmap(lambda case, steps=found_with: path(case, case.w0, steps, True, STEPS, 2.0))
        )
        us, ws = (x[:, -1] for x in run(cases))
        for with_ in CHECKED_WITH:
            checks = [
                is_warm_start_equilibrium(
                    case.problem, jnp.asarray(u), jnp.asarray(w), inner[with_], EXACT, tol=1e-10
                )
                for case, u, w in zip(draws, us, ws, strict=True)
            ]
            verdicts += [check.verdict for check in checks]
            exact[f"{found_with}, {with_}"] = [max(check[1:]) for check in checks]
            if found_with == FOUND_WITH[-1]:
                checks = [
                    is_warm_start_equilibrium(
                        case.problem,
                        jnp.asarray(u),
                        jnp.asarray(w),
                        inner[with_],
                        bilevel.ITD(),
                        tol=1e-10,
                    )
                    for case, u, w in zip(draws, us, ws, strict=True)
                ]
                unrolled[str(with_)] = [check.outer_residual for check in checks]
    # At twice the largest step, gradient descent goes to and fro along the top eigenvector.
    case, u, w = draws[0], us[0], ws[0]
    away = jnp.linalg.svd(case.inner.x)[2][0]
    cycle = bilevel.GradientInner(optax.sgd(2.0), 2)
    to_and_fro = is_warm_start_equilibrium(
        case.problem, jnp.asarray(u), jnp.asarray(w + away), cycle, EXACT
    )
    return {
        "exact": exact,
        "equilibria": verdicts.count("equilibrium"),
        "checked": len(verdicts),
        "unrolled": unrolled,
        "cycle": to_and_fro._asdict(),
    }


def measure(full: bool) -> dict[str, Any]:
    """Draw the problems and run the three parts."""
    seeds = range(100 if full else NUM_PROBLEMS)
    with jax.enable_x64(True):
        draws = {kind: [quadratic(kind, seed) for seed in seeds] for kind in RANK}
        cases = {kind: jax.tree.map(lambda *x: jnp.stack(x), *d) for kind, d in draws.items()}
        errors, found = theorem(cases["singular"], draws["singular"])
        return {
            "settings": {
                "dim_w": DIM_W,
                "dim_u": DIM_U,
                "rank": RANK,
                "kappa": KAPPA,
                "steps": STEPS,
                "inner_steps": CONVERGED,
            },
            "seeds": list(seeds),
            "theorem": found,
            "remark": {kind: remark(cases[kind]) for kind in ("strongly convex", "singular")},
            "statement": statement(cases["singular"], draws["singular"]),
            "orders": orders(cases["singular"], draws["singular"]),
            "figure": errors,
        }


def draw(measured: dict[str, Any]) -> Figure:
    """The three statements."""
    figure, (left, middle, right) = panels(1, 3, (13, 4))
    for errors in measured["figure"]:
        left.semilogy(np.arange(len(errors)) * (STEPS // 100), np.maximum(errors, 1e-17), lw=0.6)
    left.axhline(1e-8, c="k", ls=":", lw=1)
    left.set_title("Theorem 3.1: way to the outer solution nearest to $u_0$", fontsize=10)
    left.set(xlabel="cold-started outer steps", ylabel="relative distance (one line per problem)")
    for i, (kind, gaps) in enumerate(measured["remark"].items()):
        values = np.maximum(np.array([gaps[str(steps)] for steps in GAP_STEPS]), 1e-17)
        label = f"{kind}, condition number {KAPPA[kind]:.0f}"
        middle.loglog(GAP_STEPS, np.median(values, axis=1), f"C{i}o-", label=label)
        middle.fill_between(GAP_STEPS, values.min(1), values.max(1), color=f"C{i}", alpha=0.2)
    middle.axhline(1e-8, c="k", ls=":", lw=1)
    middle.set_title("Remark 3.2: gap of warm and cold starts", fontsize=10)
    middle.set(xlabel="inner steps T", ylabel="largest relative gap of u (median and range)")
    exact, unrolled = measured["statement"]["exact"], measured["statement"]["unrolled"]
    curves = [
        (
            f"C{i}o-",
            [exact[f"{t}, {steps}"] for steps in CHECKED_WITH],
            f"exact, found with T = {t}",
        )
        for i, t in enumerate(FOUND_WITH)
    ]
    last = f"T unrolled steps, found with T = {FOUND_WITH[-1]}"
    curves.append(("k^--", [unrolled[str(steps)] for steps in CHECKED_WITH], last))
    for style, residuals, label in curves:
        worst = np.maximum([max(values) for values in residuals], 1e-17)
        right.loglog(CHECKED_WITH, worst, style, label=label)
    right.axhline(1e-10, c="k", ls=":", lw=1)
    right.set_title("Statement 3.2: the same equilibria for other T", fontsize=10)
    right.set(xlabel="examined with T", ylabel="largest residual", ylim=(None, 1e3))
    for axis in (middle, right):
        axis.legend(fontsize=8, loc="upper right")
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """From the numbers alone."""
    zero, other = (measured["theorem"][name] for name in ("w0 = 0", "w0 random"))
    worst = {
        kind: {steps: max(gaps) for steps, gaps in by_steps.items()}
        for kind, by_steps in measured["remark"].items()
    }
    gaps = {
        kind: "largest gap on the way "
        + ", ".join(f"{gap:.0e} at T = {t}" for t, gap in by_steps.items())
        for kind, by_steps in worst.items()
    }
    found = measured["statement"]
    residual = max(max(row) for row in found["exact"].values())
    count = len(zero["last"])
    order = measured["orders"]
    apart = "; ".join(
        f"T = {steps}: {gap['on the way']:.2f} on the way, {gap['at the end']:.0e} at the end"
        for steps, gap in order["gaps"].items()
    )
    claim = partial(Claim, "V3")
    return [
        claim(
            "Cold starts end at the outer solution that is nearest to u_0 (Theorem 3.1).",
            "equal; we ask for 1e-8",
            f"{count} random quadratics: relative distance at most {max(zero['last']):.1e}, where u "
            f"moved by {min(zero['moved']):.2f} to {max(zero['moved']):.2f}",
            max(zero["last"]) <= 1e-8,
            f"The same holds for a w_0 that is not zero, to {max(other['last']):.1e}.",
        ),
        claim(
            "The point where cold starts end is a cold-start equilibrium (Statement 3.1).",
            "all",
            f"{zero['equilibria']} of {count}, and {other['equilibria']} for a w_0 that is not zero; "
            f"residuals at most {max(zero['residual'], other['residual']):.1e}",
            zero["equilibria"] == other["equilibria"] == count,
        ),
        claim(
            "Full warm starts and cold starts are the same method if f is strongly convex "
            "(Remark 3.2).",
            "equal; we ask for 1e-8 at T >= 100",
            gaps["strongly convex"],
            max(worst["strongly convex"][t] for t in ("100", "300")) <= 1e-8,
        ),
        claim(
            "They are also the same method if f is singular and its curvature does not depend on u "
            "(our addition).",
            "not in the paper",
            gaps["singular"],
            max(worst["singular"][t] for t in ("100", "300")) <= 1e-8,
            "Warm starts have a memory only if the solution sets have different directions: see "
            "projections.py.",
        ),
        claim(
            "Every equilibrium of a partial warm start is one of a full warm start, and every "
            "equilibrium of a full one is one of a partial one (Statement 3.2).",
            "all; we ask for 1e-10",
            f"{found['equilibria']} of {found['checked']}, residuals at most {residual:.1e} "
            f"(found with T = {', '.join(map(str, FOUND_WITH))}, examined with "
            f"{', '.join(map(str, CHECKED_WITH))})",
            found["equilibria"] == found["checked"] and residual <= 1e-10,
            "This is for one hypergradient, here the exact one. The hypergradient of T unrolled steps "
            f"has other zeros for other T: the residual is up to {max(found['unrolled']['1']):.2f} at "
            f"T = 1 and {max(found['unrolled']['1000']):.0e} at T = 1000. With a step of 2 / L there "
            f"is a point with w = r(u, w) for T = 2 (to {found['cycle']['gap']:.0e}) and a gradient "
            f"of norm {found['cycle']['inner_residual']:.2f}: the statement needs a smaller step.",
        ),
        Claim(
            "V1",
            "Algorithm 2 as printed looks one inner solve ahead of the w that it keeps (`LookAhead`); "
            "it ends at the same equilibria (Statement 3.2 holds for both orders).",
            "all; we ask for 1e-10",
            f"{order['equilibria']} of {order['checked']} ends of the printed order are equilibria of "
            f"a full warm start; relative distance of u from the library's order {apart}",
            order["equilibria"] == order["checked"]
            and max(gap["at the end"] for gap in order["gaps"].values()) <= 1e-8,
            "The curvature does not depend on u here, so that warm starts have no memory; "
            "rings.py has a case where they have one.",
        ),
        Claim(
            "V1",
            "Algorithm 1 as printed returns the inner solution of its last u, also where the last "
            "step still moved u (`LookAhead` with a cold start).",
            "w = Optimize(u, w_0)",
            f"|grad_w f| at most {order['residual after 3 cold steps']:.0e} after 3 steps",
            order["residual after 3 cold steps"] <= 1e-10,
        ),
    ]


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
