"""Importing starts nothing, and a process that was forked too late says so."""

import os
import subprocess
import sys
import warnings

import jax.numpy as jnp
import lineax as lx
import pytest

from bilevel import BilevelProblem, implicit_gradient

IMPORT = """
import os, sys
import bilevel
import bilevel.reweighting
assert "jax" not in sys.modules
for name in bilevel.__all__:
    getattr(bilevel, name)
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends

import jax, jax.numpy as jnp, lineax as lx, optax
from bilevel import AID, BilevelProblem, DoubleLoop, GradientInner, implicit_gradient, solve
problem = BilevelProblem(outer=lambda u, w, _: (w - 1) ** 2, inner=lambda u, w, _: (w - u) ** 2)
method = DoubleLoop(GradientInner(optax.sgd(0.5), 1), AID(lx.CG(1e-6, 1e-6)), optax.sgd(1.0))

def run():
    return solve(problem, method, jnp.array(0.0), jnp.array(0.0), num_steps=2)

def forked(action):
    child = os.fork()
    if child == 0:
        try:
            action()
            print("done", flush=True)
        except RuntimeError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)

forked(run)  # before anything is computed: it works
run()
forked(lambda: solve(problem, method, 0.0, 0.0, num_steps=2))
forked(lambda: implicit_gradient(problem, 0.0, 0.0, lx.CG(1e-6, 1e-6)))
"""


@pytest.mark.slow  # quick: the next one, and what `weigh` imports
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_imports_start_no_backend_and_a_late_fork_says_what_to_do():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == "done"
    assert len(others) == 2
    for line in others:
        assert "forked from one that had used JAX" in line
        assert "'spawn' or 'forkserver'" in line


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_was_forked_too_late_says_so():
    problem = BilevelProblem(outer=lambda u, w, _: w**2, inner=lambda u, w, _: (w - u) ** 2)
    jnp.zeros(1).block_until_ready()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of the fork itself
        child = os.fork()
    if child == 0:
        try:
            implicit_gradient(problem, 0.0, 0.0, lx.CG(1e-6, 1e-6))
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        assert "Start processes by 'spawn' or 'forkserver'" in file.read()
