"""R6, R7, Figure 3: the mirror flow with frozen parameters, and what Propositions 3 to 8 say of it.

Ivanova & Ablin, sections 3.1 and 3.2, on the random fields of Figure 3's caption,

    phi(w) = -Gamma (sum_i w_i H_i)^-1 grad F,   H_i = u_i u_i^T + 0.1 I,

with Gaussian Gamma, grad F and u_i. The paper draws one trajectory with n = 5 and p = 3; we run
500, and 100 with n = 50 and p = 10, and count on how many rows they end, and which do not end at
all. Then we look for all stationary points of the smaller fields, stable or not (by flows on each
face of the simplex, forward and backward in time), and put them to the test: Proposition 4's
verdict against what a perturbation does, Proposition 5's rate against the measured one and its
linear prediction against the flow.

Flows are integrated by an explicit method first. What has not come to rest in its steps is stiff
or never will: an implicit method settles the first, and what is left is looked at for a period.
"""

import itertools
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import scipy.linalg
from jax import Array
from matplotlib.figure import Figure

import bilevel
from bilevel import dynamics

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels

SMALL, LARGE = (5, 3), (50, 10)  # (n, p)
DAMPING = 0.1
TOL, LONG = 1e-8, 1e4  # when a flow is at rest, and how long we wait for it
ROUND = np.linspace(0, 120, 4801)  # when we look for a period
SHOWN = 98  # the instance of the figure, which ends on 3 of 5 rows
PERTURBATION = 1e-4  # as a share of the smallest weight on the support


def fields(size: tuple[int, int], seeds: range) -> dynamics.LowRankField:
    """The random fields of Figure 3's caption, with the seeds as first axis."""
    n, p = size

    def draw(seed: int) -> dynamics.LowRankField:
        rng = np.random.default_rng(seed)
        gradients, outer, u = rng.normal(size=(n, p)), rng.normal(size=p), rng.normal(size=(n, p))
        hessians = u[:, :, None] * u[:, None, :] + DAMPING * np.eye(p)
        return dynamics.LowRankField(*map(jnp.asarray, (gradients, hessians, outer)))

    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *map(draw, seeds))


# In numpy, where another size compiles nothing.


def pick(batch: Any, index: Any) -> Any:
    """Entries of a batch of fields (or of any tree of arrays)."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]), batch)


def unstack(batch: Any, *others: Any) -> list[Any]:
    """The entries of one batch, or of several side by side as tuples."""
    leaves, structure = jax.tree.flatten((batch, *others) if others else batch)
    rows = zip(*map(np.asarray, leaves), strict=True)
    return [jax.tree.unflatten(structure, map(jnp.asarray, row)) for row in rows]


@eqx.filter_jit
def flows(
    batch: dynamics.LowRankField, u0: Array, ts: Array, tol: float, precision: float, steps: int
) -> dynamics.Flow:
    """A mirror flow for each field, from its own start and at its own times."""

    def one(field: dynamics.LowRankField, u0: Array, ts: Array) -> dynamics.Flow:
        return dynamics.mirror_flow(
            field, u0, ts, tol=tol, rtol=precision, atol=precision, max_steps=steps
        )

    return eqx.filter_vmap(one)(batch, u0, ts)


@eqx.filter_jit
def jacobians(batch: dynamics.LowRankField, u: Array) -> Array:
    """`D Phi` of section 3.1 for each field, at one point each."""

    def one(field: dynamics.LowRankField, u: Array) -> Array:
        return jax.jacfwd(lambda u: u * bilevel.Simplex().tangent(u, field(u)))(u)

    return eqx.filter_vmap(one)(batch, u)


@eqx.filter_jit
def polish(batch: dynamics.LowRankField, u: Array) -> tuple[Array, Array]:
    """The stationary points near `u` on its support, by Newton's method, and what is left to solve."""

    def one(field: dynamics.LowRankField, u: Array) -> tuple[Array, Array]:
        on = u > dynamics.SUPPORT

        def equations(x: tuple[Array, Array], _: None) -> tuple[Array, Array]:
            w, level = x  # Proposition 3: phi is level on the support
            return jnp.where(on, field(jnp.where(on, w, 0)) - level, w), jnp.sum(w) - 1

        start = (jnp.where(on, u, 0), jnp.vdot(u, field(u)))
        newton = optx.Newton(rtol=1e-13, atol=1e-13)
        found = optx.root_find(equations, newton, start, max_steps=20, throw=False)
        rest, total = equations(found.value, None)
        return jnp.where(on, found.value[0], 0), jnp.maximum(jnp.max(jnp.abs(rest)), jnp.abs(total))

    return eqx.filter_vmap(one)(batch, u)


