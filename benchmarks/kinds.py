"""The kinds of suspect rows on label errors that people made: do they mean what they say?

Three sets of CIFAR-10 images whose labels people gave (see `real_errors.py`): 5000 training rows and
500 trusted rows of a seeded permutation, and the report's judgement of each suspect row, once with the
labels that the trusted rows had before they were verified, and once without. Per kind: the rows, the
share whose label is wrong, and the share whose suggested label is the true one. The claims, made
before they were measured: of "wrong label" two thirds or more are wrong, of "ambiguous" a third to two
thirds, of the others at most a third.

Needs the sets in BILEVEL_DATA/human-noise. Results: `results/kinds.json`.
"""

import argparse
import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import write
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from bilevel.reweighting import learn_weights
from bilevel.reweighting._report.refits import Rows
from bilevel.reweighting._report.suspects import DOUBT, KINDS, judge_suspects

SETS = ("worst-resnet18", "aggregate-resnet50d", "worst-twins")
TRAIN, TRUSTED, SEEDS = 5000, 500, 2


def cell(name: str, seed: int, pairs: bool) -> list[dict[str, Any]]:
    """One line per kind; with `pairs` the former labels of the trusted rows are given."""
    with np.load(Path(os.environ["BILEVEL_DATA"]) / "human-noise" / f"{name}.npz") as saved:
        X, given, true = (saved[k] for k in ("log_probs", "given_label", "true_label"))
    X, given, true = X.astype(float), given.astype(int), true.astype(int)
    order = np.random.default_rng(seed).permutation(len(given))
    train, verified = order[:TRAIN], order[TRAIN : TRAIN + TRUSTED]
    result = learn_weights(
        X[train],
        given[train],
        X[verified],
        true[verified],
        task="classification",
        seed=seed,
        given_labels_trusted=given[verified] if pairs else None,
    )
    final = make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=500))
    rows = Rows(final, X[train], given[train], X[verified], true[verified], result)
    found = judge_suspects(rows, seed)
    assert result.wrong is not None
    suspect = ~np.asarray(result.keep)[found.rows] | (np.asarray(result.wrong)[found.rows] >= DOUBT)
    truth, said = true[train][found.rows], found.suggested.astype(int)
    wrong = given[train][found.rows] != truth
    assert found.kind is not None
    lines = []
    for kind in KINDS:
        inside = (found.kind == kind) & suspect
        lines.append(
            {
                "data": name,
                "seed": seed,
                "pairs": pairs,
                "kind": kind,
                "rows": int(inside.sum()),
                "wrong": int(wrong[inside].sum()),
                "suggestion right": int((said == truth)[inside].sum()),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for name, pairs in itertools.product(SETS, (True, False)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", (UserWarning, ConvergenceWarning))
                lines += cell(name, seed, pairs)
            print(pd.DataFrame(lines[-len(KINDS) :]).to_string(index=False), flush=True)
    table = pd.DataFrame(lines)
    sums: Any = table.groupby(["pairs", "data", "kind"], sort=False)[
        ["rows", "wrong", "suggestion right"]
    ].sum()
    cells = [
        {"pairs": bool(pairs), "data": data, "kind": kind}
        | {"rows": int(n), "wrong": int(wrong), "right": int(right)}
        for (pairs, data, kind), n, wrong, right in sums.itertuples()
    ]
    settings = {"training rows": TRAIN, "trusted rows": TRUSTED}
    write(__file__, {"settings": settings, "seeds": list(range(args.seeds)), "cells": cells})


if __name__ == "__main__":
    main()
