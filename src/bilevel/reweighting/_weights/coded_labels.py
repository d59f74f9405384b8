"""Any classifier, fitted on the codes 0, 1, ... of the classes that its rows have."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if

from .baselines import fit_weighted, take_rows


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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "CodedLabels":
        """Fit a clone of the estimator; rows of weight zero are left out."""
        y = np.asarray(y)
        weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        if not weights.all():
            used = np.flatnonzero(weights)
            X, y, weights = take_rows(X, used), y[used], weights[used]
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.estimator_ = fit_weighted(self.estimator, X, codes, weights)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The estimator's predictions as labels."""
        return self.classes_[np.ravel(self.estimator_.predict(X)).astype(int)]

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """The estimator's class probabilities, in the order of `classes_`."""
        return self.estimator_.predict_proba(X)
