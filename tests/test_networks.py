"""Networks: modules with static leaves, dropout, batch statistics, bfloat16, checkpoints, sharding."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import bilevel
from bilevel import CG, ITD, DoubleLoop, FromLoader, GradientInner, Simplex
from bilevel._hypergradient.base import linearise_inner
from helpers import assert_close, assert_same, load_script, norm_error

ROOT = Path(__file__).parents[1]
SOURCES, ROWS, FEATURES = 3, 8, 5


class Net(eqx.Module):
    """Two layers with dropout between them; rates, names and functions are static leaves."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    activation: Any

    def __init__(self, key: Any, rate: float = 0.0):
        one, two = jr.split(key)
        self.first = eqx.nn.Linear(FEATURES, 6, key=one)
        self.second = eqx.nn.Linear(6, 1, key=two)
        self.dropout = eqx.nn.Dropout(rate)
        self.activation = jnp.tanh

    def __call__(self, x: Any, key: Any) -> Any:
        hidden = self.activation(self.first(x))
        return self.second(self.dropout(hidden, key=key))[0]


def losses(net: Net, batch: Any) -> Any:
    """One loss per row, in float32 at least; the batch carries the seed of its dropout."""
    x, y, seed = batch
    keys = jr.split(jr.key(seed), len(x))
    predicted = jax.vmap(net)(x.astype(net.first.weight.dtype), keys)
    return 0.5 * (predicted.astype(y.dtype) - y) ** 2


def outer(u: Any, net: Net, batch: Any) -> Any:
    return jnp.mean(losses(net, batch))


def inner(u: Any, net: Net, batch: Any) -> Any:
    x, y, seed = batch
    flat = x.reshape((-1, FEATURES)), y.reshape(-1), seed
    per_source = jnp.mean(losses(net, flat).reshape((SOURCES, -1)), 1)
    arrays = jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))
    return jnp.dot(u, per_source) + 0.05 * sum(jnp.sum(a.astype(y.dtype) ** 2) for a in arrays)


PROBLEM = bilevel.BilevelProblem(outer, inner, geometry=Simplex())


def rows(number: int, dtype: Any = np.float64, sources: int | None = SOURCES) -> Any:
    rng = np.random.default_rng(number)
    shape = (ROWS,) if sources is None else (sources, ROWS)
    x = rng.normal(size=(*shape, FEATURES))
    noise = 0 if sources is None else np.arange(sources)[:, None] * rng.normal(size=shape)
    return x.astype(dtype), (np.sin(x[..., 0]) + noise).astype(dtype), np.uint32(number)


def streams(inner_rows: Any = rows) -> dict[str, Any]:
    return {
        "inner_sampler": FromLoader(lambda k: (inner_rows(i) for i in range(k, 10**6)), 4),
        "outer_sampler": FromLoader(
            lambda k: (rows(10_000 + i, sources=None) for i in range(k, 10**6)), 4
        ),
    }


METHODS = {
    "SOBA": lambda **s: bilevel.SOBA(0.1, 0.1, 0.1, **s),
    "AmIGO": lambda **s: bilevel.AmIGO(0.1, 0.1, 0.1, num_inner=2, num_linear=2, **s),
    "StocBiO": lambda **s: bilevel.StocBiO(0.1, 0.1, 0.1, num_inner=2, num_terms=2, **s),
    "F2SA": lambda **s: bilevel.F2SA(0.1, 0.02, num_inner=2, **s),
    "BOME": lambda **s: bilevel.BOME(0.1, 0.1, num_inner=2, **s),
    "penalty": lambda **s: bilevel.ValueFunctionPenalty(0.1, 0.1, num_inner=2, **s),
    "ITD": lambda **s: DoubleLoop(
        GradientInner(optax.sgd(0.05, momentum=0.9), 1), ITD(), optax.sgd(1.0), warm_start=True, **s
    ),
}
U0 = jnp.full(SOURCES, 1 / SOURCES)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_module_with_dropout_on_streams_goes_on_bitwise(name, tmp_path):
    """Keys come from the seeds of the batches, and static leaves return."""
    net = jax.tree.map(lambda x: x.astype(float) if eqx.is_array(x) else x, Net(jr.key(0), 0.2))

    def solve(num_steps: int, **options: Any) -> Any:
        method = METHODS[name](**streams())
        return bilevel.solve(PROBLEM, method, U0, net, num_steps=num_steps, chunk_size=5, **options)

    unbroken = solve(60)
    part = solve(17)
    resumed = solve(60, state=part.state)
    assert_same(resumed.state, unbroken.state)
    assert isinstance(unbroken.w, Net)
    assert unbroken.w.activation is jnp.tanh
    assert unbroken.w.dropout.p == 0.2
    assert norm_error(unbroken.u, U0) > 1e-3


