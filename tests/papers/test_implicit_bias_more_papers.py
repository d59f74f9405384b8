"""V3, V6, V8 and V9 as the scripts of the paper make them, in their quick sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "papers" / "implicit_bias"


@pytest.fixture(scope="module")
def report_of(tmp_path_factory):
    """In a process of its own: scripts set what they need of jax, and the suite's modes stay here."""
    reports = {}

    def run(name: str) -> dict:
        if name not in reports:
            out = tmp_path_factory.mktemp("papers")
            command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--quick", "--out", str(out)]
            environment = os.environ | {"MPLBACKEND": "Agg"}
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            assert (out / f"{name}.png").stat().st_size > 10_000
            reports[name] = json.loads((out / f"{name}.json").read_text())
        return reports[name]

    return run


def rows(report) -> list[tuple[str, bool]]:
    return [(claim["row"], claim["holds"]) for claim in report["claims"]]


# ---- V6, projections


def test_projections_claims_hold(report_of):
    assert rows(report_of("projections")) == [("V6", True)] * 7


def test_warm_starts_end_in_the_intersection_and_cold_ones_do_not(report_of):
    report = report_of("projections")
    away = {name: np.array(values) for name, values in report["distances"].items()}
    for start in ("origin", "another start"):
        assert away[f"full warm start, {start}"][-1] <= 1e-14
        assert away[f"partial warm start, {start}"][-1] <= 1e-13
        assert away[f"cold start, {start}"].min() >= 0.5
        assert np.ptp(away[f"cold start, {start}"][1:]) <= 1e-12  # once a cycle
    assert len(report["step_errors"]) == 6
    assert max(report["step_errors"].values()) <= 1e-14
    turns = np.deg2rad([40, 45, 50, 45])
    assert report["rate"] == pytest.approx(np.prod(np.cos(turns)), rel=1e-12)
    np.testing.assert_allclose(report["measured_rate"], report["rate"], rtol=1e-9)
    assert max(report["many_dimensions"]["errors"]) <= 1e-12


# ---- V3, equilibria


@pytest.mark.slow
def test_equilibria_claims_hold(report_of):
    assert rows(report_of("equilibria")) == [("V3", True)] * 5


@pytest.mark.slow
def test_cold_starts_end_at_the_nearest_outer_solution(report_of):
    for found in report_of("equilibria")["theorem"].values():
        assert len(found["last"]) == found["equilibria"] == 20
        assert max(found["last"]) <= 1e-12
        assert min(found["moved"]) >= 0.5  # or there would be nothing to show


@pytest.mark.slow
def test_warm_and_cold_starts_differ_by_what_the_inner_steps_leave(report_of):
    gaps = report_of("equilibria")["remark"]
    for kind in ("strongly convex", "singular"):
        worst = {steps: max(values) for steps, values in gaps[kind].items()}
        assert worst["1"] >= 0.1
        assert worst["10"] >= 1e-4
        assert max(worst["100"], worst["300"]) <= 1e-10


@pytest.mark.slow
def test_warm_start_equilibria_depend_on_the_hypergradient_and_not_on_the_steps(report_of):
    found = report_of("equilibria")["statement"]
    assert found["equilibria"] == found["checked"] == 240
    assert max(map(max, found["exact"].values())) <= 1e-11
    assert max(found["unrolled"]["1"]) >= 0.01
    assert max(found["unrolled"]["1000"]) <= 1e-11
    assert found["cycle"]["gap"] <= 1e-12
    assert found["cycle"]["inner_residual"] == pytest.approx(1, rel=1e-9)


# ---- V9, anti-distillation

CG_ERRORS = ("errors", "moved_by_rounding")


@pytest.mark.slow
def test_anti_distillation_claims(report_of):
    """All but the long runs of CG, of which one magnifies its rounding."""
    holds = rows(report_of("anti_distillation"))
    assert holds == [("V9", i != 1) for i in range(12)]


@pytest.mark.slow
def test_long_runs_end_at_their_limits_with_the_known_norms(report_of):
    runs = report_of("anti_distillation")["runs"]
    for by_name in runs.values():
        for name, run in by_name.items():
            assert run["error"] <= (1e-5 if name == "CG 6" else 1e-10)
            assert run["outer_value"] <= 1e-20
    exponential = {name: round(run["norm"], 2) for name, run in runs["exponential"].items()}
    assert [exponential[f"Neumann {k}"] for k in (1, 100, 10_000)] == [15.40, 8.65, 4.98]
    assert [exponential[f"damped {k}"] for k in (1, 100, 10_000)] == [15.11, 8.88, 5.07]
    assert exponential["exact"] == exponential["CG 13"] == 4
    harmonic = [round(runs["1/n"][f"Neumann {k}"]["norm"], 2) for k in (1, 100, 10_000)]
    assert harmonic == [17.63, 13.02, 4.02]


@pytest.mark.slow
def test_other_parts_of_anti_distillation(report_of):
    report = report_of("anti_distillation")
    assert max(gap for row in report["unrolled"].values() for gap in row.values()) <= 1e-14
    cg = report["cg"]
    assert (cg["rank"], cg["even_rank"]) == (13, 7)
    errors, moved = (dict(zip(cg["by_steps"], cg[key], strict=True)) for key in CG_ERRORS)
    assert errors[13] <= 1e-11
    assert errors[4] >= 0.9  # so 13 steps are no luxury
    assert moved[2] <= 1e-13
    assert moved[6] >= 1e-8  # why the claim of truncated CG does not hold
    ends = {name: run["end"] for name, run in report["line"].items()}
    np.testing.assert_allclose(ends["1"], [0.5, 1.5], rtol=1e-8)
    np.testing.assert_allclose(ends["exact"], [1.0, 1.0], rtol=1e-12)
    for runs in report["mlp"].values():
        for kind in ("Neumann", "unrolling"):
            norms = [run["norm"] for run in runs[kind].values()]
            assert norms[0] > 1.5 * norms[1] > 1.5**2 * norms[2]


# ---- V8, solution concepts


@pytest.mark.slow
def test_solution_concepts_claims_hold(report_of):
    assert rows(report_of("solution_concepts")) == [("V8", True)] * 6


@pytest.mark.slow
def test_the_concepts_are_far_apart(report_of):
    run = report_of("solution_concepts")["runs"][0]
    value = {name: found["value"] for name, found in run["found"].items()}
    assert value["optimistic"] < 0.02 < 0.3 < value["cold start"] < 0.4 < 3 < value["pessimistic"]
    assert value["warm start"] < 0.7 * value["cold start"]
    assert value["retrained"] > 1.1 * value["cold start"]
    accuracy = {name: found["accuracy"] for name, found in run["found"].items()}
    assert accuracy["optimistic"] == 1
    assert accuracy["warm start"] > accuracy["cold start"] > 0.7
    assert accuracy["pessimistic"] < 0.4
    assert run["min_norm_error"] <= 1e-12
