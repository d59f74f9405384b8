"""Weights for training rows, learned and chosen on held-out folds of the trusted rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..._callback import AbstractCallback
from .candidates import choose, search
from .result import CrossValidatedWeights
from .weight_function import make_folds


def cross_validated_weights(
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    groups: Any = None,
    seed: int = 0,
    callbacks: Sequence[AbstractCallback] = (),
) -> CrossValidatedWeights:
    """Weights of rows by what models say of their labels, chosen on folds of the trusted rows.

        a, b, c, d = what models that have not seen the row say of its label: trained on all rows, on
                     the trusted rows, on those and the rows that agree, on those and the best half
        "weights"  = sum_e p_e w_e,   p_e ~ exp(-sum_j loss_j(w_e))       over held-out trusted rows j

    with the experts `w_e`: the best 90, 80, ..., 20 % of the rows by a + d, and by c + d; the rows
    that agree with the trusted model, all rows, and none; and five points along a learned path,

        s_i = sigmoid(x_0 + <x, z_i>),   w_i ~ s_i,   trusted rows weigh e^tau
        f(u, w) = sum_k [ sum_i w_i loss_i(w_k) + e^tau sum_{j not in fold k} loss_j(w_k)
                          + ||w_k||^2 / 2 ]
        F(u, w) = mean over folds k and trusted rows j in k of loss_j(e^t w_k)

    with u = (x_0, x, tau, t), learned by near-exact hypergradients in 25 Adam steps from uniform
    weights, z of a, b, c and d. The rankings, features and models of a fold have not seen its trusted
    rows; nor has the path whose points are judged on them. Where a classifier can tell the trusted
    rows from the training rows, the density ratio is a feature, a factor of experts and a candidate.

    The mixture is a candidate beside the four baselines: uniform, all rows + trusted, trusted only,
    and the filter; a mixture along a path of group weights; and, with ten trusted rows or more for
    each parameter of the model, free row weights. "All rows + trusted" is kept unless the best one is
    better by more than half a standard error of the paired difference.

    Args:
        X, y: training rows `(rows, features)`, scaled to order one, and class codes 0, 1, ...
            (integers), or targets scaled to order one (floating).
        X_trusted, y_trusted: the trusted rows; at least 3 of each class that matters.
        groups: codes 0, 1, ... of the groups that the training rows belong to.
        seed: of the folds.
        callbacks: for each of the four runs.

    Cost: four paths of three models (of 25 steps with at most 20 gradients and 10 Hessian-vector
    products each), and about 120 fits of a linear model, all on at most 20000 training rows.

    Raises:
        InputError: fewer than 6 trusted rows, or codes that are no codes.

    The nested choice is slightly optimistic: the models of the other folds, which the coefficients
    are fitted to, have trained on the fold's rows.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(400, 2)); y = (X[:, 0] > 0).astype(int)
    >>> noisy = np.where(np.arange(300) < 100, 1 - y[:300], y[:300])  # the first hundred are wrong
    >>> found = cross_validated_weights(X[:300], noisy, X[300:], y[300:])
    >>> bool(found.weights[:100].mean() < 0.2), round(float(found.weights.mean()), 6)
    (True, 1.0)
    """
    y, y_trusted = np.asarray(y), np.asarray(y_trusted)
    data = make_folds(X, y, X_trusted, y_trusted, groups, seed)
    return choose(search(data, callbacks))
