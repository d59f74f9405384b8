"""G7: how fast iterative and implicit differentiation approach the hypergradient.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], section "Error Rates for AID and ITD": with an inner map that contracts with the
constant q, t inner steps, and k = t steps for the linear system, the error is `O(t q^t)` for ITD
and `O(q^t)` for AID-FP. Conjugate gradients (AID-CG) need far fewer steps than the fixed-point
method once the inner point is good. The memory of ITD grows with t; that of AID does not.

All problems have one penalty per feature, so that the mixed derivative (and for logistic regression
the Hessian) depends on w: where both are constant, ITD and AID-FP are the same vector. The inner
steps are gradient steps of size 1 / L, and q = 1 - mu / L with the extreme eigenvalues of the
Hessian at the solution. The error of AID-FP is c q^t once the share of the other eigenvalues has
died out.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from _tutorial import (
    Claim,
    Measured,
    estimate,
    fast,
    inner_solution,
    panels,
    relative,
    run,
    temporary_bytes,
)
from sklearn.datasets import load_breast_cancer, load_diabetes

import bilevel

METHODS = ["ITD", "AID-FP", "AID-CG"]
FIT = (1e-12, 1e-3)  # the relative errors of AID-FP that its rate is fitted to
T_MEMORY = [10, 1000]
K_JUDGED = 30  # the number of linear steps at which the solvers are compared
K_CG = [1, 3, 10, 20, K_JUDGED, 60, 100]
K_CG_FULL = [1, 2, 3, 5, 7, 10, 13, 16, 20, 25, K_JUDGED, 40, 60, 100]
BOTTOM = 1e-10  # errors below this are rounding, and no part of a rate


class Case(NamedTuple):
    """Objectives with their data, u, and what is known of the solution."""

    inner: Any
    outer: Any
    inner_data: Any
    outer_data: Any
    u: Any
    w_star: Any
    mu: float
    top: float

    @property
    def q(self) -> float:
        return 1 - self.mu / self.top

    @property
    def problem(self) -> bilevel.BilevelProblem:
        return bilevel.BilevelProblem(self.outer, self.inner, self.outer_data, self.inner_data)

    def estimate(self, estimator, solver, inner_data, outer_data, u, w0):
        problem = bilevel.BilevelProblem(self.outer, self.inner, outer_data, inner_data)
        return estimate(problem, estimator, solver, u, w0)

    def args(self):
        return self.inner_data, self.outer_data, self.u, jnp.zeros_like(self.w_star)

    def gradient(self, w, solver):
        return bilevel.implicit_gradient(self.problem, self.u, w, solver).grad

    def truth(self):
        return fast(lambda w: self.gradient(w, lx.Cholesky()))(self.w_star)


def half_squares(u, w, batch):
    """Half the mean squared error."""
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def logistic(u, w, batch):
    """Mean logistic loss, labels in {-1, 1}."""
    x, y = batch
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


def penalised(loss):
    """With one penalty `exp(u_i)` per feature."""
    return lambda u, w, batch: loss(u, w, batch) + 0.5 * jnp.vdot(jnp.exp(u), w**2)


def solved(inner, outer, inner_data, outer_data, u) -> Case:
    """A case with its solution, by Newton's method, and the extreme eigenvalues there."""
    w = jnp.zeros(u.size)
    hessian, gradient = fast(jax.hessian(inner, 1)), fast(jax.grad(inner, 1))
    for _ in range(30):
        w = w - jnp.linalg.solve(hessian(u, w, inner_data), gradient(u, w, inner_data))
    eigenvalues = np.linalg.eigvalsh(hessian(u, w, inner_data))
    return Case(inner, outer, inner_data, outer_data, u, w, eigenvalues[0], eigenvalues[-1])


