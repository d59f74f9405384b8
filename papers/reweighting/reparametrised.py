"""R9, Figure 4: a softmax or a sigmoid of free variables in place of mirror descent.

Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization", section 4.1:
on the mixture of section 2.4, gradient descent on lambda with weights `softmax(lambda)` (the
caption of Figure 4) or `sigmoid(lambda) / sum sigmoid(lambda)` (the text), by Algorithm 2 without
its mirror step. The text describes weights that first find the right cluster, so that retraining on
them works while the current parameters lag behind, and that are sparse in the end.

The step sizes are not in the paper; we run a grid of them, because the outcome depends on both. A
hypergradient psi moves the log-weights, in the first step from uniform weights on n rows, by

    eta psi (mirror),   eta psi / n (softmax),   eta psi / (4 n) (sigmoid)

up to a constant, so each parametrisation gets `eta = speed * (1, n, 4 n)`, and the speeds compare.
The inner step rho goes from a model that barely moves (Theorem 2) over the one of `toy_mixture.py`
to the exact inner solution (Algorithm 1, Theorem 1), which the paper does not have here.
"""

import sys
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from _frame import Claim, panels, run, span
from toy_mixture import (
    CENTRE,
    RIDGE,
    SIGMA,
    THETA_1,
    THETA_2,
    M,
    N,
    inner,
    mixture,
    outer,
    solution,
)

RHO, SLOW = 0.02, 1e-5  # the inner step of toy_mixture.py; Theorem 2's side
INNER = ("exact", RHO, 1e-3, SLOW)
SPEEDS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
DRAWN = {("softmax", RHO): 1e-4, ("sigmoid", RHO): 1e-3, ("sigmoid", SLOW): 1e-3}  # with speeds
PARTS = (0.003, 0.01, 0.05, 1.0)  # of a run: when weights are drawn
FOUND, SPARSE = 50, 10  # ESS: at least FOUND is not sparse, at most SPARSE is, of 500 rows


def normalised_sigmoid(x: jax.Array) -> jax.Array:
    """`sigmoid(lambda) / sum sigmoid(lambda)`."""
    return jax.nn.softmax(jax.nn.log_sigmoid(x))


TRANSFORMS = {"softmax": jax.nn.softmax, "sigmoid": normalised_sigmoid, "mirror": None}
SCALES = {"softmax": N, "sigmoid": 4 * N, "mirror": 1}  # eta = speed * scale


class Runs(NamedTuple):
    """Runs of one parametrisation and inner solver; leading axes: seed, speed, time.

    Entropy and ESS of the weights, the weight of the first cluster, the distance to theta_1 of the
    current parameters and of parameters retrained on the current weights, and the weights.
    """

    entropy: Any
    ess: Any
    first: Any
    current: Any
    retrained: Any
    weights: Any


def trajectory(name: str, rho: Any, eta: Any, data: Any, first: Any, gaps: Any) -> Runs:
    """One run, recorded after each gap; `rho` None for the exact inner solution."""
    problem = bilevel.BilevelProblem(outer, inner, data[2:], data[:2], bilevel.Simplex())
    transform = TRANSFORMS[name]
    if transform is not None:
        problem = bilevel.reparametrise(problem, transform)
    method = bilevel.DoubleLoop(
        bilevel.ClosedForm(lambda x, batch: solution(transform(x) if transform else x, batch))
        if rho is None
        else bilevel.GradientInner(optax.sgd(rho), 1),
        bilevel.AID(lx.Cholesky()),
        optax.sgd(eta),
        warm_start=True,
    )
    x = jnp.full(N, 1 / N) if transform is None else jnp.zeros(N)

    def record(state: bilevel.State, gap: Any) -> tuple[bilevel.State, Runs]:
        state = jax.lax.fori_loop(0, gap, lambda _, s: method.step(problem, s)[0], state)
        u = state.u if transform is None else transform(state.u)
        runs = Runs(
            entropy=jnp.sum(jax.scipy.special.entr(u)),
            ess=jnp.sum(u) ** 2 / jnp.sum(u**2),
            first=jnp.vdot(u, first),
            current=jnp.linalg.norm(state.w - THETA_1),
            retrained=jnp.linalg.norm(solution(u, problem.inner_data) - THETA_1),
            weights=u,
        )
        return state, runs

    state = method.init(problem, x, jnp.zeros(2), jax.random.key(0))
    return jax.lax.scan(record, state, gaps)[1]