@pytest.mark.slow
def test_dropout_is_that_of_the_batchs_seed():
    """The hypergradient on a batch is the one with the masks of its seed written out."""
    net, u = Net(jr.key(1), 0.5), U0
    net = jax.tree.map(lambda x: x.astype(float) if eqx.is_array(x) else x, net)
    batch, seen = rows(7), rows(8, sources=None)

    def found(problem: Any, **batches: Any) -> Any:
        return bilevel.implicit_gradient(
            problem, u, net, CG(rtol=1e-11), damping=10.0, **batches
        ).grad

    x, y, seed = batch
    flat = jnp.asarray(x.reshape((-1, FEATURES)))
    masks = jnp.stack(
        [
            eqx.nn.Dropout(0.5)(jnp.ones(6), key=key) * 1.0
            for key in jr.split(jr.key(seed), len(flat))
        ]
    )

    def written_out(u: Any, net: Net, _: Any) -> Any:
        assert net.first.bias is not None
        assert net.second.bias is not None
        hidden = jnp.tanh(flat @ net.first.weight.T + net.first.bias[None]) * masks
        value = hidden @ net.second.weight[0] + net.second.bias
        loss = 0.5 * (value - jnp.asarray(y.reshape(-1))) ** 2
        arrays = jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))
        penalty = 0.05 * sum(jnp.sum(a**2) for a in arrays)
        return jnp.dot(u, jnp.mean(loss.reshape((SOURCES, -1)), 1)) + penalty

    expected = found(
        bilevel.BilevelProblem(outer, written_out, geometry=Simplex()), outer_batch=seen
    )
    one = found(PROBLEM, outer_batch=seen, inner_batch=batch)
    np.testing.assert_allclose(np.asarray(one), np.asarray(expected), rtol=1e-8)
    other = found(PROBLEM, outer_batch=seen, inner_batch=(x, y, np.uint32(9)))
    assert norm_error(other, expected) > 1e-2


def test_running_statistics_are_refused():
    class Normed(eqx.Module):
        layer: eqx.nn.Linear
        norm: eqx.nn.BatchNorm

        def __init__(self, key: Any):
            self.layer = eqx.nn.Linear(2, 3, key=key)
            self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")

    model, state = eqx.nn.make_with_state(Normed)(jr.key(0))
    words = r"`w0.*` holds an `equinox.nn.State`, the running statistics.*GroupNorm"
    with pytest.raises(TypeError, match=words):
        bilevel.solve(PROBLEM, bilevel.SOBA(0.1, 0.1, 0.1), U0, (model, state), num_steps=1)
    of_flax = {"params": {"kernel": jnp.ones(3)}, "batch_stats": {"mean": jnp.zeros(3)}}
    with pytest.raises(TypeError, match=r"`w0` holds `batch_stats` of flax.*variables\['params'\]"):
        bilevel.solve(PROBLEM, bilevel.SOBA(0.1, 0.1, 0.1), U0, of_flax, num_steps=1)

    def objective(u: Any, model: Any, x: Any) -> Any:  # as the message advises
        frozen = jax.tree.map(jnp.asarray, state)  # a copy: equinox hands a state out once

        def of_row(row: Any) -> Any:
            return model.norm(model.layer(row), frozen)[0]

        return jnp.mean(jax.vmap(of_row, axis_name="batch")(x) ** 2 * u)

    one = bilevel.BilevelProblem(objective, objective, jnp.ones((4, 2)), jnp.eye(4)[:, :2])
    solution = bilevel.solve(
        one, bilevel.SOBA(0.1, 0.1, 0.1), jnp.ones(()), model, num_steps=2, throw=False
    )
    assert isinstance(solution.w, Normed)


@pytest.mark.slow
def test_bfloat16_with_float32_weights():
    """w is given in bfloat16 and kept in float32; the hypergradient is near that of float64."""
    exact = jax.tree.map(lambda x: x.astype(float) if eqx.is_array(x) else x, Net(jr.key(2)))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, exact)
    batch, seen = rows(1), rows(2, sources=None)

    def gradient(net: Any, dtype: Any) -> Any:
        parts = [tuple(x if x.ndim == 0 else x.astype(dtype) for x in b) for b in (seen, batch)]
        return bilevel.implicit_gradient(
            PROBLEM,
            U0.astype(dtype),
            net,
            CG(rtol=1e-3 if dtype == np.float32 else 1e-11),
            damping=10.0,  # the same damped system, as the Hessian of a network has any sign
            outer_batch=parts[0],
            inner_batch=parts[1],
        ).grad

    rounded = jax.tree.map(lambda x: x.astype(float) if eqx.is_array(x) else x, half)
    expected = np.asarray(gradient(rounded, np.float64))
    with jax.numpy_dtype_promotion("standard"):
        found = np.asarray(gradient(half, np.float32))
    assert found.dtype == np.float32
    assert norm_error(found, expected) < 0.05
    assert norm_error(found, expected) > 1e-5  # it was computed in bfloat16


