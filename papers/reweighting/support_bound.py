"""R7, Proposition 8: from other starts than uniform weights, and a field that attains the bound.

Ivanova & Ablin, section 3.2: a flow with frozen parameters that converges ends on at most p rows. The
paper draws flows from uniform weights, and most end on far fewer rows (`frozen_flow.py`). Here the
random fields of Figure 3's caption are started from points drawn uniformly from the simplex, and a
field is given on which *every* flow ends on exactly p rows, for any p and any number of rows n > p:

    H_i = e_i e_i^T + d I,  Gamma_i = e_i   for i <= p;   H_i = d I,  Gamma_i = g_i >= 0  beyond,

with grad F = 1 and sum_k g_ik < 1. Then phi_i = -1 / (d + w_i) on the first p rows: the lighter of
two rows grows at the expense of the heavier one, so they end at 1 / p each, and the other rows, whose
phi_j = -sum_k g_jk / (d + w_k) is larger there, lose all weight. The bound is therefore attained, and
no better one holds without more assumptions.
"""

import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel import dynamics

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels

N, P, DAMPING = 5, 3, 0.1
BOUNDS = (2, 4, 6, 10, 20)  # p of the fields that attain the bound
ROWS_PER_BOUND = 5  # n = 5 p
TOL, LONG = 1e-8, 1e4
ON = 1e-4  # a weight that counts as weight at the end of a flow


def random_field(seed: int) -> dynamics.LowRankField:
    """The fields of Figure 3's caption."""
    rng = np.random.default_rng(seed)
    gradients, outer, u = rng.normal(size=(N, P)), rng.normal(size=P), rng.normal(size=(N, P))
    hessians = u[:, :, None] * u[:, None, :] + DAMPING * np.eye(P)
    return dynamics.LowRankField(*map(jnp.asarray, (gradients, hessians, outer)))


def full_field(p: int, seed: int = 0) -> dynamics.LowRankField:
    """On which p of n rows keep weight."""
    n, rng = ROWS_PER_BOUND * p, np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(p), size=n - p) * rng.uniform(0.1, 0.9, size=(n - p, 1))
    gradients = np.concatenate([np.eye(p), shares])
    hessians = np.zeros((n, p, p)) + DAMPING * np.eye(p)
    hessians[np.arange(p), np.arange(p), np.arange(p)] += 1
    return dynamics.LowRankField(*map(jnp.asarray, (gradients, hessians, np.ones(p))))


@eqx.filter_jit
def ends(field: dynamics.LowRankField, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the flows from these starts are at the end, and whether they are at rest."""

    def one(u0: jax.Array) -> tuple[jax.Array, jax.Array]:
        flow = dynamics.mirror_flow(
            field, u0, jnp.array([LONG]), tol=TOL, rtol=1e-9, atol=1e-9, max_steps=400
        )
        return flow.u[-1], flow.converged

    return eqx.filter_vmap(one)(starts)


def starts(n: int, count: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(n), size=count))


def measure(full: bool) -> dict[str, Any]:
    """Random fields from many starts, and the fields that attain the bound."""
    fields, each = (200, 50) if full else (40, 20)
    sizes, several, unsettled = [], 0, 0
    attained = {}
    with jax.enable_x64(True):
        for seed in range(fields):
            u, rest = (np.asarray(x) for x in ends(random_field(seed), starts(N, each, seed)))
            unsettled += int((~rest).sum())
            found = {tuple(np.flatnonzero(x > ON).tolist()) for x in u[rest]}
            several += len(found) > 1
            sizes += [int((x > ON).sum()) for x in u[rest]]
        for p in BOUNDS:
            field = full_field(p)
            u, rest = (
                np.asarray(x) for x in ends(field, starts(ROWS_PER_BOUND * p, each, 1000 + p))
            )
            there = np.concatenate([np.full(p, 1 / p), np.zeros((ROWS_PER_BOUND - 1) * p)])
            verdict = dynamics.stability(field, jnp.asarray(there))
            attained[p] = {
                "rows": ROWS_PER_BOUND * p,
                "at rest": int(rest.sum()),
                "sizes": sorted({int((x > ON).sum()) for x in u}),
                "distance": float(np.abs(u - there).max()),
                "stationary": bool(dynamics.is_stationary(field, jnp.asarray(there))),
                "stable": bool(verdict.stable),
                "rate": float(verdict.rate),
            }
    counts = {int(k): int(np.sum(np.array(sizes) == k)) for k in sorted(set(sizes))}
    return {
        "settings": {"n": N, "p": P, "fields": fields, "starts": each, "bounds": list(BOUNDS)},
        "seeds": list(range(fields)),
        "sizes": counts,
        "unsettled": unsettled,
        "fields whose end depends on the start": several,
        "attained": attained,
    }


def draw(measured: dict[str, Any]) -> Any:
    """On how many rows flows end, and the bound beside what attains it."""
    figure, axes = panels(1, 2, (10, 4))
    counts = measured["sizes"]
    axes[0].bar([str(k) for k in counts], list(counts.values()), color="C0")
    axes[0].set(
        title=f"random fields, n = {N}, p = {P}, random starts",
        xlabel="rows with weight at the end",
        ylabel="flows",
    )
    found = {int(p): case["sizes"][-1] for p, case in measured["attained"].items()}
    axes[1].plot(list(found), list(found), "k:", label="the bound p")
    axes[1].plot(list(found), list(found.values()), "o", label="rows at the end")
    axes[1].set(title="fields that attain the bound", xlabel="p", ylabel="rows with weight")
    axes[1].set(xticks=list(found), yticks=list(found))
    axes[1].legend()
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Two of the paper, one of ours."""
    counts, attained, settings = measured["sizes"], measured["attained"], measured["settings"]
    flows = settings["fields"] * settings["starts"]
    worst = max(case["distance"] for case in attained.values())
    return [
        Claim(
            "R7",
            "From starts drawn uniformly from the simplex, flows that converge end on at most p rows "
            "(Proposition 8).",
            f"at most p = {P}",
            ", ".join(f"{count} flows on {rows}" for rows, count in counts.items()),
            max(counts) <= P,
            f"{measured['unsettled']} of {flows} flows were not at rest within their steps.",
        ),
        Claim(
            "R7",
            "Where a flow ends can depend on where it starts.",
            "(not in the paper)",
            f"{measured['fields whose end depends on the start']} of {settings['fields']} random "
            "fields end on several sets of rows",
            measured["fields whose end depends on the start"] > 0,
        ),
        Claim(
            "R7",
            "The bound is attained: there are fields with n = 5 p on which every flow ends on "
            "exactly p rows, at a stable stationary point.",
            "at most p",
            "p = "
            + ", ".join(
                f"{p}: {'/'.join(map(str, case['sizes']))}" for p, case in attained.items()
            ),
            all(
                case["sizes"] == [p] and case["stable"] and case["stationary"]
                for p, case in attained.items()
            )
            and worst < 1e-3,
            f"The largest distance of a weight from 1 / p or 0 is {worst:.1e}. The field stands at "
            "the head of the script.",
        ),
    ]


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
