"""Anti-distillation: comparison with numpy, limits of runs, and the published numbers."""

import inspect

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from bilevel.tasks import (
    anti_distillation,
    exponential_amplitudes,
    fourier_features,
    harmonic_amplitudes,
)
from bilevel.tasks.models import mlp_model
from bilevel.tasks.reference import anti_distillation_limit, min_norm_fit
from helpers import assert_epoch_is_full

POINTS = np.linspace(-2, 2, 13)
AMPLITUDES = {
    "exponential": (2.0 ** np.arange(9, -1, -1), 1e-7),
    "harmonic": (1 / np.arange(1, 11), 1e-3),
}


def published(scheme: str):
    """X, the row of the original point, both as in the paper, and the inner learning rate."""
    amplitudes, rate = AMPLITUDES[scheme]
    a = jnp.asarray(amplitudes)
    return fourier_features(jnp.asarray(POINTS), a), fourier_features(jnp.zeros(1), a), rate


def small(points=5, original=2, features=9, seed=0):
    rng = np.random.default_rng(seed)
    X, X_original = rng.normal(size=(points, features)), rng.normal(size=(original, features))
    return jnp.asarray(X), jnp.asarray(X_original), jnp.asarray(rng.normal(size=original))


# ---- the builders


def test_features_are_their_equation():
    x, a = np.array([0.3, -1.2]), np.array([4.0, 2.0, 0.5])
    rows = fourier_features(jnp.asarray(x), jnp.asarray(a))
    expected = [
        [1, *[a[k] * np.cos((k + 1) * t) for k in range(3)]]
        + [a[k] * np.sin((k + 1) * t) for k in range(3)]
        for t in x
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-12)


def test_amplitudes_are_the_two_schemes():
    np.testing.assert_allclose(exponential_amplitudes(), AMPLITUDES["exponential"][0])
    np.testing.assert_allclose(harmonic_amplitudes(), AMPLITUDES["harmonic"][0], rtol=1e-6)
    assert exponential_amplitudes(3).tolist() == [4, 2, 1]
    for scheme in (exponential_amplitudes, harmonic_amplitudes):
        with pytest.raises(ValueError, match="num_frequencies"):
            scheme(0)


@pytest.mark.parametrize(
    ("scheme", "condition", "largest"), [("exponential", 30007, 2.13e6), ("harmonic", 88.5, 15.45)]
)
def test_the_curvature_is_what_the_docstring_says(scheme, condition, largest):
    s = np.linalg.svd(np.asarray(published(scheme)[0]), compute_uv=False)
    np.testing.assert_allclose(s[0] ** 2, largest, rtol=2e-3)
    np.testing.assert_allclose((s[0] / s[-1]) ** 2, condition, rtol=1e-3)


def test_objectives_are_their_sums():
    X, X_original, y = small()
    problem = anti_distillation(X, X_original, y)
    rng = np.random.default_rng(1)
    u, w = rng.normal(size=5), rng.normal(size=9)
    inner = 0.5 * np.sum((np.asarray(X) @ w - u) ** 2)
    outer = 0.5 * np.sum((np.asarray(X_original) @ w - np.asarray(y)) ** 2)
    at = jnp.asarray(u), jnp.asarray(w)
    np.testing.assert_allclose(problem.inner(*at, problem.inner_data), inner, rtol=1e-12)
    np.testing.assert_allclose(problem.outer(*at, problem.outer_data), outer, rtol=1e-12)
    assert_epoch_is_full(problem.inner, at, problem.inner_data, 1)
    assert_epoch_is_full(problem.outer, at, problem.outer_data, 1)


def test_any_model_can_replace_the_regression():
    model = mlp_model(1, 1, key=jax.random.key(0), width=3)
    X, y = jnp.linspace(-1, 1, 4)[:, None], jnp.ones(1)
    problem = anti_distillation(X, jnp.zeros((1, 1)), y, model.predict)
    u = jnp.arange(4.0)
    expected = 0.5 * jnp.sum((model.predict(model.w0, X)[:, 0] - u) ** 2)
    np.testing.assert_allclose(problem.inner(u, model.w0, problem.inner_data), expected)
    expected = 0.5 * (model.predict(model.w0, jnp.zeros((1, 1)))[0, 0] - 1) ** 2
    np.testing.assert_allclose(problem.outer(u, model.w0, problem.outer_data), expected)


def test_shapes_that_do_not_belong_together_are_refused():
    X, X_original, y = small()
    builder = inspect.unwrap(anti_distillation)  # not the suite's own check of the annotations
    with pytest.raises(ValueError, match=r"shape \(2,\), got shape \(1,\)"):
        builder(X, X_original, y[:1])
    with pytest.raises(ValueError, match=r"9 columns, got 8"):
        builder(X, X_original[:, :8], y)


def test_gradient_descent_ends_at_the_minimum_norm_fit():
    X, *_ = small()
    u, data = jnp.arange(5.0), (X, jnp.arange(5))
    rate = 1 / np.linalg.norm(X, 2) ** 2
    w = jax.lax.fori_loop(0, 5000, lambda _, w: w - rate * X.T @ (X @ w - u), jnp.zeros(9))
    np.testing.assert_allclose(min_norm_fit(u, data), w, rtol=1e-9)


# ---- the limits


ESTIMATORS = {
    "exact": bilevel.ITD(),
    "Neumann": bilevel.AID(bilevel.Neumann(0.02, 3), warm_start=False),
    "damped": bilevel.AID(lx.LU(), damping=2.0),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_runs_end_at_the_limit(name):
    """With two original points, and from targets that are not zero."""
    X, X_original, y = small()
    estimator = ESTIMATORS[name]
    u0 = jnp.arange(5.0) / 4
    h = np.asarray(X.T @ X)
    inverse = {
        "exact": np.linalg.pinv(h, rcond=1e-10),
        "Neumann": 0.02 * sum(np.linalg.matrix_power(np.eye(9) - 0.02 * h, j) for j in range(3)),
        "damped": np.linalg.inv(h + 2 * np.eye(9)),
    }[name]
    expected = anti_distillation_limit(X, X_original, y, jnp.asarray(inverse) @ X_original.T, u0)
    method = bilevel.DoubleLoop(bilevel.ClosedForm(min_norm_fit), estimator, optax.sgd(0.3))
    problem = anti_distillation(X, X_original, y)
    run = bilevel.solve(problem, method, u0, jnp.zeros(9), num_steps=4000, trace_every=4000)
    np.testing.assert_allclose(run.u, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(
        X_original @ min_norm_fit(expected, (X, jnp.arange(5))), y, rtol=1e-9
    )
    assert run.trace["outer_value"][-1] < 1e-18


def test_the_exact_limit_is_the_nearest_solution():
    """Theorem 3.1: the least-squares move from `u_0`."""
    X, X_original, y = small()
    u0 = jnp.arange(5.0)
    response = np.asarray(X_original) @ np.linalg.pinv(np.asarray(X))
    nearest = u0 + np.linalg.lstsq(response, np.asarray(y) - response @ u0, rcond=None)[0]
    exact = np.linalg.pinv(np.asarray(X.T @ X), rcond=1e-10) @ np.asarray(X_original).T
    found = anti_distillation_limit(X, X_original, y, jnp.asarray(exact), u0)
    np.testing.assert_allclose(found, nearest, rtol=1e-9)
