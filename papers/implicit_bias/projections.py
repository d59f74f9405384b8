"""V6, Figure 8: warm starts as projections from one solution set to the next (Kaczmarz).

Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in overparameterized bilevel
optimization", section 4.1 and Appendix B.2 [vicol2022][]. A linear model of two parameters is trained
on one synthetic point at a time, `f(u, w) = (x^T w - y)^2 / 2` with `u = (x, y)`. Four given points
are used in a cycle, so there are four lines of solutions. A full warm start projects w onto one line
after the other and ends in their intersection. A partial warm start takes a step towards each line. A
cold start projects the origin anew. The outer loss is lowest at the intersection: the warm model has
good parameters although no single point determines them.

We add the rate, which is a product of cosines in the plane; the limit in 30 dimensions, which is the
projection of the start onto the intersection; and solution sets without a common point, where warm
starts end in a cycle. We chose the directions of the lines, which the paper does not give.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import bilevel
from bilevel import cold_start_solution, warm_start_solution

sys.path.insert(0, str(Path(__file__).parents[1]))
from _frame import Claim, panels, run

ANGLES = np.deg2rad([15.0, 55.0, 100.0, 150.0])  # of the four x
X = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
MEETING = np.array([1.5, 1.0])
MOVED = np.array([0.3, -0.3, 0.3, -0.3])  # makes lines that have no common point
STARTS = {"origin": np.zeros(2), "another start": np.array([3.0, -0.5])}
CYCLES = 30
PARTIAL = bilevel.GradientInner(optax.sgd(0.25), 2)
SHARE = 1 - 0.75**2  # of the way to the solution set that these two steps go, as |x| = 1
DIM, POINTS = 30, 10


def inner(u, w, batch):
    return 0.5 * (u["x"] @ w - u["y"]) ** 2


def outer(u, w, batch):
    return 0.5 * jnp.sum((w - jnp.asarray(MEETING)) ** 2)


PROBLEM = bilevel.BilevelProblem(outer, inner)
WIDE = bilevel.BilevelProblem(lambda u, w, _: 0.5 * jnp.sum(w**2), inner)  # F is not looked at


def points(x: np.ndarray, y: np.ndarray, cycles: int) -> dict[str, jax.Array]:
    """The synthetic points, over and over."""
    return {"x": jnp.tile(jnp.asarray(x), (cycles, 1)), "y": jnp.tile(jnp.asarray(y), cycles)}


@jax.jit
def full_warm(us: dict[str, jax.Array], w0: jax.Array) -> jax.Array:
    return warm_start_solution(PROBLEM if w0.size == 2 else WIDE, us, w0).w


@jax.jit
def partial_warm(us: dict[str, jax.Array], w0: jax.Array) -> jax.Array:
    return warm_start_solution(PROBLEM, us, w0, PARTIAL).w


@jax.jit
def cold(us: dict[str, jax.Array], w0: jax.Array) -> jax.Array:
    return jax.vmap(lambda u: cold_start_solution(PROBLEM, u, w0).w)(us)


METHODS = {"full warm start": full_warm, "partial warm start": partial_warm, "cold start": cold}


def projections(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Equation (18), one projection per row."""
    return w - ((np.sum(w * x, axis=1) - y) / np.sum(x * x, axis=1))[:, None] * x


def plane() -> dict[str, Any]:
    """Figure 8: the three methods from two starts."""
    us = points(X, X @ MEETING, CYCLES)
    found: dict[str, Any] = {"paths": {}, "distances": {}, "step_errors": {}}
    for start, w0 in STARTS.items():
        for name, method in METHODS.items():
            path = np.vstack([w0, method(us, jnp.asarray(w0))])
            before = np.broadcast_to(w0, path[1:].shape) if name == "cold start" else path[:-1]
            projected = projections(before, *map(np.asarray, (us["x"], us["y"])))
            share = SHARE if name == "partial warm start" else 1
            errors = np.abs(path[1:] - before - share * (projected - before))
            found["paths"][f"{name}, {start}"] = path
            found["distances"][f"{name}, {start}"] = np.linalg.norm(path - MEETING, axis=1)
            found["step_errors"][f"{name}, {start}"] = float(errors.max())
    turns = np.diff([*ANGLES, ANGLES[0] + np.pi])
    found["rate"] = float(np.prod(np.abs(np.cos(turns))))
    # The error after a projection lies along the line, and the next keeps its cosine.
    away = found["distances"]["full warm start, origin"]
    found["measured_rate"] = [float(away[4 * k + 5] / away[4 * k + 1]) for k in range(10)]
    return found


