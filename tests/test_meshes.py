"""On arrays split among devices and processes, every method makes the steps that it makes on one."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from methods import METHODS

SCRIPT = Path(__file__).with_name("meshes.py")
SAMPLERS = ["blocks", "shuffled", "uneven", "replaced", "parts", "auto"]
EVERY = [*(f"SOBA {sampler}" for sampler in SAMPLERS), *METHODS]
AUTOMATIC = ["FedNest", "LFedNest", "GossipSOBA"]  # JAX refuses their maps over explicit axes


def differences(kind: str, num_processes: int, names: list[str]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, kind, str(k), str(num_processes), str(port), *names],
            cwd=SCRIPT.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(num_processes)
    ]
    printed = [process.communicate(timeout=1500) for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, errors
    return json.loads(printed[0][0].splitlines()[-1])


def wrong(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: gap for name, gap in found.items() if not (isinstance(gap, float) and gap < 1e-12)
    }


ROWS_AND_PRODUCTS = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import tempfile
from typing import NamedTuple
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from bilevel import BilevelProblem, Checkpoint, FromParts, Neumann, Richardson, Shuffled
from bilevel import implicit_gradient, take_rows
from bilevel._arrays import dot

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
jax.set_mesh(mesh)
x = jax.device_put(np.arange(8.0), NamedSharding(mesh, P("data")))
every, backwards = [*range(8)], [*range(7, -1, -1)]
cases = ([5, 1, 1, 7], P("data")), ([2, 6, 3], P(None)), (every, P("data")), (backwards, P("data"))
for index, spec in cases:
    rows = take_rows(x, np.array(index))
    assert rows.tolist() == index and rows.sharding.spec == spec, rows
    slopes = jax.grad(lambda x: dot(take_rows(x, np.array(index)), rows))(x)
    assert slopes.tolist() == [k * index.count(k) for k in range(8)], slopes
assert dot((x, x), (x, x)) == 280

# Each device draws from the rows that it has: nothing moves.
sampler, key = FromParts(Shuffled(2), 2), jax.random.key(0)
drawing = jax.jit(lambda x: sampler.draw(x, sampler.init(x, key))[0].data).lower(x).compile()
rows = drawing(x)
assert rows.sharding.spec == P("data") and [row // 4 for row in rows.tolist()] == [0, 0, 1, 1]
words = "all-reduce", "all-gather", "all-to-all", "collective-permute"
assert not any(word in drawing.as_text() for word in words)

# A solver that finds its step: f = |w - A^T u|^2 and F = |w - 1|^2 / 2, so the slope is A (A^T u - 1).
a = np.arange(16.0).reshape(8, 2) / 16
split = jax.device_put(a, NamedSharding(mesh, P("data", None)))
problem = BilevelProblem(
    lambda u, w, _: dot(w - 1, w - 1) / 2,
    lambda u, w, a: dot(w - (a * u[:, None]).sum(0), w - (a * u[:, None]).sum(0)),
    inner_data=split,
)
w = jax.device_put(a.T @ np.arange(8.0), NamedSharding(mesh, P(None)))
for solver in (Neumann("auto", 3), Richardson("auto")):
    slope = jax.jit(lambda u, w: implicit_gradient(problem, u, w, solver).grad)(x, w)
    np.testing.assert_allclose(slope, a @ (a.T @ np.arange(8.0) - 1), rtol=1e-4)
    assert slope.sharding.spec == P("data")

# A state is saved from all devices, and comes back split as another one is.
class State(NamedTuple):
    step: object
    u: object

with tempfile.TemporaryDirectory() as folder:
    checkpoint = Checkpoint(folder + "/run.eqx")
    checkpoint.save(State(jax.numpy.int32(3), x))
    for like in (x, jax.device_put(x, NamedSharding(mesh, P(None))), jax.numpy.zeros(8)):
        found = checkpoint.load(State(jax.numpy.int32(0), like))
        assert found.u.sharding == like.sharding and found.u.committed == like.committed
        assert found.u.tolist() == x.tolist() and found.step == 3
"""


def test_rows_products_draws_and_checkpoints_along_an_explicit_axis():
    done = subprocess.run([sys.executable, "-c", ROWS_AND_PRODUCTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("kind", ["Auto", "Explicit", "Model"])
def test_every_method(kind, num_processes):
    names = [name for name in EVERY if kind != "Explicit" or name not in AUTOMATIC]
    found = differences(kind, num_processes, names)
    assert len(found) == len(names)
    assert wrong(found) == {}


@pytest.mark.slow
def test_the_example():
    script = SCRIPT.parents[1] / "examples" / "several_processes.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    wrong, other, difference = (float(line.split()[-1]) for line in done.stdout.splitlines()[-3:])
    assert wrong < 0.5 < other
    assert difference < 1e-3
