"""G5: equilibrium models, one fixed point per example.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], sections "Deep Equilibrium Models" and "Examples of Contractions": the hidden layer
of a model is the fixed point `z_i = tanh(A z_i + U x_i + b)`, `||A|| < 1`, of each example, and
training is a bilevel problem with a separable inner problem. Shown here, on the digits of
scikit-learn (`--full`: training on MNIST as well):

a) the implicit gradient is that of unrolling to convergence, though the system is not symmetric;
b) its memory does not grow with the number of solver steps;
c) the model learns; it is compared with feed-forward nets with one layer of the same width and of
   the same number of parameters, over several splits;
d) what plain iteration, Anderson mixing, Broyden's method (of scipy, on all rows as one vector) and
   Newton's method with GMRES need for a residual, in evaluations of the map or products with its
   derivative, which cost about the same; and in seconds.
"""

from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
from _solvers import CONTRACTION, GOOD, WIDTH, compare_solvers, seconds
from _tutorial import (
    Claim,
    Measured,
    digits,
    estimate,
    fast,
    mnist,
    panels,
    relative,
    temporary_bytes,
)
from _tutorial import run as frame
from sklearn.model_selection import train_test_split

import bilevel
from bilevel import Anderson, RootInner, tasks

GMRES = lx.GMRES(rtol=1e-13, atol=1e-13)


class Data(NamedTuple):
    """Rows in [0, 1] and class codes."""

    x: Any
    y: Any
    x_test: Any
    y_test: Any


def split_digits(seed: int) -> Data:
    """1347 training and 450 test rows of 8 x 8 pixels."""
    x, y = digits()
    x, x_test, y, y_test = train_test_split(x, y, random_state=seed, stratify=y)
    return Data(*(jnp.asarray(a) for a in (x, y, x_test, y_test)))


def all_mnist() -> Data:
    """60000 training and 10000 test rows of 28 x 28 pixels."""
    arrays = []
    for x, y in (mnist("train"), mnist("test")):
        arrays += [jnp.asarray(x.astype(np.float32)), jnp.asarray(y.astype(np.int32))]
    return Data(*arrays)


# a) gradients


def dense_gradient(problem, u, w):
    """By matrices: `(I - J)^T v = grad_w F`, J from forward differentiation; and J's asymmetry."""
    by_u, by_w = jax.grad(problem.outer, (0, 1))(u, w, problem.outer_data)
    mapped = lambda u, w: problem.map(u, w, problem.inner_data)  # noqa: E731
    jacobian = jax.jacfwd(mapped, 1)(u, w).reshape(w.size, w.size)
    v = jnp.linalg.solve((jnp.eye(w.size) - jacobian).T, by_w.ravel()).reshape(w.shape)
    implicit = jax.vjp(lambda u: mapped(u, w), u)[1](v)[0]
    skew = jnp.linalg.norm(jacobian - jacobian.T) / jnp.linalg.norm(jacobian)
    return optax.tree.add(by_u, implicit), skew


def gradients(u, rows: int, counts: list[int], converged: int) -> dict[str, Any]:
    """Every way to the gradient, relative to unrolling `converged` steps of the map."""
    data = split_digits(0)
    x, y = data.x[:rows], data.y[:rows]
    model = tasks.models.equilibrium_model(x.shape[1], 10, key=jr.key(0), width=WIDTH)
    problem = tasks.equilibrium(x, y, model)
    w0 = jnp.zeros((rows, WIDTH))

    def unrolled(num_steps):
        inner = bilevel.GradientInner(optax.sgd(1.0), num_steps)
        return fast(partial(estimate, problem, bilevel.ITD(), inner))(u, w0)

    def implicit(solver):
        return fast(lambda w: bilevel.implicit_gradient(problem, u, w, solver).grad)

    iterate = jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda _, z: model.cell(u, z, x), w0))
    w, truth, by_gmres = iterate(converged), unrolled(converged), implicit(GMRES)
    dense, skew = fast(partial(dense_gradient, problem))(u, w)
    tight = RootInner(Anderson(1e-13, 1e-13), by_row=True)
    layer = tasks.models.EquilibriumModel(u, model.cell, model.readout, WIDTH, tight, GMRES)

    def loss(u):
        return jnp.mean(tasks.models.softmax_cross_entropy(layer.predict(u, x), y))

    ways = {
        "GMRES": by_gmres(w),
        "Richardson": implicit(bilevel.Richardson(1.0, rtol=1e-13))(w),
        "Neumann": implicit(bilevel.Neumann(1.0, converged))(w),
        "layer": fast(jax.grad(loss))(u),
        "dense": dense,
    }
    return {
        "rows": rows,
        "unrolled_steps": converged,
        "asymmetry": float(skew),
        "errors": {name: relative(found, truth) for name, found in ways.items()},
        "t": counts,
        "curve": {
            "unrolled": [relative(unrolled(t), truth) for t in counts],
            "implicit": [relative(by_gmres(iterate(t)), truth) for t in counts],
        },
    }


