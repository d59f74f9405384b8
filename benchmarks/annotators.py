"""Several annotators per row: consensus, its quality and the annotators', beside cleanlab's CROWDLAB.

Three sets. `people`: the three labels that people gave to each CIFAR-10 image (Wei et al. 2022), with
the out-of-fold log-probabilities of a convolutional network as features (Kuan and Mueller 2022); the
set does not say who gave which label, so the three columns stand for three annotators and nobody's
quality can be judged. `alike` and `hard rows`: the same features, and 60 annotators whose labels are
simulated. Each row gets one to five labels; annotators are right in 30 to 98 % of them. In `alike` the
wrong labels follow each annotator's own confusions, and in `hard rows` they fall on rows of which the
network is unsure, three times as often on the most unsure tenth as on average, and are drawn from its
probabilities.

Per set, number of trusted rows and seed: 3000 training rows and m trusted rows, which no annotator
labelled. Majority vote; Dawid and Skene's method, which sees labels alone; CROWDLAB with out-of-fold
probabilities of logistic regression on the majority's labels (five folds), without and with the
trusted rows among the rows that each fold's model is fitted on; and `learn_from_annotations`.

Needs `pip install cleanlab`, which is no dependency of this package, and in BILEVEL_DATA/human-noise
the sets of `real_errors.py` and CIFAR-10_human.pt of the repository UCSC-REAL/cifar-10-100n.
"""

import argparse
import io
import os
import pickle
import time
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import write
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import MinMaxScaler

from bilevel.reweighting import learn_from_annotations
from bilevel.reweighting._weights.annotators import Annotations, Labels, vote

SETS, TRUSTED, TRAIN, ANNOTATORS = ("people", "alike", "hard rows"), (50, 200), 3000, 60
MODULES = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs"}


class _Arrays(pickle.Unpickler):
    """Reads the arrays of a file of PyTorch, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in MODULES or name not in {"_reconstruct", "ndarray", "dtype", "encode"}:
            raise ValueError(f"{module}.{name} has no place in this file")
        return getattr(import_module(module), name)


def read() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log-probabilities, true labels, the three labels of people) of 50000 images."""
    folder = Path(os.environ["BILEVEL_DATA"]) / "human-noise"
    with zipfile.ZipFile(folder / "CIFAR-10_human.pt") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        labels = _Arrays(io.BytesIO(archive.read(name))).load()
    # The probabilities stand in the order of the five folds that they are from.
    folds = StratifiedKFold(5).split(np.zeros((50_000, 1)), labels["worse_label"])
    order = np.concatenate([test for _, test in folds])
    with np.load(folder / "worst-resnet18.npz") as saved:
        X, given, true = (saved[k] for k in ("log_probs", "given_label", "true_label"))
    assert (labels["worse_label"][order] == given).all()
    assert (labels["clean_label"][order] == true).all()
    people = np.stack([labels[f"random_label{k}"][order] for k in (1, 2, 3)], axis=1)
    return X.astype(float), true.astype(int), people.astype(int)


