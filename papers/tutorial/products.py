"""G6: three ways to take a Hessian-vector product by automatic differentiation.

Grazzi & Pontil, on the cost of AID: reverse over reverse (RR, the gradient of `<grad f, v>`), reverse
over forward (RF, the gradient of the directional derivative of f) and forward over reverse (FR, the
directional derivative of `grad f`) give the same vector, at a cost of a few gradients each. Here for
the cross-entropy of a perceptron with two hidden layers, on synthetic data.
"""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib as mpl
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(Path(__file__).parents[1]))
from _frame import Claim, run_script

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


def measure(sizes: list[int], rows: int, rounds: int) -> tuple[dict[str, Any], float]:
    """Time and memory of each way, and how far they are apart."""
    args = instance(sizes, rows)
    compiled = {name: jax.jit(way).lower(*args).compile() for name, way in WAYS.items()}
    products = {
        name: np.asarray(ravel_pytree(run(*args))[0])
        for name, run in compiled.items()
        if name != "gradient"
    }
    apart = max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a in products.values()
        for b in products.values()
    )
    seconds = {name: [] for name in compiled}
    for _ in range(rounds):  # alternating, so that a busy moment of the machine meets all alike
        for name, run in compiled.items():
            start = perf_counter()
            jax.block_until_ready(run(*args))
            seconds[name].append(perf_counter() - start)
    megabytes = {}
    for name, run in compiled.items():
        analysis = run.memory_analysis()
        assert analysis is not None
        megabytes[name] = analysis.temp_size_in_bytes / 1e6
    table = {
        name: {
            "milliseconds": 1e3 * float(np.median(seconds[name])),
            "milliseconds_quartiles": [1e3 * float(q) for q in np.quantile(times, [0.25, 0.75])],
            "gradients": float(np.median(np.divide(times, seconds["gradient"]))),
            "temporary_megabytes": megabytes[name],
        }
        for name, times in seconds.items()
    }
    return table, apart


def draw(table: dict[str, Any], title: str, path: Path) -> None:
    """Bars: time and memory."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = list(table)
    colors = ["0.7", "C0", "C1", "C2"]
    for axis, key, label, digits in [
        (axes[0], "milliseconds", "time (ms, median and quartiles)", 1),
        (axes[1], "temporary_megabytes", "temporary memory (MB)", 2),
    ]:
        heights = [table[name][key] for name in names]
        bars = axis.bar(names, heights, color=colors, width=0.65)
        if key == "milliseconds":
            quartiles = np.array([table[name]["milliseconds_quartiles"] for name in names]).T
            around = np.abs(quartiles - np.array(heights))
            axis.errorbar(names, heights, around, fmt="none", ecolor="k", capsize=4, lw=1)
        axis.bar_label(bars, fmt=f"%.{digits}f", label_type="center")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(full: bool, out: Path) -> tuple[dict[str, Any], list[Claim]]:
    """Measure, print the table, draw, judge."""
    jax.config.update("jax_enable_x64", True)
    sizes, rows, rounds = (
        ([784, 512, 512, 10], 1024, 60) if full else ([200, 128, 128, 10], 256, 60)
    )
    table, apart = measure(sizes, rows, rounds)
    print("          time (ms)   in gradients   temporary memory (MB)")
    for name, row in table.items():
        print(
            f"{name:9s}{row['milliseconds']:10.2f}{row['gradients']:15.2f}"
            f"{row['temporary_megabytes']:24.2f}"
        )
    shape = "-".join(map(str, sizes))
    draw(table, f"Hessian-vector products, perceptron {shape}, {rows} rows", out / "products.png")
    slowest = max(row["gradients"] for row in table.values())
    claims = [
        Claim(
            "G6",
            "RR, RF and FR are the same vector",
            "equal",
            f"relative difference at most {apart:.1e}",
            apart <= TOLERANCE,
        ),
        Claim(
            "G6",
            "a product costs a few gradients",
            "at most about 5 gradients",
            f"at most {slowest:.1f} gradients",
            slowest <= 5,
            "Median of the ratios of alternating runs, on this machine.",
        ),
    ]
    settings = {"sizes": sizes, "rows": rows, "rounds": rounds, "dtype": "float64"}
    return {"settings": settings, "difference": apart, "table": table}, claims


if __name__ == "__main__":
    run_script(__file__, main)
