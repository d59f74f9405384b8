"""Digits are classified by an equilibrium model: its hidden layer is the fixed point of a map.

The model is trained on minibatches. The gradient comes from the implicit function theorem, so that the
memory does not grow with the number of steps that the fixed point takes.

Run it with `python examples/equilibrium.py`.
"""

import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from bilevel import tasks


def main(tiny: bool = False):
    x, y = load_digits(return_X_y=True)
    split = train_test_split(x / 16, y, random_state=0, stratify=y)
    x, x_test, y, y_test = (jnp.asarray(a) for a in split)

    # z = tanh(A z + U x + b) for each row, with ||A|| < 0.9; logits V z + c.
    model = tasks.models.equilibrium_model(64, 10, key=jr.key(0), width=64, contraction=0.9)

    def loss(u, x, y):
        return jnp.mean(tasks.models.softmax_cross_entropy(model.predict(u, x), y))

    @jax.jit
    def step(u, state, x, y):
        value, gradient = jax.value_and_grad(loss)(u, x, y)  # No trace of the solver is kept.
        updates, state = tx.update(gradient, state, u)
        return optax.apply_updates(u, updates), state, value

    @jax.jit
    def look(u, x, y):
        found = model.solve(u, x)
        correct = jnp.argmax(model.readout(u, found.z), axis=1) == y
        return jnp.mean(correct), jnp.max(found.residual), found.steps

    u, tx, key = model.u0, optax.adamw(3e-3, weight_decay=1e-4), jr.key(1)
    state, value, accuracies, residual = tx.init(u), jnp.inf, [], jnp.inf
    for epoch in range(6 if tiny else 40):
        key, draw = jr.split(key)
        for rows in jr.permutation(draw, len(x))[: len(x) // 64 * 64].reshape(-1, 64):
            u, state, value = step(u, state, x[rows], y[rows])
        accuracy, residual, steps = look(u, x_test, y_test)
        accuracies.append(float(accuracy))
        print(
            f"epoch {epoch + 1:2d}: loss {value:.3f}, test accuracy {accuracy:.3f}, "
            f"residual {residual:.0e} after {steps} steps of the map"
        )

    norm = jnp.linalg.norm(tasks.models.contracted(u["W"], 0.9), 2)
    print(f"||A|| = {norm:.2f}: the error of each fixed point is below {residual / (1 - norm):.0e}")
    return {
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
        "residual": float(residual),
        "norm": float(norm),
    }


if __name__ == "__main__":
    main("--tiny" in sys.argv)
