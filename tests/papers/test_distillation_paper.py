"""Table 3 of Vicol et al.: the closed form of the cold start, and the script's claims on MNIST."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import tasks

SCRIPTS = Path(__file__).parents[2] / "papers" / "implicit_bias"


@pytest.fixture
def distillation(monkeypatch):
    """The script, imported with jax's promotion as scripts run."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module("distillation")


def test_where_gradient_descent_ends_is_the_formula(distillation):
    rng = np.random.default_rng(0)
    w0 = jnp.asarray(0.1 * rng.normal(size=(4, 6)))
    u = {
        "inputs": jnp.asarray(rng.normal(size=(3, 6))),
        "labels": jnp.asarray(rng.normal(size=(3, 4))),
    }
    X, y = jnp.asarray(rng.normal(size=(5, 6))), jnp.arange(5) % 4
    problem = tasks.distillation(X, y, distillation.predict)
    inner = bilevel.GradientInner(optax.sgd(0.5), 10_000)
    stream = bilevel.Stream(bilevel.FullBatch(), None, ())
    w, *_ = inner.solve(problem, u, w0, inner.init(problem, u, w0), stream)
    exact = distillation.Nearest(w0)(u, None)
    np.testing.assert_allclose(w, exact, atol=1e-9)
    # It predicts the soft labels, and moved in the span of the points only.
    predicted = jax.nn.softmax(distillation.predict(exact, u["inputs"]))
    np.testing.assert_allclose(predicted, jax.nn.softmax(u["labels"]), rtol=1e-10)
    _, _, rows = np.linalg.svd(u["inputs"])
    np.testing.assert_allclose((exact - w0) @ rows[3:].T, 0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("BILEVEL_DATA"), reason="needs MNIST in BILEVEL_DATA")
def test_quick(tmp_path):
    script = SCRIPTS / "distillation.py"
    subprocess.run([sys.executable, script, "--quick", "--out", tmp_path], check=True)
    report = json.loads((tmp_path / "distillation.json").read_text())
    assert len(report["claims"]) == 3
    assert all(claim["holds"] for claim in report["claims"])
    assert (tmp_path / "distillation.png").stat().st_size > 20_000