def synthetic(eigenvalues, seed: int = 0) -> Case:
    """A quadratic inner problem, `diag(exp(u))` included, of a given spectrum."""
    rng = np.random.default_rng(seed)
    d = len(eigenvalues)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    u = jnp.asarray(np.log(eigenvalues[0]) + 0.3 * rng.normal(size=d))
    a = basis @ np.diag(eigenvalues) @ basis.T - np.diag(np.exp(u))
    data = jnp.asarray(a)[None], jnp.asarray(rng.normal(size=(1, d)))

    def quadratic(u, w, batch):
        (a,), (b,) = batch
        return 0.5 * w @ a @ w - b @ w

    def distance(u, w, batch):
        return 0.5 * jnp.sum((w - batch[0]) ** 2)

    return solved(penalised(quadratic), distance, data, jnp.asarray(rng.normal(size=(1, d))), u)


def real(name: str, penalty: float) -> Case:
    """Ridge or logistic regression on standardised rows of scikit-learn; every other row is outer."""
    load = load_diabetes if name == "ridge" else load_breast_cancer
    x, y = map(np.asarray, load(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    y = (y - y.mean()) / y.std() if name == "ridge" else 2.0 * y - 1
    rows, outer_rows = [(jnp.asarray(x[i::2]), jnp.asarray(y[i::2])) for i in (0, 1)]
    loss = half_squares if name == "ridge" else logistic
    spread = 0.3 * np.random.default_rng(1).normal(size=x.shape[1])
    return solved(penalised(loss), loss, rows, outer_rows, jnp.asarray(np.log(penalty) + spread))


def ridge_on_cancer() -> Case:
    """Least squares on the labels of breast cancer, 30 features, condition number about 1e3."""
    case = real("logistic", 0.01)
    return solved(penalised(half_squares), half_squares, case.inner_data, case.outer_data, case.u)


def estimator(method: str, step: float, t: int) -> bilevel.AbstractHypergradient:
    """The tutorial's methods, with k = t."""
    if method == "ITD":
        return bilevel.ITD()
    solver = bilevel.Neumann(step, t) if method == "AID-FP" else bilevel.CG(0.0, 0.0, t)
    return bilevel.AID(solver, warm_start=False)


def curves(case: Case, counts: list[int]) -> dict[str, Any]:
    """Errors of all methods at k = t in `counts`, the rate of AID-FP and the ratio ITD / AID-FP."""
    truth = case.truth()
    step, errors = 1 / case.top, {method: [] for method in METHODS}
    for method in METHODS:
        for t in counts:
            solver = bilevel.GradientInner(optax.sgd(step), t)
            run = fast(partial(case.estimate, estimator(method, step, t), solver))
            errors[method].append(relative(run(*case.args()), truth))
    fp = np.array(errors["AID-FP"])
    fitted = (fp > FIT[0]) & (fp < FIT[1])
    slope = np.polyfit(np.array(counts)[fitted], np.log(fp[fitted]), 1)[0]
    ratio = (np.array(errors["ITD"]) / fp)[fp > FIT[0]]
    return {
        "q": case.q,
        "condition": case.top / case.mu,
        "t": counts,
        "errors": errors,
        "fitted_t": np.array(counts)[fitted].tolist(),
        "slope_over_log_q": float(slope / np.log(case.q)),
        "itd_over_fp": ratio.tolist(),
    }


def at_convergence(case: Case, t: int, counts: list[int]) -> dict[str, Any]:
    """Errors of k in `counts` steps of the linear solvers alone, at the result of t inner steps."""
    truth, step = case.truth(), 1 / case.top
    inner = bilevel.GradientInner(optax.sgd(step), t)
    w = jax.jit(partial(inner_solution, case.problem, inner, case.u))(jnp.zeros_like(case.w_star))
    # Without a tolerance, Richardson's method from zero is the fixed-point method for any k.
    solvers = {
        "AID-FP": lambda k: bilevel.Richardson(step, rtol=0.0, max_steps=k),
        "AID-CG": lambda k: bilevel.CG(0.0, 0.0, k),
    }
    errors = {}
    for name, solver in solvers.items():
        runs = (fast(partial(case.gradient, solver=solver(k))) for k in counts)
        errors[name] = [relative(run(w), truth) for run in runs]
    return {
        "features": case.u.size,
        "condition": case.top / case.mu,
        "spectrum": np.linalg.eigvalsh(
            fast(jax.hessian(case.inner, 1))(case.u, w, case.inner_data)
        ).tolist(),
        "t": t,
        "inner_error": relative(w, case.w_star),
        "k": counts,
        "errors": errors,
    }


def memory(case: Case) -> dict[str, list[int]]:
    """Temporary bytes of the compiled estimates, the data being arguments."""
    step, found = 1 / case.top, {}
    for method in METHODS:
        found[method] = []
        for t in T_MEMORY:
            solver = bilevel.GradientInner(optax.sgd(step), t)
            run = partial(case.estimate, estimator(method, step, t), solver)
            found[method].append(temporary_bytes(fast(run).lower(*case.args()).compile()))
    return found


def measure(full: bool) -> Measured:
    """All curves. The quick run has fewer problems, and three t for each."""
    with jax.enable_x64(True):
        cases = {
            f"synthetic {mu}": synthetic(np.r_[mu, np.linspace(2 * mu, 1, 19)])
            for mu in ((0.02, 0.05, 0.1, 0.2) if full else (0.2,))
        }
        cases |= {"ridge": real("ridge", 0.05), "logistic": real("logistic", 0.02)}
        # In units of the time constant of q.
        times = np.linspace(1, 25, 25) if full else np.array([9, 16, 24])
        rates = {
            name: curves(case, [round(x) for x in times / -np.log(case.q)])
            for name, case in cases.items()
        }
        linear = {
            "diabetes": (real("ridge", 1e-4), 40_000),
            "logistic": (cases["logistic"], 5_000),
            "breast cancer, least squares": (ridge_on_cancer(), 40_000),
        }
        spread = synthetic(np.geomspace(1e-3, 1, 200))
        linear["200 log-spaced eigenvalues"] = (spread, 40_000)
        ks = K_CG_FULL if full else K_CG
        converged = {name: at_convergence(case, t, ks) for name, (case, t) in linear.items()}
        used = memory(cases["logistic"])
    return {
        "settings": {
            "t_over_time_constant": times,
            "fit": FIT,
            "step": "1 / L",
            "t_memory": T_MEMORY,
        },
        "seeds": [0],
        "rates": rates,
        "converged": converged,
        "temporary_bytes": used,
    }


def draw(measured: Measured):
    """One panel for each problem, one for the linear solvers alone, one for memory."""
    rates, converged = measured["rates"], measured["converged"]
    columns = -(-(len(rates) + 2) // 2)
    figure, axes = panels(2, columns, (3.6 * columns, 6.6))
    unused = iter(axes.flat)
    styles = {"ITD": ("C3", "o"), "AID-FP": ("C0", "s"), "AID-CG": ("C2", "^")}
    for name, case in rates.items():
        axis, t = next(unused), np.array(case["t"])
        for method, errors in case["errors"].items():
            color, marker = styles[method]
            axis.semilogy(t, errors, color=color, marker=marker, ms=4, lw=1.3, label=method)
        at = case["t"].index(case["fitted_t"][-1])
        guide = case["errors"]["AID-FP"][at] * case["q"] ** (t - float(t[at]))
        axis.semilogy(t, 0.1 * guide, "k:", lw=1, label="slope of $q^t$")
        axis.set(title=f"{name}, $q$ = {case['q']:.3f}", xlabel="$t = k$", ylim=(1e-14, 30))
    axis = next(unused)
    for (name, case), line in zip(converged.items(), ["-", "-.", "--", ":"], strict=False):
        for method, errors in case["errors"].items():
            axis.loglog(case["k"], errors, line, color=styles[method][0], lw=1.3)
        axis.plot([], [], line, color="k", lw=1.3, label=name)
    axis.set(title="linear solvers at a converged inner point", xlabel="$k$", ylim=(1e-14, 30))
    axis.axvline(K_JUDGED, color="0.8", lw=1, zorder=0)
    axis.legend(fontsize=7, loc="lower left")
    axis = next(unused)
    for method, used in measured["temporary_bytes"].items():
        color, marker = styles[method]
        axis.loglog(T_MEMORY, np.array(used) / 1e3, color=color, marker=marker, ms=4, label=method)
    axis.set(title="temporary memory (kB), logistic", xlabel="$t = k$")
    for axis in unused:
        axis.axis("off")
    axes[0, 0].legend(fontsize=8)
    for row in axes:
        row[0].set_ylabel("relative error of the hypergradient")
    for axis in axes.flat:
        axis.title.set_fontsize(10)
    return figure


def claims(measured: Measured) -> list[Claim]:
    """One claim for each problem and statement."""
    found = []
    for name, case in measured["rates"].items():
        slope, ratio, t = case["slope_over_log_q"], case["itd_over_fp"], case["fitted_t"]
        found += [
            Claim(
                "G7",
                f"On the {name} problem the error of AID-FP falls as q^t.",
                "slope log q",
                f"slope {slope:.3f} log q",
                0.9 <= slope <= 1.1,
                f"The line log error = a + b t is fitted to {len(t)} t from {t[0]} to {t[-1]}.",
            ),
            Claim(
                "G7",
                f"On the {name} problem the error of ITD has a factor that grows with t.",
                "t q^t against q^t",
                f"ITD / AID-FP {', '.join(f'{x:.3g}' for x in ratio[:: max(len(ratio) // 5, 1)])}",
                bool(np.all(np.diff(ratio) > 0)),
            ),
        ]
    for name, case in measured["converged"].items():
        at = case["k"].index(K_JUDGED)
        cg, fp = (case["errors"][method][at] for method in ("AID-CG", "AID-FP"))
        found.append(
            Claim(
                "G7",
                f"At a converged inner point of {name} with k = {K_JUDGED}, AID-CG is accurate, and "
                "AID-FP is not.",
                "far more accurate (our thresholds: 1e-6, 1e-2)",
                f"{cg:.1e} against {fp:.1e}",
                cg < 1e-6 and fp > 1e-2,
                f"There are {case['features']} features, and the condition number is "
                f"{case['condition']:.0f}. Within k steps CG solves a system whose matrix has k "
                "different eigenvalues; with many of them, log-spaced, it has the rate of the next "
                "claim and no more.",
            )
        )
        found.append(_cg_rate(name, case))
    growth = {name: used[-1] / used[0] for name, used in measured["temporary_bytes"].items()}
    found.append(
        Claim(
            "G7",
            f"From t = {T_MEMORY[0]} to {T_MEMORY[-1]} the memory of ITD grows; that of AID does not.",
            "O(t) against O(1)",
            ", ".join(f"{name} times {x:.2f}" for name, x in growth.items()),
            growth["ITD"] > 10 and max(growth["AID-FP"], growth["AID-CG"]) <= 1.01,
        )
    )
    return found


def _cg_rate(name: str, case: dict[str, Any]) -> Claim:
    """The fitted rate of AID-CG against p = (sqrt(kappa) - 1) / (sqrt(kappa) + 1)."""
    root = np.sqrt(case["condition"])
    bound = (root - 1) / (root + 1)
    k, errors = np.array(case["k"]), np.array(case["errors"]["AID-CG"])
    kept = errors > BOTTOM
    slope = np.polyfit(k[kept], np.log(errors[kept]), 1)[0]
    return Claim(
        "G7",
        f"At a converged inner point of {name} the error of AID-CG falls at least as fast as p^k, "
        "p = (sqrt(kappa) - 1) / (sqrt(kappa) + 1).",
        "p^k",
        f"fitted rate {np.exp(slope):.4f} per step, p = {bound:.4f}",
        np.exp(slope) <= bound,
        f"The line is fitted to the {int(kept.sum())} errors above {BOTTOM:g}, at k = "
        f"{', '.join(map(str, k[kept]))}.",
    )


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