# b) memory


def memory(rows: int, counts: list[int]) -> dict[str, list[int]]:
    """Temporary bytes of the compiled gradients for T solver steps, the data being arguments."""
    data = split_digits(0)
    x, y = data.x[:rows], data.y[:rows]
    model = tasks.models.equilibrium_model(x.shape[1], 10, key=jr.key(0), width=WIDTH)
    u, w = model.u0, jnp.zeros((rows, WIDTH))
    richardson = bilevel.AID(bilevel.Richardson(1.0))

    def picard(t):
        return bilevel.GradientInner(optax.sgd(1.0), t)

    ways = {
        "unrolled": (bilevel.ITD(), picard),
        "implicit, plain": (richardson, picard),
        "implicit, Anderson": (richardson, lambda t: RootInner(Anderson(1e-5, 1e-5), t, True)),
    }

    def used(estimator, inner):
        def run(u, w, x, y):
            return estimate(tasks.equilibrium(x, y, model), estimator, inner, u, w)

        return temporary_bytes(fast(run).lower(u, w, x, y).compile())

    return {name: [used(way, inner(t)) for t in counts] for name, (way, inner) in ways.items()}


# c) training


def nets(num_features: int, width: int) -> dict[str, Any]:
    """Constructors of models, `key -> Model`: two of them have one layer and no fixed point."""

    def equilibrium(key):
        model = tasks.models.equilibrium_model(num_features, 10, key=key, width=width)
        return tasks.models.Model(model.u0, model.predict)

    def layer(width, key):
        return tasks.models.mlp_model(num_features, 10, key=key, width=width)

    size = optax.tree.size(equilibrium(jr.key(0)).w0)
    return {
        "equilibrium": equilibrium,
        "one layer, same width": partial(layer, width),
        "one layer, same size": partial(layer, round((size - 10) / (num_features + 11))),
    }


def trainer(predict, epochs: int, batch: int, learning_rate: float):
    """`(u0, data, key) -> (u, test accuracy)` by Adam with decoupled weight decay, compiled once."""

    def loss(u, x, y):
        return jnp.mean(tasks.models.softmax_cross_entropy(predict(u, x), y))

    @jax.jit
    def train(u0, data, key):
        steps = len(data.x) // batch
        rate = optax.cosine_decay_schedule(learning_rate, epochs * steps)
        tx = optax.adamw(rate, weight_decay=1e-4)

        def step(carry, rows):
            u, state = carry
            slope = jax.grad(loss)(u, data.x[rows], data.y[rows])
            updates, state = tx.update(slope, state, u)
            return (optax.apply_updates(u, updates), state), None

        def epoch(carry, key):
            rows = jr.permutation(key, len(data.x))[: steps * batch].reshape(steps, batch)
            return jax.lax.scan(step, carry, rows)

        (u, _), _ = jax.lax.scan(epoch, (u0, tx.init(u0)), jr.split(key, epochs))
        return u, jnp.mean(jnp.argmax(predict(u, data.x_test), axis=1) == data.y_test)

    return train