# Where flows end (Figure 3, Propositions 7 and 8).


class Ends(NamedTuple):
    """Where the flows of a batch end, how that was settled, and those that go round for ever."""

    u: np.ndarray
    kind: list[str]
    rounds: dict[int, dict[str, Any]]


def from_uniform(
    field: dynamics.LowRankField, ts: Array | np.ndarray, **options: Any
) -> dynamics.Flow:
    n = field.gradients.shape[0]
    return dynamics.mirror_flow(field, jnp.full(n, 1 / n), jnp.asarray(ts), **options)


def goes_round(u: np.ndarray, step: float) -> dict[str, Any] | None:
    """The period of a trajectory that comes back to where it was in its second half, if it does."""
    late = u[len(u) // 2 :]
    swing = late.max(axis=0) - late.min(axis=0)
    row = int(swing.argmax())
    # Upward passages of the row that moves most through the middle of its swing.
    x = late[:, row] - (late[:, row].max() + late[:, row].min()) / 2
    up = np.flatnonzero((x[:-1] < 0) & (x[1:] >= 0))
    if swing[row] < 0.1 or len(up) < 3:
        return None
    share = -x[up] / (x[up + 1] - x[up])
    points = late[up] + share[:, None] * (late[up + 1] - late[up])
    distance = float(np.linalg.norm(points[-1] - points[-2]))
    if distance > 1e-2 * swing[row]:
        return None
    return {
        "period": float(np.diff((up + share) * step)[-1]),
        "rows": np.flatnonzero(late.max(axis=0) > 1e-2).tolist(),
        "swing": float(swing[row]),
        "distance after a round": distance,
        "rounds seen": len(up),
    }


def follow(size: tuple[int, int], count: int) -> Ends:
    """Follow the flows of so many instances, from uniform weights, to whatever end they have."""
    n, _ = size
    batch = fields(size, range(count))
    u0, ts = jnp.full((count, n), 1 / n), jnp.full((count, 1), LONG)
    first = flows(batch, u0, ts, TOL, 1e-9, 400)
    u = np.array(first.u[:, -1])
    kind = ["explicit" if c else "unsettled" for c in np.asarray(first.converged)]
    rounds = {}
    for i in np.flatnonzero(~np.asarray(first.converged)):
        field = pick(batch, i)
        if first.residual[i] > 1e-5:  # and not for the noise of an explicit method at rest
            found = goes_round(np.asarray(from_uniform(field, ROUND).u), float(ROUND[1]))
            if found is not None:
                kind[i], rounds[int(i)] = "periodic", found
                continue
        options = {"solver": diffrax.Kvaerno5(), "rtol": 1e-8, "atol": 1e-8, "max_steps": 4000}
        again = from_uniform(field, ts[i], tol=TOL, **options)
        u[i] = again.u[-1]
        if bool(again.converged):
            kind[i] = "implicit"
    return Ends(u, kind, rounds)


def endings(size: tuple[int, int], count: int) -> dict[str, Any]:
    """How the flows end, on how many rows, and whether these ends are stable stationary points."""
    n, p = size
    ends = follow(size, count)
    at_rest = np.array([kind in ("explicit", "implicit") for kind in ends.kind])
    index = np.flatnonzero(at_rest)
    batch = pick(fields(size, range(count)), index)
    exact, left = polish(batch, jnp.asarray(ends.u[index]))
    verdicts = [dynamics.stability(*pair) for pair in unstack(batch, exact)]
    sizes = np.array([v.support.sum() for v in verdicts])
    gradients = unstack(batch.gradients)
    return {
        "n": n,
        "p": p,
        "instances": count,
        "kinds": dict(Counter(ends.kind)),
        "explicit method not enough": [i for i, k in enumerate(ends.kind) if k != "explicit"],
        "go round": ends.rounds,
        "support sizes": {int(s): int((sizes == s).sum()) for s in np.unique(sizes)},
        "largest support": int(sizes.max()),
        "distance to an exact stationary point": float(np.abs(exact - ends.u[index]).max()),
        "equations left": float(jnp.max(left)),
        "stable": int(sum(v.stable for v in verdicts)),
        "smallest rate": min(v.rate for v in verdicts),
        "Proposition 8 holds": all(
            dynamics.may_be_stationary(g, jnp.asarray(v.support))
            for g, v in zip(gradients, verdicts, strict=True)
        ),
        "support bound": sorted({dynamics.support_bound(g) for g in gradients}),
    }


def proposition_7(size: tuple[int, int], draws: int = 200) -> dict[int, float]:
    """How often random l x p matrices fulfil the condition of Proposition 8, for each l."""
    n, p = size
    rng = np.random.default_rng(0)
    return {
        rows: float(
            np.mean(
                [
                    dynamics.may_be_stationary(
                        jnp.asarray(rng.normal(size=(rows, p))), jnp.ones(rows, bool)
                    )
                    for _ in range(draws)
                ]
            )
        )
        for rows in range(1, min(n, p + 4) + 1)
    }


# Constant fields (Proposition 6).

ETA, STEPS = 0.01, 1000


@jax.jit
def descend(phi: Array, u0: Array) -> Array:
    """The iterates of mirror descent on a constant field."""
    geometry, tx = bilevel.Simplex(), optax.sgd(ETA)

    def step(u: Array, _: None) -> tuple[Array, Array]:
        u = geometry.retract(u, tx.update(phi, tx.init(u), u)[0])
        return u, u

    return jax.lax.scan(step, u0, length=STEPS)[1]


@jax.jit
def closed_form(phi: Array, u0: Array, ts: Array) -> Array:
    return jax.vmap(lambda t: dynamics.constant_field_flow(phi, u0, t))(ts)


def constant_fields(count: int) -> dict[str, float]:
    """Largest distances of mirror descent, flow and limit from their closed forms; every other
    field has two rows that share the smallest entry."""
    n, p = SMALL
    worst: dict[str, float] = dict.fromkeys(("descent", "flow", "limit", "weight on arg max"), 0.0)
    same = jnp.asarray(np.broadcast_to(np.eye(p), (n, p, p)))
    for seed in range(count):
        rng = np.random.default_rng(seed)
        gradients, outer = rng.normal(size=(n, p)), rng.normal(size=p)
        best = int(np.argmax(gradients @ outer))
        if seed % 2:
            gradients[best - 1] = gradients[best]
        field = dynamics.LowRankField(jnp.asarray(gradients), same, jnp.asarray(outer))
        u0 = jnp.asarray(rng.dirichlet(np.ones(n)))
        phi = np.array(field(u0))
        phi[best - (seed % 2)] = phi[best]  # to the last bit
        gap = phi - phi.min()
        ts = jnp.array([0.1, 1.0, STEPS * ETA, STEPS * ETA + 40 / gap[gap > 0].min()])
        phi, flow = jnp.asarray(phi), dynamics.mirror_flow(field, u0, ts).u
        steps = ETA * jnp.arange(1.0, STEPS + 1)
        gaps = {
            "descent": descend(phi, u0) - closed_form(phi, u0, steps),
            "flow": flow - closed_form(phi, u0, ts),
            "limit": flow[-1] - dynamics.constant_field_limit(phi, u0),
            "weight on arg max": flow[-1, jnp.argmax(phi)],
        }
        for name, found in gaps.items():
            worst[name] = max(worst[name], float(jnp.max(jnp.abs(found))))
    return worst


# Stationary points (Propositions 3, 4 and 5).


class Points(NamedTuple):
    """Stationary points, each with its field, and what `stability` says of them."""

    field: dynamics.LowRankField
    u: np.ndarray
    verdicts: list[dynamics.Stability]


def stationary_points(seeds: range) -> tuple[Points, int]:
    """All stationary points that the flows on the faces find, forward and backward in time.

    A face's own attractors are found forward, its repellers backward: the field of the flow
    backward in time is that of the opposite outer gradient. Also how many flows found none.
    """
    n, _ = SMALL
    faces = [face for size in range(1, n + 1) for face in itertools.combinations(range(n), size)]
    starts = np.zeros((len(faces), n))
    for start, face in zip(starts, faces, strict=True):
        start[list(face)] = 1 / len(face)
    batch = fields(SMALL, seeds)
    found: dict[tuple, tuple[int, np.ndarray]] = {}
    lost = 0
    for sign in (1, -1):
        signed = eqx.tree_at(lambda f: f.outer_gradient, batch, sign * batch.outer_gradient)
        which = np.repeat(np.arange(len(seeds)), len(faces))
        u0 = jnp.asarray(np.tile(starts, (len(seeds), 1)))
        ts = jnp.full((len(u0), 1), 1e3)
        flow = flows(pick(signed, which), u0, ts, TOL, 1e-9, 400)
        ended = np.asarray(flow.converged)
        lost += int((~ended).sum())
        exact, left = polish(pick(signed, which[ended]), flow.u[ended, -1])
        exact = np.asarray(exact)
        good = (np.asarray(left) < 1e-11) & (exact.min(axis=1) >= 0)
        good &= np.abs(exact - np.asarray(flow.u[ended, -1])).max(axis=1) < 1e-4
        lost += int((~good).sum())
        for i, u in zip(which[ended][good], exact[good], strict=True):
            found[(i, *u.round(6))] = (int(i), u)
    index = np.array([i for i, _ in found.values()])
    u = np.stack([u for _, u in found.values()])
    batch = pick(batch, index)
    verdicts = [dynamics.stability(*pair) for pair in unstack(batch, u)]
    return Points(batch, u, verdicts), lost


def perturbations(points: Points, rng: np.random.Generator) -> np.ndarray:
    """A random direction in the tangent cone at each point, of length 1 x its smallest weight."""
    out = np.empty_like(points.u)
    for delta, u, verdict in zip(out, points.u, points.verdicts, strict=True):
        on = verdict.support
        delta[~on] = rng.exponential(size=(~on).sum())  # only inwards
        delta[on] = rng.normal(size=on.sum())
        delta[on] -= delta.sum() / on.sum()
        delta *= u[on].min() / np.linalg.norm(delta)
    return out


def put_to_the_test(points: Points) -> dict[str, Any]:
    """Perturb every stationary point, follow the flow, and compare with the verdicts and rates."""
    rng = np.random.default_rng(0)
    delta = PERTURBATION * perturbations(points, rng)
    rate = np.array([v.rate for v in points.verdicts])
    ts = jnp.asarray(np.linspace(0, 25, 126) / np.abs(rate)[:, None])
    u = jnp.asarray(points.u)
    flow = flows(points.field, u + delta, ts, 0.0, 1e-11, 8000)
    paths, finished = np.array(flow.u), np.array(flow.finished)
    for i in np.flatnonzero(~finished):  # stiff: the other eigenvalues are far above the rate
        options = {"solver": diffrax.Kvaerno5(), "rtol": 1e-10, "atol": 1e-12, "max_steps": 20_000}
        again = dynamics.mirror_flow(pick(points.field, i), u[i] + delta[i], ts[i], **options)
        paths[i], finished[i] = again.u, bool(again.finished)
    shift = paths - points.u[:, None]
    distance = np.linalg.norm(shift, axis=2) / np.linalg.norm(delta, axis=1)[:, None]

    # Along the left eigenvector of the slowest eigenvalue the linear prediction falls as exp(-t rate),
    # whatever the perturbation; if that is complex, its modulus does.
    linear, basis = np.asarray(jacobians(points.field, u)), tangent_basis(u.shape[1])
    stable = rate > 0
    measured, turning = np.full(len(rate), np.nan), np.zeros(len(rate), bool)
    early = slice(5, 26)  # one to five times 1 / rate
    for i in np.flatnonzero(finished & stable):
        # of the transpose: the left ones, conjugated
        values, left = np.linalg.eig(basis.T @ linear[i].T @ basis)
        slowest = np.argmin(np.real(values))
        component = np.abs(shift[i, early] @ basis @ left[:, slowest])
        measured[i] = -np.polyfit(ts[i, early], np.log(component), 1)[0]
        turning[i] = abs(np.imag(values[slowest])) > 1e-9
    local = [dynamics.local_rate(*pair) for pair in unstack(points.field, u)]
    return {
        "finished": finished,
        "stiff": int((~np.asarray(flow.finished)).sum()),
        "stable": stable,
        "rate": rate,
        "local_rate": np.array(local),
        "came back": distance[:, -1] < 1e-2,
        "left": distance[:, -1] > 2,  # a neighbour may be near
        "measured": measured,
        "turning": turning,
        "t": np.asarray(ts),
        "distance": distance,
        "delta": delta,
        "linear": linear,
    }


def tangent_basis(n: int) -> np.ndarray:
    """An orthonormal basis of the vectors that sum to zero."""
    return scipy.linalg.null_space(np.ones((1, n)))


def second_order(points: Points, test: dict[str, Any], count: int) -> dict[str, Any]:
    """Proposition 5: sup_t |w(t) - w* - exp(-t DPhi) delta| against |delta|, at stable points."""
    index = np.flatnonzero(test["stable"] & test["finished"])
    # Those on more rows first: on a vertex the field has less to say.
    order = np.argsort([-points.verdicts[i].support.sum() for i in index], kind="stable")
    index = index[order][:count]
    direction = test["delta"][index] / PERTURBATION
    ts = np.linspace(0, 5, 41) / test["rate"][index][:, None]
    basis = tangent_basis(direction.shape[1])  # off it, exp(-t DPhi) may grow
    linear = np.stack(
        [
            scipy.linalg.expm(-t[:, None, None] * (basis.T @ a @ basis)) @ (basis.T @ d) @ basis.T
            for t, a, d in zip(ts, test["linear"][index], direction, strict=True)
        ]
    )
    scales = 4e-3 * 0.5 ** np.arange(5)
    batch, u = pick(points.field, index), jnp.asarray(points.u[index])
    gaps = []
    for scale in scales:
        flow = flows(batch, u + scale * direction, jnp.asarray(ts), 0.0, 1e-12, 6000)
        off = np.asarray(flow.u) - points.u[index][:, None] - scale * linear
        gaps.append(np.where(flow.finished, np.linalg.norm(off, axis=2).max(axis=1), np.nan))
    gaps = np.array(gaps)
    kept = np.isfinite(gaps).all(axis=0)
    sizes = scales[:, None] * np.linalg.norm(direction, axis=1)
    slopes = np.polyfit(np.log(scales), np.log(gaps[:, kept]), 1)[0]
    return {"sizes": sizes[:, kept], "gaps": gaps[:, kept], "slopes": slopes}


# The figure.


@jax.enable_x64(True)
def draw(measured: dict[str, Any]) -> Figure:
    """Figure 3 and five more panels."""
    ends = measured["ends"]
    test, second = measured["figure"]["test"], measured["figure"]["second"]
    figure, axes = panels(2, 3, (13.5, 7.6))

    axis = axes[0, 0]
    ts = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-2, 1e2, 400)])
    flow = from_uniform(pick(fields(SMALL, range(SHOWN, SHOWN + 1)), 0), ts)
    for row in range(SMALL[0]):
        axis.semilogx(ts[1:], flow.u[1:, row], label=f"row {row}")
    axis.set(xlabel="t", ylabel="weight")
    axis.legend(fontsize=8)
    axis.set_title(
        f"n = 5, p = 3 (as Figure 3): ends on {int(flow.support.sum())} rows", fontsize=10
    )

    axis = axes[0, 1]
    for k, run in enumerate(ends):
        sizes = np.array(list(run["support sizes"]))
        share = np.array(list(run["support sizes"].values())) / run["instances"]
        bars = axis.bar(
            sizes + 0.4 * k - 0.2,
            share,
            0.38,
            color=f"C{k}",
            label=f"n = {run['n']}: {run['instances']} flows",
        )
        axis.bar_label(bars, run["support sizes"].values(), fontsize=7)
        axis.axvline(run["p"] + 0.5, color=f"C{k}", ls="--", label=f"bound p = {run['p']}")
    axis.set(xlabel="rows with weight at the end", ylabel="share of flows")
    axis.legend(fontsize=8)
    axis.set_title("Proposition 8: size of the support", fontsize=10)

    axis = axes[0, 2]
    for i, found in list(ends[1]["go round"].items())[:1]:
        flow = from_uniform(pick(fields(LARGE, range(i, i + 1)), 0), ROUND)
        shown = ROUND < 50
        for row in found["rows"]:
            axis.plot(ROUND[shown], flow.u[shown, row], label=f"row {row}", lw=1.2)
        axis.legend(fontsize=8, loc="upper right", ncols=3)
        axis.set_title(f"n = 50, p = 10: periodic, with period {found['period']:.2f}", fontsize=10)
    axis.set(xlabel="t", ylabel="weight", ylim=(0, 1.25))

    axis = axes[1, 0]
    for stable, colour, name in ((True, "C0", "stable"), (False, "C3", "unstable")):
        chosen = np.flatnonzero((test["stable"] == stable) & test["finished"])[:40]
        for k, i in enumerate(chosen):
            scaled = test["t"][i] * abs(test["rate"][i])
            label = f"{name} by Proposition 4" if k == 0 else None
            axis.semilogy(scaled, test["distance"][i], color=colour, lw=0.6, alpha=0.5, label=label)
    axis.set(xlabel="t x |rate|", ylabel=r"$|w(t) - w^*| / |\delta|$", ylim=(1e-8, 1e7))
    axis.legend(fontsize=8, loc="upper left")
    axis.set_title("Proposition 4: perturbed stationary points", fontsize=10)

    axis = axes[1, 1]
    for turn, marker, name in ((False, "o", "real"), (True, "^", "complex")):
        chosen = (test["turning"] == turn) & np.isfinite(test["measured"])
        if chosen.any():
            axis.loglog(
                test["rate"][chosen],
                test["measured"][chosen],
                marker,
                ms=4,
                alpha=0.6,
                label=f"slowest eigenvalue {name} ({chosen.sum()})",
            )
    low, high = np.nanmin(test["measured"]), np.nanmax(test["measured"])
    axis.loglog([low, high], [low, high], "k:", lw=1)
    axis.set(xlabel="predicted (local_rate)", ylabel="measured")
    axis.legend(fontsize=8)
    axis.set_title("Proposition 5: rate of decay", fontsize=10)

    axis = axes[1, 2]
    axis.loglog(second["sizes"], second["gaps"], color="C0", lw=0.6, alpha=0.5)
    x = np.sort(second["sizes"].ravel())[[0, -1]]
    middle = np.median(second["gaps"] / second["sizes"] ** 2)
    axis.loglog(x, middle * x**2, "k:", label="slope 2")
    axis.set(xlabel=r"$|\delta|$", ylabel=r"$\mathrm{sup}_t|w(t) - w^* - e^{-tD\Phi}\delta|$")
    axis.legend(fontsize=8)
    axis.set_title("Proposition 5: what the linear prediction misses", fontsize=10)
    return figure


