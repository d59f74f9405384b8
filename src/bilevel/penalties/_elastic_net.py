"""The elastic net and the lasso, with both penalties chosen by hypergradients."""

import warnings
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path

from ._tuning import AbstractTunedLinear, Part, tune

SHORTEST_PATH = 1e-4  # the least l1 penalty, as a part of the one that leaves no feature
RIDGE = (1e-8, 1e2)  # bounds of the l2 penalty, as multiples of the mean of x^2
RATIOS = (0.1, 0.5, 0.9, 0.99)  # of the grid that the search starts from
GRID = 20


class ElasticNetBilevelCV(RegressorMixin, AbstractTunedLinear):
    """The elastic net, with the strengths of both penalties chosen by gradients.

        w_k(u) = argmin_w  1/2 sum_{i not in k} s_i (x_i'w - y_i)^2 / sum_{i not in k} s_i
                           + exp(u_1) ||w||_1 + 1/2 exp(u_2) ||w||^2
        Phi(u) = sum_k sum_{i in fold k} s_i (x_i'w_k(u) - y_i)^2  /  sum_i s_i

    w_k is not differentiable in u where its support S changes. Everywhere else S is constant in a
    neighbourhood, and the implicit function theorem holds for the coordinates in S:

        (X_S'X_S + exp(u_2) I) v_S = grad_S F,    v = 0 outside of S
        dPhi/du_1 = -exp(u_1) sign(w_S)'v_S,      dPhi/du_2 = -exp(u_2) w_S'v_S

    Args:
        l1_ratio: `None` chooses both penalties. A number in (0, 1] chooses only their sum, with the
            ratio `exp(u_1) / (exp(u_1) + exp(u_2))` fixed; 1 is the lasso, whose optimum is the one
            that `sklearn.linear_model.LassoCV` approaches as its grid becomes finer, if all folds
            have the same number of rows: here each *row* has the same weight.
        cv: number of folds, a scikit-learn splitter, or an iterable of splits.
        fit_intercept: whether there is an intercept, which is not penalised.
        max_iter: the largest number of steps of the outer solver (L-BFGS-B on `u`, within bounds).
        tol: the outer solver stops where no entry of the hypergradient is above `tol` times the
            variance of y.

    Attributes:
        alpha_, l1_ratio_: in scikit-learn's units, `exp(u_1) = alpha l1_ratio` and
            `exp(u_2) = alpha (1 - l1_ratio)`.
        coef_, intercept_: the model fitted on all rows.
        cv_loss_: `Phi` at the end, the mean squared error on the held-out rows.
        grid_cv_loss_: the smallest `Phi` on the coarse grid that the search starts from.
        hypergradient_norm_: the largest entry of the hypergradient at the end. It is not small if
            the minimum is at a kink of Phi.
        tuned_: the result of the outer solver; `tuned_.values` is its history.
        n_iter_: the number of outer steps, the choice of a start included.

    Cost: an evaluation is one warm-started coordinate descent per fold by scikit-learn, and one
    linear solve of the size of the support. Phi is neither convex nor smooth: the search starts
    from the best point of a grid of 20 strengths (and 4 ratios).

    Source: Bertrand, Klopfenstein, Massias, Blondel, Vaiter, Gramfort and Salmon (2022), "Implicit
    differentiation for fast hyperparameter selection in non-smooth convex learning", Theorem 1
    [bertrand2022][]; Grazzi and Pontil, "Principled and efficient bilevel optimization for machine
    learning", section "Recent Advances" [grazzi2023][].

    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ElasticNetBilevelCV(l1_ratio=1.0).fit(X, y)
    >>> bool(model.cv_loss_ <= model.grid_cv_loss_), model.l1_ratio_
    (True, 1.0)
    """

    def __init__(
        self,
        *,
        l1_ratio: float | None = None,
        cv: Any = 5,
        fit_intercept: bool = True,
        max_iter: int = 100,
        tol: float = 1e-6,
    ):
        self.l1_ratio = l1_ratio
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol

    def _targets(self, y: np.ndarray) -> np.ndarray:
        return y.astype(np.float64)

    def _fit(self, whole: Part, folds: list[Part]) -> None:
        ratio = self.l1_ratio
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(
                f"`l1_ratio` must be None or in (0, 1], got {ratio!r}; for 0, which is ridge "
                "regression, use RidgeBilevelCV(penalties='shared')."
            )
        lassos = [_Fold(fold) for fold in folds]
        everything = _Fold(whole)
        variance = float(np.average(whole.y**2, weights=whole.weight)) or 1.0
        most = max(everything.most, 1e-12 * np.sqrt(variance))
        square = float(np.mean(everything.X**2)) or 1.0

        def penalties(u: np.ndarray) -> np.ndarray:
            """`(l1, l2)`."""
            return np.exp(u) if ratio is None else np.exp(u[0]) * np.array([ratio, 1 - ratio])

        def phi(u: np.ndarray) -> tuple[float, np.ndarray]:
            pairs = [lasso.value_and_hypergradient(*penalties(u)) for lasso in lassos]
            values, grads = zip(*pairs, strict=True)
            grad = np.sum(grads, axis=0)
            return sum(values), grad if ratio is None else grad.sum(keepdims=True)

        strengths = np.log(most) + np.linspace(0, np.log(SHORTEST_PATH), GRID)
        if ratio is None:
            lower = np.log([SHORTEST_PATH * most, RIDGE[0] * square])
            upper = np.log([most, RIDGE[1] * square])
            grid = [np.array([s, s + np.log((1 - r) / r)]) for r in RATIOS for s in strengths]
        else:
            lower, upper = strengths[-1:] - np.log(ratio), strengths[:1] - np.log(ratio)
            grid = [np.array([s]) for s in strengths - np.log(ratio)]
        self.tuned_ = tune(phi, grid, lower, upper, self.max_iter, self.tol, variance)
        self.grid_cv_loss_ = self.tuned_.values[0]
        l1, l2 = penalties(self.tuned_.u)
        self.alpha_, self.l1_ratio_ = float(l1 + l2), float(l1 / (l1 + l2))
        self.coef_ = everything.solution(l1, l2)
        self.intercept_ = float(whole.y_mean - whole.X_mean @ self.coef_)

    def predict(self, X: Any) -> np.ndarray:
        """`X coef_ + intercept_`."""
        return self._decide(X)