def train_all(splits: list[Data], width: int, **settings) -> tuple[dict[str, Any], Any]:
    """Test accuracies on each split, and the parameters of the first equilibrium model."""
    found, first = {}, {}
    for name, make in nets(splits[0].x.shape[1], width).items():
        train, accuracies, seconds = trainer(make(jr.key(0)).predict, **settings), [], []
        for seed, data in enumerate(splits):
            start = perf_counter()
            u, accuracy = train(make(jr.key(seed)).w0, data, jr.key(100 + seed))
            accuracies.append(float(accuracy))
            seconds.append(perf_counter() - start)
            first = first or u
        size = optax.tree.size(make(jr.key(0)).w0)
        found[name] = {"parameters": size, "accuracy": accuracies, "seconds": seconds}
    x_test = splits[0].x_test
    model = tasks.models.equilibrium_model(x_test.shape[1], 10, key=jr.key(0), width=width)
    solved = jax.jit(lambda u: model.solve(u, x_test))(first)
    A = np.asarray(tasks.models.contracted(first["W"], CONTRACTION))
    found["equilibrium"] |= {
        "residual": float(solved.residual.max()),
        "steps": int(solved.steps),
        "norm_of_A": float(np.linalg.norm(A, 2)),
        "spectral_radius_of_A": float(np.abs(np.linalg.eigvals(A)).max()),
    }
    return found, first


def measure(full: bool) -> Measured:
    """Train, then measure at the trained parameters."""
    large = all_mnist() if full else None
    splits = [split_digits(seed) for seed in range(20 if full else 3)]
    settings = {"epochs": 30 if full else 15, "batch": 64, "learning_rate": 3e-3}
    training, u = train_all(splits, WIDTH, **settings)
    counts = [10, 30, 100, 300, 1000] if full else [10, 1000]
    found: Measured = {
        "settings": {"width": WIDTH, "contraction": CONTRACTION, **settings},
        "seeds": list(range(len(splits))),
        "training": {"digits": training},
        "memory": {"t": counts, "bytes": memory(256, counts)},
        "seconds": seconds(u, splits[0].x_test),
    }
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda a: jnp.asarray(a, float), u)
        found["gradients"] = gradients(exact, 32, [5, 10, 20, 40], 300)
        found["solvers"] = compare_solvers(exact, split_digits(0).x_test[:200], 120)
    if large is not None:
        options = {"epochs": 15, "batch": 128, "learning_rate": 2e-3}
        found["training"]["MNIST"] = train_all([large] * 3, 128, **options)[0]
    return found


def draw(measured: Measured):
    """Gradients, memory, accuracies, and one panel for each map."""
    figure, axes = panels(2, 3, (13, 7.4))
    axis, found = axes[0, 0], measured["gradients"]
    for (name, errors), style in zip(found["curve"].items(), ["C3o-", "C0s-"], strict=True):
        axis.semilogy(found["t"], errors, style, ms=4, label=name)
    axis.set(title="a) gradient after T steps of the map", xlabel="T")
    axis.set_ylabel("relative distance to unrolling\nto convergence")
    axis = axes[0, 1]
    used = measured["memory"]
    for (name, sizes), style in zip(used["bytes"].items(), ["C3o-", "C0s-", "C2^--"], strict=True):
        axis.loglog(used["t"], np.array(sizes) / 1e6, style, ms=4, label=name)
    axis.set(title="b) temporary memory of one gradient, 256 rows", ylabel="MB")
    axis.set_xlabel("T, the most solver steps")
    for axis in axes[0, :2]:
        axis.legend(fontsize=8)
    axis, ticks = axes[0, 2], []
    for k, (name, result) in enumerate(measured["training"]["digits"].items()):
        accuracy = np.array(result["accuracy"])
        axis.plot(np.full(accuracy.size, k), accuracy, f"C{k}o", ms=6, alpha=0.5, mec="none")
        axis.plot([k - 0.2, k + 0.2], [accuracy.mean()] * 2, "k-", lw=1.5)
        ticks.append(f"{name.replace(', ', chr(10))}\n{result['parameters']} parameters")
    axis.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axis.set(title="c) test accuracy on digits, one dot per split", xlim=(-0.5, len(ticks) - 0.5))
    styles = ["k-", "C0-", "C2--", "C1-.", "C3o-"]
    for axis, (name, case) in zip(axes[1], measured["solvers"].items(), strict=True):
        for (way, curve), style in zip(case["curves"].items(), styles, strict=True):
            axis.semilogy(curve["evaluations"], curve["residual"], style, ms=3.5, label=way)
        axis.axhline(GOOD, color="0.8", lw=1, zorder=0)
        axis.set_title(f"d) {name}, $\\|A\\|$ = {case['norm']:.2f}")
        axis.set(xlabel="evaluations of the map, or products", ylim=(1e-10, 5), xlim=(0, 100))
    axes[1, 0].legend(fontsize=7.5, loc="lower right")
    axes[1, 0].set_ylabel("residual, maximum norm")
    for axis in axes.flat:
        axis.title.set_fontsize(10)
    return figure


