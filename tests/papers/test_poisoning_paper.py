"""The claims on data poisoning (G3), as the paper's script makes them."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "papers" / "tutorial" / "poisoning.py"


@pytest.mark.slow
def test_poisoning(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (tmp_path / "poisoning.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "poisoning.json").read_text())
    settings, records = report["settings"], report["records"]
    most = max(settings["counts"])

    def mean(key, attack, radius, count=most):
        found = [
            key(r)
            for r in records
            if (r["attack"], r["radius"], r["count"]) == (attack, radius, count)
        ]
        assert len(found) == settings["seeds"]
        return np.mean(found)

    for name in ("linear", "MLP"):

        def hold_out(record, name=name):
            return record[name]["hold_out"]

        clean = mean(hold_out, "none", 0.0, 0)
        assert clean > 0.93
        for radius in settings["radii"]:
            attacked = mean(hold_out, name, radius)
            random = mean(hold_out, f"random as {name}", radius)
            assert random > clean - 0.02
            assert attacked < random - 0.03
            assert mean(lambda r: r["mean_norm"], name, radius) <= radius * (1 + 1e-5)
        few = mean(hold_out, name, settings["radius"], min(settings["counts"]))
        assert mean(hold_out, name, settings["radius"]) < few < clean
        auroc = [mean(lambda r: r["auroc"], name, radius) for radius in settings["radii"]]
        assert all(a < b for a, b in pairwise([0.5, *auroc]))
    linear = [mean(lambda r: r["linear"]["hold_out"], "linear", eps) for eps in settings["radii"]]
    assert all(a > b for a, b in pairwise(linear))
    # Beyond the distance to another class the perceptron fits the rows without being hurt more.
    failed = {claim["claim"].partition(" (")[0] for claim in report["claims"] if not claim["holds"]}
    assert failed <= {"MLP: a larger eps hurts more"}
