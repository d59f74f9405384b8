"""G11: bilevel optimization over clients: what local steps save, and what they cost without care.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], name federated bilevel optimization among the recent advances. The method is that
of Tarzanagh, Li, Thrampoulidis and Oymak (2022), "FedNest: Federated bilevel, minimax, and
compositional optimization" [tarzanagh2022][], simulated: clients take `local_steps` inner gradient
steps with the correction of FedInn, and the server averages; the linear system is solved with
averaged Hessian-vector products, and the outer step is on the averaged hypergradient.

The problem is logistic regression, odd against even digits on 16 principal components (scaled
together), with one penalty per feature, `u` its logarithm, and a weak prior on u, without which
some penalties run to infinity. Each outer step is one round of local steps and a hypergradient by
five steps of CG, both from where the last ones ended. *Exchanges* counts every average that the
server takes: two per round (of gradients, then of parameters; one without the correction or with
one local step), and those of the hypergradient. The distance is `|u - u*| / |u*|`, where u* is the
solution on the pooled rows.

Rows are dealt out at random (iid), or by digit, so that a client has one digit or a few (by digit).

Quick: scikit-learn's digits, 850 + 850 rows, and 1 and 10 local steps unless there are 10 clients.
Full: MNIST, 5000 + 5000 rows, and 1, 2, 5 and 10 local steps throughout.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from _tutorial import Claim, Measured, digits, fast, inner_solution, mnist, panels, relative
from _tutorial import run as frame

import bilevel
from bilevel import FederatedInner, tasks

FEATURES, PRIOR, CENTER, OUTER_STEP = 16, 0.005, -3.0, 40.0
NUM_STEPS, THIN, SHOWN = 1200, 4, 3000
SPLITS = {"iid": 0.0, "by digit": 1.0}
REACHED, SOLVED, LOST = 1e-4, 1e-7, 1e6  # distances; the last is that of a run that diverged


def rows(full: bool) -> tuple[Any, Any, Any]:
    """Inner and outer rows with their labels; the digits of both, in this order."""
    if full:
        x, codes = mnist("train", slice(10000))
    else:
        x, codes = digits()
        order = np.random.default_rng(0).permutation(len(x))[:1700]
        x, codes = x[order], codes[order]
    n = len(x) // 2
    x = x - x[:n].mean(axis=0)
    values, vectors = np.linalg.eigh(x[:n].T @ x[:n] / n)
    x = jnp.asarray(x @ vectors[:, -FEATURES:] * (2 / np.sqrt(values[-1])))
    y = jnp.asarray(np.where(codes % 2 == 1, 1.0, -1.0))
    return (x[:n], y[:n]), (x[n:], y[n:]), codes


def with_prior(problem: bilevel.BilevelProblem) -> bilevel.BilevelProblem:
    """A normal prior on the log-penalties."""

    def outer(u, w, batch):
        return problem.outer(u, w, batch) + 0.5 * PRIOR * jnp.sum((u - CENTER) ** 2)

    return bilevel.BilevelProblem(outer, problem.inner, problem.outer_data, problem.inner_data)


@partial(fast, static_argnums=(0, 1, 2, 3, 4))
def distances(outer, inner, local_steps, corrected, num_steps, outer_data, inner_data, step, truth):
    """`(distance of u, distance of w, products so far)` after each outer step."""
    problem = bilevel.BilevelProblem(outer, inner, outer_data, inner_data)
    method = bilevel.DoubleLoop(
        FederatedInner(step, local_steps, 1, corrected),
        bilevel.AID(bilevel.CG(rtol=1e-12, max_steps=5)),
        optax.sgd(OUTER_STEP),
        warm_start=True,
    )
    u, w = truth
    state = method.init(problem, jnp.full_like(u, CENTER), jnp.zeros_like(w), jax.random.key(0))

    def one(state, _):
        state, _ = method.step(problem, state)
        gaps = [
            jnp.linalg.norm(x - y) / jnp.linalg.norm(y) for x, y in ((state.u, u), (state.w, w))
        ]
        return state, (*gaps, state.calls.hvp)

    return jax.lax.scan(one, state, length=num_steps)[1]


def local_mean_gap(pooled, problem, u, w) -> float:
    """How far the mean of the clients' own hypergradients is from the hypergradient."""

    def own(inner, outer):
        found = bilevel.implicit_gradient(
            pooled, u, w, lx.Cholesky(), inner_batch=inner, outer_batch=outer
        )
        return found.grad

    local = fast(jax.vmap(own))(problem.inner_data, problem.outer_data)
    truth = fast(own)(pooled.inner_data, pooled.outer_data)
    return relative(local.mean(axis=0), truth)


