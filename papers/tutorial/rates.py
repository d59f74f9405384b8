"""G7: how fast iterative and implicit differentiation approach the hypergradient.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], section "Error Rates for AID and ITD": with an inner map that contracts with the
constant q, t inner steps, and k = t steps for the linear system, the error is `O(t q^t)` for ITD
and `O(q^t)` for AID-FP. Conjugate gradients (AID-CG) need far fewer steps than the fixed-point
method once the inner point is good. The memory of ITD grows with t; that of AID does not.

The errors are those of four kinds of problems on synthetic data, at random values of lambda, as in
the tutorial's figure (which names neither the problems nor their sizes): logistic regression with
one penalty per feature, kernel ridge regression with its penalty and its width, regression biased to
a point, and a linear representation. The inner steps are gradient steps of size 1 / L, and
q = 1 - mu / L with the extreme eigenvalues of the Hessian at each lambda's solution. The error of
AID-FP is c q^t once the share of the other eigenvalues has died out. Where neither the Hessian nor
the mixed derivative depends on w, as in the biased regression, ITD and AID-FP are the same vector.

The linear solvers alone are compared at converged inner points of real data with one penalty per
feature. And a problem is stated twice, as a minimum and as the fixed point of its gradient step (G1).
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


DRAWS, ROWS, SIZE = 10, 60, 12  # values of lambda; rows and features of the synthetic problems


class Family(NamedTuple):
    """A problem of the figure, and its random values of lambda, stacked."""

    inner: Any
    outer: Any
    inner_data: Any
    outer_data: Any
    us: Any
    dim_w: int

    @property
    def problem(self) -> bilevel.BilevelProblem:
        return bilevel.BilevelProblem(self.outer, self.inner, self.outer_data, self.inner_data)


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


def families(seed: int = 0) -> dict[str, Family]:
    """The four problems."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=SIZE)

    def rows() -> tuple[Any, Any]:
        x = rng.normal(size=(ROWS, SIZE)) * np.sqrt(np.geomspace(1, 0.1, SIZE))
        return jnp.asarray(x), jnp.asarray(x @ true + 0.5 * rng.normal(size=ROWS))

    (x, y), (x_outer, y_outer) = rows(), rows()
    signs, signs_outer = jnp.sign(y), jnp.sign(y_outer)

    def kernel(a: Any, b: Any, log_width: Any) -> Any:
        return jnp.exp(-((a[:, None] - b[None]) ** 2).sum(-1) * jnp.exp(-log_width) / 2)

    def kernel_ridge(u: Any, w: Any, batch: Any) -> Any:
        (a,), (b,) = batch
        gram = kernel(a, a, u[1]) + jnp.exp(u[0]) * jnp.eye(ROWS)
        return 0.5 * w @ gram @ w - b @ w

    def kernel_loss(u: Any, w: Any, batch: Any) -> Any:
        (a,), (b,) = batch
        return 0.5 * jnp.mean((kernel(a, x, u[1]) @ w - b) ** 2)

    def biased(u: Any, w: Any, batch: Any) -> Any:
        return half_squares(u, w, batch) + 0.1 * jnp.sum((w - u) ** 2)

    def represented(u: Any, w: Any, batch: Any) -> Any:
        a, b = batch
        return half_squares(u, w, (a @ u, b)) + 0.05 * jnp.vdot(w, w)

    def represented_loss(u: Any, w: Any, batch: Any) -> Any:
        a, b = batch
        return half_squares(u, w, (a @ u, b))

    def draws(*shape: int, scale: float, shift: Any = 0.0) -> Any:
        return jnp.asarray(shift + scale * rng.normal(size=(DRAWS, *shape)))

    whole, whole_outer = (x[None], y[None]), (x_outer[None], y_outer[None])
    return {
        "logistic": Family(
            *(penalised(logistic), logistic, (x, signs), (x_outer, signs_outer)),
            *(draws(SIZE, scale=0.3, shift=np.log(0.05)), SIZE),
        ),
        "kernel ridge": Family(
            *(kernel_ridge, kernel_loss, whole, whole_outer),
            *(draws(2, scale=0.1, shift=np.log([1.0, SIZE])), ROWS),
        ),
        "biased regression": Family(
            *(biased, half_squares, (x, y), (x_outer, y_outer)),
            *(draws(SIZE, scale=1.0), SIZE),
        ),
        "linear representation": Family(
            *(represented, represented_loss, (x, y), (x_outer, y_outer)),
            *(draws(SIZE, 4, scale=0.1, shift=rng.normal(size=(SIZE, 4)) / SIZE**0.5), 4),
        ),
    }


