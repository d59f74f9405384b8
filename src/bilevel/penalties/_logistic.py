"""Logistic regression that chooses its penalties, one per feature, by hypergradients."""

import warnings
from typing import Any

import numpy as np
from scipy.linalg import get_lapack_funcs
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets

from ._parts import Part, operator
from ._tuning import AbstractPenalised, PenaltyMap

LINEAR_TOL = 1e-8
SOLVED, ROUGH = 1e-11, 1e-3  # inner residuals that are small enough, and to choose a start
NEWTON_STEPS, SHORTEST = 100, 1e-9
UNSOLVED = 1e-6  # an inner residual that is worth a warning
LARGEST = 1000  # coefficients of which a Hessian is factorised, as a preconditioner
FACTOR, BACK = get_lapack_funcs(("potrf", "potrs"), dtype=np.float32)
MANY = 40  # products with a Hessian, after which the preconditioner is brought up to date


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
    1e-11 (1e-3 for the starts of the search), and the linear systems by conjugate gradients. With
    up to 1000 coefficients these are preconditioned by the Hessian at an earlier solution, which
    is computed anew where they take more than 40 products. Cost: a few
    Newton steps per fold and evaluation, each with a few products of the rows. Sparse rows are
    never made dense, and no copy of them is centred.

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

    def _problems(self, parts: list[Part]) -> "list[_Fold]":
        return [_Fold(part, self.fit_intercept, len(self.classes_)) for part in parts]

    def _finish(self, whole: Part, u: np.ndarray) -> None:
        (problem,) = self._problems([whole])
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
        self.w = np.zeros((self.outputs, len(part.X_mean) + 1))  # of the last solution
        self.starts: list[tuple[np.ndarray, np.ndarray]] = []  # penalties, and rough solutions
        self.residual = np.inf  # of the last solution
        self.earlier = _Preconditioner()

    def solution(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`w*(u)`, `(outputs, features)`, and the intercept, `(outputs,)`."""
        z = self.solve(u, SOLVED)[0]
        return z[:, :-1] * np.exp(-u / 2), z[:, -1]

    def solve(self, u: np.ndarray, tol: float) -> tuple[np.ndarray, "_Hessian"]:
        """`z*(u)`, where no entry of the mean gradient is above `tol`, and the Hessian there.

        Newton steps start from the last solution. A step is halved until it lowers the norm of the
        gradient, which a step that is small enough always does.
        """
        e, total = np.exp(-u / 2), self.part.weight.sum()
        z = self.w / np.append(e, 1.0)
        grad, hessian = self.derivatives(z, e)
        t = 1.0
        for _ in range(NEWTON_STEPS):
            if np.max(np.abs(grad)) <= tol * total or t < SHORTEST:  # the latter by rounding
                break
            norm = np.linalg.norm(grad)
            with np.errstate(over="ignore", invalid="ignore"):  # of a step that is too long
                # Far from the solution a rough step is as good as an exact one, and close to it a
                # step needs to be little better than the solution.
                rough = max(norm / total, 1e-3 * tol * total / norm)
                step, t = hessian.solve(grad, float(np.clip(rough, LINEAR_TOL, 0.1))), 2.0
                while t >= SHORTEST:
                    t /= 2
                    trial_grad, trial_hessian = self.derivatives(z - t * step, e)
                    if np.linalg.norm(trial_grad) < norm:
                        z, grad = z - t * step, trial_grad
                        hessian = trial_hessian
                        break
        self.w = z * np.append(e, 1.0)
        self.residual = float(np.max(np.abs(grad)) / total)
        return z, hessian

    def derivatives(self, z: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, "_Hessian"]:
        """The gradient and the Hessian of the inner objective in z."""
        part = self.part
        p = softmax(_all_logits(part.X.times((z[:, :-1] * e).T) + z[:, -1]), axis=1)
        error = p.copy()
        error[np.arange(len(error)), part.y] -= 1
        hessian = _Hessian(self, np.ascontiguousarray(p[:, self.columns]), e)
        grad = hessian.back(error[:, self.columns] * part.weight[:, None])
        grad[:, :-1] += z[:, :-1]
        return grad, hessian

    def held_out(self, z: np.ndarray, e: np.ndarray) -> tuple[float, np.ndarray]:
        """The log-loss on the held-out rows, and its derivative in the free logits."""
        part, rows = self.part, np.arange(len(self.part.y_held))
        logits = _all_logits(part.X_held.times((z[:, :-1] * e).T) + z[:, -1])
        log_p = log_softmax(logits, axis=1)
        error = np.exp(log_p)
        error[rows, part.y_held] -= 1
        value = -part.weight_held @ log_p[rows, part.y_held]
        return float(value), (part.weight_held[:, None] * error)[:, self.columns]

    def value(self, u: np.ndarray, penalties: PenaltyMap) -> float:
        """The log-loss on the held-out rows, roughly."""
        each = u[penalties.codes]
        z, _ = self.solve(each, ROUGH)
        self.starts.append((u, self.w))
        return self.held_out(z, np.exp(-each / 2))[0]

    def value_and_hypergradient(
        self, u: np.ndarray, penalties: PenaltyMap
    ) -> tuple[float, np.ndarray]:
        """The log-loss on the held-out rows, and its derivative in the log-penalties."""
        each = u[penalties.codes]
        e = np.exp(-each / 2)
        for start, w in self.starts:
            if np.array_equal(start, u):  # the search goes on from there
                self.w, self.starts = w, []
        z, hessian = self.solve(each, SOLVED)
        value, error = self.held_out(z, e)
        right = np.c_[self.part.X_held.back(error).T * e, self.intercept * error.sum(axis=0)]
        v = hessian.solve(right, LINEAR_TOL)
        w, v = z[:, :-1] * e, v[:, :-1] * e
        return value, penalties.hypergradient(u, w.T, v.T)


class _Hessian:
    """The Hessian of the inner objective of one fold in z, at probabilities `p` of free logits."""

    def __init__(self, fold: _Fold, p: np.ndarray, e: np.ndarray):
        self.fold, self.p, self.e = fold, p, e
        self.weighted = p * fold.part.weight[:, None]

    def back(self, change: np.ndarray) -> np.ndarray:
        """From the logits to the parameters."""
        fold, found = self.fold, np.empty(self.fold.w.shape)
        found[:, :-1] = fold.part.X.back(change).T * self.e
        found[:, -1] = fold.intercept * change.sum(axis=0)
        return found

    def product(self, flat: np.ndarray) -> np.ndarray:
        """The product with parameters as one vector."""
        fold = self.fold
        x = flat.reshape(fold.w.shape)
        change = fold.part.X.times((x[:, :-1] * self.e).T) + fold.intercept * x[:, -1]
        # The first class of two has a logit that does not move, and a share all the same.
        change -= np.einsum("ij,ij->i", self.p, change)[:, None]
        change *= self.weighted
        found = self.back(change)
        found[:, :-1] += x[:, :-1]
        found[:, -1] += (1 - fold.intercept) * x[:, -1]
        return found.ravel()

    def solve(self, right: np.ndarray, rtol: float) -> np.ndarray:
        """The solution of a linear system by preconditioned conjugate gradients."""
        size, earlier = right.size, self.fold.earlier
        inverse = earlier.inverse(self)
        hessian, flat = operator(size, self.product), right.ravel()
        renewable = size <= LARGEST and np.all(np.isfinite(self.p))
        with np.errstate(all="ignore"):  # of what the caller finds to be no help
            many = MANY if renewable else 10 * size
            found, unsolved = cg(hessian, flat, rtol=rtol, maxiter=many, M=inverse)
            if unsolved and renewable:
                earlier.renew(self)
                inverse = earlier.inverse(self)
                found, _ = cg(hessian, flat, found, rtol=rtol, maxiter=10 * size, M=inverse)
        return found.reshape(right.shape)

    def loss(self) -> np.ndarray:
        """The Hessian of the loss alone, in w, dense."""
        part, outputs = self.fold.part, self.fold.outputs
        width = len(self.e) + 1
        found = np.zeros((outputs, width, outputs, width))
        for a in range(outputs):
            for b in range(a, outputs):
                weight = self.weighted[:, a] * ((a == b) - self.p[:, b])
                block = found[a, :, b]
                block[:-1, :-1] = part.X.gram(weight)
                if self.fold.intercept:
                    block[-1, :-1] = block[:-1, -1] = part.X.back(weight)
                    block[-1, -1] = weight.sum()
                found[b, :, a] = block
        return found.reshape(outputs * width, -1)


class _Preconditioner:
    """The inverse of a fold's Hessian at an earlier solution; `renew` takes the one of today.

    Single precision is enough for that. It is not shared: the rows that another fold learns from
    have too much of an influence on its smallest eigenvalues.
    """

    def __init__(self):
        self.loss: np.ndarray | None = None
        self.made: tuple[np.ndarray, LinearOperator | None] | None = None  # for which penalties

    def renew(self, hessian: _Hessian) -> None:
        self.loss, self.made = hessian.loss().astype(np.float32), None

    def inverse(self, hessian: _Hessian) -> LinearOperator | None:
        """For the penalties of `hessian`; None where there is none."""
        if self.made is None or not np.array_equal(self.made[0], hessian.e):
            self.made = hessian.e, self._factorised(hessian)
        return self.made[1]

    def _factorised(self, hessian: _Hessian) -> LinearOperator | None:
        if self.loss is None:
            return None
        fold, e = hessian.fold, hessian.e
        scale = np.tile(np.append(e, 1.0), fold.outputs).astype(np.float32)
        matrix = self.loss * scale
        matrix *= scale[:, None]
        penalised = np.append(np.ones(len(e)), 1 - fold.intercept)
        matrix[np.diag_indices_from(matrix)] += np.tile(penalised, fold.outputs)
        if fold.outputs > 1 and fold.intercept:  # A constant that all logits share changes nothing.
            last = slice(len(e), None, len(e) + 1)
            matrix[last, last] += fold.part.weight.sum() / fold.outputs
        factor, failed = FACTOR(matrix.T, overwrite_a=True, clean=False)
        if failed or not np.all(np.isfinite(factor.diagonal())):  # by rounding
            return None

        def inverse(x: np.ndarray) -> np.ndarray:
            return BACK(factor, x.astype(np.float32))[0].astype(np.float64)

        return operator(len(scale), inverse)
