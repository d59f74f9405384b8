"""Ridge regression that chooses its penalties, one per feature, by hypergradients."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import issparse
from scipy.sparse.linalg import cg
from sklearn.base import RegressorMixin

from ._parts import Part, operator
from ._tuning import AbstractPenalised, PenaltyMap

LARGEST = 2000  # sparse rows and features of which a dense matrix is factorised
LINEAR_TOL = 1e-12


class RidgeBilevelCV(RegressorMixin, AbstractPenalised):
    """Ridge regression with one penalty per feature, chosen by cross-validation.

        w_k(u) = argmin_w  1/2 sum_{i not in fold k} s_i (x_i'w - y_i)^2 + 1/2 sum_j exp(u_j) w_j^2
        Phi(u) = sum_k sum_{i in fold k} s_i (x_i'w_k(u) - y_i)^2  /  sum_i s_i

        (X'SX + diag(exp(u))) v_k = grad_w F,     dPhi/du_j = -exp(u_j) sum_k w_kj v_kj

    A grid search over d penalties fits `points^d` models. The hypergradient costs one more linear
    solve per fold than the value, for any d. With `penalties="shared"` the optimum is the one that
    `sklearn.linear_model.RidgeCV(alphas, cv=cv)` approaches as its grid becomes finer, if all folds
    have the same number of rows: here each *row* has the same weight.

    Args:
        penalties: `"feature"`, one penalty per feature; `"shared"`, one for all; an array of one
            group label per feature, for one penalty per group; or `"auto"`: one per feature or one
            for all, whichever has the lower loss on each fold when it is chosen on the other folds.
        cv: number of folds, a scikit-learn splitter, or an iterable of splits.
        fit_intercept: whether there is an intercept, which is not penalised.
        max_iter: the largest number of steps of the outer solver (L-BFGS-B on `u`, within bounds).
        tol: the outer solver stops where no entry of the hypergradient is above `tol` times the
            loss of the best shared penalty (for that one, times the variance of y).

    Attributes:
        alpha_: the penalties `exp(u)` in the units of `sklearn.linear_model.Ridge`: a number if
            shared, otherwise one per feature. The upper bound is 1e5 times the sum of squares of a
            feature; a penalty at the bound means that the feature is not used.
        coef_, intercept_: the model fitted on all rows.
        cv_loss_: `Phi` at `alpha_`, the mean squared error on the held-out rows. **It is
            optimistic**, and more so the more penalties were chosen by it. Judge the estimator by
            `cross_val_score`.
        shared_alpha_, shared_cv_loss_: the best single penalty, and its loss.
        nested_loss_: with `"auto"`, the losses of both kinds on each fold if everything is chosen
            on the other folds. These are not optimistic, but they come from fewer rows.
        hypergradient_norm_: the largest entry of the hypergradient at the end.
        tuned_: the result of the outer solver; `tuned_.values` is its history.
        n_iter_: the number of outer steps, the choice of a start included.

    Cost: an evaluation solves `2 K` linear systems of size `min(features, rows)` with one Cholesky
    factorisation per fold, `O(K min(d, n)^2 max(d, n))`. Memory: `K` copies of the rows and of the
    Gram matrix. Sparse rows stay sparse, and with more than 2000 rows and features the systems are
    solved by conjugate gradients. Phi is not convex in u: the search looks at 9 or fewer shared
    penalties, and then starts from the best of them and from penalties of a tenth of the sum of
    squares of each feature.

    Source: Grazzi and Pontil, "Principled and efficient bilevel optimization for machine learning",
    section on hyperparameter optimization [grazzi2023][]; Pedregosa (2016), "Hyperparameter
    optimization with approximate gradient" [pedregosa2016][].

    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = RidgeBilevelCV(penalties="feature").fit(X, y)
    >>> model.alpha_.shape, bool(model.cv_loss_ < model.shared_cv_loss_)
    ((10,), True)
    """

    def __init__(
        self,
        *,
        penalties: Any = "auto",
        cv: Any = 5,
        fit_intercept: bool = True,
        max_iter: int = 200,
        tol: float = 1e-6,
    ):
        self.penalties = penalties
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol

    def _targets(self, y: np.ndarray) -> np.ndarray:
        return y.astype(np.float64)

    def _unit(self, whole: Part) -> float:
        return float(np.average(whole.y**2, weights=whole.weight)) or 1.0

    def _problems(self, parts: list[Part]) -> "list[_Normal]":
        return [_Normal(part) for part in parts]

    def _finish(self, whole: Part, u: np.ndarray, problems: Sequence[Any]) -> None:
        del problems
        self.coef_ = _Normal(whole).solution(u)
        self.intercept_ = float(whole.y_mean - whole.X_mean @ self.coef_)

    def predict(self, X: Any) -> np.ndarray:
        """`X coef_ + intercept_`."""
        return self._decide(X)


class _Normal:
    """The normal equations of one fold, in the coordinates `z = exp(u / 2) w`.

    In these coordinates the matrix is `E X'SX E + I` with `E = diag(exp(-u / 2))`, which is never
    singular. With more features than rows, the system is solved in the rows (Woodbury). Sparse rows
    with more than `LARGEST` of both are solved by conjugate gradients.
    """

    exact: ClassVar[bool] = True

    def __init__(self, part: Part):
        self.part = part
        rows, features = part.X.X.shape
        self.large = issparse(part.X.X) and min(rows, features) > LARGEST
        wide = features > rows
        self.gram = None if self.large or wide else part.X.gram(part.weight)
        self.right = part.X.back(part.weight * part.y)

    def solver(self, u: np.ndarray) -> Any:
        """`b -> (X'SX + diag(exp(u)))^-1 b`, factorised once."""
        e, X, weight = np.exp(-u / 2), self.part.X, self.part.weight
        if self.gram is not None:
            factor = cho_factor(e[:, None] * self.gram * e + np.eye(len(e)))
            return lambda b: e * cho_solve(factor, e * b)
        if self.large:
            matrix = operator(len(e), lambda z: e * X.back(weight * X.times(e * z)) + z)
            return lambda b: e * cg(matrix, e * b, rtol=LINEAR_TOL, maxiter=10 * len(e))[0]
        root = np.sqrt(weight)
        factor = cho_factor(root[:, None] * X.kernel(e**2) * root + np.eye(len(root)))

        def solve(b: np.ndarray) -> np.ndarray:
            inner = root * cho_solve(factor, root * X.times(e**2 * b))
            return e**2 * (b - X.back(inner))

        return solve

    def solution(self, u: np.ndarray) -> np.ndarray:
        """`w*(u)`, for one log-penalty per feature."""
        return self.solver(u)(self.right)

    def value(self, u: np.ndarray, penalties: PenaltyMap) -> float:
        """The loss on the held-out rows."""
        part = self.part
        error = part.X_held.times(self.solution(u[penalties.codes])) - part.y_held
        return float(part.weight_held @ error**2)

    def value_and_hypergradient(
        self, u: np.ndarray, penalties: PenaltyMap, accuracy: float = 0.0
    ) -> tuple[float, np.ndarray]:
        """The loss on the held-out rows, and its derivative in the log-penalties, exactly."""
        del accuracy
        solve = self.solver(u[penalties.codes])
        w = solve(self.right)
        part = self.part
        error = part.X_held.times(w) - part.y_held
        v = solve(2 * part.X_held.back(part.weight_held * error))
        return float(part.weight_held @ error**2), penalties.hypergradient(u, w, v)
