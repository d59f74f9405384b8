"""The baselines that every reweighting result is printed with."""

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from .._inputs.checks import (
    InputError,
    check_aligned,
    check_estimator_fits,
    check_known,
    check_labels,
)
from .._inputs.prepare import Prepared
from .._inputs.row_facts import check_sample_weight
from .coded_labels import fit_weighted as fit_weighted
from .coded_labels import predictions
from .coded_labels import take_rows as take_rows
from .fits import independent
from .labels import within_three_sigma
from .metric import Metric, Said
from .row_weights import effective_rows

SIMPLEST = "all rows + trusted"
BASELINES = ("uniform", SIMPLEST, "trusted only", "filter")


def default_estimator(regression: bool) -> Any:
    """What weights are compared on, and finally fitted with, when the user names no estimator.

    An intercept has no penalty, so the solution is the same without the means of the columns, and a
    softmax of ten or more classes is found in a third of the time.
    """
    if regression:
        return make_pipeline(MinMaxScaler(), Ridge())
    centre = StandardScaler(with_std=False)
    return make_pipeline(MinMaxScaler(), centre, LogisticRegression(max_iter=1000))


def stack_rows(a: Any, b: Any) -> Any:
    """The rows of `a`, then those of `b`; data frames and sparse matrices stay what they are."""
    if isinstance(a, pd.DataFrame):
        b = b if isinstance(b, pd.DataFrame) else pd.DataFrame(np.asarray(b), columns=a.columns)
        return pd.concat([a, b], ignore_index=True)
    if scipy.sparse.issparse(a):
        return scipy.sparse.vstack([a, b], format="csr")
    return np.concatenate([np.asarray(a), np.asarray(b)])


def agreeing_rows(
    trusted_model: Any, X: Any, y: Any, counts: np.ndarray | None = None
) -> np.ndarray:
    """The filter baseline's rows: those whose label the model of the trusted rows would give.

    Classification: the labels are equal. Regression: the residual is within three robust standard
    deviations.
    """
    predicted = predictions(trusted_model, X)
    if is_classifier(trusted_model):
        return np.asarray(predicted == np.asarray(y))
    return within_three_sigma(np.abs(np.asarray(y) - predicted), counts)


def compare_baselines(
    estimator: Any,
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    weights: np.ndarray,
    trusted_weight: float,
    X_holdout: Any,
    y_holdout: Any,
    *,
    sample_weight: Any = None,
    sample_weight_trusted: Any = None,
    scoring: Any = None,
) -> pd.DataFrame:
    """Fit the same estimator five ways and score each on rows that none of them has seen.

    - `uniform`: all training rows, equal weights, no trusted rows
    - `all rows + trusted`: training and trusted rows, equal weights
    - `trusted only`: the trusted rows alone
    - `filter`: trusted rows, and the training rows whose label agrees with the trusted model
    - `reweighted`: trusted rows at `trusted_weight` and training rows at `weights`

    Args:
        estimator: any scikit-learn estimator that accepts `sample_weight`; it is cloned.
        X, y: the training rows.
        X_trusted, y_trusted: the trusted rows.
        weights: one per training row.
        trusted_weight: the weight of a trusted row.
        X_holdout, y_holdout: the rows to score on: accuracy, or R2 for a regressor.
        sample_weight, sample_weight_trusted: how much each row counts in every fit; ones by default.
            `weights` and `trusted_weight` are multiplied by them.
        scoring: the score in place of accuracy or R2: the name of a scikit-learn scorer, for which the
            last class in sorted order is the positive one, or a callable `(estimator, X, y)`. Its
            standard error is the jackknife's, with 20 groups of rows.

    Returns:
        A table indexed by baseline: `rows` (the effective sample size it was fitted on), `score`,
        `difference` (reweighted minus this one) and `standard_error` of that difference (paired
        over the hold-out rows: accuracies share their rows, so their difference is known better
        than either).

    Raises:
        ValueError: the estimator does not accept `sample_weight`, no such scorer, or labels of the
            hold-out that no row to learn from has (an `InputError`).
    """
    check_estimator_fits(estimator, not is_classifier(estimator))
    check_aligned(X, weights, "weights")
    y, y_trusted = check_labels(y, X, "y"), check_labels(y_trusted, X_trusted, "y_trusted")
    y_holdout = check_labels(y_holdout, X_holdout, "y_holdout")
    if np.shape(weights) != (len(y),):
        raise InputError(
            f"`weights` must be a vector with one weight per row ({len(y)}), got shape "
            f"{np.shape(weights)}."
        )
    if is_classifier(estimator):
        check_known(y_holdout, np.union1d(y, y_trusted), "y_holdout")
    counts = (
        check_sample_weight(sample_weight, len(y), "sample_weight"),
        check_sample_weight(sample_weight_trusted, len(y_trusted), "sample_weight_trusted"),
    )
    return _compare(
        estimator,
        X,
        y,
        X_trusted,
        y_trusted,
        weights,
        trusted_weight,
        X_holdout,
        y_holdout,
        counts,
        Metric.of(scoring),
    )


