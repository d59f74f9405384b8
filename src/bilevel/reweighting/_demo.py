"""The demo: scikit-learn's digits with corrupted labels."""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from .._callback import ProgressBar
from ..datasets import flip_to_different
from ._weights import WeightsResult, learn_weights

NUM_TRAIN, NUM_TRUSTED, RATE = 1000, 200, 0.4

DEMO_TEXT = (
    f"scikit-learn's handwritten digits (8 x 8 pixels): {NUM_TRAIN} training rows, {RATE:.0%} of "
    f"their labels replaced by another digit; {NUM_TRUSTED} trusted rows; the rest is the hold-out."
)


class DemoOutcome(NamedTuple):
    """The result, and how many of the corrupted rows it found."""

    result: WeightsResult
    num_wrong: int
    num_flagged: int
    num_found: int
    num_by_chance: float


def run_demo(seed: int = 0, *, progress: bool = True) -> DemoOutcome:
    """Split, corrupt, weigh, compare."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    train, trusted, holdout = np.split(order, [NUM_TRAIN, NUM_TRAIN + NUM_TRUSTED])
    noisy, wrong = flip_to_different(y[train], RATE, seed=seed)
    result = learn_weights(
        X[train],
        noisy,
        X[trusted],
        y[trusted],
        holdout=(X[holdout], y[holdout]),
        seed=seed,
        callbacks=[ProgressBar()] if progress else [],
    )
    flagged = ~result.keep
    return DemoOutcome(
        result=result,
        num_wrong=int(wrong.sum()),
        num_flagged=int(flagged.sum()),
        num_found=int((wrong & flagged).sum()),
        num_by_chance=float(wrong.mean() * flagged.sum()),
    )
