"""Where does weighting pay? The default against its baselines, over data, trusted rows and noise.

For each cell and split: the accuracy on a hold-out of logistic regression refitted on the weights,
minus the best of the baselines *in hindsight* (chosen on that hold-out, for each split); the same for
the rows whose label is right (the room that an oracle has); and how well wrong labels are ranked
(AUROC), by the label quality, by the weights, by a model of the trusted rows, and by cross-fitted
probabilities of all rows (by which cleanlab ranks). The noise: labels flipped to a different class
("symmetric"), to the next class ("pair"), or by the features ("instance"). "shift" is a generated
problem with right labels and trusted rows from another distribution.

Needs MNIST and Fashion-MNIST in BILEVEL_DATA (without them only the others run); 50 principal
components of them are used. `--out` gets `reweighting.csv`, one line per split; a run that is started
again continues it. The means of each cell go to `results/reweighting.json`, the map to
docs/img/reweighting.png.
"""

import argparse
import functools
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import IMAGES, panels, save, write
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


CELL = ["data", "rows", "trusted", "noise", "rate"]


def draw(cells: list[dict[str, Any]]) -> None:
    """The map: gain by data and noise in the order of the grid, with the room of the oracle."""
    found = {
        tuple(cell[k] for k in CELL): (100 * cell["gain"], 100 * cell["room"]) for cell in cells
    }
    rows = [(name, n, m) for name in SIZES for n, m in SIZES[name]]
    rows = [row for row in rows if any(key[:3] == row for key in found)]
    kinds = {"symmetric": "", "pair": "pair\n", "instance": "by features\n"}
    heads = [f"{kinds[kind]}{100 * rate:.0f} %" if rate else "none" for kind, rate in NOISE]
    gain = np.array([[found.get((*r, *k), (np.nan,))[0] for k in NOISE] for r in rows])
    figure, axis = panels(1, 1, (11, 0.38 * len(rows) + 1.6))
    axis.imshow(gain, cmap="PuOr_r", vmin=-15, vmax=15, aspect="auto")  # for all kinds of eyes
    for i, j in np.argwhere(np.isfinite(gain)):
        text = "{:+.1f} ({:+.1f})".format(*found[*rows[i], *NOISE[j]])
        colour = "white" if abs(gain[i, j]) > 10 else "black"
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(heads)), heads, fontsize=8)
    axis.set_yticks(range(len(rows)), [f"{name}, {n} rows, {m} trusted" for name, n, m in rows])
    axis.set_title("Accuracy, points over the best baseline (room of the clean rows)", fontsize=10)
    save(figure, IMAGES / "reweighting.png")


def summary(table: Any) -> dict[str, Any]:
    """The means over the seeds of each cell, and what all cells together say."""
    means = table.groupby(CELL, sort=False)[["gain", "room"]].agg(["mean", "sem"])
    cells = [
        {
            **dict(zip(CELL, key, strict=True)),
            "gain": row["gain", "mean"],
            "room": row["room", "mean"],
            "standard_error": row["gain", "sem"] if np.isfinite(row["gain", "sem"]) else None,
        }
        for key, row in means.iterrows()
    ]
    found: Any = pd.DataFrame(cells)
    many = found[found["trusted"] >= 100]
    middle = many[(many["trusted"] <= 1000) & many["rate"].isin([0.4, 0.6])]
    against = table.assign(over=table["ours"] - table["uniform"])
    over_all_rows = {}
    for name, which in (("no noise", table["rate"] == 0), ("50 trusted", table["trusted"] == 50)):
        over = against[which].groupby(CELL)["over"].mean()
        if len(over):
            over_all_rows[name] = {"cells": len(over), "mean": over.mean(), "worst": over.min()}
    return {
        "runs": len(table),
        "cells": cells,
        "possible_cells": sum(1 for _ in grid(list(SIZES))),
        "possible_cells_of": {name: sum(1 for _ in grid([name])) for name in SIZES},
        "at_least_100_trusted": {
            "cells": len(many),
            "within_0.01_of_the_best_baseline": int((many["gain"] >= -0.01).sum()),
            "worst_gain": many["gain"].min() if len(many) else None,
        },
        "noise_40_or_60_trusted_100_to_1000": {
            "cells": len(middle),
            "mean_gain": middle["gain"].mean() if len(middle) else None,
            "mean_room": middle["room"].mean() if len(middle) else None,
        },
        "over_all_rows": over_all_rows,
        "auroc": {
            name: table.get(column, pd.Series(dtype=float)).mean()
            for name, column in RANKED_BY.items()
        },
        "cpu_seconds_per_call": {"median": table["cpu"].median(), "largest": table["cpu"].max()},
    }


RANKED_BY = {
    "label quality": "auroc",
    "weights": "auroc weights",
    "cross-fitted probabilities of all rows": "auroc cross-fitted",
    "probabilities of a model of the trusted rows": "auroc trusted",
}


def grid(names: list[str]) -> Iterator[tuple[str, int, int, str, float]]:
    """The cells; with two classes, labels that are mostly wrong turn the problem over."""
    for name in names:
        for n, m in SIZES[name]:
            for kind, rate in NOISE:
                if name not in ("breast cancer", "shift") or (rate <= 0.4 and kind != "pair"):
                    yield name, n, m, kind, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of CPU time, at most")
    parser.add_argument("--shuffle", action="store_true", help="run the cells in random order")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", ConvergenceWarning)
    path = options.out / "reweighting.csv"
    lines: list[Any] = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {tuple(line[k] for k in (*CELL, "seed")) for line in lines}
    runs = [(*cell, seed) for cell in grid(options.data) for seed in range(options.seeds)]
    if options.shuffle:
        random.Random(0).shuffle(runs)
    for name, n, m, kind, rate, seed in runs:
        if (name, n, m, kind, rate, seed) in done:
            continue
        if time.process_time() > 60 * options.minutes:
            break
        try:
            lines.append(cell(name, n, m, kind, rate, seed))
        except FileNotFoundError as error:
            print(f"{name} left out: {error}")
            continue
        pd.DataFrame(lines).to_csv(path, index=False)
        print(name, n, m, kind, rate, seed, flush=True)
    table: Any = pd.DataFrame(lines)
    settings = {"sizes": SIZES, "noise": NOISE, "principal_components": 50}
    seeds = sorted(int(seed) for seed in table["seed"].unique())
    measured = {"settings": settings, "seeds": seeds, **summary(table)}
    draw(measured["cells"])
    write(__file__, measured, full=len(measured["cells"]) == measured["possible_cells"])


if __name__ == "__main__":
    main()