@eqx.filter_jit
def grid(name: str, rho: Any, etas: Any, data: Any, first: Any, gaps: Any) -> Runs:
    """All seeds and outer steps of one parametrisation and inner solver."""

    def one(data, first, eta):
        return trajectory(name, rho, eta, data, first, gaps)

    return jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))(data, first, etas)


def run_grid(
    seeds: int,
    steps: int,
    speeds: tuple[float, ...] = SPEEDS,
    inners: tuple[Any, ...] = INNER,
    names: tuple[str, ...] = tuple(TRANSFORMS),
) -> tuple[np.ndarray, dict[tuple[str, Any], Runs]]:
    """The recorded times, and the runs by parametrisation and inner solver."""
    draws = [mixture(seed) for seed in range(seeds)]
    rows = zip(*[(d.d, d.y, d.d_outer, d.y_outer) for d in draws], strict=True)
    data = tuple(jnp.stack([jnp.asarray(x) for x in column]) for column in rows)
    first = jnp.asarray(np.stack([d.first for d in draws]), float)
    times = np.unique(np.round(np.geomspace(1, steps, 60)).astype(int))
    times = np.concatenate([[0], times])
    gaps = jnp.asarray(np.diff(times, prepend=0))
    results = {}
    for rho in inners:
        for name in names:
            etas = jnp.asarray(speeds, float) * SCALES[name]
            step = None if rho == "exact" else jnp.asarray(rho, float)
            runs = grid(name, step, etas, data, first, gaps)
            results[name, rho] = jax.tree.map(np.asarray, runs)
    return times, results


@jax.enable_x64(True)
def measure(full: bool) -> dict[str, Any]:
    """The grid of parametrisations, inner steps and outer steps."""
    seeds, steps = (20, 100_000) if full else (5, 20_000)
    times, results = run_grid(seeds, steps)
    runs = [
        {
            "weights": name,
            "inner": rho,
            "speed": speed,
            "eta": speed * SCALES[name],
            **{
                key: np.round(getattr(found, key)[:, j, -1], 4)
                for key in ("ess", "entropy", "first", "current", "retrained")
            },
        }
        for (name, rho), found in results.items()
        for j, speed in enumerate(SPEEDS)
    ]
    settings = {
        "n": N,
        "m": M,
        "sigma": SIGMA,
        "ridge": RIDGE,
        "centre": CENTRE,
        "theta": [THETA_1, THETA_2],
        "steps": steps,
    }
    figure = {"times": times, "runs": results}
    return {"settings": settings, "seeds": seeds, "runs": runs, "figure": figure}


def label(rho: Any) -> str:
    return "exact inner solution" if rho == "exact" else f"inner step {rho:g}"


