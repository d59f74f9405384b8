"""V2, V4, V10: what approximate inverses do to small curvature, and which problems they solve exactly.

Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in overparameterized bilevel
optimization", Figure 6 and equation (5) [vicol2022][]: the eigenvalues of the inverse, of the damped
inverse and of the truncated Neumann series, as the library's solvers give them on a diagonal operator.
Appendix E: K unrolled gradient steps from the solution have the hypergradient of K Neumann terms.
Appendix D: the best response to a proximal objective has the hypergradient of the damped inverse.

Equation (5) sums j = 0 to K, which is K + 1 terms, and compares with eps = 1 / (alpha K); the K steps
of Appendix E are K terms. We take K terms, for which the two sides agree at both ends of the spectrum
up to 1/K of their size, and print the gap with K + 1 terms too.

V2: Algorithms 4, 5 and 6, the truncated CG of Appendix F.2 and the exact hypergradient by a
pseudo-inverse are also written in NumPy, after a few inner steps, and the library is compared with
them.

The appendices say that neither needs a quadratic: so each is tried on inner objectives
`sum_i phi((X w - u)_i)` with `phi(r) = r^2 / 2` and with one whose curvature changes (`lopsided`), at
one of their solutions, where X has fewer rows than columns (a singular Hessian) or more.
"""

import sys
from collections.abc import Callable
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bias import distance, hypergradient
from _frame import Claim, panels, run

ALPHA = 1.0
TERMS = (1, 5, 20, 100)
TOLERANCE = 1e-12
NEWTON_STEPS, DAMPINGS = 8, (1.0, 0.1, 0.01)
INNER = 6  # steps before the hypergradients of V2


