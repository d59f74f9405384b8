"""Each example at tiny size: it returns the numbers that it shows, and they say what it claims."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from helpers import load_script

EXAMPLES = Path(__file__).parents[1] / "examples"

# What must hold of the numbers that an example returns.
CLAIMS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "hyperparameters": lambda r: (
        r["one per feature, error on new rows"] < 0.95 * r["one penalty, error on new rows"]
        and abs(r["cross-validated, by hand"] / r["cross-validated, estimator"] - 1) < 0.02
    ),
    "equilibrium": lambda r: r["accuracy"] > 0.93 and r["residual"] < 1e-4 and r["norm"] < 0.9,
    "poisoning": lambda r: r["poisoned"] < r["random"] - 0.02 and r["random"] > r["clean"] - 0.05,
    "meta_learning": lambda r: r["accuracy"] > r["untrained"],
    "federated": lambda r: r["corrected"] < 1e-4 and r["not corrected"] > 0.1,
}


SLOW = {"federated", "meta_learning", "equilibrium", "poisoning"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CLAIMS]
)
def test_example(name):
    # As its readers run it, in float32: in float64 it starts from another random net.
    single = name == "meta_learning"
    with (
        jax.enable_x64(not single),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        found = load_script(EXAMPLES / f"{name}.py").main(tiny=True)
    assert CLAIMS[name](found), found


def test_every_example_is_tested():
    tested = {*CLAIMS, "new_method", "several_processes"}  # see test_compare.py and test_meshes.py
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
