"""How much can somebody who controls a tenth of the training rows hurt a digit classifier?

Each of their rows may move by at most `radius` (twice that is a typical distance between two digits
of different classes); labels stay. The rows move so that the loss on other rows, the outer rows,
rises. The damage is the loss of accuracy, on a third set of rows, of scikit-learn's logistic
regression fitted from scratch.

Run it with `python examples/poisoning.py`.
"""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import bilevel
from bilevel import tasks

N, L2 = 400, 1e-3


def main(tiny: bool = False) -> dict[str, Any]:
    # 1. The data: rows to train on, rows that the attack sees, rows that nobody has seen.
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(X))
    X, y = jnp.asarray(X[order] / 16, float), jnp.asarray(y[order])
    X = X - X[:N].mean(axis=0)
    train, outer, hold_out = ((X[s], y[s]) for s in np.split(np.arange(len(X)), [N, 2 * N]))
    poisoned, radius = np.arange(N // 10), 1.0

    # 2. The problem: maximise the outer loss over moves of 40 rows.
    model = tasks.models.linear_model(64, 10, bias=False)
    problem = tasks.poisoning(
        *train, *outer, model.predict, poisoned=poisoned, radius=radius, l2=L2
    )

    # 3. Projected steps along implicit hypergradients, of the same length for every row.
    rows = optax.stateless(lambda g, _: g / jnp.linalg.norm(g, axis=1, keepdims=True))
    steps = 20 if tiny else 100
    method = bilevel.DoubleLoop(
        inner=bilevel.GradientInner(optax.sgd(0.3, momentum=0.9, nesterov=True), 20),
        hypergradient=bilevel.AID(bilevel.CG(rtol=1e-2)),
        outer_tx=optax.chain(rows, optax.sgd(optax.linear_schedule(0.3, 0.01, steps))),
        warm_start=True,
    )
    u0 = jnp.zeros((len(poisoned), 64), X.dtype)
    solution = bilevel.solve(problem, method, u0, model.w0, num_steps=steps)

    # 4. The damage: another trainer starts from scratch; it is judged on rows that nobody has seen.
    def accuracy(u) -> float:
        fit = LogisticRegression(C=1 / (L2 * N), fit_intercept=False, max_iter=2000)
        fit.fit(np.asarray(tasks.poisoned_rows(problem, u)), np.asarray(train[1]))
        return float(fit.score(*map(np.asarray, hold_out)))

    noise = jnp.asarray(rng.normal(size=u0.shape), X.dtype)
    noise *= radius / jnp.linalg.norm(noise, axis=1, keepdims=True)

    # 5. Can they be detected? The distance of each row to the nearest other row of its class.
    table = np.asarray(tasks.poisoned_rows(problem, solution.u))
    far = np.empty(N)
    for label in range(10):
        of = np.asarray(train[1]) == label
        far[of] = NearestNeighbors(n_neighbors=1).fit(table[of]).kneighbors()[0][:, 0]

    found = {
        "clean": accuracy(u0),
        "random": accuracy(noise),
        "poisoned": accuracy(solution.u),
        "auroc": float(roc_auc_score(np.isin(np.arange(N), poisoned), far)),
    }
    for text, key in [
        ("held-out accuracy, clean training rows", "clean"),
        (f"  40 of 400 rows moved by {radius}, in random directions", "random"),
        (f"  40 of 400 rows moved by {radius}, in the directions found", "poisoned"),
        ("those rows against the others, by distance (AUROC)", "auroc"),
    ]:
        print(f"{text:56s}{found[key]:.3f}")
    return found | {"moved": (np.asarray(train[0])[poisoned], table[poisoned])}


if __name__ == "__main__":
    main("--tiny" in sys.argv)