@jax.enable_x64(True)
def measure(full: bool) -> dict[str, Any]:
    """Follow the flows, find the stationary points and put them to the test."""
    ends = [endings(SMALL, 500), endings(LARGE, 100 if full else 20)]
    seeds = range(150 if full else 25)
    points, lost = stationary_points(seeds)
    test = put_to_the_test(points)
    second = second_order(points, test, 150 if full else 30)
    random = np.random.default_rng(1).dirichlet(np.ones(SMALL[0]), size=len(points.u))

    def stationary(u: np.ndarray) -> int:
        return sum(dynamics.is_stationary(*pair) for pair in unstack(points.field, u))

    sizes = np.array([v.support.sum() for v in points.verdicts])
    stable, kept = test["stable"], test["finished"]
    off = np.abs(test["measured"] / test["rate"] - 1)
    off = off[np.isfinite(off)]
    tested = {
        "fields": len(seeds),
        "flows that found none": lost,
        "points": len(stable),
        "stationary": stationary(points.u),
        "random points that are stationary": stationary(random),
        "stable": int(stable.sum()),
        "sizes of support": {int(k): int((sizes == k).sum()) for k in np.unique(sizes)},
        "sizes of support, stable": {
            int(k): int((sizes[stable] == k).sum()) for k in np.unique(sizes[stable])
        },
        "flows within their steps": int(kept.sum()),
        "flows that needed an implicit method": test["stiff"],
        "stable that came back": int((test["came back"] & stable & kept).sum()),
        "unstable that left": int((test["left"] & ~stable & kept).sum()),
        "wrong": int((np.where(stable, test["left"], test["came back"]) & kept).sum()),
        "rates": {
            "measured": len(off),
            "with a complex slowest eigenvalue": int(test["turning"].sum()),
            "largest relative difference": float(off.max()),
            "local_rate against stability, relative": float(
                np.abs(test["local_rate"] / test["rate"] - 1).max()
            ),
        },
        "order of the remainder": np.sort(second["slopes"]).tolist(),
    }
    return {
        "settings": {"damping": DAMPING, "tol": TOL, "horizon": LONG, "perturbation": PERTURBATION},
        "seeds": {"stationary points": len(seeds), "flows": [run["instances"] for run in ends]},
        "ends": ends,
        "proposition 7": {p: proposition_7((n, p)) for n, p in (SMALL, LARGE)},
        "constant fields": constant_fields(50 if full else 10),
        "stationary points": tested,
        "figure": {"test": test, "second": second},
    }


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Propositions 3 to 8 and Figure 3."""
    ends, constant = measured["ends"], measured["constant fields"]
    tested = measured["stationary points"]
    count, stable = tested["points"], tested["stable"]
    rates, orders = tested["rates"], tested["order of the remainder"]
    largest = max(tested["sizes of support"])
    rounds = [found for run in ends for found in run["go round"].values()]
    settled = [
        (run["kinds"].get("explicit", 0) + run["kinds"].get("implicit", 0)) / run["instances"]
        for run in ends
    ]
    single = [run["support sizes"][1] / run["instances"] for run in ends]
    return [
        Claim(
            "R6",
            "A point is stationary if and only if the field is constant on its support "
            "(Proposition 3).",
            "if and only if",
            f"{tested['stationary']} of {count} ends of flows on faces are stationary, among them "
            f"all vertices; {tested['random points that are stationary']} of {count} random points "
            "are",
            tested["stationary"] == count and not tested["random points that are stationary"],
        ),
        Claim(
            "R6",
            "A stationary point is stable if and only if all margins off the support and the real "
            "parts of all eigenvalues on it are positive (Proposition 4).",
            "if and only if",
            f"perturbed by 1e-4 of the smallest weight: flows came back to "
            f"{tested['stable that came back']} of {stable} stable points and left "
            f"{tested['unstable that left']} of {count - stable} unstable ones",
            tested["flows within their steps"] == count
            and tested["stable that came back"] == stable
            and tested["unstable that left"] == count - stable,
            "Flows that an explicit method did not follow to their end in 8000 steps, and that were "
            f"followed by an implicit one: {tested['flows that needed an implicit method']}.",
        ),
        Claim(
            "R6",
            "Near a stable point the flow is w* + exp(-t DPhi) delta + o(delta) (Proposition 5).",
            "o(delta)",
            f"the order of the remainder in |delta| is {orders[0]:.2f} to {orders[-1]:.2f} at "
            f"{len(orders)} points",
            orders[0] >= 1.9 and orders[-1] <= 2.1,
        ),
        Claim(
            "R6",
            "The local rate is the smallest real part of the eigenvalues of DPhi (Proposition 5).",
            "exp(-t DPhi)",
            "the measured decay differs from it by at most "
            f"{rates['largest relative difference']:.1%} at {rates['measured']} points, of which "
            f"{rates['with a complex slowest eigenvalue']} have complex slowest eigenvalues; it "
            "equals the smallest number of Proposition 4 to "
            f"{rates['local_rate against stability, relative']:.0e}",
            rates["largest relative difference"] <= 0.05
            and rates["local_rate against stability, relative"] <= 1e-6,
        ),
        Claim(
            "R7",
            "On a constant field mirror descent is w_0 exp(-t phi), normalised, and ends on the "
            "rows with the smallest phi, in the proportions of w_0 (Proposition 6).",
            "arg max phi (a slip: the formula in the proof gives arg min)",
            f"the largest distance from the formula is {constant['descent']:.0e} (mirror descent) "
            f"and {constant['flow']:.0e} (flow), from the limit {constant['limit']:.0e}; the "
            f"weight left on arg max phi is {constant['weight on arg max']:.0e}",
            constant["descent"] <= 1e-12
            and constant["flow"] <= 1e-8
            and constant["limit"] <= 1e-8
            and constant["weight on arg max"] <= 1e-8,
        ),
        Claim(
            "R7",
            "A random l x p matrix maps some x != 0 to 1 or to 0 with probability 1 if l <= p, and "
            "with probability 0 if l > p (Proposition 7).",
            "1 and 0",
            "; ".join(
                f"p = {p}: {min(v for k, v in rates.items() if k <= p):g} for l <= p, "
                f"{max(v for k, v in rates.items() if k > p):g} for l > p"
                for p, rates in measured["proposition 7"].items()
            ),
            all(
                rate == (rows <= p)
                for p, rates in measured["proposition 7"].items()
                for rows, rate in rates.items()
            ),
        ),
        Claim(
            "R7",
            "A flow that converges ends on at most p rows (Proposition 8).",
            "at most p",
            "; ".join(
                f"n = {run['n']}, p = {run['p']}: "
                + ", ".join(
                    f"{count} flows on {rows}" for rows, count in run["support sizes"].items()
                )
                for run in ends
            )
            + f"; stationary points of any kind, n = 5: on at most {largest} rows",
            all(run["largest support"] <= run["p"] for run in ends)
            and largest <= SMALL[1]
            and all(run["Proposition 8 holds"] for run in ends),
            "Most flows end on far fewer rows than p.",
        ),
        Claim(
            "R7",
            "Most random instances end on a single row (caption of Figure 3).",
            "most",
            ", ".join(f"{x:.0%} at n = {run['n']}" for x, run in zip(single, ends, strict=True)),
            min(single) > 0.5,
        ),
        Claim(
            "R7",
            "Most flows converge, although it is not proved that all do.",
            "if the flow converges",
            ", ".join(
                f"n = {run['n']}: {x:.1%} ("
                + ", ".join(f"{count} {kind}" for kind, count in run["kinds"].items())
                + ")"
                for x, run in zip(settled, ends, strict=True)
            )
            + f"; all {sum(run['stable'] for run in ends)} ends are within "
            f"{max(run['distance to an exact stationary point'] for run in ends):.0e} of an exact "
            "stationary point that is stable",
            float(np.average(settled, weights=[run["instances"] for run in ends])) >= 0.95
            and all(run["stable"] == sum(run["support sizes"].values()) for run in ends),
            "A flow counts as explicit if an explicit method brings it to rest in 400 steps, and "
            "as implicit if an implicit method does.",
        ),
        Claim(
            "R7",
            "Some trajectories oscillate and do not converge.",
            "have been identified",
            f"{len(rounds)} of {sum(run['instances'] for run in ends)}"
            + "".join(
                f"; one moves on rows {found['rows']} with period {found['period']:.3f} and comes "
                f"back to within {found['distance after a round']:.0e} after each period"
                for found in rounds
            ),
            len(rounds) > 0,
        ),
    ]


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