def claims(measured: Measured) -> list[Claim]:
    """One claim for each statement."""
    found = measured["gradients"]
    counts, used = measured["memory"]["t"], measured["memory"]["bytes"]
    worst = max(found["errors"].values())
    growth = {name: sizes[-1] / sizes[0] for name, sizes in used.items()}
    implicit = [x for name, x in growth.items() if name.startswith("implicit")]
    judged = [
        Claim(
            "G5",
            "The implicit gradient is that of unrolling to convergence.",
            "equal",
            f"relative difference at most {worst:.1e} ({'; '.join(found['errors'])})",
            worst < 1e-9,
            f"There are {found['rows']} rows. The derivative of the map is not symmetric: "
            f"||J - J'|| / ||J|| = {found['asymmetry']:.2f}.",
        ),
        Claim(
            "G5",
            f"From {counts[0]} to {counts[-1]} solver steps implicit gradients need no more memory.",
            "O(1) against O(T)",
            ", ".join(f"{name} times {x:.2f}" for name, x in growth.items()),
            max(implicit) <= 1.01 and growth["unrolled"] > 10,
            ", ".join(f"{name} {sizes[-1] / 1e6:.2f} MB" for name, sizes in used.items()) + ".",
        ),
    ]
    for data, results in measured["training"].items():
        text = "; ".join(
            f"{name} ({r['parameters']} parameters) {np.mean(r['accuracy']):.4f}, from "
            f"{min(r['accuracy']):.4f} to {max(r['accuracy']):.4f}"
            for name, r in results.items()
        )
        least = min(results["equilibrium"]["accuracy"])
        judged.append(
            Claim(
                "G5",
                f"The equilibrium model learns {data}.",
                "our threshold for the test accuracy: 0.95",
                text,
                least >= 0.95,
            )
        )
    for name, case in measured["solvers"].items():
        needed = {way: curve["needed"] for way, curve in case["curves"].items()}
        plain, mixed = needed["plain"], needed["Anderson, by row"]
        judged.append(
            Claim(
                "G5",
                f"On the map {name!r} Anderson mixing takes fewer evaluations than plain iteration.",
                "fewer",
                f"to {GOOD:.0e}: "
                + ", ".join(f"{way} {n or 'never'}" for way, n in needed.items()),
                mixed is not None and (plain is None or mixed < plain),
                f"||A|| = {case['norm']:.2f}; the spectral radius is {case['spectral_radius']:.2f}.",
            )
        )
    times = measured["seconds"]
    judged.append(
        Claim(
            "G5",
            "At width 64 Anderson mixing takes less time than plain iteration.",
            "less",
            ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in times.items()),
            times["Anderson, by row"] < times["plain"],
            "This is for 450 rows, in float32, to 1e-5, on this machine. Where it does not hold, "
            "the map is cheaper than the mixing.",
        )
    )
    return judged


if __name__ == "__main__":
    frame(__file__, measure, draw, claims)
