"""Where does weighting pay? The default against its baselines, over data, trusted rows and noise.

For each cell and split: the accuracy on a hold-out of logistic regression refitted on the weights,
minus the best of the baselines *in hindsight* (chosen on that hold-out, a split at a time); the same
for the rows whose label is right (the oracle's room); and how well wrong labels are ranked (AUROC), by
the label quality, by the weights, by a model of the trusted rows, and by cross-fitted
probabilities of all rows (what cleanlab ranks by). The noise: labels flipped to a different class
("symmetric"), to the next class ("pair"), or by the features ("instance"). "shift" is a generated
problem with right labels and trusted rows from another distribution.

Needs MNIST and Fashion-MNIST in BILEVEL_DATA (without them only the others run); 50 principal
components of them are used. `--out` gets `reweighting.csv`, a line a split, which is gone on with when
the script is started again, and the map `reweighting.png`.
"""

import argparse
import functools
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.preprocessing import MinMaxScaler

from bilevel import datasets
from bilevel.reweighting import compare_baselines, cross_validated_weights

SIZES = {
    "wine": [(60, 50)],
    "breast cancer": [(300, 50), (300, 100), (250, 200)],
    "digits": [(1000, 50), (1000, 100), (1000, 200), (1000, 500)],
    "MNIST": [(3000, 50), (3000, 100), (3000, 200), (3000, 500), (3000, 1000), (3000, 5000)],
    "Fashion": [(3000, 50), (3000, 100), (3000, 200), (3000, 500), (3000, 1000), (3000, 5000)],
    "shift": [(2000, 50), (2000, 100), (2000, 200), (2000, 500)],
}
NOISE = [("symmetric", rate) for rate in (0.0, 0.2, 0.4, 0.6, 0.8)]
NOISE += [("pair", 0.2), ("pair", 0.4), ("instance", 0.2), ("instance", 0.4)]


