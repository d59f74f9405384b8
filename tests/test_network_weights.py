"""A baseline of `benchmarks/network_weights.py`, against the definition of its paper."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import tasks
from helpers import load_script

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield load_script(BENCHMARKS / "_one_step.py")


@pytest.mark.slow
def test_weights_of_a_batch_are_derivatives_after_a_virtual_step(script):
    """Ren et al. (2018), Algorithm 1: central differences of the trusted loss in the weights."""
    rng = np.random.default_rng(0)
    x, x_trusted = rng.normal(size=(6, 3)), rng.normal(size=(30, 3))
    y, seen = (x[:, 0] > 0).astype(np.int32), (x_trusted, (x_trusted[:, 0] > 0).astype(np.int32))
    y[::2] = 1 - y[::2]  # wrong labels
    model = tasks.models.linear_model(3, 2)
    w = {"weight": jnp.asarray(0.1 * rng.normal(size=(2, 3))), "bias": jnp.zeros(2)}
    order = jnp.arange(6)[None], jnp.arange(30)[None]
    data = jax.tree.map(jnp.asarray, ((x, y), seen))
    found = np.asarray(script.reweight(model.predict, w, *data, order)[1])

    def losses(w, x, y):
        return tasks.models.softmax_cross_entropy(model.predict(w, jnp.asarray(x)), jnp.asarray(y))

    def trusted_loss(weights):
        slope = jax.grad(lambda w: jnp.dot(jnp.asarray(weights), losses(w, x, y)))(w)
        return float(jnp.mean(losses(optax.tree.add_scale(w, -1e-2, slope), *seen)))

    steps = 1e-3 * np.eye(6)
    derivative = np.array([trusted_loss(e) - trusted_loss(-e) for e in steps])
    expected = np.maximum(-derivative, 0)
    assert 0 < (expected > 0).sum() < 6
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)
