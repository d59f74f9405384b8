"""Ratios of CPU times in one process: alternating, blocked, medians."""

import time
from collections.abc import Callable

import jax
import numpy as np


def cpu_seconds(*functions: Callable[[], object], repeats: int = 15) -> list[float]:
    """The median CPU seconds of each function, called in turn `repeats` times after a warm-up."""
    for function in functions:
        jax.block_until_ready(function())
    times = np.empty((repeats, len(functions)))
    for i in range(repeats):
        for j, function in enumerate(functions):
            start = time.process_time()
            jax.block_until_ready(function())
            times[i, j] = time.process_time() - start
    return np.median(times, axis=0).tolist()
