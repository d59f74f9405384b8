"""The claims of the tutorial on hypergradients, as the papers' scripts make them."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "papers" / "tutorial"


def run_script(name: str, out: Path):
    """In a process of its own: scripts set what they need of jax, and the suite's modes stay here."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--quick", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (out / f"{name}.png").stat().st_size > 10_000
    return json.loads((out / f"{name}.json").read_text())


def test_products_agree(tmp_path):
    report = run_script("products", tmp_path)
    assert report["difference"] <= 1e-12
    assert set(report["table"]) == {"gradient", "RR", "RF", "FR"}
    assert all(row["temporary_megabytes"] > 0 for row in report["table"].values())
    assert report["claims"][0]["holds"]


@pytest.mark.slow
def test_rates(tmp_path):
    report = run_script("rates", tmp_path)
    assert set(report["rates"]) == {"synthetic 0.05", "synthetic 0.2", "ridge", "logistic"}
    for case in report["rates"].values():
        assert len(case["fitted_t"]) >= 3
        assert 0.9 <= case["slope_over_log_q"] <= 1.1
        ratio = case["itd_over_fp"]
        assert all(a < b for a, b in pairwise(ratio))
    for name in ("diabetes", "logistic"):
        converged = report["converged"][name]
        at = converged["k"].index(30)
        assert converged["errors"]["AID-CG"][at] < 1e-6
        assert converged["errors"]["AID-FP"][at] > 1e-2
    used = report["temporary_bytes"]
    assert used["ITD"][-1] > 10 * used["ITD"][0]
    assert used["AID-FP"][-1] <= 1.01 * used["AID-FP"][0]
    assert used["AID-CG"][-1] <= 1.01 * used["AID-CG"][0]
    # At condition number 1396, thirty steps of CG for thirty features are not enough.
    failed = [claim["claim"] for claim in report["claims"] if not claim["holds"]]
    assert [claim.partition(":")[0] for claim in failed] == ["breast cancer, least squares"]


@pytest.mark.slow
def test_sid_terms(tmp_path):
    report = run_script("sid", tmp_path)
    curves = report["curves"]
    for name in ("t", "k", "J", "t = k = J"):
        assert len(curves[name]["ratios"]) == 2
        assert all(1.6 <= ratio <= 2.6 for ratio in curves[name]["ratios"])
    for name in ("t, constant step", "k, constant step"):
        before, after = curves[name]["mse"]
        assert after > 0.8 * before
    assert all(claim["holds"] for claim in report["claims"])
