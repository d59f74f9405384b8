"""Methods on sharded arrays beside one device, in processes of their own: see `test_meshes.py`.

    python tests/meshes.py KIND PROCESS NUM_PROCESSES PORT NAME...

KIND is `Auto` or `Explicit`, the axis type of the mesh, or `Model`: automatic axes, and w is split as
well as u. Each process has two virtual devices. The last
line is JSON: for each method, the largest difference of (u, w) from the run on one device, relative to
the largest entry, or the error.
"""

import dataclasses
import json
import os
import sys
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

if __name__ == "__main__" and int(sys.argv[3]) > 1:  # before the table of methods makes arrays
    jax.distributed.initialize(f"localhost:{sys.argv[4]}", int(sys.argv[3]), int(sys.argv[2]))

import bilevel
from bilevel import tasks
from methods import METHODS
from rows import BY_BLOCKS, BY_CLIENTS, with_steps

ROWS, COLUMNS, CLASSES, STEPS = 32, 4, 2, 12
SAMPLERS = {
    "blocks": bilevel.Blocks(8),
    "shuffled": bilevel.Shuffled(8),
    "uneven": bilevel.Shuffled(7),  # seven rows cannot be split evenly
    "replaced": bilevel.WithReplacement(8),
    "parts": bilevel.FromParts(bilevel.Shuffled(2), 4),
}
RING = [[0.5, 0.25, 0, 0.25], [0.25, 0.5, 0.25, 0], [0, 0.25, 0.5, 0.25], [0.25, 0, 0.25, 0.5]]
TWO_LOOPS = bilevel.DoubleLoop(bilevel.GradientInner("auto", 5), bilevel.ITD(), optax.sgd(1.0))
OTHERS = {
    "DoubleLoop": TWO_LOOPS,
    "LookAhead": bilevel.LookAhead(TWO_LOOPS),
    "IterateAveraging": bilevel.IterateAveraging(bilevel.SOBA(0.3, 0.3, 1.0), 2),
    "ImportanceSampling": bilevel.ImportanceSampling(
        bilevel.SOBA(0.3, 0.3, 0.02, inner_sampler=bilevel.WeightedSampler(8))
    ),
    "GossipSOBA": bilevel.GossipSOBA(RING, 0.3, 0.3, 0.1),
}
NEEDS_BLOCKS = (*BY_BLOCKS, "SRBA", "SPABA")


def method(name: str) -> bilevel.AbstractAlgorithm:
    """A method of the table, `SOBA auto`, or SOBA with one of the samplers."""
    kind, _, sampler = name.partition(" ")
    if kind in OTHERS:
        return OTHERS[kind]
    if sampler == "auto":
        return bilevel.SOBA("auto", "auto", "auto")
    draws = bilevel.Blocks(8) if kind in NEEDS_BLOCKS else SAMPLERS.get(sampler)
    samplers = {"inner_sampler": draws, "outer_sampler": draws} if draws else None
    return with_steps(METHODS[kind].kind, 0.3, 0.3, 1.0, samplers)


def problem_of(name: str) -> tuple[bilevel.BilevelProblem, np.ndarray, np.ndarray]:
    """The problem of a method with its start; an outer batch is as long as an inner one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, COLUMNS)), rng.integers(0, CLASSES, ROWS)
    X, y, X_val, y_val = (jnp.asarray(a) for a in (x, y, x[::-1], y[::-1]))
    w = np.full((COLUMNS, CLASSES), 0.1)
    if name == "GossipSOBA":
        target = X[:, 0]
        one = tasks.ridge(X, target, X_val, target)
        rows = jax.tree.map(lambda a: a.reshape(-1, 4, *a.shape[1:]), (X, target))
        one = dataclasses.replace(one, outer_data=rows, inner_data=rows)
        return bilevel.on_network(one, 4), np.zeros((4, COLUMNS)), np.full((4, COLUMNS), 0.1)
    if name == "ImportanceSampling":
        problem = tasks.reweighting(X, y, X_val, y_val, lambda w, x: x @ w)
        return problem, np.full(ROWS, 1 / ROWS), w
    problem = tasks.hyper_cleaning(X, y, X_val, y_val, lambda w, x: x @ w)
    return problem, np.zeros(ROWS), w


def solved(name: str, place: Any) -> list[np.ndarray]:
    """u and w after some steps; `place(x, axis)` puts an array on the devices, split along an axis.

    Agents are split as rows are. What clients share is not split.
    """
    problem, u, w = problem_of(name)
    arrays, rest = eqx.partition(problem, lambda leaf: hasattr(leaf, "shape"))
    of_data, of_u, of_w = (1, 0, 0) if name == "GossipSOBA" else (0, 0, None)
    of_u = None if name in BY_CLIENTS else of_u
    problem = eqx.combine(jax.tree.map(lambda leaf: place(leaf, of_data), arrays), rest)
    u, w = place(u, of_u), place(w, of_w)
    found = bilevel.solve(problem, method(name), u, w, num_steps=STEPS, throw=False)
    return [
        np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        for leaf in (found.u, found.w)
    ]


def difference(name: str, mesh: Any, split_model: bool) -> float | str:
    def split(x: Any, axis: int | None) -> jax.Array:
        axis = 0 if axis is None and split_model else axis
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data")
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: np.asarray(x)[part])

    alone = solved(name, lambda x, axis: jnp.asarray(x))
    try:
        together = solved(name, split)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return max(
        float(np.max(abs(x - y)) / np.max(abs(x))) for x, y in zip(alone, together, strict=True)
    )


def main(kind: str, *names: str) -> None:
    jax.config.update("jax_enable_x64", True)
    axis = AxisType.Explicit if kind == "Explicit" else AxisType.Auto
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(axis,))
    with jax.set_mesh(mesh):
        print(json.dumps({name: difference(name, mesh, kind == "Model") for name in names}))


if __name__ == "__main__":
    main(sys.argv[1], *sys.argv[5:])
