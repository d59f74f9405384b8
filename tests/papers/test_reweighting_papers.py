"""The claims of issue 2, part 4, on the toy mixture and on MNIST, as the papers' scripts make them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

SCRIPTS = Path(__file__).parents[2] / "papers" / "reweighting"

needs_data = pytest.mark.skipif(
    not os.environ.get("BILEVEL_DATA"),
    reason="BILEVEL_DATA is not set: the published MNIST files are not here",
)


def run_script(name: str, size: str, out: Path):
    """In a process of its own: scripts set what they need of jax, and the suite's modes stay here."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), f"--{size}", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (out / f"{name}.png").stat().st_size > 10_000
    return json.loads((out / f"{name}.json").read_text())


def check_mixture(runs):
    for run in runs:
        exact, warm = run["exact"], run["warm-started"]
        assert exact["retrained_error"] <= 0.10
        assert exact["ess"] >= 100
        assert warm["ess"] <= 2
        assert warm["retrained_error"] >= 2 * exact["retrained_error"]


def test_toy_mixture_two_seeds(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("toy_mixture", SCRIPTS / "toy_mixture.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds its folder
    spec.loader.exec_module(script)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runs = [script.run_seed(seed) for seed in range(2)]
    check_mixture(runs)
    for run in runs:
        assert run["uniform"]["ess"] == pytest.approx(500, rel=1e-6)
        assert run["optimal"]["retrained_error"] <= 0.10


@pytest.mark.slow
def test_toy_mixture_ten_seeds(tmp_path):
    report = run_script("toy_mixture", "quick", tmp_path)
    assert len(report["runs"]) == 10
    check_mixture(report["runs"])
    assert [claim["holds"] for claim in report["claims"]] == [True] * 3


@pytest.mark.slow
@needs_data
def test_hyper_cleaning_three_seeds(tmp_path):
    report = run_script("hyper_cleaning", "full", tmp_path)
    assert report["settings"]["n"] == 8000
    assert len(report["runs"]) == 3
    for run in report["runs"]:
        perfect = run["perfect"]
        assert run["near-exact"]["retrained"]["test"] >= perfect["test"] + 0.005
        assert run["near-exact"]["ess"] >= 400
        assert run["SOBA"]["as_left"]["validation"] >= perfect["validation"]
    assert [claim["holds"] for claim in report["claims"]] == [True] * 2