class _Fold:
    """The inner problem of one fold. Rows are scaled so that their weights are 1 / rows."""

    def __init__(self, part: Part):
        root = np.sqrt(part.weight * len(part.weight) / part.weight.sum())
        self.part = part
        self.X, self.y = np.asfortranarray(root[:, None] * part.X), root * part.y
        self.rows = len(self.y)
        self.gram = self.X.T @ self.X / self.rows
        self.right = self.X.T @ self.y / self.rows
        self.w = np.zeros(self.X.shape[1])

    @property
    def most(self) -> float:
        """The smallest l1 penalty at which no feature is used."""
        return float(np.max(np.abs(self.right)))

    def solution(self, l1: float, l2: float) -> np.ndarray:
        """`w*`, by coordinate descent from the last one, then exactly on its support."""
        alpha = l1 + l2
        with warnings.catch_warnings():
            # A dual gap that is not closed is closed below, or was of no account.
            warnings.simplefilter("ignore", ConvergenceWarning)
            _, path, _ = enet_path(
                self.X,
                self.y,
                l1_ratio=l1 / alpha,
                alphas=[alpha],  # pyright: ignore[reportArgumentType]
                precompute=self.rows * self.gram,  # pyright: ignore[reportArgumentType]
                Xy=self.rows * self.right,
                coef_init=self.w,
                tol=1e-10,
                max_iter=10_000,
            )
        self.w = np.asfortranarray(path[:, 0])
        support = self.w != 0
        sign = np.sign(self.w[support])
        polished = self._solve(support, self.right[support] - l1 * sign, l2)
        if np.all(np.sign(polished) == sign):
            self.w[support] = polished
        return self.w.copy()

    def _solve(self, support: np.ndarray, right: np.ndarray, l2: float) -> np.ndarray:
        """`(X_S'X_S / rows + l2 I)^-1 right`; among several solutions the one of minimum norm."""
        matrix = self.gram[np.ix_(support, support)] + l2 * np.eye(int(support.sum()))
        return np.linalg.lstsq(matrix, right, rcond=None)[0]

    def value_and_hypergradient(self, l1: float, l2: float) -> tuple[float, np.ndarray]:
        """The loss on the held-out rows, and its derivative in `(log l1, log l2)`."""
        w, part = self.solution(l1, l2), self.part
        support = w != 0
        error = part.X_held @ w - part.y_held
        right = 2 * (part.weight_held * error) @ part.X_held[:, support]
        v = self._solve(support, right, l2)
        grad = -np.array([l1 * np.sign(w[support]) @ v, l2 * w[support] @ v])
        return float(part.weight_held @ error**2), grad
