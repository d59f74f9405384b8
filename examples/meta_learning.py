"""Few-shot digits: a representation is learned on some classes and used on classes that are new to it.

Run it with `python examples/meta_learning.py`.
"""

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from sklearn.datasets import load_digits

import bilevel
from bilevel import tasks

WAYS, SHOTS, L2 = 5, 1, 0.1


def main(tiny: bool = False):
    digits: Any = load_digits()
    x, y = digits.images / 16, digits.target
    # The net learns from 0 to 4, each turned by four quarters, and is tested on 5 to 9, not turned.
    x_train, y_train = tasks.rotated_classes(x[y < 5], y[y < 5])
    x_test, y_test = x[y >= 5], y[y >= 5]
    net = tasks.models.conv4((8, 8), key=jr.key(1), width=16 if tiny else 32, blocks=2)

    def problem_of(x, y, num_tasks, seed):
        drawn = tasks.episodes(
            x, y, ways=WAYS, shots=SHOTS, queries=5, num_tasks=num_tasks, seed=seed
        )
        return tasks.meta_learning(net.features, drawn, loss=tasks.models.one_hot_error, l2=L2)

    # The inner solution of each task is a formula, so that the hypergradient by ITD is exact.
    first = problem_of(x_train, y_train, 8, 0)
    solution = tasks.reference.meta_ridge_solution(first, WAYS)
    method = bilevel.DoubleLoop(bilevel.ClosedForm(solution), bilevel.ITD(), optax.adam(3e-3))
    w0 = solution(net.u0, first.inner_data)
    state = method.init(first, net.u0, jnp.zeros_like(w0), jr.key(0))
    step = eqx.filter_jit(lambda problem, state: method.step(problem, state))

    test = problem_of(x_test, y_test, 200, 2**31)

    @jax.jit
    def accuracies(u):
        return tasks.meta_accuracy(test, u, solution(u, test.inner_data))

    start = accuracies(net.u0)
    curve = []
    for k in range(1, (40 if tiny else 150) + 1):
        state, info = step(problem_of(x_train, y_train, 8, k), state)  # New tasks at each step.
        if k % 20 == 0:
            accuracy = accuracies(state.u)
            curve.append((k, float(accuracy.mean())))
            half = 1.96 * accuracy.std() / len(accuracy) ** 0.5
            print(f"step {k:3d}: query loss {info.outer_value:.3f}, on new classes ", end="")
            print(f"{accuracy.mean():.3f} +- {half:.3f} (untrained {start.mean():.3f})")

    found = accuracies(state.u)
    return {"untrained": float(start.mean()), "accuracy": float(found.mean()), "curve": curve}


if __name__ == "__main__":
    main("--tiny" in sys.argv)