def applied_inverse(
    curvature: jax.Array, solver: lx.AbstractLinearSolver, damping: float = 0.0
) -> jax.Array:
    """The diagonal of the inverse that `implicit_gradient` applies: here its gradient is `H^-1 1`."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(w),
        inner=lambda u, w, _: 0.5 * jnp.vdot(w, curvature * w) - jnp.vdot(u, w),
    )
    u = jnp.zeros(curvature.size)
    return bilevel.implicit_gradient(problem, u, u, solver, damping=damping).grad


@jax.jit
def applied_inverses(curvature: jax.Array) -> tuple[jax.Array, dict[int, tuple[jax.Array, ...]]]:
    """The exact one, and for each K that of K terms, the damped one, and the damped one by CG."""
    cg = bilevel.CG(rtol=1e-15, max_steps=4 * curvature.size)
    families = {}
    for terms in TERMS:
        eps = 1 / (ALPHA * terms)
        families[terms] = (
            applied_inverse(curvature, bilevel.Neumann(ALPHA, terms)),
            applied_inverse(curvature, lx.LU(), eps),
            applied_inverse(curvature, cg, eps),
        )
    return applied_inverse(curvature, lx.LU()), families


def neumann_formula(curvature: np.ndarray, terms: int) -> np.ndarray:
    """`(1 - (1 - a l)^K) / l` without cancellation."""
    return -np.expm1(terms * np.log1p(-ALPHA * curvature)) / curvature


def largest(one: np.ndarray, other: np.ndarray) -> float:
    """The largest entry of `|one - other| / |other|`."""
    return float(np.max(np.abs(one - other) / np.abs(other)))


def spectra(size: int) -> tuple[Any, dict[str, Any]]:
    """V4: the curves of the three families, and how far they are from their formulas."""
    curvature = np.geomspace(1e-5, 0.999, size) / ALPHA
    exact, applied = jax.tree.map(np.asarray, applied_inverses(jnp.asarray(curvature)))
    families: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    numbers: dict[str, Any] = {"inverse": largest(exact, 1 / curvature), "terms": {}}
    for terms in TERMS:
        eps = 1 / (ALPHA * terms)
        neumann, damped, by_cg = applied[terms]
        families[terms] = neumann, damped
        ratio = abs(neumann / damped - 1)
        numbers["terms"][str(terms)] = {
            "neumann": largest(neumann, neumann_formula(curvature, terms)),
            "damped": largest(damped, 1 / (curvature + eps)),
            "damped_cg": largest(by_cg, 1 / (curvature + eps)),
            "gap": largest(neumann, damped),
            "gap_at": float(curvature[ratio.argmax()] / eps),
            "gap_at_ends": float(max(ratio[[0, -1]])),
            "gap_one_more_term": largest(neumann_formula(curvature, terms + 1), damped),
        }
    return (curvature, exact, families), numbers


def half_square(r: jax.Array) -> jax.Array:
    """The curvature is 1."""
    return 0.5 * r**2


def lopsided(r: jax.Array) -> jax.Array:
    """Least at 0; the curvature is between 1 and 1.5, greatest at -1 and not even at 0."""
    return 0.5 * r**2 + 2 * (jax.nn.softplus(r + 1) - jax.nn.sigmoid(1.0) * r)


LOSSES = {"quadratic": half_square, "not quadratic": lopsided}
ROWS = {"singular": (7, 12), "positive definite": (20, 12)}


class Case(eqx.Module):
    """`f(u, w) = sum_i phi((X w - u)_i)`, an outer objective that is not quadratic, and a solution."""

    x: jax.Array
    target: jax.Array
    u: jax.Array
    w: jax.Array  # a minimiser; in the singular case one of many
    step: jax.Array  # at most 1 / L
    phi: Callable[[jax.Array], jax.Array] = eqx.field(static=True)

    def inner(self, u: jax.Array, w: jax.Array) -> jax.Array:
        """f."""
        return jnp.sum(self.phi(self.x @ w - u))

    @property
    def problem(self) -> bilevel.BilevelProblem:
        """The two objectives."""
        return bilevel.BilevelProblem(
            outer=lambda u, w, _: jnp.sum(jnp.log(jnp.cosh(w - self.target))) + 0.1 * jnp.sum(u**2),
            inner=lambda u, w, _: self.inner(u, w),
        )

    def estimate(
        self, estimator: bilevel.AbstractHypergradient, inner: bilevel.AbstractInnerSolver, w: Any
    ) -> jax.Array:
        """One hypergradient, with the inner solver started at `w`."""
        return hypergradient(self.problem, estimator, inner, self.u, w)


def case(kind: str, loss: str, seed: int) -> Case:
    """A random inner problem with a positive definite or a singular Hessian, at a solution."""
    rows, columns = ROWS[kind]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)) / np.sqrt(columns)
    u, target = rng.normal(size=rows), rng.normal(size=columns)
    pseudo = np.linalg.pinv(x)
    w = pseudo @ u + (np.eye(columns) - pseudo @ x) @ rng.normal(size=columns)
    step = 1 / (1.5 * np.linalg.norm(x, 2) ** 2)
    made = Case(*map(jnp.asarray, (x, target, u, w, step)), phi=LOSSES[loss])
    if kind == "positive definite":
        best = eqx.filter_jit(newton)(made, made.u, made.w, 0.0, made.w)
        made = eqx.tree_at(lambda c: c.w, made, best)
    return made


def newton(case: Case, u: jax.Array, start: jax.Array, eps: Any, centre: jax.Array) -> jax.Array:
    """The minimiser of `f(u, w) + eps / 2 |w - centre|^2`, by steps that can be differentiated."""

    def objective(w: jax.Array) -> jax.Array:
        return case.inner(u, w) + 0.5 * eps * jnp.sum((w - centre) ** 2)

    slope, hessian = jax.grad(objective), jax.hessian(objective)

    def step(w: jax.Array, _: None) -> tuple[jax.Array, None]:
        return w - jnp.linalg.solve(hessian(w), slope(w)), None

    return jax.lax.scan(step, start, length=NEWTON_STEPS)[0]


def unrolling(case: Case) -> dict[str, dict[str, jax.Array]]:
    """V10 (i): unrolled steps from the solution, or the last K of many, against K Neumann terms."""
    tx = optax.sgd(case.step)
    there = bilevel.ClosedForm(lambda u, _: case.w)
    away = case.w + 0.1
    many = bilevel.GradientInner(tx, 5000)
    slope = jax.grad(case.inner, argnums=1)
    # In the singular case the run ends at another minimiser, where we take the series.
    end = bilevel.ClosedForm(
        lambda u, _: jax.lax.fori_loop(0, 5000, lambda _, w: w - case.step * slope(case.u, w), away)
    )
    found = {}
    for terms in TERMS:
        neumann = bilevel.AID(bilevel.Neumann(case.step, terms), warm_start=False)
        few = bilevel.GradientInner(tx, terms)
        found[str(terms)] = {
            "from_solution": distance(
                case.estimate(bilevel.ITD(), few, case.w), case.estimate(neumann, there, case.w)
            ),
            "last_of_many": distance(
                case.estimate(bilevel.ITD(truncate=terms), many, away),
                case.estimate(neumann, end, away),
            ),
        }
    return found


def proximal(case: Case) -> dict[str, jax.Array]:
    """V10 (ii): the derivative of the proximal best response against the damped inverse."""
    there = bilevel.ClosedForm(lambda u, _: case.w)

    def apart(eps: jax.Array) -> jax.Array:
        response = bilevel.ClosedForm(lambda u, _: newton(case, u, case.w + 0.1, eps, case.w))
        return distance(
            case.estimate(bilevel.ITD(), response, case.w),
            case.estimate(bilevel.AID(lx.LU(), damping=eps), there, case.w),
        )

    return dict(zip(map(str, DAMPINGS), jax.lax.map(apart, jnp.array(DAMPINGS)), strict=True))


def printed_algorithms(case: Case) -> dict[str, float]:
    """V2: the library's hypergradients after `INNER` steps from zero, against NumPy."""
    x, u, target, step = (np.asarray(a) for a in (case.x, case.u, case.target, case.step))
    first, second = (jax.vmap(f) for f in (jax.grad(case.phi), jax.grad(jax.grad(case.phi))))
    w, jacobian = np.zeros(x.shape[1]), np.zeros((x.shape[1], len(u)))
    for _ in range(INNER):
        r = jnp.asarray(x @ w - u)
        d = x.T * np.asarray(second(r))
        jacobian = jacobian - step * (d @ x @ jacobian - d)
        w = w - step * x.T @ np.asarray(first(r))
    d = x.T * np.asarray(second(jnp.asarray(x @ w - u)))
    hessian, mixed = d @ x, d  # dw/du = H^-1 M
    slope, direct, eye = np.tanh(w - target), 0.2 * u, np.eye(len(w))
    powers = [np.linalg.matrix_power(eye - step * hessian, j) for j in range(TERMS[1])]
    by_hand = {
        "Algorithm 4 (unrolled)": jacobian.T @ slope,
        "Algorithm 5 (damped)": mixed.T @ np.linalg.solve(hessian + 0.1 * eye, slope),
        "Algorithm 6 (Neumann)": mixed.T @ (step * sum(powers) @ slope),
        "truncated CG": mixed.T @ cg_by_hand(hessian, slope, 4),
        "exact (pseudo-inverse)": mixed.T @ (np.linalg.pinv(hessian, 1e-10) @ slope),
    }
    linear = {
        "Algorithm 5 (damped)": (lx.LU(), 0.1),
        "Algorithm 6 (Neumann)": (bilevel.Neumann(case.step, TERMS[1]), 0.0),
        "truncated CG": (bilevel.CG(0.0, 0.0, 4), 0.0),
        "exact (pseudo-inverse)": (lx.SVD(rcond=1e-10), 0.0),
    }
    inner = bilevel.GradientInner(optax.sgd(case.step), INNER)

    @jax.jit
    def ours() -> dict[str, jax.Array]:
        start, found = jnp.zeros(len(w)), {}
        for name in by_hand:
            estimator: Any = bilevel.ITD()
            if name in linear:
                solver, damping = linear[name]
                estimator = bilevel.AID(solver, damping=damping, warm_start=False)
            found[name] = case.estimate(estimator, inner, start)
        return found

    found = ours()
    return {name: float(distance(found[name], direct + by_hand[name])) for name in by_hand}


