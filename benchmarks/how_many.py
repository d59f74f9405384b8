"""How many labels are wrong: do the 95 % intervals hold the truth 95 times out of 100?

Three tables of scikit-learn. Per draw, anew: which rows are training and which trusted rows, and which
training labels are replaced by another class, each with a probability of 5 %. The trusted rows' labels
before they were verified are drawn in the same way, and used only in the lines "with pairs". Every
label goes wrong by itself, as in a sample of verified rows: with a fixed number of wrong pairs, the
pairs would vary less than a sample does, and the intervals would seem too wide. The label models are
the linear ones, of all rows and of the trusted rows, because they are cheap; the pool, the calibration
and the intervals are those of `learn_weights`.

Per table and kind of evidence: how often the interval of the noise rate, of the precision and of the
recall of the flagged list holds the truth, its mean width, and the mean F1 of the list, beside that of
the rows that are more likely wrong than right.

Results: `results/how_many.json`.
"""

import argparse
import warnings
from typing import Any

import numpy as np
import pandas as pd
from _measure import write
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import MinMaxScaler

from bilevel.reweighting._inputs.row_facts import RowFacts
from bilevel.reweighting._weights.folds import FOLDS, make_folds
from bilevel.reweighting._weights.label_models import (
    cross_fitted,
    linear_label_model,
    trusted_only,
)
from bilevel.reweighting._weights.noise import Estimate, how_many
from bilevel.reweighting._weights.pool import ClassPool

RATE = 0.05
TABLES = {
    "digits": (load_digits, 700, 150),
    "breast cancer": (load_breast_cancer, 350, 100),
    "wine": (load_wine, 110, 50),
}


def go_wrong(y: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Each label is another class with probability `RATE`, independently of the others."""
    other = (y + rng.integers(1, classes, len(y))) % classes
    return np.where(rng.random(len(y)) < RATE, other, y)


def draw(name: str, seed: int) -> list[dict[str, Any]]:
    """One line without pairs, one with them."""
    load, n, m = TABLES[name]
    X, y = load(return_X_y=True)
    X = MinMaxScaler().fit_transform(X)
    train, trusted = np.split(np.random.default_rng(seed).permutation(len(y))[: n + m], [n])
    rng = np.random.default_rng([seed, 1])
    given, before = (go_wrong(y[rows], int(y.max()) + 1, rng) for rows in (train, trusted))
    wrong = given != y[train]
    facts = RowFacts.plain(X[train]), RowFacts.plain(X[trusted])
    folds = make_folds(given, y[trusted], seed, facts)
    model = linear_label_model(folds, X[train], X[trusted])
    members = [cross_fitted(model), trusted_only(model)]
    of_train = [member.train[FOLDS] for member in members]
    of_trusted = [member.trusted[FOLDS] for member in members]
    lines = []
    for pairs in (None, before):
        rows = of_trusted, y[trusted], of_train, given, pairs
        kind: Any = folds.kind
        pool = ClassPool.fit(kind, *rows)
        p, flagged, noise = how_many(
            pool.evidence(*rows, fold=folds.fold, part=folds.part), given, seed=seed
        )
        line = {"data": name, "pairs": pairs is not None, "seed": seed}
        hit = wrong[flagged].sum()
        line["F1"] = 2 * hit / max(flagged.sum() + wrong.sum(), 1)
        half = p > 0.5
        line["F1 at 1/2"] = 2 * wrong[half].sum() / max(half.sum() + wrong.sum(), 1)
        line["flagged"] = int(flagged.sum())
        line |= _held("rate", noise.rate, wrong.mean())
        line |= _held("recall", noise.recall, hit / max(wrong.sum(), 1))
        if noise.precision is not None:
            line |= _held("precision", noise.precision, hit / flagged.sum())
        lines.append(line)
    return lines


def _held(name: str, found: Estimate, truth: float) -> dict[str, float]:
    return {
        f"{name} covered": float(found.low - 1e-9 <= truth <= found.high + 1e-9),
        f"{name} width": found.high - found.low,
        f"{name} error": found.value - truth,
    }


def main() -> None:
    """Run all draws, print the table and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    lines = []
    for name in TABLES:
        for seed in range(options.draws):
            lines += draw(name, seed)
        found = pd.DataFrame(lines).drop(columns="seed")
        so_far: Any = found.groupby(["data", "pairs"], sort=False).mean()
        print(so_far.round(3).T, flush=True)
    means: Any = (
        pd.DataFrame(lines).drop(columns="seed").groupby(["data", "pairs"], sort=False).mean()
    )
    sizes = {name: {"rows": n, "trusted": m} for name, (_, n, m) in TABLES.items()}
    write(
        __file__,
        {
            "settings": {"rate": RATE, "draws": options.draws, "tables": sizes},
            "seeds": list(range(options.draws)),
            "cells": means.reset_index().to_dict(orient="records"),
        },
        full=options.draws >= 200,
    )


if __name__ == "__main__":
    main()
