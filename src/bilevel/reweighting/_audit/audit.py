"""What is wrong with tables before anything is learned: leaks, duplicates, conflicts, shifts."""

from collections.abc import Callable
from typing import Any

from .._weights.fits import few_threads
from . import belonging, columns, drift, labels, leaks, rows
from .finding import Audit, Finding
from .view import View, make_view
from .wrong_labels import contradicted_labels

# One function per check, under the name of the check in `CHECKS`, in the order in which they are made.
# Last comes "labels/wrong", which leaves out the columns that `OF_COLUMNS` found at fault.
IN_ORDER: dict[str, Callable[[View], list[Finding]]] = {
    "columns/names": columns.names,
    "leak/rows": rows.shared_rows,
    "leak/ids": rows.shared_ids,
    "leak/entity": belonging.entity_leaks,
    "leak/time": belonging.time_leaks,
    "proposed/entity": belonging.propose_entities,
    "proposed/time": belonging.propose_times,
    "ids/gaps": rows.missing_ids,
    "duplicates/ids": rows.repeated_ids,
    "duplicates/rows": rows.repeated_rows,
    "duplicates/near": rows.near_rows,
    "conflicts/rows": rows.conflicts,
    "conflicts/near": rows.near_conflicts,
    "labels/missing": labels.missing_labels,
    "labels/kinds": labels.kinds,
    "labels/spelling": labels.spelling,
    "labels/classes": labels.classes,
    "columns/numbers": columns.numbers,
    "columns/decimal-comma": columns.decimal_commas,
    "columns/number-text": columns.texts_of_numbers,
    "columns/spelling": columns.spelling,
    "columns/constant": columns.constant,
    "columns/index": columns.row_numbers,
    "columns/identifier": columns.identifiers,
    "leak/label": leaks.label_leaks,
    "drift/labels": labels.label_drift,
    "drift/rows": drift.row_drift,
    "order/rows": drift.order,
}
OF_COLUMNS = ("leak/label", "columns/identifier", "columns/index")


def audit(
    train: Any,
    y: Any,
    trusted: Any = None,
    y_trusted: Any = None,
    holdout: Any = None,
    y_holdout: Any = None,
    *,
    task: str = "auto",
    entity: str | None = None,
    time: str | None = None,
    seed: int = 0,
) -> Audit:
    """Everything about the tables that would make weights, or their proof, worthless; in seconds.

    Checks, by their names:

    - `leak`: rows that two tables share, exactly, nearly (`find_shared_rows`), in all columns but one
      (if chance does not explain it), or in most of a text; ids that two tables share; entities with
      rows in two tables; training and trusted rows later than the hold-out's first; and a single
      column that determines the label, of the training or of the trusted rows (a decision tree
      with 4 leaves per class, 5 folds, accuracy 0.99 or more where the largest class has less than
      0.9; for regression, a rank correlation of 0.999), with the score of a linear model with and
      without it.
    - `duplicates`, `conflicts`: ids and rows that repeat, rows that are nearly equal, and equal or
      nearly equal rows with different labels.
    - `labels`, `ids`: missing ones; labels that differ only in case, blanks, Unicode form or what
      cannot be seen; 0 and 1 beside true and false; a single class, classes that a table lacks, and
      classes with fewer than 5 trusted rows; and labels that the other rows, the trusted ones among
      them, contradict: two forests and a linear model that have not seen a label say how probable it
      is that it is wrong (at most 10000 rows; a second or two per 1000 rows).
    - `columns`: columns that differ between the tables; infinite or far too large numbers; decimal
      commas and other texts that look like numbers; categories in two spellings; constant columns,
      row numbers and names of rows.
    - `drift`: class shares, trusted against training rows (chi-squared, p < 0.001; targets by
      Kolmogorov and Smirnov); and, of two tables, a logistic model that tells them apart (5 folds,
      AUC of 0.6, and 4 standard errors above 0.5) or a column whose two distributions are 0.1 or
      more apart (p < 0.001 over the number of columns).
    - `order`: labels or columns whose values follow each other from row to row (see `drift.order`).
    - `proposed`: columns that look like an entity or a time, where none was given.

    Checks that fit models see at most 4000 rows, drawn with the seed.

    Args:
        train, y: training rows, a data frame or a matrix, and their labels.
        trusted, y_trusted: the trusted rows, if there are any.
        holdout, y_holdout: rows that the result is to be judged on, if there are any.
        task: "classification", "regression", or "auto", which looks at `y`.
        entity: column that says which person, device or document a row is of; no feature.
        time: column of times, numbers or dates; no feature.
        seed: of the folds and of the rows drawn.

    Raises:
        InputError: a table without rows or with repeated column names, no column that all tables
            share, no such column as `entity` or `time`, or not one label per row.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(300, 4)); y = (X @ [1, 1, 1, 1] > 0).astype(int)
    >>> found = audit(X[:200], y[:200], np.vstack([X[200:], X[7:8]]), np.append(y[200:], y[7]))
    >>> print([(f.check, f.ids) for f in found.findings if f.severity == "problem"])
    [('leak/rows', (7,))]
    """
    given = {"train": (train, y)}
    if trusted is not None:
        given["trusted"] = trusted, y_trusted
    if holdout is not None:
        given["holdout"] = holdout, y_holdout
    view = make_view(given, task, entity, time, seed)
    with few_threads(view.frames["train"].size):
        found = [f._replace(check=check) for check, find in IN_ORDER.items() for f in find(view)]
        at_fault = {c for f in found if f.check in OF_COLUMNS and f.severity != "ok" for c in f.ids}
        found += [f._replace(check="labels/wrong") for f in contradicted_labels(view, at_fault)]
    return Audit(found)
