"""Figure 4 and Proposition 1 of the reweighting paper, as its scripts make them."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

SCRIPTS = Path(__file__).parents[2] / "papers" / "reweighting"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds its folder
    spec.loader.exec_module(script)
    return script


@contextlib.contextmanager
def plain_promotion():
    """Scripts are written for jax's ordinary modes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run_script(name: str, out: Path):
    """In a process of its own: scripts set what they need of jax, and the suite's modes stay here."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--quick", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (out / f"{name}.png").stat().st_size > 10_000
    return json.loads((out / f"{name}.json").read_text())


def test_equal_speeds_move_the_log_weights_alike_in_the_first_step(monkeypatch):
    script = load("reparametrised", monkeypatch)
    with plain_promotion():
        times, results = script.run_grid(1, 1, speeds=(1e-6,), inners=(0.02,))
    assert times.tolist() == [0, 1]
    moves = {}
    for (name, _), runs in results.items():
        np.testing.assert_allclose(runs.weights[0, 0].sum(-1), 1, rtol=1e-12)
        np.testing.assert_allclose(runs.weights[0, 0, 0], 1 / 500, rtol=1e-12)
        log = np.log(runs.weights[0, 0, 1])
        moves[name] = log - log.mean()
    assert np.abs(moves["mirror"]).max() > 1e-6
    for name in ("softmax", "sigmoid"):
        np.testing.assert_allclose(moves[name], moves["mirror"], rtol=1e-3, atol=1e-9)


@pytest.mark.slow
def test_softmax_collapses_and_sigmoid_does_not(monkeypatch):
    script = load("reparametrised", monkeypatch)
    with plain_promotion():
        _, results = script.run_grid(
            2, 3000, speeds=(1e-3, 1e-2), inners=(0.02,), names=("softmax", "sigmoid")
        )
    soft, sigmoid = results["softmax", 0.02], results["sigmoid", 0.02]
    assert soft.ess[:, :, -1].max() <= 4
    assert soft.entropy[:, :, -1].max() <= 1.5
    assert sigmoid.ess[:, :, -1].min() >= 150
    assert sigmoid.retrained[:, :, -1].max() <= 0.06
    assert sigmoid.first[:, :, -1].min() >= 0.9


@pytest.mark.slow
def test_sigmoid_becomes_sparse_when_the_model_barely_moves(monkeypatch):
    script = load("reparametrised", monkeypatch)
    with plain_promotion():
        _, results = script.run_grid(2, 10_000, speeds=(1e-3,), inners=(1e-5,), names=("sigmoid",))
    runs = results["sigmoid", 1e-5]
    retrained, current = script.before_sparse(runs, 0)
    assert runs.ess[:, 0, -1].max() <= 10
    assert retrained.max() <= 0.2
    assert current.min() >= 2


def test_true_ratio_is_that_of_two_normal_densities(monkeypatch):
    script = load("density_ratio", monkeypatch)
    x = np.random.default_rng(0).normal(size=(20, 2))
    nu = norm.pdf(x, script.SHIFT, script.SCALE).prod(-1)
    np.testing.assert_allclose(script.true_ratio(x), nu / norm.pdf(x).prod(-1), rtol=1e-10)


@pytest.mark.slow
def test_a_rich_embedding_recovers_the_ratio_and_a_poor_one_does_not(monkeypatch):
    script = load("density_ratio", monkeypatch)
    draws = [script.draw_rows(seed) for seed in range(2)]
    ratios = [script.true_ratio(draw.x) for draw in draws]
    with plain_promotion():
        stacked = script.stack(draws)
        rich, _ = script.learn("embedding", stacked, jnp.asarray(100), 50)
        poor, values = script.learn("embedding", stacked, jnp.asarray(1), 50)
        excess = script.excess("embedding", stacked, jnp.asarray(1), values)
        affine = script.affine_residual(draws[0], rich[0, -1])
    for u, ratio in zip(rich, ratios, strict=True):
        result = script.compare(u[-1], ratio)
        assert result["spearman"] > 0.97
        assert result["total_variation"] < 0.1
        assert 250 < result["ess"] < 350
    assert affine < 1e-10  # mirror steps from uniform weights stay in an exponential family
    assert script.compare(poor[0, -1], ratios[0])["spearman"] < 0.5
    assert float(jnp.max(excess)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedding", "regression"])
def test_the_hypergradient_at_the_ratio_vanishes_with_the_rows(name, monkeypatch):
    script = load("density_ratio", monkeypatch)
    medians = []
    with plain_promotion():
        for n in (400, 6400):
            draws = script.stack([script.draw_rows(seed, n, n, 10) for seed in range(20)])
            ratio = script.true_ratio(draws.x)
            sizes, _ = script.hypergradients(name, draws, ratio, jnp.asarray(10))
            medians.append(float(jnp.median(sizes)))
    assert 2.5 < medians[0] / medians[1] < 6.5  # sqrt(16) = 4


@pytest.mark.slow
def test_reparametrised_quick(tmp_path):
    report = run_script("reparametrised", tmp_path)
    assert [claim["holds"] for claim in report["claims"]] == [True, True, False, *[True] * 4]
    for run in report["runs"]:
        if run["weights"] == "softmax" and run["inner"] != "exact":
            assert max(run["ess"]) <= 10
        if run["weights"] == "sigmoid" and run["inner"] in ("exact", 0.02):
            assert min(run["ess"]) >= 130


@pytest.mark.slow
def test_density_ratio_quick(tmp_path):
    report = run_script("density_ratio", tmp_path)
    assert [claim["holds"] for claim in report["claims"]] == [*[True] * 4, False, True]
    rich = report["features"]["embedding"]["100"]["runs"]
    assert min(run["spearman"] for run in rich) > 0.97
    assert min(run["spearman"] for run in report["classifiers"]["quadratic"]) > 0.99
