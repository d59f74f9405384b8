"""G9: the mean squared error of the stochastic hypergradient (SID), term by term.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], section "Stochastic Bilevel Optimization": with t stochastic inner steps and k
stochastic linear steps of decreasing size, and J samples of the rest, the mean squared error is of
the order `1/t + 1/k + 1/J`; with constant steps it stalls. The problem is logistic regression with
one regularisation parameter, `u = log penalty`.

Each term is measured alone, by making the other two exact; nothing is subtracted:

t:  w_t by stochastic steps; then SID at w_t on full batches, with 150 deterministic linear steps.
k:  SID at the inner solution, with full outer batches. (The mixed derivative of a penalty,
    `exp(u) w`, has no sample in it, so that J does not matter.)
J:  SID at the inner solution, with full inner batches and 150 deterministic linear steps.
all: SID as it is, from w = 0, with t = k = J and minibatches everywhere.

The inner solution is that of 2000 full gradient steps, and "full" means `FullBatch`. The steps are
`c / (i + d)` with c = 2 / mu and d = c L, where mu and L are the extreme eigenvalues of the inner
Hessian. `--full` takes odd against even digits of MNIST, the quick run synthetic rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
from _tutorial import COMPILE_FAST, Claim, Measured, full_stream, inner_solution, mnist, panels, run

import bilevel

BATCH, EXACT_STEPS, INNER_STEPS = 10, 150, 2000
RANGE = (1.6, 2.6)  # what a doubling may divide a mean squared error by
STALLED = 0.8


def outer(u, w, batch):
    """Mean logistic loss, labels in {-1, 1}."""
    x, y = batch
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


def inner(u, w, batch):
    """With the penalty `exp(u) / 2 |w|^2`."""
    return outer(u, w, batch) + 0.5 * jnp.exp(u) * jnp.vdot(w, w)


class Instance(NamedTuple):
    """The problem with its solution, its hypergradient and its extreme eigenvalues."""

    problem: bilevel.BilevelProblem
    u: Any
    w_star: Any
    truth: Any
    mu: float
    top: float

    @property
    def penalty(self) -> float:
        """A lower bound of the curvature everywhere; `top`, at w = 0, is an upper one."""
        return float(jnp.exp(self.u))

    @property
    def decreasing(self):
        c = 2 / self.mu
        return bilevel.decreasing_step(c, c * self.top)

    def stream(self, which: str, key=None) -> bilevel.Stream:
        """All rows of the data at each draw, or with a key `BATCH` of them."""
        data = self.problem.outer_data if which == "outer" else self.problem.inner_data
        if key is None:
            return full_stream(data)
        sampler = bilevel.WithReplacement(BATCH)
        return bilevel.Stream(sampler, data, sampler.init(data, key))

    def sid(self, estimator, inner_solver, streams):
        """One hypergradient, from w = 0."""
        w0 = jnp.zeros_like(self.w_star)
        state = estimator.init(self.problem, inner_solver, self.u, w0)
        return estimator.estimate(self.problem, inner_solver, self.u, w0, state, streams)[0].grad

    def stochastic_steps(self, steps, schedule, key):
        solver = bilevel.GradientInner(optax.sgd(schedule), steps)
        w0 = jnp.zeros_like(self.w_star)
        state = solver.init(self.problem, self.u, w0)
        return solver.solve(self.problem, self.u, w0, state, self.stream("inner", key))[0]

    # The terms: (steps, schedule, key) -> hypergradient.

    def of_t(self, steps, schedule, key):
        w = self.stochastic_steps(steps, schedule, key)
        return self.sid(self.exact(1), at(w), self.streams(None, None))

    def of_k(self, steps, schedule, key):
        estimator = bilevel.SID(bilevel.StochasticRichardson(schedule, steps), 1)
        return self.sid(estimator, at(self.w_star), self.streams(None, key))

    def of_j(self, samples, schedule, key):
        del schedule
        return self.sid(self.exact(samples), at(self.w_star), self.streams(key, None))

    def of_all(self, steps, schedule, key):
        estimator = bilevel.SID(bilevel.StochasticRichardson(schedule, steps), steps)
        solver = bilevel.GradientInner(optax.sgd(schedule), steps)
        return self.sid(estimator, solver, self.streams(*jr.split(key)))

    def exact(self, samples):
        step = 2 / (self.mu + self.top)
        return bilevel.SID(bilevel.StochasticRichardson(step, EXACT_STEPS), samples)

    def streams(self, outer_key, inner_key):
        return bilevel.Streams(self.stream("outer", outer_key), self.stream("inner", inner_key))


def at(w) -> bilevel.ClosedForm:
    """The inner solver that knows its result."""
    return bilevel.ClosedForm(lambda u, batch: w)


def instance(inner_data, outer_data, penalty: float) -> Instance:
    """Solve to convergence, on full batches."""
    problem = bilevel.BilevelProblem(outer, inner, outer_data, inner_data)
    u, w0 = jnp.log(penalty), jnp.zeros(inner_data[0].shape[1])
    top = np.linalg.eigvalsh(jax.hessian(inner, 1)(u, w0, inner_data))[-1]
    solver = bilevel.GradientInner(optax.sgd(1 / top), INNER_STEPS)
    w = jax.jit(lambda w0: inner_solution(problem, solver, u, w0))(w0)
    mu = np.linalg.eigvalsh(jax.hessian(inner, 1)(u, w, inner_data))[0]
    truth = jax.jit(lambda w: bilevel.implicit_gradient(problem, u, w, lx.Cholesky()))(w)
    assert float(truth.inner_residual) < 1e-12
    return Instance(problem, u, w, truth.grad, float(mu), float(top))


def synthetic(seed: int = 0) -> Instance:
    """200 inner and 200 outer rows, 10 features, labels from a logistic model."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, 10))
    y = np.where(rng.random(400) < 1 / (1 + np.exp(-x @ rng.normal(size=10))), 1.0, -1.0)
    x, y = jnp.asarray(x), jnp.asarray(y)
    return instance((x[:200], y[:200]), (x[200:], y[200:]), 0.2)


