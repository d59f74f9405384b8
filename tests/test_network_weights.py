"""`benchmarks/network_weights.py`: a baseline against its paper, and the methods at a small size."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
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


@pytest.fixture
def small(monkeypatch):
    """The script, and a search on rows of digits that is as large as asked."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = load_script(BENCHMARKS / "network_weights.py")

    def search(*size):
        size = benchmark.Size(*size)
        cell = benchmark.draw("digits", "pairs", 100, 0, size)
        net = benchmark.network(cell.x.shape[1:], size.width, 0)
        return benchmark.Search(cell, net, size, 0)

    promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(False), promotion[0], promotion[1]:
        yield benchmark, search


def table_of(benchmark, runs):
    place = {"data": "digits", "noise": "pairs", "trusted": 100, "seed": 0}
    return benchmark.summary(pd.DataFrame([place | run for run in runs]))


def test_what_learns_no_weights_at_a_small_size(small, monkeypatch):
    """With a linear model in place of the network, for the time of its compilation."""
    benchmark, search = small
    linear = tasks.models.linear_model(64, 10)
    model = linear._replace(predict=lambda w, x: linear.predict(w, x.reshape(len(x), 64)))
    monkeypatch.setattr(benchmark, "network", lambda *_: model)
    given = search(200, 30, 2, 200)
    names = "all rows + trusted", "trusted only", "right rows + trusted"
    runs = [benchmark.judge(given, name) for name in names]
    assert [run["gradients_of_rows"] for run in runs] == [0, 30 * benchmark.BATCH, 0]
    np.testing.assert_allclose([run["ess"] for run in runs], [200, 0, 120], rtol=1e-6)
    np.testing.assert_allclose([run["weight on wrong"] for run in runs], [0.4, 0, 0], rtol=1e-6)
    # The rows with a higher probability of their label come first, and right labels are likelier.
    assert [run["auroc"] is None for run in runs] == [True, False, True]
    assert runs[1]["auroc"] > 0.6
    table = table_of(benchmark, runs)
    assert [row["method"] for row in table] == list(names)
    assert [row["accuracy"] for row in table] == [run["accuracy"] for run in runs]

    broken = benchmark.Found(np.full(200, np.nan), 1.0, None, 0)
    monkeypatch.setitem(benchmark.METHODS, "broken", lambda _: broken)
    with pytest.raises(FloatingPointError, match="broken"):
        benchmark.judge(given, "broken")


@pytest.mark.slow
def test_every_method_runs_at_a_small_size(small):
    """With the numbers of gradients that the head of the script counts."""
    benchmark, search = small
    given = search(500, 60, 4, 300)
    runs = {name: benchmark.judge(given, name) for name in benchmark.METHODS}
    training = given.size.steps * benchmark.BATCH
    spent = {name: run["gradients_of_rows"] / training for name, run in runs.items()}
    assert spent.pop("pool, network fitted") > 10
    assert spent == {
        "all rows + trusted": 0,
        "trusted only": 1,
        "pool": 5,
        "bilevel, one step": 5,
        "bilevel, SOBA": 4,
        "MW-Net-style": 5,
        "L2RW-style": 3,
        "right rows + trusted": 0,
    }
    for name in ("bilevel, one step", "bilevel, SOBA", "L2RW-style"):
        assert runs[name]["auroc"] > 0.5, runs[name]
        assert runs[name]["weight on wrong"] < 0.4, runs[name]
    assert runs["pool"]["auroc"] > 0.6, runs["pool"]
    assert [row["method"] for row in table_of(benchmark, runs.values())] == list(benchmark.METHODS)