def draw(measured: dict[str, Any]) -> Figure:
    """Weights on the plane, curves of a run, and the final ESS over the grid."""
    times, results = measured["figure"]["times"], measured["figure"]["runs"]
    figure, axes = panels(5, 4, (14, 16))
    data = mixture(0)
    for row, (name, rho) in zip(axes, DRAWN, strict=False):
        runs, j = results[name, rho], SPEEDS.index(DRAWN[name, rho])
        for axis, part in zip(row, PARTS, strict=True):
            k = int(np.argmin(np.abs(times - part * times[-1])))
            weights = runs.weights[0, j, k]
            relative = weights / weights.max()
            size = np.where(relative < 1e-3, 2, 3 + 60 * np.sqrt(relative))
            for rows, colour in ((data.first, "C0"), (~data.first, "C3")):
                axis.scatter(*data.d[rows].T, s=size[rows], c=colour, lw=0)
            axis.set_title(
                f"{name}, {label(rho)}, iteration {times[k]}\nESS {runs.ess[0, j, k]:.0f}, "
                f"retrained error {runs.retrained[0, j, k]:.2f}",
                fontsize=10,
            )
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel("size: weight\nblue: right cluster, red: wrong")

    later = np.maximum(times, 0.5)  # iteration 0 on a logarithmic axis
    for axis, (name, rho) in zip(axes[3], [*DRAWN, ("mirror", RHO)], strict=True):
        j = SPEEDS.index(DRAWN.get((name, rho), 1e-3))
        runs, right = results[name, rho], axis.twinx()
        lines = [
            *axis.plot(later, runs.current[0, j], "C0", label="error, current parameters"),
            *axis.plot(later, runs.retrained[0, j], "C1", ls="--", label="error, retrained"),
            *right.plot(later, runs.entropy[0, j], "C3", label="entropy (right axis)"),
        ]
        right.set_ylim(-0.2, np.log(N) + 0.2)
        axis.set(xscale="log", yscale="log", xlabel="iteration", ylim=(3e-3, 10))
        axis.set_title(f"{name}, {label(rho)}, speed {SPEEDS[j]:g}", fontsize=10)
        if axis is axes[3, 1]:
            axis.legend(handles=lines, fontsize=8, loc="lower left")
    axes[3, 0].set_ylabel("distance to theta_1")

    for axis, rho in zip(axes[4], INNER, strict=True):
        for name, colour in (("softmax", "C4"), ("sigmoid", "C2"), ("mirror", "k")):
            ess = results[name, rho].ess[:, :, -1]
            axis.plot(SPEEDS, np.median(ess, 0), colour, marker="o", ms=4, label=name)
            axis.fill_between(SPEEDS, ess.min(0), ess.max(0), color=colour, alpha=0.2, lw=0)
        axis.set(xscale="log", yscale="log", ylim=(0.8, 700), xlabel="outer step, as speed")
        axis.set_title(label(rho), fontsize=10)
    axes[4, 0].set_ylabel(f"final ESS, of {N} rows")
    axes[4, 3].legend(fontsize=8)
    return figure


def before_sparse(runs: Runs, j: int) -> tuple[np.ndarray, np.ndarray]:
    """Retrained and current error at the last record before the ESS first falls below FOUND."""
    k = np.maximum((runs.ess[:, j] < FOUND).argmax(1) - 1, 0)[:, None]
    take = [np.take_along_axis(x[:, j], k, 1)[:, 0] for x in (runs.retrained, runs.current)]
    return take[0], take[1]


