"""V4 and V10 as the script of the paper makes them, in its quick size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "papers" / "implicit_bias"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """In a process of its own: scripts set what they need of jax, and the suite's modes stay here."""
    out = tmp_path_factory.mktemp("papers")
    script = str(SCRIPTS / "inverse_spectra.py")
    command = [sys.executable, script, "--quick", "--out", str(out)]
    environment = os.environ | {"MPLBACKEND": "Agg"}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert (out / "inverse_spectra.png").stat().st_size > 10_000
    return json.loads((out / "inverse_spectra.json").read_text())


@pytest.mark.slow
def test_all_claims_hold(report):
    assert [(claim["row"], claim["holds"]) for claim in report["claims"]] == [
        *[("V4", True)] * 2,
        *[("V10", True)] * 4,
    ]


@pytest.mark.slow
def test_spectra_are_the_formulas(report):
    spectra = report["spectra"]
    assert spectra["inverse"] <= 1e-12
    for row in spectra["terms"].values():
        assert max(row["neumann"], row["damped"], row["damped_cg"]) <= 1e-12


@pytest.mark.slow
def test_equation_5_is_approximate(report):
    """The gap tends to max (1 - exp(-x)) (1 + 1/x) - 1 = .298, at x = l / eps = 1.79."""
    rows = report["spectra"]["terms"]
    assert rows["1"]["gap"] == pytest.approx(1.0, abs=0.01)  # 1 + a l at the largest l
    assert rows["100"]["gap"] == pytest.approx(0.30, abs=0.01)
    assert rows["100"]["gap_at"] == pytest.approx(1.79, rel=0.1)
    assert rows["100"]["gap_at_ends"] <= 0.011
    for row in rows.values():
        assert 0.29 <= row["gap"] < row["gap_one_more_term"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["singular", "positive definite"])
def test_unrolling_is_neumann_and_proximal_is_damped(report, kind):
    unrolled = report["unrolling"][kind]
    assert set(unrolled) == {"1", "5", "20", "100"}
    for row in unrolled.values():
        assert max(row["from_solution"]) <= 1e-12
        assert max(row["last_of_many"]) <= 1e-12
    assert max(max(errors) for errors in report["proximal"][kind].values()) <= 1e-12
