"""Several labels per row: which rows have a wrong label, and does the refit pay?

Two sets of the Mulan collection: emotions (593 pieces of music, 72 features, 6 labels) and yeast (2417
genes, 103 features, 14 labels). Per set, noise and seed, half of the rows are training rows; 100
(emotions) or 200 (yeast) are trusted, the rest is for testing. Noise: none, or each label of each row
is changed (given or taken away) with the probability 0.05.

Ranking: the areas under the ROC curve for right against wrong labels, and for rows without against
rows with a wrong label, by the lowest quality of a row's labels, by their mean and by their product;
and cleanlab's scores with out-of-fold probabilities of logistic regression per label (five folds),
which has the trusted rows beside each fold's training rows. Refit: the share of right labels on the
test rows, of logistic regression per label on `sample_weights`, and of a forest of all labels on
`sample_weight`, against uniform weights on all rows, on all rows + trusted, and on the trusted rows.

Needs `pip install cleanlab`, which is no dependency of this package, and in BILEVEL_DATA/multi-label
the files emotions.arff and yeast.arff of the repository tsoumakas/mulan.
"""

import argparse
import os
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import write
from scipy.io import arff
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold
from sklearn.preprocessing import MinMaxScaler

from bilevel.reweighting import learn_multilabel_weights

SETS = {"emotions": (6, 100), "yeast": (14, 200)}  # labels, trusted rows
NOISE = (0.0, 0.05)


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(features scaled to [0, 1], indicators), the labels being the last columns."""
    path = Path(os.environ["BILEVEL_DATA"]) / "multi-label" / f"{name}.arff"
    table = pd.DataFrame(arff.loadarff(path)[0])
    labels = SETS[name][0]
    X = table.iloc[:, :-labels].to_numpy(float)
    return MinMaxScaler().fit_transform(X), table.iloc[:, -labels:].astype(int).to_numpy()


def logistic(X: np.ndarray, Y: np.ndarray, weights: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Probabilities on the test rows, of one model per label."""
    p = np.zeros((len(test), Y.shape[1]))
    for j in range(Y.shape[1]):
        rows = np.flatnonzero(weights[:, j])
        y = Y[rows, j]
        if np.ptp(y) == 0:
            p[:, j] = y[0]
            continue
        model = LogisticRegression(max_iter=1000).fit(X[rows], y, sample_weight=weights[rows, j])
        p[:, j] = model.predict_proba(test)[:, 1]
    return p


def forest(X: np.ndarray, Y: np.ndarray, weights: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions on the test rows, of one model of all labels."""
    rows = np.flatnonzero(weights)
    model: Any = ExtraTreesClassifier(100, min_samples_leaf=3, random_state=0)
    return model.fit(X[rows], Y[rows], sample_weight=weights[rows]).predict(test)


def cell(name: str, noise: float, seed: int) -> dict[str, Any]:
    """One seed."""
    X, Y = read(name)
    labels, m = SETS[name]
    rng = np.random.default_rng(seed)
    train, trusted, test = np.split(rng.permutation(len(X)), [len(X) // 2, len(X) // 2 + m])
    wrong = rng.random((len(train), labels)) < noise
    noisy = np.where(wrong, 1 - Y[train], Y[train])
    start = time.process_time()
    found = learn_multilabel_weights(X[train], noisy, X[trusted], Y[trusted], seed=seed)
    line: dict[str, Any] = {"data": name, "noise": noise, "seed": seed}
    line["seconds"] = time.process_time() - start
    line["flagged"] = int(np.sum(~np.asarray(found.keep)))
    if noise:
        p = np.zeros((len(train), labels))
        for fit, out in KFold(5, shuffle=True, random_state=seed).split(train):
            rows = np.concatenate([X[train[fit]], X[trusted]])
            given = np.concatenate([noisy[fit], Y[trusted]])
            p[out] = logistic(rows, given, np.ones(given.shape), X[train[out]])
        module = import_module("cleanlab.multilabel_classification")
        listed = [np.flatnonzero(row).tolist() for row in noisy]
        quality, row_wrong = np.asarray(found.label_quality), wrong.any(axis=1)
        fits = np.where(noisy == 1, p, 1 - p)
        areas = {
            "labels": roc_auc_score(~wrong.ravel(), quality.ravel()),
            "labels, cross-fitted": roc_auc_score(~wrong.ravel(), fits.ravel()),
            "rows, lowest": roc_auc_score(~row_wrong, quality.min(axis=1)),
            "rows, mean": roc_auc_score(~row_wrong, quality.mean(axis=1)),
            "rows, product": roc_auc_score(~row_wrong, np.log(quality).sum(axis=1)),
            "rows, cleanlab": roc_auc_score(~row_wrong, module.get_label_quality_scores(listed, p)),
        }
        line |= {key: float(value) for key, value in areas.items()}
    both = np.concatenate([X[train], X[trusted]]), np.concatenate([noisy, Y[trusted]])
    of_train = np.repeat([1.0, 0.0], [len(train), m])
    plain = {"uniform": of_train, "all + trusted": np.ones(len(of_train)), "trusted": 1 - of_train}
    for kind, weights in plain.items():
        wide = np.repeat(weights[:, None], labels, axis=1)
        line[f"per label, {kind}"] = float(
            np.mean((logistic(*both, wide, X[test]) > 0.5) == Y[test])
        )
        line[f"forest, {kind}"] = float(np.mean(forest(*both, weights, X[test]) == Y[test]))
    refit = logistic(*both, found.sample_weights(m), X[test]) > 0.5
    line["per label, reweighted"] = float(np.mean(refit == Y[test]))
    line["forest, reweighted"] = float(
        np.mean(forest(*both, found.sample_weight(m), X[test]) == Y[test])
    )
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    seeds = range(1 if arguments.quick else arguments.seeds)
    names = ["emotions"] if arguments.quick else list(SETS)
    lines = [cell(name, noise, seed) for name in names for noise in NOISE for seed in seeds]
    mean: Any = pd.DataFrame(lines).groupby(["data", "noise"], sort=False).mean(numeric_only=True)
    print(mean.drop(columns="seed").T.round(4).to_string())
    if not arguments.quick:
        write(__file__, {"settings": {"trusted": SETS}, "seeds": list(seeds), "lines": lines})


if __name__ == "__main__":
    main()