def cg_by_hand(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Conjugate gradients from zero."""
    x, r = np.zeros_like(b), b.copy()
    p = r.copy()
    for _ in range(steps):
        ap = a @ p
        length = (r @ r) / (p @ ap)
        x, after = x + length * p, r - length * ap
        p, r = after + (after @ after) / (r @ r) * p, after
    return x


def measure(full: bool) -> dict[str, Any]:
    """V4, and V10 on random problems of four kinds."""
    seeds = range(20 if full else 3)
    unrolled, prox, printed = {}, {}, {}
    with jax.enable_x64(True):
        curves, numbers = spectra(200 if full else 80)
        for kind in ROWS:
            for loss in LOSSES:
                draws = [case(kind, loss, seed) for seed in seeds]
                cases = jax.tree.map(lambda *x: jnp.stack(x), *draws)
                both = jax.jit(jax.vmap(lambda case: (unrolling(case), proximal(case))))(cases)
                name = f"{kind}, {loss}"
                printed[name] = printed_algorithms(draws[0])
                unrolled[name], prox[name] = jax.tree.map(lambda x: x.tolist(), both)
    return {
        "settings": {"alpha": ALPHA, "terms": list(TERMS), "tolerance": TOLERANCE},
        "seeds": list(seeds),
        "spectra": numbers,
        "printed algorithms": printed,
        "unrolling": unrolled,
        "proximal": prox,
        "figure": curves,
    }


def draw(measured: dict[str, Any]) -> Figure:
    """Figure 6, for several K, and the ratio of the two families."""
    curvature, exact, families = measured["figure"]
    figure, (left, right) = panels(1, 2, (11, 4.4))
    left.loglog(curvature, exact, "k", label=r"$H^{-1}$")
    for i, (terms, (neumann, damped)) in enumerate(families.items()):
        what = rf"$(H + \epsilon I)^{{-1}}$, K = {terms}"
        left.loglog(curvature, neumann, f"C{i}", label=f"Neumann, K = {terms}")
        left.loglog(curvature, damped, f"C{i}--", label=what)
        right.semilogx(curvature, neumann / damped, f"C{i}", label=f"K = {terms}")
    left.set(xlabel=r"eigenvalue $\lambda$ of H", ylabel="eigenvalue of the (approximate) inverse")
    left.set_ylim(0.3, 3e3)
    right.set(xlabel=r"eigenvalue $\lambda$ of H", ylabel="Neumann / damped")
    right.set_title(r"the two sides of equation (5), $\epsilon = 1/(\alpha K)$", fontsize=10)
    for axis in (left, right):
        axis.legend(fontsize=8)
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """From the numbers alone."""
    numbers = measured["spectra"]
    by_terms = numbers["terms"]
    formula = max(
        numbers["inverse"],
        *(row[key] for row in by_terms.values() for key in ("neumann", "damped", "damped_cg")),
    )
    gaps = {terms: row["gap"] for terms, row in by_terms.items()}
    ends = by_terms["100"]["gap_at_ends"]
    one_more = ", ".join(f"{100 * row['gap_one_more_term']:.0f}%" for row in by_terms.values())
    equal = [
        Claim(
            "V10",
            sentence.format(*name.split(", ")),
            "equal",
            f"relative difference at most {error:.1e}",
            error <= TOLERANCE,
        )
        for sentence, part in (
            (
                "K unrolled steps from the solution have the hypergradient of K Neumann terms if the "
                "Hessian is {} and the inner objective {} (Appendix E).",
                "unrolling",
            ),
            (
                "The proximal best response has the hypergradient of the damped inverse if the "
                "Hessian is {} and the inner objective {} (Appendix D).",
                "proximal",
            ),
        )
        for name, error in ((k, max(jax.tree.leaves(x))) for k, x in measured[part].items())
    ]
    by_hand: dict[str, dict[str, float]] = {}
    for kind, found in measured["printed algorithms"].items():
        for name, error in found.items():
            by_hand.setdefault(name, {})[kind] = error
    # CG is for consistent systems.
    outside = {k: x for k, x in by_hand["truncated CG"].items() if k.startswith("singular")}
    by_hand["truncated CG"] = {k: x for k, x in by_hand["truncated CG"].items() if k not in outside}
    return [
        *(
            Claim(
                "V2",
                f"{name}: the hypergradient of the library is that of the printed formulas in NumPy, "
                f"after {INNER} inner steps.",
                "formulas",
                f"relative difference at most {max(errors.values()):.1e} (inner objectives: "
                f"{'; '.join(errors)})",
                max(errors.values()) <= 1e-9,
                "With a singular Hessian the right-hand side is not in its range here. The steps of "
                "CG then enlarge the residual, and the library returns the iterate at which it was "
                f"smallest: relative difference {max(outside.values()):.2f}."
                if name == "truncated CG"
                else "",
            )
            for name, errors in by_hand.items()
        ),
        Claim(
            "V4",
            "The eigenvalues are 1 / l, 1 / (l + eps) and (1 - (1 - a l)^K) / l (Figure 6).",
            "formulas",
            f"largest relative difference {formula:.1e}",
            formula <= TOLERANCE,
        ),
        Claim(
            "V4",
            "K Neumann terms approximate the damped inverse with eps = 1 / (a K) (equation (5)).",
            "approximately equal",
            "largest relative gap "
            + ", ".join(f"{100 * gap:.0f}% at K = {terms}" for terms, gap in gaps.items()),
            max(gaps[terms] for terms in ("20", "100")) <= 1 / 3 and ends <= 0.011,
            "The gap is largest where l is about 1.8 eps. At both ends of the spectrum it is at most "
            f"{100 * ends:.1f}% for K = 100. A single term is wrong by the factor 1 + a l. With the "
            f"K + 1 terms of equation (5) the gaps are {one_more}.",
        ),
        *equal,
    ]


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