def claims(measured: dict[str, Any]) -> list[Claim]:
    """The statements of section 4.1 and of the caption of its figure."""
    results: dict[tuple[str, Any], Runs] = measured["figure"]["runs"]
    warm = INNER[1:]
    ess = {key: runs.ess[:, :, -1] for key, runs in results.items()}  # seed, speed
    soft_ess = np.stack([ess["softmax", rho] for rho in warm])
    soft_entropy = np.stack([results["softmax", rho].entropy for rho in warm])
    rises = np.diff(soft_entropy, axis=-1)
    fast = np.array(SPEEDS) >= 1e-2
    soft, sigmoid, slow = (results[key] for key in DRAWN)
    soft_end, sigmoid_end = soft.retrained[:, :, -1], sigmoid.retrained[:, :, -1]
    best = np.median(sigmoid_end, 0).min()
    j, j_soft = (SPEEDS.index(DRAWN[key]) for key in (("sigmoid", SLOW), ("softmax", RHO)))
    found, lagging = before_sparse(slow, j)
    slow_end, slow_left = slow.retrained[:, j, -1], slow.current[:, j, -1]
    by_speed = dict(zip(SPEEDS, np.median(ess["sigmoid", SLOW], 0).round(1).tolist(), strict=True))
    return [
        Claim(
            "R9",
            "Softmax: the entropy of the weights decreases during training.",
            "decreases (figure)",
            f"from {np.log(N):.2f} to a value of {span(soft_entropy[..., -1])}",
            bool(soft_entropy[..., -1].max() <= 0.5 * np.log(N)),
            f"It does not decrease at every step: it rises in {(rises > 1e-6).mean():.0%} of the "
            f"records, by at most {rises.max():.2f}, because weights on one row can spread again "
            "on their way to another row.",
        ),
        Claim(
            "R9",
            "Softmax (the caption) in place of mirror descent: the weights collapse at every outer "
            f"step of {np.log10(SPEEDS[-1] / SPEEDS[0]):.0f} decades and at every inner step.",
            "leads to the same behavior",
            f"effective sample size {span(soft_ess)}, at speeds of 0.01 and above "
            f"{span(soft_ess[:, :, fast])}",
            bool(soft_ess.max() <= SPARSE),
            "The warm start is not the only cause: with the exact inner solution and speeds up to "
            f"0.01 the effective sample size is {span(ess['softmax', 'exact'][:, :3], '.1f')} too, "
            f"whereas mirror descent keeps {span(ess['mirror', 'exact'][:, :3], '.0f')}.",
        ),
        Claim(
            "R9",
            f"Sigmoid / sum (the text) in place of mirror descent, inner step {RHO}: the weights "
            "collapse.",
            "leads to the same behavior",
            f"effective sample size {span(ess['sigmoid', RHO], '.0f')}, retrained error "
            f"{span(sigmoid_end)}",
            bool(ess["sigmoid", RHO].max() <= SPARSE),
            "They do not collapse at any outer step; those of mirror descent do from speed 0.1 on "
            f"(effective sample size at most {ess['mirror', RHO][:, 3:].max():.1f}). A sigmoid is at "
            "most 1, so the rows that win all end at the same value and share the weight; a mirror "
            "step has no such bound.",
        ),
        Claim(
            "R9",
            f"Sigmoid / sum with a much slower model (inner step {SLOW:g}, the case of Theorem 2), "
            f"speed {SPEEDS[j]:g}: the weights become sparse.",
            "leads to the same behavior",
            f"effective sample size {span(ess['sigmoid', SLOW][:, j], '.1f')}",
            bool(ess["sigmoid", SLOW][:, j].max() <= SPARSE),
            f"The median effective sample sizes by speed are {by_speed}: large steps saturate the "
            "sigmoids first.",
        ),
        Claim(
            "R9",
            "Before they are sparse, the weights identify the good cluster: retraining on them "
            "works while the current parameters are still far away (sigmoid, slow model).",
            "low retrained error, large current error",
            f"last record with an effective sample size of {FOUND} or more: retrained error "
            f"{span(found)}, current error {span(lagging)}",
            bool(found.max() <= 0.2 and (lagging >= 5 * found).all()),
            f"This is not so for softmax with inner step {RHO}: the retrained error is "
            f"{span(before_sparse(soft, j_soft)[0])}.",
        ),
        Claim(
            "R9",
            "The parameters catch up when the weights are already sparse, which leads to a large "
            "error, larger than the retrained error before (sigmoid, slow model; all seeds).",
            "large error",
            f"error of the parameters as left {span(slow_left)}; in {(slow_left > found).sum()} of "
            f"{len(found)} seeds it is above the retrained error before, with a median ratio of "
            f"{np.median(slow_left / found):.1f}",
            bool((slow_left > found).all()),
            f"Retrained on the final weights the error is {span(slow_end)}. The longer the run, "
            "the closer the parameters come to what the few rows say, which is right in some "
            "seeds.",
        ),
        Claim(
            "R9",
            f"Softmax, inner step {RHO}, speeds of 0.01 and above: a model retrained on the "
            "collapsed weights has a large error, at least 5 times that of sigmoid / sum at its "
            "best speed.",
            "large error",
            f"median error {np.median(soft_end[:, fast]):.2f}, of sigmoid / sum {best:.3f}",
            bool(np.median(soft_end[:, fast]) >= 5 * best),
            "At smaller speeds the one to three rows that are left fit the outer data, because the "
            f"model has two parameters: the median is {np.median(soft_end[:, ~fast]):.3f}.",
        ),
    ]


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
