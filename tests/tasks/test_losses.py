"""Losses of rows: labels and shapes that do not fit are refused, and never make another number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from bilevel import tasks
from bilevel.tasks import models

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
Y = jnp.arange(6.0)
LINEAR, THREE = models.linear_model(2, 1), models.linear_model(2, 3)


def column(z, y):
    return (z - y[:, None]) ** 2


def mean(z, y):
    return jnp.mean((z[:, 0] - y) ** 2)


BUILDERS = {
    "reweighting": (tasks.reweighting, tasks.uniform_weights(6)),
    "hyper_cleaning": (tasks.hyper_cleaning, jnp.zeros(6)),
    "tensor_penalties": (tasks.tensor_penalties, tasks.log_penalties(LINEAR.w0)),
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("loss", [column, mean])
def test_a_loss_that_is_not_one_number_per_row_is_refused(name, loss):
    """It broadcast against the weights of the rows: each row then had the weights of all."""
    build, u = BUILDERS[name]
    problem = build(X, Y, X, Y, LINEAR.predict, loss=loss)
    for objective, data in [
        (problem.inner, problem.inner_data),
        (problem.outer, problem.outer_data),
    ]:
        with pytest.raises(
            ValueError, match=r"`loss` must return one number per row, shape \(6,\)"
        ):
            objective(u, LINEAR.w0, data)


def test_targets_that_are_a_column_are_refused():
    def squared(z, y):
        return (z[:, 0] - y) ** 2

    match = r"got shape \(6, 6\).*labels of shape \(6, 1\)"
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=match):
        models.row_losses(squared, X, Y[:, None])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8])
def test_labels_that_are_no_codes_give_nan(dtype):
    """A label above all classes had the loss of a row without a label, which is a finite number."""
    z = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))
    y = jnp.asarray([0, 2, 1, 3], dtype)
    losses, slope = jax.value_and_grad(lambda z: jnp.sum(models.softmax_cross_entropy(z, y)))(z)
    assert np.isnan(losses)
    np.testing.assert_array_equal(np.isnan(slope), np.repeat(np.arange(4) == 3, 3).reshape(4, 3))
    expected = -log_softmax(np.asarray(z), axis=1)[np.arange(3), [0, 2, 1]]
    np.testing.assert_allclose(models.softmax_cross_entropy(z, y)[:3], expected, rtol=1e-12)
    assert np.isnan(models.one_hot_error(z, y)).tolist() == [False, False, False, True]
    assert np.isnan(tasks.hard_labels(y, 3)).any(axis=1).tolist() == [False, False, False, True]
    signs = models.logistic_loss(z, jnp.array([1.0, -1.0, 0.0, 2.0]))
    assert np.isnan(signs).tolist() == [False, False, True, True]


def test_codes_of_more_classes_than_their_type_has_numbers():
    """In 8 bits the class 256 was the class 0."""
    z = jnp.asarray(np.random.default_rng(2).normal(size=(2, 300)))
    found = models.softmax_cross_entropy(z, jnp.array([0, 3], jnp.int8))
    np.testing.assert_allclose(
        found, -log_softmax(np.asarray(z), axis=1)[[0, 1], [0, 3]], rtol=1e-12
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_refuse_labels_that_are_none(name):
    build, _ = BUILDERS[name]
    with pytest.raises(ValueError, match=r"`y` must hold class codes 0, 1, ..., got \[-1\]"):
        build(X, jnp.array([0, 1, 1, 0, -1, 1]), X, jnp.array([0, 1, 1, 0, 1, 1]), THREE.predict)
    y = jnp.array([0, 1, 1, 0, 1, 1])
    with pytest.raises(ValueError, match=r"must hold labels in \{-1, 1\}, got \[0\]"):
        build(X, y, X, y, LINEAR.predict, loss=models.logistic_loss)
