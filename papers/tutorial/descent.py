"""G8, G10: inexact hypergradient descent, on all data (IHD) and on single samples (SIHD).

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], sections "Inexact Hypergradient Descent" and "Stochastic Inexact Hypergradient
Descent". The measure is the mean of `|grad Phi(u_s)|^2` over s < S, with the outer step 1 / L_Phi:

G8:  with t_s = k_s = ceil(kappa log(s + 2)) inner and linear steps from zero, kappa = 1 / (1 - q),
     it is at most C / S, and an accuracy eps takes O(1 / eps log(1 / eps)) inner and linear steps.
     Beside it the rule t_s = ceil((s + 1)^(1/4) / 2), for which Ghadimi and Wang (2018),
     "Approximation methods for bilevel programming" [ghadimi2018][], are quoted with
     O(eps^(-5/4)) steps; it has no kappa, and is run as printed and times kappa.
G10: with t = k = J = ceil(c S) steps and samples, where S is known in advance and the inner and
     linear steps decrease within each loop, its expectation is at most C / S: eps takes O(1 / eps^2)
     samples.

G11: with warm starts of w and of v ("Recent advances") a constant number of inner and linear steps is
     enough, and eps takes O(1 / eps) of them, without the logarithm of cold starts. Counted in oracle
     calls (gradients of f and products with its Hessian).

Both are run on two problems of linear regression. The outer objective is the loss, on outer rows, of
the solution on inner rows:

pull:       f = loss + rho / 2 |w - u|^2. w*(u) is affine, Phi a strongly convex quadratic.
penalties:  f = loss + 1 / 2 sum_i sigmoid(u_i) w_i^2. Phi is not convex, and flat far from zero,
            where its infimum is for a feature that only matters on one side. f contracts uniformly
            in u.

`grad Phi` is differentiated through the closed form of w*(u), in float64. The sum of all
`|grad Phi(u_s)|^2` cannot decrease, so that the mean falls as 1 / S or slower, and it falls as 1 / S
exactly when the sum is bounded, which is the statement. The contrasts are runs where the sum is not
bounded: a constant number of steps, a fourth of kappa, constant inner steps, numbers that do not grow
with S.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _regressions import FEATURES, Instance, instances
from _tutorial import Claim, Measured, panels, slope
from _tutorial import run as frame

import bilevel

COLORS = ["C0", "C1", "C3", "C4", "C5", "C2", "C6", "C8"]
SHARE = 8  # c: steps and samples of a stochastic outer step, over S
ROOT_SLOPE = 1.3  # what counts as eps^(-5/4)
SLOPE = -0.95  # what counts as 1 / S, fitted over two decades
SAMPLES_SLOPE = (-2.3, -1.7)
CONSTANT = 1.1  # how much calls times accuracy may vary over two decades to be constant


def thinned(num_steps: int) -> np.ndarray:
    """Some thirty log-spaced S."""
    return np.unique(np.geomspace(1, num_steps, 33).round().astype(int))


def warm_started(case: Instance, count: int) -> bilevel.DoubleLoop:
    """`count` inner steps from the last w, and as many linear ones from the last v."""
    step = 1 / case.top
    return bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(step), count),
        bilevel.AID(bilevel.Richardson(step, rtol=0.0, max_steps=count)),
        optax.sgd(1 / case.smoothness),
        warm_start=True,
    )


def deterministic(case: Instance, num_steps: int) -> dict[str, dict[str, Any]]:
    """IHD with six schedules of t_s and warm starts with two constant numbers, S = `num_steps`, and
    what all S up to that give."""
    kappa = case.kappa
    constants = [round(kappa), round(2 * kappa)]
    plan = {
        "kappa log": bilevel.logarithmic(kappa),
        "kappa / 4 log": bilevel.logarithmic(kappa / 4),
        **{f"t = {t}": float(t) for t in constants},
        "fourth root": lambda s: jnp.ceil((s + 1.0) ** 0.25 / 2),
        "kappa fourth root": lambda s: jnp.ceil(kappa * (s + 1.0) ** 0.25 / 2),
    }
    gradient, step = jax.grad(case.phi), 1 / case.top
    u0 = jnp.zeros(FEATURES)
    algorithms: dict[str, Any] = {
        name: bilevel.InexactDescent(step, step, 1 / case.smoothness, schedule)
        for name, schedule in plan.items()
    }
    algorithms |= {f"warm, t = {t}": warm_started(case, t) for t in (1, constants[0])}
    found = {}
    for name, algorithm in algorithms.items():

        def run(algorithm=algorithm):
            state = algorithm.init(case.problem, u0, jnp.zeros(FEATURES), jr.key(0))

            def advance(state, _):
                exact = gradient(state.u)
                after, info = algorithm.step(case.problem, state)
                error = jnp.sum((info.outer_grad - exact) ** 2)
                # Without the pass of each step that gives the mixed product.
                calls = after.calls.inner_grad + after.calls.hvp - after.step
                seen = jnp.sum(exact**2), error, calls, after.u
                return after, seen

            return jax.lax.scan(advance, state, length=num_steps)[1]

        squares, errors, calls, u = map(np.asarray, jax.jit(run)())
        curvatures = np.linalg.eigvalsh(jax.jit(jax.vmap(jax.hessian(case.phi)))(u[::10]))
        s = np.arange(1, num_steps + 1)
        mean = np.cumsum(squares) / s
        # The theorem's proof, where the minimum of Phi is replaced by the value at u_S.
        gain = float(case.phi(u0)) - np.asarray(jax.jit(jax.vmap(case.phi))(u))
        bound = (2 * case.smoothness * gain + np.cumsum(errors)) / s
        at, tail = thinned(num_steps) - 1, s >= num_steps / 100
        found[name] = {
            "S": s[at].tolist(),
            "mean": mean[at].tolist(),
            "squares": squares[at].tolist(),
            "errors": errors[at].tolist(),
            "steps": calls[at].tolist(),
            "slope": slope(s[tail], mean[tail]),
            "error_slope": slope(s[tail], errors[tail]),
            "square_slope": slope(s[tail], squares[tail]),
            "last_decade": float(mean[-1] / mean[num_steps // 10 - 1]),
            "squares_last_decade": float(squares[-1] / squares[num_steps // 10 - 1]),
            "over_bound": float(np.max(mean / bound)),
            "curvatures": [float(np.min(curvatures)), float(np.max(curvatures))],
        }
    return found


def stochastic(case: Instance, horizons: list[int], num_seeds: int, contrasts: bool) -> dict:
    """SIHD with S in `horizons`: batches of one row, all seeds at once, and what it is not."""

    def runner(schedule):
        gradient, one = jax.grad(case.phi), bilevel.WithReplacement(1)
        u0 = jnp.zeros(FEATURES)

        def run(key, num_steps, share):
            algorithm = bilevel.InexactDescent(
                schedule, schedule, 1 / case.smoothness, share, share, one, one
            )
            state = algorithm.init(case.problem, u0, jnp.zeros(FEATURES), key)

            def advance(_, carry):
                state, squares, errors, late = carry
                exact = gradient(state.u)
                after, info = algorithm.step(case.problem, state)
                square = jnp.sum(exact**2)
                error = jnp.sum((info.outer_grad - exact) ** 2)
                late = late + jnp.where(2 * state.step >= num_steps, square, 0.0)
                return after, squares + square, errors + error, late

            begun = (state, 0.0, 0.0, 0.0)
            state, squares, errors, late = jax.lax.fori_loop(0, num_steps, advance, begun)
            # Of the four counts only those of the joint passes are counted twice.
            n = state.calls
            samples = n.outer_grad + n.inner_grad + n.hvp - n.mixed
            gain = case.phi(u0) - case.phi(state.u)
            bound = (2 * case.smoothness * gain + errors) / num_steps
            mean = squares / num_steps
            return mean, errors / num_steps, 2 * late / num_steps, samples, mean / bound

        return jax.jit(jax.vmap(run, (0, None, None)))

    decreasing = runner(case.decreasing)
    # What runs, with which S, and S at most what in t = k = J = cS.
    plan = {"t = k = J = cS": (decreasing, horizons, horizons[-1])}
    if contrasts:
        longer = [*horizons, 2 * horizons[-1], 4 * horizons[-1]]
        plan["t = k = J fixed"] = (decreasing, longer, horizons[0])
        plan["constant inner steps"] = (runner(0.5 / case.batch_top), horizons, horizons[-1])
    found = {}
    for number, (name, (run, lengths, most)) in enumerate(plan.items()):
        rows = []
        for horizon in lengths:
            share = float(SHARE * min(horizon, most))
            keys = jr.split(jr.fold_in(jr.key(number), horizon), num_seeds)
            rows.append(np.array([*map(np.asarray, run(keys, horizon, share))]))
        mean, errors, late, samples, over = np.moveaxis(np.array(rows), 1, 0)
        # One line per seed, of the means over the samples, which are exact.
        slopes = np.array([slope(samples[:, i], mean[:, i]) for i in range(num_seeds)])
        found[name] = {
            "S": lengths,
            "samples": samples[:, 0].tolist(),
            "mean": mean.mean(1).tolist(),
            "deviation": mean.std(1, ddof=1).tolist(),
            "second_half": late.mean(1).tolist(),
            "mse": errors.mean(1).tolist(),
            "mean_slope": [float(np.mean(slopes)), float(np.std(slopes, ddof=1))],
            "mse_slope": slope(lengths, errors.mean(1)),
            "second_half_slope": slope(lengths, late.mean(1)),
            "last_doubling": float(mean[-1].mean() / mean[-2].mean()),
            "over_bound": float(over.max()),
        }
        if number == 0:
            # Samples against accuracy: the mean over the seeds, and the deviation of one seed.
            found[name]["samples_slope"] = [
                float(np.mean(1 / slopes)),
                float(np.std(1 / slopes, ddof=1)),
            ]
    return found


def measure(full: bool) -> Measured:
    """Both methods on both problems; the stochastic contrasts on the strongly convex one only."""
    num_steps = 100_000 if full else 3_000
    horizons = [16, 32, 64, 128, 256] if full else [16, 32, 64, 128]
    num_seeds = 24 if full else 8
    with jax.enable_x64(True):
        cases = instances()
        descents = {name: deterministic(case, num_steps) for name, case in cases.items()}
        samples = {
            name: stochastic(case, horizons, num_seeds, name == "pull")
            for name, case in cases.items()
        }
    settings = {
        name: {
            "mu": case.mu,
            "L": case.top,
            "kappa": case.kappa,
            "L_row": case.batch_top,
            "L_Phi": case.smoothness,
        }
        for name, case in cases.items()
    }
    settings |= {"S": num_steps, "horizons": horizons, "c": SHARE}
    return {
        "settings": settings,
        "seeds": list(range(num_seeds)),
        "deterministic": descents,
        "stochastic": samples,
    }


def draw(measured: Measured):
    """The deterministic runs of both problems; what an accuracy costs in steps, and in samples."""
    titles = {"pull": r"strongly convex $\Phi$", "penalties": r"not convex, flat $\Phi$"}
    descents, samples = measured["deterministic"], measured["stochastic"]
    figure, axes = panels(2, 2, (11, 8.4))
    # All is relative to the squared gradient at u_0.
    first = {name: runs["kappa log"]["squares"][0] for name, runs in descents.items()}
    for axis, (name, runs) in zip(axes[0], descents.items(), strict=True):
        one = first[name]
        for color, (label, run) in zip(COLORS, runs.items(), strict=True):
            shown = {
                "kappa log": r"$t_s = \lceil\kappa\,\log(s+2)\rceil$",
                "kappa / 4 log": r"$t_s = \lceil\frac{\kappa}{4}\,\log(s+2)\rceil$",
                "fourth root": r"$t_s = \lceil(s+1)^{1/4} / 2\rceil$",
                "kappa fourth root": r"$t_s = \lceil\kappa\,(s+1)^{1/4} / 2\rceil$",
            }.get(label, f"${label}$" if label.startswith("t") else label)
            axis.loglog(run["S"], np.array(run["mean"]) / one, color=color, lw=1.8, label=shown)
            axis.loglog(run["S"], np.array(run["squares"]) / one, color=color, lw=0.8, ls="--")
        s = np.array(runs["kappa log"]["S"], float)
        guide = 0.3 * runs["kappa log"]["mean"][-1] / one * s[-1] / s
        axis.loglog(s[s > 5], guide[s > 5], "k:", lw=1.3, label="$1/S$")
        axis.plot([], [], "k--", lw=0.8, label=r"$|\nabla\Phi(u_S)|^2$ alone")
        axis.set(title=f"G8, {name}: {titles[name]}", xlabel="$S$")
        axis.legend(fontsize=8, loc="lower left")
    steps, drawn = axes[1]
    for color, marker, (name, runs) in zip(["C0", "C2"], "os", descents.items(), strict=True):
        run = runs["kappa log"]
        mean = np.array(run["mean"]) / first[name]
        steps.loglog(mean, run["steps"], color=color, marker=marker, ms=4, lw=1.3, label=name)
    eps = np.geomspace(0.3, descents["pull"]["kappa log"]["mean"][-1] / first["pull"], 50)
    guide = 4 * np.log(1 / eps) / eps
    steps.loglog(eps, guide, "k:", lw=1.3, label=r"$\epsilon^{-1}\log\,\epsilon^{-1}$")
    steps.set(title="G8: inner and linear steps to an accuracy", ylabel="total steps")
    look = {"t = k = J fixed": ("C3", "v"), "constant inner steps": ("C1", "^")}
    for color, marker, (name, runs) in zip(["C0", "C2"], "os", samples.items(), strict=True):
        for label, run in runs.items():
            mean, spread = (np.array(run[x]) / first[name] for x in ("mean", "deviation"))
            dash = "--"
            if "samples_slope" in run:
                value, deviation = run["samples_slope"]
                shown, dash = f"{name}: slope ${value:.2f} \\pm {deviation:.2f}$", "-"
            else:
                shown = f"{name}, {label.replace('t = k = J', '$t = k = J$')}"
            color_, marker_ = look.get(label, (color, marker))
            drawn.errorbar(
                mean, run["samples"], xerr=spread, color=color_, marker=marker_, ms=5,
                ls=dash, lw=1.3, capsize=2, label=shown,
            )  # fmt: skip
    run = next(iter(samples["pull"].values()))
    eps = np.array(run["mean"]) / first["pull"]
    guide = 0.4 * run["samples"][0] * (eps[0] / eps) ** 2
    drawn.loglog(eps, guide, "k:", lw=1.3, label=r"$\epsilon^{-2}$")
    ticks = [0.2, 0.1, 0.05, 0.02, 0.01]
    drawn.set_xticks(ticks, [f"{x:g}" for x in ticks])
    drawn.set_xticks([], minor=True)
    drawn.set(title="G10: samples to an accuracy, $t = k = J = cS$", ylabel="total samples")
    for axis in (steps, drawn):
        axis.set(xlabel=r"$\epsilon$, relative to $|\nabla\Phi(u_0)|^2$")
        axis.invert_xaxis()
        axis.legend(fontsize=8, loc="lower right")
    axes[0, 0].set_ylabel(r"$\frac{1}{S}\sum_{s<S}|\nabla\Phi(u_s)|^2\,/\,|\nabla\Phi(u_0)|^2$")
    for axis in axes.flat:
        axis.title.set_fontsize(10)
    return figure


def claims(measured: Measured) -> list[Claim]:
    """One claim for each problem and statement."""
    parts = {"deterministic": claims_of_ihd, "stochastic": claims_of_sihd}
    return [
        claim
        for part, judge in parts.items()
        for name, runs in measured[part].items()
        for claim in judge(f"On the problem {name!r}", runs)
    ]


def claims_of_ihd(where: str, runs: dict[str, Any]) -> list[Claim]:
    """Row G8, on one problem."""
    run = runs["kappa log"]
    low, high = run["curvatures"]
    constants = {label: r for label, r in runs.items() if label.startswith("t =")}
    warm = {label: r for label, r in runs.items() if label.startswith("warm")}
    short, long = constants
    stalled = [r["squares_last_decade"] for r in constants.values()]
    finals = [r["squares"][-1] / r["errors"][-1] for r in constants.values()]
    means = [r["last_decade"] for r in constants.values()]
    tail = np.array(run["S"]) >= run["S"][-1] / 100
    eps = np.array(run["mean"])[tail] / run["squares"][0]
    cost = np.array(run["steps"])[tail] * eps / np.log(1 / eps)
    varied = {
        label: np.ptp(np.log(np.array(r["steps"])[tail] * np.array(r["mean"])[tail]))
        for label, r in (warm | {"cold": run}).items()
    }
    roots = {
        label: slope(1 / np.array(runs[label]["mean"])[tail], np.array(runs[label]["steps"])[tail])
        for label in ("fourth root", "kappa fourth root")
    }
    reached = {
        label: first_steps(runs[label], 10 * run["mean"][-1])
        for label in ("kappa log", "fourth root", "kappa fourth root", *warm)
    }
    return [
        Claim(
            "G8",
            f"{where} the mean squared gradient falls as 1 / S with kappa log(s + 2) steps.",
            "at most C / S",
            f"slope {run['slope']:.3f} over two decades",
            run["slope"] <= SLOPE,
            f"The eigenvalues of the Hessian of Phi on the way are from {low:.2g} to {high:.2g}; "
            f"|grad Phi(u_s)|^2 falls with slope {run['square_slope']:.2f}.",
        ),
        Claim(
            "G8",
            f"{where} the squared errors of the hypergradients fall as 1 / s^2 or faster.",
            "slope at most -2",
            f"slope {run['error_slope']:.2f}",
            run["error_slope"] <= -1.95,
        ),
        Claim(
            "G8",
            f"{where} the mean is below (2 L_Phi (Phi(u_0) - Phi(u_S)) + sum of errors) / S.",
            "for all S",
            f"at most {max(r['over_bound'] for r in runs.values()):.4f} times that",
            max(r["over_bound"] for r in runs.values()) <= 1,
            "This is over all runs, those with constant numbers of steps too.",
        ),
        Claim(
            "G8",
            f"{where} an accuracy eps takes O(1 / eps log(1 / eps)) inner and linear steps.",
            "a constant factor",
            f"a factor that varies by {cost.max() / cost.min():.2f} over two decades",
            bool(cost.max() / cost.min() < 1.5),
        ),
        Claim(
            "G8",
            f"{where} the descent with {short} stalls at the error of the hypergradient.",
            "no convergence",
            f"from S / 10 to S |grad Phi(u_s)|^2 is multiplied by {stalled[0]:.2f} (with the "
            f"logarithm by {run['squares_last_decade']:.1e}), to {finals[0]:.3f} of the squared error",
            stalled[0] > 0.7 and abs(finals[0] - 1) < 0.05,
            f"With {long} it is multiplied by {stalled[1]:.2f}, to {finals[1]:.3f}. The means are "
            f"multiplied by {means[0]:.2f} and {means[1]:.2f} (with the logarithm by "
            f"{run['last_decade']:.3f}).",
        ),
        *(
            Claim(
                "G8",
                f"{where} an accuracy eps takes O(eps^(-5/4)) inner and linear steps with "
                f"{factor}ceil((s + 1)^(1/4) / 2) of them.".replace("kappa ceil((", "ceil(kappa ("),
                "slope at most 1.25",
                f"slope {roots[label]:.2f} over two decades of S",
                roots[label] <= ROOT_SLOPE,
                f"The mean falls with slope {runs[label]['slope']:.2f} in S. Steps to ten times the "
                f"last mean of the logarithmic rule: {told(reached[label])} (with the logarithm "
                f"{told(reached['kappa log'])}).",
            )
            for label, factor in (("fourth root", ""), ("kappa fourth root", "kappa "))
        ),
        *(
            Claim(
                "G11",
                f"{where} warm starts with a constant number of inner and linear steps "
                f"({label.removeprefix('warm, ')}) take O(1 / eps) oracle calls.",
                "O(eps^-1) in place of O(eps^-1 log(eps^-1))",
                f"calls times accuracy {factor_of(varied[label])} (cold starts with kappa "
                f"log(s + 2): {np.exp(varied['cold']):.3f}); "
                f"calls to ten times the last mean of the cold starts {told(reached[label])}, cold "
                f"{told(reached['kappa log'])}",
                bool(np.exp(varied[label]) <= CONSTANT),
                f"The mean squared gradient falls with slope {r['slope']:.3f} in S, and the squared "
                f"errors of the hypergradients with {r['error_slope']:.2f}.",
            )
            for label, r in warm.items()
        ),
    ]


def first_steps(run: dict[str, Any], accuracy: float) -> float:
    """The inner and linear steps until the mean squared gradient is so small, or infinity."""
    below = np.array(run["mean"]) <= accuracy
    return float(np.array(run["steps"])[below][0]) if below.any() else np.inf


def factor_of(log_factor: float) -> str:
    if not log_factor < np.log(1e3):
        return "diverge: too few inner steps for this outer step"
    return f"vary by a factor of {np.exp(log_factor):.3f} over two decades of S"


def told(steps: float) -> str:
    return f"{steps:.0f}" if np.isfinite(steps) else "not within the run"


def claims_of_sihd(where: str, runs: dict[str, Any]) -> list[Claim]:
    """Row G10, on one problem."""
    run = runs["t = k = J = cS"]
    value, deviation = run["samples_slope"]
    low, high = SAMPLES_SLOPE
    found = [
        Claim(
            "G10",
            f"{where} an accuracy eps of the mean squared gradient takes O(eps^-2) samples.",
            "slope -2",
            f"slope {value:.2f} +- {deviation:.2f} (deviation of one seed)",
            low <= value <= high,
            f"The mean squared gradient of the second half of the run falls with S as "
            f"{run['second_half_slope']:.2f}, the mean squared error of the hypergradients as "
            f"{run['mse_slope']:.2f} (-1 in theory, as upper bounds).",
        ),
        Claim(
            "G10",
            f"{where} the mean of the stochastic method is below (2 L_Phi (Phi(u_0) - Phi(u_S)) + "
            "sum of errors) / S.",
            "for all S and seeds",
            f"at most {run['over_bound']:.2f} times that",
            run["over_bound"] <= 1,
        ),
    ]
    for label in list(runs)[1:]:
        kept = runs[label]["last_doubling"]
        found.append(
            Claim(
                "G10",
                f"{where} an S twice as large hardly helps with {label}.",
                "no convergence",
                f"times {kept:.2f} (in the method {run['last_doubling']:.2f})",
                kept > 0.8,
            )
        )
    return found


if __name__ == "__main__":
    frame(__file__, measure, draw, claims)
