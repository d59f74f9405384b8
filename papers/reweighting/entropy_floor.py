"""R11: does the entropy reach zero at r = 1000 with all rows in every step, and what a floor changes.

Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization", section 4.2 and
Figure 6: at the largest ratios of the two steps "the entropy goes to 0", that is, one row has all the
weight. The paper does not say how the weights are stored. A mirror step multiplies each weight by
exp(-eta Psi_i), so that at r = 1000 the losers fall by hundreds of orders of magnitude. An
implementation that stores the weights has to stop somewhere: at the smallest normal number of the
dtype, say, which is exp(-87) in float32 and exp(-708) in float64. A row that should be at exp(-5000)
then waits at exp(-87), and comes back far too early. `bilevel.Simplex` holds the log-weights.

Here both run on hyper-cleaning of MNIST with SOBA on all rows at r = 1000 (eta = 1, rho = 1e-3, as in
Figure 6), from the same start on the same rows; log-weights in float32 and in float64, weights with a
floor in float32, where the floor is near. The entropy is looked at 100 times in the second half of a
run.

Quick: 500 rows, 300 outer ones. Full: the published 8000 and 5000, 12000 steps.
"""

import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hyper_cleaning import RATE, accuracies, cleaning, train_model
from matplotlib.figure import Figure
from soba_steps import drop_empty_pixels, num_rows

import bilevel
from bilevel import tasks

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels

ETA, RHO = 1.0, 1e-3
SIZES = {False: (500, 300, 6000), True: (8000, 5000, 12_000)}  # rows, outer rows, steps
LOOKS = 200
NEAR, ABOVE = 0.01, 0.1  # nats: at most, the entropy is zero; at least, it is not


class Floored(bilevel.AbstractGeometry):
    """The simplex with the same mirror step, on weights that are never below the smallest normal
    number of their dtype."""

    def retract(self, u, delta):
        logs = jax.nn.log_softmax(jnp.log(u) + delta)
        return jnp.maximum(jnp.exp(logs), jnp.finfo(u.dtype).tiny)

    def project(self, u):
        return bilevel.Simplex().project(u)

    def magnitude(self, u, grad):
        return bilevel.Simplex().magnitude(u, grad)


RUNS = {"float32": ("log-weights", "weights"), "float64": ("log-weights",)}
STORED = {"log-weights": bilevel.Simplex(), "weights": Floored()}


