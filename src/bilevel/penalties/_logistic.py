"""Logistic regression that chooses its penalties, one per feature, by hypergradients."""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets

from ._logistic_fold import UNSOLVED, Fold, all_logits
from ._parts import Part
from ._tuning import AbstractPenalised


class LogisticRegressionBilevelCV(ClassifierMixin, AbstractPenalised):
    """Logistic regression with one penalty per feature, chosen by cross-validation.

        w_k(u) = argmin_w  sum_{i not in fold k} s_i l(x_i, y_i; w) + 1/2 sum_j exp(u_j) ||w_j||^2
        Phi(u) = sum_k sum_{i in fold k} s_i l(x_i, y_i; w_k(u))  /  sum_i s_i

        H_k v_k = grad_w F,     dPhi/du_j = -exp(u_j) sum_k <w_kj, v_kj>

    with `l = -log p(y | x)` for the softmax over the classes (two classes have one logit), and an
    intercept without penalty. `w_j` are the coefficients of feature j, one per class.

    Args:
        penalties: `"feature"`, one penalty per feature; `"shared"`, one for all; an array of one
            group label per feature, for one penalty per group; or `"auto"`: one per feature or one
            for all, whichever has the lower loss on each fold when it is chosen on the other folds.
        cv: number of (stratified) folds, a scikit-learn splitter, or an iterable of splits.
        fit_intercept: whether there is an intercept, which is not penalised.
        max_iter: the largest number of steps of the outer solver (L-BFGS-B on `u`, within bounds).
        tol: the outer solver stops where no entry of the hypergradient is above `tol` times the
            loss of the best shared penalty (for that one, `tol`).

    Attributes:
        classes_: the labels, in order.
        alpha_: the penalties `exp(u)`, `1 / C` in the units of scikit-learn's `LogisticRegression`:
            a number if shared, otherwise one per feature.
        coef_, intercept_: the model fitted on all rows.
        cv_loss_: `Phi` at `alpha_`, the mean log-loss on the held-out rows. **It is optimistic**,
            and more so the more penalties were chosen by it. Judge the estimator by
            `cross_val_score`.
        shared_alpha_, shared_cv_loss_: the best single penalty, and its loss.
        nested_loss_: with `"auto"`, the losses of both kinds on each fold if everything is chosen
            on the other folds. These are not optimistic, but they come from fewer rows.
        hypergradient_norm_: the largest entry of the hypergradient at the end.
        inner_residual_: the largest entry of the gradient of the (mean) inner objective at the end.
        tuned_: the result of the outer solver; `tuned_.values` is its history.
        n_iter_: the number of outer steps, the choice of a start included.

    All problems are solved in the coordinates `z = exp(u / 2) w`, in which the Hessian is at least
    the identity: the inner problem by damped Newton steps, which start from the polynomial through
    the solutions at the nearest penalties, and the linear systems by conjugate gradients. A
    hypergradient is as accurate as the search needs: to a part of the last one, and to a part of
    `tol` at the end, as in [HOAG][bilevel.HOAG]; the last model is solved to a mean gradient of
    1e-11. On dense rows conjugate gradients work in single precision, with iterative refinement.
    With up to 1000 coefficients they are preconditioned by the Hessian at an earlier solution, which
    is computed anew where they take more than 40 products and more than a quarter of the number of
    coefficients. Cost: a few Newton steps per fold and evaluation, each with a few products of the
    rows. Memory: dense rows twice in single precision. Sparse rows are never made dense, and no copy
    of them is centred.

    Source: Grazzi and Pontil, "Principled and efficient bilevel optimization for machine learning",
    section on hyperparameter optimization [grazzi2023][]; Pedregosa (2016), "Hyperparameter
    optimization with approximate gradient" [pedregosa2016][].

    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)[:, :8]
    >>> model = LogisticRegressionBilevelCV(cv=3, penalties="feature", tol=1e-3).fit(X, y)
    >>> model.alpha_.shape, bool(model.cv_loss_ < model.shared_cv_loss_)
    ((8,), True)
    """

    def __init__(
        self,
        *,
        penalties: Any = "auto",
        cv: Any = 5,
        fit_intercept: bool = True,
        max_iter: int = 100,
        tol: float = 1e-5,
    ):
        self.penalties = penalties
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol

    def _targets(self, y: np.ndarray) -> np.ndarray:
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "`LogisticRegressionBilevelCV` needs at least 2 classes, got one class: "
                f"{self.classes_[0]}."
            )
        return codes

    def _fit(self, whole: Part, folds: list[Part]) -> None:
        for fold in folds:
            missing = np.setdiff1d(whole.y, fold.y)
            if missing.size:
                raise ValueError(
                    f"the class {self.classes_[missing[0]]} has no row among those that one fold "
                    "learns from; use fewer folds, or stratified ones."
                )
        super()._fit(whole, folds)

    def _problems(self, parts: list[Part]) -> "list[Fold]":
        found = [Fold(part, self.fit_intercept, len(self.classes_)) for part in parts]
        for before, fold in pairwise(found):
            fold.before = before
        return found

    def _finish(self, whole: Part, u: np.ndarray, problems: Sequence[Any]) -> None:
        (problem,) = self._problems([whole])
        # In a fold the loss has a part of its weight only, as if all penalties were larger.
        parts = [fold.part.weight.sum() / whole.weight.sum() for fold in problems]
        near = [fold.predict(u + np.log(part)) for fold, part in zip(problems, parts, strict=True)]
        problem.known = [(u, np.mean(near, axis=0))]
        w, b = problem.solution(u)
        self.inner_residual_ = problem.residual
        if self.inner_residual_ > UNSOLVED:
            warnings.warn(
                f"the inner problem was solved to {self.inner_residual_:.1e} only, so that its "
                "hypergradient is not exact; standardise the features.",
                ConvergenceWarning,
                stacklevel=4,
            )
        # A constant that all logits share changes nothing: the intercepts are given mean zero.
        b = b - b.mean() if len(b) > 1 else b
        self.coef_ = w
        self.intercept_ = b - w @ whole.X_mean

    def decision_function(self, X: Any) -> np.ndarray:
        """The logits: `(rows,)` of the second class for two classes, otherwise `(rows, classes)`."""
        logits = self._decide(X)
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """`(rows, classes)`."""
        return softmax(all_logits(self._decide(X)), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """`(rows, classes)`."""
        return log_softmax(all_logits(self._decide(X)), axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class."""
        best = all_logits(self._decide(X)).argmax(axis=1)
        return self.classes_[best]
