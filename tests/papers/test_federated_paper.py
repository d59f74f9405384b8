"""The claims on federated bilevel optimization (G11), as the paper's script makes them."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "papers" / "tutorial" / "federated.py"


@pytest.mark.slow
def test_federated(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (tmp_path / "federated.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "federated.json").read_text())

    def select(**wanted):
        return [c for c in report["curves"] if all(c[k] == v for k, v in wanted.items())]

    for curve in select(way="safe") + select(local_steps=1) + select(split="iid", way="corrected"):
        assert curve["last"] < 1e-8
        assert curve["last_w"] < 1e-8
    for split in ("iid", "by digit"):
        ends = [c["last"] for c in select(clients=10, split=split, way="plain")]
        assert len(ends) == 3
        assert all(a < b for a, b in pairwise(ends))
        assert ends[0] > 1e-4
    reach = [c["exchanges_to_reach"] for c in select(clients=10, split="iid", way="corrected")]
    assert all(a > b for a, b in pairwise(reach))
    for split in ("iid", "by digit"):  # how the rows are dealt out does not matter to one step
        one = [c["distance"][-20] for c in select(split=split, local_steps=1)]
        assert max(one) - min(one) < 1e-9
    gaps = report["gaps"]
    assert all(gaps[f"{k}, by digit"] > 2 * gaps[f"{k}, iid"] for k in (2, 10, 50))
    # Too large a step for ten local steps of clients whose Hessians differ.
    failed = [claim["claim"] for claim in report["claims"] if not claim["holds"]]
    assert failed == ["corrected local steps of size 1 / L: so do they"]
