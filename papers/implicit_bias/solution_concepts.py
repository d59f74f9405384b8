"""V8, Figure 2: optimistic, pessimistic, cold-started and warm-started solutions of one problem.

Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in overparameterized bilevel
optimization", section 2 [vicol2022][]. Points on both sides of a sine are distilled into two synthetic
points, one per class. The classifier has many more parameters than it has training points, so the
inner problem has many solutions, which all label the synthetic points correctly. The four concepts
differ in the solution that they take, and so in the synthetic points that are best. The paper's figure
is a sketch; the numbers are ours:

    prediction  phi(x)'w, with 9 x 9 Gaussian bumps phi of width 0.6 on [-3, 3]^2
    f(u, w) = sum of the two squared errors / 2,  F(w) = mean squared error of 160 points / 2

so that the solution sets are affine and change direction with u. Optimistic, pessimistic and cold
solutions are functions of u, through which u is learned with Adam from several starts; we take the
best end. A worst inner solution exists only within a bound, since F is unbounded: we take it from a
ball of radius 5 around the cold solution, whose own norm is 1. A warm start minimises nothing, and its
result depends on its step sizes: we run four settings, of which the figure shows the first (the best
on the first draw of the 18 that we tried).
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import bilevel
from bilevel import InnerSolution, cold_start_solution, optimistic_solution, pessimistic_solution

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bias import rollout
from _frame import Claim, panels, run

SIZE, BUMPS, WIDTH, POINTS, MARGIN = 3.0, 9, 0.6, 160, 0.25
LABELS = np.array([1.0, -1.0])
START = np.array([[-1.0, 1.5], [1.0, -1.5]])
CONCEPTS = ("optimistic", "pessimistic", "cold start", "warm start", "retrained")
STARTS, QUICK_STARTS, RADIUS = 8, 2, 5.0
OUTER_STEP, OUTER_STEPS = 0.05, 200
INNER_STEP, WARM_STEPS = 0.3, 6000
WARM = ((5, 0.3), (20, 0.3), (5, 0.1), (1, 0.3))  # inner steps, Adam's step


class Data(NamedTuple):
    """The points, their labels and their features."""

    x: np.ndarray
    y: np.ndarray
    features: np.ndarray


def boundary(x: np.ndarray) -> np.ndarray:
    return 1.5 * np.sin(2 * x)


def features(x: jax.Array) -> jax.Array:
    """The bumps at `x` of shape (points, 2)."""
    grid = jnp.linspace(-SIZE, SIZE, BUMPS)
    centres = jnp.stack(jnp.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    squares = jnp.sum((x[:, None, :] - centres[None]) ** 2, axis=-1)
    return jnp.exp(-squares / (2 * WIDTH**2))


def original(seed: int) -> Data:
    """Points at some distance from the sine, labelled by their side of it."""
    x = np.random.default_rng(seed).uniform(-SIZE, SIZE, (4 * POINTS, 2))
    height = x[:, 1] - boundary(x[:, 0])
    keep = np.flatnonzero(np.abs(height) > MARGIN)[:POINTS]
    return Data(x[keep], np.sign(height[keep]), np.asarray(features(jnp.asarray(x[keep]))))


def problem_of(data: Data) -> bilevel.BilevelProblem:
    def inner(u, w, batch):
        return 0.5 * jnp.sum((features(u) @ w - jnp.asarray(LABELS)) ** 2)

    def outer(u, w, batch):
        phi, y = batch
        return 0.5 * jnp.mean((phi @ w - y) ** 2)

    return bilevel.BilevelProblem(
        outer,
        inner,
        outer_data=(jnp.asarray(data.features), jnp.asarray(data.y)),
        geometry=bilevel.Box(-SIZE, SIZE),
    )


Respond = Callable[[jax.Array], InnerSolution]


def learn(problem: bilevel.BilevelProblem, respond: Respond, starts: int) -> jax.Array:
    """The u that is best for an inner solution that is a function of u, of the ends of all starts."""
    method = bilevel.DoubleLoop(
        bilevel.ClosedForm(lambda u, _: respond(u).w), bilevel.ITD(), optax.adam(OUTER_STEP)
    )

    def end(u0: jax.Array) -> jax.Array:
        return rollout(problem, method, u0, jnp.zeros(BUMPS**2), OUTER_STEPS)[0][-1]

    others = np.random.default_rng(0).uniform(-SIZE, SIZE, (STARTS - 1, *START.shape))
    ends = jax.jit(jax.vmap(end))(jnp.concatenate([START[None], others])[:starts])
    return ends[jnp.nanargmin(jax.jit(jax.vmap(respond))(ends).value)]


def warm(problem: bilevel.BilevelProblem, inner_steps: int, rate: float) -> tuple[Any, Any]:
    """The outer and the inner variable after each step of a warm-started run."""
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(INNER_STEP), inner_steps),
        bilevel.ITD(),
        optax.adam(rate),
        warm_start=True,
    )
    return jax.jit(lambda u, w: rollout(problem, method, u, w, WARM_STEPS))(
        jnp.asarray(START), jnp.zeros(BUMPS**2)
    )


def run_seed(seed: int, starts: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """All concepts on one draw of the points: the numbers, and what the picture needs."""
    data = original(seed)
    problem, w0 = problem_of(data), jnp.zeros(BUMPS**2)
    start = jnp.asarray(START)

    # One Newton step is the closed form: F is quadratic.
    best = jax.jit(lambda u: optimistic_solution(problem, u, w0, num_steps=1))
    cold = jax.jit(lambda u: cold_start_solution(problem, u, w0))
    worst = jax.jit(lambda u: pessimistic_solution(problem, u, w0, RADIUS, num_steps=100))
    concepts: dict[str, Respond] = {"optimistic": best, "pessimistic": worst, "cold start": cold}

    def record(u: Any, choice: InnerSolution) -> dict[str, Any]:
        fitted = np.asarray(features(jnp.asarray(u)) @ choice.w)
        return {
            "value": float(choice.value),
            "accuracy": float(np.mean(np.sign(data.features @ np.asarray(choice.w)) == data.y)),
            "inner_residual": float(choice.inner_residual),
            "synthetic_correct": bool(np.all(np.sign(fitted) == LABELS)),
            "u": np.asarray(u).tolist(),
        }

    us = {name: learn(problem, respond, starts) for name, respond in concepts.items()}
    chosen = {name: concepts[name](u) for name, u in us.items()}
    found = {name: record(us[name], choice) for name, choice in chosen.items()}
    shortest = np.linalg.pinv(np.asarray(features(us["cold start"]))) @ LABELS
    off = float(np.abs(np.asarray(chosen["cold start"].w) - shortest).max())
    runs = {f"T = {steps}, step {rate}": warm(problem, steps, rate) for steps, rate in WARM}
    settings: dict[str, Any] = {}
    for setting, (way, ws) in runs.items():
        u, w = way[-1], ws[-1]
        residual = jnp.linalg.norm(problem.residual(u, w, problem.inner_data))
        value = problem.outer(u, w, problem.outer_data)
        last = {
            "warm start": InnerSolution(w, value, residual, jnp.zeros_like(value)),
            "retrained": cold(u),
        }
        settings[setting] = {name: record(u, choice) for name, choice in last.items()}
        chosen = last | chosen  # the first setting is the one that is drawn
    chosen = {name: chosen[name] for name in CONCEPTS}
    found |= next(iter(settings.values()))
    grid = np.linspace(-SIZE - 0.2, SIZE + 0.2, 150)
    mesh = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    phi = np.asarray(features(jnp.asarray(mesh)))
    values = {n: (phi @ np.asarray(x.w)).reshape(150, 150) for n, x in chosen.items()}
    numbers = {
        "norm": {
            name: float(jnp.linalg.norm(respond(start).w)) for name, respond in concepts.items()
        },
        "min_norm_error": off,
        "at_start": {name: record(start, respond(start)) for name, respond in concepts.items()},
        "found": found,
        "warm_settings": settings,
    }
    way = np.asarray(next(iter(runs.values()))[0])
    return numbers, {"grid": grid, "values": values, "way": way, "data": data}


def measure(full: bool) -> dict[str, Any]:
    """Full: five draws of the points, u learned from eight starts. Quick: one draw, two starts."""
    seeds, starts = (range(5), STARTS) if full else (range(1), QUICK_STARTS)
    with jax.enable_x64(True):
        outcomes = [run_seed(seed, starts) for seed in seeds]
    return {
        "settings": {
            "bumps": BUMPS,
            "width": WIDTH,
            "points": POINTS,
            "outer": {"step": OUTER_STEP, "steps": OUTER_STEPS, "starts": starts},
            "radius": RADIUS,
            "warm": {"inner_step": INNER_STEP, "steps": WARM_STEPS, "settings": WARM},
        },
        "seeds": list(seeds),
        "runs": [numbers for numbers, _ in outcomes],
        "figure": outcomes[0][1],
    }


def draw(measured: dict[str, Any]) -> Figure:
    """The four panels, and what retraining makes of the fourth."""
    found, seen = measured["runs"][0]["found"], measured["figure"]
    grid, data = seen["grid"], seen["data"]
    figure, axes = panels(1, 5, (15, 3.6), sharey=True)
    for axis, (name, values) in zip(axes, seen["values"].items(), strict=True):
        axis.contourf(grid, grid, values, levels=[-1e9, 0, 1e9], colors=["#f4b6b6", "#bfe3bf"])
        axis.contour(grid, grid, values, levels=[0], colors="C0", linewidths=1.5)
        axis.plot(grid, boundary(grid), "k--", lw=0.8)
        for i, (label, colour) in enumerate(zip(LABELS, ("green", "red"), strict=True)):
            axis.plot(*data.x[data.y == label].T, ".", c=colour, ms=4)
            if name == "warm start":
                axis.plot(*seen["way"][:, i].T, c=colour, lw=0.4, alpha=0.7)
            point = found[name]["u"][i]
            axis.plot(*point, "*", c=colour, mec="k", ms=16, zorder=5, clip_on=False)
        title = "retrained on the warm start's points" if name == "retrained" else name
        scores = f"accuracy {found[name]['accuracy']:.2f}, F = {found[name]['value']:.2f}"
        axis.set_title(f"{title}\n{scores}", fontsize=10)
        axis.set(xlim=(grid[0], grid[-1]), ylim=(grid[0], grid[-1]), xlabel=r"$x_1$")
    axes[0].set_ylabel(r"$x_2$")
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """From the numbers alone."""
    outcomes = measured["runs"]
    found = [outcome["found"] for outcome in outcomes]
    starts = measured["settings"]["outer"]["starts"]
    pairs = [(s, run) for run in outcomes for s in run["warm_settings"].values()]

    def column(name: str, key: str) -> list[float]:
        return [row[name][key] for row in found]

    def spread(values: list[float]) -> str:
        return f"{min(values):.3f}" + (f" to {max(values):.3f}" if len(values) > 1 else "")

    everything = [point for row in found for point in row.values()]
    exact = ("optimistic", "pessimistic", "cold start", "retrained")
    residual = max(max(column(name, "inner_residual")) for name in exact)
    colds = column("cold start", "value")
    shortest = max(outcome["min_norm_error"] for outcome in outcomes)
    ordered = all(
        a["optimistic"]["value"] < a["cold start"]["value"] < a["pessimistic"]["value"]
        for outcome in outcomes
        for a in (outcome["at_start"], outcome["found"])
    )
    values = [
        (s["warm start"]["value"], s["retrained"]["value"], run["found"]["cold start"]["value"])
        for s, run in pairs
    ]
    claim = partial(Claim, "V8")
    return [
        claim(
            "All four solutions label the synthetic points correctly (Figure 2).",
            "all",
            f"{sum(p['synthetic_correct'] for p in everything)} of {len(everything)}; inner "
            f"residual of the exact ones at most {residual:.0e}, of the warm start "
            f"{max(column('warm start', 'inner_residual')):.0e}",
            all(p["synthetic_correct"] for p in everything) and residual <= 1e-6,
        ),
        claim(
            "The optimistic solution classifies all original points correctly (Figure 2).",
            "all",
            f"accuracy {spread(column('optimistic', 'accuracy'))}",
            min(column("optimistic", "accuracy")) == 1,
        ),
        claim(
            "The pessimistic solution, the worst of the valid ones, is wrong on most of the original "
            "points (Figure 2, where the sides are exchanged).",
            "incorrect",
            f"accuracy {spread(column('pessimistic', 'accuracy'))}",
            max(column("pessimistic", "accuracy")) < 0.5,
            "It is not wrong on all of them: the squared error is largest if some predictions are "
            "very far from their labels.",
        ),
        claim(
            "The cold start takes the minimum-norm solution, whose outer value lies between the "
            "optimistic and the pessimistic one (Figure 2).",
            "min-norm",
            f"accuracy {spread(column('cold start', 'accuracy'))}; F of optimistic, cold, "
            f"pessimistic {spread(column('optimistic', 'value'))}, {spread(colds)}, "
            f"{spread(column('pessimistic', 'value'))}; distance to the minimum-norm w {shortest:.0e}",
            ordered and shortest <= 1e-10,
        ),
        claim(
            "The trajectory of a warm start can make the model fit the original points (Figure 2).",
            "can",
            f"F {spread([w for w, _, _ in values])} in {len(WARM)} settings, best cold start "
            f"{spread(colds)}; mean accuracy of the first setting "
            f"{np.mean(column('warm start', 'accuracy')):.3f} against "
            f"{np.mean(column('cold start', 'accuracy')):.3f}",
            all(w < c for w, _, c in values)
            and sum(column("warm start", "accuracy")) > sum(column("cold start", "accuracy")),
            f"This is better than the best cold start of {starts} runs, but far from the optimistic "
            "solution.",
        ),
        claim(
            "Retraining on the last two points of the warm start is worse than the cold start "
            "(our addition).",
            "not in the figure",
            f"F {spread([lost for _, lost, _ in values])}, accuracy "
            f"{spread([s['retrained']['accuracy'] for s, _ in pairs])}",
            all(lost > max(c, w) for w, lost, c in values),
            "It is worse in F, which is minimised; in accuracy it can be better than the cold start.",
        ),
    ]


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