@pytest.mark.slow
def test_small_steps_are_kept_in_float32():
    """Steps below the rounding of bfloat16 add up: the run ends where the one in float32 does."""
    with jax.numpy_dtype_promotion("standard"):
        ends = {}
        for name, dtype in (("bfloat16", jnp.bfloat16), ("float32", jnp.float32)):
            net = jax.tree.map(
                lambda x, d=dtype: x.astype(d) if eqx.is_array(x) else x, Net(jr.key(3))
            )
            method = bilevel.SOBA(2e-3, 2e-3, 1e-2, **streams(lambda i: rows(i, np.float32)))
            u0 = U0.astype(jnp.float32)
            solution = bilevel.solve(PROBLEM, method, u0, net, num_steps=1500, trace_every=100)
            assert {x.dtype for x in jax.tree.leaves(solution.state.w)} == {jnp.dtype("float32")}
            assert solution.w.first.weight.dtype == dtype
            ends[name] = solution
    assert norm_error(ends["bfloat16"].u, ends["float32"].u) < 0.05


@pytest.mark.slow
def test_second_order_steps_by_layer_need_four_times_the_memory_of_a_training_step(monkeypatch):
    """Of compiled steps of a transformer; the training step is the one without checkpoints."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    networks = load_script(ROOT / "benchmarks" / "networks.py")
    promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(False), promotion[0], promotion[1]:
        found = networks.measure(networks.QUICK, 0)["methods"]
    by_layer = {name: row for name, row in found.items() if "by layer" in name}
    assert len(by_layer) == len(networks.methods()) + 1
    assert max(row["temporary"] for row in by_layer.values()) < 4
    assert max(row["all"] for row in by_layer.values()) < 4
    floor = by_layer.pop("training, by layer")
    assert floor["temporary"] < 0.6
    for row in by_layer.values():  # of a training step with checkpoints too
        assert max(row[key] / floor[key] for key in ("temporary", "all")) < 4


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_the_hypergradient_of_a_flax_module_is_that_of_its_equation(api):
    module = pytest.importorskip(f"flax.{api}", reason="flax is no dependency of ours")
    x, y, _ = rows(0, sources=None)
    seen, _, _ = rows(1, sources=None)
    y_seen = np.sin(seen[:, 0])
    if api == "linen":
        net = module.Dense(1, param_dtype=float)
        w = net.init(jr.key(0), x)["params"]
        predict: Any = lambda w, x: net.apply({"params": w}, x)  # noqa: E731
        plain = {"a": w["kernel"], "b": w["bias"]}
    else:
        graph, w = module.split(module.Linear(FEATURES, 1, param_dtype=float, rngs=module.Rngs(0)))
        predict = lambda w, x: module.merge(graph, w)(x)  # noqa: E731
        plain = {"a": w["kernel"][...], "b": w["bias"][...]}

    def grad(predict: Any, w: Any) -> Any:
        problem = bilevel.tasks.reweighting(
            jnp.asarray(x),
            jnp.asarray(y),
            jnp.asarray(seen),
            jnp.asarray(y_seen),
            predict,
            loss=bilevel.tasks.models.squared_error,
            l2=0.1,
        )
        u = bilevel.tasks.uniform_weights(len(x))
        return bilevel.implicit_gradient(problem, u, w, CG(rtol=1e-12)).grad

    assert_close(grad(predict, w), grad(lambda w, x: x @ w["a"] + w["b"][None], plain), rtol=1e-9)


def test_with_checkpoints_products_keep_nothing():
    """Beside the arguments; the derivatives are those without checkpoints."""
    rng = np.random.default_rng(0)
    w, v = (jnp.asarray(rng.normal(size=(6, 8, 8)) / 3) for _ in range(2))
    x, u = jnp.asarray(rng.normal(size=(8, 200))), jnp.array(0.3)
    kept, found = {}, {}
    for name, wrap in {"plain": lambda layer: layer, "by layer": jax.checkpoint}.items():

        def inner(u: Any, w: Any, batch: Any, wrap: Any = wrap) -> Any:
            layer = wrap(lambda x, a: (jnp.tanh(a @ x), None))
            return jnp.exp(u) * jnp.sum(jax.lax.scan(layer, batch, w)[0] ** 2)

        problem = bilevel.BilevelProblem(lambda u, w, _: jnp.sum(w**2), inner)
        residual, products = linearise_inner(problem, u, w, x)
        kept[name] = sum(leaf.size for leaf in jax.tree.leaves(products))
        found[name] = residual, *products(v)
    assert_close(found["by layer"], found["plain"], rtol=1e-12, atol=1e-12)
    assert kept["by layer"] <= w.size + x.size + 10 < kept["plain"] / 4, kept


@pytest.mark.slow
def test_parameters_split_over_eight_devices():
    """FSDP style, in a process of its own: `tests/fsdp.py` says what it compares."""
    script = Path(__file__).with_name("fsdp.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "equal, and an eighth of the parameters per device"
