"""Rank 20 against 20 Neumann terms, on the weak-ridge problem of benchmarks/nystrom.py."""

from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import load_script

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "nystrom.py"


@pytest.mark.slow
def test_rank_20_beats_20_neumann_terms():
    """The Hessian has nearly low rank, and the damping is above its small eigenvalues, for any
    columns."""
    script = load_script(SCRIPT)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        case = script.decaying_logistic(ridge=1e-6, rotated=True)
        errors = script.nystrom_errors(case, 20, 1e-5, "random", 8)
        # 21 terms take the 20 products that rank 20 takes, 20 terms one less.
        neumann = [script.neumann_error(case, terms) for terms in (20, 21)]
    assert case.eigenvalues[19] < 1e-3 * case.eigenvalues[0]
    assert errors.shape == (8,)
    assert np.max(errors) < min(neumann)
    assert np.median(errors) < 0.6 * min(neumann)