def many_dimensions(cycles: int) -> dict[str, Any]:
    """From three starts: the distance of the limit to the projection of the start."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(POINTS, DIM)), rng.normal(size=POINTS)
    us = points(x, y, cycles)
    errors, misfits = [], []
    for w0 in (np.zeros(DIM), *rng.normal(size=(2, DIM))):
        last = np.asarray(full_warm(us, jnp.asarray(w0))[-1])
        nearest = w0 + np.linalg.pinv(x) @ (y - x @ w0)
        errors.append(float(np.linalg.norm(last - nearest) / np.linalg.norm(nearest)))
        misfits.append(float(np.abs(x @ last - y).max()))
    return {"errors": errors, "misfits": misfits, "cycles": cycles}


def no_common_point() -> dict[str, Any]:
    """The same lines, moved so that they do not meet: warm starts end in a cycle."""
    us = points(X, X @ MEETING + MOVED, CYCLES)
    path = np.asarray(full_warm(us, jnp.zeros(2)))
    last, before = path[-4:], path[-8:-4]
    return {
        "path": path,
        "change_in_a_cycle": float(np.abs(last - before).max()),
        "smallest_move": float(np.linalg.norm(np.diff(path[-5:], axis=0), axis=1).min()),
    }


def measure(full: bool) -> dict[str, Any]:
    """The plane, 30 dimensions, and lines without a common point."""
    with jax.enable_x64(True):
        found = plane()
        wide = many_dimensions(400 if full else 100)
        apart = no_common_point()
    return {
        "settings": {
            "angles": np.rad2deg(ANGLES).tolist(),
            "meeting": MEETING.tolist(),
            "cycles": CYCLES,
            "partial": {"rate": 0.25, "steps": PARTIAL.num_steps},
        },
        "seeds": [0],
        "distances": {name: away[::4] for name, away in found["distances"].items()},
        "step_errors": found["step_errors"],
        "rate": found["rate"],
        "measured_rate": found["measured_rate"],
        "many_dimensions": wide,
        "no_common_point": {k: v for k, v in apart.items() if k != "path"},
        "figure": {"found": found, "apart": apart},
    }


def draw(measured: dict[str, Any]) -> Figure:
    """The sketch, the distances, and the limit cycle."""
    found, apart = measured["figure"]["found"], measured["figure"]["apart"]
    figure, (left, middle, right) = panels(1, 3, (11.5, 3.8))
    colours = dict(zip(METHODS, ("C0", "C1", "C3"), strict=True))
    grid = np.linspace(-3, 5, 100)

    def lines(axis, offsets: np.ndarray) -> None:
        for i, (normal, offset) in enumerate(zip(X, offsets, strict=True)):
            along = np.array([-normal[1], normal[0]])
            ends = offset * normal + np.outer([-9, 9], along)
            axis.plot(*ends.T, c="k", lw=1, label=r"$\mathcal{S}(u_i)$" if i == 0 else None)

    values = (grid[None, :] - MEETING[0]) ** 2 + (grid[:, None] - MEETING[1]) ** 2
    left.contourf(grid, grid, values, levels=np.linspace(0, 9, 13), cmap="Greens_r", alpha=0.4)
    lines(left, X @ MEETING)
    for name, colour in colours.items():
        for start in STARTS:
            path = found["paths"][f"{name}, {start}"]
            label = name if start == "origin" else None
            if name != "cold start":
                left.plot(*path[:17].T, ".-", c=colour, ms=4, lw=1.2, label=label)
            elif start == "origin":
                left.plot(*path[1:5].T, "o", c=colour, ms=6, label=label, zorder=4)
                for point in path[1:5]:
                    left.plot(*np.stack([path[0], point]).T, c=colour, lw=0.8, ls="--")
            left.plot(*path[0], "ks", ms=5)
    left.plot(*MEETING, "*", c="gold", mec="k", ms=15, zorder=5, label="intersection")
    left.set(xlim=(-0.6, 3.4), ylim=(-1.2, 2.6), xlabel=r"$w_1$", ylabel=r"$w_2$", aspect="equal")
    left.set_title("Figure 8 (squares: starts)", fontsize=10)
    left.legend(fontsize=8, loc="upper right")

    for name, away in found["distances"].items():
        method, start = name.split(", ")
        dashes, label = ("-", method) if start == "origin" else (":", None)
        middle.semilogy(np.maximum(away, 1e-16), dashes, c=colours[method], lw=1.2, label=label)
    steps = np.arange(1, 100, 4)
    rate = found["distances"]["full warm start, origin"][1] * found["rate"] ** ((steps - 1) / 4)
    middle.semilogy(steps, rate, "k.", ms=4, label="rate: product of cosines")
    middle.set_title("distance to the intersection (dotted: other start)", fontsize=10)
    middle.set(xlabel="outer step", ylabel="distance", ylim=(1e-19, 30))
    middle.legend(fontsize=8, loc="lower left")

    lines(right, X @ MEETING + MOVED)
    right.plot(*np.vstack([np.zeros(2), apart["path"][:-4]]).T, ".-", c="C0", ms=3, lw=0.8)
    right.plot(*np.vstack([apart["path"][-4:], apart["path"][-4]]).T, "C3o-", label="last cycle")
    right.set(xlim=(-0.3, 2.6), ylim=(-0.3, 2.4), xlabel=r"$w_1$", ylabel=r"$w_2$", aspect="equal")
    right.set_title("no common point: full warm start", fontsize=10)
    right.legend(fontsize=8)
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """From the numbers alone; the worse of the two starts."""
    found, wide, apart = (
        measured["figure"]["found"],
        measured["many_dimensions"],
        measured["no_common_point"],
    )
    away = {
        name: np.array([found["distances"][f"{name}, {start}"] for start in STARTS])
        for name in METHODS
    }
    errors = [max(found["step_errors"][f"{name}, {start}"] for start in STARTS) for name in METHODS]
    warm = {name: away[f"{name} warm start"].max(axis=0) for name in ("full", "partial")}
    last = {name: float(d[-1]) for name, d in warm.items()}
    early = {name: float(d[4 * 5]) for name, d in warm.items()}
    colds = away["cold start"][:, 1:]
    change = float(np.ptp(colds.reshape(len(STARTS), CYCLES, 4), axis=1).max())
    rate, rates = found["rate"], found["measured_rate"]
    rate_error = max(abs(x / rate - 1) for x in rates)
    claim = partial(Claim, "V6")
    return [
        claim(
            "Full warm starts project from one solution set to the next, partial warm starts take a "
            "step towards each, and cold starts project their first point anew (Figure 8).",
            "equation (18)",
            "largest difference to the projection, to "
            f"{SHARE:.4f} of the way to it, and to the projection of the start: "
            + ", ".join(f"{error:.0e}" for error in errors),
            max(errors) <= 1e-12,
        ),
        claim(
            "A full warm start converges to the intersection of the solution sets (Figure 8).",
            "converges",
            f"distance at most {max(last['full'], 1e-16):.0e} after {CYCLES} cycles, from two starts",
            last["full"] <= 1e-12,
            f"Each cycle multiplies the distance by {rates[0]:.4f}, the product of the cosines of "
            f"the angles between successive lines ({rate:.4f}).",
        ),
        claim(
            "A full warm start converges at the rate of alternating projections (our addition).",
            "not in the paper",
            f"relative difference to the product of cosines at most {rate_error:.0e}",
            rate_error <= 1e-6,
        ),
        claim(
            "A partial warm start converges to the intersection too, but later (Figure 8).",
            "figure",
            f"distance at most {last['partial']:.0e} after {CYCLES} cycles; after 5 cycles "
            f"{early['partial']:.0e}, that of the full warm start {early['full']:.0e}",
            early["full"] < early["partial"] and last["partial"] <= 1e-12,
        ),
        claim(
            "A cold start does not converge: it repeats the same cycle (Figure 8).",
            "projects the origin anew",
            f"distance {colds.min():.2f} to {colds.max():.2f}, the same in every cycle to "
            f"{max(change, 1e-16):.0e}, from two starts; F is at least {0.5 * colds.min() ** 2:.2f}",
            bool(colds.min() > 0.1) and change <= 1e-12,
        ),
        claim(
            "Warm-started inner parameters fit all the points that the run has seen "
            f"({POINTS} points, {DIM} parameters).",
            "weights which fit all of the distilled datapoints",
            f"largest misfit {max(wide['misfits']):.0e} after {wide['cycles']} cycles; the limit is "
            f"the projection of the start to {max(wide['errors']):.0e}",
            max(wide["misfits"]) <= 1e-8 and max(wide["errors"]) <= 1e-8,
        ),
        claim(
            "Successive projections can converge to limit cycles (Appendix B.2).",
            "limit cycles",
            f"a cycle changes by {apart['change_in_a_cycle']:.0e}, and its steps are at least "
            f"{apart['smallest_move']:.2f} long",
            apart["change_in_a_cycle"] <= 1e-12 and apart["smallest_move"] >= 0.01,
        ),
    ]


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
