"""The claims on the improved bilevel model (L2 to L4), against scipy and other oracles."""

import equinox as eqx
import jax
import numpy as np
import pytest
import scipy.optimize
from sklearn.metrics import f1_score


@pytest.mark.parametrize("number", [1, 8])
def test_closed_forms_of_both_models(script, number):
    """Against scipy: descent from the start, a constrained minimum, and the minimum over u."""
    case = script("several_minima").instance(number)
    assert case.rank == np.linalg.matrix_rank(case.a) == 1 + number % 5
    assert np.linalg.norm(case.a, 2) <= 2 + 1e-9
    curvature = np.linalg.eigvalsh(case.r.T @ case.r)
    np.testing.assert_allclose(curvature[[0, -1]], [1, 3], rtol=1e-9)
    u, w0 = np.array([0.4, -0.7]), np.random.default_rng(0).normal(size=6)

    def residual(w):
        return case.a @ w - case.b @ u - case.c

    w = w0
    for _ in range(400):
        slope = residual(w) if case.inner.__name__ == "quadratic" else np.tanh(residual(w))
        w = w - case.a.T @ slope / 4
    np.testing.assert_allclose(case.project(u, w0), w, atol=1e-9)
    used = case.rank
    found = scipy.optimize.minimize(
        lambda w: case.value(u, w),
        w0,
        jac=lambda w: case.r.T @ (case.r @ w - case.s @ u - case.t),
        constraints={
            "type": "eq",
            "fun": lambda w: residual(w)[:used],
            "jac": lambda w: case.a[:used],
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(case.best(u), found.x, atol=1e-5)
    for solution in (case.best, lambda u: case.project(u, w0)):
        over_u = scipy.optimize.minimize(
            lambda u, solution=solution: case.value(u, solution(u)), u, options={"gtol": 1e-9}
        )
        assert case.minimum(solution) == pytest.approx(over_u.fun, rel=1e-8)


def test_pooled_rows_splits_and_f1(script):
    cleaning = script("cleaning")
    data = cleaning.split("digits", 0.8, 0)
    assert data.X.shape == data.X_val.shape == (700, 64)
    assert data.clean.sum() == 140
    x, y = cleaning.rows_of("digits")
    order = np.random.default_rng(0).permutation(1797)
    assert np.array_equal(data.y == y[order[:700]], data.clean)
    np.testing.assert_allclose(  # a rotation
        data.X @ data.X_val.T, x[order[:700]] @ x[order[700:1400]].T, atol=1e-9
    )
    u = np.where(data.clean, 1.0, -1.0)
    assert cleaning.f1(data, u) == 1
    assert cleaning.f1(data, np.ones(700)) == pytest.approx(2 * 140 / (140 + 700))
    assert cleaning.f1(data, -u) == f1_score(data.clean, ~data.clean) == 0
    # A quarter of 2 / L, by the Hessian of the mean loss at zero.
    kernel = x.T @ x / len(x)
    top = 0.1 * np.linalg.eigvalsh(kernel)[-1]
    assert cleaning.step_size("digits") == pytest.approx(0.25 * 2 / top)


def test_resnet_has_the_published_size(script):
    """11173962 is the number of parameters of the usual ResNet-18 for CIFAR-10."""
    resnet = script("_resnet")
    made = eqx.filter_eval_shape(
        lambda key: resnet.resnet(3, 32, 10, key=key).w0, jax.random.key(0)
    )
    assert sum(x.size for x in jax.tree.leaves(made)) == 11_173_962
    model = jax.eval_shape(
        lambda key, x: (m := resnet.resnet(1, 14, 10, key=key, width=4)).predict(m.w0, x),
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, 196), float),
    )
    assert model.shape == (2, 10)
