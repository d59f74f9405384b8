"""Weights for training rows, learned and chosen on held-out folds of the trusted rows."""

from typing import Any

import numpy as np

from .._inputs.checks import check_trusted_count
from .._inputs.prepare import precision
from .candidates import search
from .choice import choose
from .fits import few_threads
from .folds import FOLDS
from .result import CrossValidatedWeights


def cross_validated_weights(
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    groups: Any = None,
    seed: int = 0,
) -> CrossValidatedWeights:
    """Weights of rows: the probability that their label is right, under a pool of label models.

        log p(y | x) = sum_k c_k log p_k(y | x) - log Z(x)           the pool
        w_i = P(true = y_i | x_i, given = y_i) ~ p(y_i | x_i) T[y_i, y_i]

    The members `p_k` are models that have not seen the row: linear ones of all training rows, of the
    trusted rows, and in a second round of all rows weighted by `w`; and of at most 30 classes, forests
    and kernel models where they lower the pool's held-out loss. The few coefficients `c >= 0` are
    the outer variable: they minimise the log loss of trusted rows that the members have not seen. The
    noise matrix `T[true, given]` comes from the given labels, by expectation maximisation. In a
    regression, the pool is a combination of predictions and `w_i` the probability that the target
    does not come from a wider distribution around it (`ClassPool`, `NumberPool`).

    These weights are a candidate beside the rows that are not flagged ("clean rows"), the mean of
    `w` within each group where `groups` are given, the density ratio where a classifier tells the
    trusted rows from the training rows, and four baselines: uniform, all rows + trusted, trusted only,
    and the filter (rows that a model of the trusted rows agrees with). Each is judged on folds of the
    trusted rows by models that have not seen the fold, and the pool behind its weights has not seen it
    either. "All rows + trusted" is kept unless the best one is better by more than half a standard
    error of the paired difference.

    Args:
        X, y: training rows `(rows, features)`, scaled to order one, and class codes 0, 1, ...
            (integers), or targets scaled to order one (floating).
        X_trusted, y_trusted: the trusted rows; at least 3 of each class that matters.
        groups: the groups that the training rows belong to.
        seed: of the folds.

    Cost: about 30 fits of a linear model on at most 20000 training rows, and 7 on the trusted rows.

    Raises:
        InputError: fewer than 6 trusted rows, or codes that are no codes.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(400, 2)); y = (X[:, 0] > 0).astype(int)
    >>> noisy = np.where(np.arange(300) < 100, 1 - y[:300], y[:300])  # the first hundred are wrong
    >>> found = cross_validated_weights(X[:300], noisy, X[300:], y[300:])
    >>> bool(found.weights[:100].mean() < 0.2), round(float(found.weights.mean()), 6)
    (True, 1.0)
    """
    floating = precision(
        np.asarray(X), int(np.max(y)) + 1 if np.asarray(y).dtype.kind in "iu" else 1
    )
    X, X_trusted = np.asarray(X, floating), np.asarray(X_trusted, floating)
    groups = None if groups is None else np.asarray(groups)
    check_trusted_count(len(y_trusted), FOLDS)
    with few_threads(X.size):
        found = search(X, np.asarray(y), X_trusted, np.asarray(y_trusted), groups=groups, seed=seed)
    return choose(found)