def simulate(
    kind: str, X: np.ndarray, true: np.ndarray, rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    """(the long table, how often each annotator is right)."""
    n, classes = X.shape
    skill = rng.uniform(0.3, 0.98, ANNOTATORS)
    confusions = rng.dirichlet(np.full(classes, 0.3), (ANNOTATORS, classes))
    unsure = 1 - softmax(X, axis=1)[np.arange(n), true]
    hardness = np.where(unsure >= np.quantile(unsure, 0.9), 3.0, 7 / 9)
    lines = []
    for i in range(n):
        for a in rng.choice(ANNOTATORS, rng.integers(1, 6), replace=False):
            error = 1 - skill[a]
            p = confusions[a, true[i]].copy()
            if kind == "hard rows":
                error, p = min(error * hardness[i], 0.95), np.exp(X[i]) + 1e-3
            p[true[i]] = 0.0
            wrong = rng.random() < error and p.sum() > 0
            lines.append((i, a, rng.choice(classes, p=p / p.sum()) if wrong else true[i]))
    table = pd.DataFrame(lines, columns=["row", "annotator", "label"])
    right = np.asarray(table["label"]) == true[np.asarray(table["row"])]
    return table, np.bincount(table["annotator"], right) / np.bincount(table["annotator"])


def rank_correlation(a: Any, b: Any) -> float:
    """Spearman's."""
    return np.corrcoef(rankdata(a), rankdata(b))[0, 1]


def crowdlab(table: pd.DataFrame, X: np.ndarray, extra: tuple[np.ndarray, np.ndarray]) -> Any:
    """cleanlab's answer, with rows of known label beside each fold's training rows."""
    module = import_module("cleanlab.multiannotator")
    wide = table.pivot(index="row", columns="annotator", values="label")
    majority = module.get_majority_vote_label(wide, verbose=False)
    p = np.zeros((len(X), 10))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(X, majority):
        rows = np.concatenate([X[train], extra[0]]), np.concatenate([majority[train], extra[1]])
        p[test] = LogisticRegression(max_iter=500).fit(*rows).predict_proba(X[test])
    return module.get_label_quality_multiannotator(wide, p, verbose=False)


def cell(kind: str, m: int, seed: int, data: tuple[np.ndarray, ...]) -> list[dict[str, Any]]:
    """One seed: a line per method."""
    features, labels, people = data
    order = np.random.default_rng(seed).permutation(len(labels))
    train, trusted = order[:TRAIN], order[TRAIN : TRAIN + m]
    X, true = features[train], labels[train]
    skill = None
    if kind == "people":
        columns = np.tile(np.arange(3), TRAIN)
        table = pd.DataFrame(
            {
                "row": np.repeat(np.arange(TRAIN), 3),
                "annotator": columns,
                "label": people[train].ravel(),
            }
        )
    else:
        table, skill = simulate(kind, X, true, np.random.default_rng(seed))
    lines = []

    def note(method: str, seconds: float, consensus: Any, quality: Any, annotators: Any) -> None:
        right = np.asarray(consensus) == true
        lines.append(
            {
                "data": kind,
                "trusted": m,
                "seed": seed,
                "method": method,
                "accuracy": float(right.mean()),
                "auroc": None if quality is None else float(roc_auc_score(right, quality)),
                "annotators": None
                if skill is None or annotators is None
                else float(rank_correlation(annotators, skill)),
                "seconds": seconds,
            }
        )

    counts = np.zeros((TRAIN, 10))
    np.add.at(counts, (table["row"], table["label"]), 1.0)
    majority = (counts + 1e-3 * counts.sum(axis=0) / counts.sum()).argmax(axis=1)
    agreement = counts.max(axis=1) / counts.sum(axis=1)
    with_majority = np.asarray(table["label"]) == majority[np.asarray(table["row"])]
    who = np.asarray(table["annotator"])
    by_annotator = np.bincount(who, with_majority) / np.bincount(who)
    note("majority vote", 0.0, majority, agreement, by_annotator)
    alone = Labels(*(np.asarray(table[c]) for c in ("row", "annotator", "label")))
    none = Labels(*(np.zeros(0, int) for _ in range(3)))
    number = int(np.max(alone.annotator)) + 1
    note("Dawid and Skene", 0.0, vote(Annotations(alone, none, number), TRAIN, 10), None, None)
    scaler = MinMaxScaler().fit(X)
    verified = scaler.transform(features[trusted]), labels[trusted]
    for name, extra in {
        "CROWDLAB": (np.zeros((0, 10)), np.zeros(0, int)),
        "CROWDLAB with the trusted rows": verified,
    }.items():
        start = time.process_time()
        answer = crowdlab(table, scaler.transform(X), extra)
        found, stats = answer["label_quality"], answer["annotator_stats"]
        note(
            name,
            time.process_time() - start,
            found["consensus_label"],
            found["consensus_quality_score"],
            stats["annotator_quality"].sort_index(),
        )
    start = time.process_time()
    ours = learn_from_annotations(X, table, features[trusted], labels[trusted])
    note(
        "learn_from_annotations",
        time.process_time() - start,
        ours.rows["consensus"],
        ours.rows["label_quality"],
        ours.annotators["quality"].sort_index(),
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    data = read()
    lines = [
        line
        for kind in SETS
        for m in TRUSTED
        for seed in range(1 if arguments.quick else arguments.seeds)
        for line in cell(kind, m, seed, data)
    ]
    table = pd.DataFrame(lines)
    mean: Any = table.groupby(["data", "trusted", "method"], sort=False).mean(numeric_only=True)
    print(mean.drop(columns="seed").round(4).to_string())
    if not arguments.quick:
        write(
            __file__,
            {
                "settings": {"train": TRAIN, "annotators": ANNOTATORS},
                "seeds": list(range(arguments.seeds)),
                "lines": lines,
            },
        )


if __name__ == "__main__":
    main()
