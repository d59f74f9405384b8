"""Whether the tables are distributed alike, and whether the order of the rows says something."""

from typing import Any

import numpy as np
from scipy.stats import chi2_contingency, ks_2samp, mannwhitneyu, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .._inputs.checks import PROSE
from .columns import counts_rows
from .duplicates import Table
from .finding import Finding, counted, listed
from .view import View, as_matrix

CAP = 4000  # rows of each table
FEWEST = 10  # rows of each table
SHIFTED = 0.6  # AUC
UNLIKELY = 1e-3  # p-value
LEAST = 0.1  # distance between two distributions of a column
DOUBT, SHUFFLES = 8, 20  # standard errors up to which an AUC is compared with shuffled tables
ALIKE = 0.3  # correlation of neighbouring rows


def row_drift(view: View) -> list[Finding]:
    """Whether two tables can be told apart, and by which columns.

    An AUC that is within 8 standard errors of chance is compared with that of 20 shuffles too, by
    their standard deviation: the AUC over 5 folds of few rows varies more than its standard error.
    Of each entity one row is judged, as rows of one are alike: other entities are no drift.
    """
    pairs = [("train", "trusted"), ("holdout", "trusted"), ("train", "holdout")]
    tables = {name: _one_of_each(view, name) for name in view.tables}
    return [
        finding
        for one, other in pairs
        if one in tables and other in tables
        for finding in _shift(tables[one], tables[other], one, other, view.rng)
    ]


def _one_of_each(view: View, name: str) -> Table:
    """One row of each entity, at random, if there are enough of them."""
    table = view.tables[name]
    if name not in view.entity:
        return table
    entity = view.entity[name].reset_index(drop=True)
    order = entity.iloc[view.rng.permutation(len(entity))]
    rows = order.index[(~order.duplicated() | order.isna()).to_numpy()].to_numpy()
    return table.take(rows) if len(rows) >= FEWEST else table


def _shift(
    one: Table, other: Table, name: str, other_name: str, rng: np.random.Generator
) -> list[Finding]:
    title = f"distribution of {PROSE[name]} and {PROSE[other_name]} rows"
    one, other = (t.take(rng.permutation(len(t.ids))[:CAP]) for t in (one, other))
    n, m = len(one.ids), len(other.ids)
    if min(n, m) < FEWEST:
        return []
    x = np.concatenate(as_matrix([one, other], rng))
    if x.shape[1] == 0:
        return []
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200, tol=1e-3))
    side = np.repeat([0, 1], [n, m])
    folds = StratifiedKFold(5, shuffle=True, random_state=int(rng.integers(2**31)))

    def area_of(side: np.ndarray) -> float:
        areas = []
        for train, test in folds.split(x, side):
            model.fit(x[train], side[train])
            areas.append(roc_auc_score(side[test], model.decision_function(x[test])))
        return float(np.mean(areas))

    area, error = area_of(side), float(np.sqrt((n + m + 1) / (12 * n * m)))
    columns = _columns_at_fault(one, other)
    detail = (
        f"a logistic model tells them apart with an AUC of {area:.3f} (standard error {error:.3f})"
    )
    told = area >= max(SHIFTED, 0.5 + 4 * error)
    if told and area < 0.5 + DOUBT * error and not columns:  # the error holds for one split only
        others = [area_of(rng.permutation(side)) for _ in range(SHUFFLES)]
        told = area > np.mean(others) + 4 * np.std(others)
    if not (told or columns):
        return [Finding("ok", title, f"{detail}; 0.5 is chance.")]
    said = [f"{listed([c])} ({distance:.2f})" for c, distance in list(columns.items())[:5]]
    if said:
        more = f" and {len(columns) - 5} more" * (len(columns) > 5)
        detail += f"; the columns that differ most, 1 being no overlap: {', '.join(said)}{more}"
    detail += (
        "; 0.5 is chance. Weights will prefer rows that look like the trusted ones: that is right if "
        "the model will meet such rows, and wrong if they were chosen because they are easy to verify."
        if "trusted" in (name, other_name)
        else "; 0.5 is chance. The hold-out must come from where the model is used."
    )
    return [Finding("warning", title, detail, tuple(columns), table=name)]


