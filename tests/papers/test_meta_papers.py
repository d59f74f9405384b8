"""G4 and L5: meta-learning and hyper-representation, as their scripts make the claims."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PAPERS = Path(__file__).parents[2] / "papers"


def report_of(script, out):
    command = [sys.executable, str(PAPERS / script), "--quick", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    name = Path(script).stem
    assert (out / f"{name}.png").stat().st_size > 10_000
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.slow
def test_meta_learning(tmp_path):
    report = report_of("tutorial/meta_learning.py", tmp_path)
    assert set(report["shots"]) == {"1", "5"}
    for found in report["shots"].values():
        learned = found.pop("learned, all classes")
        assert learned["classes"] == 20
        for other in found.values():
            gap, half = other["learned_minus_this"]
            assert gap > half
    assert [c["holds"] for c in report["claims"]] == [True] * 6


@pytest.mark.slow
def test_hyper_representation(tmp_path):
    report = report_of("improved_model/hyper_representation.py", tmp_path)
    assert set(report["runs"]) == {"1-shot, K = 10", "5-shot, K = 10"}
    for found in report["runs"].values():
        basic, *improved = found.values()
        # The solver that sees the query labels is far above on them; on new labels it need not be.
        for result in improved:
            assert result["minus_basic"]["new rows, query labels seen"][0] > 0.005
            assert abs(result["minus_basic"]["new rows"][0]) < 0.05
        # What is learned is for the classes it was learned on.
        curve = basic["curve"]
        assert curve["new rows"][-1] > curve["new rows"][0]
    assert len(report["claims"]) == 12
