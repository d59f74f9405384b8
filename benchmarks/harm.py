"""Where labels are right, or nearly: does the default do harm?

Real tables whose labels are right, or of which 5 or 10 % are made wrong at random. Per table: at most
2000 training rows, `m` trusted rows and a third of the rows (at most 4000) for the test, of a seeded
permutation; five seeds. Test rows of a class that no training row has are left out. Measured: the
accuracy on the test rows of `ReweightedClassifier()` minus the better of two fits of the same logistic
regression in the mean over the seeds, one of all rows and one of the trusted rows only. Neither needs
weights: what is lost is the harm of asking for weights.

Three tables come with scikit-learn. `trees.py` says where the others come from; name their folder
with `--tables`, or they are left out. Results: `results/harm.json`; `--out` gets a line per fit, and a
run that is started again continues it.
"""

import argparse
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import write
from sklearn.datasets import load_wine
from sklearn.exceptions import ConvergenceWarning
from trees import CHOSEN_ON, REPORTED, load

from bilevel import ReweightedClassifier, datasets

TRAIN, TEST, SEEDS = 2000, 4000, 5
RATES, TRUSTED = (0.0, 0.05, 0.1), (50, 200)
NAMES = ["wine", *CHOSEN_ON, *REPORTED]
ALONE = ["uniform", "trusted only"]


def read(name: str, folder: Path | None) -> tuple[Any, np.ndarray]:
    """All rows of a table, and the labels as codes; classes of fewer than 15 rows are left out."""
    if name == "wine":
        bunch: Any = load_wine()
        X, y = pd.DataFrame(bunch.data).add_prefix("x"), bunch.target
    else:
        X, y = load(name, folder)
    often = np.isin(y, np.flatnonzero(np.bincount(y) >= 15))
    return X[often], y[often]


def fit(name: str, m: int, rate: float, seed: int, folder: Path | None) -> dict[str, Any] | None:
    """One line: accuracies on the test rows, or None where the table has too few rows."""
    X, y = read(name, folder)
    order = np.random.default_rng(seed).permutation(len(y))
    test = order[: min(TEST, len(y) // 3)]
    trusted, train = np.split(order[len(test) :][: TRAIN + m], [m])
    if len(train) < m:
        return None
    given = datasets.flip_to_different(y[train], rate, seed=seed).labels if rate else y[train]
    test = test[np.isin(y[test], given)]
    rows = X.iloc[train].reset_index(drop=True), X.iloc[trusted].reset_index(drop=True)
    model = ReweightedClassifier(random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (UserWarning, ConvergenceWarning))  # of rare classes
        model.fit(rows[0], given, X_trusted=rows[1], y_trusted=y[trusted])
        table = model.compare_baselines(X.iloc[test].reset_index(drop=True), y[test])
    line = {"table": name, "trusted": m, "rate": rate, "seed": seed, "rows": len(train)}
    return line | {"winner": model.winner_} | table["score"].to_dict()


def summary(lines: Any) -> dict[str, Any]:
    """Means over the seeds of each cell, and what all cells say together."""
    cell = ["table", "trusted", "rate"]
    means = lines.groupby(cell, sort=False)[["reweighted", *ALONE, "all rows + trusted"]].mean()
    change = means["reweighted"] - means[ALONE].max(axis=1)
    against = lines["reweighted"] - lines[["uniform", "trusted only"]].max(axis=1)
    error = against.groupby([lines[c] for c in cell], sort=False).sem()
    cells = [
        dict(zip(cell, key, strict=True))
        | {"change": float(change[key]), "standard_error": float(error[key])}
        | {"over_all_rows_and_trusted": float(row["reweighted"] - row["all rows + trusted"])}
        for key, row in means.iterrows()
    ]
    clean = change[change.index.get_level_values("rate") == 0.0]
    return {
        "settings": {"training_rows": TRAIN, "test_rows": TEST},
        "fits": len(lines),
        "seeds": int(lines["seed"].nunique()),
        "cells": cells,
        "within_0.01": int((change >= -0.01).sum()),
        "number_of_cells": len(cells),
        "mean_change": float(change.mean()),
        "worst": {"change": float(change.min()), "cell": list(map(str, change.idxmin()))},
        "right_labels": {
            "cells": len(clean),
            "mean_change": float(clean.mean()),
            "worst": float(clean.min()),
        },
    }


def arguments(
    name: str, what: str | None, seeds: int, names: Sequence[str] = NAMES
) -> tuple[Any, Path, list[Any]]:
    """(the options of a benchmark that goes table by table, where it keeps its fits, those it has)."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--tables", type=Path, help="folder with the .rda files")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--out", type=Path, default=Path("out", name))
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}.csv"
    return args, path, pd.read_csv(path).to_dict("records") if path.exists() else []


def main() -> None:
    args, path, done = arguments("harm", __doc__, SEEDS)
    only: list[str] = args.only
    known: set[Any] = {(d["table"], d["trusted"], d["rate"], d["seed"]) for d in done}
    for seed, name in itertools.product(range(args.seeds), only):
        for m, rate in itertools.product(TRUSTED, RATES):
            if (name, m, rate, seed) in known:
                continue
            try:
                line = fit(name, m, rate, seed, args.tables)
            except (FileNotFoundError, ModuleNotFoundError) as error:
                print(f"{name} is left out: {error}")
                break
            if line is not None:
                done.append(line)
        pd.DataFrame(done).to_csv(path, index=False)
    found = summary(pd.DataFrame(done))
    write(__file__, found)
    print({k: v for k, v in found.items() if k != "cells"})


if __name__ == "__main__":
    main()
