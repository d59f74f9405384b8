"""Columns that give the label away, with the score of a model with and without them."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from .._inputs.checks import PROSE
from .duplicates import Table
from .finding import Finding, counted, listed
from .view import View, as_matrix

CAP = 4000  # rows of the checks that fit one model per column
ALONE = 0.99  # accuracy
ALONE_RANKS = 0.999  # rank correlation


def label_leaks(view: View) -> list[Finding]:
    """Columns that determine the label alone, of training or of trusted rows.

    Wrong labels hide the leak of right ones, so the trusted rows are looked at too.
    """
    return [
        finding
        for name in ("train", "trusted")
        if name in view.tables
        for finding in _leaks(view.tables[name], view.labels[name], name, view.regression, view.rng)
    ]


def _leaks(
    table: Table, labels: pd.Series, name: str, regression: bool, rng: np.random.Generator
) -> list[Finding]:
    title = f"columns that give the label away, {PROSE[name]} rows"
    known = rng.permutation(np.flatnonzero(labels.notna()))[:CAP]
    if len(known) < 50:
        return []
    table, y = table.take(known), labels.to_numpy()[known]
    fold = np.arange(len(y)) % 5  # the rows are in random order
    if regression:
        y = y.astype(float)
        score = [_rank_correlation(x, y) for x in table.numbers.T]
        alone, measure, names = ALONE_RANKS, "rank correlation", table.number_names
    else:
        y = pd.factorize(y)[0]
        if np.bincount(y).max() >= 0.9 * len(y) or y.max() > len(y) / 10:
            return []  # one class, or hardly two rows of any
        score = [_tree_accuracy(x, y, fold) for x in table.numbers.T]
        score += [_value_accuracy(x, y, fold) for x in table.codes.T]
        alone, measure, names = ALONE, "accuracy", [*table.number_names, *table.text_names]
    columns = {n: s for n, s in zip(names, score, strict=True) if s >= alone}
    if not columns:
        return [Finding("ok", title, f"no single column reaches {measure} {alone}.", table=name)]
    best = max(columns.values())
    with_all, without = _with_and_without(table, y, fold, set(columns), regression, rng)
    detail = (
        f"{counted(columns, 'column')} from which alone the label is known ({measure} up to "
        f"{best:.4f}): {listed(columns)}. A linear model of all columns reaches "
        f"{'R2' if regression else 'accuracy'} {with_all:.3f}, and {without:.3f} without "
        f"{'them' if len(columns) > 1 else 'it'}. If they are made from the label, or known only "
        "after it, drop them; if the task is that easy, keep them."
    )
    return [Finding("problem", title, detail, tuple(columns), table=name)]


def _with_and_without(
    table: Table,
    y: np.ndarray,
    fold: np.ndarray,
    columns: set[Any],
    regression: bool,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """The 5-fold score of a linear model on all columns, and on those not in `columns`."""
    numbers = [j for j, name in enumerate(table.number_names) if name not in columns]
    texts = [j for j, name in enumerate(table.text_names) if name not in columns]
    rest = table._replace(
        numbers=table.numbers[:, numbers],
        codes=table.codes[:, texts],
        number_names=[table.number_names[j] for j in numbers],
        text_names=[table.text_names[j] for j in texts],
    )
    scores = [
        _linear_score(as_matrix([some], rng)[0], y, fold, regression) for some in (table, rest)
    ]
    return scores[0], scores[1]


def _linear_score(
    x: Float[np.ndarray, "rows columns"], y: np.ndarray, fold: np.ndarray, regression: bool
) -> float:
    """Accuracy or R2 over 5 folds."""
    if x.shape[1] == 0:
        return 0.0 if regression else float(np.bincount(y).max() / len(y))
    plain: Any = Ridge() if regression else LogisticRegression(max_iter=200, tol=1e-3)
    model = make_pipeline(StandardScaler(), plain)
    predicted = np.zeros(len(y))
    for k in range(5):
        train = fold != k
        predicted[~train] = model.fit(x[train], y[train]).predict(x[~train])
    if not regression:
        return float((predicted == y).mean())
    return float(1 - ((predicted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def _tree_accuracy(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """5-fold accuracy of a tree on one column; 0 where it cannot be high.

    A tree of L leaves with e errors leaves at most L + 2 e changes of the label along the column. Four
    leaves per class, and no depth: of classes of equal size the tree takes off one at a time.
    """
    leaves = 4 * int(y.max() + 1)
    changes = np.count_nonzero(np.diff(y[np.lexsort((y, x))]))
    if changes > leaves + 4 * (1 - ALONE) * len(y) or not np.isfinite(x).any():
        return 0.0
    x = np.clip(x - np.median(x[np.isfinite(x)]), -1e38, 1e38)  # trees think in float32
    tree = DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=0)
    right = 0
    for k in range(5):
        train = fold != k
        tree.fit(x[train, None], y[train])
        right += int((tree.predict(x[~train, None]) == y[~train]).sum())
    return right / len(y)


def _value_accuracy(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """5-fold accuracy of the most frequent label of each text."""
    labels, cells = y.max() + 1, (x + 1) * (y.max() + 1) + y
    right = 0
    for k in range(5):
        train = fold != k
        count = np.bincount(cells[train], minlength=(x.max() + 2) * labels).reshape(-1, labels)
        count = count + np.bincount(y[train], minlength=labels) / (len(y) + 1)  # for unseen texts
        right += int((count.argmax(axis=1)[x[~train] + 1] == y[~train]).sum())
    return right / len(y)


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, without sign, of the rows without gaps; 0 for a constant or nearly empty column."""
    known = ~np.isnan(x)
    if known.sum() < 50 or np.ptp(x[known]) == 0:
        return 0.0
    return float(abs(np.corrcoef(rankdata(x[known]), rankdata(y[known]))[0, 1]))
