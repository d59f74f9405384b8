"""Logistic regression that chooses its penalties, one per feature, by hypergradients."""

import warnings
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets

from ._tuning import AbstractPenalised, Part, PenaltyMap

LINEAR_TOL = 1e-8
SOLVED = 1e-11  # an inner residual that is small enough
NEWTON_STEPS, SHORTEST = 100, 1e-9
UNSOLVED = 1e-6  # an inner residual that is worth a warning


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
    the identity: the inner problem by warm-started, damped Newton steps to a mean gradient of
    1e-11, and the linear systems by conjugate gradients. Cost: a few Newton steps per fold and
    evaluation, each with products of the rows by conjugate gradients.

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

    def _problem(self, part: Part) -> "_Fold":
        return _Fold(part, self.fit_intercept, len(self.classes_))

    def _finish(self, whole: Part, u: np.ndarray) -> None:
        problem = self._problem(whole)
        w, b = problem.solution(u)
        self.inner_residual_ = problem.solve(u)[1]
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
        return softmax(_all_logits(self._decide(X)), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """`(rows, classes)`."""
        return log_softmax(_all_logits(self._decide(X)), axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class."""
        best = _all_logits(self._decide(X)).argmax(axis=1)
        return self.classes_[best]


def _all_logits(logits: np.ndarray) -> np.ndarray:
    """One logit a class: of two classes the first has 0."""
    return np.c_[np.zeros(len(logits)), logits] if logits.shape[1] == 1 else logits


class _Fold:
    """The inner problem of one fold, and its adjoint, in the coordinates `z = exp(u / 2) w`.

    Parameters are `(outputs, features + 1)`; the last column is the intercept, which stays zero if
    there is none.
    """

    def __init__(self, part: Part, intercept: bool, classes: int):
        self.part = part
        self.intercept = float(intercept)
        self.outputs = 1 if classes == 2 else classes
        self.columns = (
            slice(1, None) if classes == 2 else slice(None)
        )  # of the logits that are free
        self.w = np.zeros((self.outputs, part.X.shape[1] + 1))  # of the last solution

    def solution(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`w*(u)`, `(outputs, features)`, and the intercept, `(outputs,)`."""
        z, _ = self.solve(u)
        return z[:, :-1] * np.exp(-u / 2), z[:, -1]

    def solve(self, u: np.ndarray) -> tuple[np.ndarray, float]:
        """`z*(u)` and the largest entry of the gradient there, divided by the weights' sum.

        Newton steps start from the last solution. A step is halved until it lowers the norm of the
        gradient, which a step that is small enough always does.
        """
        X, scale = self.part.X * np.exp(-u / 2), np.append(np.exp(u / 2), 1.0)
        z, total = self.w * scale, self.part.weight.sum()
        grad, hessian = self.derivatives(X, z)
        t = 1.0
        for _ in range(NEWTON_STEPS):
            if np.max(np.abs(grad)) <= SOLVED * total or t < SHORTEST:  # the latter by rounding
                break
            norm = np.linalg.norm(grad)
            with np.errstate(over="ignore", invalid="ignore"):  # of a step that is too long
                # Far from the solution a rough step is as good as an exact one.
                rough = float(np.clip(norm / total, LINEAR_TOL, 0.1))
                step, t = _solve(hessian, grad, rough), 2.0
                while t >= SHORTEST:
                    t /= 2
                    trial_grad, trial_hessian = self.derivatives(X, z - t * step)
                    if np.linalg.norm(trial_grad) < norm:
                        z, grad, hessian = z - t * step, trial_grad, trial_hessian
                        break
        self.w = z / scale
        return z, float(np.max(np.abs(grad)) / total)

    def derivatives(self, X: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, LinearOperator]:
        """The gradient and the Hessian of the inner objective in z."""
        part = self.part
        p = softmax(_all_logits(X @ z[:, :-1].T + z[:, -1]), axis=1)
        error = p.copy()
        error[np.arange(len(error)), part.y] -= 1
        error, p = error[:, self.columns] * part.weight[:, None], p[:, self.columns]

        def back(change: np.ndarray) -> np.ndarray:
            """From the logits to the parameters."""
            return np.c_[change.T @ X, self.intercept * change.sum(axis=0)]

        def product(flat: np.ndarray) -> np.ndarray:
            x = flat.reshape(z.shape)
            change = p * (X @ x[:, :-1].T + self.intercept * x[:, -1])
            # The first class of two has a logit that does not move, and a share all the same.
            change = part.weight[:, None] * (change - p * change.sum(axis=1, keepdims=True))
            penalty = np.c_[x[:, :-1], (1 - self.intercept) * x[:, -1]]
            return (back(change) + penalty).ravel()

        grad = back(error) + np.c_[z[:, :-1], np.zeros(self.outputs)]
        return grad, LinearOperator((z.size, z.size), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]

    def value_and_hypergradient(
        self, u: np.ndarray, penalties: PenaltyMap
    ) -> tuple[float, np.ndarray]:
        """The log-loss on the held-out rows, and its derivative in the log-penalties."""
        each, part = u[penalties.codes], self.part
        e, rows = np.exp(-each / 2), np.arange(len(part.y_held))
        z, _ = self.solve(each)
        X_held = part.X_held * e
        logits = _all_logits(X_held @ z[:, :-1].T + z[:, -1])
        value = -part.weight_held @ log_softmax(logits, axis=1)[rows, part.y_held]
        error = softmax(logits, axis=1)
        error[rows, part.y_held] -= 1
        error = (part.weight_held[:, None] * error)[:, self.columns]
        right = np.c_[error.T @ X_held, self.intercept * error.sum(axis=0)]
        v = _solve(self.derivatives(part.X * e, z)[1], right)
        w, v = z[:, :-1] * e, v[:, :-1] * e
        return float(value), penalties.hypergradient(u, w.T, v.T)


def _solve(hessian: LinearOperator, right: np.ndarray, rtol: float = LINEAR_TOL) -> np.ndarray:
    """`hessian^-1 right` by conjugate gradients, for a matrix that is at least the identity."""
    with np.errstate(all="ignore"):  # of what the caller finds to be no help
        x, _ = cg(hessian, right.ravel(), rtol=rtol, maxiter=10 * right.size)
    return x.reshape(right.shape)
