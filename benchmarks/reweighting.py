"""Does weighting pay? The default against the best of its four baselines, over data and noise.

Prints the table of docs/choosing.md: the accuracy of the refit on a hold-out minus the best baseline
*in hindsight* (chosen on that hold-out, a split at a time), over ten splits, with labels flipped to a
different class.
"""

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

from bilevel import learn_weights
from bilevel.datasets import flip_to_different

CELLS = [
    ("digits", 1000, 200, 0.2, range(40, 50)),
    ("digits", 1000, 200, 0.4, range(40, 50)),
    ("digits", 1000, 200, 0.6, range(40, 50)),
    ("digits", 1000, 100, 0.4, range(40, 50)),
    ("breast cancer", 250, 60, 0.4, range(40, 50)),
    ("breast cancer", 250, 60, 0.4, range(30, 35)),
    ("breast cancer", 300, 100, 0.2, range(40, 50)),
]
LOADERS = {"digits": load_digits, "breast cancer": load_breast_cancer}


def gain(name: str, rows: int, trusted: int, rate: float, seed: int) -> float:
    """The gain over the best baseline on one split."""
    X, y = LOADERS[name](return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    train, verified, holdout = np.split(order, [rows, rows + trusted])
    noisy, _ = flip_to_different(y[train], rate, seed=seed)
    result = learn_weights(
        X[train],
        noisy,
        X[verified],
        y[verified],
        holdout=(X[holdout], y[holdout]),
        overlap="keep",
    )
    assert result.baselines is not None
    score: dict[str, float] = result.baselines["score"].to_dict()
    reweighted = score.pop("reweighted")
    return reweighted - max(score.values())


def main() -> None:
    print(
        "| data, rows, trusted | wrong labels | splits | gain | better in |\n|---|---|---|---|---|"
    )
    for name, rows, trusted, rate, seeds in CELLS:
        gains = np.array([gain(name, rows, trusted, rate, seed) for seed in seeds])
        error = gains.std(ddof=1) / np.sqrt(len(gains))
        print(
            f"| {name}, {rows}, {trusted} | {rate:.0%} | {seeds[0]} to {seeds[-1]} | "
            f"{gains.mean():+.4f} ± {error:.4f} | {(gains > 0).sum()} of {len(gains)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
