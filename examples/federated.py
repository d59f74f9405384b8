"""The penalty of a logistic regression is learned over ten clients that never show their rows.

Each client has one or two digits, so that its own minimum is far from that of the others. The server
only takes averages: of gradients, of parameters after local steps, of Hessian-vector products. The
result is compared with the solution on the pooled rows: with FedNest's correction of the local steps,
and without it (FedAvg).

Run it with `python examples/federated.py`.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import bilevel
from bilevel import FederatedInner, tasks

CLIENTS, LOCAL_STEPS, STEP = 10, 5, 1.0


def main(tiny: bool = False) -> dict[str, float]:
    jax.config.update("jax_enable_x64", True)

    # 1. Odd against even digits: ten principal components of 850 training and 850 outer rows.
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))[:1700]
    X, digits = images[order] / 16, np.asarray(digits)[order]
    X = X - X.mean(axis=0)
    X = X @ np.linalg.eigh(X.T @ X)[1][:, -10:]
    X = jnp.asarray(X / X.std(axis=0))
    y = jnp.where(jnp.asarray(digits) % 2 == 1, 1, -1)
    first, second = slice(850), slice(850, None)

    # 2. The problem on all rows, one log-penalty for all features, and the same over clients.
    pooled = tasks.logistic(X[first], y[first], X[second], y[second])
    inner_rows, outer_rows = (tasks.deal_rows(digits[s], CLIENTS) for s in (first, second))
    problem = tasks.federated(pooled, inner_rows, outer_rows)
    labels = [np.unique(digits[first][rows]).tolist() for rows in inner_rows]
    print(f"digits of the first three clients: {labels[:3]}")

    # 3. The solution on the pooled rows, which the clients should reach.
    u0, w0 = jnp.array(-3.0), jnp.zeros(10)
    truth = tasks.reference.reference_solution(pooled, u0, w0, tol=1e-11)

    # 4. One round of local steps, one hypergradient on averaged products, one outer step.
    def distance(local_steps: int, corrected: bool) -> float:
        method = bilevel.DoubleLoop(
            inner=FederatedInner(STEP, local_steps, num_rounds=1, corrected=corrected),
            hypergradient=bilevel.AID(bilevel.CG(rtol=1e-10, max_steps=5)),
            outer_tx=optax.sgd(20.0),
            warm_start=True,
        )
        steps = 400 if tiny else 1500
        solution = bilevel.solve(problem, method, u0, w0, num_steps=steps, trace_every=100)
        return float(abs(solution.u - truth.u) / abs(truth.u))

    found = {
        "one local step": distance(1, True),
        "corrected": distance(LOCAL_STEPS, True),
        "not corrected": distance(LOCAL_STEPS, False),
    }
    print(f"log-penalty on the pooled rows: {float(truth.u):.6f}; relative distance to it after")
    print(f"  one local step per round         {found['one local step']:.1e}")
    print(f"  {LOCAL_STEPS} local steps, corrected         {found['corrected']:.1e}")
    print(f"  {LOCAL_STEPS} local steps, not corrected     {found['not corrected']:.1e}")
    return found


if __name__ == "__main__":
    main("--tiny" in sys.argv)