@functools.cache
def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a data set, and their labels."""
    small = {"digits": load_digits, "breast cancer": load_breast_cancer, "wine": load_wine}
    if name in small:
        X, y = small[name](return_X_y=True)
        return np.asarray(X, float), np.asarray(y)
    images, labels = {"MNIST": datasets.mnist, "Fashion": datasets.fashion_mnist}[name]("train")
    rows = np.random.default_rng(0).permutation(len(labels))[:12_000]
    X = images[rows].reshape(len(rows), -1) / 255
    return PCA(50, random_state=0).fit_transform(X), labels[rows].astype(int)


def generate(n: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of which the first n are spread widely and the others lie where the rule is another one."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + m + 2000, 10))
    X[n:, 0] += 1.5
    y = np.where(X[:, 0] > 1, X[:, 1] + X[:, 2] > 0, X[:, 1] - X[:, 2] > 0).astype(int)
    y = np.where(rng.random(len(y)) < 0.1, 1 - y, y)
    return X, y


def corrupt(kind: str, rate: float, X: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """The training labels as they are given."""
    if not rate:
        return y
    if kind == "instance":
        return datasets.flip_by_features(X, y, rate, seed=seed).labels
    flip = {"symmetric": datasets.flip_to_different, "pair": datasets.flip_to_next}[kind]
    return flip(y, rate, seed=seed).labels


def cell(name: str, n: int, m: int, kind: str, rate: float, seed: int) -> dict[str, Any]:
    """One split: scores of all, and what was chosen."""
    if name == "shift":
        X, y = generate(n, m, seed)
        order = np.arange(len(y))
    else:
        X, y = load(name)
        order = np.random.default_rng(seed).permutation(len(y))
    train, verified, holdout = np.split(order, [n, n + m])
    noisy = corrupt(kind, rate, X[train], y[train], seed)
    wrong = noisy != y[train]
    X = MinMaxScaler().fit(X[train]).transform(X)
    start = time.process_time()
    found = cross_validated_weights(X[train], noisy, X[verified], y[verified], seed=seed)
    cpu = time.process_time() - start
    final = LogisticRegression(max_iter=500)
    rows = X[train], noisy, X[verified], y[verified]

    def compare(weights: np.ndarray, trusted_weight: float) -> dict[str, float]:
        held = X[holdout], y[holdout]
        return compare_baselines(final, *rows, weights, trusted_weight, *held)["score"].to_dict()

    scores = compare(found.scale * found.weights, found.scale * found.trusted_weight)
    ours = scores.pop("reweighted")
    right = (~wrong).astype(float)
    weights = np.r_[right, np.ones(m)]
    oracle = final.fit(
        np.r_[X[train], X[verified]], np.r_[noisy, y[verified]], sample_weight=weights
    ).score(X[holdout], y[holdout])
    areas = {}
    if wrong.any():
        trusted = final.fit(*rows[2:])
        known = np.searchsorted(trusted.classes_, noisy)
        known = np.minimum(known, len(trusted.classes_) - 1)
        by_trusted = trusted.predict_proba(X[train])[np.arange(n), known]
        both = np.r_[X[train], X[verified]], np.r_[noisy, y[verified]]
        p: Any = cross_val_predict(final, *both, method="predict_proba")
        codes = np.searchsorted(np.unique(both[1]), noisy)
        areas = {
            "auroc": roc_auc_score(wrong, -found.label_quality),
            "auroc weights": roc_auc_score(wrong, -found.weights),
            "auroc trusted": roc_auc_score(wrong, -by_trusted),
            "auroc cross-fitted": roc_auc_score(wrong, -p[np.arange(n), codes]),
        }
    best = max(scores.values())
    line = {"data": name, "rows": n, "trusted": m, "noise": kind, "rate": rate, "seed": seed}
    line |= {"winner": found.winner, "ours": ours, "gain": ours - best, "room": oracle - best}
    return line | {"cpu": cpu, "shifted": found.shifted} | areas | scores


def draw(table: Any, path: Path) -> None:
    """The map: gain by data and noise, with the oracle's room in brackets."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    keys = ["data", "rows", "trusted"]
    table = table.assign(
        noise=table["noise"] + " " + (100 * table["rate"]).astype(int).astype(str) + "%"
    )
    gain, room = (
        100 * table.pivot_table(value, keys, "noise", sort=False) for value in ("gain", "room")
    )
    figure, axis = plt.subplots(figsize=(11, 0.38 * len(gain) + 1.6), layout="constrained")
    axis.imshow(gain, cmap="RdYlGn", vmin=-13, vmax=13, aspect="auto")
    for i, j in np.ndindex(gain.shape):
        if np.isfinite(gain.iloc[i, j]):
            text = f"{gain.iloc[i, j]:+.1f} ({room.iloc[i, j]:+.1f})"
            axis.text(j, i, text, ha="center", va="center", fontsize=8)
    axis.set_xticks(range(gain.shape[1]), gain.columns, fontsize=8)
    axis.set_yticks(range(len(gain)), [f"{d}, {n} rows, {m} trusted" for d, n, m in gain.index])
    axis.set_title("Accuracy, points over the best baseline (room of the clean rows)", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summarise(table: Any) -> None:
    """The targets: how often close to the best baseline, how much better in the middle."""
    keys = ["data", "rows", "trusted", "noise", "rate"]
    cells = table.groupby(keys, sort=False)[["gain", "room"]].mean().reset_index()
    many = cells[cells["trusted"] >= 100]
    close = many["gain"] >= -0.01
    print(f"{close.sum()} of {len(many)} cells with 100 trusted rows or more are within .01")
    print(many[~close].to_string(index=False) if not close.all() else "")
    middle = many[(many["trusted"] <= 1000) & many["rate"].isin([0.4, 0.6])]
    print(f"mean gain at 40 and 60 % noise, 100 to 1000 trusted: {middle['gain'].mean():+.4f}")
    against = table["ours"] - table["uniform"]
    for name, which in [("no noise", table["rate"] == 0), ("50 trusted", table["trusted"] == 50)]:
        mean = against[which].groupby([table[k] for k in keys]).mean()
        print(f"{name}, over uniform: mean {mean.mean():+.4f}, worst cell {mean.min():+.4f}")
    print(table[[c for c in table if c.startswith("auroc")]].mean().round(4).to_string())
    print(f"CPU seconds a call: {table['cpu'].median():.1f} (median), {table['cpu'].max():.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", nargs="*", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", ConvergenceWarning)
    path = options.out / "reweighting.csv"
    lines: list[Any] = pd.read_csv(path).to_dict("records") if path.exists() else []
    keys = ("data", "rows", "trusted", "noise", "rate", "seed")
    done = {tuple(line[k] for k in keys) for line in lines}
    for name in options.data:
        for n, m in SIZES[name]:
            for kind, rate in NOISE:
                two_classes = name in ("breast cancer", "shift")
                if two_classes and (rate > 0.4 or kind == "pair"):  # the labels turn over
                    continue
                for seed in range(options.seeds):
                    if (name, n, m, kind, rate, seed) in done:
                        continue
                    try:
                        lines.append(cell(name, n, m, kind, rate, seed))
                    except FileNotFoundError as error:
                        print(f"{name} left out: {error}")
                        break
                    pd.DataFrame(lines).to_csv(path, index=False)
                print(name, n, m, kind, rate, flush=True)
    table: Any = pd.DataFrame(lines)
    summarise(table)
    draw(table, options.out / "reweighting.png")


if __name__ == "__main__":
    main()
