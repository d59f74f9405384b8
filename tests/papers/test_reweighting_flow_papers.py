"""The flows of the reweighting paper (R4 to R7), as the papers' scripts make them."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel
from bilevel import dynamics

SCRIPTS = Path(__file__).parents[2] / "papers" / "reweighting"


@pytest.fixture
def script(monkeypatch):
    """Import a script by its name; it adds its folder to the path and uses jax's usual modes."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module


def test_both_orders_of_algorithm_2(script):
    flows = script("flows")
    problem, u0, w0 = flows.problem_of(3), flows.uniform_weights(flows.N), jnp.array(flows.START)
    rho, eta = jnp.array(0.01), jnp.array(0.02)
    w = w0 - rho * problem.residual(u0, w0, problem.inner_data)
    psi = jax.jit(lambda w: bilevel.implicit_gradient(problem, u0, w, lx.Cholesky()).grad)
    for step, at in ((flows.printed_step, w0), (flows.library_step, w)):
        found = eqx.filter_jit(step)(problem, u0, w0, rho, eta)
        np.testing.assert_allclose(found[1], w, rtol=1e-12)
        weights = u0 * jnp.exp(-eta * psi(at))
        np.testing.assert_allclose(found[0], weights / jnp.sum(weights), rtol=1e-12)
    # The formula that Theorem 1 is run with.
    best = flows.solution(u0, flows.rows_of(problem))
    np.testing.assert_allclose(problem.residual(u0, best, problem.inner_data), 0, atol=1e-12)


def test_proposition_2_small(script):
    run = script("flows").discretisation(3, 3, horizon=0.2)
    for name in ("library", "printed"):
        assert run["slopes"][name] == pytest.approx(1, abs=0.05)
        assert run["gaps"][name][-1] < 0.02
    assert run["gaps"]["library"] != run["gaps"]["printed"]


def test_omega(script):
    """Where Theorem 2's instance starts: on two rows, and so is its end."""
    flows = script("flows")
    problem, u0 = flows.problem_of(flows.SEED), flows.uniform_weights(flows.N)
    for theta, expected in (
        (flows.START, (0.3482, 0.6518)),
        ((1.476552, 1.292605), (0.7409, 0.2591)),
    ):
        end = flows.omega(problem, jnp.array(theta), u0)
        assert np.flatnonzero(end.support).tolist() == [6, 11]
        np.testing.assert_allclose(end.u[-1, jnp.array([6, 11])], expected, atol=2e-4)
        assert float(end.residual) <= 1e-7


def test_a_period_is_found(script):
    frozen = script("frozen_flow")
    t = np.linspace(0, 50, 5001)
    u = np.stack([0.5 + 0.3 * np.sin(t), 0.5 - 0.3 * np.sin(t), 0 * t], axis=1)
    found = frozen.goes_round(u, t[1])
    assert found["period"] == pytest.approx(2 * np.pi, rel=1e-4)
    assert found["rows"] == [0, 1]
    assert found["swing"] == pytest.approx(0.6, rel=1e-3)
    assert found["distance after a round"] < 1e-4
    assert frozen.goes_round(u * np.exp(-t / 10)[:, None], t[1]) is None
    assert frozen.goes_round(np.full((5001, 3), 1 / 3), t[1]) is None


def test_stationary_points_are_polished(script):
    frozen = script("frozen_flow")
    batch = frozen.fields(frozen.SMALL, range(97, 99))
    assert batch.gradients.shape == (2, 5, 3)
    again = frozen.fields(frozen.SMALL, range(98, 99))
    np.testing.assert_array_equal(batch.gradients[1], again.gradients[0])
    ts = jnp.array([[100.0], [100.0]])
    flow = frozen.flows(batch, jnp.full((2, 5), 0.2), ts, 1e-6, 1e-9, 400)
    exact, left = frozen.polish(batch, flow.u[:, -1])
    assert float(jnp.max(left)) < 1e-12
    np.testing.assert_allclose(jnp.sum(exact, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(exact, flow.u[:, -1], atol=1e-5)
    verdicts = []
    for field, u in zip(frozen.unstack(batch), exact, strict=True):
        assert dynamics.is_stationary(field, u, tol=1e-11)
        verdicts.append(dynamics.stability(field, u))
        assert verdicts[-1].stable
    assert verdicts[1].support.sum() == 3

    points = frozen.Points(batch, np.asarray(exact), verdicts)
    delta = frozen.perturbations(points, np.random.default_rng(0))
    np.testing.assert_allclose(delta.sum(axis=1), 0, atol=1e-12)
    for shift, u, verdict in zip(delta, points.u, verdicts, strict=True):
        assert np.all(shift[~verdict.support] > 0)  # inwards
        assert np.linalg.norm(shift) == pytest.approx(u[verdict.support].min())


def test_propositions_6_and_7(script):
    frozen = script("frozen_flow")
    worst = frozen.constant_fields(2)
    assert worst["descent"] <= 1e-12
    assert max(worst["flow"], worst["limit"], worst["weight on arg max"]) <= 1e-8
    assert frozen.proposition_7((5, 3), draws=20) == {1: 1, 2: 1, 3: 1, 4: 0, 5: 0}


def run_script(name: str, out: Path):
    """In a process of its own: scripts set what they need of jax, and the suite's modes stay here."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--quick", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (out / f"{name}.png").stat().st_size > 10_000
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.slow
def test_flows(tmp_path):
    report = run_script("flows", tmp_path)
    run = report["proposition 2"][0]
    assert all(0.95 <= slope <= 1.05 for slope in run["slopes"].values())
    run = report["theorem 1"][0]
    for name in ("at theta*(w_0)", "elsewhere"):
        assert 0.9 <= run[name]["slope"] <= 1.1
    assert max(run["elsewhere"]["over the bound"]) <= 1e-9
    run = report["theorem 2"]
    assert 0.9 <= run["slope"] <= 1.1
    assert run["supports"] == [[6, 11]]
    jump = report["theorem 2 past a jump"]
    assert 0.9 <= jump["slope before"] <= 1.1
    assert jump["slope"] < 0.02
    assert jump["supports"][0] == jump["at the end"]["support of w"] == [5, 10]
    assert not jump["at the end"]["stable"]
    assert [claim["row"] for claim in report["claims"]] == ["R4", "R5", "R5", "R5", "R5"]
    assert all(claim["holds"] for claim in report["claims"])


@pytest.mark.slow
def test_frozen_flow(tmp_path):
    report = run_script("frozen_flow", tmp_path)
    small, large = report["ends"]
    assert small["instances"] == 500
    assert small["support sizes"] == {"1": 360, "2": 127, "3": 13}
    assert small["kinds"]["explicit"] + small["kinds"]["implicit"] == 500
    assert large["largest support"] <= large["p"]
    assert large["go round"]["0"]["period"] == pytest.approx(4.9614, abs=1e-3)
    points = report["stationary points"]
    assert points["flows within their steps"] == points["points"] > 150
    assert points["stable that came back"] == points["stable"] > 20
    assert points["unstable that left"] == points["points"] - points["stable"]
    assert points["rates"]["largest relative difference"] < 0.05
    assert 1.9 <= points["order of the remainder"][0] <= points["order of the remainder"][-1] <= 2.1
    assert {claim["row"] for claim in report["claims"]} == {"R6", "R7"}
    assert all(claim["holds"] for claim in report["claims"])
