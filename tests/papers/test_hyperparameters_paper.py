"""The claims about hyperparameters, as the script makes them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "papers" / "tutorial" / "hyperparameters.py"


@pytest.mark.slow
def test_hyperparameters(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (tmp_path / "hyperparameters.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "hyperparameters.json").read_text())
    assert set(report["errors"]) == {
        f"{what}, {number}"
        for what in ("hypergradient", "optimum")
        for number in ("one penalty", "one a feature")
    }
    assert all(error <= 1e-8 for error in report["errors"].values())
    runs = [row for row in report["race"] if row["penalties"] == 64]
    best = {
        name: min(row["validation_loss"] for row in runs if row["search"] == name)
        for name in ("hypergradients", "grid", "random")
    }
    assert best["hypergradients"] < 0.97 * min(best["grid"], best["random"])
    assert report["one_a_pixel"]["least squares, feature"]["cpu_seconds"] < 30
    for table in report["held_out"].values():
        assert table["auto"]["percent_less_loss"] > -2
        assert table["auto"]["percent_less_loss"] >= table["feature"]["percent_less_loss"]
