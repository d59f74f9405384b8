"""The demo: scikit-learn's digits with corrupted labels, over several splits."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits

from ..datasets import flip_to_different
from ..reweighting._learn import learn_weights
from ..reweighting._weights.baselines import compare_baselines, default_estimator
from ..reweighting._weights.diagnostics import verdict

NUM_TRAIN, NUM_TRUSTED, RATE, NUM_SPLITS = 1000, 200, 0.4, 10

DEMO_TEXT = (
    f"scikit-learn's handwritten digits (1797 of 8 x 8 pixels): {NUM_TRAIN} training rows, {RATE:.0%} "
    f"of their labels replaced by another digit; {NUM_TRUSTED} trusted rows; the rest is the "
    f"hold-out. {NUM_SPLITS} random splits."
)


class DemoOutcome(NamedTuple):
    """What the splits gave.

    `table` has one line per baseline: mean score, mean gain of the reweighted fit over it with its
    standard error over the splits, and in how many splits it gained. `found`, `flagged` and `wrong`
    count rows over all splits: corrupted and flagged, flagged, corrupted.
    """

    table: pd.DataFrame
    found: int
    flagged: int
    wrong: int

    def verdict(self) -> str:
        """Whether weighting paid, against the baseline that is best on average."""
        others = self.table.drop(index="reweighted")
        best = str(others["score"].idxmax())
        gain, error, wins = others.loc[best, ["gain", "standard_error", "wins"]]
        return (
            f"Weighting {verdict(gain, error)}: the score minus that of the best baseline ({best}) is "
            f"{gain:+.4f} (standard error {error:.4f}), above 0 in {wins:.0f} of {NUM_SPLITS} splits."
        )


def run_demo(seed: int = 0, on_split=lambda done: None) -> DemoOutcome:
    """Split, corrupt, weigh and compare, `NUM_SPLITS` times; `on_split` is told how many are done."""
    X, y = load_digits(return_X_y=True)
    scores, counts = [], np.zeros(3, int)
    for k in range(NUM_SPLITS):
        split = NUM_SPLITS * seed + k
        order = np.random.default_rng(split).permutation(len(y))
        train, trusted, holdout = np.split(order, [NUM_TRAIN, NUM_TRAIN + NUM_TRUSTED])
        noisy, wrong = flip_to_different(y[train], RATE, seed=split)
        result = learn_weights(
            X[train],
            noisy,
            X[trusted],
            y[trusted],
            holdout=(X[holdout], y[holdout]),
            seed=split,
        )
        assert result.baselines is not None
        scores.append(result.baselines["score"])
        flagged = ~result.keep
        counts += [(wrong & flagged).sum(), flagged.sum(), wrong.sum()]
        on_split(k + 1)
    score = pd.DataFrame(scores).reset_index(drop=True)
    gain = score.rsub(score["reweighted"], axis=0)
    table = pd.DataFrame(
        {
            "score": score.mean(),
            "gain": gain.mean(),
            "standard_error": gain.std(ddof=1) / np.sqrt(NUM_SPLITS),
            "wins": (gain > 0).sum(),
        }
    )
    return DemoOutcome(table, *(int(c) for c in counts))


BENCH = [
    *(
        ("digits", 1000, trusted, noise)
        for trusted in (50, 100, 200)
        for noise in (0, 0.2, 0.4, 0.6)
    ),
    *(("breast cancer", 300, trusted, noise) for trusted in (50, 100) for noise in (0, 0.2, 0.4)),
]
_LOADERS = {"digits": load_digits, "breast cancer": load_breast_cancer}


def bench_cell(name: str, n: int, m: int, noise: float, seed: int) -> tuple[float, float]:
    """(gain over the best baseline in hindsight, the same for the rows whose label is right)."""
    X, y = _LOADERS[name](return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    train, trusted, holdout = np.split(order, [n, n + m])
    noisy = flip_to_different(y[train], noise, seed=seed)[0] if noise else y[train]
    learnable = X[train], noisy, X[trusted], y[trusted]
    judge = X[holdout], y[holdout]
    result = learn_weights(*learnable, seed=seed)
    final = default_estimator(regression=False)
    weights = result.sample_weight(m)
    ours = compare_baselines(final, *learnable, weights[:n], weights[-1], *judge)["score"]
    right = (noisy == y[train]).astype(float)
    oracle = compare_baselines(final, *learnable, right, 1.0, *judge)["score"]["reweighted"]
    best = ours.drop("reweighted").max()
    return float(np.subtract(ours["reweighted"], best)), float(np.subtract(oracle, best))
