"""Gradient-boosted trees as the user's estimator: does the ranking hold, and does the refit pay?

Real tables whose labels are made wrong: at random (uniform), to the next class (pair), or by the
features. Per table and noise: at most 4000 training rows, `m` trusted rows and at most 4000 test rows
of a seeded permutation; everything is done by `HistGradientBoostingClassifier` with its defaults.

Refit: accuracy on the test rows of the trees fitted on the weights of `ReweightedClassifier`, on all
rows + trusted, on the trusted rows only, on the rows that trees of the trusted rows agree with
(filter), and on what confident learning (cleanlab) keeps, + trusted, by out-of-fold probabilities of
five folds; the trusted rows join every fit in "cleanlab, given the trusted rows". Ranking: the area
under the ROC curve with which the label quality, and cleanlab's, tell wrong labels from right ones.
CPU time: of `ReweightedClassifier.fit` over that of cleanlab's pipeline, from five folds to the refit.
The worst cells beside the best alternative in hindsight are run again with other seeds, by which they
were not picked: what is left of the loss is the chooser's, the rest was the luck of one split.

The first half of the tables were looked at while the defaults were chosen ("chosen on"), the others
were not ("reported"). Two of them come with scikit-learn. The others are the `.rda` files in `data/`
of the R packages mlbench and kernlab (source archives of CRAN; Debian: r-cran-mlbench and
r-cran-kernlab): copy them to a folder, `pip install rdata cleanlab`, and name the folder with
`--tables`. Tables that are missing are left out. Results: `results/trees.json`; `--out` gets a line
per cell, and a run that is started again continues it.
"""

import argparse
import functools
import time
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _measure import write
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from bilevel import ReweightedClassifier, datasets

ROWS, TEST, FOLDS = 4000, 4000, 5
CHOSEN_ON = {
    "LetterRecognition": "lettr",
    "spam": "type",
    "Vehicle": "Class",
    "digits": "",
    "PimaIndiansDiabetes2": "diabetes",
    "Soybean": "Class",
}
REPORTED = {
    "Satellite": "classes",
    "Vowel": "Class",
    "DNA": "Class",
    "breast cancer": "",
    "Shuttle": "Class",
    "income": "INCOME",
}
NOISE = [
    ("none", 0.0),
    ("uniform", 0.2),
    ("uniform", 0.4),
    ("pair", 0.2),
    ("pair", 0.4),
    ("features", 0.2),
    ("features", 0.4),
]
TRUSTED = (100, 200, 500)
WITHOUT, WITH = "cleanlab", "cleanlab, given the trusted rows"
RIVALS = ("all rows + trusted", "trusted only", "filter", WITHOUT, WITH)


class Split(NamedTuple):
    """Noisy training rows, trusted rows, test rows, and which training labels are wrong."""

    X: pd.DataFrame
    y: np.ndarray
    X_trusted: pd.DataFrame
    y_trusted: np.ndarray
    X_test: pd.DataFrame
    y_test: np.ndarray
    wrong: np.ndarray
    seed: int


@functools.cache
def load(name: str, folder: Path | None) -> tuple[pd.DataFrame, np.ndarray]:
    """All rows of a table: numbers, categories and gaps as they are; and the labels as codes.

    Raises:
        FileNotFoundError, ModuleNotFoundError: it cannot be read here.
    """
    if name in ("digits", "breast cancer"):
        load = {"digits": load_digits, "breast cancer": load_breast_cancer}[name]
        X, y = load(return_X_y=True)
        return pd.DataFrame(X).add_prefix("x"), np.asarray(y)
    if folder is None:
        raise FileNotFoundError("no --tables given")
    path = folder / f"{name}.rda"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files do not name their encoding
        table = import_module("rdata").read_rda(path)[name].rename(columns=str)
    label = (CHOSEN_ON | REPORTED)[name]
    table = table[table[label].notna()].reset_index(drop=True)
    columns = {
        c: column.astype("category")
        if isinstance(column.dtype, pd.CategoricalDtype)
        else column.astype(float)
        for c, column in table.drop(columns=label).items()
    }
    return pd.DataFrame(columns), np.unique(table[label].astype(str), return_inverse=True)[1]


def corrupt(kind: str, rate: float, X: pd.DataFrame, y: np.ndarray, seed: int) -> np.ndarray:
    """The training labels as they are given."""
    if kind == "none":
        return y
    if kind == "features":
        numbers = [
            column.cat.codes if isinstance(column.dtype, pd.CategoricalDtype) else column
            for _, column in X.items()
        ]
        x = np.column_stack([column.fillna(column.mean()).to_numpy(float) for column in numbers])
        return datasets.flip_by_features(x, y, rate, seed=seed).labels
    flip = {"uniform": datasets.flip_to_different, "pair": datasets.flip_to_next}[kind]
    return flip(y, rate, seed=seed).labels


