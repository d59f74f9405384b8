"""What models say of a row's label: the features of a low-dimensional weight function."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata
from sklearn.base import clone, is_classifier
from sklearn.model_selection import KFold
from sklearn.preprocessing import PolynomialFeatures


def trust_features(
    estimator: Any,
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    cv: int = 5,
    seed: int = 0,
) -> Float[np.ndarray, "rows 5"]:
    """Five features of each training row that tell right labels from wrong ones.

        a = rank of the fit of the row's label under models of the *other* folds of all rows
        b = rank of the same under a model of the trusted rows alone
        a, b, a^2, ab, b^2

    The fit is the log-probability of the given label (of the squared residual, the negative, for a
    regressor); ranks run from -1, the row that fits worst, to 1.

    Args:
        estimator: any scikit-learn classifier with `predict_proba`, or regressor; it is cloned.
        X, y: the training rows, as arrays.
        X_trusted, y_trusted: the trusted rows; the feature b has seen them, so judging weights
            made of it by their loss is optimistic.
        cv: folds for a.
        seed: of the folds.

    Cost: `cv + 1` fits.

    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = np.arange(6.0)[:, None], np.array([0, 0, 0, 1, 1, 0])
    >>> z = trust_features(LogisticRegression(), X, y, X, np.array([0, 0, 0, 1, 1, 1]))
    >>> int(z[:, 1].argmin())  # the last row's label is the wrong one
    5
    """
    X, y = np.asarray(X), np.asarray(y)
    by_all = np.empty(len(y))
    for train, test in KFold(cv, shuffle=True, random_state=seed).split(X):
        model: Any = clone(estimator)
        by_all[test] = label_fit(model.fit(X[train], y[train]), X[test], y[test])
    trusted: Any = clone(estimator)
    trusted.fit(np.asarray(X_trusted), np.asarray(y_trusted))
    ranks = np.stack([centred_ranks(by_all), centred_ranks(label_fit(trusted, X, y))], axis=1)
    return PolynomialFeatures(2, include_bias=False).fit_transform(ranks)


def label_fit(model: Any, X: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " rows"]:
    """The log-probability of each label under a fitted classifier; a regressor's `-(y - y_hat)^2`.

    A label that the classifier has not seen counts as the least probable there is.
    """
    if not is_classifier(model):
        return -((y - model.predict(X)) ** 2)
    probability = np.asarray(model.predict_proba(X))
    column = np.minimum(np.searchsorted(model.classes_, y), len(model.classes_) - 1)
    known = model.classes_[column] == y
    fit = np.where(known, probability[np.arange(len(y)), column], 0.0)
    return np.log(np.maximum(fit, np.finfo(float).tiny))


def centred_ranks(x: np.ndarray) -> Float[np.ndarray, " rows"]:
    """Ranks in [-1, 1], equal values sharing theirs."""
    return 2 * (rankdata(x) - 1) / max(len(x) - 1, 1) - 1
