"""Each script of `papers/`, in its quick size: the claims are judged as in the committed report.

What a script's own functions return is tested in the other files of this folder.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

PAPERS = Path(__file__).parents[2] / "papers"
SCRIPTS = sorted(PAPERS.glob("*/[a-z]*.py"))
# The scripts whose quick size takes less than about 10 CPU seconds; the others are slow.
QUICK = {"projections"}
# Where the quick size judges a claim differently from the committed full one: script, claim, verdict.
QUICK_VERDICTS: dict[str, dict[str, bool]] = {
    "recent_advances": {  # 8 seeds in place of 16, of an estimate with a random length
        "SUSTAIN: on the noisy problem the mean squared gradient falls at least as fast as "
        "published.": False,
        # Horizons up to 4096 in place of 16384: the first epochs, with a table of zeros, weigh more.
        "SFFBA: on the finite sum problem the mean squared gradient falls at least as fast as "
        "published.": False,
    },
    "remedies": {  # one seed in place of five: behind by 0.0002
        "Clipped SOBA, untuned, beats plain SOBA tuned by test score on MNIST.": False,
    },
    "mixtures": {  # tiny models, and short runs for the regression
        "A model trained from scratch on the learned mixture has a lower loss on the target than: "
        "RegMix-style.": True,
    },
    "entropy_floor": {  # 500 rows in place of 8000: at some looks no second row is near
        "The same in float32 with weights that are kept at the smallest normal number: the entropy "
        "does not reach zero (least value at least 0.1).": False,
    },
    "flows": {
        "The bound of Theorem 1 holds also with the smallest eigenvalue of the Hessian at w_0 in "
        "place of mu, up to a multiple of beta that does not grow as beta tends to 0.": True,
    },
}
# Claims on times, which a busy machine can turn.
TIMED: dict[str, set[str]] = {
    "equilibrium": {"At width 64 Anderson mixing takes less time than plain iteration."},
    "hyperparameters": {
        "64 penalties on odd against even, least squares, take at most 30 CPU seconds.",
        "64 penalties on odd against even, logistic, take at most 30 CPU seconds.",
        "From some number of penalties on, gradients reach a validation loss that is lower by 0.1 % "
        "or more.",
    },
    "lasso": {
        f"On {data} descent in one penalty is faster than LassoCV, 100 alphas."
        for data in ("diabetes", "generated, 100 x 200")
    },
    "products": {"A Hessian-vector product costs a few gradients."},
}


@pytest.fixture
def as_run(script):
    """jax has the precision and the compiler with which scripts run; the suite's come back."""
    optimise = "jax_disable_most_optimizations"
    before = jax.config.read(optimise)
    jax.config.update(optimise, False)
    try:
        with jax.enable_x64(False):
            yield script
    finally:
        jax.config.update(optimise, before)


def verdicts(claims) -> dict[str, bool]:
    """The verdict on each claim, without the claims on times."""
    return {claim["claim"]: claim["holds"] for claim in claims}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in QUICK))
        for path in SCRIPTS
    ],
)
def test_claims_are_judged_as_in_the_committed_report(as_run, path):
    committed = json.loads((PAPERS / "results" / f"{path.stem}.json").read_text())
    script = as_run(path.stem)
    try:
        measured = script.measure(False)
    except FileNotFoundError as missing:
        if os.environ.get("BILEVEL_DATA"):
            raise
        pytest.skip(f"BILEVEL_DATA is not set: {missing}")
    judged = script.claims(measured)
    found = as_run("_frame").report(str(path), measured, judged, full=False, cpu_seconds=0.0)
    json.dumps(found)
    assert len(verdicts(found["claims"])) == len(judged), "two claims say the same"
    for key in ("settings", "seeds"):
        assert key in found
    expected = verdicts(committed["claims"]) | QUICK_VERDICTS.get(path.stem, {})
    got = verdicts(found["claims"])
    timed = TIMED.get(path.stem, set())
    # A full run may be on other data, which its claims name.
    both = (got.keys() & expected.keys()) - timed
    assert both
    assert {c: got[c] for c in both} == {c: expected[c] for c in both}
    if committed["size"] == "quick":
        assert got.keys() == expected.keys()

    figure = script.draw(measured)
    assert any(axes.has_data() for axes in figure.axes)
    assert all(axes.has_data() or not axes.axison for axes in figure.axes)


def test_the_cost_of_every_full_run_that_is_missing_is_known():
    """And a whole `make papers`, if one was recorded, took at most a quarter of an hour."""
    costs = json.loads((PAPERS / "costs.json").read_text())
    assert set(costs["quick"]["seconds"]) <= {path.stem for path in SCRIPTS}
    assert (costs["quick"]["minutes"] or 0) <= 15
    for path in SCRIPTS:
        report = json.loads((PAPERS / "results" / f"{path.stem}.json").read_text())
        if report["size"] == "quick":
            assert costs["quick"]["seconds"][path.stem] > 0
            assert math.prod(full / quick for _, full, quick in costs["full"][path.stem]) > 1


@pytest.mark.slow
def test_make_papers_runs_scripts_in_forks_and_reports_failures(tmp_path):
    command = [sys.executable, str(PAPERS / "_all.py"), "--out", str(tmp_path)]
    run = subprocess.run([*command, "projections"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "projections.json").read_text())["size"] == "quick"
    assert "1 scripts, 2 at a time" in run.stdout
    # Without the data a script fails, and so does the whole.
    without = {k: v for k, v in os.environ.items() if k != "BILEVEL_DATA"}
    (tmp_path / "empty").mkdir()
    run = subprocess.run(
        [*command, "projections", "hyper_cleaning"],
        capture_output=True,
        text=True,
        env=without | {"BILEVEL_DATA": str(tmp_path / "empty")},
    )
    assert run.returncode == 1
    assert "Failed: hyper_cleaning." in run.stdout
