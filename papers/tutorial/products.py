"""G6: three ways to take a Hessian-vector product by automatic differentiation.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], on the cost of AID: reverse over reverse (RR, the gradient of `<grad f, v>`),
reverse over forward (RF, the gradient of the directional derivative of f) and forward over reverse
(FR, the directional derivative of `grad f`) give the same vector, and each costs a few gradients.
They are measured here for the cross-entropy of a perceptron with two hidden layers, on synthetic
data.
"""

from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _tutorial import Claim, Measured, compiled, panels, relative, run, temporary_bytes

TOLERANCE = 1e-12


def objective(params, batch):
    """Mean cross-entropy of a tanh perceptron, with a small ridge."""
    x, y = batch
    *hidden, last = params
    for weight, bias in hidden:
        x = jnp.tanh(x @ weight + bias)
    logits = x @ last[0] + last[1]
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))
    return loss + 5e-4 * jnp.asarray(optax.tree.norm(params, squared=True))


def reverse_over_reverse(params, v, batch):
    """The gradient of `<grad f, v>`."""

    def slope(params):
        return optax.tree.vdot(jax.grad(objective)(params, batch), v)

    return jax.grad(slope)(params)


def reverse_over_forward(params, v, batch):
    """The gradient of the directional derivative of f."""

    def slope(params):
        return jax.jvp(lambda p: objective(p, batch), (params,), (v,))[1]

    return jax.grad(slope)(params)


def forward_over_reverse(params, v, batch):
    """The directional derivative of the gradient: what this package uses."""
    return jax.jvp(lambda p: jax.grad(objective)(p, batch), (params,), (v,))[1]


def gradient(params, v, batch):
    """One gradient, as the unit of cost."""
    del v
    return jax.grad(objective)(params, batch)


WAYS: dict[str, Callable] = {
    "gradient": gradient,
    "RR": reverse_over_reverse,
    "RF": reverse_over_forward,
    "FR": forward_over_reverse,
}


def instance(sizes: list[int], rows: int) -> tuple[Any, Any, Any]:
    """Parameters, a direction and a batch, all random."""
    keys = iter(jr.split(jr.key(0), 2 * len(sizes) + 2))
    params = [
        (jr.normal(next(keys), (a, b)) / np.sqrt(a), jnp.zeros(b)) for a, b in pairwise(sizes)
    ]
    v = optax.tree.random_like(next(keys), params)
    x = jr.normal(next(keys), (rows, sizes[0]))
    return params, v, (x, jr.randint(next(keys), (rows,), 0, sizes[-1]))


def measure(full: bool) -> Measured:
    """Time and memory of each way, and how far the products are apart."""
    sizes, rows, rounds = (
        ([784, 512, 512, 10], 1024, 60) if full else ([200, 128, 128, 10], 256, 60)
    )
    with jax.enable_x64(True):
        args = instance(sizes, rows)
        runs = {name: compiled(way, *args) for name, way in WAYS.items()}
        products = [run(*args) for name, run in runs.items() if name != "gradient"]
        apart = max(relative(a, b) for a in products for b in products)
        seconds = {name: [] for name in runs}
        for _ in range(rounds):  # They alternate, so that a busy machine slows all of them alike.
            for name, run in runs.items():
                start = perf_counter()
                jax.block_until_ready(run(*args))
                seconds[name].append(perf_counter() - start)
    table = {
        name: {
            "milliseconds": 1e3 * np.median(times),
            "milliseconds_quartiles": 1e3 * np.quantile(times, [0.25, 0.75]),
            "gradients": np.median(np.divide(times, seconds["gradient"])),
            "temporary_megabytes": temporary_bytes(runs[name]) / 1e6,
        }
        for name, times in seconds.items()
    }
    settings = {"sizes": sizes, "rows": rows, "rounds": rounds, "dtype": "float64"}
    return {"settings": settings, "seeds": [0], "difference": apart, "table": table}


def draw(measured: Measured):
    """Bars: time and memory."""
    table, settings = measured["table"], measured["settings"]
    figure, axes = panels(1, 2, (9, 3.6))
    for axis, key, label, digits in [
        (axes[0], "milliseconds", "time (ms, median and quartiles)", 1),
        (axes[1], "temporary_megabytes", "temporary memory (MB)", 2),
    ]:
        heights = [row[key] for row in table.values()]
        names = [
            f"{name}\n{height:.{digits}f}" for name, height in zip(table, heights, strict=True)
        ]
        axis.bar(names, heights, color=["0.7", "C0", "C1", "C2"], width=0.65)
        if key == "milliseconds":
            quartiles = np.array([row["milliseconds_quartiles"] for row in table.values()]).T
            around = np.abs(quartiles - np.array(heights))
            axis.errorbar(names, heights, around, fmt="none", ecolor="k", capsize=4, lw=1)
        axis.set_ylabel(label)
    shape = "-".join(map(str, settings["sizes"]))
    figure.suptitle(
        f"Hessian-vector products, perceptron {shape}, {settings['rows']} rows", fontsize=11
    )
    return figure


def claims(measured: Measured) -> list[Claim]:
    """Equal values, and a price."""
    slowest = max(row["gradients"] for row in measured["table"].values())
    ways = ("RR", "RF", "FR")
    memory = {name: measured["table"][name]["temporary_megabytes"] for name in ways}
    return [
        Claim(
            "G6",
            "RR, RF and FR give the same vector.",
            "equal",
            f"relative difference at most {measured['difference']:.1e}",
            measured["difference"] <= TOLERANCE,
        ),
        Claim(
            "G6",
            "A Hessian-vector product costs a few gradients.",
            "at most about 5 gradients",
            f"at most {slowest:.1f} gradients",
            slowest <= 5,
            "This is the median of the ratios of alternating runs, on this machine.",
        ),
        Claim(
            "G6",
            "The memory of RR is at least that of RF, and that of RF at least that of FR.",
            "RR >= RF >= FR",
            ", ".join(f"{name} {megabytes:.2f} MB" for name, megabytes in memory.items()),
            memory["RR"] >= memory["RF"] >= memory["FR"],
            "These are the temporary buffers of the compiled programs.",
        ),
    ]


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