@eqx.filter_jit
def run(problem: bilevel.BilevelProblem, w0: Any, steps: int) -> tuple[Any, dict[str, Any]]:
    """The last state, and the entropy and the heaviest row at `LOOKS` equidistant looks."""
    n = num_rows(problem)
    dtype = jax.tree.leaves(w0)[0].dtype
    rho, eta = jnp.asarray(RHO, dtype), jnp.asarray(ETA, dtype)
    method = bilevel.SOBA(rho, rho, eta)
    state = method.init(problem, tasks.uniform_weights(n, dtype), w0, jax.random.key(0))

    def one(_: Any, carried: Any) -> Any:
        state, changes = carried
        following = method.step(problem, state)[0]
        return following, changes + (jnp.argmax(following.u) != jnp.argmax(state.u))

    def look(carried: Any, _: None) -> Any:
        carried = jax.lax.fori_loop(0, steps // LOOKS, one, carried)
        u = carried[0].u
        return carried, {"entropy": jnp.sum(jax.scipy.special.entr(u)), "heaviest": jnp.argmax(u)}

    start = state, jnp.asarray(0, jnp.int32)
    (state, changes), looks = jax.lax.scan(look, start, length=LOOKS)
    return state, looks | {"changes": changes}


def cast(data: Any, dtype: Any) -> Any:
    """Floating point leaves in another precision."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, data, is_leaf=eqx.is_array
    )


def one_run(full: bool, dtype: str, stored: str) -> dict[str, Any]:
    """One precision and one way to store the weights: entropies, and what the models are worth."""
    n, outer, steps = SIZES[full]
    single = drop_empty_pixels(cleaning(0, n=n, num_outer=outer, rate=RATE))
    with jax.enable_x64(dtype == "float64"):
        problem, model = cast((single.problem, single.model), dtype)
        problem = eqx.tree_at(
            lambda p: p.geometry, problem, STORED[stored], is_leaf=lambda x: x is problem.geometry
        )
        state, looks = run(problem, model.w0, steps)
        u, w, looks = jax.device_get((state.u, state.w, looks))
    again = train_model(single.problem, jnp.asarray(u, jnp.float32), single.model.w0)
    entropy = np.asarray(looks["entropy"], float)
    late = entropy[LOOKS // 2 :]
    return {
        "entropies": np.round(entropy, 5),
        "least": late.min(),
        "median": np.median(late),
        "share near zero": np.mean(late <= NEAR),
        "changes of the heaviest row": int(looks["changes"]),
        "as_left": accuracies(single, cast(jax.tree.map(jnp.asarray, w), "float32"))["test"],
        "retrained": accuracies(single, again)["test"],
    }


def measure(full: bool) -> dict[str, Any]:
    """Both precisions, and in float32 both ways to store the weights."""
    names = ("rows", "outer rows", "steps")
    size = dict(zip(names, SIZES[full], strict=True))
    return {
        "settings": {**size, "rate": RATE, "eta": ETA, "rho": RHO},
        "seeds": [0],
        "runs": {
            dtype: {stored: one_run(full, dtype, stored) for stored in ways}
            for dtype, ways in RUNS.items()
        },
    }


def draw(measured: dict[str, Any]) -> Figure:
    """The entropy along the runs."""
    figure, axes = panels(1, 2, (10, 3.6), sharey=True)
    for axis, (dtype, runs) in zip(axes, measured["runs"].items(), strict=True):
        size = measured["settings"]
        at = size["steps"] / LOOKS * np.arange(1, LOOKS + 1)
        for (stored, found), colour in zip(runs.items(), ("C0", "C3"), strict=False):
            axis.plot(at, np.asarray(found["entropies"]), color=colour, lw=1, label=stored)
        axis.set(title=f"{dtype}, {size['rows']} rows", xlabel="steps")
    axes[0].set(ylabel="entropy of the weights, nats")
    axes[0].legend(title="stored are")
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Log-weights reach zero in both precisions; the floor is what keeps float32 from it."""
    logs = {dtype: runs["log-weights"] for dtype, runs in measured["runs"].items()}
    kept = measured["runs"]["float32"]["weights"]

    def shown(key: str, style: str = ".3f") -> str:
        return ", ".join(f"{format(run[key], style)} in {dtype}" for dtype, run in logs.items())

    where = "All rows in every step, r = 1000, log-weights:"
    return [
        Claim(
            "R11",
            f"{where} the entropy reaches zero in float32 and in float64 (least value in the second "
            f"half of the run at most {NEAR}).",
            "the entropy goes to 0",
            f"least entropy {shown('least', '.4f')}",
            all(run["least"] <= NEAR for run in logs.values()),
        ),
        Claim(
            "R11",
            f"{where} the entropy stays at zero (median of the second half at most {NEAR}).",
            "the entropy goes to 0",
            f"median entropy {shown('median')}; at most {NEAR} at a share of "
            f"{shown('share near zero', '.2f')} of the looks",
            all(run["median"] <= NEAR for run in logs.values()),
            "The weight goes from row to row, and while it does, several rows share it: the heaviest "
            f"row changes {shown('changes of the heaviest row', 'd')} times.",
        ),
        Claim(
            "R11",
            "The same in float32 with weights that are kept at the smallest normal number: the "
            f"entropy does not reach zero (least value at least {ABOVE}).",
            None,
            f"least entropy {kept['least']:.3f}, median {kept['median']:.3f}",
            kept["least"] >= ABOVE,
            f"The heaviest row changes {kept['changes of the heaviest row']} times, with log-weights "
            f"{logs['float32']['changes of the heaviest row']} times. The model as left has a test "
            f"accuracy of {kept['as_left']:.3f}.",
        ),
        Claim(
            "R11",
            f"{where} the model as left is far better than one retrained on the final weights.",
            "much better than that of a model trained on that single sample",
            f"test accuracy as left {shown('as_left')}; retrained {shown('retrained')}",
            all(run["as_left"] - run["retrained"] >= 0.2 for run in logs.values()),
        ),
    ]


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