def run_all(pooled, truth, codes, clients, local_steps, num_steps):
    """All runs: `(curves, their points, gaps of the mean of local hypergradients)`."""
    n = len(pooled.inner_data[0])
    u0, w0 = jnp.full(FEATURES, CENTER), jnp.zeros(FEATURES)
    hessian = jax.hessian(pooled.inner, 1)  # At w = 0 the logistic loss is most curved.
    step = 1 / np.linalg.eigvalsh(fast(hessian)(u0, w0, pooled.inner_data))[-1]
    solver = bilevel.GradientInner(optax.sgd(step), 2000)
    w_start = jax.jit(partial(inner_solution, pooled, solver, u0))(w0)
    curves, paths, gaps = [], [], {}
    for num_clients in clients:
        for split, share in SPLITS.items():
            deal = partial(tasks.deal_rows, num_clients=num_clients, heterogeneity=share)
            problem = tasks.federated(pooled, deal(codes[:n]), deal(codes[n:]))
            gaps[f"{num_clients}, {split}"] = local_mean_gap(pooled, problem, u0, w_start)
            hessians = fast(jax.vmap(partial(hessian, u0, w0)))(problem.inner_data)
            most = np.linalg.eigvalsh(hessians)[:, -1].max()
            for count in local_steps[num_clients]:
                ways = {"corrected": (True, step)}
                if count > 1:
                    ways["safe"] = (True, 1 / (count * most))
                    ways["plain"] = (False, step)
                for way, (corrected, inner_step) in ways.items():
                    du, dw, products = map(
                        np.asarray,
                        distances(
                            problem.outer,
                            problem.inner,
                            count,
                            corrected,
                            num_steps,
                            problem.outer_data,
                            problem.inner_data,
                            inner_step,
                            truth,
                        ),
                    )
                    du, dw = (np.minimum(np.nan_to_num(d, nan=LOST), LOST) for d in (du, dw))
                    averages = 2 if corrected and count > 1 else 1
                    exchanges = products + (averages + 2) * np.arange(1, num_steps + 1)
                    # The first step after which the distance stays below REACHED.
                    late = np.flatnonzero(~(du <= REACHED))
                    first = int(late[-1]) + 1 if late.size else 0
                    paths.append((exchanges[::THIN], du[::THIN]))
                    curves.append(
                        {
                            "clients": num_clients,
                            "split": split,
                            "local_steps": count,
                            "way": way,
                            "step": inner_step,
                            "last": float(du[-10:].max()),
                            "last_w": float(dw[-10:].max()),
                            "steps_to_reach": first + 1 if first < num_steps else None,
                            "exchanges_to_reach": (
                                int(exchanges[first]) if first < num_steps else None
                            ),
                        }
                    )
    return curves, paths, gaps


def select(curves, **wanted) -> list[dict[str, Any]]:
    """The runs of these settings."""
    return [c for c in curves if all(c[key] == value for key, value in wanted.items())]


def measure(full: bool) -> Measured:
    """All runs, and the solution on the pooled rows."""
    clients, all_counts = [2, 10, 50], (1, 2, 5, 10)
    local_steps = {k: all_counts if full or k == 10 else (1, 10) for k in clients}
    with jax.enable_x64(True):
        inner, outer, codes = rows(full)
        pooled = with_prior(tasks.logistic(*inner, *outer))
        u0, w0 = jnp.full(FEATURES, CENTER), jnp.zeros(FEATURES)
        solution = tasks.reference.reference_solution(pooled, u0, w0, tol=1e-11)
        truth = solution.u, solution.w
        curves, paths, gaps = run_all(pooled, truth, codes, clients, local_steps, NUM_STEPS)
    settings = {
        "data": "MNIST" if full else "digits",
        "rows": [len(inner[0]), len(outer[0])],
        "clients": clients,
        "outer_step": OUTER_STEP,
        "outer_steps": NUM_STEPS,
        "prior": PRIOR,
        "log_penalties": solution.u,
    }
    return {
        "settings": settings,
        "seeds": [0],
        "gaps": gaps,
        "curves": curves,
        "figure": {"paths": paths},
    }


