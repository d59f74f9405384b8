"""On a GPU the methods make the steps that they make on a CPU. Without one, this is skipped."""

from typing import Any

import jax
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

import bilevel
from bilevel.reweighting import learn_weights
from helpers import assert_close, assert_same
from methods import LAWS


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The first one; asked for when a test runs, as JAX must not be used before."""
    try:
        return jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("there is no GPU")


def on(device: Any, tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.device_put(x, device) if isinstance(x, jax.Array) else x, tree
    )


@pytest.mark.parametrize("name", ["SOBA shuffled", "AID warm", "SOBA simplex"])
def test_steps_are_those_on_a_cpu(gpu, name, tmp_path):
    method, path, found = LAWS[name], tmp_path / "run.eqx", []
    for device in (jax.devices("cpu")[0], gpu):
        problem, u, w = on(device, (method.problem, method.case.u, method.case.w0))
        solution = bilevel.solve(
            problem,
            method.algorithm,
            u,
            w,
            num_steps=7,
            key=jax.device_put(jax.random.key(3), device),
            callbacks=[bilevel.Checkpoint(path)],
        )
        assert all(x.devices() == {device} for x in jax.tree.leaves((solution.u, solution.w)))
        like = method.algorithm.init(problem, u, w, jax.device_put(jax.random.key(0), device))
        loaded = bilevel.Checkpoint(path).load(like)
        assert loaded.u.devices() == {device}
        assert_same(loaded, solution.state)
        found.append((solution.u, solution.w))
    assert_close(*found, rtol=1e-6, atol=1e-9)


def test_weights_are_those_on_a_cpu(gpu):
    X, y = load_breast_cancer(return_X_y=True)
    noisy = np.where(np.arange(len(y)) % 5 == 0, 1 - y, y)
    found = []
    for device in (jax.devices("cpu")[0], gpu):
        with jax.default_device(device):
            learned = learn_weights(
                X[:300], noisy[:300], X[300:], y[300:], method="near-exact", num_steps=3
            )
            found.append(np.asarray(learned.weights))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)