def at_solutions(family: Family) -> tuple[Any, Any, Any, Any]:
    """For each lambda: the inner solution, mu, L and the hypergradient, by Newton's method."""
    problem = family.problem

    def one(u: Any) -> Any:
        def slope(w: Any) -> Any:
            return jax.grad(family.inner, 1)(u, w, family.inner_data)

        def newton(_: int, w: Any) -> Any:
            return w - jnp.linalg.solve(jax.jacobian(slope)(w), slope(w))

        w = jax.lax.fori_loop(0, 12, newton, jnp.zeros(family.dim_w))
        values = jnp.linalg.eigvalsh(jax.jacobian(slope)(w))
        grad = bilevel.implicit_gradient(problem, u, w, lx.Cholesky()).grad
        return w, values[0], values[-1], grad

    return jax.jit(jax.vmap(one))(family.us)


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


def curves(family: Family, times: np.ndarray) -> dict[str, Any]:
    """Errors of all methods at k = t, `(t, lambda)`; of each lambda the rate of AID-FP over log q.

    `times` are in units of the time constant of the largest q.
    """
    _, mu, top, truth = at_solutions(family)
    q = np.asarray(1 - mu / top)
    counts = [round(x) for x in times / -np.log(q.max())]
    start, errors = jnp.zeros(family.dim_w), {}
    for method in METHODS:
        found = []
        for t in counts:

            def one(u: Any, top: Any, method: str = method, t: int = t) -> Any:
                solver = bilevel.GradientInner(optax.sgd(1 / top), t)
                return estimate(family.problem, estimator(method, 1 / top, t), solver, u, start)

            ours = fast(jax.vmap(one))(family.us, top)
            found.append([relative(a, b) for a, b in zip(ours, truth, strict=True)])
        errors[method] = np.array(found)
    slopes = []
    for k, error in enumerate(errors["AID-FP"].T):
        fitted = (error > FIT[0]) & (error < FIT[1])
        line = np.full(2, np.nan)
        if fitted.sum() > 1:
            line = np.polyfit(np.array(counts)[fitted], np.log(error[fitted]), 1)
        slopes.append(float(line[0] / np.log(q[k])))
    kept = errors["AID-FP"].min(axis=1) > FIT[0]
    ratio = (errors["ITD"] / errors["AID-FP"]).mean(axis=1)[kept]
    return {
        "q": q,
        "t": counts,
        "mean": {method: e.mean(axis=1) for method, e in errors.items()},
        "deviation": {method: e.std(axis=1, ddof=1) for method, e in errors.items()},
        "above rounding": kept,
        "slope_over_log_q": slopes,
        "itd_over_fp": ratio,
    }


