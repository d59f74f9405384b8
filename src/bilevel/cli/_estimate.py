"""What a run will cost, before it runs: `bilevel weigh --dry-run`."""

import time
from typing import NamedTuple

import numpy as np

from ..reweighting._weights.weight_function import FOLDS, MAX_ROWS, STEPS

# Measured on digits, MNIST and 100000 x 100 rows: evaluations of loss and gradient in a whole run of
# "auto" (a product with the Hessian counts as one), and seconds to compile and to start.
EVALUATIONS, SECONDS = STEPS * 55 * (FOLDS + 1) * FOLDS + 130 * 60, 25.0


class Estimate(NamedTuple):
    """What a run will cost.

    Attributes:
        train_rows, trusted_rows, columns, outputs: the size of the problem as numbers; one output
            per class.
        seconds: of the default method, on this machine as busy as it is now.
        bytes: of memory at the peak.
    """

    train_rows: int
    trusted_rows: int
    columns: int
    outputs: int
    seconds: float
    bytes: float

    def __str__(self) -> str:
        return (
            f"{self.train_rows} training and {self.trusted_rows} trusted rows, {self.columns} numeric "
            f"columns, {self.outputs} outputs: about {_duration(self.seconds)} and "
            f"{self.bytes / 1e9:.1f} GB of memory with the default method. Nothing was written."
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{10 * round(seconds / 10) or 10:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"


def estimate_cost(x: np.ndarray, trusted: int, outputs: int) -> Estimate:
    """Time the two matrix products of one gradient on the rows that a run would see, and count."""
    rows, columns = x.shape
    some = np.asarray(x[: min(rows, MAX_ROWS)], np.float32)
    w = np.zeros((outputs, columns), np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        w = w + 0 * (some @ w.T).T @ some
        times.append(time.perf_counter() - start)
    everything = 4.0 * (rows + trusted) * (columns + 4 * outputs)  # float32, and outputs of models
    return Estimate(
        rows,
        trusted,
        columns,
        outputs,
        SECONDS + EVALUATIONS * min(times),
        5e8 + 4 * everything + 2 * x.nbytes,
    )
