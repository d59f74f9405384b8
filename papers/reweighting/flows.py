"""R4, R5: Algorithm 2 against its flow (Proposition 2), and the flow's two limits (Theorems 1, 2).

Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization", section 3.
The paper states the limits; we measure them, with their orders:

- Proposition 2: the iterates with steps (rho, eta) = tau (alpha, beta) follow the joint flow (8);
- Theorem 1: for beta -> 0 the weights, on the time scale t / beta, follow the exact mirror flow of
  grad h, and theta closes in on theta*(w) from wherever it starts;
- Theorem 2: for alpha -> 0 the parameters, on the time scale t / alpha, follow the gradient flow
  with weights Omega(theta, w_0), the end of the mirror flow with frozen theta.

The instance is the mixture of section 2.4 with few rows and a ridge that makes every loss strongly
convex, as Assumption 1 asks. (The mixture of `toy_mixture.py` is the same, cut to its first rows.)
Theorem 2 assumes that Omega is smooth in theta. No instance has this property everywhere, because
the support of Omega changes. We take an instance and a horizon on which it does not change, and on
which the weight of one of its two rows grows from 0.35 to 0.74; then an instance on which Omega
jumps, to see what happens after the jump.

What does happen is our own: the limit for alpha -> 0 is the flow whose weight sits on the argmin of
the *integrated* field (`bilevel.dynamics.slow_model_flow`), which Omega does not know of. We compare
the joint flow with both limits, on that instance and on the smallest one, two rows x = -1 and 1 of a
mean, for which both limits are known by hand; and count on random instances how often Omega changes
its support along the way.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jax import Array
from matplotlib.figure import Figure

import bilevel
from bilevel import BilevelProblem, dynamics
from bilevel.tasks import reweighting, uniform_weights
from bilevel.tasks.models import squared_error

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels, slope, span
from toy_mixture import mixture

N, M, RIDGE = 12, 50, 0.1  # rows, outer rows, the strong convexity mu of every loss
START = (3.0, 0.0)  # of theta
SEED, HORIZON = 3, 0.6  # Omega's support does not change: Theorem 2
JUMP_SEED, JUMP_HORIZON, BEFORE = 8, 1.3, 0.9  # it does: when we stop, and when all is still smooth
TAU, BETA, ALPHA = 0.01, 1.6e-3, 0.02  # the first of each series, which halves from there
TARGET, MEAN_START, MEAN_HORIZON = 0.3, -0.5, 3.0  # the mean of two rows: outer optimum, start, end
MEAN_ALPHAS = (1e-2, 1e-3, 1e-4)
COUNTED_HORIZON, COUNTED_POINTS = 3.0, 61
POINTS = 201  # times at which flows are compared
VISIBLE = 1e-3  # what counts as the support of Omega, near whose changes its flow gets slow


def predict(w: Array, x: Array) -> Array:
    """A linear model of one output, without intercept."""
    return (x @ w)[:, None]


def problem_of(seed: int) -> BilevelProblem:
    """The first rows of the mixture of section 2.4, with a ridge."""
    data = mixture(seed)
    x, y, x_outer, y_outer = map(jnp.asarray, data[:4])
    return reweighting(
        x[:N], y[:N], x_outer[:M], y_outer[:M], predict, loss=squared_error, l2=RIDGE
    )


def hessian(u: Array, batch: tuple[Array, ...]) -> Array:
    """The Hessian of G, which does not depend on theta."""
    d = batch[0]
    return d.T @ (u[:, None] * d) + RIDGE * jnp.eye(d.shape[1])


def solution(u: Array, batch: tuple[Array, ...]) -> Array:
    """`theta*(w)`."""
    d, y = batch[:2]
    return jnp.linalg.solve(hessian(u, batch), d.T @ (u * y))


EXACT = bilevel.ClosedForm(solution)


def rows_of(problem: BilevelProblem) -> tuple[Array, ...]:
    """The training rows."""
    assert isinstance(problem.inner_data, tuple)
    return problem.inner_data


def parameters(flow: dynamics.Flow) -> Array:
    """theta along a joint flow."""
    assert isinstance(flow.w, Array)
    return flow.w


def halvings(first: float, count: int) -> np.ndarray:
    return first * 0.5 ** np.arange(count)


# Proposition 2.


class Iterates(NamedTuple):
    """Iterates, with their number as the first axis."""

    u: Array
    w: Array


def library_step(
    problem: BilevelProblem, u: Array, w: Array, rho: Array, eta: Array
) -> tuple[Array, Array]:
    """One step of Algorithm 2 as the library has it: Psi at the new theta."""
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(rho), 1),
        bilevel.AID(lx.Cholesky()),
        optax.sgd(eta),
        warm_start=True,
    )
    state, _ = method.step(problem, method.init(problem, u, w, jax.random.key(0)))
    return state.u, state.w


def printed_step(
    problem: BilevelProblem, u: Array, w: Array, rho: Array, eta: Array
) -> tuple[Array, Array]:
    """One step of Algorithm 2 as printed: Psi at the old theta."""
    psi = bilevel.implicit_gradient(problem, u, w, lx.Cholesky()).grad
    slope = problem.residual(u, w, problem.inner_data)
    return problem.geometry.retract(u, -eta * psi), w - rho * slope


@eqx.filter_jit
def iterates(
    step: Any, problem: BilevelProblem, u0: Array, w0: Array, taus: Array, num_steps: int
) -> Iterates:
    """`num_steps` steps with rho = eta = tau, for all tau at once (the first axis)."""

    def run(tau: Array) -> Iterates:
        def one(point: Iterates, _: None) -> tuple[Iterates, Iterates]:
            point = Iterates(*step(problem, point.u, point.w, tau, tau))
            return point, point

        _, path = jax.lax.scan(one, Iterates(u0, w0), length=num_steps)
        return Iterates(
            *(jnp.concatenate([x[None], xs]) for x, xs in zip((u0, w0), path, strict=True))
        )

    return jax.vmap(run)(taus)


def discretisation(seed: int, count: int, horizon: float = 1.0) -> dict[str, Any]:
    """Proposition 2, alpha = beta = 1: sup over [0, T] of the distance in (theta, w) for each tau."""
    problem, u0, w0 = problem_of(seed), uniform_weights(N), jnp.array(START)
    taus = halvings(TAU, count)
    num_steps = round(horizon / taus[-1])
    ts = jnp.arange(num_steps + 1) * taus[-1]
    flow = dynamics.joint_flow(problem, u0, w0, ts, alpha=1.0, beta=1.0)
    exact = np.concatenate([flow.u, parameters(flow)], axis=1)
    gaps = {}
    for name, step in {"library": library_step, "printed": printed_step}.items():
        path = iterates(step, problem, u0, w0, jnp.asarray(taus), num_steps)
        points = np.concatenate(path, axis=2)
        gaps[name] = []
        for i, point in enumerate(points):
            stride = 2 ** (count - 1 - i)
            here, there = exact[:-1:stride], exact[stride::stride]
            # The iterate stays where it is until the next one: it is compared at both ends.
            kept = point[: len(here)]
            gap = [np.linalg.norm(kept - x, axis=1).max() for x in (here, there)]
            gaps[name].append(float(max(gap)))
    return {
        "seed": seed,
        "horizon": horizon,
        "tau": taus.tolist(),
        "gaps": gaps,
        "slopes": {name: slope(taus, np.array(gap)) for name, gap in gaps.items()},
    }


# Theorem 1.


def slow_weights(seed: int, count: int, horizon: float = 5.0) -> tuple[dict[str, Any], dict]:
    """Theorem 1, alpha = 1: both of its statements for each beta, from theta*(w_0) and elsewhere."""
    problem, u0 = problem_of(seed), uniform_weights(N)
    rows = rows_of(problem)
    betas = halvings(BETA, count)
    # Fine at the start, where theta has its transient.
    ts = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-4, horizon, POINTS - 1)])
    limit = dynamics.mirror_flow(dynamics.exact_field(problem, EXACT, jnp.zeros(2)), u0, ts)
    best = jax.jit(jax.vmap(lambda u: solution(u, rows)))
    fast = jnp.linspace(0, 20, POINTS)  # in the time of theta
    sharp = float(np.linalg.eigvalsh(hessian(u0, rows))[0])

    numbers: dict[str, Any] = {"seed": seed, "horizon": horizon, "beta": betas.tolist()}
    numbers |= {"mu": RIDGE, "smallest eigenvalue at w_0": sharp}
    weights = []
    starts = {"at theta*(w_0)": solution(u0, rows), "elsewhere": jnp.array(START)}
    for name, w0 in starts.items():
        gaps, lags, over, excess = [], [], [], []
        for beta in betas:
            flow = dynamics.joint_flow(problem, u0, w0, ts / beta, alpha=1.0, beta=beta)
            gaps.append(float(np.linalg.norm(flow.u - limit.u, axis=1).max()))
            if name == "elsewhere":
                weights.append(np.asarray(flow.u))
            flow = dynamics.joint_flow(problem, u0, w0, fast, alpha=1.0, beta=beta)
            lag = np.linalg.norm(parameters(flow) - best(flow.u), axis=1)
            bounds = [lag[0] * np.exp(-rate * np.asarray(fast)) for rate in (RIDGE, sharp)]
            lags.append(float(lag.max()))
            over.append(float((lag - bounds[0]).max()))
            excess.append(float((lag - bounds[1]).max()))
        numbers[name] = {"gaps": gaps, "slope": slope(betas, np.array(gaps))}
        if name == "elsewhere":
            numbers[name] |= {"over the bound": over, "over the sharp bound": excess}
            numbers[name]["over the sharp bound, per beta"] = (np.array(excess) / betas).tolist()
        else:
            numbers[name] |= {"lags": lags, "lag slope": slope(betas, np.array(lags))}
    return numbers, {"t": np.asarray(ts), "limit": np.asarray(limit.u), "flow": weights[0]}


# Theorem 2.


@eqx.filter_jit
def omega(problem: BilevelProblem, w: Array, u0: Array) -> dynamics.Flow:
    """The mirror flow with frozen theta from `u0`, to its end `Omega(theta, w_0)`."""
    field = dynamics.frozen_field(problem, w)
    return dynamics.mirror_flow(field, u0, jnp.array([1e3]), tol=1e-7, max_steps=4000)


@eqx.filter_jit
def sparse_flow(
    problem: BilevelProblem, u0: Array, w0: Array, ts: Array
) -> tuple[Array, dynamics.Flow]:
    """`theta*(t)` of Theorem 2, and the flow that ends in Omega at each of its points."""

    def velocity(_: Any, w: Array, __: None) -> Array:
        return -problem.residual(omega(problem, w, u0).u[-1], w, problem.inner_data)

    w = cast(
        Array,
        diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            t0=0.0,
            t1=ts[-1],
            dt0=None,
            y0=w0,
            saveat=diffrax.SaveAt(ts=ts),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6),
        ).ys,
    )
    return w, jax.lax.map(lambda w: omega(problem, w, u0), w)


def slow_parameters(seed: int, count: int, horizon: float) -> tuple[dict[str, Any], dict]:
    """Theorem 2, beta = 1: the distance of theta(t / alpha) and theta*(t) for each alpha."""
    problem, u0, w0 = problem_of(seed), uniform_weights(N), jnp.array(START)
    alphas = halvings(ALPHA, count)
    ts = jnp.linspace(0, horizon, POINTS)
    w, ends = sparse_flow(problem, u0, w0, ts)
    runs = [
        dynamics.joint_flow(
            problem, u0, w0, ts / alpha, alpha=alpha, beta=1.0, solver=diffrax.Kvaerno5()
        )
        for alpha in alphas
    ]
    gap = np.array([np.linalg.norm(parameters(run) - w, axis=1) for run in runs])
    omegas = np.asarray(ends.u[:, -1])
    support = omegas > VISIBLE
    jumps = np.flatnonzero((support[1:] != support[:-1]).any(axis=1)) + 1
    numbers = {
        "seed": seed,
        "horizon": horizon,
        "alpha": alphas.tolist(),
        "gaps": gap.max(axis=1).tolist(),
        "slope": slope(alphas, gap.max(axis=1)),
        "supports": [np.flatnonzero(support[i]).tolist() for i in (0, *jumps)],
        "support changes at": np.asarray(ts)[jumps].tolist(),
        "largest residual of Omega": float(jnp.max(ends.residual)),
        "Omega on its first support": [omegas[i, support[0]].round(4).tolist() for i in (0, -1)],
        "at the end": at_the_end(problem, runs[-1], alphas[-1]),
    }
    limit = dynamics.slow_model_flow(problem, u0, w0, ts)
    away = [
        float(jnp.linalg.norm(parameters(run) - parameters(limit), axis=1).max()) for run in runs
    ]
    numbers["integrated field"] = {
        "finished": bool(limit.finished),
        "switches": int(limit.num_steps),
        "gaps": away,
        "slope": slope(alphas, away),
    }
    return numbers, {"t": np.asarray(ts), "gap": gap, "omega": omegas}


def at_the_end(problem: BilevelProblem, run: dynamics.Flow, alpha: float) -> dict[str, Any]:
    """Whether the weights that are left in `run` are stable there, and how small the others are."""
    u, w = run.u[-1], parameters(run)[-1]
    field = dynamics.frozen_field(problem, w)
    kept = jnp.where(u > VISIBLE, u, 0)
    rest = omega(problem, w, kept / jnp.sum(kept)).u[-1]
    verdict = dynamics.stability(field, rest)
    wants_in = np.flatnonzero(~verdict.support)[np.argmin(verdict.margins)]
    return {
        "support of w": np.flatnonzero(u > VISIBLE).tolist(),
        "stable": verdict.stable,
        "row with the smallest margin": int(wants_in),
        "its margin": float(verdict.margins.min()),
        "its alpha log w": alpha * float(run.log_u[-1, wants_in]),
    }


# The limit with the integrated field.


def mean_of_two_rows() -> dict[str, Any]:
    """f = sum_i u_i (w - x_i)^2 / 2 with x = -1, 1 and F = (w - TARGET)^2 / 2: both limits by hand.

    The field at w favours the row on the other side of TARGET. So Omega holds w at TARGET once it is
    there. The integrated field lets w go on, until the time beyond TARGET has made up for the time
    before.
    """
    rows = jnp.array([-1.0, 1.0])
    problem = BilevelProblem(
        lambda u, w, _: 0.5 * jnp.sum((w - TARGET) ** 2),
        lambda u, w, _: 0.5 * jnp.vdot(u, (w - rows) ** 2),
        geometry=bilevel.Simplex(),
    )
    u0, w0 = uniform_weights(2), jnp.array([MEAN_START])
    ts = jnp.linspace(0, MEAN_HORIZON, 61)
    printed = jnp.minimum(1 + (MEAN_START - 1) * jnp.exp(-ts), TARGET)
    limit = dynamics.slow_model_flow(problem, u0, w0, ts)
    found: dict[str, Any] = {"switches": int(limit.num_steps), "printed": [], "integrated": []}
    for alpha in MEAN_ALPHAS:
        flow = dynamics.joint_flow(problem, u0, w0, ts / alpha, alpha=alpha, beta=1.0)
        for name, path in (("printed", printed), ("integrated", parameters(limit)[:, 0])):
            found[name].append(float(jnp.abs(parameters(flow)[:, 0] - path).max()))
    return found | {"slope": slope(MEAN_ALPHAS, found["integrated"])}


@eqx.filter_jit
def _omegas(problem: BilevelProblem, ws: Array) -> Array:
    return jax.lax.map(lambda w: omega(problem, w, uniform_weights(N)).u[-1], ws)


def count_changes(num_seeds: int) -> dict[str, Any]:
    """On random mixtures: whether Omega changes its support, and whether the weights follow it."""
    outcomes = []
    for seed in range(num_seeds):
        problem, u0, w0 = problem_of(seed), uniform_weights(N), jnp.array(START)
        ts = jnp.linspace(0, COUNTED_HORIZON, COUNTED_POINTS)
        limit = dynamics.slow_model_flow(problem, u0, w0, ts)
        support = np.asarray(_omegas(problem, parameters(limit))) > VISIBLE
        held = np.asarray(limit.u) > VISIBLE
        outcomes.append(
            {
                "finished": bool(limit.finished),
                "switches": int(limit.num_steps),
                "support of Omega changes": int((support[1:] != support[:-1]).any(1).sum()),
                "at the end as Omega": bool((support[-1] == held[-1]).all()),
            }
        )
    return {key: [outcome[key] for outcome in outcomes] for key in outcomes[0]}


# The figure.


def draw(numbers: dict[str, Any]) -> Figure:
    """The three orders on top; the flows that they are about below."""
    curves = numbers["figure"]
    figure, axes = panels(2, 3, (13, 7.6))

    def orders(axis: Any, x: str, lines: dict[str, tuple[list, list, float]]) -> None:
        for (name, (xs, ys, fitted)), marker in zip(lines.items(), "os^", strict=False):
            axis.loglog(xs, ys, marker + "-", label=f"{name}: slope {fitted:.2f}")
        xs, ys, _ = next(iter(lines.values()))
        axis.loglog(xs, np.array(xs) * ys[-1] / xs[-1] / 1.8, "k:", lw=1, label="slope 1")
        axis.set(xlabel=x)
        axis.set_ylim(axis.get_ylim()[0] / 4)  # room for the legend
        axis.legend(fontsize=8, loc="lower right")

    run = numbers["proposition 2"][0]
    orders(
        axes[0, 0],
        r"$\tau$",
        {
            f"Psi at the {place} theta": (run["tau"], run["gaps"][name], run["slopes"][name])
            for name, place in {"library": "new", "printed": "old"}.items()
        },
    )
    axes[0, 0].set_title("Proposition 2: iterates and flow, largest distance", fontsize=10)
    run = numbers["theorem 1"][0]
    orders(
        axes[0, 1],
        r"$\beta\quad(\alpha = 1)$",
        {
            f"theta starts {name}": (run["beta"], run[name]["gaps"], run[name]["slope"])
            for name in ("at theta*(w_0)", "elsewhere")
        },
    )
    axes[0, 1].set_title(r"Theorem 1: $\mathrm{sup}_t|w(t/\beta) - w^*(t)|$", fontsize=10)
    smooth, jump = numbers["theorem 2"], numbers["theorem 2 past a jump"]
    orders(
        axes[0, 2],
        r"$\alpha\quad(\beta = 1)$",
        {
            r"smooth $\Omega$": (smooth["alpha"], smooth["gaps"], smooth["slope"]),
            r"$\Omega$ jumps, up to the jump": (
                jump["alpha"],
                jump["gaps before"],
                jump["slope before"],
            ),
            r"$\Omega$ jumps, past the jump": (jump["alpha"], jump["gaps"], jump["slope"]),
        },
    )
    axes[0, 2].set_title(
        r"Theorem 2: $\mathrm{sup}_t|\theta(t/\alpha) - \theta^*(t)|$", fontsize=10
    )

    t, limit, flow = curves["theorem 1"].values()
    for colour, row in enumerate(np.argsort(-limit[-1])[:4]):
        axes[1, 0].semilogx(t[1:], limit[1:, row], color=f"C{colour}", label=f"row {row}")
        axes[1, 0].semilogx(t[1:], flow[1:, row], "--", color=f"C{colour}", lw=1)
    axes[1, 0].set(xlabel="t", ylabel="weight", xlim=(1e-3, t[-1]))
    axes[1, 0].legend(fontsize=8)
    axes[1, 0].set_title(
        rf"Theorem 1: $w^*(t)$, and dashed $w(t/\beta)$, $\beta$ = {run['beta'][0]:g}", fontsize=10
    )

    for name, axis, kind in (
        ("theorem 2", axes[1, 1], r"smooth $\Omega$"),
        ("theorem 2 past a jump", axes[1, 2], r"$\Omega$ jumps"),
    ):
        curve, run = curves[name], numbers[name]
        for alpha, gap in list(zip(run["alpha"], curve["gap"], strict=True))[::2]:
            axis.semilogy(curve["t"][1:], gap[1:], label=rf"gap, $\alpha$ = {alpha:.2g}")
        axis.set(xlabel="t", ylim=(1e-5, 1), ylabel="gap")
        right = axis.twinx()
        support = np.flatnonzero(curve["omega"].max(axis=0) > VISIBLE)
        for row, style in zip(support, ("k-", "k--", "k:"), strict=False):
            right.plot(
                curve["t"], curve["omega"][:, row], style, lw=1, alpha=0.6, label=f"row {row}"
            )
        right.set(ylim=(0, 1.3), ylabel=r"weights in $\Omega(\theta^*(t), w_0)$")
        axis.legend(fontsize=7, loc="lower left")
        right.legend(fontsize=7, loc="upper right", ncols=3)
        axis.set_title(rf"Theorem 2, {kind}: $|\theta(t/\alpha) - \theta^*(t)|$", fontsize=10)
    return figure


def first_order(value: float) -> bool:
    return 0.9 <= value <= 1.1


@jax.enable_x64(True)
def measure(full: bool) -> dict[str, Any]:
    """Both limits and the discretisation, with their orders."""
    seeds = (SEED, 0, 1, 2, 4) if full else (SEED,)
    count = 7 if full else 6
    first = [slow_weights(seed, count) for seed in seeds]
    second, second_curves = slow_parameters(SEED, count, HORIZON)
    jump, jump_curves = slow_parameters(JUMP_SEED, count, JUMP_HORIZON)
    before = jump_curves["gap"][:, jump_curves["t"] <= BEFORE].max(axis=1)
    jump |= {"gaps before": before.tolist(), "slope before": slope(np.array(jump["alpha"]), before)}
    return {
        "settings": {
            "n": N,
            "m": M,
            "ridge": RIDGE,
            "theta_0": START,
            "horizons of theorem 2": [HORIZON, JUMP_HORIZON],
        },
        "seeds": {"proposition 2 and theorem 1": seeds, "theorem 2": [SEED, JUMP_SEED]},
        "proposition 2": [discretisation(seed, count) for seed in seeds],
        "theorem 1": [run for run, _ in first],
        "theorem 2": second,
        "theorem 2 past a jump": jump,
        "mean of two rows": mean_of_two_rows(),
        "random instances": count_changes(20 if full else 4),
        "figure": {
            "theorem 1": first[0][1],
            "theorem 2": second_curves,
            "theorem 2 past a jump": jump_curves,
        },
    }


def claims(measured: dict[str, Any]) -> list[Claim]:
    """What Proposition 2 and Theorems 1 and 2 say."""
    proposition, first = measured["proposition 2"], measured["theorem 1"]
    second, jump = measured["theorem 2"], measured["theorem 2 past a jump"]
    slopes = {name: [run["slopes"][name] for run in proposition] for name in ("library", "printed")}
    at, away = ([run[name] for run in first] for name in ("at theta*(w_0)", "elsewhere"))
    gap_slopes = [run["slope"] for run in at + away]
    sharp = [run["over the sharp bound, per beta"] for run in away]
    changes = [xs[-1] / xs[0] for xs in sharp]
    over = max(max(run["over the bound"]) for run in away)
    beta, alpha = first[0]["beta"][-1], jump["alpha"]
    end = jump["at the end"]
    last_ratio = jump["gaps"][-1] / jump["gaps"][-2]
    integrated, mean = jump["integrated field"], measured["mean of two rows"]
    counted = measured["random instances"]
    changes_of_omega = counted["support of Omega changes"]
    changed = sum(x > 0 for x in changes_of_omega)
    return [
        Claim(
            "R4",
            "The iterates of Algorithm 2 follow the joint flow (8) as its steps tau (alpha, beta) "
            "tend to 0 (Proposition 2).",
            "the largest distance tends to 0",
            f"{proposition[0]['gaps']['library'][-1]:.1e} at tau = "
            f"{proposition[0]['tau'][-1]:.1e}; order in tau {span(slopes['library'])} (Psi at the "
            f"new theta, as `DoubleLoop` does), {span(slopes['printed'])} (Psi at the old theta, "
            "as printed)",
            all(first_order(x) for xs in slopes.values() for x in xs),
        ),
        Claim(
            "R5",
            "For beta -> 0 the weights follow the exact mirror flow (Theorem 1, first statement).",
            "sup_t |w(t/beta) - w*(t)| tends to 0",
            f"{max(run['gaps'][-1] for run in at):.1e} from theta*(w_0) and "
            f"{max(run['gaps'][-1] for run in away):.1e} from elsewhere at beta = {beta:.1e}; "
            f"order in beta {span([run['slope'] for run in at])} and "
            f"{span([run['slope'] for run in away])}",
            all(first_order(x) for x in gap_slopes),
        ),
        Claim(
            "R5",
            "For beta -> 0 theta approaches theta*(w) at the rate mu alpha or faster (Theorem 1, "
            "second statement).",
            "|theta(t) - theta*(w(t))| <= |theta_0 - theta*(w_0)| exp(-mu alpha t) in the limit",
            f"started elsewhere: above the bound by at most {over:.1e} for all t <= 20 and all "
            "beta; started at theta*(w_0), where the bound is 0: the distance tends to 0 with order "
            f"{span([run['lag slope'] for run in at])}",
            over <= 1e-9 and all(first_order(run["lag slope"]) for run in at),
        ),
        Claim(
            "R5",
            "The bound of Theorem 1 holds also with the smallest eigenvalue of the Hessian at w_0 in "
            "place of mu, up to a multiple of beta that does not grow as beta tends to 0.",
            None,
            f"above it by at most {max(max(xs) for xs in sharp):.2g} beta; from the largest beta to "
            f"the smallest that multiple changes by factors of {span(changes)}",
            all(max(xs) <= 1.2 * max(xs[0], 0) for xs in sharp),
        ),
        Claim(
            "R5",
            "For alpha -> 0 theta follows the gradient flow with the sparse weights Omega(theta, "
            "w_0) (Theorem 2), on a horizon on which Omega is smooth.",
            "sup_t |theta(t/alpha) - theta*(t)| tends to 0",
            f"{second['gaps'][-1]:.1e} at alpha = {second['alpha'][-1]:.1e}; order in alpha "
            f"{second['slope']:.2f}, on another instance {jump['slope before']:.2f}; Omega has "
            f"{len(second['supports'][0])} of {N} rows throughout",
            min(second["slope"], jump["slope before"]) >= 0.9
            and not second["support changes at"]
            and second["largest residual of Omega"] <= 1e-6,
            "The theorem's assumptions hold only as long as Omega is smooth along the path.",
        ),
        Claim(
            "R5",
            "Where Omega(theta, w_0) jumps, the joint flow does not follow it (this is not in the "
            "paper, whose assumptions exclude it).",
            "a Lipschitz Omega is assumed",
            f"past t = {jump['support changes at'][0]:.2f}, where Omega goes from rows "
            f"{jump['supports'][0]} to {jump['supports'][-1]}: largest distance "
            f"{jump['gaps'][-1]:.3f} at alpha = {alpha[-1]:.1e}, which is {last_ratio:.3f} times "
            f"the distance at twice that alpha; w stays on rows {end['support of w']}",
            last_ratio > 0.95 and end["support of w"] == jump["supports"][0],
            f"Those rows are {'still' if end['stable'] else 'no longer'} a stable support at the "
            f"end (the margin of row {end['row with the smallest margin']} is "
            f"{end['its margin']:.3f}), but the weight of that row has fallen to "
            f"exp({end['its alpha log w']:.2f} / alpha), and it takes a time of order 1 in t to "
            "come back, however small alpha is. Omega(theta, w_0) starts from w_0 at every theta "
            "and has no memory; the joint flow has.",
        ),
        Claim(
            "R5",
            "The limit for alpha -> 0 is the flow whose weight sits on the argmin of the integrated "
            "field, also past a jump of Omega: the distance of theta is of order 1 in alpha.",
            "the flow with the weights Omega(theta, w_0)",
            f"{integrated['gaps'][-1]:.1e} at alpha = {alpha[-1]:.1e}, order "
            f"{integrated['slope']:.2f}, where the printed limit is {jump['gaps'][-1]:.3f} away; "
            f"where Omega is smooth, {second['integrated field']['gaps'][-1]:.1e}, order "
            f"{second['integrated field']['slope']:.2f}",
            integrated["finished"]
            and first_order(integrated["slope"])
            and first_order(second["integrated field"]["slope"]),
            "`bilevel.dynamics.slow_model_flow`. Assumption 3 of the paper's proof cannot hold: at "
            "every vertex of the simplex P(w) = 0, so that its left side is 0, and its right side is "
            "positive at all vertices but Omega.",
        ),
        Claim(
            "R5",
            "The smallest case, a mean of two rows x = -1 and 1: the joint flow tends to the limit "
            "with the integrated field with order 1 in alpha, and not to the printed one.",
            "the printed limit",
            f"distances {', '.join(f'{x:.2g}' for x in mean['integrated'])} at alpha = "
            f"{', '.join(f'{x:g}' for x in MEAN_ALPHAS)}, order {mean['slope']:.2f}; from the printed "
            f"limit {', '.join(f'{x:.2f}' for x in mean['printed'])}",
            first_order(mean["slope"]) and min(mean["printed"]) > 0.1,
            f"The weight changes the row {mean['switches']} times up to t = {MEAN_HORIZON:g}.",
        ),
        Claim(
            "R5",
            "Random mixtures on which Omega keeps its support along the way, as Theorem 2 needs it.",
            "Omega is Lipschitz",
            f"{len(changes_of_omega) - changed} of {len(changes_of_omega)}",
            changed == 0,
            f"On {changed} it changes up to t = {COUNTED_HORIZON:g}. At the end the weights are on "
            f"other rows than Omega on {counted['at the end as Omega'].count(False)} of them. The "
            f"flow with the integrated field was followed to its end on "
            f"{counted['finished'].count(True)}.",
        ),
    ]


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
