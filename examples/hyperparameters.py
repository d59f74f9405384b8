"""Gradients find one penalty per feature: by a scikit-learn estimator, and as a bilevel problem.

Run it with `python examples/hyperparameters.py`.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from scipy.optimize import minimize
from sklearn.model_selection import KFold

import bilevel
from bilevel import tasks


def main(tiny: bool = False) -> dict[str, Any]:
    # 1. Twenty features of which three matter.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 20))
    y = X[:, :3] @ [3.0, -2.0, 1.0] + 0.5 * rng.normal(size=200)
    X_new = rng.normal(size=(5000, 20))
    y_new = X_new[:, :3] @ [3.0, -2.0, 1.0] + 0.5 * rng.normal(size=5000)

    # 2. The estimator. "auto" tests on each fold whether penalties chosen on the others help.
    auto, shared = (
        bilevel.RidgeBilevelCV(penalties=kind, cv=KFold(5)).fit(X, y) for kind in ("auto", "shared")
    )
    print(f"nested losses: {auto.nested_loss_}")
    print(f"penalties of these three: {np.round(auto.alpha_[:3], 2)}")
    print(f"median of the others:   {np.median(auto.alpha_[3:]):.0f}")

    # 3. The same by hand: folds, the closed form, the implicit gradient, any minimiser.
    problem: Any = tasks.cross_validation(
        jnp.asarray(X),
        jnp.asarray(y),
        KFold(5),
        tasks.models.linear_predict,
        loss=tasks.models.squared_error,
    )

    @jax.jit
    def value_and_hypergradient(u):
        w = tasks.reference.ridge_solution(u, problem.inner_data)
        found = bilevel.implicit_gradient(problem, u, w, lx.CG(rtol=1e-6, atol=1e-9))
        return found.value, found.grad

    steps = 15 if tiny else 100
    by_hand = minimize(
        lambda u: tuple(np.asarray(x, float) for x in value_and_hypergradient(u)),
        np.full(20, -3.0),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-12, 6)] * 20,
        options={"maxiter": steps},
    )

    found = {
        "one penalty, error on new rows": float(np.mean((shared.predict(X_new) - y_new) ** 2)),
        "one per feature, error on new rows": float(np.mean((auto.predict(X_new) - y_new) ** 2)),
        "cross-validated, estimator": auto.cv_loss_,
        "cross-validated, by hand": 2 * float(by_hand.fun),  # The task has a factor 1/2.
    }
    for text, number in found.items():
        print(f"{text:36s}{number:.4f}")
    return found | {"penalties": auto.alpha_, "one penalty": shared.alpha_}


if __name__ == "__main__":
    main("--tiny" in sys.argv)