def _compare(
    estimator: Any,
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    weights: np.ndarray,
    trusted_weight: float,
    X_holdout: Any,
    y_holdout: Any,
    counts: tuple[np.ndarray, np.ndarray],
    metric: Metric | None,
) -> pd.DataFrame:
    ones, trusted_ones = counts
    n, m = ones.sum(), trusted_ones.sum()
    every = np.concatenate(counts)
    both = stack_rows(X, X_trusted), stack_rows(y, y_trusted)
    trusted_model = fit_weighted(estimator, X_trusted, y_trusted, trusted_ones)
    agree = agreeing_rows(trusted_model, X, y, ones)
    filtered = np.concatenate([ones * agree, trusted_ones])
    final = np.concatenate([weights, np.full(len(y_trusted), trusted_weight)])
    uniform, simplest, ours, filtered_model = independent(
        fit_weighted,
        [
            (estimator, X, y, ones),
            *((estimator, *both, w) for w in (every, every * final, filtered)),
        ],
    )
    fits: dict[str, tuple[float, Any]] = {
        "uniform": (n, uniform),
        "all rows + trusted": (n + m, simplest),
        "trusted only": (m, trusted_model),
        "filter": (filtered.sum(), filtered_model),
        "reweighted": (effective_rows(final, every), ours),
    }

    per_row, scores = _per_row(
        {name: fit for name, (_, fit) in fits.items()}, X_holdout, np.asarray(y_holdout), metric
    )
    rows = {}
    for name, (size, _) in fits.items():
        gap = per_row["reweighted"] - per_row[name]
        rows[name] = {
            "rows": round(size, 1),
            "score": scores[name],
            "difference": float(gap.mean()),
            "standard_error": float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else 0.0,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("fitted on")


def _per_row(
    fits: dict[str, Any], X_holdout: Any, y_holdout: np.ndarray, metric: Metric | None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(what each row, or group of rows, adds to the score, score), per fit."""
    classifies = is_classifier(fits["uniform"])
    if metric is not None:
        rows, classes, y = np.arange(len(y_holdout)), None, y_holdout
        if classifies:
            classes = np.unique(np.concatenate([fit.classes_ for fit in fits.values()]))
            y = np.searchsorted(classes, y) if metric.coded else y
        judged = {
            name: metric.judge(
                Said.of_model(fit, X_holdout, classes, metric.coded),
                X_holdout,
                y,
                rows * 0 + 1.0,
                rows,
            )
            for name, fit in fits.items()
        }
        return {k: -losses for k, (losses, _) in judged.items()}, {
            k: s for k, (_, s) in judged.items()
        }
    predicted = {name: predictions(fit, X_holdout) for name, fit in fits.items()}
    if classifies:
        score = accuracy_score
        per_row = {name: (p == y_holdout).astype(float) for name, p in predicted.items()}
    else:
        score = r2_score
        spread = np.var(y_holdout) or 1.0
        per_row = {name: -((p - y_holdout) ** 2) / spread for name, p in predicted.items()}
    return per_row, {name: float(score(y_holdout, p)) for name, p in predicted.items()}


def compare_on_holdout(
    estimator: Any,
    tables: Prepared,
    weights: np.ndarray,
    trusted_weight: float,
    metric: Metric | None = None,
) -> pd.DataFrame | None:
    """`compare_baselines` on the hold-out, with the default estimator for `None`."""
    if tables.holdout is None:
        return None
    return _compare(
        default_estimator(tables.classes is None) if estimator is None else estimator,
        tables.train.X,
        tables.train.y,
        tables.trusted.X,
        tables.trusted.y,
        weights,
        trusted_weight,
        tables.holdout.X,
        tables.holdout.y,
        (tables.train.facts.weight, tables.trusted.facts.weight),
        metric,
    )
