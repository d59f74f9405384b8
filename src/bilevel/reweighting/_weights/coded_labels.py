"""Weighted fits; of a classifier that takes no labels but codes, on codes."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, is_classifier
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets

from .._inputs.compact import takes_gaps, with_empty_columns_filled
from .._inputs.estimators import fit_with_weights


def take_rows(a: Any, rows: np.ndarray | slice) -> Any:
    """The rows of an array, a data frame or a sparse matrix at these positions."""
    return _safe_indexing(a, rows)


def predictions(model: Any, X: Any) -> np.ndarray:
    """One label or number per row, also of a model that gives them as a column, as CatBoost's does."""
    predicted = np.asarray(model.predict(X))
    return predicted.ravel() if predicted.shape == (len(predicted), 1) else predicted


def fit_weighted(
    estimator: Any, X: Any, y: Any, weights: np.ndarray, *, drop_zero: bool = True
) -> Any:
    """A clone of `estimator`, fitted with weights, see `fit_with_weights`.

    Rows of weight zero are left out, so that scalers and trees do not see them either; with
    `drop_zero=False` they are passed on with their zeros. Columns that hold nothing in what is left
    are zeros for an estimator that takes gaps.

    A classifier that refuses labels which are not the codes 0, 1, ... without a gap, as XGBoost's
    does, is fitted on their codes, and a `CodedLabels` is returned.

    Raises:
        ValueError: all weights are zero, or one is negative or not finite.
    """
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("the weights must be finite and not negative; some are not.")
    if not weights.any():
        raise ValueError("all weights are zero: there is nothing to fit the estimator on.")
    if drop_zero and not weights.all():
        rows = np.flatnonzero(weights)
        X, y, weights = take_rows(X, rows), take_rows(y, rows), weights[rows]
    try:
        return _fit(estimator, X, y, weights)
    except Exception:
        if not is_classifier(estimator) or isinstance(estimator, CodedLabels) or _are_codes(y):
            raise
        coded = CodedLabels(estimator)
        try:
            check_classification_targets(y)  # numbers of a regression are no labels to be coded
            return coded.fit(X, y, weights)
        except Exception:
            pass
        raise  # of the labels as they were given


def _fit(estimator: Any, X: Any, y: Any, weights: np.ndarray) -> Any:
    X = with_empty_columns_filled(X) if takes_gaps(estimator) else X
    # Equal weights change nothing, and scikit-learn's trees take twice the time for them.
    return fit_with_weights(estimator, X, y, None if np.all(weights == 1) else weights)


def _are_codes(y: Any) -> bool:
    """Whether the labels are 0, 1, ... without a gap already."""
    found = np.unique(np.asarray(y))
    return found.dtype.kind in "iu" and np.array_equal(found, np.arange(len(found)))


def _has_probabilities(self: "CodedLabels") -> bool:
    return hasattr(self.estimator, "predict_proba")


class CodedLabels(ClassifierMixin, BaseEstimator):
    """A classifier that takes labels of any kind, whatever its own estimator takes.

    XGBoost's takes the codes 0, 1, ... without a gap and no others, and CatBoost's predictions are a
    column. Of the classes that occur in a fit, the smallest is code 0; the order stays.

    Args:
        estimator: a classifier that accepts `sample_weight`, or a pipeline ending in one.
    """

    def __init__(self, estimator: Any):
        self.estimator = estimator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "CodedLabels":
        """Fit a clone of the estimator; rows of weight zero are left out."""
        y = np.asarray(y)
        weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        if not weights.all():
            used = np.flatnonzero(weights)
            X, y, weights = take_rows(X, used), y[used], weights[used]
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.estimator_ = _fit(self.estimator, X, codes, weights)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The estimator's predictions as labels."""
        return self.classes_[predictions(self.estimator_, X).astype(int)]

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """The estimator's class probabilities, in the order of `classes_`."""
        return self.estimator_.predict_proba(X)
