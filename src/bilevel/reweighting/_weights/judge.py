"""Candidates judged on held-out trusted rows by an estimator of the user's own."""

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression, Ridge

from .._inputs.prepare import Prepared
from .baselines import fit_weighted, stack_rows, take_rows
from .weight_function import FOLDS, Folds

LEAST = 1e-3  # the least probability that a candidate's model may give


def judge_with(
    estimator: Any, tables: Prepared, folds: Folds, fit_weights: Float[np.ndarray, "folds all"]
) -> tuple[np.ndarray, float]:
    """Held-out losses of the trusted rows, and accuracy or R2, of any estimator fitted per fold."""
    X = stack_rows(take_rows(tables.train.X, folds.sub), tables.trusted.X)
    y = stack_rows(take_rows(tables.train.y, folds.sub), tables.trusted.y)
    outputs = np.full((folds.m, tables.num_outputs), np.log(LEAST))
    for k in range(FOLDS):
        held_out = folds.fold == k
        model = fit_weighted(estimator, X, y, fit_weights[k])
        part = take_rows(tables.trusted.X, np.flatnonzero(held_out))
        outputs[held_out] = _outputs(model, part, tables)
    return folds.kind.judge(outputs, folds.y_trusted)


def _outputs(model: Any, X: Any, tables: Prepared) -> np.ndarray:
    """Log-probabilities in the order of `tables.classes`, or predictions in units of the targets."""
    if tables.classes is None:
        target = np.asarray(tables.trusted.y, float)
        return ((model.predict(X) - target.mean()) / (target.std() or 1.0))[:, None]
    outputs = np.full((len(X), len(tables.classes)), np.log(LEAST))
    if hasattr(model, "predict_proba"):
        where = np.searchsorted(tables.classes, model.classes_)
        outputs[:, where] = np.log(np.maximum(model.predict_proba(X), LEAST))
    else:
        outputs[np.arange(len(X)), np.searchsorted(tables.classes, model.predict(X))] = 0.0
    return outputs


def is_the_linear_model(estimator: Any) -> bool:
    """Whether it is the penalised linear model that learns the weights; its solver does not matter."""
    if type(estimator) not in (LogisticRegression, Ridge):
        return False
    free = {"max_iter", "tol", "solver", "random_state", "n_jobs", "verbose", "warm_start"}
    usual = type(estimator)().get_params()
    return all(usual[k] == v for k, v in estimator.get_params().items() if k not in free)