def split(
    name: str, kind: str, rate: float, m: int, seed: int, folder: Path | None, most: int
) -> Split:
    """The rows of one cell, at most `most` for training."""
    X, y = load(name, folder)
    order = np.random.default_rng(seed).permutation(len(y))
    test = order[: min(TEST, len(y) // 3)]
    trusted, train = np.split(order[len(test) :][: most + m], [m])
    noisy = corrupt(kind, rate, X.iloc[train], y[train], seed)
    wrong = noisy != y[train]
    rows = (X.iloc[train], noisy), (X.iloc[trusted], y[trusted]), (X.iloc[test], y[test])
    (a, b), (c, d), (e, f) = ((x.reset_index(drop=True), labels) for x, labels in rows)
    return Split(a, b, c, d, e, f, wrong, seed)


def trees(seed: int) -> HistGradientBoostingClassifier:
    """The classifier that all share."""
    return HistGradientBoostingClassifier(random_state=seed)


def refit(s: Split, kept: np.ndarray) -> float:
    """Test accuracy of the trees of these training rows and the trusted rows."""
    rows, labels = pd.concat([s.X[kept], s.X_trusted]), np.r_[s.y[kept], s.y_trusted]
    return float(trees(s.seed).fit(rows, labels).score(s.X_test, s.y_test))


def cleanlab(s: Split, *, given: bool) -> tuple[np.ndarray, float]:
    """cleanlab's label quality and the accuracy of the refit on what it keeps and the trusted rows."""
    classes = int(max(s.y.max(), s.y_trusted.max())) + 1
    p = np.zeros((len(s.y), classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes of fewer rows than folds
        parts = list(StratifiedKFold(FOLDS, shuffle=True, random_state=s.seed).split(s.X, s.y))
    for fit, judge in parts:
        rows, labels = s.X.iloc[fit], s.y[fit]
        if given:
            rows, labels = pd.concat([rows, s.X_trusted]), np.r_[labels, s.y_trusted]
        model = trees(s.seed).fit(rows, labels)
        p[np.ix_(judge, model.classes_)] = model.predict_proba(s.X.iloc[judge])
    # cleanlab wants every class to occur among the labels.
    known, codes = np.unique(s.y, return_inverse=True)
    p = p[:, known] + 1e-9
    p /= p.sum(axis=1, keepdims=True)
    quality = import_module("cleanlab.rank").get_label_quality_scores(codes, p)
    issues = import_module("cleanlab.filter").find_label_issues(codes, p, n_jobs=1)
    return quality, refit(s, ~issues)


def cell(s: Split) -> dict[str, Any]:
    """Accuracies, areas under the curve and CPU seconds."""
    start = time.process_time()
    ours = ReweightedClassifier(trees(s.seed), random_state=s.seed)
    ours.fit(s.X, s.y, X_trusted=s.X_trusted, y_trusted=s.y_trusted)
    cpu = time.process_time() - start
    line: dict[str, Any] = {"ours": float(np.mean(ours.predict(s.X_test) == s.y_test))}
    quality = {"ours": np.asarray(ours.label_quality_)}
    every = np.ones(len(s.y), bool)
    line["all rows + trusted"] = refit(s, every)
    trusted = trees(s.seed).fit(s.X_trusted, s.y_trusted)
    line["trusted only"] = float(trusted.score(s.X_test, s.y_test))
    line["filter"] = refit(s, trusted.predict(s.X) == s.y)
    for name, given in ((WITHOUT, False), (WITH, True)):
        start = time.process_time()
        quality[name], line[name] = cleanlab(s, given=given)
        line[f"cpu {name}"] = time.process_time() - start
    for name, values in quality.items():
        area = float(roc_auc_score(~s.wrong, values)) if s.wrong.any() else None
        line[f"auroc {name}"] = area
    return line | {"cpu": cpu, "winner": ours.winner_, "rows": len(s.y)}


CELL = ["data", "noise", "rate", "trusted", "seed"]
WORST, AGAIN = 3, 8  # cells that are run again, and with how many other seeds


def grid(names: list[str], seeds: int, folder: Path | None) -> Iterator[tuple[Any, ...]]:
    """Every noise on every table; the number of trusted rows goes round, as far as rows suffice."""
    classes, enough = {}, {}
    for name in names:
        try:
            y = load(name, folder)[1]
        except (FileNotFoundError, ModuleNotFoundError) as error:
            print(f"{name} left out: {error}")
            continue
        classes[name] = len(np.unique(y))
        enough[name] = [m for m in TRUSTED if m <= len(y) // 3]
    for seed in range(seeds):
        for j, (kind, rate) in enumerate(NOISE):
            for i, name in enumerate(classes):
                if kind != "pair" or classes[name] > 2:  # of two, the next class is the other one
                    sizes = enough[name]
                    yield name, kind, rate, sizes[(i + j + seed) % len(sizes)], seed


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """What the cells say together."""
    gain = table["ours"] - table[list(RIVALS)].max(axis=1)
    noisy: Any = table[table["rate"] > 0]
    ranked = noisy.dropna(subset=[f"auroc {WITHOUT}"])
    best = ranked[[f"auroc {WITHOUT}", f"auroc {WITH}"]].max(axis=1)
    ratio = table["cpu"] / table[f"cpu {WITHOUT}"]
    return {
        "cells": len(table),
        "gain": {
            "mean": gain.mean(),
            "worst": gain.min(),
            "share >= -0.01": (gain >= -0.01).mean(),
        },
        "gain over": {name: (table["ours"] - table[name]).mean() for name in RIVALS},
        "gain over, worst": {name: (table["ours"] - table[name]).min() for name in RIVALS},
        "auroc": {name: ranked[f"auroc {name}"].mean() for name in ("ours", WITHOUT, WITH)},
        "auroc at or above cleanlab's": (ranked["auroc ours"] >= ranked[f"auroc {WITHOUT}"]).mean(),
        "auroc at or above the better of cleanlab's": (ranked["auroc ours"] >= best).mean(),
        "cpu over cleanlab's": {"median": ratio.median(), "largest": ratio.max()},
    }


def again(table: pd.DataFrame, folder: Path | None, most: int, seeds: int) -> list[dict[str, Any]]:
    """The worst cells with other seeds: our mean beside that of the alternative that is best there."""
    rivals, found = list(RIVALS), []
    gains: Any = table["ours"] - table[rivals].max(axis=1)
    records: Any = table[CELL]
    lines = records.to_dict("records")
    for i in np.argsort(gains.to_numpy())[:WORST]:
        name, kind, rate, m, seed = lines[i].values()
        others = [seed + 1 + k for k in range(seeds)]
        runs = [cell(split(name, kind, rate, m, other, folder, most)) for other in others]
        rows: Any = pd.DataFrame(runs)
        best = rows[rivals].mean().idxmax()
        gap = rows["ours"] - rows[best]
        line: dict[str, Any] = {"data": name, "noise": kind, "rate": rate, "trusted": int(m)}
        line |= {"seeds": others, "gain at first": gains.iloc[i], "best alternative": best}
        line |= {"gain": gap.mean(), "standard_error": gap.sem()}
        line["gain in hindsight"] = (rows["ours"] - rows[rivals].max(axis=1)).mean()
        line["over all rows + trusted"] = (rows["ours"] - rows["all rows + trusted"]).mean()
        found.append(line)
        print(line, flush=True)
    return found


def main() -> None:
    """Run the cells that are not there yet, and write the report."""
    parser = argparse.ArgumentParser()
    every = [*CHOSEN_ON, *REPORTED]
    parser.add_argument("--tables", type=Path, help="folder with the .rda files")
    parser.add_argument("--data", nargs="*", default=every, choices=every)
    parser.add_argument("--rows", type=int, default=ROWS, help="training rows, at most")
    parser.add_argument("--minutes", type=float, default=np.inf, help="of CPU time, at most")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--again", type=int, default=AGAIN, help="other seeds of the worst cells")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args()
    try:
        version = import_module("cleanlab").__version__
    except ModuleNotFoundError:
        print("cleanlab is not installed, so nothing is compared: pip install cleanlab")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "trees.csv"
    lines: list[Any] = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {tuple(line[k] for k in CELL) for line in lines}
    full = options.rows == ROWS
    for name, kind, rate, m, seed in grid(options.data, options.seeds, options.tables):
        if (name, kind, rate, m, seed) in done:
            continue
        if time.process_time() > 60 * options.minutes:
            full = False
            break
        s = split(name, kind, rate, m, seed, options.tables, options.rows)
        line = dict(zip(CELL, (name, kind, rate, m, seed), strict=True)) | cell(s)
        lines.append(line)
        pd.DataFrame(lines).to_csv(path, index=False)
        best = max(line[rival] for rival in RIVALS)
        print(
            f"{name} {kind} {rate} m={m}: ours {line['ours']:.3f} ({line['ours'] - best:+.3f}, "
            f"{line['winner']}), auroc {line['auroc ours']} (cleanlab {line[f'auroc {WITHOUT}']}, "
            f"{line[f'auroc {WITH}']}), "
            f"{line['cpu']:.0f} CPU s ({line['cpu'] / line[f'cpu {WITHOUT}']:.1f} times)",
            flush=True,
        )
    table = pd.DataFrame(lines)
    halves = {"chosen on": list(CHOSEN_ON), "reported": list(REPORTED)}
    found: dict[str, Any] = {
        half: table[table["data"].isin(names)] for half, names in halves.items()
    }
    cells = table.assign(gain=table["ours"] - table[list(RIVALS)].max(axis=1))
    write(
        __file__,
        {
            "settings": {
                "most_rows": options.rows,
                "trusted": TRUSTED,
                "noise": NOISE,
                "folds": FOLDS,
            },
            "seeds": sorted(int(seed) for seed in table["seed"].unique()),
            "cleanlab": version,
            "missing": sorted({*CHOSEN_ON, *REPORTED} - {*table["data"]}),
            "tables": halves,
            "summary": {half: summary(rows) for half, rows in found.items() if len(rows)},
            "again": again(table, options.tables, options.rows, options.again),
            "cells": cells.astype(object).where(cells.notna(), None).to_dict("records"),
        },
        full=full,
    )


if __name__ == "__main__":
    main()
