"""What the scripts of this folder share: the frame, images, estimates on all data, and their cost."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

import bilevel

sys.path.insert(0, str(Path(__file__).parents[1]))
from _frame import Claim, Measured, panels, run, slope

__all__ = [
    "COMPILE_FAST", "Claim", "Measured", "compiled", "digits", "estimate", "fast", "full_stream",
    "inner_solution", "mnist", "panels", "relative", "run", "slope", "temporary_bytes",
]  # fmt: skip

# For functions that are compiled once and run once: compiling takes longer than running.
COMPILE_FAST = {"xla_backend_optimization_level": 0}
fast = partial(jax.jit, compiler_options=COMPILE_FAST)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1797 images of 8 x 8 pixels, as rows in [0, 1], and which digit each shows."""
    found: Any = load_digits()
    return found.data / 16, found.target


def mnist(
    split: Literal["train", "test"], rows: Any = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Images of 28 x 28 pixels, as rows in [0, 1], and which digit each shows."""
    images, labels = bilevel.datasets.mnist(split)
    return images[rows].reshape(-1, 784) / 255, labels[rows]


def relative(found: Any, truth: Any) -> float:
    """The distance of two pytrees, relative to the norm of the second."""
    found, truth = (np.asarray(ravel_pytree(tree)[0]) for tree in (found, truth))
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def full_stream(data: Any) -> bilevel.Stream:
    """A stream whose batches are all rows."""
    return bilevel.Stream(bilevel.FullBatch(), data, ())


def inner_solution(problem: Any, solver: Any, u: Any, w0: Any) -> Any:
    """What an inner solver returns on all rows."""
    stream = full_stream(problem.inner_data)
    return solver.solve(problem, u, w0, solver.init(problem, u, w0), stream)[0]


def estimate(problem: Any, estimator: Any, inner: Any, u: Any, w0: Any) -> Any:
    """One hypergradient on all rows; the other outputs of the estimate are not compiled."""
    streams = bilevel.Streams(full_stream(problem.outer_data), full_stream(problem.inner_data))
    state = estimator.init(problem, inner, u, w0)
    return estimator.estimate(problem, inner, u, w0, state, streams)[0].grad


def temporary_bytes(compiled: Any) -> int:
    """The temporary memory of a compiled function."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def compiled(function: Callable, *args: Any) -> Any:
    """The function, compiled for these arguments."""
    return jax.jit(function).lower(*args).compile()
