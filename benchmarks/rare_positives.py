"""Rare positives, some of which are called negative: does the user's metric protect them?

Normal features; the label is whether a noisy linear score is among the highest 0.3 % (or 1 %). Of
the positives among the 8000 training rows 30 % are called negative. The trusted rows are drawn at
random, so few are positive. `learn_weights` chooses by average precision; then logistic regression on
the weights and on each baseline is scored by average precision on 20000 rows.

Results: `results/rare_positives.json`.
"""

import argparse
import warnings
from typing import Any

import numpy as np
import pandas as pd
from _measure import write

from bilevel.reweighting import learn_weights

TRAIN, TEST, MISSING = 8000, 20_000, 0.3
CELLS = ((0.003, 2000), (0.01, 1000))  # the share of positives, trusted rows


def cell(rate: float, m: int, seed: int) -> dict[str, Any]:
    """One seed: average precision of each fit, and what was chosen."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(TRAIN + m + TEST, 5))
    score = X @ [1.0, 1.0, 0.5, 0.0, 0.0] + 0.5 * rng.normal(size=len(X))
    y = (score > np.quantile(score, 1 - rate)).astype(int)
    given = np.where(rng.random(TRAIN) < MISSING, 0, y[:TRAIN])
    trusted, test = slice(TRAIN, TRAIN + m), slice(TRAIN + m, None)
    result = learn_weights(
        X[:TRAIN],
        given,
        X[trusted],
        y[trusted],
        task="classification",
        scoring="average_precision",
        holdout=(X[test], y[test]),
        seed=seed,
    )
    table: Any = result.baselines
    return {"positive": rate, "trusted": m, **table["score"], "winner": result.winner}


def summary(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Means over the seeds; the gain over all rows with its standard error; how often each won."""
    cells = []
    for rate, m in CELLS:
        found: Any = runs[(runs["positive"] == rate) & (runs["trusted"] == m)]
        if not len(found):
            continue
        gains = {
            f"gain over {name}": found["reweighted"] - found[name]
            for name in ("uniform", "all rows + trusted")
        }
        line: dict[str, Any] = {"positive": rate, "trusted": m}
        line |= {
            str(k): float(v)
            for k, v in found.drop(columns=["positive", "trusted", "winner"]).mean().items()
        }
        for name, gain in gains.items():
            line |= {name: float(gain.mean()), f"{name}, error": float(gain.sem())}
        cells.append(line | {"winners": found["winner"].value_counts().to_dict()})
    return cells


def main() -> None:
    """Run all cells, print the table and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # few positives in a fold
    runs = []
    for rate, m in CELLS:
        runs += [cell(rate, m, seed) for seed in range(options.seeds)]
        print(summary(pd.DataFrame(runs))[-1], flush=True)
    settings = {"rows": TRAIN, "test_rows": TEST, "missing": MISSING}
    measured = {"settings": settings, "seeds": list(range(options.seeds))}
    write(__file__, measured | {"cells": summary(pd.DataFrame(runs))})


if __name__ == "__main__":
    main()