def odd_digits() -> Instance:
    """MNIST, odd against even: 50 principal components of 5000 inner and 5000 outer rows.

    They are the first 10000 rows of the training split. The components are scaled together, so that
    the largest has variance 4.
    """
    x, labels = mnist("train", slice(10000))
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    x = x @ vectors[:, -50:] * (2 / np.sqrt(values[-1]))
    x, y = jnp.asarray(x), jnp.asarray(np.where(labels % 2 == 1, 1.0, -1.0))
    return instance((x[::2], y[::2]), (x[1::2], y[1::2]), 0.1)


def mean_squared_error(case: Instance, term, steps: int, schedule, keys, options) -> np.ndarray:
    """Over the keys, relative to the squared hypergradient: it, its relative standard error, the
    squared bias, and the standard error of the bias."""

    def run(keys):
        return jax.lax.map(lambda key: term(steps, schedule, key), keys, batch_size=50)

    run = jax.jit(run, compiler_options=options)
    errors = np.asarray(run(keys)) / float(case.truth) - 1
    squares, root = errors**2, np.sqrt(len(errors))
    spread = squares.std() / squares.mean() / root
    return np.array([squares.mean(), spread, errors.mean() ** 2, errors.std() / root])


def curves_of(case: Instance, counts: list[int], num_seeds: int, options) -> dict[str, Any]:
    """The curves with decreasing steps; with constant ones at the last count and a fourth of it."""
    constant, apart = 0.2 / case.top, [counts[-1] // 4, counts[-1]]
    plan = {
        "t": (case.of_t, case.decreasing, counts),
        "k": (case.of_k, case.decreasing, counts),
        "J": (case.of_j, None, counts),
        "t = k = J": (case.of_all, case.decreasing, counts),
        "t, constant step": (case.of_t, constant, apart),
        "k, constant step": (case.of_k, constant, apart),
    }
    found = {}
    for seed, (name, (term, schedule, steps)) in enumerate(plan.items()):
        # New keys for each point: the ratios' errors are independent.
        keys = jr.split(jr.key(seed), (len(steps), num_seeds))
        points = [
            mean_squared_error(case, term, s, schedule, k, options)
            for s, k in zip(steps, keys, strict=True)
        ]
        mse, deviation, bias, bias_error = np.array(points).T
        ratios = mse[:-1] / mse[1:]
        found[name] = {
            "steps": steps,
            "mse": mse.tolist(),
            "squared_bias": bias.tolist(),
            "variance": (mse - bias).tolist(),
            "standard_error_of_bias": bias_error.tolist(),
            "ratios": ratios.tolist(),
            "standard_errors": (ratios * np.hypot(deviation[:-1], deviation[1:])).tolist(),
        }
    return found


def against_bounds(case: Instance, counts: list[int], num_seeds: int, options) -> dict[str, Any]:
    """`E |w_t - w*|^2` of both step rules over the theorem's bounds, and the constants in them."""
    top, rows = case.top, case.problem.inner_data[0]  # pyright: ignore[reportOptionalSubscript]
    away = float(jnp.sum(case.w_star**2))  # w_0 is 0
    sigma = float(jnp.mean(jnp.sum(rows**2, axis=1))) / (BATCH * top**2)
    contraction = 1 - (1 - case.penalty / top) ** 2  # 1 - q^2
    eta, beta = 0.2, 2 * top / case.mu
    radius = eta * sigma / contraction
    c = max(beta * away, beta**2 * sigma / (beta * contraction - 1))
    rules = {
        "constant": (eta / top, lambda t: (1 - eta * contraction) ** t * (away - radius) + radius),
        "decreasing": (case.decreasing, lambda t: c / (beta + t)),
    }
    found: dict[str, Any] = {
        "beta": beta,
        "beta, at least": 1 / contraction,
        "sigma_1": sigma,
        "q": float(np.sqrt(1 - contraction)),
    }
    for number, (name, (schedule, bound)) in enumerate(rules.items()):
        keys = jr.split(jr.key(100 + number), num_seeds)
        over = []
        for steps in counts:

            def run(keys, steps=steps, schedule=schedule):
                def one(key):
                    w = case.stochastic_steps(steps, schedule, key)
                    return jnp.sum((w - case.w_star) ** 2)

                return jnp.mean(jax.lax.map(one, keys, batch_size=50))

            error = float(jax.jit(run, compiler_options=options)(keys))
            over.append(error / bound(steps))
        found[name] = over
    return found


def measure(full: bool) -> Measured:
    """All terms on MNIST, or on synthetic rows."""
    counts, num_seeds = [200, 400, 800, 1600, 3200] if full else [100, 200, 400], 1000
    with jax.enable_x64(True):
        case = odd_digits() if full else synthetic()
        options = None if full else COMPILE_FAST
        curves = curves_of(case, counts, num_seeds, options)
        bounds = against_bounds(case, counts, num_seeds, options)
    settings = {
        "data": "MNIST odd/even, 5000 + 5000 rows, 50 principal components"
        if full
        else "synthetic, 200 + 200 rows, 10 features",
        "repetitions": num_seeds,
        "steps": counts,
        "batch": BATCH,
        "penalty": case.penalty,
        "mu": case.mu,
        "L": case.top,
        "c": 2 / case.mu,
        "d": 2 * case.top / case.mu,
        "constant_step": 0.2 / case.top,
        "hypergradient": case.truth,
    }
    return {
        "settings": settings,
        "seeds": list(range(len(curves))),
        "curves": curves,
        "bounds": bounds,
    }


def draw(measured: Measured):
    """The mean squared errors against steps."""
    curves, settings = measured["curves"], measured["settings"]
    figure, axes = panels(1, 2, (10, 4.2), sharey=True)
    style = {"t": "C0o", "k": "C1s", "J": "C2^", "t = k = J": "kD"}
    for name, curve in curves.items():
        steps, mse = curve["steps"], curve["mse"]
        label, _, constant = name.partition(", ")
        color, marker = style[label][:-1], style[label][-1]
        shown = f"{label} alone" if label in "tkJ" else label
        if constant:
            axes[1].loglog(steps, mse, "--", color=color, marker=marker, ms=5, label=name)
        else:
            axes[0].loglog(steps, mse, color=color, marker=marker, ms=5, label=shown)
            if label in "tk":
                shown = f"{label}, decreasing step"
                axes[1].loglog(steps, mse, color=color, marker=marker, ms=5, label=shown)
    x = np.array(curves["t"]["steps"], float)
    for axis, titled in zip(axes, ["decreasing steps", "constant steps stall"], strict=True):
        top = curves["t = k = J"]["mse"][0] if axis is axes[0] else curves["t"]["mse"][0]
        axis.loglog(x, 1.5 * top * x[0] / x, "k:", lw=1, label="1 / steps")
        axis.set(title=titled, xlabel="steps or samples")
        axis.set_xticks(x, [f"{s:.0f}" for s in x])
        axis.minorticks_off()
        axis.legend(fontsize=8, loc="lower left", ncols=2)
    axes[0].set_ylim(bottom=0.15 * min(min(curve["mse"]) for curve in curves.values()))
    axes[0].set_ylabel("relative mean squared error")
    repeated = f"{settings['repetitions']} repetitions, batches of {settings['batch']}"
    figure.suptitle(f"SID, {repeated}: {settings['data']}", fontsize=11)
    return figure


def claims(measured: Measured) -> list[Claim]:
    """One claim for each curve."""
    found = []
    for name, curve in measured["curves"].items():
        ratios, errors = curve["ratios"], curve["standard_errors"]
        shown = ", ".join(f"{r:.2f} +- {e:.2f}" for r, e in zip(ratios, errors, strict=True))
        if "constant" in name:
            kept = [1 / r for r in ratios]
            text = (
                f"The error of {name}, stalls: four times the steps leave the mean squared error "
                "where it was."
            )
            found.append(
                Claim("G9", text, "it stalls", f"times {kept[0]:.2f}", min(kept) > STALLED)
            )
            if name.startswith("k"):
                found.append(_bias_alone(curve))
        else:
            good = all(RANGE[0] <= r <= RANGE[1] for r in ratios)
            text = f"Each doubling of {name} halves the mean squared error."
            found.append(Claim("G9", text, "O(1/x)", f"divided by {shown}", good))
            found.append(_parts(name, curve))
    return [*found, *_bounds(measured)]


def _bounds(measured: Measured) -> list[Claim]:
    """The theorem on stochastic fixed points, with its constants."""
    bounds, steps = measured["bounds"], measured["settings"]["steps"]
    constants = (
        f"beta = gamma = {bounds['beta']:.1f} (at least {bounds['beta, at least']:.1f}), sigma_1 = "
        f"{bounds['sigma_1']:.2e}, sigma_2 = 0, q = {bounds['q']:.4f}."
    )
    return [
        Claim(
            "G9",
            f"With {name} steps E |w_t - w*|^2 is below the bound of the theorem on stochastic fixed "
            "points, with its constants.",
            "at most 1 times the bound",
            f"{', '.join(f'{x:.3f}' for x in bounds[name])} times the bound at t = "
            f"{', '.join(map(str, steps))}",
            max(bounds[name]) <= 1 and bounds["beta"] > bounds["beta, at least"],
            constants,
        )
        for name in ("constant", "decreasing")
    ]


def _bias_alone(curve: dict[str, Any]) -> Claim:
    """Constant steps for the linear system: the bias is controlled, the variance is not."""
    bias, noise = np.sqrt(curve["squared_bias"][-1]), 3 * curve["standard_error_of_bias"][-1]
    variance = curve["variance"]
    return Claim(
        "G9",
        "With constant steps for the linear system the bias vanishes (it is at most three of its "
        "standard errors), and the variance stays.",
        "we can control the bias but not the variance",
        f"bias {bias:.1e} of the hypergradient, three standard errors {noise:.1e}, at k = "
        f"{curve['steps'][-1]}; from k = {curve['steps'][0]} the variance is multiplied by "
        f"{variance[-1] / variance[0]:.2f}",
        bool(bias <= noise and variance[-1] > STALLED * variance[0]),
    )


def _parts(name: str, curve: dict[str, Any]) -> Claim:
    """Squared bias and variance apart; the first is measured up to its own noise."""
    bias, variance = np.array(curve["squared_bias"]), np.array(curve["variance"])
    noise = 3 * np.array(curve["standard_error_of_bias"])
    share = np.maximum(np.sqrt(bias) - noise, 0) ** 2 / np.array(curve["mse"])
    falls = variance[:-1] / variance[1:]
    return Claim(
        "G9",
        f"Of the error of {name} the variance falls as 1/x, and the squared bias is a smaller part.",
        "a sum of both (no shares are published)",
        f"variance divided by {', '.join(f'{x:.2f}' for x in falls)}; squared bias "
        f"{', '.join(f'{x:.1e}' for x in bias)} of the squared hypergradient, variance "
        f"{', '.join(f'{x:.1e}' for x in variance)}",
        bool(np.all((falls >= RANGE[0]) & (falls <= RANGE[1])) and np.all(share < 0.5)),
        "The squared bias is the square of a mean over the repetitions, so that the variance over "
        "their number is part of it; three of its standard errors are taken off for the verdict.",
    )


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
