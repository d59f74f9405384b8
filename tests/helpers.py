"""What the tests of the core share.

The tables are elsewhere, and a new entry is one row: a problem in `CASES` (problems.py), an algorithm
in `METHODS` (methods.py), a solver or an estimator in the tables of solvers.py.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from bilevel import Blocks, Shuffled, WithReplacement
from problems import CASES as CASES
from problems import COUPLED as COUPLED
from problems import ISOTROPIC as ISOTROPIC
from problems import Case as Case
from problems import Quadratic as Quadratic
from problems import flat as flat
from problems import on_all_data as on_all_data
from problems import spd as spd
from problems import to_float32 as to_float32


def soba(inner_step, linear_step, outer_step, **samplers) -> bilevel.SOBA:
    return bilevel.SOBA(
        inner_step=inner_step, linear_step=linear_step, outer_step=outer_step, **samplers
    )


def double_loop(case: Case, num_steps=20, outer_step=0.2, **options) -> bilevel.DoubleLoop:
    options.setdefault("hypergradient", bilevel.AID(bilevel.CG(rtol=1e-12)))
    return bilevel.DoubleLoop(
        inner=bilevel.GradientInner(case.sgd(), num_steps),
        outer_tx=optax.sgd(outer_step),
        **options,
    )


SHUFFLED: dict[str, Any] = {"inner_sampler": Shuffled(5), "outer_sampler": Shuffled(3)}
REPLACED: dict[str, Any] = {
    "inner_sampler": WithReplacement(4),
    "outer_sampler": WithReplacement(4),
}
PARTS: dict[str, Any] = {
    "inner_sampler": bilevel.FromParts(bilevel.Shuffled(2), 4),
    "outer_sampler": bilevel.FromParts(bilevel.Shuffled(3), 2),
}

BLOCKS: dict[str, Any] = {"inner_sampler": Blocks(4), "outer_sampler": Blocks(4)}


def run(method: Any, num_steps: int = 7, **options) -> bilevel.Solution:
    """`solve` from the case's start, on a fixed key."""
    options = {"key": jax.random.key(3), "chunk_size": 4} | options
    return bilevel.solve(
        method.problem,
        method.algorithm,
        method.case.u,
        method.case.w0,
        num_steps=num_steps,
        **options,
    )


def raw(tree: Any) -> list[np.ndarray]:
    """The leaves as numpy arrays, random keys as their data."""

    def to_numpy(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return [to_numpy(x) for x in jax.tree.leaves(tree)]


def assert_same(one: Any, two: Any) -> None:
    """Equal bit for bit, NaN in the same places included."""
    ones, twos = raw(one), raw(two)
    assert len(ones) == len(twos)
    for x, y in zip(ones, twos, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


implicit_gradient = eqx.filter_jit(bilevel.implicit_gradient)
"""Compiled whole; called eagerly it is compiled operation by operation, which takes far longer."""


def estimate_on_all_data(problem: Any, estimator: Any, inner: Any, u: Any, w: Any) -> Any:
    """The estimate from a first state, compiled."""
    state = estimator.init(problem, inner, u, w)
    streams = on_all_data(problem)
    run = jax.jit(lambda u, w: estimator.estimate(problem, inner, u, w, state, streams)[0])
    return run(u, w)


def load_script(path: Path) -> ModuleType:
    """The module in a file that is on no path of Python's."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_epoch_is_full(objective: Any, at: Any, data: Any, batch: int) -> None:
    """The mean over an epoch of batches is the value on all rows, with both its gradients."""
    function = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
    order = np.random.default_rng(0).permutation(len(jax.tree.leaves(data)[0])).reshape(-1, batch)
    parts = [function(*at, jax.tree.map(lambda a, i=i: a[i], data)) for i in order]
    mean = jax.tree.map(lambda *a: np.mean(a, axis=0), *parts)
    assert_close(mean, function(*at, data), rtol=1e-11, atol=1e-13)


def assert_close(one: Any, two: Any, rtol: float, atol: float = 0.0) -> None:
    ones, twos = raw(one), raw(two)
    assert len(ones) == len(twos)
    for x, y in zip(ones, twos, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def norm_error(estimate: Any, truth: Any) -> float:
    """`|estimate - truth| / |truth|`, all leaves together."""
    x, y = flat(estimate), flat(truth)
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))
