"""Where does weighting pay? `cross_validated_weights` against its four baselines, over data and noise.

Accuracy on a hold-out of logistic regression refitted on the weights, minus the best of the four
baselines *in hindsight* (chosen on that hold-out, a split at a time), and the same for the rows
whose label is right (the oracle's room). Labels are flipped to a different class. Needs MNIST and
Fashion-MNIST in BILEVEL_DATA; 50 principal components of them are used.

Writes `cross_validated.csv` and the map `cross_validated.png` to the folder given by `--out`.
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
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler

from bilevel.datasets import fashion_mnist, flip_to_different, mnist
from bilevel.reweighting import compare_baselines, cross_validated_weights

GRID = [
    ("digits", 1000, 100),
    ("digits", 1000, 200),
    ("digits", 1000, 500),
    ("breast cancer", 300, 100),
    ("MNIST", 3000, 100),
    ("MNIST", 3000, 500),
    ("MNIST", 3000, 1000),
    ("Fashion", 3000, 200),
    ("Fashion", 3000, 1000),
]
RATES = (0.0, 0.2, 0.4, 0.6, 0.8)


@functools.cache
def load(name: str) -> Any:
    """All rows of a data set, and their labels."""
    if name == "digits":
        return load_digits(return_X_y=True)
    if name == "breast cancer":
        return load_breast_cancer(return_X_y=True)
    images, labels = {"MNIST": mnist, "Fashion": fashion_mnist}[name]("train")
    rows = np.random.default_rng(0).permutation(len(labels))[:10_000]
    X = images[rows].reshape(len(rows), -1) / 255
    return PCA(50, random_state=0).fit_transform(X), labels[rows].astype(int)


def cell(name: str, n: int, m: int, rate: float, seed: int) -> dict[str, Any]:
    """One split: scores of all, and what was chosen."""
    X, y = load(name)
    order = np.random.default_rng(seed).permutation(len(y))
    train, verified, holdout = np.split(order, [n, n + m])
    noisy = flip_to_different(y[train], rate, seed=seed)[0] if rate else y[train]
    wrong = noisy != y[train]
    X = MinMaxScaler().fit(X[train]).transform(X)
    start = time.process_time()
    found = cross_validated_weights(X[train], noisy, X[verified], y[verified], seed=seed)
    cpu = time.process_time() - start
    final = LogisticRegression(max_iter=1000)

    def compare(weights: np.ndarray, trusted_weight: float) -> dict[str, float]:
        rows = (X[train], noisy, X[verified], y[verified])
        held = (X[holdout], y[holdout])
        return compare_baselines(final, *rows, weights, trusted_weight, *held)["score"].to_dict()

    if found.winner == "trusted only":
        scores = compare(np.ones(n), 1.0)
        ours = scores["trusted only"]
    else:
        scores = compare(found.scale * found.weights, found.scale * found.trusted_weight)
        ours = scores["reweighted"]
    oracle = compare(1.0 * ~wrong, 1.0)["reweighted"]
    scores.pop("reweighted")
    auroc = roc_auc_score(wrong, -found.weights) if rate and found.weights.any() else np.nan
    return {
        "data": name,
        "rows": n,
        "trusted": m,
        "noise": rate,
        "seed": seed,
        "winner": found.winner,
        "ours": ours,
        "gain": ours - max(scores.values()),
        "room": oracle - max(scores.values()),
        "auroc": auroc,
        "cpu": cpu,
        **scores,
    }


def draw(table: pd.DataFrame, path: Path) -> None:
    """The map: gain by data and noise, with the oracle's room in brackets."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    keys = ["data", "rows", "trusted"]
    gain, room = (
        100 * table.pivot_table(value, keys, "noise", sort=False) for value in ("gain", "room")
    )
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(gain) + 1.5), layout="constrained")
    reach = 5.0
    axis.imshow(gain, cmap="RdYlGn", vmin=-reach, vmax=reach, aspect="auto")
    for i, j in np.ndindex(gain.shape):
        if np.isfinite(gain.iloc[i, j]):
            text = f"{gain.iloc[i, j]:+.1f} ({room.iloc[i, j]:+.1f})"
            axis.text(j, i, text, ha="center", va="center", fontsize=9)
    axis.set_xticks(range(gain.shape[1]), [f"{rate:.0%}" for rate in gain.columns])
    axis.set_yticks(range(len(gain)), [f"{d}, {n} rows, {m} trusted" for d, n, m in gain.index])
    axis.set(xlabel="wrong labels")
    axis.set_title(
        "Points over the best baseline (room of the clean rows)",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for name, n, m in GRID:
        for rate in RATES:
            if name == "breast cancer" and rate > 0.4:  # with two classes the labels turn over
                continue
            rows += [cell(name, n, m, rate, seed) for seed in range(options.seeds)]
            done = pd.DataFrame(rows[-options.seeds :])
            print(
                f"{name}, {n}, {m}, {rate:.0%}: {done['gain'].mean():+.4f} "
                f"(room {done['room'].mean():+.4f}), {done['cpu'].mean():.1f} CPU s, "
                f"{done['winner'].value_counts().to_dict()}",
                flush=True,
            )
        pd.DataFrame(rows).to_csv(options.out / "cross_validated.csv", index=False)
    table = pd.DataFrame(rows)
    draw(table, options.out / "cross_validated.png")
    cells = table.pivot_table("gain", ["data", "rows", "trusted"], "noise").sort_index(axis=1)
    gains = cells.to_numpy()[~cells.isna().to_numpy()]
    clean = table[table["noise"] == 0]
    print(f"cells within .01 of the best baseline in hindsight: {np.mean(gains >= -0.01):.0%}")
    print(f"mean gain over cells with 40 or 60 % noise: {np.nanmean(cells[[0.4, 0.6]]):+.4f}")
    print(f"clean labels, over uniform: {np.mean(clean['ours'] - clean['uniform']):+.4f}")


if __name__ == "__main__":
    main()
