"""Distillation and augmentation: objectives by hand, and hypergradients against closed forms."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel
from bilevel import tasks
from helpers import assert_close, implicit_gradient

KEYS = jax.random.split(jax.random.key(7), 6)
X = jax.random.normal(KEYS[0], (12, 3))
Y = jnp.arange(12) % 4
POINTS = jax.random.normal(KEYS[1], (2, 3))
LABELS = jax.random.normal(KEYS[2], (2, 4))
W = 0.3 * jax.random.normal(KEYS[3], (4, 3))


def predict(w, x):
    return x @ w.T


def cross_entropy(w, x, target):
    log_p = jax.nn.log_softmax(predict(w, x), axis=1)
    return -jnp.mean(jnp.sum(target * log_p, axis=1))


@pytest.mark.parametrize("learned", ["inputs", "labels", "both"])
def test_objectives_by_hand(learned):
    given = {"inputs": {"labels": LABELS}, "labels": {"inputs": POINTS}, "both": {}}[learned]
    problem = tasks.distillation(X, Y, predict, l2=0.2, **given)
    u = {"inputs": POINTS, "labels": LABELS}
    u = {name: x for name, x in u.items() if name not in given}
    expected = cross_entropy(W, POINTS, jax.nn.softmax(LABELS)) + 0.1 * jnp.sum(W**2)
    assert float(problem.inner(u, W, None)) == pytest.approx(float(expected), rel=1e-12)
    outer = cross_entropy(W, X, jax.nn.one_hot(Y, 4, dtype=X.dtype))
    assert float(problem.outer(u, W, problem.outer_data)) == pytest.approx(float(outer), rel=1e-12)


def test_hard_labels_are_one_hot():
    hard = jax.nn.softmax(tasks.hard_labels(jnp.array([2, 0]), 3))
    np.testing.assert_array_equal(hard, [[0, 0, 1], [1, 0, 0]])


@pytest.mark.slow
def test_distillation_hypergradient_against_finite_differences():
    """With l2 > 0 there is one inner solution, and Phi is smooth."""
    problem = tasks.distillation(X, Y, predict, l2=0.3)
    u = {"inputs": POINTS, "labels": LABELS}
    inner = bilevel.GradientInner("auto", 2000)
    check = bilevel.check_hypergradient(
        problem, u, jnp.zeros((4, 3)), bilevel.AID(lx.Cholesky()), inner
    )
    assert "agrees" in str(check)


def test_augmentation_at_the_identity_is_plain_training():
    problem = tasks.augmentation(X, Y, X[:5], Y[:5], predict, l2=0.1)
    u = tasks.identity_augmentation(3)
    u = jax.tree.map(lambda x: x.astype(X.dtype), u)
    plain = cross_entropy(W, X, jax.nn.one_hot(Y, 4, dtype=X.dtype)) + 0.05 * jnp.sum(W**2)
    assert float(problem.inner(u, W, problem.inner_data)) == pytest.approx(float(plain), rel=1e-12)


@pytest.mark.slow
def test_augmentation_hypergradient_by_the_chain_rule():
    """d2_uw f and H by dense derivatives."""
    problem = tasks.augmentation(X, Y, X[:5] + 0.1, Y[:5], predict, l2=0.5)
    u = {"matrix": jax.random.normal(KEYS[4], (3, 3)), "bias": jax.random.normal(KEYS[5], (3,))}
    found = implicit_gradient(problem, u, W, lx.Cholesky()).grad
    flat, unravel = ravel_pytree(u)

    def inner(x, w):
        return problem.inner(unravel(x), w.reshape(4, 3), problem.inner_data)

    w = W.ravel()
    hessian = jax.hessian(inner, 1)(flat, w)
    cross = jax.jacobian(jax.grad(inner, 1), 0)(flat, w)
    slope = jax.grad(lambda w: problem.outer(u, w.reshape(4, 3), problem.outer_data))(w)
    expected = -cross.T @ jnp.linalg.solve(hessian, slope)
    assert_close(ravel_pytree(found)[0], expected, rtol=1e-9, atol=1e-12)


def test_augment_moves_rows():
    u = {"matrix": jnp.array([[0.0, 2.0], [1.0, 0.0]]), "bias": jnp.array([1.0, -1.0])}
    moved = tasks.models.augment(u, jnp.array([[3.0, 4.0]]))
    np.testing.assert_array_equal(moved, [[9.0, 2.0]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tasks.distillation(X, Y, predict, l2=-1.0), "l2"),
        (
            lambda: tasks.distillation(X, Y, predict, inputs=POINTS, labels=LABELS),
            "nothing is left",
        ),
        (lambda: tasks.augmentation(X, Y, X, Y, predict, l2=-0.1), "l2"),
    ],
)
def test_bad_calls(build, message):
    with pytest.raises(ValueError, match=message):
        build()