def both_forms(case: Case) -> dict[str, float]:
    """G1: the hypergradient of the minimum and of the fixed point of its gradient step, apart."""
    step = 1 / case.top

    def map(u: Any, w: Any, batch: Any) -> Any:
        return w - step * jax.grad(case.inner, 1)(u, w, batch)

    inner = bilevel.GradientInner(optax.sgd(step), 50)
    iterated = bilevel.GradientInner(optax.sgd(1.0), 50)
    point = bilevel.FixedPointProblem(case.outer, map, case.outer_data, case.inner_data)
    start, found = jnp.zeros_like(case.w_star), {}
    for name in METHODS[:2]:
        minimum = fast(
            lambda u, e=estimator(name, step, 50): estimate(case.problem, e, inner, u, start)
        )
        fixed = fast(lambda u, e=estimator(name, 1.0, 50): estimate(point, e, iterated, u, start))
        found[name] = relative(fixed(case.u), minimum(case.u))
    exact = fast(lambda w: bilevel.implicit_gradient(point, case.u, w, lx.LU()).grad)
    found["exact"] = relative(exact(case.w_star), case.truth())
    return found


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
        times = np.linspace(1, 25, 25) if full else np.array([8, 12, 16, 20])
        rates = {name: curves(family, times) for name, family in families().items()}
        logistic_case = real("logistic", 0.02)
        linear = {
            "diabetes": (real("ridge", 1e-4), 40_000),
            "logistic": (logistic_case, 5_000),
            "breast cancer, least squares": (ridge_on_cancer(), 40_000),
        }
        spread = synthetic(np.geomspace(1e-3, 1, 200))
        linear["200 log-spaced eigenvalues"] = (spread, 40_000)
        ks = K_CG_FULL if full else K_CG
        converged = {name: at_convergence(case, t, ks) for name, (case, t) in linear.items()}
        used = memory(logistic_case)
        forms = both_forms(logistic_case)
    return {
        "settings": {
            "t_over_time_constant": times,
            "fit": FIT,
            "step": "1 / L",
            "t_memory": T_MEMORY,
        },
        "seeds": [0],
        "values of lambda": DRAWS,
        "rates": rates,
        "both forms": forms,
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
        for method in METHODS:
            color, marker = styles[method]
            mean = np.array(case["mean"][method])
            spread = np.array(case["deviation"][method])
            axis.semilogy(t, mean, color=color, marker=marker, ms=4, lw=1.3, label=method)
            high = np.array(mean) + spread  # below as far as above, in the logarithm
            axis.fill_between(t, mean**2 / high, high, color=color, alpha=0.15, lw=0)
        q, fp = float(np.max(case["q"])), np.array(case["mean"]["AID-FP"])
        at = int(np.flatnonzero(case["above rounding"])[-1])
        guide = fp[at] * q ** (t - float(t[at]))
        axis.semilogy(t, 0.1 * guide, "k:", lw=1, label="slope of $q^t$")
        axis.set(title=f"{name}, $q$ = {q:.3f}", xlabel="$t = k$", ylim=(1e-14, 30))
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
        slopes, ratio = np.array(case["slope_over_log_q"]), np.array(case["itd_over_fp"])
        kept = np.array(case["above rounding"])
        itd, fp, cg = (np.array(case["mean"][method])[kept] for method in METHODS)
        shown = ", ".join(f"{x:.3g}" for x in ratio[:: max(len(ratio) // 5, 1)])
        same = bool(np.allclose(ratio, 1, rtol=1e-6))
        found += [
            Claim(
                "G7",
                f"On the {name} problem the error of AID-FP falls as q^t, at each lambda.",
                "slope log q",
                f"slope {slopes.mean():.3f} +- {slopes.std(ddof=1):.3f} times log q, from "
                f"{slopes.min():.3f} to {slopes.max():.3f} (mean, deviation and range over "
                f"{len(slopes)} lambda)",
                bool(slopes.min() >= 0.9 and slopes.max() <= 1.1),
                "It has to be between 0.9 and 1.1 at each lambda. A larger one is a faster fall: the "
                "other eigenvalues have not died out within these t."
                if slopes.max() > 1.1
                else "",
            ),
            Claim(
                "G7",
                f"On the {name} problem the error of ITD has a factor that grows with t.",
                "t q^t against q^t",
                f"ITD / AID-FP {shown} (mean over lambda)",
                bool(np.all(np.diff(ratio) > 0)) and not same,
                "Here neither the Hessian nor the mixed derivative depends on w, and the two are the "
                "same vector."
                if same
                else "",
            ),
            Claim(
                "G7",
                f"On the {name} problem methods with lower bounds have lower errors on average over "
                "lambda: AID-CG at most AID-FP, AID-FP at most ITD.",
                "lower error on average",
                f"AID-CG / AID-FP at most {(cg / fp).max():.3f}, ITD / AID-FP at least "
                f"{(itd / fp).min():.3f}, over the t with errors above {FIT[0]:g}",
                bool((cg / fp).max() <= 1 + 1e-6 and (itd / fp).min() >= 1 - 1e-6),
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
    forms = measured["both forms"]
    found.append(
        Claim(
            "G1",
            "A minimum and the fixed point of its gradient step are the same problem: AID-FP, ITD and "
            "the exact hypergradient agree.",
            "min-min is a case of min-fixed-point",
            f"relative differences {', '.join(f'{k} {x:.1e}' for k, x in forms.items())}",
            max(forms.values()) <= 1e-9,
        )
    )
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
