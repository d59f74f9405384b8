"""The claims of the tutorial on inexact hypergradient descent, as the papers' script makes them."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel

SCRIPTS = Path(__file__).parents[2] / "papers" / "tutorial"


@pytest.fixture
def descent(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("descent")


def test_phi_in_closed_form(descent):
    """Its gradient is the implicit one at an inner solution, and the bounds are the Hessians'."""
    u = jnp.asarray(np.random.default_rng(1).normal(size=descent.FEATURES))
    for case in descent.instances().values():
        problem = case.problem

        @jax.jit
        def implicit(u, problem=problem):
            # f is quadratic in w: one of Newton's steps solves it.
            zero, data = jnp.zeros(descent.FEATURES), problem.inner_data
            hessian = jax.hessian(problem.inner, 1)(u, zero, data)
            w = -jnp.linalg.solve(hessian, jax.grad(problem.inner, 1)(u, zero, data))
            return bilevel.implicit_gradient(problem, u, w, lx.Cholesky()).grad, hessian

        grad, hessian = implicit(u)
        np.testing.assert_allclose(jax.jit(jax.grad(case.phi))(u), grad, rtol=1e-10)
        eigenvalues = np.linalg.eigvalsh(hessian)
        assert case.mu <= eigenvalues[0] * (1 + 1e-12)
        assert case.top >= eigenvalues[-1] * (1 - 1e-12)
        curvatures = np.linalg.eigvalsh(jax.jit(jax.hessian(case.phi))(u))
        assert np.max(np.abs(curvatures)) <= case.smoothness * (1 + 1e-12)


def test_descent_small(descent):
    case = descent.instances()["pull"]
    runs = descent.deterministic(case, 300)
    run, short = runs["kappa log"], runs["t = 5"]
    assert -1.0 - 1e-3 <= run["slope"] <= -0.9
    assert run["error_slope"] <= -1.95
    assert run["over_bound"] <= 1
    assert short["squares_last_decade"] > 0.99
    assert short["mean"][-1] > 5 * run["mean"][-1]
    steps = sum(2 * np.ceil(case.kappa * np.log(np.arange(300) + 2)))
    assert run["steps"][-1] == steps

    found = descent.stochastic(case, [8, 16, 32], 8, False)["t = k = J = cS"]
    assert found["samples"] == [4 * descent.SHARE * s**2 for s in (8, 16, 32)]
    assert found["over_bound"] <= 1
    assert -0.65 <= found["mean_slope"][0] <= -0.4


@pytest.mark.slow
def test_descent(tmp_path):
    command = [sys.executable, str(SCRIPTS / "descent.py"), "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (tmp_path / "descent.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "descent.json").read_text())

    for name, runs in report["deterministic"].items():
        run, (short, long) = runs["kappa log"], [r for x, r in runs.items() if x.startswith("t =")]
        assert -1.001 <= run["slope"] <= -0.98
        assert run["error_slope"] <= -1.95
        assert all(r["over_bound"] <= 1 for r in runs.values())
        assert run["squares_last_decade"] < 0.05
        assert short["squares_last_decade"] > 0.9
        assert short["squares"][-1] == pytest.approx(short["errors"][-1], rel=0.01)
        assert short["sum_of_squares"] > long["sum_of_squares"] > run["sum_of_squares"]
        # The one Phi is convex and the other is not, where the runs went.
        assert (run["curvatures"][0] > 0) == (name == "pull")

    runs = report["stochastic"]
    for name in ("pull", "penalties"):
        run = runs[name]["t = k = J = cS"]
        assert run["samples_slope"][0] == pytest.approx(-2, abs=0.25)
        assert 0 < run["samples_slope"][1] < 0.25
        assert run["mse_slope"] < -0.8
        assert run["second_half_slope"] < -0.8
        assert run["last_doubling"] == pytest.approx(0.5, abs=0.1)
    assert runs["pull"]["t = k = J fixed"]["last_doubling"] > 0.85
    assert runs["pull"]["constant inner steps"]["last_doubling"] > 0.8

    assert {claim["row"] for claim in report["claims"]} == {"G8", "G10"}
    assert all(claim["holds"] for claim in report["claims"])