def _columns_at_fault(one: Table, other: Table) -> dict[Any, float]:
    """Columns that are distributed differently, with the distance, the largest first.

    The distance is that of Kolmogorov and Smirnov, or the total variation of the 20 most frequent
    texts; a column counts if it is 0.1 or more, and p < 0.001 over the number of columns. For numbers
    p is twice the smaller one of Kolmogorov and Smirnov's, and of Mann and Whitney's rank sum, which
    sees a shift of few rows.
    """
    found = {}
    columns = len(one.number_names) + len(one.text_names)
    for j, column in enumerate(one.number_names):
        a, b = (t.numbers[np.isfinite(t.numbers[:, j]), j] for t in (one, other))
        if min(len(a), len(b)) >= 10:
            test: Any = ks_2samp(a, b)
            shift: Any = mannwhitneyu(a, b)
            p = min(1.0, 2 * min(float(test.pvalue), float(shift.pvalue)))
            found[column] = float(test.statistic), p
    for j, column in enumerate(one.text_names):
        a, b = one.codes[:, j], other.codes[:, j]
        value, count = np.unique(np.concatenate([a, b]), return_counts=True)
        if 2 <= len(value) <= 0.2 * (len(a) + len(b)):
            most = value[np.argsort(-count)[:20]]
            pair = np.array(
                [[*((x == v).sum() for v in most), (~np.isin(x, most)).sum()] for x in (a, b)]
            )
            pair = pair[:, pair.sum(axis=0) > 0]
            shares = pair / pair.sum(axis=1, keepdims=True)
            test = chi2_contingency(pair, correction=False)
            found[column] = float(np.abs(shares[0] - shares[1]).sum() / 2), float(test.pvalue)
    at_fault = {c: d for c, (d, p) in found.items() if d >= LEAST and p < UNLIKELY / columns}
    return dict(sorted(at_fault.items(), key=lambda item: -item[1]))


def order(view: View) -> list[Finding]:
    """Whether neighbouring training rows are alike: sorted, or measured together.

    Of the labels the number of equal neighbours is compared with what a random order gives, by its
    standard deviation; of the columns the correlation of each row with the next, of the ranks.
    """
    labels, table = view.labels["train"], view.tables["train"]
    n = len(labels)
    if n < 50:
        return []
    title, found = "order of the training rows", []
    y = labels.to_numpy(dtype=object)
    if view.regression:
        r = _next_to(labels.to_numpy(float))
        if abs(r) > max(ALIKE, 6 / np.sqrt(n)):
            found.append(f"targets follow each other (correlation {r:.2f} with the next row)")
    else:
        share = np.asarray(labels.value_counts(normalize=True))
        expected = float((share**2).sum())
        equal = float((y[1:] == y[:-1]).mean())
        if equal > expected + max(0.1, 6 * np.sqrt(expected * (1 - expected) / n)):
            found.append(
                f"labels follow each other ({equal:.0%} of the rows have the label of the row before, "
                f"{expected:.0%} would by chance)"
            )
    columns = tuple(
        name
        for j, name in enumerate(table.number_names)
        if not counts_rows(table.numbers[:, j])
        and abs(_next_to(table.numbers[:, j])) > max(ALIKE, 6 / np.sqrt(n))
    )
    if columns:
        found.append(
            f"{counted(columns, 'column')} whose values follow each other: {listed(columns)}"
        )
    if not found:
        return [Finding("ok", title, "it says nothing of labels and values.")]
    detail = (
        f"{'; '.join(found)}. If the rows were only sorted, shuffle them; if neighbours belong "
        "together (a person, a session, a time), say so by --entity or --time: "
        "otherwise they judge each other."
    )
    return [Finding("warning", title, detail, columns)]


def _next_to(x: np.ndarray) -> float:
    """The rank correlation of each number with the next; 0 where there are gaps or a constant."""
    if not np.isfinite(x).all() or len(np.unique(x)) < 3:
        return 0.0
    rank = rankdata(x)
    return float(np.corrcoef(rank[1:], rank[:-1])[0, 1])
