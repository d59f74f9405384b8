"""Ratios of CPU times in one process: alternating, blocked, medians."""

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np


def cpu_seconds(*functions: Callable[[], object], repeats: int = 15) -> list[float]:
    """The median CPU seconds of each function, called in turn `repeats` times after a warm-up."""
    return np.median(_rounds(functions, repeats), axis=0).tolist()


def cpu_ratio(one: Callable[[], object], floor: Callable[[], object], repeats: int) -> list[float]:
    """The quartiles of time of `one` over that of the two `floor`s before and after it."""
    times = _rounds((floor, one, floor), repeats)
    return np.percentile(2 * times[:, 1] / (times[:, 0] + times[:, 2]), [25, 50, 75]).tolist()


def _rounds(functions: Sequence[Callable[[], object]], repeats: int) -> np.ndarray:
    for function in functions:
        jax.block_until_ready(function())
    times = np.empty((repeats, len(functions)))
    for i in range(repeats):
        for j, function in enumerate(functions):
            start = time.process_time()
            jax.block_until_ready(function())
            times[i, j] = time.process_time() - start
    return times
