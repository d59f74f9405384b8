"""Label errors that people made: does the ranking hold, and does the refit pay?

Four sets of CIFAR-10 images whose labels people gave (Wei et al. 2022; one set has synthetic errors
for contrast), with the out-of-fold probabilities of a convolutional network that was trained on those
labels (Kuan and Mueller 2022). Features are the logarithms of the probabilities. Per set, number of
trusted rows and seed: 5000 training rows, m trusted rows and 8000 test rows of a seeded permutation.

Ranking: the area under the ROC curve with which the label quality, and each of the rankings that a
user has without it, tell wrong labels from right ones. Refit: the test accuracy of logistic
regression on the weights and on each baseline. "With probabilities" passes the probabilities as
`pred_probs` too.

Needs the sets in BILEVEL_DATA/human-noise. Results: `results/real_errors.json`.
"""

import argparse
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import write
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from bilevel.reweighting import compare_baselines, learn_weights

SETS = ("worst-resnet18", "aggregate-resnet50d", "synthetic-resnet18", "worst-twins")
TRUSTED = (50, 100, 200, 500, 2000)
TRAIN, TEST, CLASSES = 5000, 8000, 10
RIVALS = ("given", "cross-fitted", "trusted model")


def cell(name: str, m: int, seed: int) -> dict[str, Any]:
    """One seed: areas under the curve, and accuracies."""
    with np.load(Path(os.environ["BILEVEL_DATA"]) / "human-noise" / f"{name}.npz") as saved:
        X, given, true = (saved[k] for k in ("log_probs", "given_label", "true_label"))
    X, given, true = X.astype(float), given.astype(int), true.astype(int)
    order = np.random.default_rng(seed).permutation(len(given))
    train, verified, test = order[:TRAIN], order[TRAIN : TRAIN + m], order[-TEST:]
    rows = X[train], given[train], X[verified], true[verified]
    right = given[train] == true[train]
    probabilities = np.exp(log_softmax(X, axis=1))
    final = make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=500))

    def area(score: np.ndarray) -> float:
        return float(roc_auc_score(right, score))

    def of_label(p: np.ndarray) -> np.ndarray:
        return p[np.arange(TRAIN), given[train]]

    line: dict[str, Any] = {"data": name, "trusted": m, "seed": seed}
    line["given"] = area(of_label(probabilities[train]))
    both = np.concatenate([rows[0], rows[2]]), np.concatenate([rows[1], rows[3]])
    p: Any = cross_val_predict(final, *both, method="predict_proba")
    line["cross-fitted"] = area(of_label(p[:TRAIN]))
    trusted = final.fit(*rows[2:])
    p = np.zeros((TRAIN, CLASSES))
    p[:, trusted.classes_] = trusted.predict_proba(rows[0])
    line["trusted model"] = area(of_label(p))
    start = time.process_time()
    found = learn_weights(*rows, task="classification", seed=seed)
    line |= {"ours": area(found.label_quality), "cpu": time.process_time() - start}
    shown = learn_weights(
        *rows,
        task="classification",
        seed=seed,
        pred_probs=probabilities[train],
        pred_probs_trusted=probabilities[verified],
    )
    line["ours, with probabilities"] = area(shown.label_quality)
    line["flagged precision"] = float(np.mean(~right[~found.keep]))
    line["flagged recall"] = float(np.mean(~found.keep[~right]))
    for key, result in (("accuracy", found), ("accuracy, with probabilities", shown)):
        table: Any = compare_baselines(
            final,
            *rows,
            result.scale * np.asarray(result.weights),
            result.scale * result.trusted_weight,
            X[test],
            true[test],
        )["score"]
        line[key] = table["reweighted"]
        line |= {name: table[name] for name in table.index if name != "reweighted"}
    line["winner"] = found.winner
    return line


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds, and how far ours is above the best other (in the mean over the seeds)."""
    baselines = ["uniform", "all rows + trusted", "trusted only", "filter"]
    means: Any = (
        runs.drop(columns=["seed", "winner"]).groupby(["data", "trusted"], sort=False).mean()
    )
    best = means[list(RIVALS)].max(axis=1)
    return means.assign(
        **{
            "ranking gain": means["ours"] - best,
            "ranking gain, with probabilities": means["ours, with probabilities"] - best,
            "refit gain": means["accuracy"] - means[baselines].max(axis=1),
            "refit gain, with probabilities": means["accuracy, with probabilities"]
            - means[baselines].max(axis=1),
        }
    ).reset_index()


def main() -> None:
    """Run all cells, print the table and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trusted", type=int, nargs="*", default=TRUSTED)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    runs = []
    for name in SETS:
        for m in options.trusted:
            runs += [cell(name, m, seed) for seed in range(options.seeds)]
            last = summary(pd.DataFrame(runs)).iloc[-1]
            print(
                f"{name} {m}: ours {last['ours']:.4f} ({last['ranking gain']:+.4f}), with "
                f"probabilities {last['ranking gain, with probabilities']:+.4f}; refit "
                f"{last['accuracy']:.4f} ({last['refit gain']:+.4f}, with probabilities "
                f"{last['refit gain, with probabilities']:+.4f}); flagged "
                f"{last['flagged precision']:.2f}/{last['flagged recall']:.2f}, "
                f"{last['cpu']:.1f} CPU s {[r['winner'] for r in runs[-options.seeds :]]}",
                flush=True,
            )
    write(
        __file__,
        {
            "settings": {"rows": TRAIN, "test_rows": TEST},
            "seeds": list(range(options.seeds)),
            "cells": summary(pd.DataFrame(runs)).to_dict(orient="records"),
        },
    )


if __name__ == "__main__":
    main()
