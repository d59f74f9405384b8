"""G2: how stable chosen hyperparameters are, and what that says of overfitting the validation rows.

Bao, Wu, Li, Zhu and Zhang (2021), "Stability and generalization of bilevel programming in
hyperparameter optimization", arXiv:2106.04188: an algorithm that chooses hyperparameters on m
validation rows is beta-stable if the loss at any row changes by at most beta in expectation when one
validation row is replaced, and then the expected test loss exceeds the expected validation loss by at
most beta. For T outer steps of unrolled differentiation their beta falls as 1 / m and grows with T.

Here it is measured. `u` are d log-penalties of ridge regression, w*(u) is exact, and the outer steps
are gradient steps from equal penalties (`DoubleLoop` with `ClosedForm` and `ITD`). For each draw of
rows, some validation rows are replaced one by one by new ones, and everything is run again. Three
numbers:

- the gap: test loss minus validation loss of the result;
- the mean change of the loss *at the replaced row*, which has the same expectation as the gap, because
  a row and its replacement are exchangeable: this is a check of the measurement;
- the stability: the largest change `|l(A(S'), z) - l(A(S), z)|` over the replacements and over 2000
  test rows z, in the mean over the draws.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _tutorial import Claim, Measured, panels, run, slope

import bilevel

FEATURES, TRAIN, TEST, NOISE = 20, 40, 2000, 1.0
ROWS, STEPS = (20, 40, 80, 160), (10, 30, 100, 300)
STEP, REPLACED = 2.0, 10


def outer(u: Any, w: Any, batch: Any) -> Any:
    """Half the mean squared error."""
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def inner(u: Any, w: Any, batch: Any) -> Any:
    """With one penalty `exp(u_i)` per feature."""
    return outer(u, w, batch) + 0.5 * jnp.vdot(jnp.exp(u), w**2)


def solution(u: Any, batch: Any) -> Any:
    """The ridge solution."""
    x, y = batch
    return jnp.linalg.solve(x.T @ x / len(y) + jnp.diag(jnp.exp(u)), x.T @ y / len(y))


METHOD = bilevel.DoubleLoop(bilevel.ClosedForm(solution), bilevel.ITD(), optax.sgd(STEP))


def rows(key: Any, count: int) -> Any:
    """The first half of the features matters."""
    keys = jr.split(key)
    x = jr.normal(keys[0], (count, FEATURES))
    w = (jnp.arange(FEATURES) < FEATURES // 2) / np.sqrt(FEATURES)
    return x, x @ w + NOISE * jr.normal(keys[1], (count,))


def results(train: Any, validation: Any) -> Any:
    """w*(u) after each of `STEPS` outer steps."""
    problem = bilevel.BilevelProblem(outer, inner, validation, train)
    u0 = jnp.full(FEATURES, jnp.log(0.1))
    state = METHOD.init(problem, u0, jnp.zeros(FEATURES), jr.key(0))

    def step(state: Any, _: None) -> Any:
        following = METHOD.step(problem, state)[0]
        return following, following.u

    _, us = jax.lax.scan(step, state, length=STEPS[-1])
    return jax.vmap(lambda u: solution(u, train))(us[np.array(STEPS) - 1])


@partial(jax.jit, static_argnums=1)
def one_draw(key: Any, m: int) -> Any:
    """Of one draw of all rows: the gap, the changes at the replaced rows, and at the test rows."""
    keys = jr.split(key, 4)
    train, validation, new, test = (
        rows(k, n) for k, n in zip(keys, (TRAIN, m, REPLACED, TEST), strict=True)
    )

    def loss(w: Any, rows: Any) -> Any:
        x, y = rows
        return 0.5 * (x @ w - y) ** 2

    def replaced(j: Any) -> Any:
        x, y = validation
        return results(train, (x.at[j].set(new[0][j]), y.at[j].set(new[1][j])))

    first, others = results(train, validation), jax.lax.map(replaced, jnp.arange(REPLACED))

    def at(w: Any) -> Any:
        return loss(w, test).mean() - loss(w, validation).mean()

    gap = jax.vmap(at)(first)  # one per number of steps

    def change(j: Any) -> Any:
        row = validation[0][j], validation[1][j]
        here = jax.vmap(lambda a, b: loss(a, row) - loss(b, row))(others[j], first)
        there = jax.vmap(lambda a, b: loss(a, test) - loss(b, test))(others[j], first)
        return here, there

    here, there = jax.vmap(change)(jnp.arange(REPLACED))
    return gap, here.mean(axis=0), there


def measure(full: bool) -> Measured:
    """All numbers of validation rows and steps."""
    draws, found = 200 if full else 40, {}
    with jax.enable_x64(True):
        for m in ROWS:
            gaps, here, there = [], [], []
            for key in jr.split(jr.key(m), draws):
                gap, at_row, at_test = map(np.asarray, one_draw(key, m))
                gaps.append(gap)
                here.append(at_row)
                there.append(np.abs(at_test).max(axis=(0, 2)))
            root = np.sqrt(draws)
            found[str(m)] = {
                "gap": np.mean(gaps, axis=0),
                "gap, error": np.std(gaps, axis=0, ddof=1) / root,
                "change": np.mean(here, axis=0),
                "change, error": np.std(here, axis=0, ddof=1) / root,
                "stability": np.mean(there, axis=0),
            }
    settings = {
        "features": FEATURES,
        "training rows": TRAIN,
        "validation rows": ROWS,
        "outer steps": STEPS,
        "outer step": STEP,
        "replaced rows": REPLACED,
        "draws": draws,
    }
    return {"settings": settings, "seeds": list(ROWS), "by rows": found}


def draw(measured: Measured):
    """The gap and the stability, against validation rows and against steps."""
    found = measured["by rows"]
    figure, (left, right) = panels(1, 2, (10, 4))
    for k, steps in enumerate(STEPS):
        for key, style in (("stability", "o-"), ("gap", "s--")):
            values = [np.asarray(found[str(m)][key])[k] for m in ROWS]
            label = f"T = {steps}" if key == "stability" else None
            left.loglog(ROWS, values, style, color=f"C{k}", ms=4, label=label)
    left.set(xlabel="validation rows m", ylabel="loss", title="stability (solid) and gap (dashed)")
    left.legend(fontsize=7, ncols=2)
    for k, m in enumerate(ROWS):
        for key, style in (("stability", "o-"), ("gap", "s--")):
            label = f"m = {m}" if key == "stability" else None
            right.loglog(STEPS, found[str(m)][key], style, color=f"C{k}", ms=4, label=label)
    right.set(xlabel="outer steps T", title="stability (solid) and gap (dashed)")
    right.legend(fontsize=7, ncols=2)
    return figure


def claims(measured: Measured) -> list[Claim]:
    """The bound, its order in m and its growth in T."""
    found = measured["by rows"]

    def table(key: str) -> np.ndarray:
        return np.array([np.asarray(found[str(m)][key]) for m in ROWS])  # (m, T)

    gap, change, stability = table("gap"), table("change"), table("stability")
    apart = np.abs(gap - change) / np.hypot(table("gap, error"), table("change, error"))
    slopes = [slope(ROWS, stability[:, k]) for k in range(len(STEPS))]
    growth = stability[:, -1] / stability[:, 0]
    return [
        Claim(
            "G2",
            "The test loss of chosen hyperparameters exceeds their validation loss by at most the "
            "stability (Bao and others).",
            "expected gap at most beta",
            f"gap at most {np.max(gap / stability):.3f} times the stability, for m = "
            f"{list(ROWS)} and T = {list(STEPS)}",
            bool((gap <= stability).all()),
            "The gap and the mean change at the replaced row, which have the same expectation, differ "
            f"by at most {apart.max():.1f} of their standard errors.",
        ),
        Claim(
            "G2",
            "The stability falls as 1 / m in the number of validation rows.",
            "of the order 1 / m",
            f"slopes {', '.join(f'{s:.2f}' for s in slopes)} for T = {list(STEPS)}",
            max(slopes) <= -0.8,
        ),
        Claim(
            "G2",
            "The stability grows with the number of outer steps: more steps overfit the validation "
            "rows more.",
            "grows with T",
            f"from T = {STEPS[0]} to {STEPS[-1]} times {', '.join(f'{g:.1f}' for g in growth)} for "
            f"m = {list(ROWS)}; the gap from {', '.join(f'{x:.3f}' for x in gap[:, 0])} to "
            f"{', '.join(f'{x:.3f}' for x in gap[:, -1])}",
            bool((np.diff(stability, axis=1) > 0).all()),
        ),
    ]


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