def draw(measured: Measured):
    """Distance against exchanges, for ten clients; where runs end, against the number of clients."""
    curves, settings = measured["curves"], measured["settings"]
    clients = settings["clients"]
    figure, axes = panels(1, 3, (14, 4.8))
    colors = {1: "k", 2: "C0", 5: "C1", 10: "C3"}
    lines = {"corrected": "-", "safe": "--", "plain": ":"}
    for axis, split in zip(axes, SPLITS, strict=False):
        for curve, path in zip(curves, measured["figure"]["paths"], strict=True):
            count, way = curve["local_steps"], curve["way"]
            if (curve["clients"], curve["split"]) != (10, split) or (way == "safe" and count < 10):
                continue
            label = {"corrected": "", "safe": ", step 1 / (10 L)", "plain": ", not corrected"}[way]
            axis.semilogy(
                *path,
                lines[way],
                color=colors[count],
                label=f"{count} local step{'s' if count > 1 else ''}{label}",
            )
        axis.set(title=f"10 clients, {split}", xlabel="exchanges", ylim=(1e-8, 2))
        axis.set_xlim(0, SHOWN)
    axes[0].set_ylabel("distance of u to the pooled solution")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for split, color in zip(SPLITS, ("C0", "C3"), strict=True):
        for way in lines:
            last = [
                max(
                    select(curves, clients=k, split=split, local_steps=10, way=way)[0]["last"],
                    1e-12,
                )
                for k in clients
            ]
            label = {"corrected": "corrected", "safe": "step 1 / (10 L)", "plain": "not corrected"}
            axes[2].loglog(
                clients, last, "o" + lines[way], color=color, label=f"{split}, {label[way]}"
            )
    axes[2].set_xticks(clients, [str(k) for k in clients])
    axes[2].minorticks_off()
    axes[2].set(title="10 local steps, where it ends", xlabel="clients", ylim=(1e-12, 10))
    axes[2].legend(fontsize=8, loc="center right")
    figure.suptitle(
        f"Federated bilevel optimization, {settings['data']}: penalties of a logistic regression"
    )
    return figure


def claims(measured: Measured) -> list[Claim]:
    """Row G11, the federated part."""
    curves, gaps = measured["curves"], measured["gaps"]
    clients = measured["settings"]["clients"]

    def last(**wanted) -> float:
        return max(curve["last"] for curve in select(curves, **wanted))

    def ends(split: str, way: str) -> list[float]:
        chosen = select(curves, clients=10, split=split, way=way)
        return [c["last"] for c in chosen if c["local_steps"] > 1]

    def numbers(values) -> str:
        return ", ".join("diverged" if x >= LOST else f"{x:.2g}" for x in values)

    def counts(values) -> str:
        return ", ".join("never" if x is None else str(x) for x in values)

    safe = [last(way="safe"), last(way="corrected", local_steps=1)]
    bold = {split: last(split=split, way="corrected") for split in SPLITS}
    failed = [
        f"{c['clients']} clients, {c['local_steps']} local steps: {numbers([c['last']])}"
        for c in select(curves, way="corrected")
        if c["last"] > SOLVED
    ]
    iid = select(curves, clients=10, split="iid", way="corrected")
    by_digit = select(curves, clients=10, split="by digit", way="corrected")
    reach = [c["exchanges_to_reach"] for c in iid]
    plain = {split: ends(split, "plain") for split in SPLITS}
    return [
        Claim(
            "G11",
            "With corrected local steps of size 1 / (local_steps L) every run ends at the pooled "
            "solution.",
            "no drift",
            f"distance at most {max(safe):.1g}",
            max(safe) < SOLVED,
        ),
        Claim(
            "G11",
            "With corrected local steps of size 1 / L every run ends at the pooled solution.",
            "no drift",
            f"iid {numbers([bold['iid']])}, by digit {numbers([bold['by digit']])}",
            max(bold.values()) < SOLVED,
            f"These runs do not: {'; '.join(failed)}. L is the constant of the pooled loss. The "
            "correction is exact at the solution only: a client whose rows have another curvature "
            "amplifies what is left of the error, the more the longer it goes alone. Hence the "
            "smaller step of the claim before."
            if failed
            else "",
        ),
        Claim(
            "G11",
            "Without the correction runs of 10 clients with 2, 5 and 10 local steps end elsewhere.",
            "client drift",
            f"iid {numbers(plain['iid'])}; by digit {numbers(plain['by digit'])}",
            min(plain["by digit"]) > 1e-3
            and all(a < b for a, b in pairwise(plain["by digit"]))
            and all(a < b for a, b in zip(plain["iid"], plain["by digit"], strict=True)),
        ),
        Claim(
            "G11",
            f"With more local steps, 10 iid clients need fewer exchanges to a distance of {REACHED}.",
            "fewer rounds",
            f"1, 2, 5, 10 local steps: {counts(reach)}",
            None not in reach and all(a > b for a, b in pairwise(reach)),
            f"By digit they need {counts(c['exchanges_to_reach'] for c in by_digit)}. One or two of "
            "the exchanges of an outer step are for the inner round, the others for its "
            "hypergradient.",
        ),
        Claim(
            "G11",
            "The mean of the clients' own hypergradients is not the hypergradient.",
            "biased",
            ", ".join(f"{key}: {gap:.2g}" for key, gap in gaps.items()),
            all(gaps[f"{k}, by digit"] > max(0.1, gaps[f"{k}, iid"]) for k in clients),
            "These are relative distances, at the start of the runs.",
        ),
    ]


if __name__ == "__main__":
    frame(__file__, measure, draw, claims)
